"""A function of rows in slices that fit the processor's cache, with derivatives of any order that are passes again.

Graph networks compute dozens of numbers per feature and edge between one set of features and the next. Written as
operations on whole arrays they fill gigabytes, and a processor spends its time on moving them: an evaluation is then
several times slower than its arithmetic. Here a slice of rows goes through all of a function's operations before the
next one starts.

The derivative of such a pass does a slice's operations again instead of keeping their results, and is itself a pass,
whose function is the transposed derivative of the first one. So is the derivative of that one, which training needs, as
it differentiates forces in the parameters. Each derivative computes only what is asked for.

Few rows, such as those of the 40 atoms of a training frame, fit the cache all together: `whole_pass` keeps what their
derivatives need.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Int

from jaxpto.system import Leaf

Function = Callable[[Any, dict[str, Any], dict[str, Any], Any], tuple[Any, Any, dict[str, Any]]]


@no_type_check  # in its rules for derivatives JAX puts marks of what is perturbed in place of the arrays
@struct.dataclass
class RowCount:
    """How many rows of arrays that end in padding are in use, and in which slices `sliced_pass` goes through them.

    Attributes:
        used: number of rows before the padding.
        slice_length: rows of a slice; the arrays hold a whole number of slices.
    """

    used: Int[Leaf, ""]
    slice_length: int = struct.field(pytree_node=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sliced_pass(
    function: Function,
    sizes: tuple[tuple[str, int], ...],
    params: Any,
    tables: dict[str, Any],
    masked: dict[str, Any],
    index: dict[str, Int[Array, "s *_"]],
    streams: Any,
    count: RowCount,
) -> tuple[Any, Any, dict[str, Any]]:
    """Apply a function to every row; keep a part of its results, add up a part, and sum a part by owner.

    It can be differentiated backwards any number of times, but not forwards (`jax.jvp`).

    Args:
        function: (params, rows of the tables, rows of the masked tables, rows of the streams) of a slice -> (kept,
            total, summed): kept has an entry for each row; total is already added up over the slice; summed has, by
            the name of an index, pytrees with an entry for each of its elements. It must be equal in every call.
        sizes: names of the indices by which results are summed, with the number of owners of each.
        params: pytree that every row sees.
        tables: pytrees of arrays (of at least one row) whose rows are looked up by the index of the same name; an index
            beyond the end (padding) looks up the last row, so that what is kept of padding means nothing.
        masked: the same, but an index beyond the end looks up zeros.
        index: indices into the tables and of the owners; those beyond the end are dropped from the sums. Their number
            must be a whole number of slices.
        streams: pytree of arrays with one entry per row.
        count: number of rows before the padding. Whole slices of padding are skipped, with results zero.

    Returns:
        kept, with one entry per row; the total; and by name the sums, with one entry per owner.
    """
    number, length = _sliced_shape(index, count)
    # Where a network repeats its passes in a loop, JAX takes out of it whatever depends on the graph alone: from here
    # the untaken branch of every slice, zeros for all rows. A count that comes with the tables does not invite that.
    used = jax.lax.optimization_barrier((count.used, tables))[0]
    inputs = _sliced(number, length, index, streams)

    def compute(index: dict[str, Array], streams: Any) -> tuple[Any, Any, dict[str, Any]]:
        return function(params, _look_up(tables, index), _look_up_masked(masked, index), streams)

    nothing = jax.eval_shape(compute, *jax.tree.map(lambda x: x[0], inputs[1:]))
    owners = dict(sizes)
    sums = {
        name: jax.tree.map(lambda x, at=name: jnp.zeros((owners[at], *x.shape[index[at].ndim :]), x.dtype), one)
        for name, one in nothing[2].items()
    }

    def step(carry: tuple[Any, Any], inputs: tuple[Any, ...]) -> tuple[tuple[Any, Any], Any]:
        (total, sums), (start, *rows) = carry, inputs
        kept, added, summed = jax.lax.cond(start < used, compute, lambda *_: _zeros(nothing), *rows)
        sums = {
            name: jax.tree.map(lambda a, b, at=rows[0][name]: a.at[at].add(b, mode="drop"), sums[name], one)
            for name, one in summed.items()
        }
        return (jax.tree.map(jnp.add, total, added), sums), kept

    (total, sums), kept = jax.lax.scan(step, (_zeros(nothing[1]), sums), inputs)
    return jax.tree.map(_joined, kept), total, sums


@dataclasses.dataclass(frozen=True)
class _Transposed:
    """The transposed derivative of a function for `sliced_pass`, a function for `sliced_pass` itself.

    Its params, masked tables and streams hold beside those of the function the cotangents of the function's total, sums
    and kept results. It keeps the derivatives in the streams, adds up those in the parameters, and sums those in the
    rows of tables by the table's index.

    Attributes:
        function: is differentiated.
        wanted: numbers of the leaves of (params, rows, masked rows, streams) that are differentiated.
        given: numbers of the leaves of (kept, total, summed) that have cotangents.
    """

    function: Function
    wanted: tuple[int, ...]
    given: tuple[int, ...]

    def __call__(
        self, params: Any, rows: dict[str, Any], masked: dict[str, Any], streams: Any
    ) -> tuple[list[Array], list[Array], dict[str, list[Array]]]:
        values = params[0], rows, {name: one[0] for name, one in masked.items() if one[0] is not None}, streams[0]
        leaves, structure = jax.tree.flatten(values)

        def some(chosen: list[Array]) -> Any:
            changed = list(leaves)
            for number, leaf in zip(self.wanted, chosen, strict=True):
                changed[number] = leaf
            return self.function(*jax.tree.unflatten(structure, changed))

        results, transpose = jax.vjp(some, [leaves[number] for number in self.wanted])
        cotangents, form = jax.tree.flatten(jax.tree.map(jnp.zeros_like, results))
        found = [*streams[1], *params[1], *(x for name in sorted(masked) for x in masked[name][1])]
        for number, cotangent in zip(self.given, found, strict=True):
            cotangents[number] = cotangent
        (derivatives,) = transpose(jax.tree.unflatten(form, cotangents))
        by_number = dict(zip(self.wanted, derivatives, strict=True))
        parts = jax.tree.unflatten(structure, range(len(leaves)))
        pick = lambda part: [by_number[number] for number in jax.tree.leaves(part) if number in by_number]  # noqa: E731
        summed = {name: pick((parts[1].get(name), parts[2].get(name))) for name in {**parts[1], **parts[2]}}
        return pick(parts[3]), pick(parts[0]), {name: one for name, one in summed.items() if one}


def whole_pass(
    function: Function,
    sizes: tuple[tuple[str, int], ...],
    params: Any,
    tables: dict[str, Any],
    masked: dict[str, Any],
    index: dict[str, Int[Array, "s *_"]],
    streams: Any,
) -> tuple[Any, Any, dict[str, Any]]:
    """What `sliced_pass` does, for all rows at once: results are kept for the derivatives, and no padding is skipped.

    For few rows, which fit the cache all together: nothing is computed again, which saves almost half of a training
    step's matrix products. Arguments and results are those of `sliced_pass`.
    """
    kept, total, summed = function(params, _look_up(tables, index), _look_up_masked(masked, index), streams)
    owners = dict(sizes)
    sums = {
        name: jax.tree.map(lambda x, at=name: _sum_rows(x, index[at], owners[at]), one) for name, one in summed.items()
    }
    return kept, total, sums


def _sum_rows(values: Array, owners: Array, number: int) -> Array:
    return jnp.zeros((number, *values.shape[owners.ndim :]), values.dtype).at[owners].add(values, mode="drop")


def _save(function: Function, sizes: tuple[tuple[str, int], ...], *inputs: Any) -> tuple[Any, Any]:
    values = jax.tree.map(lambda primal: primal.value, inputs)
    params, tables, masked, _, streams, _ = inputs
    perturbed = [primal.perturbed for primal in jax.tree.leaves((params, tables, masked, streams))]
    # a residual can only hold arrays; what is differentiated is told by its structure
    flags = {str(number): () for number, flag in enumerate(perturbed) if flag}
    return sliced_pass(function, sizes, *values), (values, flags)


def _backward(function: Function, sizes: tuple[tuple[str, int], ...], saved: Any, cotangents: Any) -> tuple[Any, ...]:
    (params, tables, masked, index, streams, count), flags = saved
    wanted = tuple(sorted(map(int, flags)))
    kept, total, sums = cotangents
    given = tuple(n for n, x in enumerate(jax.tree.leaves(cotangents)) if not isinstance(x, SymbolicZero))
    present = lambda tree: [x for x in jax.tree.leaves(tree) if not isinstance(x, SymbolicZero)]  # noqa: E731
    seen = {name: (masked.get(name), present(sums.get(name))) for name in {**masked, **sums}}
    in_streams, in_params, in_rows = sliced_pass(
        _Transposed(function, wanted, given),
        _owners(tables, seen),
        (params, present(total)),
        tables,
        seen,
        index,
        (streams, present(kept)),
        count,
    )
    leaves, structure = jax.tree.flatten((params, tables, masked, streams))
    parts = jax.tree.unflatten(structure, range(len(leaves)))
    found: list[Array | None] = [None] * len(leaves)
    groups = [(parts[3], in_streams), (parts[0], in_params)]
    groups += [((parts[1].get(name), parts[2].get(name)), one) for name, one in in_rows.items()]
    for part, derivatives in groups:
        numbers = [number for number in jax.tree.leaves(part) if number in wanted]
        for number, derivative in zip(numbers, derivatives, strict=True):
            found[number] = derivative
    d_params, d_tables, d_masked, d_streams = jax.tree.unflatten(structure, found)
    return d_params, d_tables, d_masked, None, d_streams, None


sliced_pass.defvjp(_save, _backward, symbolic_zeros=True)


def _owners(*tables: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    """Names of the tables, with the number of their rows."""
    found: dict[str, int] = {}
    for name, table in (item for one in tables for item in one.items()):
        for leaf in jax.tree.leaves(table):
            rows = found.setdefault(name, leaf.shape[0])
            assert leaf.shape[0] == rows, f"tables {name} of {leaf.shape[0]} and {rows} rows"
    return tuple(found.items())


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


def _look_up_masked(tables: dict[str, Any], index: dict[str, Array]) -> dict[str, Any]:
    def row(x: Array, at: Array) -> Array:
        owned = (at < x.shape[0]).astype(x.dtype)
        return x.at[at].get(mode="clip") * owned.reshape(*owned.shape, *[1] * (x.ndim - 1))

    return {name: jax.tree.map(functools.partial(row, at=index[name]), table) for name, table in tables.items()}


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
