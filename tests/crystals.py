"""Small crystals without symmetry, for the laws of models."""

from __future__ import annotations

import ase


def distorted(formula: str, edges: tuple[float, float, float]) -> ase.Atoms:
    """A triclinic, rattled cell of a perovskite, smaller than the cutoff; the formula gives the order of its sites."""
    places = [[0, 0, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0.05], [0, 0.5, 0.5], [0.5, 0.5, 0.55]]
    a, b, c = edges
    cell = [[a, 0.1, 0.0], [0.2, b, -0.1], [-0.1, 0.15, c]]
    atoms = ase.Atoms(formula, scaled_positions=places, cell=cell, pbc=True)
    atoms.rattle(0.08, seed=5)
    return atoms


def four_species() -> ase.Atoms:
    """Four elements, their atoms interleaved."""
    return distorted("PbOOSrTi", (3.9, 3.85, 4.2))


def titanate() -> ase.Atoms:
    """PbTiO3, its atoms interleaved."""
    return distorted("PbOOTiO", (4.1, 4.05, 4.4))


def noble_gases() -> ase.Atoms:
    """Argon and krypton."""
    return distorted("ArKrArArKr", (5.6, 5.5, 5.9))
