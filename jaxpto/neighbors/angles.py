"""Bonds (the short edges of a packed neighbour list) and angles (ordered pairs of bonds that share an atom)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxpto.system import Leaf


@struct.dataclass
class Angles:
    """Bonds and angles of one system; both lists are packed to the front and sorted by the central atom.

    Attributes:
        bonds: [b] indices of the edges that were shorter than angle cutoff + skin; e marks an empty place.
        reverse: [b] index into `bonds` of the same bond seen from its other end; b marks an empty place, or a bond
            whose reverse is missing because rounding put it just outside the list.
        first, second: [a] indices into `bonds` of every ordered pair of different bonds of one receiver; b marks an
            empty place.
        overflow: whether the capacity for bonds or angles was too small.
    """

    bonds: Int[Leaf, "*batch b"]
    reverse: Int[Leaf, "*batch b"]
    first: Int[Leaf, "*batch a"]
    second: Int[Leaf, "*batch a"]
    overflow: Bool[Leaf, "*batch"]


def build_angles(
    senders: Int[Array, " e"],
    receivers: Int[Array, " e"],
    images: Int[Array, " e"],
    vectors: Float[Array, "e 3"],
    atoms: int,
    translations: int,
    reach: float,
    capacities: tuple[int, int],
) -> Angles:
    """Find the bonds and angles of a packed list.

    Args:
        senders, receivers: ends of each edge, `atoms` where it is empty; receivers sorted.
        images: lattice translation of each sender, an index such that i and translations - 1 - i are opposite.
        vectors: edge vectors, Angstrom; empty edges have vectors longer than `reach`.
        atoms: number of atoms.
        translations: number of lattice translations.
        reach: longest bond, Angstrom.
        capacities: largest numbers of bonds and of angles.
    """
    n_bonds, n_angles = capacities
    short = jnp.sum(vectors**2, axis=1) < reach**2
    bonds = jnp.nonzero(short, size=n_bonds, fill_value=senders.shape[0])[0].astype(jnp.int32)
    receiver = receivers.at[bonds].get(mode="fill", fill_value=atoms)
    sender = senders.at[bonds].get(mode="fill", fill_value=atoms)
    image = images.at[bonds].get(mode="fill", fill_value=0).astype(jnp.int32)

    place = jnp.arange(n_bonds, dtype=jnp.int32)
    number = jnp.zeros(atoms + 1, jnp.int32).at[receiver].add(1).at[atoms].set(0)
    start = jnp.cumsum(number, dtype=jnp.int32) - number  # first bond of each atom
    partners = jnp.maximum(number[receiver] - 1, 0)
    last = jnp.cumsum(partners, dtype=jnp.int32)
    first = jnp.repeat(place, partners, total_repeat_length=n_angles)
    angle = jnp.arange(n_angles, dtype=jnp.int32)
    exists = angle < last[-1]
    turn = angle - (last - partners)[first]
    turn = turn + (turn >= (place - start[receiver])[first])  # leaves out the bond itself
    second = start[receiver[first]] + turn
    return Angles(
        bonds=bonds,
        reverse=_twins(receiver, sender, image, translations),
        first=jnp.where(exists, first, n_bonds),
        second=jnp.where(exists, second, n_bonds),
        overflow=(jnp.sum(short) > n_bonds) | (last[-1] > n_angles),
    )


def _twins(
    receiver: Int[Array, " b"], sender: Int[Array, " b"], image: Int[Array, " b"], translations: int
) -> Int[Array, " b"]:
    """For each bond (receiver, sender, image) the place of (sender, receiver, opposite image); b if there is none.

    The bonds and their reverses are sorted together, stably, so that a bond comes right before the reverse it equals.
    """
    b = receiver.shape[0]
    atom = jnp.concatenate([receiver, sender])
    other = jnp.concatenate([sender * translations + image, receiver * translations + (translations - 1 - image)])
    order = jnp.lexsort((other, atom)).astype(jnp.int32)
    before = jnp.roll(order, 1)
    same = (atom[order] == atom[before]) & (other[order] == other[before]) & (before < b) & (order >= b)
    return jnp.full(b, b, jnp.int32).at[jnp.where(same, order - b, b)].set(before, mode="drop")
