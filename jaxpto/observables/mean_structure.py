"""The time-averaged structure of a run and its space group, for crystals that are no perovskites."""

from __future__ import annotations

import dataclasses

import ase
import numpy as np
from jaxtyping import Float, Int

from jaxpto.structures.space_group import space_group

ERRORS = 6.0  # between two of many atoms that ought to be equivalent
LEAST_TOLERANCE = 0.02  # Angstrom
LARGEST_TOLERANCE = 0.4  # Angstrom; beyond that atoms count as equivalent that are not
SYSTEMS = (
    (2, "triclinic"), (15, "monoclinic"), (74, "orthorhombic"), (142, "tetragonal"), (167, "trigonal"),
    (194, "hexagonal"), (230, "cubic"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MeanStructure:
    """Average of unwrapped positions and cell.

    Attributes:
        numbers: [n] atomic numbers.
        fractions: [n, 3] mean fractional coordinates, drift removed.
        cell: [3, 3] mean cell, Angstrom.
        tolerance: Angstrom; `ERRORS` standard errors of the mean place of an atom.
    """

    numbers: Int[np.ndarray, " n"]
    fractions: Float[np.ndarray, "n 3"]
    cell: Float[np.ndarray, "3 3"]
    tolerance: float


def mean_structure(
    numbers: Int[np.ndarray, " n"], positions: Float[np.ndarray, "f n 3"], cells: Float[np.ndarray, "f 3 3"]
) -> MeanStructure:
    """Average the frames of a run in fractional coordinates.

    The error of an atom's mean place is half the rms distance between its places in the two halves of the run, or its
    thermal amplitude over the square root of the frames if that is larger.

    Args:
        numbers: [n] atomic numbers.
        positions: [f, n, 3] Angstrom, unwrapped.
        cells: [f, 3, 3] Angstrom.
    """
    fractions = np.asarray(positions, np.float64) @ np.linalg.inv(np.asarray(cells, np.float64))
    fractions = fractions - (fractions - fractions[:1]).mean(axis=1, keepdims=True)  # the crystal may drift
    mean, cell = fractions.mean(axis=0), np.asarray(cells, np.float64).mean(axis=0)
    half = len(fractions) // 2

    def rms(displacement: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.sum((displacement @ cell) ** 2, axis=-1))))

    amplitude = rms(fractions - mean[None]) / np.sqrt(len(fractions))
    between_halves = rms(fractions[:half].mean(axis=0) - fractions[half:].mean(axis=0)) if half else 0.0
    error = max(0.5 * between_halves, amplitude)
    return MeanStructure(numbers, mean, cell, float(np.clip(ERRORS * error, LEAST_TOLERANCE, LARGEST_TOLERANCE)))


def symmetry_label(structure: MeanStructure) -> str:
    """Crystal system and space group, as in "tetragonal P4_2/mnm"; "unknown symmetry" where spglib finds none."""
    atoms = ase.Atoms(structure.numbers, scaled_positions=structure.fractions, cell=structure.cell, pbc=True)
    found = space_group(atoms, structure.tolerance)
    if found.number == 0:
        return "unknown symmetry"
    system = next(name for last, name in SYSTEMS if found.number <= last)
    return f"{system} {found.symbol}"
