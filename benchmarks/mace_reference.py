"""Small seeded models of the published MACE architectures, and their energies by mace-torch in float64.

Runs in the environment of `benchmarks.environments` that has mace-torch:

    python benchmarks/mace_reference.py FOLDER STRUCTURES.extxyz VERSION[:HEAD] ... [--channels 4]

For each version of `mace_checkpoint.py` writes FOLDER/VERSION.model and FOLDER/VERSION.json. The models know the
elements of the structures.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version as version_of
from pathlib import Path

import ase.io
import numpy as np
import torch
from mace.calculators import MACECalculator
from mace_checkpoint import seeded_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("structures", type=Path)
    parser.add_argument("versions", nargs="+")
    parser.add_argument("--channels", type=int, default=4)
    arguments = parser.parse_args()
    structures = ase.io.read(arguments.structures, ":")
    elements = sorted({int(number) for atoms in structures for number in atoms.numbers})
    package = f"mace-torch {version_of('mace-torch')}, torch {torch.__version__}, float64"
    for item in arguments.versions:
        version, _, head = item.partition(":")
        model = seeded_model(version, channels=arguments.channels, elements=elements)
        torch.save(model, arguments.folder / f"{version}.model")
        calculator = MACECalculator(models=model, device="cpu", default_dtype="float64", head=head or model.heads[0])
        found = []
        for atoms in structures:
            atoms.calc = calculator
            results = {
                "energy": float(atoms.get_potential_energy()),
                "forces": np.asarray(atoms.get_forces(), np.float64).tolist(),
                "stress": np.asarray(atoms.get_stress(voigt=False), np.float64).tolist(),
            }
            structure = {
                "name": atoms.info["name"],
                "numbers": atoms.numbers.tolist(),
                "positions": atoms.positions.tolist(),
                "cell": atoms.cell.array.tolist(),
            }
            print(f"{item:24s} {structure['name']:12s} {results['energy']:14.6f} eV", flush=True)
            found.append(structure | {"float64": results})
        document = {"model": version, "head": head, "package": package, "structures": found}
        (arguments.folder / f"{version}.json").write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
