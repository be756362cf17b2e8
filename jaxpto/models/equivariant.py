"""What equivariant networks share: spherical harmonics, Wigner 3j tables, an activation and an envelope.

Conventions are those of e3nn, in which published weights are written: real harmonics, (x, y, z) for l = 1, with y the
polar axis.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SILU_NORM = 1.6791767923989418  # e3nn's normalize2mom(silu): 1 / sqrt(mean of silu(x)^2 for normal x), as sampled there


@functools.cache
def wigner_3j(l1: int, l2: int, l3: int) -> Float[np.ndarray, "a b c"]:
    """Real Wigner 3j symbols [2 l1 + 1, 2 l2 + 1, 2 l3 + 1], of Frobenius norm 1, in e3nn's basis and with its signs.

    e3nn-jax has them as well; importing it takes longer than a model needs to start.

    Raises:
        ValueError: l1, l2 and l3 break the triangle rule.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"no 3j symbols of l = {l1}, {l2}, {l3}: {l3} is not from {abs(l1 - l2)} to {l1 + l2}")
    table = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            table[l1 + m1, l2 + m2, l3 + m1 + m2] = _clebsch_gordan(l1, m1, l2, m2, l3)
    first, second, third = (_complex_from_real(order) for order in (l1, l2, l3))
    real = np.einsum("ia,jb,kc,ijk->abc", first, second, third.conj(), table).real
    return real / np.linalg.norm(real)


def _clebsch_gordan(j1: int, m1: int, j2: int, m2: int, j: int) -> float:
    """<j1 m1 j2 m2 | j m1 + m2> by the sum of G. Racah, Phys. Rev. 62, 438 (1942), in exact fractions."""
    m, f = m1 + m2, math.factorial
    square = Fraction((2 * j + 1) * f(j + j1 - j2) * f(j - j1 + j2) * f(j1 + j2 - j), f(j1 + j2 + j + 1))
    square *= f(j + m) * f(j - m) * f(j1 + m1) * f(j1 - m1) * f(j2 + m2) * f(j2 - m2)
    total = Fraction(0)
    for k in range(max(0, j2 - j - m1, j1 - j + m2), min(j1 + j2 - j, j1 - m1, j2 + m2) + 1):
        below = (k, j1 + j2 - j - k, j1 - m1 - k, j2 + m2 - k, j - j2 + m1 + k, j - j1 - m2 + k)
        total += Fraction((-1) ** k, math.prod(map(f, below)))
    return math.sqrt(square) * float(total)


def _complex_from_real(order: int) -> np.ndarray:
    """Matrix [m, real] of one l: the complex harmonics as combinations of e3nn's real ones.

    In order -l ... l the real ones are sines of |m| phi, the axial one and cosines, times (-i)^l.
    """
    matrix = np.zeros((2 * order + 1, 2 * order + 1), complex)
    matrix[order, order] = 1.0
    for m in range(1, order + 1):
        matrix[order - m, order + m], matrix[order - m, order - m] = 0.5**0.5, -1j * 0.5**0.5
        matrix[order + m, order + m], matrix[order + m, order - m] = (-1) ** m * 0.5**0.5, 1j * (-1) ** m * 0.5**0.5
    return (-1j) ** order * matrix


def spherical_harmonics(unit: Float[Array, "*batch 3"], highest: int) -> Float[Array, "*batch m"]:
    """Real harmonics of l = 0 ... highest (at most 3), of squared norm 2 l + 1 each, one after another.

    Args:
        unit: [..., 3] unit vectors.
        highest: largest l.

    Raises:
        ValueError: l > 3, which no published model here uses.
    """
    if not 0 <= highest <= 3:
        raise ValueError(f"spherical harmonics up to l = {highest} are not there; the highest is 3")
    x, y, z = unit[..., 0], unit[..., 1], unit[..., 2]
    blocks = [[jnp.ones_like(x)]]
    if highest > 0:
        blocks.append([3.0**0.5 * component for component in (x, y, z)])
    if highest > 1:
        xz, diagonal = 3.0**0.5 * x * z, 0.5 * 3.0**0.5 * (z**2 - x**2)
        second = [xz, 3.0**0.5 * x * y, y**2 - 0.5 * (x**2 + z**2), 3.0**0.5 * y * z, diagonal]
        blocks.append([5.0**0.5 * component for component in second])
    if highest > 2:
        axial = 4.0 * y**2 - x**2 - z**2
        third = [
            (5.0 / 6.0) ** 0.5 * (xz * z + diagonal * x),
            5.0**0.5 * xz * y,
            (3.0 / 8.0) ** 0.5 * axial * x,
            0.5 * y * (2.0 * y**2 - 3.0 * (x**2 + z**2)),
            (3.0 / 8.0) ** 0.5 * axial * z,
            5.0**0.5 * diagonal * y,
            (5.0 / 6.0) ** 0.5 * (diagonal * z - xz * x),
        ]
        blocks.append([7.0**0.5 * component for component in third])
    return jnp.stack([component for block in blocks for component in block], axis=-1)


def normalized_silu(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """silu(x) times the constant that gives it unit second moment for normal x."""
    return SILU_NORM * jax.nn.silu(x)


def polynomial_envelope(x: Float[Array, "*batch"], power: int) -> Float[Array, "*batch"]:
    """1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) for x < 1, else 0.

    As (1 - x)^3 sum_k (k+1)(k+2)/2 x^k, k < p, which does not cancel near 1.
    """
    x = jnp.minimum(x, 1.0)
    total = jnp.zeros_like(x)
    for k in reversed(range(power)):
        total = total * x + 0.5 * (k + 1) * (k + 2)
    return (1.0 - x) ** 3 * total
