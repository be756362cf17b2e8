"""One large system on several devices: its edges, and with them all arrays over atoms and edges, are distributed.

`sharded` annotates the neighbour list (`jax.lax.with_sharding_constraint`) and sets `Layout.devices`, which tells
`Potential.evaluate` and the models that edges are distributed. With a `LocalModel` each device evaluates its own atoms,
and forces and virial are summed over the devices. In other models XLA propagates the annotation along the edge vectors
and back through the derivative, and adds the sums over edges. Which mesh it is, `jax.shard_map` reads from JAX's
context; nothing else does.
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
from jaxpto.model_interface import Prediction, ReciprocalModel
from jaxpto.neighbors import Layout, Neighbors
from jaxpto.platform import local_devices
from jaxpto.potential import Potential
from jaxpto.system import System

ATOMS = "atoms"
_OF_EDGES = ("senders", "images", "packed_receivers")


def atom_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh of all local devices (or the given ones) to share one system."""
    return Mesh(np.asarray(local_devices() if devices is None else devices), (ATOMS,))


def check_sharing(wanted: int, available: int, n_atoms: int, potential: Potential) -> None:
    """Refuse to distribute a system over a number of devices that does not suit it.

    Args:
        wanted: devices for one system.
        available: devices of this process.
        n_atoms: atoms of the system.
        potential: the force field.

    Raises:
        InputError: more devices than there are, a model with a sum over wave vectors, or one with a row of neighbours
            for each atom and a number of atoms that is not a multiple of the devices.
    """
    if wanted > available:
        raise InputError(
            f"`devices_per_replica={wanted}`: this process has {available}; "
            "take fewer (on a CPU, `devices` sets how many there are)"
        )
    if wanted > 1 and isinstance(potential.model, ReciprocalModel):
        raise InputError(
            f"`devices_per_replica={wanted}`: {potential.name} sums over wave vectors, which devices cannot share; "
            "take 1 and spread `replicas` or `temperatures` over the devices"
        )
    if potential.model.by_species and n_atoms % wanted:
        best = max(d for d in range(1, wanted) if n_atoms % d == 0)
        raise InputError(
            f"`devices_per_replica={wanted}`: {n_atoms} atoms do not divide by {wanted}; take {best} "
            "or another `supercell`"
        )


def divisible(layout: Layout, devices: int) -> Layout:
    """The layout with capacities for edges, bonds and angles rounded up to multiples of the number of devices."""
    round_up = lambda size: -(-size // devices) * devices  # noqa: E731
    sizes = {name: round_up(getattr(layout, name)) for name in ("edges", "bonds", "angles")}
    return dataclasses.replace(layout, **sizes)


def edges_over(neighbors: Neighbors, place: Callable[[Any], Any]) -> Neighbors:
    """A neighbour list with `place` applied to each array that has one entry per edge, bond or angle."""
    lists = {name: place(getattr(neighbors, name)) for name in _OF_EDGES}
    angles = neighbors.angles
    if angles is not None:
        parts = ("bonds", "reverse", "first", "second")
        angles = dataclasses.replace(angles, **{name: place(getattr(angles, name)) for name in parts})
    return dataclasses.replace(neighbors, **lists, angles=angles)


def constrain(neighbors: Neighbors, mesh: Mesh | None = None) -> Neighbors:
    """Distribute the edges of a neighbour list over devices (traceable).

    Args:
        neighbors: list of one system, its layout `divisible` by the devices.
        mesh: mesh with an axis `ATOMS`; not needed inside `jax.shard_map` over such a mesh.
    """
    spec = PartitionSpec(ATOMS)
    return edges_over(
        neighbors, lambda x: jax.lax.with_sharding_constraint(x, spec if mesh is None else NamedSharding(mesh, spec))
    )


def sharded(
    evaluate: Callable[[System, Neighbors], Prediction], mesh: Mesh | None = None
) -> Callable[[System, Neighbors], Prediction]:
    """An evaluate function with the work and memory of one system distributed over devices; use it under `jax.jit`.

    Args:
        evaluate: energy, forces and stress of one system, such as `potential.evaluate`.
        mesh: see `constrain`.
    """

    def distributed(system: System, neighbors: Neighbors) -> Prediction:
        # `jax.shard_map` in the model finds the mesh in the context, as it does inside of another `jax.shard_map`
        known = contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
        with known:
            devices = jax.sharding.get_abstract_mesh().shape[ATOMS]
            layout = dataclasses.replace(neighbors.layout, devices=devices)
            return evaluate(system, dataclasses.replace(constrain(neighbors, mesh), layout=layout))

    return distributed
