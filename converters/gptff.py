"""COMMAND: convert the published GPTFF weights into a jaxpto model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from converters.pickles import CheckpointError
from converters.sources import Checkpoint, find_checkpoint
from converters.torch_files import read_checkpoint
from jaxpto.console.command import run_command
from jaxpto.models.catalogue import user_folder
from jaxpto.models.folder import save_potential
from jaxpto.models.gptff import GPTFF
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_folder

# eV per atom, by atomic number from 0 on; constants of the original program, not of its checkpoints
# fmt: off
REFERENCE_ENERGIES = (
    0.0, -3.46535853, -0.756101906, -3.46224791, -4.77600176, -8.03619240, -8.40374071, -7.76814618, -7.38918302,
    -4.94725878, -0.0292883670, -2.47830716, -2.02015956, -5.15479820, -7.91209653, -6.91345095, -4.62278149,
    -3.01552069, -0.0627971322, -2.31732442, -4.75968073, -8.17421803, -11.4207788, -8.92294483, -8.48981509,
    -8.16635547, -6.58248850, -5.26139665, -4.48412068, -3.27367370, -1.34976438, -3.62637456, -4.67270042,
    -4.13166577, -3.67546394, -2.80302539, 6.47272418, -2.24681188, -4.25110577, -10.2452951, -11.6658385,
    -11.8015760, -8.65537518, -9.36409198, -7.57165084, -5.69907599, -4.97159232, -1.88700594, -0.679483530,
    -2.74880153, -3.79441765, -3.38825264, -2.55867271, -1.96213610, 9.97909972, -2.55677995, -4.88030347,
    -8.86033743, -9.05368602, -7.94309693, -8.12585485, -6.31826210, -8.30242223, -12.2893251, -17.3097460,
    -7.55105974, -8.19580521, -8.34926874, -7.25911206, -8.41697224, -3.38725429, -7.68222088, -12.6297007,
    -13.6257602, -9.52985029, -11.8396814, -9.79914325, -7.55608603, -5.46902454, -2.65092136, 0.417472161,
    -2.32548971, -3.48299933, -3.18067109, 0.0, 0.0, 0.0, 0.0, 0.0, -5.48347781, -10.3346396, -11.1296117,
    -14.3116273, -14.7003999, -15.4726487,
)
# fmt: on


@dataclasses.dataclass(frozen=True)
class GptffConfig:
    """Convert the published GPTFF weights into a jaxpto model, which --model gptff-VERSION then finds."""

    version: Literal["v1", "v2"] = "v2"
    """Which published model: v1 (whose numbers for PbTiO3 are the published ones) or v2 (with attention)."""
    old_neighbors: bool = False
    """Leave out pairs of an atom and its own periodic images, as the weights were trained and as the original program
    did before June 2026; the model is then called gptff-VERSION-no-self-images."""
    checkpoint: Path | None = None
    """Checkpoint gptff_VERSION.pth. Default: found or downloaded."""
    out: Path | None = None
    """Model folder to write. Default: gptff-VERSION in the folder of the user's models."""


def run(config: GptffConfig) -> Path:
    """Convert; returns the model folder.

    Raises:
        CheckpointError: no checkpoint, or one that is damaged or no GPTFF.
        StorageError: the disk refuses the write.
    """
    name = f"gptff-{config.version}"
    folder = config.out or user_folder() / (f"{name}-no-self-images" if config.old_neighbors else name)
    check_output_folder(folder, resume=True)
    checkpoint = find_checkpoint(name, config.checkpoint)
    potential = convert(checkpoint, folder.name, self_images=not config.old_neighbors)
    save_potential(potential, folder, checkpoint.header())
    return folder


def convert(checkpoint: Checkpoint, name: str, *, self_images: bool = True) -> Potential:
    """The potential in a checkpoint, with or without edges between an atom and its own periodic images.

    Raises:
        CheckpointError: it is damaged, or no GPTFF.
    """
    (path,) = checkpoint.paths.values()
    content = read_checkpoint(path)
    try:
        settings = content["cfg"]
        attention = bool(settings["transformer_activate"])
        params = parameters(content["state_dict"], int(settings["n_layers"]), attention=attention)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} holds no GPTFF: {type(error).__name__} {error}; give one written by the gptff program"
        ) from None
    return Potential(params, GPTFF(self_images=self_images), name)


def parameters(state: Mapping[str, np.ndarray], n_blocks: int = 3, *, attention: bool) -> dict[str, Any]:
    """Parameters of `jaxpto.models.gptff.GPTFF` from the state_dict of a checkpoint.

    The unused layers convs.*.fc_core of the checkpoints are left out.

    Raises:
        KeyError: an entry is missing.
        ValueError: not one row of atom features for each atomic number.
    """
    if state["atom_embedding.weight"].shape[0] != len(REFERENCE_ENERGIES):
        raise ValueError(f"{state['atom_embedding.weight'].shape[0]} atom features, not {len(REFERENCE_ENERGIES)}")

    def linear(key: str) -> dict[str, np.ndarray]:
        return joined(f"{key}.")

    def joined(prefix: str) -> dict[str, np.ndarray]:
        return {name: np.asarray(state[prefix + name]) for name in ("weight", "bias")}

    blocks = []
    for t in range(n_blocks):
        three, edge, node = f"three.{t}", f"edge_updates.{t}", f"convs.{t}"
        block = {
            "three_body": {
                "features": linear(f"{three}.W_fea"),
                "gate": linear(f"{three}.W_1"),
                "value": linear(f"{three}.W_2"),
                "radial_first": linear(f"{three}.bond_embedding_j"),
                "radial_second": linear(f"{three}.bond_embedding_k"),
                "angle": linear(f"{three}.angle_embedding"),
            },
            "edge": {
                "value": linear(f"{edge}.W_1"),
                "gate": linear(f"{edge}.W_2"),
                "out": linear(f"{edge}.W_3"),
                "radial": linear(f"{edge}.W_r"),
            },
            "node": {
                "features": linear(f"{node}.fc_full"),
                "value": linear(f"{node}.W_1"),
                "gate": linear(f"{node}.W_2"),
                "radial": linear(f"{node}.W_r"),
            },
        }
        if attention:
            layer = f"transformers.{t}.encoder.layers.0"
            block["attention"] = {
                "before": linear(f"norms1.{t}"),
                "project": {
                    name: np.asarray(state[f"{layer}.self_attn.in_proj_{name}"]) for name in ("weight", "bias")
                },
                "heads": linear(f"{layer}.self_attn.out_proj"),
                "after_heads": linear(f"{layer}.norm1"),
                "feed": linear(f"{layer}.linear1"),
                "out": linear(f"{layer}.linear2"),
                "after_feed": linear(f"{layer}.norm2"),
                "after": linear(f"norms2.{t}"),
            }
        blocks.append(block)
    return {
        "atom_embedding": np.asarray(state["atom_embedding.weight"]),
        "edge_embedding": {"mix": linear("w_eij"), "radial_features": linear("w_b"), "radial_weight": linear("w_r")},
        "blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks),
        "readout": {"0": linear("fc1"), "1": linear("fc2"), "2": linear("fc_out")},
        "reference": np.asarray(REFERENCE_ENERGIES),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("converters.gptff", GptffConfig, _report, argv)


def _report(config: GptffConfig) -> None:
    print(f"model written to {run(config)}")


if __name__ == "__main__":
    sys.exit(main())
