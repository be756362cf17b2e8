"""Passes over the edges or angles of a graph network, in slices that fit the processor's cache."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxpto.models.sliced_pass import RowCount, sliced_pass, whole_pass

SLICE = 512  # rows; the features of a block and their derivatives fit a second-level cache
FEW = 6144  # rows that go at once: the results of a layer fit the last cache of a processor
SLICE_ACCELERATOR = 1 << 17  # an accelerator wants all rows at once, as far as its memory goes

Function = Callable[[Any, dict[str, Any], Any], tuple[Any, Any]]


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

    It can be differentiated backwards any number of times, but not forwards (`jax.jvp`); see `sliced_pass` and, for at
    most `FEW` rows, `whole_pass`.

    Args:
        function: (params, rows of the tables, rows of the streams) -> (kept, summed), each a pytree of arrays with one
            entry per row; a row's results depend on that row only. It must be equal in every call.
        sum_at: which of `index` names the owners of the rows.
        size: number of owners.
        params: pytree that every row sees.
        tables: pytrees of arrays (of at least one row) whose rows are looked up by the index of the same name; an index
            beyond the end (padding) looks up the last row, so that what is kept of padding means nothing.
        index: indices [s] into the tables and into the owners; s must be a whole number of slices.
        streams: pytree of arrays with one entry per row.
        count: number of rows before the padding. Of many rows whole slices of padding are skipped.

    Returns:
        kept, with one entry per row, and the sums, with one entry per owner.
    """
    one, sizes = _Rows(function, sum_at), ((sum_at, size),)
    if index[sum_at].shape[0] <= FEW:
        kept, _, sums = whole_pass(one, sizes, params, tables, {}, index, streams)
    else:
        kept, _, sums = sliced_pass(one, sizes, params, tables, {}, index, streams, count)
    return kept, sums[sum_at]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A function for `row_pass` as one for `sliced_pass`."""

    function: Function
    sum_at: str

    def __call__(
        self, params: Any, rows: dict[str, Any], masked: dict[str, Any], streams: Any
    ) -> tuple[Any, None, dict[str, Any]]:
        kept, summed = self.function(params, rows, streams)
        return kept, None, {self.sum_at: summed}
