"""The neighbour list of a system: choose its layout, build it, read edge vectors from it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxpto.neighbors import search
from jaxpto.neighbors.angles import Angles, build_angles
from jaxpto.neighbors.layout import WORD, Layout, choose_bins, image_vectors, whole_words
from jaxpto.neighbors.near import count_near, near_first
from jaxpto.neighbors.search import matmul
from jaxpto.neighbors.waves import choose_waves, outgrown
from jaxpto.platform import platform_of
from jaxpto.system import Leaf, System


@struct.dataclass
class Neighbors:
    """Directed edges sender -> receiver: r = positions[sender] + shift @ cell - positions[receiver].

    Attributes:
        senders: [e] index of the neighbouring atom; n (the number of atoms) marks an empty slot.
        images: [e] which lattice translation of the layout the sender has once all atoms are wrapped by `wraps`.
        wraps: [n, 3] lattice translations that wrapped the atoms into the cell when the list was built.
        packed_receivers: [e] index of the central atom (n in an empty slot) of a packed list, [0] of a dense one.
        reference_positions, reference_cell: [n, 3] and [3, 3] geometry that the list was built for, Angstrom; it may
            lie ahead of the atoms, see `refresh`.
        overflow: true once a capacity of `layout` was too small; edges, angles or wave vectors are then incomplete.
        angles: bonds and angles, if the layout has an angle cutoff.
        layout: static sizes.
    """

    senders: Int[Leaf, "*batch e"]
    images: Int[Leaf, "*batch e"]
    wraps: Int[Leaf, "*batch n 3"]
    packed_receivers: Int[Leaf, "*batch p"]
    reference_positions: Float[Leaf, "*batch n 3"]
    reference_cell: Float[Leaf, "*batch 3 3"]
    overflow: Bool[Leaf, "*batch"]
    angles: Angles | None
    layout: Layout = struct.field(pytree_node=False)

    @property
    def receivers(self) -> Int[Array, " e"]:
        """[e] index of the central atom of every slot of one system; n in the empty slots of a packed list."""
        if self.layout.edges:
            return self.packed_receivers
        return jnp.repeat(jnp.arange(self.wraps.shape[0], dtype=jnp.int32), sum(self.layout.slots))

    @property
    def shifts(self) -> Int[Array, "e 3"]:
        """[e, 3] lattice translations of the senders of one system, for unwrapped positions; 0 in empty slots."""
        images = jnp.asarray(image_vectors(self.layout), jnp.int32)[self.images]
        unwrap = self.wraps.at[self.receivers].get(mode="clip") - self.wraps.at[self.senders].get(mode="clip")
        return jnp.where((self.senders < self.wraps.shape[0])[:, None], images + unwrap, 0)


def allocate(
    systems: list[System],
    cutoff: float,
    skin: float,
    *,
    by_species: bool = False,
    packed: bool = False,
    angle_cutoff: float = 0.0,
    near_cutoff: float = 0.0,
    wave_cutoff: float = 0.0,
    headroom: float = 1.25,
) -> Layout:
    """Choose capacities for the edges and angles of all given systems, with headroom (on the host, outside `jax.jit`).

    Args:
        systems: unbatched systems of the same composition.
        cutoff, skin: Angstrom.
        by_species: one block of slots for each species present, so that a slot's species is known statically.
        packed: pack the edges of all atoms together instead of giving each atom its own slots.
        angle_cutoff: longest bond whose angles are listed, Angstrom; 0 for none. Angles need a packed list.
        near_cutoff: cutoff within which edges of each block come first, Angstrom; 0 for none. Needs `by_species`.
        wave_cutoff: longest wave vector of a sum over the reciprocal lattice, 1/Angstrom; 0 for none.
        headroom: factor on the largest counts found.

    Raises:
        ValueError: both `by_species` and `packed`, angles without `packed`, edges sorted by reach without `by_species`,
            or an angle cutoff beyond the cutoff.
    """
    if by_species and packed:
        raise ValueError("by_species=True needs slots of each atom, packed=True has none; choose one of them")
    if angle_cutoff and (not packed or angle_cutoff > cutoff):
        raise ValueError(f"angles up to {angle_cutoff} A need packed=True and a cutoff ({cutoff} A) at least as long")
    if near_cutoff and not by_species:
        raise ValueError(f"edges within {near_cutoff} A first need by_species=True, whose blocks they are sorted in")
    cells = np.stack([np.asarray(s.cell) for s in systems])
    bins, stencil = choose_bins(cells, cutoff + skin)
    species = tuple(dict.fromkeys(np.asarray(systems[0].numbers).tolist())) if by_species else ()
    layout = Layout(float(cutoff), float(skin), bins, stencil, (), species, (), platform=platform_of(systems))
    layout = dataclasses.replace(layout, wave_cutoff=float(wave_cutoff), waves=choose_waves(cells, wave_cutoff))
    n_candidates = np.max([jax.device_get(_count_candidates(s, layout)) for s in systems], axis=0)
    # When the stencil covers the cell a whole number of times every bin has the same candidates, for good.
    fixed = all((2 * s + 1) % b == 0 for b, s in zip(bins, stencil, strict=True))
    layout = dataclasses.replace(
        layout, candidates=tuple(whole_words(c * (1.0 if fixed else headroom)) for c in n_candidates.tolist())
    )
    counts = [jax.device_get(_count_edges(system, layout)) for system in systems]
    if packed:
        layout = dataclasses.replace(layout, edges=math.ceil(max(int(c.sum()) for c in counts) * headroom) + 1)
        return _allocate_angles(systems, layout, angle_cutoff, headroom) if angle_cutoff else layout
    most = np.max([c.max(axis=1) for c in counts], axis=0).tolist()
    layout = dataclasses.replace(layout, slots=tuple(math.ceil(m * headroom) + 1 for m in most))
    return _allocate_near(systems, layout, near_cutoff, headroom) if near_cutoff else layout


@functools.partial(jax.jit, static_argnames="layout", inline=True)
def build(system: System, layout: Layout) -> Neighbors:
    """Build the neighbour list of one system, compiled; it can be traced and vmapped, with `layout` static."""
    n = system.positions.shape[0]
    words, codes, bin_of, wraps, overflow = search.adjacency(system, layout)
    counts = [search.edge_counts(block) for block in search.split_blocks(words, layout)]
    if layout.edges:
        receivers, word_index, rank, filled = search.packed_slots(words, layout.edges)
        overflow |= sum(c.sum() for c in counts) > layout.edges
        word = words[receivers, word_index]
    else:
        slots = [
            search.dense_slots(b, s, layout.platform)
            for b, s in zip(search.split_blocks(words, layout), layout.slots, strict=True)
        ]
        overflow |= jnp.stack([c.max() > s for c, s in zip(counts, layout.slots, strict=True)]).any()
        first_words = np.cumsum([0, *layout.candidates]) // WORD
        word_index = jnp.concatenate([s[0] + int(first) for s, first in zip(slots, first_words, strict=False)], axis=1)
        rank, word, filled = (jnp.concatenate([s[part] for s in slots], axis=1) for part in (1, 2, 3))
        receivers = jnp.arange(n, dtype=jnp.int32)[:, None]
    if layout.wave_cutoff:
        overflow |= outgrown(system.cell, layout.wave_cutoff, layout.waves)
    bit = search.select_bit(word, rank, layout.platform)
    code = codes.at[bit, bin_of[receivers], word_index].get(mode="promise_in_bounds")
    neighbors = Neighbors(
        senders=jnp.where(filled, code % n, n).reshape(-1),
        images=jnp.where(filled, code // n, 0).astype(jnp.int16).reshape(-1),
        wraps=wraps,
        packed_receivers=jnp.where(filled, receivers, n) if layout.edges else jnp.zeros(0, jnp.int32),
        reference_positions=system.positions,
        reference_cell=system.cell,
        overflow=overflow,
        angles=None,
        layout=layout,
    )
    if layout.near:
        shape = (n, sum(layout.slots))
        vectors, senders, images = edge_vectors(system, neighbors), neighbors.senders, neighbors.images
        senders, images, crowded = near_first(
            vectors.reshape(*shape, 3), senders.reshape(shape), images.reshape(shape), layout
        )
        neighbors = dataclasses.replace(
            neighbors, senders=senders.reshape(-1), images=images.reshape(-1), overflow=overflow | crowded
        )
    if not layout.angle_cutoff:
        return neighbors
    angles = build_angles(
        neighbors.senders,
        neighbors.receivers,
        neighbors.images,
        edge_vectors(system, neighbors),
        n,
        len(image_vectors(layout)),
        layout.angle_cutoff + layout.skin,
        (layout.bonds, layout.angles),
    )
    return dataclasses.replace(neighbors, angles=angles, overflow=overflow | angles.overflow)


def edge_vectors(system: System, neighbors: Neighbors) -> Float[Array, "e 3"]:
    """Vectors receiver -> sender of every slot, Angstrom; empty slots hold a vector longer than cutoff + skin.

    That filler keeps values and gradients of empty slots finite: it is far from r = 0 and beyond every cutoff.
    """
    n = system.positions.shape[0]
    wrapped, table = _all_images(system, neighbors)
    senders = table.at[neighbors.images.astype(jnp.int32) * n + neighbors.senders].get(mode="clip")
    if neighbors.layout.edges:
        vectors = senders - wrapped.at[neighbors.packed_receivers].get(mode="clip")
    else:
        vectors = (senders.reshape(n, -1, 3) - wrapped[:, None, :]).reshape(-1, 3)
    return jnp.where((neighbors.senders < n)[:, None], vectors, _filler(neighbors.layout, vectors)[None, :])


def edge_rows(
    system: System, neighbors: Neighbors, first: int | Int32[Array, ""] = 0
) -> Callable[[Int32[Array, " m"]], tuple[Int[Array, "m s"], Float[Array, "m s 3"]]]:
    """A function that gives senders and `edge_vectors` of some rows of a dense list; shared work is done once.

    Args:
        system: the system, n atoms.
        neighbors: its list, or consecutive rows of it.
        first: index of the atom in the first of these rows.
    """
    n = system.positions.shape[0]
    wrapped, table = _all_images(system, neighbors)
    senders, images = (x.reshape(-1, sum(neighbors.layout.slots)) for x in (neighbors.senders, neighbors.images))

    def rows(some: Int32[Array, " m"]) -> tuple[Int[Array, "m s"], Float[Array, "m s 3"]]:
        own, image = (x.at[some].get(mode="promise_in_bounds") for x in (senders, images))
        vectors = table.at[image.astype(jnp.int32) * n + own].get(mode="clip")
        vectors = vectors - wrapped.at[first + some].get(mode="promise_in_bounds")[:, None, :]
        return own, jnp.where((own < n)[:, :, None], vectors, _filler(neighbors.layout, vectors)[None, None, :])

    return rows


def _all_images(system: System, neighbors: Neighbors) -> tuple[Float[Array, "n 3"], Float[Array, "i 3"]]:
    """Wrapped positions, and a table of the positions in all images."""
    # One gather of rows from this table is 18 times as fast as a product of shifts and cell for each edge.
    wrapped = system.positions - matmul(neighbors.wraps.astype(system.cell.dtype), system.cell)
    translations = matmul(jnp.asarray(image_vectors(neighbors.layout), system.cell.dtype), system.cell)
    return wrapped, (translations[:, None, :] + wrapped[None, :, :]).reshape(-1, 3)


def _filler(layout: Layout, like: Array) -> Float[Array, "3"]:
    return jnp.asarray([2.0 * (layout.cutoff + layout.skin), 0.0, 0.0], like.dtype)


def _allocate_near(systems: list[System], layout: Layout, near_cutoff: float, headroom: float) -> Layout:
    layout = dataclasses.replace(layout, near_cutoff=float(near_cutoff))
    most = np.max([jax.device_get(_count_near(system, layout)) for system in systems], axis=0).tolist()
    return dataclasses.replace(layout, near=tuple(math.ceil(m * headroom) + 1 for m in most))


@jax.jit(static_argnames="layout")
def _count_near(system: System, layout: Layout) -> Int32[Array, " b"]:
    vectors = edge_vectors(system, build(system, layout))
    return count_near(vectors.reshape(system.positions.shape[0], -1, 3), layout)


def _allocate_angles(systems: list[System], layout: Layout, angle_cutoff: float, headroom: float) -> Layout:
    reach = angle_cutoff + layout.skin
    most = np.max([jax.device_get(_count_angles(system, layout, reach)) for system in systems], axis=0)
    bonds, angles = (math.ceil(m * headroom) + 1 for m in most.tolist())
    return dataclasses.replace(layout, angle_cutoff=float(angle_cutoff), bonds=bonds, angles=angles)


@jax.jit(static_argnames=("layout", "reach"))
def _count_angles(system: System, layout: Layout, reach: float) -> Int32[Array, "2"]:
    neighbors = build(system, layout)
    short = jnp.sum(edge_vectors(system, neighbors) ** 2, axis=1) < reach**2
    number = jnp.zeros(system.positions.shape[0], jnp.int32).at[neighbors.receivers].add(short, mode="drop")
    return jnp.stack([number, number * (number - 1)]).sum(axis=1, dtype=jnp.int32)


@jax.jit(static_argnames="layout")
def _count_candidates(system: System, layout: Layout) -> Int32[Array, " k"]:
    number = search.sort_into_bins(system, layout)[-1]
    return number[:, search.stencil_tables(layout)[0]].sum(axis=2, dtype=jnp.int32).max(axis=1)


@jax.jit(static_argnames="layout")
def _count_edges(system: System, layout: Layout) -> Int32[Array, "k n"]:
    words = search.adjacency(system, layout)[0]
    return jnp.stack([search.edge_counts(block) for block in search.split_blocks(words, layout)])
