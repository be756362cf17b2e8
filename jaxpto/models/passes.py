"""A function of every edge (or angle) in slices that fit the processor's cache, with its derivative by recomputation.

Graph networks compute dozens of numbers per feature and edge between one set of features and the next. Written as
operations on whole arrays they fill gigabytes, and a processor spends its time on moving them: an evaluation is then
several times slower than its arithmetic. Here a slice of edges goes through all of a block's operations before the next
one starts, and the backward pass does a slice's operations again instead of keeping their results.
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

SLICE = 1024  # rows; their features of a block fit a second-level cache
SLICE_ACCELERATOR = 1 << 17  # an accelerator wants all rows at once, as far as its memory goes

Function = Callable[[Any, dict[str, Any], Any], tuple[Any, Any]]


@no_type_check  # in its rules for derivatives JAX puts marks of what is perturbed in place of the arrays
@struct.dataclass
class RowCount:
    """How many rows of arrays that end in padding are in use, and in which slices `row_pass` goes through them.

    Attributes:
        used: number of rows before the padding.
        slice_length: rows of a slice; the arrays hold a whole number of slices.
    """

    used: Int[Leaf, ""]
    slice_length: int = struct.field(pytree_node=False)


def slices(rows: int, platform: str) -> tuple[int, int]:
    """Number and length of equal slices (a multiple of 8 rows) that hold a number of rows, for a kind of device."""
    longest = SLICE if platform == "cpu" else SLICE_ACCELERATOR
    number = max(1, math.ceil(rows / longest))
    return number, 8 * math.ceil(rows / number / 8)


def select_rows(chosen: Bool[Array, " e"], platform: str) -> tuple[Int[Array, " s"], RowCount]:
    """Indices of the chosen rows, in order, in an array that fits `row_pass`, filled up with e; and their number."""
    number, length = slices(chosen.shape[0], platform)
    selected = jnp.nonzero(chosen, size=number * length, fill_value=chosen.shape[0])[0]
    return selected.astype(jnp.int32), RowCount(jnp.sum(chosen, dtype=jnp.int32), length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def row_pass(
    function: Function,
    sum_at: str,
    size: int,
    params: Any,
    tables: dict[str, Any],
    index: dict[str, Int[Array, " s"]],
    streams: Any,
    count: RowCount,
) -> tuple[Any, Any]:
    """Apply a function to every row, keep a part of its results, and sum the other part by owner.

    It can be differentiated backwards, also twice, but not forwards (`jax.jvp`).

    Args:
        function: (params, rows of the tables, rows of the streams) -> (kept, summed), each a pytree of arrays with one
            entry per row; a row's results depend on that row only. It must be the same object in every call.
        sum_at: which of `index` names the owners of the rows.
        size: number of owners.
        params: pytree that every row sees.
        tables: pytrees of arrays (of at least one row) whose rows are looked up by the index of the same name; an index
            beyond the end (padding) looks up the last row, so that what is kept of padding means nothing.
        index: indices [s] into the tables and into the owners; s must be a whole number of slices.
        streams: pytree of arrays with one entry per row.
        count: number of rows before the padding. Whole slices of padding are skipped, with results zero.

    Returns:
        kept, with one entry per row, and the sums, with one entry per owner.
    """
    return _forward(function, sum_at, size, params, tables, index, streams, count)


def _forward(
    function: Function,
    sum_at: str,
    size: int,
    params: Any,
    tables: dict[str, Any],
    index: dict[str, Array],
    streams: Any,
    count: RowCount,
) -> tuple[Any, Any]:
    number, length = _sliced_shape(index, count)
    # Where a network repeats its passes in a loop, JAX takes out of it whatever depends on the graph alone: from here
    # the untaken branch of every slice, zeros for all rows. A count that comes with the tables does not invite that.
    used = jax.lax.optimization_barrier((count.used, tables))[0]
    inputs = _sliced(number, length, index, streams)

    def compute(index: dict[str, Array], streams: Any) -> tuple[Any, Any]:
        return function(params, _look_up(tables, index), streams)

    nothing = jax.eval_shape(compute, *jax.tree.map(lambda x: x[0], inputs[1:]))
    sums = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), nothing[1])

    def step(sums: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
        start, *rows = inputs
        index = rows[0]
        kept, summed = jax.lax.cond(start < used, compute, lambda *_: _zeros(nothing), *rows)
        return jax.tree.map(lambda a, b: a.at[index[sum_at]].add(b, mode="drop"), sums, summed), kept

    sums, kept = jax.lax.scan(step, sums, inputs)
    return jax.tree.map(_joined, kept), sums


def _save(function: Function, sum_at: str, size: int, *inputs: Any) -> tuple[Any, Any]:
    values = jax.tree.map(lambda primal: primal.value, inputs)
    trained = any(primal.perturbed for primal in jax.tree.leaves(inputs[0]))
    # a residual can only hold arrays; whether parameters are differentiated is told by its structure
    return _forward(function, sum_at, size, *values), (values, {"trained": ()} if trained else {})


def _backward(function: Function, sum_at: str, size: int, saved: tuple[Any, ...], cotangents: Any) -> tuple[Any, ...]:
    (params, tables, index, streams, count), flags = saved
    number, length = _sliced_shape(index, count)
    kept_cotangent, sums_cotangent = jax.tree.map(_instantiated, cotangents)
    d_start = jax.tree.map(jnp.zeros_like, (params if "trained" in flags else None, tables))

    def step(sums: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
        (d_params, d_tables), (start, index, (streams, kept_cotangent)) = sums, inputs

        def compute() -> tuple[Any, Any, Any]:
            rows = _look_up(tables, index)
            owned = index[sum_at] < size
            summed_cotangent = jax.tree.map(
                lambda x: x * owned.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype),
                _look_up({sum_at: sums_cotangent}, index)[sum_at],
            )
            if "trained" in flags:
                _, transpose = jax.vjp(function, params, rows, streams)
                return transpose((kept_cotangent, summed_cotangent))
            _, transpose = jax.vjp(functools.partial(function, params), rows, streams)
            return None, *transpose((kept_cotangent, summed_cotangent))

        nothing = jax.eval_shape(compute)
        d_param, d_rows, d_streams = jax.lax.cond(start < count.used, compute, lambda: _zeros(nothing))
        d_params = jax.tree.map(jnp.add, d_params, d_param)
        d_tables = {
            name: jax.tree.map(lambda a, b, at=index[name]: a.at[at].add(b, mode="drop"), table, d_rows[name])
            for name, table in d_tables.items()
        }
        return (d_params, d_tables), d_streams

    inputs = _sliced(number, length, index, (streams, kept_cotangent))
    (d_params, d_tables), d_streams = jax.lax.scan(step, d_start, inputs)
    d_params = jax.tree.map(jnp.zeros_like, params) if d_params is None else d_params
    return (
        d_params,
        d_tables,
        jax.tree.map(_no_cotangent, index),
        jax.tree.map(_joined, d_streams),
        jax.tree.map(_no_cotangent, count),
    )


row_pass.defvjp(_save, _backward, symbolic_zeros=True)


def _instantiated(cotangent: Any) -> Array:
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent


def _no_cotangent(x: Array) -> np.ndarray:
    return np.zeros(x.shape, jax.dtypes.float0)


def _sliced_shape(index: dict[str, Array], count: RowCount) -> tuple[int, int]:
    rows = next(iter(index.values())).shape[0]
    assert rows % count.slice_length == 0, f"{rows} rows are no whole number of slices of {count.slice_length}"
    return rows // count.slice_length, count.slice_length


def _sliced(number: int, length: int, index: dict[str, Array], streams: Any) -> tuple[Any, ...]:
    starts = length * jnp.arange(number, dtype=jnp.int32)
    return starts, *jax.tree.map(lambda x: x.reshape(number, length, *x.shape[1:]), (index, streams))


def _joined(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _look_up(tables: dict[str, Any], index: dict[str, Array]) -> dict[str, Any]:
    # filling up with zeros instead would write a mask for every number
    return {
        name: jax.tree.map(lambda x, at=index[name]: x.at[at].get(mode="clip"), table) for name, table in tables.items()
    }


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
