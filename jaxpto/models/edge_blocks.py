"""Edges in short blocks of one receiver each, and sums over them by small matrix products.

Messages of an equivariant network have thousands of numbers for each edge. Their sum over the edges of one receiver is
a matrix product, (coefficients of the harmonics) x (features times radial weights), and so are its derivatives: with
several edges of one receiver side by side no message is ever written down, and a processor is at its best.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def block_pass(function: Function, size: int, params: Any, table: Any, blocks: Blocks, streams: Any) -> Any:
    """Apply a function to every block of edges and sum its results by receiver.

    A slice of blocks goes through all of the function before the next one; the derivative does a slice again instead
    of keeping its results. It can be differentiated backwards, also twice, but not forwards (`jax.jvp`).

    Args:
        function: (params, table's rows [s, w, ...] of the senders, streams [s, w, ...]) -> pytree of arrays [s, ...];
            a block's results depend on that block only. It must be hashable, and equal in every call.
        size: number of receivers.
        params: pytree that every block sees.
        table: pytree of arrays with one entry per sender. An empty place looks up the last one.
        blocks: as `make_blocks` gives them; slices without edges are skipped.
        streams: pytree of arrays [b, w, ...]. Those of empty places must make their results vanish.

    Returns:
        The sums, pytree of arrays [size, ...].
    """
    return _forward(function, size, params, table, blocks, streams)


def _forward(function: Function, size: int, params: Any, table: Any, blocks: Blocks, streams: Any) -> Any:
    inputs = _sliced(blocks.slice_length, (blocks.receivers, blocks.senders, streams))

    def compute(senders: Array, streams: Any) -> Any:
        return function(params, _rows(table, senders), streams)

    shapes = jax.eval_shape(compute, *jax.tree.map(lambda x: x[0], inputs[1:]))
    sums = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), shapes)

    def step(carry: tuple[Any, Array], inputs: tuple[Any, ...]) -> tuple[tuple[Any, Array], None]:
        sums, start = carry
        receivers, *rows = inputs
        summed = jax.lax.cond(start < blocks.count, compute, lambda *_: _zeros(shapes), *rows)
        sums = jax.tree.map(lambda a, b: a.at[receivers].add(b, mode="drop"), sums, summed)
        return (sums, start + receivers.shape[0]), None

    return jax.lax.scan(step, (sums, jnp.zeros_like(blocks.count)), inputs)[0][0]


def _save(function: Function, size: int, *inputs: Any) -> tuple[Any, Any]:
    values = jax.tree.map(lambda primal: primal.value, inputs)
    perturbed = [any(primal.perturbed for primal in jax.tree.leaves(tree)) for tree in inputs[:2]]
    # a residual can only hold arrays; what is differentiated is told by its structure
    flags = {name: () for name, flag in zip(("params", "table"), perturbed, strict=True) if flag}
    return _forward(function, size, *values), (values, flags)


def _backward(function: Function, size: int, saved: tuple[Any, ...], cotangents: Any) -> tuple[Any, ...]:
    (params, table, blocks, streams), flags = saved
    cotangents = jax.tree.map(_instantiated, cotangents)
    wanted = ["params" in flags, "table" in flags]
    d_start = [
        jax.tree.map(jnp.zeros_like, tree) if want else None for tree, want in zip((params, table), wanted, strict=True)
    ]

    def step(carry: tuple[Any, Any, Array], inputs: tuple[Any, ...]) -> tuple[tuple[Any, Any, Array], Any]:
        (d_params, d_table, start), (receivers, senders, streams) = carry, inputs

        def compute() -> tuple[Any, Any, Any]:
            # empty blocks look up the last receiver, which does no harm: their streams make them vanish
            received = _rows(cotangents, receivers)
            rows = _rows(table, senders)

            def chosen(params_: Any, rows_: Any, streams_: Any) -> Any:
                return function(params_ if wanted[0] else params, rows_ if wanted[1] else rows, streams_)

            given = (params if wanted[0] else None, rows if wanted[1] else None, streams)
            return jax.vjp(chosen, *given)[1](received)

        shapes = jax.eval_shape(compute)
        d_param, d_rows, d_streams = jax.lax.cond(start < blocks.count, compute, lambda: _zeros(shapes))
        d_params = jax.tree.map(jnp.add, d_params, d_param)
        d_table = jax.tree.map(lambda a, b: a.at[senders].add(b, mode="drop"), d_table, d_rows)
        return (d_params, d_table, start + receivers.shape[0]), d_streams

    inputs = _sliced(blocks.slice_length, (blocks.receivers, blocks.senders, streams))
    (d_params, d_table, _), d_streams = jax.lax.scan(
        step, (d_start[0], d_start[1], jnp.zeros_like(blocks.count)), inputs
    )
    return (
        jax.tree.map(jnp.zeros_like, params) if d_params is None else d_params,
        jax.tree.map(jnp.zeros_like, table) if d_table is None else d_table,
        jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), blocks),
        jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), d_streams),
    )


block_pass.defvjp(_save, _backward, symbolic_zeros=True)


def _instantiated(cotangent: Any) -> Array:
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent


def _sliced(length: int, arrays: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), arrays)


def _rows(table: Any, index: Array) -> Any:
    # filling up with zeros instead would write a mask for every number
    return jax.tree.map(lambda x: x.at[index].get(mode="clip"), table)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
