"""How many wave vectors a sum over the reciprocal lattice needs, and when a cell has outgrown its capacity."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

_ROOM = 1.05  # on the lattice vectors, which may lengthen by this factor before the capacity is too small


def choose_waves(cells: np.ndarray, longest: float) -> tuple[int, int, int]:
    """Half-widths N of the box |n_k| <= N_k that holds all n with |2 pi n cell^-1| below a length, with some room.

    The component of a wave vector k along the lattice vector a is 2 pi n = k . a, so that |n| <= |k| |a| / 2 pi.

    Args:
        cells: [..., 3, 3] Angstrom.
        longest: length of the wave vectors, 1/Angstrom; 0 for no sum.
    """
    lengths = np.linalg.norm(np.asarray(cells, np.float64).reshape(-1, 3, 3), axis=-1).max(axis=0)
    a, b, c = (math.floor(_ROOM * longest * length / (2.0 * math.pi)) for length in lengths)
    return a, b, c


def outgrown(cell: Float[Array, "3 3"], longest: float, waves: tuple[int, int, int]) -> Bool[Array, ""]:
    """Whether a cell has wave vectors below a length outside of the box; see `choose_waves`.

    Args:
        cell: Angstrom.
        longest: length of the wave vectors, 1/Angstrom; 0 for no sum.
        waves: half-widths of the box.
    """
    reached = jnp.sqrt(jnp.sum(cell * cell, axis=1)) * (longest / (2.0 * math.pi))
    return jnp.any(reached >= jnp.asarray(waves, cell.dtype) + 1.0)
