"""Edges in short blocks of one receiver each, and sums over them by small matrix products.

Messages of an equivariant network have thousands of numbers for each edge. Their sum over the edges of one receiver is
a matrix product, (coefficients of the harmonics) x (features times radial weights), and so are its derivatives: with
several edges of one receiver side by side no message is ever written down, and a processor is at its best.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, no_type_check

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxpto.models.sliced_pass import RowCount, sliced_pass
from jaxpto.system import Leaf

WIDTH = 16  # edges of a block; of a receiver's last block half is empty on average
SLICE = 128  # edges that go through a layer at once; their features fit a second-level cache
SLICE_ACCELERATOR = 1 << 14

Function = Callable[[Any, Any, Any], Any]


@no_type_check  # in its rules for derivatives JAX puts marks of what is perturbed in place of the arrays
@struct.dataclass
class Blocks:
    """Edges of one system by receiver.

    Attributes:
        receivers: [b] the receiver of each block; n (the number of atoms) marks an empty block, all at the end.
        senders: [b, w] sender of each edge; n marks an empty place.
        edges: [b, w] index of each edge in the neighbour list; e (its length) marks an empty place.
        count: number of blocks in use.
        slice_length: number of blocks that go through a layer at once; b is a multiple of it.
    """

    receivers: Int[Leaf, " b"]
    senders: Int[Leaf, "b w"]
    edges: Int[Leaf, "b w"]
    count: Int[Leaf, ""]
    slice_length: int = struct.field(pytree_node=False)


def blocks_per_slice(platform: str) -> int:
    """Number of blocks that go through a layer at once on a kind of device."""
    return (SLICE if platform == "cpu" else SLICE_ACCELERATOR) // WIDTH


def make_blocks(
    chosen: Bool[Array, " e"], senders: Int[Array, " e"], receivers: Int[Array, " e"], n: int, width: int, length: int
) -> Blocks:
    """Put the chosen edges of a packed neighbour list into blocks.

    Args:
        chosen: which edges; no empty ones.
        senders, receivers: ends of each edge, receivers in ascending order.
        n: number of atoms.
        width: number of edges in a block.
        length: number of blocks that go through a layer at once.
    """
    e = chosen.shape[0]
    capacity = length * math.ceil((e + n * (width - 1)) / width / length)
    owner = jnp.where(chosen, receivers, n)
    degree = jnp.zeros(n, jnp.int32).at[owner].add(1, mode="drop")
    full = -(-degree // width)
    first_block = jnp.cumsum(full, dtype=jnp.int32) - full
    first_edge = jnp.cumsum(degree, dtype=jnp.int32) - degree
    shift = first_block * width - first_edge
    place = jnp.cumsum(chosen, dtype=jnp.int32) - 1 + shift.at[owner].get(mode="clip")
    place = jnp.where(chosen, place, capacity * width)
    edges = jnp.full(capacity * width, e, jnp.int32).at[place].set(jnp.arange(e, dtype=jnp.int32), mode="drop")
    count = jnp.sum(full, dtype=jnp.int32)
    owners = jnp.repeat(jnp.arange(n, dtype=jnp.int32), full, total_repeat_length=capacity)
    return Blocks(
        receivers=jnp.where(jnp.arange(capacity) < count, owners, n),
        senders=senders.at[edges].get(mode="fill", fill_value=n).astype(jnp.int32).reshape(capacity, width),
        edges=edges.reshape(capacity, width),
        count=count,
        slice_length=length,
    )


def block_pass(function: Function, size: int, params: Any, table: Any, blocks: Blocks, streams: Any) -> Any:
    """Apply a function to every block of edges and sum its results by receiver.

    It can be differentiated backwards any number of times, but not forwards (`jax.jvp`); see `sliced_pass`.

    Args:
        function: (params, table's rows [s, w, ...] of the senders, streams [s, w, ...]) -> pytree of arrays [s, ...];
            a block's results depend on that block only. It must be equal in every call.
        size: number of receivers.
        params: pytree that every block sees.
        table: pytree of arrays with one entry per sender. An empty place looks up the last one.
        blocks: as `make_blocks` gives them; slices without edges are skipped.
        streams: pytree of arrays [b, w, ...]. Those of empty places must make their results vanish.

    Returns:
        The sums, pytree of arrays [size, ...].
    """
    index = {"senders": blocks.senders, "receivers": blocks.receivers}
    count = RowCount(blocks.count, blocks.slice_length)
    sizes = (("receivers", size),)
    return sliced_pass(_Blocks(function), sizes, params, {"senders": table}, {}, index, streams, count)[2]["receivers"]


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """A function for `block_pass` as one for `sliced_pass`."""

    function: Function

    def __call__(
        self, params: Any, rows: dict[str, Any], masked: dict[str, Any], streams: Any
    ) -> tuple[None, None, dict[str, Any]]:
        return None, None, {"receivers": self.function(params, rows["senders"], streams)}
