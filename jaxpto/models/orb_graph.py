"""The directed edges of ORB: from each atom to a limited number of nearest neighbours.

The neighbour list holds everything within cutoff and skin; the nearest are picked anew in every evaluation, inside the
compiled program. Where the last place is contested by several neighbours at one distance (crystals of high symmetry),
the original leaves the choice to the accidents of a search tree. Here the direction decides, which depends neither on
the order of the atoms nor on the cell that describes them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpto.models.passes import RowCount, slices
from jaxpto.neighbors import Neighbors

GRID = 2.0**-20  # Angstrom; lengths that agree when rounded to it are equal


class Graph(NamedTuple):
    """Edges of one system, sorted by sender and then by length, in arrays that fit `row_pass`.

    Attributes:
        senders, receivers: [s] ends of each edge; n (the number of atoms) marks padding, all at the end.
        vectors: [s, 3] from sender to receiver, Angstrom; those of padding are longer than the cutoff.
        count: number of edges in use.
    """

    senders: Int[Array, " s"]
    receivers: Int[Array, " s"]
    vectors: Float[Array, "s 3"]
    count: RowCount


def nearest_edges(neighbors: Neighbors, vectors: Float[Array, "e 3"], cutoff: float, most: int) -> Graph:
    """Edges from each atom to its nearest neighbours within the cutoff, at most `most` of them.

    Neighbours at the same distance are taken in the order of their directions, those with the larger x first, then
    those with the larger y, then with the larger z. In double precision equal distances are equal to `GRID`; in single
    precision they differ by the rounding of the positions, which then decides.

    Args:
        neighbors: packed list, complete within the cutoff. An edge of ORB begins at the list's receiver.
        vectors: edge vectors of the list, Angstrom; the choice is made in their precision.
        cutoff: Angstrom.
        most: edges of an atom.
    """
    n, e = neighbors.wraps.shape[0], vectors.shape[0]
    centre = neighbors.packed_receivers
    distance = jnp.sqrt(jnp.sum(vectors**2, axis=-1))  # empty slots are long, so no zero reaches the root
    owner = jnp.where(distance < cutoff, centre, n)  # leaves out the skin and the padding
    steps = jnp.round(jnp.concatenate([distance[:, None], -vectors], axis=1) / GRID).astype(jnp.int32)
    order = jnp.lexsort((steps[:, 3], steps[:, 2], steps[:, 1], steps[:, 0], owner)).astype(jnp.int32)

    number = jnp.zeros(n, jnp.int32).at[owner].add(1, mode="drop")
    first = jnp.cumsum(number, dtype=jnp.int32) - number
    sorted_owner = owner[order]
    place = jnp.arange(e, dtype=jnp.int32) - first.at[sorted_owner].get(mode="clip")
    chosen = (place < most) & (sorted_owner < n)
    pieces, length = slices(min(e, n * most), neighbors.layout.platform)
    kept = jnp.nonzero(chosen, size=pieces * length, fill_value=e)[0]
    edges = order.at[kept].get(mode="fill", fill_value=e)
    return Graph(
        senders=centre.at[edges].get(mode="fill", fill_value=n),
        receivers=neighbors.senders.at[edges].get(mode="fill", fill_value=n),
        vectors=vectors.at[edges].get(mode="fill", fill_value=2.0 * cutoff),
        count=RowCount(jnp.sum(jnp.minimum(number, most), dtype=jnp.int32), length),
    )
