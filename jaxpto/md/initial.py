"""The initial state of a batch: velocities drawn, neighbour lists built, forces known, nothing moved yet."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxpto.devices.compiled import cached_jit
from jaxpto.devices.sequential import sequential_over_replicas
from jaxpto.devices.sharding import atom_mesh, constrain, divisible, sharded
from jaxpto.integrators.state import MDState, Method
from jaxpto.md.batch import Batch, Start
from jaxpto.md.health import Watch, begin_watch
from jaxpto.md.loop import sample
from jaxpto.neighbors import Layout, build, in_whole_vectors
from jaxpto.observables.observable import Observable, Sample
from jaxpto.potential import Potential
from jaxpto.system import System, from_ase, on_device, unstack

# a program that runs once is not worth the compiler's effort; without it that of `perovskite` takes 0.37 of the time
RUN_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SHAKEN = 0.2  # Angstrom, standard deviation of the displacements that the first neighbour lists have room for


def initial_state(batch: Batch, layout: Layout) -> tuple[MDState, Watch]:
    """The batch at step 0 (traceable).

    Args:
        batch: the replicas.
        layout: capacities of their neighbour lists.
    """
    return _initial(batch.potential, batch.start, batch.method, layout, _mesh_of_one(batch))


def begin(batch: Batch, layout: Layout, own: slice = slice(None)) -> tuple[MDState, Watch, Sample]:
    """The batch at step 0, compiled and measured.

    Args:
        batch: the replicas.
        layout: capacities of their neighbour lists.
        own: replicas of this process.
    """
    make = functools.partial(_measured, method=batch.method, layout=layout, mesh=_mesh_of_one(batch), own=own)
    return cached_jit(make, make, RUN_ONCE)(batch.potential, batch.start, batch.observables)


def first_layout(batch: Batch) -> Layout:
    """Room in the neighbour lists for where the replicas start and for what thermal disorder brings in."""
    system = from_ase(batch.atoms, np.dtype(batch.start.systems.positions.dtype))
    # shells that the perfect lattice has just outside; better to make room at the start
    shaken = [batch.atoms.copy() for _ in range(2)]
    for seed, atoms in enumerate(shaken):
        atoms.rattle(SHAKEN, seed=seed)
    moved = [dataclasses.replace(system, positions=on_device(a.positions, system.positions.dtype)) for a in shaken]
    one_for_all = batch.start.systems.positions.ndim == 2
    starts = [] if one_for_all else unstack(jax.device_get(batch.start.systems))
    # slots in whole vectors are headroom by themselves
    headroom = 1.05 if batch.potential.model.by_species else 1.1
    layout = in_whole_vectors(batch.potential.allocate([system, *moved, *starts], batch.skin, headroom))
    return divisible(layout, batch.devices_per_replica)


def nearest_distance(atoms: ase.Atoms) -> float:
    """Smallest distance between two atoms (images included), Angstrom."""
    from ase.neighborlist import neighbor_list  # half a second to import, so only where it is used

    reach = 3.0
    while len(found := neighbor_list("d", atoms, reach)) == 0:
        reach *= 1.5
    return float(found.min())


def _initial(
    potential: Potential, start: Start, method: Method, layout: Layout, mesh: Mesh | None
) -> tuple[MDState, Watch]:
    evaluate = potential.evaluate if mesh is None else sharded(potential.evaluate, mesh)
    integrator = method(sequential_over_replicas(evaluate))

    def one(number: Array, kT: Array, system: System, stress: Array | None, parameters: Any) -> tuple[MDState, Watch]:
        further = [value for value in (stress, parameters) if value is not None]
        neighbors = build(system, layout) if mesh is None else constrain(build(system, layout), mesh)
        state = integrator.init(jax.random.fold_in(start.key, number), system, neighbors, kT, *further)
        return state, begin_watch(system if start.crystal is None else start.crystal, kT, start.nearest)

    each_system = 0 if start.systems.positions.ndim == 3 else None
    each_stress = 0 if start.stress is not None and start.stress.ndim == 3 else None
    numbers = jnp.arange(start.kT.shape[0], dtype=jnp.int32)
    return jax.vmap(one, (0, 0, each_system, each_stress, 0))(
        numbers, start.kT, start.systems, start.stress, start.parameters
    )


def _measured(
    potential: Potential,
    start: Start,
    observables: tuple[Observable, ...],
    *,
    method: Method,
    layout: Layout,
    mesh: Mesh | None,
    own: slice,
) -> tuple[MDState, Watch, Sample]:
    states, watch = jax.tree.map(lambda x: x[own], _initial(potential, start, method, layout, mesh))
    return states, watch, sample(states, watch, observables)


def _mesh_of_one(batch: Batch) -> Mesh | None:
    """The devices that share one replica at the start of a run, or None where each replica has one device."""
    shared = batch.devices_per_replica
    return atom_mesh(batch.usable_devices()[:shared]) if shared > 1 else None
