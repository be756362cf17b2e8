"""Ewald's sum for point charges in a periodic cell: the part in real space, screened, and that over wave vectors.

P. P. Ewald, Ann. Phys. 369, 253 (1921), with tin-foil boundaries: for charges q_i that sum to zero,

    E = K [ 1/2 sum_i q_i sum_{j, r_ij < r_c} q_j erfc(a r_ij) / r_ij  -  a / sqrt(pi) sum_i q_i^2
            + 2 pi / V sum_{0 < |k| < k_c} exp(-k^2 / 4 a^2) / k^2  |sum_i q_i exp(i k . x_i)|^2 ]

with K = e^2 / 4 pi epsilon_0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto.models.nuclear_repulsion import COULOMB
from jaxpto.models.perovskite_moments import matmul
from jaxpto.neighbors import Layout, outgrown
from jaxpto.neighbors.search import inverse
from jaxpto.system import System, volume


def screened_potentials(
    distance: Float[Array, "n s"], charges: Float[Array, "n s"], cutoff: float, screening: float
) -> Float[Array, " n"]:
    """Potential of its neighbours' screened charges at each atom, sum_j q_j phi(r_ij), e/Angstrom.

    phi(r) = erfc(a r) / r up to the cutoff r_c.

    Args:
        distance: lengths of the edges, Angstrom; those beyond the cutoff count for nothing.
        charges: what the senders carry, e.
        cutoff: r_c, Angstrom.
        screening: a, 1/Angstrom.
    """
    near = distance < cutoff
    r = jnp.where(near, distance, cutoff)
    phi = jax.scipy.special.erfc(screening * r) / r
    return jnp.where(near, charges * phi, 0.0).sum(axis=1)


def reciprocal_energy(
    charges: Float[Array, " n"], system: System, layout: Layout, screening: float
) -> Float[Array, ""]:
    """The sum over wave vectors, eV; NaN in a cell that has outgrown the box of the layout.

    Which wave vectors count follows the cell, |k| < k_c = `layout.wave_cutoff`, so that a supercell has those of its
    cells. The phases of a box of whole numbers n are products of those along the three lattice vectors,
    exp(i k . x) = prod_d exp(2 pi i n_d s_d) with fractional coordinates s; k and -k give the same, so that n_1 >= 0.

    Args:
        charges: e, zero in sum.
        system: positions and cell, in a precision of their own.
        layout: longest wave vector and half-widths of the box.
        screening: a, 1/Angstrom.
    """
    reciprocal = inverse(system.cell)
    fractions = matmul(system.positions, reciprocal)
    numbers = [np.arange(0 if d == 0 else -width, width + 1) for d, width in enumerate(layout.waves)]
    (c1, s1), (c2, s2), (c3, s3) = (_phases(fractions[:, d], numbers[d], charges.dtype) for d in range(3))
    count, n = len(numbers[1]), charges.shape[0]
    c12 = (c1[:, :, None] * c2[:, None, :] - s1[:, :, None] * s2[:, None, :]).reshape(n, -1)
    s12 = (s1[:, :, None] * c2[:, None, :] + c1[:, :, None] * s2[:, None, :]).reshape(n, -1)
    c3, s3 = c3 * charges[:, None], s3 * charges[:, None]
    real = matmul(c12.T, c3) - matmul(s12.T, s3)
    imaginary = matmul(s12.T, c3) + matmul(c12.T, s3)
    squares = (real * real + imaginary * imaginary).reshape(-1, count, len(numbers[2]))

    box = np.stack(np.meshgrid(*numbers, indexing="ij"), axis=-1).reshape(-1, 3)
    k = 2.0 * jnp.pi * matmul(jnp.asarray(box, system.cell.dtype), reciprocal.T)
    k2 = jnp.sum(k * k, axis=1)
    counts = (k2 < layout.wave_cutoff**2) & jnp.asarray(box.any(axis=1))
    k2 = jnp.where(counts, k2, layout.wave_cutoff**2)
    times = np.where(box[:, 0] == 0, 1.0, 2.0)  # -k as well
    weights = jnp.where(counts, jnp.exp(k2 * (-0.25 / screening**2)) / k2, 0.0) * jnp.asarray(times, k2.dtype)
    total = (weights.astype(charges.dtype).reshape(squares.shape) * squares).sum()
    lost = outgrown(system.cell, layout.wave_cutoff, layout.waves)
    factor = (2.0 * jnp.pi * COULOMB) / volume(system.cell) * jnp.where(lost, jnp.nan, 1.0)
    return factor.astype(charges.dtype) * total


def _phases(
    fractions: Float[Array, " n"], numbers: np.ndarray, dtype: jnp.dtype
) -> tuple[Float[Array, "n w"], Float[Array, "n w"]]:
    """cos and sin of 2 pi n s; whole turns are taken off before anything is rounded."""
    turns = fractions[:, None] * jnp.asarray(numbers, fractions.dtype)[None, :]
    turns = (turns - jax.lax.stop_gradient(jnp.round(turns))).astype(dtype)
    angles = 2.0 * jnp.pi * turns
    return jnp.cos(angles), jnp.sin(angles)
