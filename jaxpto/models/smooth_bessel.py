"""Radial functions that matgl's newer models share."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto.models.layers import product


def smooth_bessel(distance: Float[Array, " e"], cutoff: float, number: int) -> Float[Array, "e k"]:
    """Radial functions of Kocer, Mason & Erturk, AIP Adv. 10, 015021 (2020): orthogonal, and flat at the cutoff.

    g_n = sum_k c_nk sin(k pi r / c) / (k pi r / c); beyond the cutoff they mean nothing.

    Args:
        distance: Angstrom.
        cutoff: c, Angstrom.
        number: how many functions.
    """
    waves = np.arange(1, number + 2) / cutoff
    sines = jnp.sinc(distance[:, None] * jnp.asarray(waves, distance.dtype)[None, :])
    return product(sines, jnp.asarray(sine_coefficients(cutoff, number), distance.dtype))


@functools.cache
def sine_coefficients(cutoff: float, number: int) -> np.ndarray:
    """c_nk [n, k] of `smooth_bessel`, by the recursion of the cited paper."""
    found = np.zeros((number, number + 1))
    e = [n**2 * (n + 2) ** 2 / (4 * (n + 1) ** 4 + 1) for n in range(number)]
    d = [1.0]
    for n in range(number):
        norm = (-1) ** n * math.sqrt(2.0) * math.pi / cutoff**1.5
        found[n, n : n + 2] = norm * (n + 1) * (n + 2) / math.hypot(n + 1, n + 2)
        if n:
            d.append(1.0 - e[n] / d[-1])
            found[n] = (found[n] + math.sqrt(e[n] / d[n - 1]) * found[n - 1]) / math.sqrt(d[n])
    return found
