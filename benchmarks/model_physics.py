"""0 K physics of PbTiO3 with a model: relaxed cells, energy of the cubic phase, phonons at commensurate wave vectors.

    python -m benchmarks.model_physics --model perovskite [--out FILE.json]

Double precision. Phonons: finite displacements of 0.01 A in the 2x2x2 supercell, without the non-analytical term.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import ase
import numpy as np
import phonopy
import tyro
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from phonopy.structure.atoms import PhonopyAtoms

from jaxpto.calculator import JaxptoCalculator

# (symbol, place in units of the cubic cell); the tetragonal phase moves Ti and O along c
CUBIC = {
    "Pb": (0.0, 0.0, 0.0),
    "Ti": (0.5, 0.5, 0.5),
    "O1": (0.5, 0.5, 0.0),
    "O2": (0.5, 0.0, 0.5),
    "O3": (0.0, 0.5, 0.5),
}
POLAR = {"Pb": 0.0, "Ti": 0.04, "O1": 0.11, "O2": 0.12, "O3": 0.12}


@dataclasses.dataclass(frozen=True)
class Config:
    """0 K physics of PbTiO3.

    Attributes:
        model: model name or folder.
        out: JSON file to write, if any.
    """

    model: str = "perovskite"
    out: Path | None = None


def pbtio3(a: float, c: float, *, polar: bool) -> ase.Atoms:
    """Five-atom cell of PbTiO3, Angstrom."""
    places = np.array(list(CUBIC.values()))
    if polar:
        places[:, 2] += list(POLAR.values())
    return ase.Atoms([name[:2].rstrip("123") for name in CUBIC], scaled_positions=places, cell=[a, a, c], pbc=True)


def relax(atoms: ase.Atoms, calculator: JaxptoCalculator) -> ase.Atoms:
    """Relax cell and positions to forces below 1e-4 eV / Angstrom; the symmetry of the start stays."""
    atoms.calc = calculator
    optimizer = BFGS(FrechetCellFilter(atoms), logfile=None)  # ty: ignore[invalid-argument-type], a filter is what ASE wants
    optimizer.run(fmax=1e-4, steps=300)
    return atoms


def lowest_phonons(atoms: ase.Atoms, calculator: JaxptoCalculator) -> dict[str, list[float]]:
    """Frequencies in THz (negative: imaginary), ascending, at the wave vectors commensurate with 2x2x2."""
    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(), cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions()
    )
    phonon = phonopy.Phonopy(cell, np.diag([2, 2, 2]), primitive_matrix=np.eye(3), log_level=0)
    phonon.generate_displacements(distance=0.01)
    forces = []
    for supercell in phonon.supercells_with_displacements or ():
        image = ase.Atoms(
            supercell.symbols,
            scaled_positions=supercell.scaled_positions,
            cell=supercell.cell,
            pbc=True,
            calculator=calculator,
        )
        forces.append(image.get_forces())
    phonon.forces = forces
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    points = list(itertools.product((0.0, 0.5), repeat=3))
    phonon.run_qpoints(points)
    found = phonon.qpoints.frequencies
    return {"{:g} {:g} {:g}".format(*q): np.round(f, 3).tolist() for q, f in zip(points, found, strict=True)}


def run(config: Config) -> dict[str, Any]:
    """Compute the table."""
    calculator = JaxptoCalculator(config.model, dtype="float64")
    tetragonal = relax(pbtio3(3.88, 4.18, polar=True), calculator)
    cubic = relax(pbtio3(3.93, 3.93, polar=False), calculator)
    a, b, c = tetragonal.cell.lengths()
    phonons = {
        "tetragonal": lowest_phonons(tetragonal, calculator),
        "cubic": lowest_phonons(cubic, calculator),
    }
    result = {
        "tetragonal": {"a": a, "b": b, "c": c, "c_over_a": c / a, "angles": tetragonal.cell.angles().tolist()},
        "cubic": {"a": cubic.cell.lengths().tolist()},
        "cubic_minus_tetragonal_meV": 1e3 * (cubic.get_potential_energy() - tetragonal.get_potential_energy()),
        "residual_force": float(np.abs(tetragonal.get_forces()).max()),
        "phonons_THz": phonons,
    }
    print(json.dumps({k: v for k, v in result.items() if "phonons" not in k}, indent=2))
    for phase, table in phonons.items():
        print(f"{phase}: lowest and highest frequency (THz) at each wave vector")
        for q, frequencies in table.items():
            print(f"  {q:12s} {frequencies[0]:8.3f} {frequencies[3]:8.3f} ... {frequencies[-1]:8.3f}")
    if config.out:
        config.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    run(tyro.cli(Config))
