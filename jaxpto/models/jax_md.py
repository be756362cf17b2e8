"""Energy functions of jax-md as potentials: `jax_md.energy.*`, or any function over its spaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.models.energy_function import function_potential
from jaxpto.neighbors import Neighbors, edge_vectors
from jaxpto.neighbors.search import inverse, matmul
from jaxpto.potential import Potential
from jaxpto.system import System

if TYPE_CHECKING:
    from jax_md.partition import NeighborList, NeighborListFormat


def potential_from_jax_md(
    energy_fn: Callable[..., Array],
    params: Any = None,
    *,
    cutoff: float,
    name: str,
    format: NeighborListFormat | None,
    fractional_coordinates: bool = True,
    elements: Sequence[str] | None = None,
) -> Potential:
    """A potential with the energy of a jax-md function, which must take lengths in Angstrom and give eV.

    It is called as energy_fn(R, neighbor, box=..., perturbation=...), as jax-md itself calls it, so its space must be
    `jax_md.space.periodic_general`, which heeds `box`. The neighbour list is jaxpto's, converted to jax-md's form.
    jax-md sees only the nearest image of an atom, so every height of the cell must be at least twice the cutoff:
    narrower structures are refused, and a replica whose cell shrinks below that stops (its energy is NaN).

    Args:
        energy_fn: what `jax_md.energy.NAME_neighbor_list(displacement, ...)` returns beside the neighbour function, or
            a function without a neighbour list, as `jax_md.energy.NAME_pair(displacement, ...)` returns it.
        params: pytree that `energy_fn` takes before the positions, as neural networks do; None if it takes none.
        cutoff: distance from which on `energy_fn` counts nothing, Angstrom.
        name: what to call the potential.
        format: kind of neighbour list it takes, `jax_md.partition.Dense`, `Sparse` or `OrderedSparse`; None if none.
        fractional_coordinates: as in `periodic_general`.
        elements: chemical symbols it may be asked about; by default all.

    Raises:
        InputError: cutoff that is not a length up to 20 Angstrom, or an unknown element.
    """
    from jax_md import partition, space

    def energy(params: Any, system: System, neighbors: Neighbors) -> Float[Array, ""]:
        # jax-md's derivatives in `box` hold in fractional coordinates only, those in `perturbation` always: the cell
        # held as it is, a strain F of it acts on displacements
        cell = jax.lax.stop_gradient(system.cell)
        strain = jnp.eye(3, dtype=cell.dtype) + matmul(inverse(cell), system.cell - cell)
        positions = matmul(system.positions, inverse(strain))
        # `transform` passes derivatives in Cartesian coordinates through, as jax-md's displacements expect
        at = space.transform(inverse(cell).T, positions) if fractional_coordinates else positions
        listed = () if format is None else (_neighbor_list(system, neighbors, cutoff, format, at),)
        given = () if params is None else (params,)
        return energy_fn(*given, at, *listed, box=cell.T, perturbation=strain.T)

    return function_potential(
        energy,
        params,
        cutoff=cutoff,
        name=name,
        elements=elements,
        identity=(energy_fn, format, fractional_coordinates),
        dense=format is partition.Dense,
        least_height=2.0 * cutoff,
    )


def _neighbor_list(
    system: System, neighbors: Neighbors, cutoff: float, format: NeighborListFormat, positions: Float[Array, "n 3"]
) -> NeighborList:
    """The edges within the cutoff in the form of jax-md; there, each pair has one image at most."""
    from jax_md import partition

    n = system.positions.shape[0]
    within = jnp.sum(edge_vectors(system, neighbors) ** 2, axis=-1) < cutoff**2
    if format is partition.OrderedSparse:
        within &= neighbors.receivers < neighbors.senders
    senders = jnp.where(within, neighbors.senders, n)
    if format is partition.Dense:
        indices = senders.reshape(n, -1)
    else:
        indices = jnp.stack([jnp.where(within, neighbors.receivers, n), senders])
    error = partition.PartitionError(jnp.zeros((), jnp.uint8))  # ty: ignore[too-many-positional-arguments]
    capacity, no_cells, no_update = indices.shape[-1], (None, None), None
    return partition.NeighborList(indices, positions, error, None, capacity, format, *no_cells, no_update)  # ty: ignore[too-many-positional-arguments]
