"""Energies, forces, stress, charges and Born effective charges of a charged NEP by NEP_CPU through calorine.

Runs in the environment of `benchmarks.environments` that has calorine:

    python benchmarks/qnep_reference.py NEP.txt STRUCTURES.extxyz OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ase.io
import calorine
from ase.stress import voigt_6_to_full_3x3_stress
from calorine.calculators import CPUNEP


def main() -> None:
    file, source, out = sys.argv[1:]
    found = []
    for number, atoms in enumerate(ase.io.read(source, ":")):
        structure = {
            "name": atoms.info.get("name", str(number)),
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
        }
        atoms.calc = CPUNEP(file)
        atoms.get_potential_energy()
        results = atoms.calc.results
        values = {
            "energy": float(results["energy"]),
            "forces": results["forces"].tolist(),
            "stress": voigt_6_to_full_3x3_stress(results["stress"]).tolist(),
            "charges": results["charges"].tolist(),
            "born_effective_charges": results["born_effective_charges"].tolist(),  # [n, 9], rows of the tensors
        }
        print(f"{structure['name']:32s} {values['energy']:14.6f} eV")
        found.append(structure | {"float64": values})
    package = f"calorine {calorine.__version__} (NEP_CPU), float64"
    Path(out).write_text(json.dumps({"model": Path(file).name, "package": package, "structures": found}) + "\n")


if __name__ == "__main__":
    main()
