"""A small seeded MatterSim-v1, and its energies by the mattersim package in float64.

Runs in the environment of `benchmarks.environments` that has mattersim:

    python benchmarks/mattersim_reference.py CHECKPOINT.pth STRUCTURES.extxyz OUT.json [--units 16] [--blocks 2]

Writes the checkpoint, in float32 as published ones are, and the results.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version as version_of
from pathlib import Path

import ase.io
import ase.units
import numpy as np
import torch
from mattersim.datasets.utils import convertor
from mattersim.forcefield.m3gnet.m3gnet import M3Gnet
from mattersim.forcefield.potential import MatterSimCalculator, Potential
from mattersim_checkpoint import seeded


def in_double(model: M3Gnet) -> M3Gnet:
    """The model in float64, and whatever the package turns to single precision on the way."""
    convertor.torch.FloatTensor = torch.DoubleTensor
    torch.Tensor.float = torch.Tensor.double
    return model.double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("structures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=2)
    arguments = parser.parse_args()
    model = seeded(arguments.units, arguments.blocks)
    Potential(model, device="cpu").save(str(arguments.checkpoint))
    calculator = MatterSimCalculator(
        Potential(in_double(model), device="cpu"), device="cpu", stress_weight=ase.units.GPa
    )
    found = []
    for atoms in ase.io.read(arguments.structures, ":"):
        structure = {
            "name": atoms.info["name"],
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
        }
        atoms.calc = calculator
        results = {
            "energy": float(atoms.get_potential_energy()),
            "forces": np.asarray(atoms.get_forces(), np.float64).tolist(),
            "stress": np.asarray(atoms.get_stress(voigt=False), np.float64).tolist(),
        }
        print(f"{structure['name']:12s} {results['energy']:14.6f} eV")
        found.append(structure | {"float64": results})
    package = f"mattersim {version_of('mattersim')}, torch {torch.__version__}, float64"
    document = {"model": "seeded", "package": package, "structures": found}
    arguments.out.write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
