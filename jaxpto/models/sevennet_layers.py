"""The convolution of SevenNet and NequIP: tensor products of neighbours' features with harmonics, weighted by distance.

    A_i^{p}_{k u} = sum_j w^p_u(r_ij) sum_{m1 m2} C^p_{m1 m2 k} x_{j m1 u} Y_{m2}(r_ij)

for each path p = (l1, l2, l3) and channel u. For a block of edges of one receiver this is a small matrix product,
[k, (edge, m1)] times [(edge, m1), u], whose left factor has no channels and whose right factor no k.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.models.couplings import coupling_paths, coupling_table
from jaxpto.models.equivariant import normalized_silu
from jaxpto.models.layers import product


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The sums A of blocks of edges (a function for `block_pass`).

    Attributes:
        channels: number of channels for each l of the features.
        highest: largest l of the harmonics.
        highest_result: largest l of the results.
    """

    channels: tuple[int, ...]
    highest: int
    highest_result: int

    def __call__(
        self, radial: dict[str, Any], features: Float[Array, "b w f"], edge: dict[str, Array]
    ) -> tuple[Float[Array, "b k c"], ...]:
        """The sums for each l of the results, the channels of its paths side by side.

        Args:
            radial: layers "0", "1", ... [out, in] of the network that gives the weights of all paths' channels.
            features: [b, w, f] of the edges' senders, as `joined` puts them together.
            edge: radial functions [b, w, r], and harmonics [b, w, m].
        """
        paths = coupling_paths(len(self.channels) - 1, self.highest, self.highest_result, parity=False)
        weights = radial_weights(radial, edge["radial"])
        coupled = product(edge["harmonics"], jnp.asarray(coupling_table(paths, self.highest), weights.dtype))
        by_order = split(features, self.channels)
        # the derivative of one split is one concatenation; that of slices would be sums of zero-filled arrays
        lefts = jax.lax.split(coupled, [(2 * p.features + 1) * (2 * p.result + 1) for p in paths], axis=2)
        rights = jax.lax.split(weights, [self.channels[p.features] for p in paths], axis=2)
        results: list[list[Array]] = [[] for _ in range(self.highest_result + 1)]
        for path, left, right in zip(paths, lefts, rights, strict=True):
            left = left.reshape(*left.shape[:2], 2 * path.features + 1, 2 * path.result + 1)
            right = by_order[path.features] * right[:, :, None, :]
            results[path.result].append(jnp.einsum("bemk,bemu->bku", left, right, precision=jax.lax.Precision.HIGHEST))
        return tuple(jnp.concatenate(parts, axis=-1) for parts in results)


def radial_weights(radial: dict[str, Any], functions: Float[Array, "*batch r"]) -> Float[Array, "*batch c"]:
    """A network of linear layers without biases; normalized silu in between."""
    x = product(functions, radial["0"])
    for index in range(1, len(radial)):
        x = product(normalized_silu(x), radial[str(index)])
    return x


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
