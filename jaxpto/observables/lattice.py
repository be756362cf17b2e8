"""Lattice parameters of the 5-atom (pseudo-cubic) cell from the supercell of every frame."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

Cells = Float[np.ndarray, "frames 3 3"]


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Lattice parameters of the unit cell in every frame.

    Attributes:
        lengths: [frames, 3] a, b, c along the three supercell vectors (x, y, z for an upright cell), Angstrom.
        angles: [frames, 3] alpha, beta, gamma, degrees.
        volume: [frames] of the unit cell, Angstrom^3.
    """

    lengths: Float[np.ndarray, "frames 3"]
    angles: Float[np.ndarray, "frames 3"]
    volume: Float[np.ndarray, " frames"]

    @property
    def c_over_a(self) -> Float[np.ndarray, " frames"]:
        """c / ((a + b) / 2) of every frame, c along the third vector whatever the polar axis is (as in the paper)."""
        return self.lengths[:, 2] / (0.5 * (self.lengths[:, 0] + self.lengths[:, 1]))


def lattice_parameters(cells: Cells, repeats: tuple[int, int, int]) -> Lattice:
    """Lattice parameters of the unit cell from supercells.

    Args:
        cells: [frames, 3, 3] Angstrom, rows are the supercell vectors.
        repeats: unit cells along each supercell vector.
    """
    cells = np.asarray(cells, np.float64)
    norms = np.linalg.norm(cells, axis=2)
    directions = cells / norms[:, :, None]
    cosines = np.sum(directions[:, [1, 2, 0]] * directions[:, [2, 0, 1]], axis=2)
    return Lattice(
        lengths=norms / np.array(repeats, np.float64)[None, :],
        angles=np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))),
        volume=np.abs(np.linalg.det(cells)) / float(np.prod(repeats)),
    )


def tetragonality(lengths: Float[np.ndarray, 3]) -> float:
    """Longest over the mean of the two others, of the time-averaged a, b, c [3].

    It finds a polar axis along x, y or z, and is at least 1. Taken of time averages, because the longest of three
    fluctuating lengths exceeds the others in every frame even in a cubic crystal.
    """
    ordered = np.sort(lengths)
    return float(ordered[2] / (0.5 * (ordered[0] + ordered[1])))
