"""Write a checkpoint of the size and architecture of a published ORB with seeded random parameters.

Runs in the environment of orb-models; `benchmarks.stand_ins` calls it, because the published files are in no package.

    python orb_checkpoint.py FOLDER {v2,v3_conservative} [--seed 0]      # writes FOLDER/orb.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from orb_models.forcefield import pretrained

ARCHITECTURES = {
    "v2": pretrained.orb_v2_architecture,
    "v3_conservative": pretrained.orb_v3_conservative_architecture,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("architecture", choices=ARCHITECTURES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.save(ARCHITECTURES[arguments.architecture](device="cpu").state_dict(), arguments.folder / "orb.ckpt")
