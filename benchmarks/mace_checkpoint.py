"""Write a checkpoint of the size and architecture of MACE-MP-0b medium with seeded random parameters.

Runs in the environment of mace-torch; `benchmarks.stand_ins` calls it, because the published file is in no package.

    python mace_checkpoint.py FOLDER [--seed 0]      # writes FOLDER/mace.model
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 reads its constants as a pickle

import numpy as np
import torch
from e3nn import o3
from mace.modules import (
    RealAgnosticInteractionBlock,
    RealAgnosticResidualInteractionBlock,
    ScaleShiftMACE,
)

ELEMENTS = [*range(1, 84), *range(89, 95)]


def seeded_model(seed: int) -> torch.nn.Module:
    """A model with the hyperparameters of MACE-MP-0b medium."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    return ScaleShiftMACE(
        atomic_inter_scale=0.8,
        atomic_inter_shift=0.0,
        r_max=6.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=RealAgnosticResidualInteractionBlock,
        interaction_cls_first=RealAgnosticInteractionBlock,
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps("128x0e + 128x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.linspace(-1.0, -10.0, len(ELEMENTS)),
        avg_num_neighbors=61.96,
        atomic_numbers=ELEMENTS,
        correlation=3,
        gate=torch.nn.functional.silu,
        pair_repulsion=True,
        use_reduced_cg=False,
        distance_transform="Agnesi",
        radial_MLP=[64, 64, 64],
        radial_type="bessel",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.save(seeded_model(arguments.seed), arguments.folder / "mace.model")
