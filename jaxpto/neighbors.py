"""Periodic neighbour list on the device: every image of every pair within cutoff + skin.

One mechanism serves 5-atom cells and 20,000 atoms, at a cost proportional to the number of atoms:

1. Atoms are sorted by species and by bins of the (triclinic) unit cell. A bin's candidates are the atoms in the stencil
   of bins around it, wide enough for cutoff + skin; a stencil that reaches over the cell's edge yields further images.
2. Each atom's distances to the candidates of its bin become bits, 32 to a word.
3. Each slot of the list looks up "its" set bit (rank and select by population counts). This takes gathers only, where
   compaction by prefix sums and scatter is several times slower on a CPU.

The stages are loops (`lax.scan`) because XLA's CPU compiler would otherwise fuse them and recompute the candidates for
each distance.

jax-md's `partition` stays unused because it keeps one image of a pair (wrong once the cutoff exceeds half the cell,
as usual here) and has no blocks of slots by species, which let a model know a slot's species statically.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from jaxpto.system import Leaf, System

_WORD = 32
_SHRINKAGE = 0.97  # a cell's heights may shrink by this factor before the stencil is too short


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static sizes of a neighbour list.

    Attributes:
        cutoff: the model's cutoff, Angstrom.
        skin: extra distance within which edges are kept, so that the list survives some motion, Angstrom.
        bins: number of bins along each lattice vector.
        stencil: bins looked through on either side along each lattice vector.
        candidates: atoms of each block that the stencil of a bin can hold, images counted (a multiple of 32).
        species: atomic numbers of the slot blocks, or () for one block of any species.
        slots: edges each atom can hold in each block; the list is then the dense matrix [n, sum(slots)], row-major by
            receiver. () for a packed list.
        edges: 0 for a dense list; otherwise the edges are packed to the front of arrays of this length.
    """

    cutoff: float
    skin: float
    bins: tuple[int, int, int]
    stencil: tuple[int, int, int]
    candidates: tuple[int, ...]
    species: tuple[int, ...]
    slots: tuple[int, ...]
    edges: int = 0


@struct.dataclass
class Neighbors:
    """Directed edges sender -> receiver: r = positions[sender] + shift @ cell - positions[receiver].

    Attributes:
        senders: [e] index of the neighbouring atom; n (the number of atoms) marks an empty slot.
        images: [e] which lattice translation of the layout the sender has once all atoms are wrapped by `wraps`.
        wraps: [n, 3] lattice translations that wrapped the atoms into the cell when the list was built.
        packed_receivers: [e] index of the central atom (n in an empty slot) of a packed list, [0] of a dense one.
        reference_positions, reference_cell: where the list was built, Angstrom.
        overflow: true once some capacity of `layout` was too small; the edges are then incomplete.
        layout: static sizes.
    """

    senders: Int[Leaf, "*batch e"]
    images: Int[Leaf, "*batch e"]
    wraps: Int[Leaf, "*batch n 3"]
    packed_receivers: Int[Leaf, "*batch p"]
    reference_positions: Float[Leaf, "*batch n 3"]
    reference_cell: Float[Leaf, "*batch 3 3"]
    overflow: Bool[Leaf, "*batch"]
    layout: Layout = struct.field(pytree_node=False)

    @property
    def receivers(self) -> Int[Array, " e"]:
        """Index of the central atom of every slot of one system; n in the empty slots of a packed list."""
        if self.layout.edges:
            return self.packed_receivers
        return jnp.repeat(jnp.arange(self.wraps.shape[0], dtype=jnp.int32), sum(self.layout.slots))

    @property
    def shifts(self) -> Int[Array, "e 3"]:
        """Lattice translations of the senders of one system, for unwrapped positions; 0 in empty slots."""
        images = jnp.asarray(_image_vectors(self.layout), jnp.int32)[self.images]
        unwrap = self.wraps.at[self.receivers].get(mode="clip") - self.wraps.at[self.senders].get(mode="clip")
        return jnp.where((self.senders < self.wraps.shape[0])[:, None], images + unwrap, 0)


def heights(cell: np.ndarray) -> np.ndarray:
    """Perpendicular heights [3] of a cell [3, 3], Angstrom."""
    return np.abs(np.linalg.det(cell)) / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)


