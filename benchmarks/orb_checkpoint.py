"""Write a checkpoint of the size and architecture of a published ORB with seeded random parameters.

Runs in the environment of orb-models; `benchmarks.stand_ins` calls it, because the published files are in no package.

    python orb_checkpoint.py FOLDER {v2,v3_conservative,v3_direct} [--seed 0]      # writes FOLDER/orb.ckpt
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from orb_models.forcefield import pretrained

ARCHITECTURES = {
    "v2": pretrained.orb_v2_architecture,
    "v3_conservative": pretrained.orb_v3_conservative_architecture,
    "v3_direct": pretrained.orb_v3_direct_architecture,
}


def seeded(architecture: str, seed: int = 0, sizes: Mapping[str, int] = MappingProxyType({})) -> torch.nn.Module:
    """A model of an architecture with random parameters, and statistics of forces and stress that are not 0 and 1.

    Args:
        architecture: one of `ARCHITECTURES`.
        seed: of the parameters.
        sizes: of the network, in place of the published ones.
    """
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture](**sizes, device="cpu")
    for name, buffer in model.named_buffers():
        if name.startswith(("heads.forces", "heads.stress")) and name.endswith(("running_mean", "running_var")):
            buffer += torch.rand_like(buffer)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("architecture", choices=ARCHITECTURES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = seeded(arguments.architecture, arguments.seed)
    torch.save(model.state_dict(), arguments.folder / "orb.ckpt")
