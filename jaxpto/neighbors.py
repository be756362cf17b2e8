"""Periodic neighbour list on the device: every image of every pair within cutoff + skin.

One mechanism serves 5-atom cells and 20,000 atoms: atoms are sorted into bins of the (triclinic) unit cell, and each atom
looks through a stencil of bins wide enough for the cutoff. A stencil that reaches over the cell's edge yields further images.
jax-md's `partition` stays unused because it keeps one image of a pair, which is wrong once the cutoff exceeds half the cell.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxpto.system import System


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static sizes of a neighbour list.

    Attributes:
        cutoff: the model's cutoff, Angstrom.
        skin: extra distance within which edges are kept, so that the list survives some motion, Angstrom.
        bins: number of bins along each lattice vector.
        stencil: bins looked through on either side along each lattice vector.
        bin_capacity: atoms a bin can hold.
        species: atomic numbers of the slot blocks, or () for one block of any species.
        slots: edges each atom can hold in each block; the list is then the dense matrix [n, sum(slots)], row-major by receiver.
        edges: 0 for a dense list; otherwise the edges are packed to the front of arrays of this length.
    """

    cutoff: float
    skin: float
    bins: tuple[int, int, int]
    stencil: tuple[int, int, int]
    bin_capacity: int
    species: tuple[int, ...]
    slots: tuple[int, ...]
    edges: int = 0


@struct.dataclass
class Neighbors:
    """Directed edges sender -> receiver: r = positions[sender] + shift @ cell - positions[receiver].

    Attributes:
        senders: [e] index of the neighbouring atom; n (the number of atoms) marks an empty slot.
        receivers: [e] index of the central atom; n in the empty slots of a packed list.
        shifts: [e, 3] lattice translations of the sender (positions are unwrapped, so these can be any integers).
        reference_positions, reference_cell: where the list was built, Angstrom.
        overflow: true once some capacity of `layout` was too small; the edges are then incomplete.
        layout: static sizes.
    """

    senders: Int[Array, "*batch e"]
    receivers: Int[Array, "*batch e"]
    shifts: Int[Array, "*batch e 3"]
    reference_positions: Float[Array, "*batch n 3"]
    reference_cell: Float[Array, "*batch 3 3"]
    overflow: Bool[Array, "*batch"]
    layout: Layout = struct.field(pytree_node=False)


