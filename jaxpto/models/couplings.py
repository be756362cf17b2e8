"""Couplings of features and harmonics of edges to messages: which there are, and their Clebsch-Gordan coefficients."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxpto.models.equivariant import wigner_3j


class CouplingPath(NamedTuple):
    """The angular momenta l of features and harmonics, and of the result that they are coupled to."""

    features: int
    harmonics: int
    result: int


def coupling_paths(
    highest_features: int, highest_harmonics: int, highest_result: int, *, parity: bool
) -> tuple[CouplingPath, ...]:
    """All paths up to the given l, ordered by result, features and harmonics.

    Args:
        highest_features: largest l of the features.
        highest_harmonics: largest l of the harmonics.
        highest_result: largest l of the results.
        parity: whether all three have the parity (-1)^l, so that the sum of the three l must be even.
    """
    return tuple(
        CouplingPath(first, second, result)
        for result in range(highest_result + 1)
        for first in range(highest_features + 1)
        for second in range(highest_harmonics + 1)
        if abs(first - second) <= result <= first + second and not (parity and (first + second + result) % 2)
    )


def path_name(path: CouplingPath) -> str:
    """Name of a path in parameters and sums."""
    return "-".join(map(str, path))


def path_coefficients(path: CouplingPath) -> Float[np.ndarray, "a b c"]:
    """sqrt(2 l3 + 1) times the 3j symbols [2 l1 + 1, 2 l2 + 1, 2 l3 + 1]: the identity for l2 = 0."""
    return math.sqrt(2 * path.result + 1) * wigner_3j(*path)


@functools.cache
def coupling_table(paths: tuple[CouplingPath, ...], highest_harmonics: int) -> Float[np.ndarray, "t m"]:
    """Map of harmonics to coefficients . harmonics, each path's [2 l1 + 1, 2 l3 + 1] after the other."""
    blocks = []
    for path in paths:
        coefficients = path_coefficients(path)
        block = np.zeros((coefficients.shape[0], coefficients.shape[2], (highest_harmonics + 1) ** 2))
        block[:, :, path.harmonics**2 : (path.harmonics + 1) ** 2] = coefficients.transpose(0, 2, 1)
        blocks.append(block.reshape(-1, block.shape[2]))
    return np.concatenate(blocks)


@jax.custom_vjp
def sum_products(first: Float[Array, "b p k"], second: Float[Array, "b p c"]) -> Float[Array, "b k c"]:
    """Sum over p of the products; its derivatives keep the channels c contiguous, which those of `einsum` do not.

    They are sums over c and over k; with this one, the derivatives of each are the other two.
    """
    return _matrix_product(first, second, 1, 1)


@jax.custom_vjp
def _sum_over_channels(second: Float[Array, "b p c"], result: Float[Array, "b k c"]) -> Float[Array, "b p k"]:
    return _matrix_product(second, result, 2, 2)


@jax.custom_vjp
def _sum_over_components(first: Float[Array, "b p k"], result: Float[Array, "b k c"]) -> Float[Array, "b p c"]:
    return _matrix_product(first, result, 2, 1)


def _matrix_product(first: Array, second: Array, first_axis: int, second_axis: int) -> Array:
    dimensions = (((first_axis,), (second_axis,)), ((0,), (0,)))
    return jax.lax.dot_general(first, second, dimensions, precision=jax.lax.Precision.HIGHEST)


sum_products.defvjp(
    lambda first, second: (sum_products(first, second), (first, second)),
    lambda saved, d: (_sum_over_channels(saved[1], d), _sum_over_components(saved[0], d)),
)
_sum_over_channels.defvjp(
    lambda second, result: (_sum_over_channels(second, result), (second, result)),
    lambda saved, d: (_sum_over_components(d, saved[1]), sum_products(d, saved[0])),
)
_sum_over_components.defvjp(
    lambda first, result: (_sum_over_components(first, result), (first, result)),
    lambda saved, d: (_sum_over_channels(d, saved[1]), sum_products(saved[0], d)),
)
