"""Building blocks that the published graph networks share: linear maps, normalization, activations, sums over edges.

A map of concatenated features is the sum of maps of the parts, W [a; b] = W_a a + W_b b. Features of atoms are
therefore mapped before they are gathered to edges, those of bonds before they are gathered to angles: far fewer
products, and no array of concatenated features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Linear = dict[str, Array]  # weight [out, in] as PyTorch stores it, and where there is one bias [out]


def species_of(elements: Sequence[int], numbers: Int[Array, " n"]) -> Int[Array, " n"]:
    """Index in `elements` of each atomic number [n]; all must be there."""
    table = np.zeros(max(elements) + 1, np.int32)
    table[list(elements)] = np.arange(len(elements))
    return jnp.asarray(table)[numbers]


def linear(layer: Linear, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
    """W x + b."""
    y = product(x, layer["weight"])
    return y + row(layer["bias"], y) if "bias" in layer else y


def linear_term(layer: Linear, x: Float[Array, "*batch in"], part: int) -> Float[Array, "*batch out"]:
    """The term of x in W [x0; x1; ...] + b, where x is the part of that number and all parts are as wide as x.

    The bias belongs to part 0; so the terms of all parts add up to the whole.
    """
    width = x.shape[-1]
    if layer["weight"].shape[1] % width:
        raise ValueError(f"parts of width {width} in a layer of width {layer['weight'].shape[1]}")
    y = product(x, layer["weight"][:, part * width : (part + 1) * width])
    return y + row(layer["bias"], y) if part == 0 and "bias" in layer else y


def layer_norm(layer: Linear, x: Float[Array, "*batch d"], epsilon: float = 1e-5) -> Float[Array, "*batch d"]:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis, with the biased variance."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * row(layer["weight"], x) + row(layer["bias"], x)


def add_up(energies: Float[Array, " n"]) -> Float[Array, ""]:
    """Sum of energies, rounded once: parts on a grid, whose sum is exact (up to 256 eV each), and the small rest.

    In float32 a running sum would lose 1e-6 eV for every atom.

    Args:
        energies: [n] eV.
    """
    grid = 2.0 ** (math.ceil(math.log2(energies.shape[0])) + 8 - 23)
    coarse = jax.lax.stop_gradient(jnp.round(energies / grid) * grid)
    return jnp.sum(coarse) + jnp.sum(energies - coarse)


def sum_edges(
    values: Float[Array, "e *d"], owners: Int[Array, " e"], n: int, *, is_sorted: bool = False
) -> Float[Array, "n *d"]:
    """Sum of the values [e, ...] that belong to each of n owners; owner n marks padding, which is dropped."""
    return jax.ops.segment_sum(values, owners, num_segments=n, indices_are_sorted=is_sorted, mode="drop")


def gather(values: Float[Array, "n *d"], index: Int[Array, " e"]) -> Float[Array, "e *d"]:
    """Rows of values; an index beyond the last row (padding) gives a row of zeros, and passes no gradient."""
    return values.at[index].get(mode="fill", fill_value=0)


def product(x: Float[Array, "*batch in"], weight: Float[Array, "out in"]) -> Float[Array, "*batch out"]:
    """x W^T at full precision: accelerators would otherwise round the factors to 10 bits."""
    return jnp.matmul(x, weight.T, precision=jax.lax.Precision.HIGHEST)


def row(vector: Float[Array, " d"], like: Float[Array, "*batch d"]) -> Float[Array, "*ones d"]:
    """A vector [d] with as many leading axes of length one as `like` has."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)
