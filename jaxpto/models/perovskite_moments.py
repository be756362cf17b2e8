"""Moments of the neighbour density for the perovskite model, and their derivative written as few wide kernels.

Arrays of edges are [n, 3, s] or [n, k, s]: slots last, where the vector units want them, and every kernel gives all
rows of such an array at once. Rows of different formulas XLA joins element by element, without the vector units.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jaxpto.neighbors import Layout

WARP = 0.2  # of q = 1 / (u + WARP): makes w = (1 + WARP) u q fine where bonds are, and |r| q / cutoff close to one
FADE = 0.1  # of u, relative to the trusted distance: within it (5 % of the distance) u becomes constant
# eV; soft, so that a time step of 2 fs resolves a collision: at 95 % of the distance 0.5 eV, at 80 % 23 eV
WALL_HEIGHT = 500.0
EXACT = jax.lax.Precision.HIGHEST  # accelerators would otherwise round factors to 10 bits

matmul = functools.partial(jnp.matmul, precision=EXACT)


@functools.cache
def chebyshev_factors(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and offsets [count - 1, count] of the factors in T_k(t) = prod_j (slope[j, k] t + offset[j, k]).

    The product over the roots takes the same operations for every k, so that all of them are one elementwise kernel;
    a row for each k would be joined element by element.
    """
    slopes, offsets = np.zeros((count - 1, count)), np.ones((count - 1, count))
    for k in range(1, count):
        roots = np.cos(np.pi * (np.arange(k) + 0.5) / k)
        slopes[:k, k] = [1.0] + [2.0] * (k - 1)
        offsets[:k, k] = -slopes[:k, k] * roots
    return slopes, offsets


def chebyshev_slopes(count: int) -> np.ndarray:
    """Matrix D [count, count] with dT_k / dt = sum_j D[k, j] T_j."""
    d = np.zeros((count, count))
    for k in range(1, count):
        d[k, np.arange(k - 1, -1, -2)] = 2.0 * k
    d[:, 0] *= 0.5
    return d


def _quadratic_forms() -> np.ndarray:
    """Symmetric matrices S [9, 4, 4] with Y_lm = sum_ab S[lm, a, b] w_a w_b of w = (1, x, y, z).

    Real solid harmonics up to l = 2 in Racah normalization: 1, x, y, z, then sqrt(3) xy, sqrt(3) yz,
    z^2 - (x^2 + y^2) / 2, sqrt(3) xz, sqrt(3) (x^2 - y^2) / 2.
    """
    half = np.sqrt(3.0) / 2.0
    forms = np.zeros((9, 4, 4))
    forms[0, 0, 0] = 1.0
    for a in (1, 2, 3):
        forms[a, 0, a] = forms[a, a, 0] = 0.5
    for row, (a, b) in ((4, (1, 2)), (5, (2, 3)), (7, (1, 3))):
        forms[row, a, b] = forms[row, b, a] = half
    forms[6] = np.diag([0.0, -0.5, -0.5, 1.0])
    forms[8] = np.diag([0.0, half, -half, 0.0])
    return forms


HARMONICS = _quadratic_forms()


def harmonics(w: Float[Array, "n 3 s"]) -> Float[Array, "n 9 s"]:
    """Y_lm of scaled edge vectors; each product of two components is given to all lm at once."""
    columns = [jnp.ones_like(w[:, 0]), *(w[:, a] for a in range(3))]
    total = jnp.zeros((w.shape[0], 9, w.shape[2]), w.dtype)
    for a in range(4):
        for b in range(a, 4):
            coefficients = HARMONICS[:, a, b] * (1.0 if a == b else 2.0)
            if coefficients.any():
                total = total + column(coefficients, w) * (columns[a] * columns[b])[:, None, :]
    return total


def column(numbers: np.ndarray, like: Array) -> Array:
    """Numbers along the middle axis of [n, *, s]."""
    return jnp.asarray(numbers, like.dtype)[None, :, None]


