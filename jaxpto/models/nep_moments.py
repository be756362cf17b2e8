"""Moments of the neighbour density for NEP, and their derivative written as few wide kernels.

Arrays of edges are [n, m, s] or [n, k, s]: slots last, where the vector units want them, and every kernel gives all
rows of such an array at once. Rows of different formulas XLA would join element by element, without the vector units;
so radial functions and monomials are products of factors that have one formula.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto.models.perovskite_moments import (
    EXACT,
    blocks_of,
    chebyshev_factors,
    chebyshev_slopes,
    column,
    matmul,
    once,
)
from jaxpto.neighbors import Layout


@functools.cache
def monomials(highest: int) -> tuple[tuple[int, int, int], ...]:
    """Powers (a, b, c) of x^a y^b z^c up to a degree, c at most 1: on the unit sphere z^2 is 1 - x^2 - y^2."""
    powers = [(a, b, c) for c in (0, 1) for a in range(highest + 1) for b in range(highest + 1) if a + b + c <= highest]
    return tuple(sorted(powers, key=sum))


@functools.cache
def factors_of(highest: int) -> np.ndarray:
    """Coefficients [degree, 4, monomial] of the factors c_0 + c_1 x + c_2 y + c_3 z whose product is each monomial."""
    powers = monomials(highest)
    found = np.zeros((highest, 4, len(powers)))
    found[:, 0] = 1.0
    for m, power in enumerate(powers):
        axes = [axis for axis, times in enumerate(power) for _ in range(times)]
        for j, axis in enumerate(axes):
            found[j, :, m] = np.eye(4)[1 + axis]
    return found


@functools.cache
def derivatives_of(highest: int) -> np.ndarray:
    """Matrices [3, lower, monomial]: d(monomial) / d(axis) as a sum of monomials of lower degree."""
    powers, lower = monomials(highest), monomials(highest - 1)
    found = np.zeros((3, len(lower), len(powers)))
    for m, power in enumerate(powers):
        for axis, times in enumerate(power):
            if times:
                reduced = tuple(p - (a == axis) for a, p in enumerate(power))
                found[axis, lower.index(reduced), m] = times
    return found


def _angles(unit: Float[Array, "n 3 s"], highest: int) -> Float[Array, "n m s"]:
    """Monomials of unit vectors."""
    x, y, z = (unit[:, a][:, None, :] for a in range(3))
    found = jnp.ones_like(x)
    for one, by_x, by_y, by_z in factors_of(highest):
        factor = column(one, x) + column(by_x, x) * x + column(by_y, x) * y + column(by_z, x) * z
        found = found * factor
    return found


class _Radial(NamedTuple):
    """What radial functions T_k(t) f_c are made of, for each edge [n, s].

    Attributes:
        chebyshev: T_k(t) of t = 2 (r / cutoff - 1)^2 - 1, [n, k, s].
        fade: f_c = (1 + cos(pi r / cutoff)) / 2, zero from the cutoff on.
        fade_slope: df_c / dr.
        fade_dt: f_c dt / dr.
    """

    chebyshev: Array
    fade: Array
    fade_slope: Array
    fade_dt: Array


def _radial(r: Float[Array, "n s"], cutoff: float, number: int) -> _Radial:
    phase = (0.5 * jnp.pi / cutoff) * jnp.minimum(r, cutoff)
    cosine = jnp.where(r < cutoff, jnp.cos(phase), 0.0)
    fade = cosine * cosine  # without cancellation
    depth = jnp.minimum(r / cutoff - 1.0, 0.0)
    t = (2.0 * depth * depth - 1.0)[:, None, :]
    chebyshev = jnp.ones_like(t)
    for a, b in zip(*chebyshev_factors(number), strict=True):
        chebyshev = chebyshev * (column(a, t) * t + column(b, t))
    return _Radial(chebyshev, fade, (-jnp.pi / cutoff) * jnp.sin(phase) * cosine, (4.0 / cutoff) * depth * fade)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def radial_moments(distance: Float[Array, "n s"], cutoff: float, number: int, layout: Layout) -> Float[Array, "n t k"]:
    """sum_j T_k(t_ij) f_c(r_ij) over the neighbours of each species.

    Args:
        distance: lengths of the edges, Angstrom; slots sorted into blocks by species.
        cutoff: Angstrom.
        number: number of functions.
        layout: the layout of the neighbour list.
    """
    return _radial_forward(distance, cutoff, number, layout)[0]


def _radial_forward(distance, cutoff, number, layout):
    found, kept = [], []
    for block in blocks_of(layout.slots):
        edges = once(layout, functools.partial(_radial, cutoff=cutoff, number=number), distance[:, block])
        found.append(jnp.einsum("nks,ns->nk", edges.chebyshev, edges.fade, precision=EXACT))
        kept.append(edges)
    return jnp.stack(found, axis=1), kept


def _radial_backward(cutoff, number, layout, kept, cotangent):
    slopes = _by_slope(cotangent, number)
    found = []
    for t, edges in enumerate(kept):
        parts = (
            edges.chebyshev[:, k]
            * (cotangent[:, t, k, None] * edges.fade_slope + slopes[:, t, k, None] * edges.fade_dt)
            for k in range(number)
        )
        found.append(functools.reduce(operator.add, parts))
    return (jnp.concatenate(found, axis=1),)


radial_moments.defvjp(_radial_forward, _radial_backward)


def _by_slope(cotangent: Float[Array, "*a k"], number: int) -> Float[Array, "*a k"]:
    """sum_k c_k dT_k / dt as coefficients of T_k."""
    return matmul(cotangent, jnp.asarray(chebyshev_slopes(number), cotangent.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def angular_moments(
    unit: Float[Array, "n 3 s"], distance: Float[Array, "n s"], cutoff: float, number: int, highest: int, layout: Layout
) -> Float[Array, "n t m k"]:
    """sum_j x^a y^b z^c T_k(t_ij) f_c(r_ij) over the neighbours of each species, x, y, z those of unit vectors.

    Args:
        unit: unit vectors along the edges; slots sorted into blocks by species.
        distance: lengths of the edges, Angstrom.
        cutoff: Angstrom.
        number: number of radial functions.
        highest: highest degree of the monomials (see `monomials`).
        layout: the layout of the neighbour list.
    """
    return _angular_forward(unit, distance, cutoff, number, highest, layout)[0]


def _angular_forward(unit, distance, cutoff, number, highest, layout):
    found, kept = [], []
    for block in blocks_of(layout.slots):
        edges = once(layout, functools.partial(_radial, cutoff=cutoff, number=number), distance[:, block])
        angles = once(layout, functools.partial(_angles, highest=highest), unit[:, :, block])
        faded = edges.chebyshev * edges.fade[:, None, :]
        found.append(jnp.einsum("nms,nks->nmk", angles, faded, precision=EXACT))
        kept.append((edges, angles))
    return jnp.stack(found, axis=1), kept


def _angular_backward(cutoff, number, highest, layout, kept, cotangent):
    """With c = dE/dM: dE/dx = sum_mk c_mk d(monomial)/dx T_k f_c, dE/dr = sum_mk c_mk monomial d(T_k f_c)/dr."""
    lower = len(monomials(highest - 1))
    values = jnp.concatenate([cotangent, _by_slope(cotangent, number)], axis=3)
    along = jnp.asarray(derivatives_of(highest), cotangent.dtype)
    slopes = jnp.einsum("alm,ntmk->ntlak", along, cotangent, precision=EXACT)
    slopes = slopes.reshape(*slopes.shape[:3], -1)
    units, distances = [], []
    for t, (edges, angles) in enumerate(kept):
        value = jnp.einsum("nmk,nms->nks", values[:, t], angles, precision=EXACT)
        slope = jnp.einsum("nmk,nms->nks", slopes[:, t], angles[:, :lower], precision=EXACT)
        found = once(layout, functools.partial(_gradient, number), value, slope, edges)
        units.append(found[0])
        distances.append(found[1])
    return jnp.concatenate(units, axis=2), jnp.concatenate(distances, axis=1)


def _gradient(
    number: int, value: Float[Array, "n _ s"], slope: Float[Array, "n _ s"], edges: _Radial
) -> tuple[Float[Array, "n 3 s"], Float[Array, "n s"]]:
    """dE / d(unit vector) and dE / dr of each edge; whole rows at once, for speed."""
    chebyshev, add = edges.chebyshev, functools.partial(functools.reduce, operator.add)
    units = add(slope[:, k::number] * chebyshev[:, None, k] for k in range(number)) * edges.fade[:, None, :]
    first = add(value[:, k] * chebyshev[:, k] for k in range(number))
    second = add(value[:, number + k] * chebyshev[:, k] for k in range(number))
    return units, first * edges.fade_slope + second * edges.fade_dt


angular_moments.defvjp(_angular_forward, _angular_backward)
