"""One large system over several devices: edges, and with them what a model keeps for atoms and edges, are dealt out.

Only the neighbour list is annotated (`jax.lax.with_sharding_constraint`). Of a `LocalModel` each device then evaluates
its own atoms, and they meet in the sums of forces and virial (`Potential.evaluate`). Through other models XLA carries
the annotation, along the edge vectors and back through the derivative, and adds the sums where atoms meet.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpto.errors import InputError
from jaxpto.model_interface import Prediction
from jaxpto.neighbors import Layout, Neighbors
from jaxpto.potential import Potential
from jaxpto.system import System

ATOMS = "atoms"
_OF_EDGES = ("senders", "images", "packed_receivers")


def atom_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh of all local devices (or the given ones) for one system."""
    return Mesh(np.asarray(jax.local_devices() if devices is None else devices), (ATOMS,))


def check_sharing(wanted: int, available: int, n_atoms: int, potential: Potential) -> None:
    """Refuse numbers of devices that one system cannot be dealt out to.

    Raises:
        InputError: more devices than there are, or a model with a row of neighbours for each atom and a number of atoms
            that does not divide by the devices.
    """
    if wanted > available:
        raise InputError(
            f"`devices_per_replica={wanted}`: this process has {available}; "
            "take fewer (on a CPU, `devices` sets how many there are)"
        )
    if potential.model.by_species and n_atoms % wanted:
        best = max(d for d in range(1, wanted) if n_atoms % d == 0)
        raise InputError(
            f"`devices_per_replica={wanted}`: {n_atoms} atoms do not divide by {wanted}; take {best} "
            "or another `supercell`"
        )


def divisible(layout: Layout, devices: int) -> Layout:
    """The layout with capacities for edges, bonds and angles rounded up to multiples of the devices."""
    round_up = lambda size: -(-size // devices) * devices  # noqa: E731
    sizes = {name: round_up(getattr(layout, name)) for name in ("edges", "bonds", "angles")}
    return dataclasses.replace(layout, **sizes)


def edges_over(neighbors: Neighbors, place: Callable[[Any], Any]) -> Neighbors:
    """A list with `place` applied to each of its arrays that has one entry an edge, bond or angle."""
    lists = {name: place(getattr(neighbors, name)) for name in _OF_EDGES}
    angles = neighbors.angles
    if angles is not None:
        parts = ("bonds", "reverse", "first", "second")
        angles = dataclasses.replace(angles, **{name: place(getattr(angles, name)) for name in parts})
    return dataclasses.replace(neighbors, **lists, angles=angles)


def constrain(neighbors: Neighbors, mesh: Mesh | None = None) -> Neighbors:
    """Deal a list's edges out (traceable).

    Args:
        neighbors: of one system, its layout `divisible` by the devices.
        mesh: with an axis `ATOMS`; may be left out inside of `jax.shard_map` over such a mesh.
    """
    spec = PartitionSpec(ATOMS)
    return edges_over(
        neighbors, lambda x: jax.lax.with_sharding_constraint(x, spec if mesh is None else NamedSharding(mesh, spec))
    )


def sharded(
    evaluate: Callable[[System, Neighbors], Prediction], mesh: Mesh | None = None
) -> Callable[[System, Neighbors], Prediction]:
    """An evaluate function of one system with its work and memory dealt out over devices; use it under `jax.jit`.

    Args:
        evaluate: such as `potential.evaluate`.
        mesh: see `constrain`.
    """

    def dealt_out(system: System, neighbors: Neighbors) -> Prediction:
        # the model learns of the mesh by the context, as inside of `jax.shard_map`; see `layers.divided`
        known = contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
        with known:
            return evaluate(system, constrain(neighbors, mesh))

    return dealt_out