def once(layout: Layout, function: Callable[..., Any], *rows: Any) -> Any:
    """A function of rows of atoms whose results a CPU writes down.

    XLA would otherwise fuse it into all that uses its results, and compute it again for each of their rows.
    """
    results = function(*rows)
    return jax.lax.optimization_barrier(results) if layout.platform == "cpu" else results


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def moments(
    vectors: Float[Array, "n 3 s"],
    trusted: Float[Array, "n t"],
    wall: Float[Array, "n t"],
    cutoff: float,
    radial: int,
    envelope: int,
    layout: Layout,
) -> tuple[Float[Array, "n t 9 k"], Float[Array, "n"]]:
    """Moments M[i, t, lm, k] and wall energy (eV) of each atom; the derivative is written out below for speed.

    Args:
        vectors: edge vectors, Angstrom, slots sorted into blocks, empty ones beyond the cutoff.
        trusted: shortest distance to neighbours of each block that the radial functions follow, Angstrom.
        wall: distance below which the atom repels neighbours of each block, Angstrom.
        cutoff: Angstrom.
        radial: number of radial functions.
        envelope: power p of the envelope (1 - u)^p, at least 2.
        layout: the layout of the neighbour list.
    """
    return _moments_forward(vectors, trusted, wall, cutoff, radial, envelope, layout)[0]


def blocks_of(slots: tuple[int, ...]) -> list[slice]:
    """Where the slots of each species lie."""
    ends = np.cumsum(slots).tolist()
    return [slice(end - size, end) for end, size in zip(ends, slots, strict=True)]