def heights(cell: np.ndarray) -> np.ndarray:
    """Perpendicular heights [3] of a cell [3, 3], Angstrom."""
    return np.abs(np.linalg.det(cell)) * 1.0 / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)


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
    """
    reach = cutoff + skin
    cells = [np.asarray(s.cell, np.float64) for s in systems]
    smallest = np.min([heights(cell) for cell in cells], axis=0) * 0.97  # the cell may shrink this much before a regrow
    n = systems[0].positions.shape[0]
    bins = np.maximum(1, np.floor(smallest / reach)).astype(int)
    stencil = np.ceil(reach * bins / smallest).astype(int)
    species = tuple(dict.fromkeys(np.asarray(systems[0].numbers).tolist())) if by_species else ()
    layout = Layout(
        cutoff=float(cutoff),
        skin=float(skin),
        bins=tuple(int(b) for b in bins),
        stencil=tuple(int(s) for s in stencil),
        bin_capacity=n,
        species=species,
        slots=(1,) * max(1, len(species)),
    )
    counts = [jax.device_get(count(system, layout)) for system in systems]
    bin_capacity = min(n, math.ceil(max(int(c[0]) for c in counts) * headroom))
    slots = tuple(
        math.ceil(max(int(c[1][block]) for c in counts) * headroom) + 1 for block in range(max(1, len(species)))
    )
    edges = math.ceil(max(int(c[2]) for c in counts) * headroom) + 1 if packed else 0
    return dataclasses.replace(layout, bin_capacity=bin_capacity, slots=slots, edges=edges)


def grow(layout: Layout, factor: float = 1.3) -> Layout:
    """Enlarge every capacity of a layout that overflowed; the stencil gains a bin on either side."""
    larger = lambda capacity: math.ceil(capacity * factor) + 1  # noqa: E731
    return dataclasses.replace(
        layout,
        stencil=tuple(s + 1 for s in layout.stencil),
        bin_capacity=larger(layout.bin_capacity),
        slots=tuple(larger(s) for s in layout.slots),
        edges=larger(layout.edges) if layout.edges else 0,
    )


def _candidates(
    system: System, layout: Layout
) -> tuple[Int[Array, "n c"], Int[Array, "n c 3"], Bool[Array, "n c"], Int[Array, ""], Bool[Array, ""]]:
    """Every (sender, shift) in the stencil of each atom, whether it is an edge, the fullest bin, and stencil too short."""
    n = system.positions.shape[0]
    fractional = system.positions @ jnp.linalg.inv(system.cell)
    wrap = jnp.floor(fractional)
    bins = jnp.asarray(layout.bins, jnp.int32)
    bin_of = jnp.clip(((fractional - wrap) * bins[None, :]).astype(jnp.int32), 0, bins[None, :] - 1)
    flat_bin = (bin_of[:, 0] * layout.bins[1] + bin_of[:, 1]) * layout.bins[2] + bin_of[:, 2]
    n_bins = math.prod(layout.bins)

    order = jnp.argsort(flat_bin)
    sorted_bin = flat_bin[order]
    rank = jnp.arange(n) - jnp.searchsorted(sorted_bin, sorted_bin)
    table = jnp.full((n_bins, layout.bin_capacity), n, jnp.int32)
    table = table.at[sorted_bin, rank].set(order.astype(jnp.int32), mode="drop")
    fullest = rank.max() + 1

    offsets = np.stack(np.meshgrid(*[np.arange(-s, s + 1) for s in layout.stencil], indexing="ij"), -1).reshape(-1, 3)
    looked = bin_of[:, None, :] + jnp.asarray(offsets, jnp.int32)[None, :, :]
    image = jnp.floor_divide(looked, bins[None, None, :])
    inside = looked - image * bins[None, None, :]
    flat = (inside[..., 0] * layout.bins[1] + inside[..., 1]) * layout.bins[2] + inside[..., 2]
    senders = table[flat].reshape(n, -1)
    image = jnp.repeat(image, layout.bin_capacity, axis=1)
    wrap = wrap.astype(jnp.int32)
    sender_wrap = wrap.at[senders].get(mode="clip")
    shifts = image - sender_wrap + wrap[:, None, :]

    sender_positions = system.positions.at[senders].get(mode="clip")
    vectors = sender_positions + shifts.astype(system.cell.dtype) @ system.cell - system.positions[:, None, :]
    reach = layout.cutoff + layout.skin
    itself = (senders == jnp.arange(n)[:, None]) & (shifts == 0).all(-1)
    is_edge = (senders < n) & (jnp.sum(vectors**2, axis=-1) < reach**2) & ~itself
    face_areas = jnp.linalg.norm(jnp.cross(system.cell[jnp.array([1, 2, 0])], system.cell[jnp.array([2, 0, 1])]), axis=1)
    spacing = jnp.abs(jnp.linalg.det(system.cell)) / face_areas / bins
    too_short = jnp.any(spacing * jnp.asarray(layout.stencil) < reach)
    return senders, shifts, is_edge, fullest, too_short


def _blocks(system: System, layout: Layout, senders: Array, is_edge: Array) -> list[Array]:
    if not layout.species:
        return [is_edge]
    sender_numbers = system.numbers.at[senders].get(mode="clip")
    return [is_edge & (sender_numbers == z) for z in layout.species]


def count(system: System, layout: Layout) -> tuple[Array, list[Array], Array]:
    """Largest number of atoms in a bin, of edges of an atom in each block, and of edges in all."""
    senders, _, is_edge, fullest, _ = _candidates(system, layout)
    return fullest, [b.sum(1).max() for b in _blocks(system, layout, senders, is_edge)], is_edge.sum()


def build(system: System, layout: Layout) -> Neighbors:
    """Build the neighbour list of one system (traceable and vmappable; `layout` is static)."""
    n = system.positions.shape[0]
    senders, shifts, is_edge, fullest, too_short = _candidates(system, layout)
    overflow = too_short | (fullest > layout.bin_capacity)
    rows = jnp.arange(n)[:, None]
    first_slot = 0
    width = sum(layout.slots)
    dense_senders = jnp.full((n, width), n, jnp.int32)
    dense_shifts = jnp.zeros((n, width, 3), jnp.int32)
    for capacity, mask in zip(layout.slots, _blocks(system, layout, senders, is_edge), strict=True):
        slot = jnp.cumsum(mask, axis=1) - 1
        overflow |= jnp.any(slot[:, -1] >= capacity)
        column = jnp.where(mask & (slot < capacity), slot + first_slot, width)
        dense_senders = dense_senders.at[rows, column].set(senders, mode="drop")
        dense_shifts = dense_shifts.at[rows, column].set(shifts, mode="drop")
        first_slot += capacity
    flat_senders, flat_shifts = dense_senders.reshape(-1), dense_shifts.reshape(-1, 3)
    receivers = jnp.repeat(jnp.arange(n, dtype=jnp.int32), width)
    if layout.edges:
        filled = flat_senders < n
        overflow |= filled.sum() > layout.edges
        (kept,) = jnp.nonzero(filled, size=layout.edges, fill_value=flat_senders.shape[0])
        flat_senders = flat_senders.at[kept].get(mode="fill", fill_value=n)
        flat_shifts = flat_shifts.at[kept].get(mode="fill", fill_value=0)
        receivers = receivers.at[kept].get(mode="fill", fill_value=n)
    return Neighbors(
        senders=flat_senders,
        receivers=receivers,
        shifts=flat_shifts,
        reference_positions=system.positions,
        reference_cell=system.cell,
        overflow=overflow,
        layout=layout,
    )


def needs_rebuild(neighbors: Neighbors, system: System) -> Bool[Array, ""]:
    """Whether some pair outside the list may have come within the cutoff since it was built.

    With F the deformation from the reference cell to the present one, x = F (x_ref + u), a pair now at distance r was at
    |F^-1 r - (u_j - u_i)| <= r |F^-1| + 2 max|u|; the list stays complete while that is below cutoff + skin.
    """
    layout = neighbors.layout
    inverse = jnp.linalg.inv(system.cell) @ neighbors.reference_cell
    back = system.positions @ inverse - neighbors.reference_positions
    back = back - back.mean(0)[None, :]  # a common drift moves no pair
    farthest = jnp.sqrt(jnp.max(jnp.sum(back**2, axis=-1)))
    # Frobenius bound of the stretch, cheap and safe: |F^-1| <= 1 + |F^-1 - 1|
    stretch = 1.0 + jnp.sqrt(jnp.sum((inverse - jnp.eye(3, dtype=inverse.dtype)) ** 2))
    return layout.cutoff * stretch + 2.0 * farthest > layout.cutoff + layout.skin


def edge_vectors(system: System, neighbors: Neighbors) -> Float[Array, "e 3"]:
    """Vectors receiver -> sender of every slot, Angstrom; empty slots hold a vector longer than cutoff + skin.

    The filler keeps padded slots finite, away from r = 0 and outside every cutoff, for values and gradients alike.
    """
    n = system.positions.shape[0]
    filled = neighbors.senders < n
    sender_positions = system.positions.at[neighbors.senders].get(mode="clip")
    receiver_positions = system.positions.at[neighbors.receivers].get(mode="clip")
    vectors = sender_positions - receiver_positions + neighbors.shifts.astype(system.cell.dtype) @ system.cell
    filler = jnp.asarray([2.0 * (neighbors.layout.cutoff + neighbors.layout.skin), 0.0, 0.0], vectors.dtype)
    return jnp.where(filled[:, None], vectors, filler[None, :])
