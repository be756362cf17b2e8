"""Write a checkpoint of the size and architecture of a published MACE with seeded random parameters.

Runs in the environment of mace-torch; `benchmarks.stand_ins` calls it, because the published files are in no package.

    python mace_checkpoint.py FOLDER [VERSION] [--seed 0]      # writes FOLDER/mace.model

The architectures are those of the training scripts of mace-mp, mace-off and mace-foundations (mace_mp_0a, mace_mp_0b,
mace_mp_0b2, mace_mp_0b3, mace_omat, mace_off23, mace_mh_1); MPA-0 and MATPES, whose scripts are not public, are taken
to have that of MP-0b3 and OMAT-0, from which they were tuned. `replay` stands for a model tuned with replay, which
keeps a head for its first data. Earlier versions of mace-torch had the gates of e3nn; `mh-0` has them, `mh-1` the newer
ones, which compute the same.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 reads its constants as a pickle

import numpy as np
import torch
from e3nn import nn, o3
from mace.modules import ScaleShiftMACE, blocks, interaction_classes

MATERIALS = [*range(1, 84), *range(89, 95)]
ORGANICS = [1, 6, 7, 8, 9, 15, 16, 17, 35, 53]
PLAIN = {"interaction_first": "RealAgnosticInteractionBlock", "interaction": "RealAgnosticResidualInteractionBlock"}
FIRST = {
    "interaction_first": "RealAgnosticResidualInteractionBlock",
    "interaction": "RealAgnosticResidualInteractionBlock",
    "radial": 10,
}
SCREENED = PLAIN | {"pair_repulsion": True, "distance_transform": "Agnesi"}
DENSITY = SCREENED | {
    "interaction_first": "RealAgnosticDensityInteractionBlock",
    "interaction": "RealAgnosticDensityResidualInteractionBlock",
}
ORGANIC = PLAIN | {"elements": ORGANICS, "cutoff": 5.0}
GATED = SCREENED | {
    "interaction_first": "RealAgnosticResidualNonLinearInteractionBlock",
    "interaction": "RealAgnosticResidualNonLinearInteractionBlock",
    "channels": 512,
    "edge_channels": 128,
    "radial": 10,
    "apply_cutoff": False,
    "use_edge_irreps_first": True,
    "use_agnostic_product": True,
}
HEADS = ("matpes_r2scan", "mp_pbe_refit_add", "spice_wB97M", "oc20_usemppbe", "omol", "omat_pbe")
# highest l of the features, channels, elements, cutoff (Angstrom) and radial functions, and what else differs
VERSIONS: dict[str, dict[str, Any]] = {
    "mp-0-small": FIRST | {"highest": 0},
    "mp-0-medium": FIRST,
    "mp-0-large": FIRST | {"highest": 2},
    "mp-0b-small": SCREENED | {"highest": 0},
    "mp-0b-medium": SCREENED,
    "mp-0b2-small": DENSITY | {"cutoff": 5.0, "highest": 0},
    "mp-0b2-medium": DENSITY | {"cutoff": 5.0},
    "mp-0b2-large": DENSITY | {"cutoff": 5.0, "highest": 2},
    "mp-0b3-medium": DENSITY | {"radial": 10},
    "mpa-0-medium": DENSITY | {"radial": 10},
    "omat-0-small": DENSITY | {"highest": 0},
    "omat-0-medium": DENSITY,
    "matpes-pbe-0": DENSITY,
    "matpes-r2scan-0": DENSITY,
    "off23-small": ORGANIC | {"highest": 0, "channels": 96, "cutoff": 4.5},
    "off23-medium": ORGANIC,
    "off23-large": ORGANIC | {"highest": 2, "channels": 192},
    "mh-0": GATED | {"heads": HEADS, "gate": "e3nn"},
    "mh-1": GATED | {"heads": HEADS},
    "replay": DENSITY | {"heads": ("Default", "pt_head")},
}
DEFAULT = "mp-0b-medium"
NEWER_GATE = blocks.GatedEquivariantBlock


def seeded_model(
    version: str = DEFAULT, seed: int = 0, channels: int | None = None, elements: list[int] | None = None
) -> torch.nn.Module:
    """A model with the hyperparameters of a published one.

    Args:
        version: which, one of `VERSIONS`.
        seed: of its parameters.
        channels: of its features, in place of the published number; its radial networks are then narrow, too, and a
            model with other channels on its edges has a quarter of them there.
        elements: atomic numbers that it knows, in place of the published ones.
    """
    chosen = {"highest": 1, "channels": 128, "elements": MATERIALS, "cutoff": 6.0, "radial": 8, "heads": ("Default",)}
    chosen |= VERSIONS[version]
    elements = elements or chosen["elements"]
    heads = list(chosen["heads"])
    edge_channels = chosen.get("edge_channels")
    small = channels is not None
    if small:
        edge_channels = edge_channels and max(1, channels // 4)
    channels = channels or chosen["channels"]
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    references = np.linspace(-1.0, -10.0, len(elements))
    blocks.GatedEquivariantBlock = _gate_of_e3nn if chosen.get("gate") == "e3nn" else NEWER_GATE
    model = ScaleShiftMACE(
        atomic_inter_scale=(0.8 if len(heads) == 1 else generator.uniform(0.5, 1.0, len(heads))),
        atomic_inter_shift=0.0 if len(heads) == 1 else generator.uniform(-0.1, 0.1, len(heads)),
        r_max=chosen["cutoff"],
        num_bessel=chosen["radial"],
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=interaction_classes[chosen["interaction"]],
        interaction_cls_first=interaction_classes[chosen["interaction_first"]],
        num_interactions=2,
        num_elements=len(elements),
        hidden_irreps=_irreps(channels, chosen["highest"]),
        edge_irreps=_irreps(edge_channels, chosen["highest"]) if edge_channels else None,
        use_edge_irreps_first=chosen.get("use_edge_irreps_first", False),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=references if len(heads) == 1 else references - generator.random((len(heads), 1)),
        avg_num_neighbors=8.0 if small else 61.96,  # few channels give small forces otherwise
        atomic_numbers=elements,
        correlation=3,
        gate=torch.nn.functional.silu,
        pair_repulsion=chosen.get("pair_repulsion", False),
        apply_cutoff=chosen.get("apply_cutoff", True),
        use_agnostic_product=chosen.get("use_agnostic_product", False),
        use_reduced_cg=False,
        distance_transform=chosen.get("distance_transform", "None"),
        radial_MLP=[8, 8, 8] if small else [64, 64, 64],
        radial_type="bessel",
        heads=heads,
    )
    for name, parameter in model.named_parameters():
        if "NonLinear" in chosen["interaction"] and _begins_alike(name):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def _gate_of_e3nn(layout: str, **arguments: Any) -> torch.nn.Module:
    return nn.Gate(**arguments)


def _begins_alike(name: str) -> bool:
    """Whether a parameter begins at a constant or next to one, which would hide it."""
    return name.endswith(("alpha", "beta", "bias")) or "embedding.weight" in name or ".net." in name


def _irreps(channels: int, highest: int) -> o3.Irreps:
    return o3.Irreps("+".join(f"{channels}x{degree}{'eo'[degree % 2]}" for degree in range(highest + 1)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("version", nargs="?", choices=VERSIONS, default=DEFAULT)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.save(seeded_model(arguments.version, arguments.seed), arguments.folder / "mace.model")
