"""How far the vectors of a cell are from the Cartesian axes, which the strain mask diag refers to."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

UPRIGHT = 0.01
"""Degrees within which a vector lies along an axis: the rounding of files with four digits."""


def degrees_off_axes(cell: Float[np.ndarray, "3 3"]) -> float:
    """Largest angle between a lattice vector and the x, y or z axis nearest to it, degrees.

    It is 0 where the vectors are along x, y and z in any order and direction.

    Args:
        cell: [3, 3] Angstrom, rows are the lattice vectors.
    """
    along = np.abs(cell).max(axis=1)
    across = np.sqrt(np.maximum(np.square(cell).sum(axis=1) - along**2, 0.0))
    return float(np.degrees(np.arctan2(across, along)).max())


def held_shear(cell: Float[np.ndarray, "3 3"]) -> str:
    """A line on the shear that the mask diag holds fixed in a tilted cell, or "" for an upright one.

    Args:
        cell: [3, 3] Angstrom, rows are the lattice vectors.
    """
    degrees = degrees_off_axes(cell)
    if degrees <= UPRIGHT:
        return ""
    return f"the cell's vectors are up to {degrees:.3g} degrees off x, y and z, so that diag holds a shear of the cell"
