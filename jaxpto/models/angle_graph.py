"""The edges, bonds and angles that count in networks with angles, chosen from a packed neighbour list."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpto.models.layers import gather
from jaxpto.models.passes import RowCount, select_rows
from jaxpto.neighbors import Neighbors


class AngleGraph(NamedTuple):
    """Edges [s], those of them that are short enough for angles, here bonds [b], and the angles [a] between bonds.

    Attributes:
        lengths: [s] lengths of the edges, Angstrom; long for padding.
        edges: [s] their "senders" and "receivers", n for padding, and which of the "bonds" they are, b for none.
        edge_count: number of edges.
        edge_of_bond: [b] place of each bond among the edges; s for padding, and for a bond that does not count by now.
        bond_lengths: [b] Angstrom; long where `edge_of_bond` is s.
        bond_receivers, bond_senders: [b] the atom in the middle of the bond's angles, and the one at its end.
        reverse: [b] the same bond from its other end.
        units: [b, 3] directions from receiver to sender.
        angles: [a] the "first" and "second" bond of each, sorted by the first.
        angle_count: number of angles.
    """

    lengths: Float[Array, " s"]
    edges: dict[str, Int[Array, " s"]]
    edge_count: RowCount
    edge_of_bond: Int[Array, " b"]
    bond_lengths: Float[Array, " b"]
    bond_receivers: Int[Array, " b"]
    bond_senders: Int[Array, " b"]
    reverse: Int[Array, " b"]
    units: Float[Array, "b 3"]
    angles: dict[str, Int[Array, " a"]]
    angle_count: RowCount


def angle_graph(
    neighbors: Neighbors,
    vectors: Float[Array, "e 3"],
    distance: Float[Array, " e"],
    counts: Bool[Array, " e"],
    short: Bool[Array, " e"],
) -> AngleGraph:
    """Choose the edges that count, and the angles between those that are short as well; both fit `row_pass`.

    Args:
        neighbors: packed, with angles.
        vectors, distance: edge vectors and their lengths, Angstrom.
        counts: whether an edge counts.
        short: whether it is short enough for angles.

    Raises:
        ValueError: the list has no angles.
    """
    n, lists = neighbors.wraps.shape[0], neighbors.angles
    if lists is None:
        raise ValueError("the model needs a neighbour list with angles; let Potential.allocate choose the layout")
    platform = neighbors.layout.platform
    long, n_bonds = 2.0 * neighbors.layout.cutoff, lists.bonds.shape[0]
    selected, edge_count = select_rows(counts, platform)
    place = jnp.where(counts, jnp.cumsum(counts, dtype=jnp.int32) - 1, selected.shape[0])
    bond_of_edge = jnp.full(counts.shape, n_bonds, jnp.int32)
    bond_of_edge = bond_of_edge.at[lists.bonds].set(jnp.arange(n_bonds, dtype=jnp.int32), mode="drop")
    lengths = distance.at[selected].get(mode="fill", fill_value=long)
    edge_of_bond = place.at[lists.bonds].get(mode="fill", fill_value=selected.shape[0])
    bond_lengths = lengths.at[edge_of_bond].get(mode="fill", fill_value=long)

    is_bond = (counts & short).at[lists.bonds].get(mode="fill", fill_value=False)
    both = [is_bond.at[bond].get(mode="fill", fill_value=False) for bond in (lists.first, lists.second)]
    chosen, angle_count = select_rows(both[0] & both[1], platform)
    return AngleGraph(
        lengths=lengths,
        edges={
            "senders": neighbors.senders.at[selected].get(mode="fill", fill_value=n),
            "receivers": neighbors.receivers.at[selected].get(mode="fill", fill_value=n),
            "bonds": bond_of_edge.at[selected].get(mode="fill", fill_value=n_bonds),
        },
        edge_count=edge_count,
        edge_of_bond=edge_of_bond,
        bond_lengths=bond_lengths,
        bond_receivers=neighbors.receivers.at[lists.bonds].get(mode="fill", fill_value=n),
        bond_senders=neighbors.senders.at[lists.bonds].get(mode="fill", fill_value=n),
        reverse=lists.reverse,
        units=gather(vectors, lists.bonds) / bond_lengths[:, None],
        angles={
            "first": lists.first.at[chosen].get(mode="fill", fill_value=n_bonds),
            "second": lists.second.at[chosen].get(mode="fill", fill_value=n_bonds),
        },
        angle_count=angle_count,
    )