def _radial_variables(
    v: Float[Array, "n 3 s"], trusted: Float[Array, " n"], wall: Float[Array, " n"]
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """u and q of each edge, w = q v, du / d|v|^2, d(wall energy) / d|v|^2, and the wall energy of each atom."""
    x, y, z = (v[:, a] for a in range(3))
    square = x * x + y * y + z * z
    square = jnp.where(square > 1.0, jnp.ones_like(square), square)  # all radial functions and slopes vanish there
    start = wall[:, None] ** 2
    depth = jnp.where(square < start, start - square, jnp.zeros_like(square)) / start
    # twice differentiable at both ends: du changes from 1 to 0 as 1 - 3 fade^2 + 2 fade^3
    least = trusted[:, None] ** 2
    fade = jnp.clip((least - square) / (FADE * least), 0.0, 1.0)
    u = jnp.maximum(square, least) - (FADE * least) * (fade - fade**3 + 0.5 * fade**4)
    q = 1.0 / (u + WARP)
    slope = 1.0 - fade * fade * (3.0 - 2.0 * fade)
    # each pair counts twice, once from either side
    dwall = (-1.5 * WALL_HEIGHT) * depth * depth / start
    return u, q, v * q[:, None, :], slope, dwall, (0.5 * WALL_HEIGHT) * (depth * depth * depth).sum(axis=1)


def _moments_forward(vectors, trusted, wall, cutoff, radial, envelope, layout):
    """M = sum_j h_k (gap Y_lm), h_k = T_k gap^(p - 1), gap = 1 - u: the derivative needs no other radial function."""
    kept, moment, energies = [], [], []
    scaled = vectors * (1.0 / cutoff)
    for t, block in enumerate(blocks_of(layout.slots)):
        v = scaled[:, :, block]
        u, q, w, slope, dwall, energy = once(
            layout, _radial_variables, v, trusted[:, t] * (1.0 / cutoff), wall[:, t] * (1.0 / cutoff)
        )
        gap = 1.0 - u
        t_of_u = ((2.0 * (1.0 + WARP)) * u * q - 1.0)[:, None, :]
        h = (gap ** (envelope - 1))[:, None, :]
        for a, b in zip(*chebyshev_factors(radial), strict=True):
            h = h * (column(a, v) * t_of_u + column(b, v))
        moment.append(jnp.einsum("nms,nks->nmk", harmonics(w) * gap[:, None, :], h, precision=EXACT))
        energies.append(energy)
        kept.append((v, u, q, w, slope, dwall, h))
    return (jnp.stack(moment, axis=1), sum(energies)), kept


def _second_order(c: Float[Array, "n _ s"], w: Float[Array, "n 3 s"]) -> Float[Array, "n s"]:
    """sum_{l = 2} c_lm Y_lm."""
    total = jnp.zeros_like(w[:, 0])
    for m in range(4, 9):
        form = sum(
            (2.0 - (a == b)) * HARMONICS[m, a, b].item() * w[:, a - 1] * w[:, b - 1]
            for a in (1, 2, 3)
            for b in range(a, 4)
            if HARMONICS[m, a, b]
        )
        total = total + c[:, m] * form
    return total


def _gradient(
    envelope: int,
    c: Float[Array, "n 18 s"],
    v: Float[Array, "n 3 s"],
    u: Float[Array, "n s"],
    q: Float[Array, "n s"],
    w: Float[Array, "n 3 s"],
    slope: Float[Array, "n s"],
    dwall: Float[Array, "n s"],
    denergy: Float[Array, " n"],
) -> Float[Array, "n 3 s"]:
    """dE / dv of each edge: the chain rule through w = q v, and 2 dE / d|v|^2 at fixed w / q = v along v."""
    gap = 1.0 - u
    # sum_lm c Y_lm by l, from the symmetric matrix of the l = 2 part
    first = sum(c[:, a] * w[:, a - 1] for a in (1, 2, 3))
    second = _second_order(c, w)
    value = c[:, 0] + first + second
    dvalue = c[:, 9] + sum(c[:, 9 + a] * w[:, a - 1] for a in (1, 2, 3)) + _second_order(c[:, 9:], w)
    dt = (2.0 * (1.0 + WARP) * WARP) * q * q
    du = dvalue * gap * dt - float(envelope) * value  # of f = T gap^p = h gap
    along = 2.0 * ((du - q * gap * (first + 2.0 * second)) * slope + dwall * denergy[:, None])
    along = jax.lax.optimization_barrier(along)
    dw = c[:, 1:4]
    for m in range(4, 9):
        for b in (1, 2, 3):
            if (factors := 2.0 * HARMONICS[m, 1:, b]).any():
                dw = dw + column(factors, v) * (c[:, m] * w[:, b - 1])[:, None, :]
    return dw * (q * gap)[:, None, :] + along[:, None, :] * v


def _moments_save(vectors, trusted, wall, cutoff, radial, envelope, layout):
    values = vectors.value, trusted.value, wall.value
    results, kept = _moments_forward(*values, cutoff, radial, envelope, layout)
    # a residual can only hold arrays; whether the distances are differentiated is told by its structure
    return results, (kept, {"values": values} if trusted.perturbed or wall.perturbed else {})


def _moments_backward(cutoff, radial, envelope, layout, saved, cotangents):
    """With c = dE/dM: dE/du = sum_mk c_mk Y_m df_k/du and dE/dY_m = sum_k c_mk f_k, then the chain rule to x, y, z.

    The derivatives in both distances, which no force needs, are JAX's.
    """
    kept, given = saved
    dmoment, denergy = (jnp.zeros(d.shape, d.dtype) if isinstance(d, SymbolicZero) else d for d in cotangents)
    ddistances = (None, None)
    if given:
        vectors, *distances = given["values"]
        forward = lambda *distances: _moments_forward(vectors, *distances, cutoff, radial, envelope, layout)[0]  # noqa: E731
        ddistances = jax.vjp(forward, *distances)[1]((dmoment, denergy))
    slopes = jnp.asarray(chebyshev_slopes(radial), dmoment.dtype)
    dslope = matmul(dmoment.reshape(-1, radial), slopes).reshape(dmoment.shape)
    both = jnp.concatenate([dmoment, dslope], axis=2)
    gradients = []
    for t, (v, u, q, w, slope, dwall, h) in enumerate(kept):
        c = jnp.einsum("nmk,nks->nms", both[:, t], h, precision=EXACT)
        # written down before blocks are joined: together that goes element by element
        gradients.append(once(layout, functools.partial(_gradient, envelope), c, v, u, q, w, slope, dwall, denergy))
    return jnp.concatenate(gradients, axis=2) * (1.0 / cutoff), *ddistances


moments.defvjp(_moments_save, _moments_backward, symbolic_zeros=True)
