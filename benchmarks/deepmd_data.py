"""Energies, forces and virials of distorted PbTiO3 from `perovskite`, as DeePMD-kit's npy files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.calculator_timing import lead_titanate
from jaxpto.calculator import JaxptoCalculator

FRAMES, ELEMENTS = 200, ("Pb", "Ti", "O")


def write_data(folder: Path) -> None:
    """Cells of 40 atoms, strained and displaced at random, for a DeepPot-SE that holds together in short runs."""
    generator = np.random.default_rng(0)
    calculator = JaxptoCalculator("perovskite", dtype="float64")
    start = lead_titanate((2, 2, 2))
    frames: dict[str, list[np.ndarray]] = {name: [] for name in ("coord", "box", "energy", "force", "virial")}
    for _ in range(FRAMES):
        atoms = start.copy()
        strain = 0.02 * generator.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        atoms.positions += generator.uniform(0.02, 0.2) * generator.normal(size=atoms.positions.shape)
        atoms.calc = calculator
        values = {
            "coord": atoms.positions,
            "box": atoms.cell.array,
            "energy": np.asarray(atoms.get_potential_energy()),
            "force": atoms.get_forces(),
            "virial": -atoms.get_volume() * atoms.get_stress(voigt=False),
        }
        for name, value in values.items():
            frames[name].append(np.asarray(value).ravel())
    (folder / "set.000").mkdir(parents=True, exist_ok=True)
    for name, rows in frames.items():
        stacked = np.stack(rows)
        np.save(folder / "set.000" / f"{name}.npy", stacked[:, 0] if name == "energy" else stacked)
    types = [ELEMENTS.index(symbol) for symbol in start.get_chemical_symbols()]
    (folder / "type.raw").write_text("\n".join(map(str, types)) + "\n")
    (folder / "type_map.raw").write_text("\n".join(ELEMENTS) + "\n")