def allocate(
    systems: list[System],
    cutoff: float,
    skin: float,
    *,
    by_species: bool = False,
    packed: bool = False,
    headroom: float = 1.25,
) -> Layout:
    """Choose capacities that hold the edges of every given system with some headroom (on the host, outside jit).

    Args:
        systems: unbatched systems of the same composition.
        cutoff, skin: Angstrom.
        by_species: one block of slots for each species present, so that a slot's species is known statically.
        packed: pack the edges of all atoms together instead of giving each atom its own slots.
        headroom: factor on the largest count found.

    Raises:
        ValueError: both `by_species` and `packed`.
    """
    if by_species and packed:
        raise ValueError("by_species=True needs slots of each atom, packed=True has none; choose one of them")
    bins, stencil = _choose_bins(np.stack([np.asarray(s.cell) for s in systems]), cutoff + skin)
    species = tuple(dict.fromkeys(np.asarray(systems[0].numbers).tolist())) if by_species else ()
    layout = Layout(float(cutoff), float(skin), bins, stencil, (), species, ())
    n_candidates = np.max([jax.device_get(_count_candidates(s, layout)) for s in systems], axis=0)
    # When the stencil covers the cell a whole number of times every bin has the same candidates, for good.
    fixed = all((2 * s + 1) % b == 0 for b, s in zip(bins, stencil, strict=True))
    layout = dataclasses.replace(
        layout, candidates=tuple(_whole_words(c * (1.0 if fixed else headroom)) for c in n_candidates.tolist())
    )
    counts = [jax.device_get(_count_edges(system, layout)) for system in systems]
    if packed:
        return dataclasses.replace(layout, edges=math.ceil(max(int(c.sum()) for c in counts) * headroom) + 1)
    most = np.max([c.max(axis=1) for c in counts], axis=0).tolist()
    return dataclasses.replace(layout, slots=tuple(math.ceil(m * headroom) + 1 for m in most))


def grow(layout: Layout, cells: np.ndarray | None = None, factor: float = 1.3) -> Layout:
    """Enlarge every capacity of a layout that overflowed.

    Args:
        layout: what overflowed.
        cells: [..., 3, 3] cells that the list must serve, Angstrom; the stencil changes only if one of them needs it.
            Without them it is made to serve a cell with heights smaller by another 5 percent.
        factor: on the capacities.
    """
    reach = layout.cutoff + layout.skin
    smallest = reach * np.asarray(layout.bins) / np.asarray(layout.stencil)  # heights served by the present stencil
    needed = smallest / 1.05 if cells is None else _smallest_heights(cells) * _SHRINKAGE
    bins, stencil = layout.bins, layout.stencil
    if (needed < smallest).any():
        bins, stencil = _choose_bins(np.diag(np.minimum(needed, smallest) / _SHRINKAGE), reach)
    width = lambda b, s: math.prod((2 * j + 1) / i for i, j in zip(b, s, strict=True))  # noqa: E731
    wider = max(1.0, width(bins, stencil) / width(layout.bins, layout.stencil))
    larger = lambda capacity: math.ceil(capacity * factor) + 1  # noqa: E731
    layout = dataclasses.replace(layout, bins=bins, stencil=stencil)
    return dataclasses.replace(
        layout,
        candidates=tuple(_whole_words(larger(c) * wider) for c in layout.candidates),
        slots=tuple(larger(s) for s in layout.slots),
        edges=larger(layout.edges) if layout.edges else 0,
    )


