"""Write a checkpoint of the size and architecture of a published MatterSim-v1 with seeded random parameters.

Runs in the environment of mattersim; `benchmarks.stand_ins` calls it, because the published files are in no package.

    python mattersim_checkpoint.py FOLDER {v1-1m,v1-5m} [--seed 0]      # writes FOLDER/mattersim.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mattersim.forcefield.m3gnet.m3gnet import M3Gnet
from mattersim.forcefield.potential import Potential

SIZES = {"v1-1m": (128, 3), "v1-5m": (256, 4)}  # units and blocks, for 880 thousand and 4.5 million parameters


def seeded(units: int, blocks: int, seed: int = 0) -> M3Gnet:
    """A model with random parameters, biases and scales of the elements among them."""
    torch.manual_seed(seed)
    model = M3Gnet(num_blocks=blocks, units=units, device="cpu")
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.atom_embedding.mlp[0].linear.weight.data *= 20.0
    model.normalizer.scale += 20.0 * torch.rand_like(model.normalizer.scale)  # forces of the size of true ones
    model.normalizer.shift -= torch.rand_like(model.normalizer.shift)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("version", choices=SIZES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = seeded(*SIZES[arguments.version], arguments.seed)
    Potential(model, device="cpu").save(str(arguments.folder / "mattersim.pth"))
