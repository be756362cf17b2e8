"""Periodic neighbour list on the device: every image of every pair within cutoff + skin.

One mechanism serves 5-atom cells and 20,000 atoms, at a cost proportional to the number of atoms:

1. Atoms are sorted by species and by bins of the (triclinic) unit cell. A bin's candidates are the atoms in the stencil
   of bins around it, wide enough for cutoff + skin; a stencil that reaches over the cell's edge yields further images.
2. Each atom's distances to the candidates of its bin become bits, 32 to a word.
3. Each slot of the list looks up "its" set bit (rank and select by population counts). This takes gathers only, where
   compaction by prefix sums and scatter is several times slower on a CPU.

The stages are loops because XLA's CPU compiler would otherwise fuse them and recompute the candidates for each
distance; on an accelerator, where every turn of a loop costs the launch of its kernels, they are unrolled.

jax-md's `partition` stays unused because it keeps one image of a pair (wrong once the cutoff exceeds half the cell,
as usual here) and has no blocks of slots by species, which let a model know a slot's species statically.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt32

from jaxpto.neighbors.layout import WORD, Layout, image_vectors, stencil_tables
from jaxpto.system import System


def matmul(a: Array, b: Array) -> Array:
    """Product of two matrices in full precision."""
    # accelerators would otherwise round positions to 10 bits
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def inverse(cell: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """Inverse of a cell."""
    reciprocal = jnp.cross(cell[jnp.array([1, 2, 0])], cell[jnp.array([2, 0, 1])])
    return reciprocal.T / jnp.dot(cell[0], reciprocal[0])


def _loop(
    step: Callable[..., Any], start: Any, inputs: Array | tuple[Array, ...], platform: str, at_once: int = 1
) -> Any:
    """Like `jax.lax.scan`, unrolled on an accelerator; on a CPU, `at_once` turns of the loop form one kernel.

    On a CPU, turns that gather are slower when several of them are fused.
    """
    turns = jax.tree.leaves(inputs)[0].shape[0]
    return jax.lax.scan(step, start, inputs, unroll=min(at_once, turns) if platform == "cpu" else turns)


def sort_into_bins(
    system: System, layout: Layout
) -> tuple[Int32[Array, "n 3"], Int32[Array, " n"], Int32[Array, " n"], Int32[Array, "k b"], Int32[Array, "k b"]]:
    """Wraps and flat bin of each atom, atoms sorted by (block, bin), and the first and number of each (block, bin)."""
    n = system.positions.shape[0]
    fractional = matmul(system.positions, inverse(system.cell))
    wraps = jnp.floor(fractional)
    bins = jnp.asarray(layout.bins, jnp.int32)
    bin_of = jnp.clip(((fractional - wraps) * bins[None, :]).astype(jnp.int32), 0, bins[None, :] - 1)
    flat_bin = (bin_of[:, 0] * layout.bins[1] + bin_of[:, 1]) * layout.bins[2] + bin_of[:, 2]
    n_bins, n_blocks = math.prod(layout.bins), max(1, len(layout.species))
    block = jnp.full(n, 0 if not layout.species else n_blocks, jnp.int32)
    for index, number in enumerate(layout.species):
        block = jnp.where(system.numbers == number, index, block)
    key = block * n_bins + flat_bin
    order = jnp.argsort(key).astype(jnp.int32)
    number = jnp.zeros(n_blocks * n_bins, jnp.int32).at[key].add(1, mode="drop")
    first = jnp.cumsum(number, dtype=jnp.int32) - number
    shape = (n_blocks, n_bins)
    return wraps.astype(jnp.int32), flat_bin, order, first.reshape(shape), number.reshape(shape)


def split_blocks(words: UInt32[Array, "n w"], layout: Layout) -> list[UInt32[Array, "n _"]]:
    """The bit words of each block of candidates."""
    return jnp.split(words, (np.cumsum(layout.candidates)[:-1] // WORD).tolist(), axis=1)


def edge_counts(words: UInt32[Array, "n w"]) -> Int32[Array, " n"]:
    """Number of set bits in the words of each atom."""
    return jnp.sum(jax.lax.population_count(words), axis=1, dtype=jnp.int32)


def adjacency(
    system: System, layout: Layout
) -> tuple[UInt32[Array, "n w"], Int32[Array, "32 b w"], Int32[Array, " n"], Int32[Array, "n 3"], Bool[Array, ""]]:
    """Bit words over the candidates of each atom's bin, codes (image * n + sender) of the candidates, bin and wraps
    of each atom, and whether stencil or candidates overflow."""
    n = system.positions.shape[0]
    dtype = system.positions.dtype
    wraps, bin_of, order, first, number = sort_into_bins(system, layout)
    wrapped = system.positions - matmul(wraps.astype(dtype), system.cell)
    translations = matmul(jnp.asarray(image_vectors(layout), dtype), system.cell)
    looked, images = (jnp.asarray(table) for table in stencil_tables(layout))

    reach = layout.cutoff + layout.skin
    spacing = 1.0 / jnp.linalg.norm(inverse(system.cell), axis=0) / jnp.asarray(layout.bins, dtype)
    overflow = jnp.any(spacing * jnp.asarray(layout.stencil, dtype) < reach)
    if layout.species:  # atoms of other species have no block: their neighbours would be silently lost
        overflow |= jnp.sum(number) < n
    codes, coordinates = [], []
    for capacity, block_first, block_number in zip(layout.candidates, first, number, strict=True):
        code, position, total = _join_runs(
            block_first[looked], block_number[looked], images, order, wrapped, translations, capacity
        )
        codes.append(_as_words(code))
        coordinates.append([_as_words(position[..., axis]) for axis in range(3)])
        overflow |= total > capacity
    code = jnp.concatenate(codes, axis=2)
    x, y, z = (jnp.concatenate(parts, axis=2) for parts in zip(*coordinates, strict=True))
    itself = len(translations) // 2 * n + jnp.arange(n, dtype=jnp.int32)

    def add_bit(carry: tuple[Array, Array], candidates: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        words, bit = carry
        rows = [c.at[bin_of].get(mode="promise_in_bounds") for c in candidates]
        square = sum((rows[axis] - wrapped[:, axis][:, None]) ** 2 for axis in range(3))
        is_edge = (square < reach**2) & (rows[3] != itself[:, None])
        return (words | jnp.where(is_edge, bit, jnp.uint32(0)), bit << 1), None

    nothing = jnp.zeros((n, code.shape[2]), jnp.uint32)
    (words, _), _ = _loop(add_bit, (nothing, jnp.uint32(1)), (x, y, z, code), layout.platform)
    return words, code, bin_of, wraps, overflow


def _as_words(candidates: Array) -> Array:
    """[bins, capacity] -> [32, bins, words]."""
    return jnp.moveaxis(candidates.reshape(candidates.shape[0], WORD, -1), 1, 0)


def _join_runs(
    first: Int32[Array, "b o"],
    number: Int32[Array, "b o"],
    images: Int32[Array, "b o"],
    order: Int32[Array, " n"],
    wrapped: Float[Array, "n 3"],
    translations: Float[Array, "t 3"],
    capacity: int,
) -> tuple[Int32[Array, "b c"], Float[Array, "b c 3"], Int32[Array, ""]]:
    """Join the runs of sorted atoms at the o offsets of each bin: their codes and positions, and the largest total."""
    end = jnp.cumsum(number, axis=1, dtype=jnp.int32)
    index = jnp.arange(capacity, dtype=jnp.int32)[None, :]
    run = jnp.sum(end[:, None, :] <= index[:, :, None], axis=2, dtype=jnp.int32)
    run = jnp.minimum(run, number.shape[1] - 1)
    sender = order.at[jnp.take_along_axis(first - (end - number), run, axis=1) + index].get(mode="clip")
    image = jnp.take_along_axis(images, run, axis=1)
    position = wrapped.at[sender].get(mode="clip") + translations.at[image].get(mode="clip")
    exists = index < end[:, -1:]
    code = jnp.where(exists, image * wrapped.shape[0] + sender, -1)
    return code, jnp.where(exists[..., None], position, jnp.inf), end[:, -1].max()


def dense_slots(words: UInt32[Array, "n w"], slots: int, platform: str) -> tuple[Array, Array, Array, Array]:
    """For each slot: index of the word with its bit, rank of the bit among set ones, the word, and if it is used."""
    n = words.shape[0]
    slot = jnp.arange(slots, dtype=jnp.int32)[None, :]
    number = jax.lax.population_count(words).astype(jnp.int32)

    def accumulate(total: Array, number: Array) -> tuple[Array, Array]:
        return total + number, total

    def find(index: Array, first: Array) -> tuple[Array, None]:
        return index + (first[:, None] <= slot).astype(jnp.int32), None

    total, first = _loop(accumulate, jnp.zeros(n, jnp.int32), number.T, platform)
    index, _ = _loop(find, jnp.full((n, slots), -1, jnp.int32), first, platform, at_once=4)
    rows = jnp.arange(n)[:, None]
    rank = slot - first.at[index, rows].get(mode="promise_in_bounds")
    return index, rank, words.at[rows, index].get(mode="promise_in_bounds"), slot < total[:, None]


def packed_slots(words: UInt32[Array, "n w"], edges: int) -> tuple[Array, Array, Array, Array]:
    """For each edge: its receiver, the word with its bit, rank of the bit among set ones, and if it is used."""
    number = jax.lax.population_count(words).astype(jnp.int32).reshape(-1)
    first = jnp.cumsum(number, dtype=jnp.int32) - number
    index = jnp.repeat(jnp.arange(number.shape[0], dtype=jnp.int32), number, total_repeat_length=edges)
    edge = jnp.arange(edges, dtype=jnp.int32)
    return index // words.shape[1], index % words.shape[1], edge - first[index], edge < number.sum()


def select_bit(words: UInt32[Array, "*s"], rank: Int32[Array, "*s"], platform: str) -> Int32[Array, "*s"]:
    """Position, in each word, of the set bit with `rank` set bits below it; by bisection."""

    def halve(carry: tuple[Array, Array, Array], width: Array) -> tuple[tuple[Array, Array, Array], None]:
        words, rank, bit = carry
        low = words & ((jnp.uint32(1) << width) - 1)
        below = jax.lax.population_count(low).astype(jnp.int32)
        upper = rank >= below
        return (
            jnp.where(upper, words >> width, low),
            jnp.where(upper, rank - below, rank),
            jnp.where(upper, bit + width.astype(jnp.int32), bit),
        ), None

    widths = jnp.asarray([16, 8, 4, 2, 1], jnp.uint32)
    # between barriers one kernel from words to bits; fused with what uses them it would be computed for each of those
    start = jax.lax.optimization_barrier((words, rank, jnp.zeros_like(rank)))
    (_, _, bit), _ = _loop(halve, start, widths, platform, at_once=len(widths))
    return jax.lax.optimization_barrier(bit)