def build(system: System, layout: Layout) -> Neighbors:
    """Build the neighbour list of one system (traceable and vmappable; `layout` is static)."""
    n = system.positions.shape[0]
    words, codes, bin_of, wraps, overflow = _adjacency(system, layout)
    counts = [_edge_counts(block) for block in _split_blocks(words, layout)]
    if layout.edges:
        receivers, word_index, rank, filled = _packed_slots(words, layout.edges)
        overflow |= sum(c.sum() for c in counts) > layout.edges
        word = words[receivers, word_index]
    else:
        slots = [_dense_slots(b, s) for b, s in zip(_split_blocks(words, layout), layout.slots, strict=True)]
        overflow |= jnp.stack([c.max() > s for c, s in zip(counts, layout.slots, strict=True)]).any()
        first_words = np.cumsum([0, *layout.candidates]) // _WORD
        word_index = jnp.concatenate([s[0] + int(first) for s, first in zip(slots, first_words, strict=False)], axis=1)
        rank, word, filled = (jnp.concatenate([s[part] for s in slots], axis=1) for part in (1, 2, 3))
        receivers = jnp.arange(n, dtype=jnp.int32)[:, None]
    bit = _select_bit(word, rank)
    code = codes.at[bit, bin_of[receivers], word_index].get(mode="promise_in_bounds")
    return Neighbors(
        senders=jnp.where(filled, code % n, n).reshape(-1),
        images=jnp.where(filled, code // n, 0).astype(jnp.int16).reshape(-1),
        wraps=wraps,
        packed_receivers=jnp.where(filled, receivers, n) if layout.edges else jnp.zeros(0, jnp.int32),
        reference_positions=system.positions,
        reference_cell=system.cell,
        overflow=overflow,
        layout=layout,
    )


def needs_rebuild(neighbors: Neighbors, system: System) -> Bool[Array, ""]:
    """Whether some pair outside the list may have come within the cutoff since it was built.

    With F the deformation from the reference cell to the present one, x = F (x_ref + u), a pair now at distance r was
    at |F^-1 r - (u_j - u_i)| <= r |F^-1| + |u_j| + |u_i| with the spectral norm of F^-1; the list stays complete while
    that is below cutoff + skin. False if something is not a number: no list would help.
    """
    layout = neighbors.layout
    back_strain = _matmul(_inverse(system.cell), neighbors.reference_cell)
    moved = _matmul(system.positions, back_strain) - neighbors.reference_positions
    moved = moved - moved.mean(0)[None, :]  # a common drift moves no pair
    squares = jnp.sum(moved**2, axis=-1)
    farthest = jnp.max(squares)
    second = jnp.max(jnp.where(jnp.arange(squares.shape[0]) == jnp.argmax(squares), 0.0, squares))
    strain = back_strain - jnp.eye(3, dtype=back_strain.dtype)
    # |1 + E|^2 = 1 + largest eigenvalue of E + E^T + E E^T
    stretch = jnp.sqrt(1.0 + _largest_eigenvalue(strain + strain.T + _matmul(strain, strain.T)))
    return layout.cutoff * stretch + jnp.sqrt(farthest) + jnp.sqrt(second) > layout.cutoff + layout.skin


def refresh(systems: System, coming: System, neighbors: Neighbors, active: Bool[Array, " r"]) -> Neighbors:
    """Rebuild the lists of those replicas that need it; the one decision is outside of any `vmap`.

    A replica's list depends on its own trajectory only. Replicas that are not active are left as they are.

    Args:
        systems: batched, where lists are built.
        coming: batched, where the lists must still hold (`systems` itself, or positions extrapolated to the next step).
        neighbors: batched; its overflow flags stay raised once they are.
        active: [r] replicas that run.
    """
    needed = active & jax.vmap(needs_rebuild)(neighbors, coming)

    # A loop of mostly no turns: unlike a branch that is not taken (`lax.cond`) it does not copy the lists.
    def some(carry: tuple[Neighbors, Array]) -> Array:
        return jnp.any(carry[1])

    def turn(carry: tuple[Neighbors, Array]) -> tuple[Neighbors, Array]:
        # A CPU builds one list after another, so that only those in need cost anything; others build all at once.
        return jax.lax.platform_dependent(systems, *carry, cpu=_rebuild_first, default=_rebuild_all)

    return jax.lax.while_loop(some, turn, (neighbors, needed))[0]


def edge_vectors(system: System, neighbors: Neighbors) -> Float[Array, "e 3"]:
    """Vectors receiver -> sender of every slot, Angstrom; empty slots hold a vector longer than cutoff + skin.

    The filler keeps padded slots finite, away from r = 0 and outside every cutoff, for values and gradients alike.
    """
    n = system.positions.shape[0]
    layout = neighbors.layout
    wrapped = system.positions - _matmul(neighbors.wraps.astype(system.cell.dtype), system.cell)
    # One gather of rows from a table of all images is 18 times as fast as a product of shifts and cell for each edge.
    translations = _matmul(jnp.asarray(_image_vectors(layout), system.cell.dtype), system.cell)
    table = (translations[:, None, :] + wrapped[None, :, :]).reshape(-1, 3)
    senders = table.at[neighbors.images.astype(jnp.int32) * n + neighbors.senders].get(mode="clip")
    if layout.edges:
        vectors = senders - wrapped.at[neighbors.packed_receivers].get(mode="clip")
    else:
        vectors = (senders.reshape(n, -1, 3) - wrapped[:, None, :]).reshape(-1, 3)
    filler = jnp.asarray([2.0 * (layout.cutoff + layout.skin), 0.0, 0.0], vectors.dtype)
    return jnp.where((neighbors.senders < n)[:, None], vectors, filler[None, :])


def _rebuild_first(systems: System, neighbors: Neighbors, needed: Bool[Array, " r"]) -> tuple[Neighbors, Array]:
    first = jnp.argmax(needed)
    new = _rebuild(*jax.tree.map(lambda leaf: leaf[first], (systems, neighbors)))
    return jax.tree.map(lambda leaf, part: leaf.at[first].set(part), neighbors, new), needed.at[first].set(False)


def _rebuild_all(systems: System, neighbors: Neighbors, needed: Bool[Array, " r"]) -> tuple[Neighbors, Array]:
    def pick(need: Array, system: System, old: Neighbors) -> Neighbors:
        return jax.tree.map(lambda a, b: jnp.where(need, a, b), _rebuild(system, old), old)

    return jax.vmap(pick)(needed, systems, neighbors), jnp.zeros_like(needed)


def _rebuild(system: System, old: Neighbors) -> Neighbors:
    new = build(system, old.layout)
    return new.replace(overflow=old.overflow | new.overflow)  # ty: ignore[missing-attribute]


def _smallest_heights(cells: np.ndarray) -> np.ndarray:
    flat = np.asarray(cells, np.float64).reshape(-1, 3, 3)
    return np.min([heights(cell) for cell in flat], axis=0)


def _choose_bins(cells: np.ndarray, reach: float) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Bins just wider than the reach, and stencil, for cells [..., 3, 3] whose heights may still shrink a little.

    Narrower bins would mean fewer candidates of an atom, but joining their many runs costs more than that saves.
    """
    smallest = _smallest_heights(cells) * _SHRINKAGE
    bins = np.maximum(1, np.floor(smallest / reach))
    return _three(bins), _three(np.ceil(reach * bins / smallest))


def _three(values: np.ndarray) -> tuple[int, int, int]:
    return int(values[0]), int(values[1]), int(values[2])


def _whole_words(capacity: float) -> int:
    return _WORD * max(1, math.ceil(capacity / _WORD))


def _image_extent(layout: Layout) -> list[int]:
    return [math.ceil(s / b) for s, b in zip(layout.stencil, layout.bins, strict=True)]


def _image_vectors(layout: Layout) -> np.ndarray:
    """Lattice translations [images, 3] that a stencil can reach."""
    return np.asarray(list(itertools.product(*[range(-e, e + 1) for e in _image_extent(layout)])), np.int32)


def _stencil_tables(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """For each bin and offset of the stencil: the flat bin there, and its image as an index into `_image_vectors`."""
    bins = np.asarray(layout.bins)
    extent = np.asarray(_image_extent(layout))
    here = np.asarray(list(itertools.product(*[range(b) for b in layout.bins])))
    offsets = np.asarray(list(itertools.product(*[range(-s, s + 1) for s in layout.stencil])))
    looked = here[:, None, :] + offsets[None, :, :]
    image = looked // bins
    flat_bin = np.ravel_multi_index(tuple(np.moveaxis(looked - image * bins, -1, 0)), layout.bins)
    flat_image = np.ravel_multi_index(tuple(np.moveaxis(image + extent, -1, 0)), tuple(2 * extent + 1))
    return flat_bin.astype(np.int32), flat_image.astype(np.int32)


def _matmul(a: Array, b: Array) -> Array:
    # accelerators would otherwise round positions to 10 bits
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _inverse(cell: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    reciprocal = jnp.cross(cell[jnp.array([1, 2, 0])], cell[jnp.array([2, 0, 1])])
    return reciprocal.T / jnp.dot(cell[0], reciprocal[0])


def _largest_eigenvalue(symmetric: Float[Array, "3 3"]) -> Float[Array, ""]:
    """Upper bound (exact for uniaxial and isotropic matrices, at most a third too large) q + 2 p of the closed form
    q + 2 p cos(phi), with q = tr(A) / 3 and 6 p^2 = |A - q|^2."""
    q = jnp.trace(symmetric) / 3.0
    return q + 2.0 * jnp.sqrt(jnp.sum((symmetric - q * jnp.eye(3, dtype=symmetric.dtype)) ** 2) / 6.0)


def _sort_into_bins(
    system: System, layout: Layout
) -> tuple[Int32[Array, "n 3"], Int32[Array, " n"], Int32[Array, " n"], Int32[Array, "k b"], Int32[Array, "k b"]]:
    """Wraps and flat bin of each atom, atoms in order of (block, bin), and first and number of each block and bin."""
    n = system.positions.shape[0]
    fractional = _matmul(system.positions, _inverse(system.cell))
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


@jax.jit(static_argnames="layout")
def _count_candidates(system: System, layout: Layout) -> Int32[Array, " k"]:
    number = _sort_into_bins(system, layout)[-1]
    return number[:, _stencil_tables(layout)[0]].sum(axis=2, dtype=jnp.int32).max(axis=1)


@jax.jit(static_argnames="layout")
def _count_edges(system: System, layout: Layout) -> Int32[Array, "k n"]:
    words = _adjacency(system, layout)[0]
    return jnp.stack([_edge_counts(block) for block in _split_blocks(words, layout)])


def _split_blocks(words: UInt32[Array, "n w"], layout: Layout) -> list[UInt32[Array, "n _"]]:
    return jnp.split(words, (np.cumsum(layout.candidates)[:-1] // _WORD).tolist(), axis=1)


def _edge_counts(words: UInt32[Array, "n w"]) -> Int32[Array, " n"]:
    return jnp.sum(jax.lax.population_count(words), axis=1, dtype=jnp.int32)


def _adjacency(
    system: System, layout: Layout
) -> tuple[UInt32[Array, "n w"], Int32[Array, "32 b w"], Int32[Array, " n"], Int32[Array, "n 3"], Bool[Array, ""]]:
    """Bit words over the candidates of each atom's bin, codes (image * n + sender) of the candidates, bin and wraps
    of each atom, and whether stencil or candidates overflow."""
    n = system.positions.shape[0]
    dtype = system.positions.dtype
    wraps, bin_of, order, first, number = _sort_into_bins(system, layout)
    wrapped = system.positions - _matmul(wraps.astype(dtype), system.cell)
    translations = _matmul(jnp.asarray(_image_vectors(layout), dtype), system.cell)
    looked, images = (jnp.asarray(table) for table in _stencil_tables(layout))

    reach = layout.cutoff + layout.skin
    spacing = 1.0 / jnp.linalg.norm(_inverse(system.cell), axis=0) / jnp.asarray(layout.bins, dtype)
    overflow = jnp.any(spacing * jnp.asarray(layout.stencil, dtype) < reach)
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
    (words, _), _ = jax.lax.scan(add_bit, (nothing, jnp.uint32(1)), (x, y, z, code))
    return words, code, bin_of, wraps, overflow


def _as_words(candidates: Array) -> Array:
    """[bins, capacity] -> [32, bins, words]."""
    return jnp.moveaxis(candidates.reshape(candidates.shape[0], _WORD, -1), 1, 0)


def _join_runs(
    first: Int32[Array, "b o"],
    number: Int32[Array, "b o"],
    images: Int32[Array, "b o"],
    order: Int32[Array, " n"],
    wrapped: Float[Array, "n 3"],
    translations: Float[Array, "t 3"],
    capacity: int,
) -> tuple[Int32[Array, "b c"], Float[Array, "b c 3"], Int32[Array, ""]]:
    """Join the runs of sorted atoms that the o offsets of each bin look at: codes, positions, and the largest total."""
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


def _dense_slots(words: UInt32[Array, "n w"], slots: int) -> tuple[Array, Array, Array, Array]:
    """For each slot: index of the word with its bit, the bit's rank among its set bits, the word, and if it exists."""
    n = words.shape[0]
    slot = jnp.arange(slots, dtype=jnp.int32)[None, :]
    number = jax.lax.population_count(words).astype(jnp.int32)

    def accumulate(total: Array, number: Array) -> tuple[Array, Array]:
        return total + number, total

    def find(index: Array, first: Array) -> tuple[Array, None]:
        return index + (first[:, None] <= slot).astype(jnp.int32), None

    total, first = jax.lax.scan(accumulate, jnp.zeros(n, jnp.int32), number.T)
    index, _ = jax.lax.scan(find, jnp.full((n, slots), -1, jnp.int32), first)
    rows = jnp.arange(n)[:, None]
    rank = slot - first.at[index, rows].get(mode="promise_in_bounds")
    return index, rank, words.at[rows, index].get(mode="promise_in_bounds"), slot < total[:, None]


def _packed_slots(words: UInt32[Array, "n w"], edges: int) -> tuple[Array, Array, Array, Array]:
    """For each edge: its receiver, the word with its bit, the bit's rank among the set bits there, and if it exists."""
    number = jax.lax.population_count(words).astype(jnp.int32).reshape(-1)
    first = jnp.cumsum(number, dtype=jnp.int32) - number
    index = jnp.repeat(jnp.arange(number.shape[0], dtype=jnp.int32), number, total_repeat_length=edges)
    edge = jnp.arange(edges, dtype=jnp.int32)
    return index // words.shape[1], index % words.shape[1], edge - first[index], edge < number.sum()


def _select_bit(words: UInt32[Array, "*s"], rank: Int32[Array, "*s"]) -> Int32[Array, "*s"]:
    """Position of the set bit of each word that has `rank` set bits below it, by bisection."""

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
    (_, _, bit), _ = jax.lax.scan(halve, (words, rank, jnp.zeros_like(rank)), widths)
    return bit
