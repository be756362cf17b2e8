"""The convolution of SevenNet and MACE: tensor products of neighbours' features with harmonics, weighted by distance.

    A_i^{p}_{k u} = sum_j w^p_u(r_ij) sum_{m1 m2} C^p_{m1 m2 k} x_{j m1 u} Y_{m2}(r_ij)

for each path p = (l1, l2, l3) and channel u. For a block of edges of one receiver this is a small matrix product,
[k, (edge, m1)] times [(edge, m1), u], whose left factor has no channels and whose right factor no k.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxpto.models import fused_convolution
from jaxpto.models.couplings import CouplingPath, coupling_table, sum_products
from jaxpto.models.edge_blocks import WIDTH, Blocks, block_pass, blocks_per_slice, make_blocks
from jaxpto.models.layers import product
from jaxpto.neighbors import Layout, Neighbors


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The sums A of blocks of edges (a function for `block_pass`).

    Attributes:
        weights: function (params, streams) -> radial weights [..., c] of all paths' channels side by side, which vanish
            for an empty edge.
        paths: the couplings, ordered by their results.
        channels: number of channels for each l of the features.
        highest: largest l of the harmonics.
    """

    weights: Callable[[Any, dict[str, Array]], Array]
    paths: tuple[CouplingPath, ...]
    channels: tuple[int, ...]
    highest: int

    @property
    def summed_channels(self) -> tuple[int, ...]:
        """For each l of the results, the number of channels of all its paths."""
        highest = max(path.result for path in self.paths)
        return tuple(
            sum(self.channels[path.features] for path in self.paths if path.result == order)
            for order in range(highest + 1)
        )

    def __call__(
        self, params: Any, features: Float[Array, "b w f"], streams: dict[str, Array]
    ) -> tuple[Float[Array, "b k c"], ...]:
        """The sums for each l of the results, the channels of its paths side by side.

        Args:
            params: parameters of the radial weights.
            features: [b, w, f] features of the edges' senders, as `joined` puts them together.
            streams: harmonics [b, w, m], the first of them 1, and what the radial weights are made from.
        """
        weights = self.weights(params, streams)
        coupled = product(streams["harmonics"], jnp.asarray(coupling_table(self.paths, self.highest), weights.dtype))
        by_order = split(features, self.channels)
        # the derivative of one split is one concatenation; that of slices would be sums of zero-filled arrays
        lefts = jax.lax.split(coupled, [(2 * p.features + 1) * (2 * p.result + 1) for p in self.paths], axis=2)
        rights = jax.lax.split(weights, [self.channels[p.features] for p in self.paths], axis=2)
        results: list[list[Array]] = [[] for _ in self.summed_channels]
        for path, left, right in zip(self.paths, lefts, rights, strict=True):
            weighted = by_order[path.features] * right[:, :, None, :]
            if path.harmonics == 0:  # the coupling is the identity, the harmonic 1
                results[path.result].append(jnp.sum(weighted, axis=1))
                continue
            blocks, edges, components, width = weighted.shape
            left = left.reshape(blocks, edges * components, 2 * path.result + 1)
            results[path.result].append(sum_products(left, weighted.reshape(blocks, edges * components, width)))
        return tuple(jnp.concatenate(parts, axis=-1) for parts in results)


def arrange(chosen: Bool[Array, " e"], neighbors: Neighbors) -> Blocks:
    """Put the chosen edges of a packed neighbour list in the order that `convolve` wants (see `make_blocks`)."""
    width, length = WIDTH, blocks_per_slice(neighbors.layout.platform)
    if fused_convolution.available(neighbors.layout):
        width, length = 1, fused_convolution.slice_length(chosen.shape[0])
    return make_blocks(chosen, neighbors.senders, neighbors.receivers, neighbors.wraps.shape[0], width, length)


def convolve(
    convolution: Convolution,
    params: Any,
    features: Sequence[Float[Array, "n _ _"]],
    blocks: Blocks,
    streams: dict[str, Array],
    layout: Layout,
) -> Sequence[Float[Array, "n _ _"]]:
    """Sums over the neighbours of each atom, [n, 2 l + 1, channels of all paths] for each l of the results.

    Args:
        convolution: which sums.
        params: parameters of the radial weights.
        features: [n, 2 l + 1, channels] features of the atoms, for each l.
        blocks: from `arrange`.
        streams: harmonics [b, w, m], the first of them 1, and what the radial weights are made from, [b, w, ...].
        layout: the layout of the neighbour list.
    """
    n, table = features[0].shape[0], joined(features)
    if not fused_convolution.available(layout):
        return block_pass(convolution, n, params, table, blocks, streams)
    streams = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), streams)
    polynomial = fused_convolution.coupled_channels(convolution.paths, convolution.channels, convolution.highest)
    weights = functools.partial(convolution.weights, params)
    sums = fused_convolution.fused_sums(polynomial, weights, table, blocks.senders[:, 0], blocks.receivers, streams)
    return split(sums, convolution.summed_channels)


def joined(features: Sequence[Float[Array, "n _ _"]]) -> Float[Array, "n f"]:
    """Features of all l in one array, by l, m and channel."""
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in features], axis=-1)


def split(features: Float[Array, "*batch f"], channels: Sequence[int]) -> list[Float[Array, "*batch _ _"]]:
    """What `joined` has put together: for each l the features [..., 2 l + 1, channels]."""
    sizes = [(2 * order + 1) * width for order, width in enumerate(channels)]
    parts = jax.lax.split(features, sizes, axis=features.ndim - 1)
    return [
        part.reshape(*features.shape[:-1], 2 * order + 1, width)
        for order, (part, width) in enumerate(zip(parts, channels, strict=True))
    ]
