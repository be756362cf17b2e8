"""Lattice parameters and strain of the unit cell in every frame, in the crystal's own axes."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

Cells = Float[np.ndarray, "frames 3 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class UnitCell:
    """The cell whose lattice parameters are reported, as fractions of the supercell (see `perovskite.unit_cell`).

    Attributes:
        fractions: [3, 3] rows a, b, c: a = sum_k fractions[0, k] h_k with the supercell vectors h_k, the same in every
            frame.
        perovskite: whether it is the 5-atom cell of a perovskite, with pseudo-cubic axes.
    """

    fractions: Float[np.ndarray, "3 3"]
    perovskite: bool

    @property
    def count(self) -> int:
        """Unit cells in the supercell."""
        return round(1.0 / abs(float(np.linalg.det(self.fractions))))


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Lattice parameters of the unit cell in every frame.

    Attributes:
        lengths: [frames, 3] a, b, c, Angstrom.
        angles: [frames, 3] alpha, beta, gamma, degrees.
        volume: [frames] volume of the unit cell, Angstrom^3.
        strain: [frames, 3, 3] symmetric, (G / V^(2/3) - 1) / 2 with the metric G_ij = a_i . a_j: the change of shape
            from a cube of the same volume, the same in any orientation.
        frame: [frames, 3, 3] orthonormal rows x, y, z nearest to a, b, c (Loewdin), by which a vector is turned into
            the crystal's axes.
    """

    lengths: Float[np.ndarray, "frames 3"]
    angles: Float[np.ndarray, "frames 3"]
    volume: Float[np.ndarray, " frames"]
    strain: Float[np.ndarray, "frames 3 3"]
    frame: Float[np.ndarray, "frames 3 3"]

    @property
    def c_over_a(self) -> Float[np.ndarray, " frames"]:
        """c / ((a + b) / 2) of every frame, c the third axis whatever the polar axis is (as in the paper)."""
        return self.lengths[:, 2] / (0.5 * (self.lengths[:, 0] + self.lengths[:, 1]))


def lattice_parameters(cells: Cells, unit: UnitCell) -> Lattice:
    """Lattice parameters of the unit cell from supercells.

    Args:
        cells: [frames, 3, 3] Angstrom, rows are the supercell vectors.
        unit: which part of the supercell the unit cell is.
    """
    axes = np.einsum("kl,flx->fkx", unit.fractions, np.asarray(cells, np.float64))
    lengths = np.linalg.norm(axes, axis=2)
    directions = axes / lengths[:, :, None]
    cosines = np.sum(directions[:, [1, 2, 0]] * directions[:, [2, 0, 1]], axis=2)
    volume = np.abs(np.linalg.det(axes))
    metric = np.einsum("fkx,flx->fkl", axes, axes) / np.cbrt(volume)[:, None, None] ** 2
    left, _, right = np.linalg.svd(directions)
    return Lattice(
        lengths=lengths,
        angles=np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))),
        volume=volume,
        strain=0.5 * (metric - np.eye(3)[None, :, :]),
        frame=left @ right,
    )


def tetragonality(lengths: Float[np.ndarray, 3]) -> float:
    """Longest over the mean of the two others, of the time-averaged a, b, c [3].

    It finds a polar axis along a, b or c, and is at least 1. Taken of time averages, because the longest of three
    fluctuating lengths exceeds the others in every frame even in a cubic crystal.
    """
    ordered = np.sort(lengths)
    return float(ordered[2] / (0.5 * (ordered[0] + ordered[1])))
