"""What a configuration comes to before the first step: model, structure and method, and the batch at step 0."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import ase
import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32

from jaxpto import units
from jaxpto.bounds import check_size
from jaxpto.devices.compiled import cached_jit
from jaxpto.devices.sequential import sequential_over_replicas
from jaxpto.devices.sharding import atom_mesh, check_sharing, constrain, divisible, sharded
from jaxpto.errors import InputError
from jaxpto.integrators.common import check_thermal
from jaxpto.integrators.npt_parrinello_rahman import npt_parrinello_rahman
from jaxpto.integrators.nve import nve
from jaxpto.integrators.nvt_langevin import nvt_langevin
from jaxpto.integrators.state import MDState, Method
from jaxpto.md.config import SweepConfig, is_hydrostatic
from jaxpto.md.loop import Limits, Sample, Schedule, Watch, sample, watch_init
from jaxpto.models.catalogue import load_potential
from jaxpto.models.energy_function import probe
from jaxpto.models.suitability import check_supports
from jaxpto.neighbors import Layout, build, in_whole_vectors
from jaxpto.perovskite.polarization import PolarizationTopology, build_topology
from jaxpto.platform import local_devices
from jaxpto.potential import Potential
from jaxpto.structures import make_supercell, read_input
from jaxpto.structures.axes import held_shear
from jaxpto.system import System, from_ase, on_device, unstack

# a program that runs once is not worth the compiler's effort; without it that of `perovskite` takes 0.37 of the time
RUN_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
ATOM_STEPS_PER_CHUNK = 1_000_000  # a few seconds on a processor core, so that progress is seen and little is redone


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a configuration comes to before the first step.

    Attributes:
        config: the settings.
        potential: the force field in the precision of the run.
        atoms: the supercell every replica starts from.
        topology: coefficients of the polarization, or None.
        note: why there is no polarization, or "".
        notes: what the structure's file holds and a simulation does not use.
        method, schedule, limits: what the compiled program depends on.
        temperatures: [replicas] target of each replica, K.
        systems: [replicas] where each replica starts, or None: all of them at `atoms`.
        parameters: [replicas] what a method with a `parametrised` integrator takes, or None.
    """

    config: SweepConfig
    potential: Potential
    atoms: ase.Atoms
    topology: PolarizationTopology | None
    note: str
    method: Method
    schedule: Schedule
    limits: Limits
    temperatures: np.ndarray
    systems: System | None = None
    parameters: Any = None
    notes: tuple[str, ...] = ()


def prepare(config: SweepConfig, potential: Potential | None = None) -> Setup:
    """Read structure and model and settle everything that is fixed during the run.

    Args:
        config: the settings.
        potential: takes the place of the model that the settings name.

    Raises:
        InputError: what `read_input`, `check_dynamics`, `load_potential`, `check_supports` or `probe` refuses.
    """
    if config.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise InputError('dtype float64 needs JAX in 64 bit; call jax.config.update("jax_enable_x64", True) first')
    dtype = np.dtype(config.dtype)
    given = read_input(config.structure, "dynamics", format=config.format, species=config.species)
    number = len(given.atoms) * math.prod(config.repeats)
    check_size(number, config.replicas * len(config.temperatures), f"`supercell={config.repeats}`")
    atoms = make_supercell(given.atoms, config.repeats)
    check_dynamics(config, atoms)
    potential = load_potential(config.model, dtype) if potential is None else potential.astype(dtype)
    check_supports(potential, atoms, config.structure, stress=config.ensemble == "npt")
    probe(potential, atoms, config.structure)
    if config.devices_per_replica > 1:
        check_sharing(config.devices_per_replica, len(usable_devices(config)), len(atoms), potential)
    topology, note = build_topology(atoms, config.charges, dtype)
    temperatures = np.repeat(np.asarray(config.temperatures), config.replicas)
    per_sample = len(temperatures) * len(atoms) * config.sample_every
    schedule = Schedule(
        steps=config.steps,
        sample_every=config.sample_every,
        samples_per_chunk=int(np.clip(ATOM_STEPS_PER_CHUNK // per_sample, 1, 100)),
    )
    return Setup(
        config, potential, atoms, topology, note, method_of(config), schedule, Limits(), temperatures,
        notes=given.notes,
    )  # fmt: skip


def check_dynamics(config: SweepConfig, atoms: ase.Atoms) -> None:
    """Refuse a supercell that the ensemble and the strain mask of a configuration do not fit.

    Raises:
        InputError: one atom where the total momentum is zero, or vectors off x, y and z with the mask diag.
    """
    if config.ensemble != "nvt":
        check_thermal(len(atoms), config.ensemble)
    if config.ensemble == "npt" and config.mask == "diag" and (held := held_shear(atoms.cell.array)):
        raise InputError(f"`mask=diag`: {held}; use full (any strain), or iso (volume only)")


def method_of(config: SweepConfig) -> Method:
    """The integrator that a configuration asks for."""
    if config.ensemble == "nve":
        return functools.partial(nve, timestep_fs=config.timestep)
    if config.ensemble == "nvt":
        return functools.partial(nvt_langevin, timestep_fs=config.timestep, friction_per_fs=config.friction)
    return functools.partial(
        npt_parrinello_rahman,
        timestep_fs=config.timestep,
        thermostat_time_fs=config.thermostat_time,
        barostat_time_fs=None if config.pfactor is not None else config.barostat_time,
        pfactor=config.pfactor,
        mask=config.mask,
        # of a pressure both are the same, and this one has nothing to sum up along the way
        stress_measure="piola-kirchhoff" if is_hydrostatic(config) else config.stress_measure,
    )


def external_stress(config: SweepConfig) -> np.ndarray:
    """External stress tensor [3, 3], eV/Angstrom^3, positive in tension."""
    if config.stress is None:
        return -config.pressure * units.GIGAPASCAL * np.eye(3)
    xx, yy, zz, yz, xz, xy = config.stress
    return units.GIGAPASCAL * np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


@struct.dataclass
class Beginning:
    """What the replicas start from (a pytree; inside units: eV, Angstrom, amu).

    Attributes:
        systems: one for all replicas, or batched.
        numbers: [r] of the replicas in the batch, for their random numbers.
        kT: [r] target temperatures, eV.
        stress: [3, 3] external stress, eV/Angstrom^3, or None at constant volume.
        key: random key of the run.
        nearest: nearest-neighbour distance of the initial structure, Angstrom.
        parameters: batched, of a method with a `parametrised` integrator, or None.
    """

    systems: System
    numbers: Int[Array, " r"]
    kT: Float[Array, " r"]
    stress: Float[Array, "3 3"] | None
    key: UInt32[Array, "2"]
    nearest: Float[Array, ""]
    parameters: Any


def beginning(setup: Setup) -> Beginning:
    """What the replicas of a set-up start from."""
    config = setup.config
    systems = from_ase(setup.atoms, np.dtype(config.dtype)) if setup.systems is None else setup.systems
    dtype = systems.positions.dtype
    return Beginning(
        systems=systems,
        numbers=on_device(np.arange(len(setup.temperatures)), np.int32),
        kT=on_device(setup.temperatures * units.BOLTZMANN, dtype),
        stress=on_device(external_stress(config), dtype) if config.ensemble == "npt" else None,
        key=jax.random.PRNGKey(config.seed),
        nearest=on_device(nearest_distance(setup.atoms), dtype),
        parameters=setup.parameters,
    )


def start(setup: Setup, layout: Layout) -> tuple[MDState, Watch]:
    """The batch at step 0 with neighbour lists of the given capacities (traceable)."""
    return _start(setup.potential, beginning(setup), setup.method, layout, _mesh_of_one(setup.config))


def _start(
    potential: Potential, given: Beginning, method: Method, layout: Layout, mesh: Mesh | None
) -> tuple[MDState, Watch]:
    integrator = method(
        sequential_over_replicas(potential.evaluate if mesh is None else sharded(potential.evaluate, mesh))
    )

    def one(number: Array, target: Array, system: System, parameters: Any) -> tuple[MDState, Watch]:
        further = [value for value in (given.stress, parameters) if value is not None]
        neighbors = build(system, layout) if mesh is None else constrain(build(system, layout), mesh)
        state = integrator.init(jax.random.fold_in(given.key, number), system, neighbors, target, *further)
        return state, watch_init(system, target, given.nearest)

    each = (0, 0, 0 if given.systems.positions.ndim == 3 else None, 0)
    return jax.vmap(one, each)(given.numbers, given.kT, given.systems, given.parameters)


def begin(setup: Setup, layout: Layout, own: slice = slice(None)) -> tuple[MDState, Watch, Sample]:
    """The batch at step 0, compiled: state and watch of the replicas `own`, and what is recorded of them."""
    mesh = _mesh_of_one(setup.config)
    first = functools.partial(_first, method=setup.method, layout=layout, mesh=mesh, own=own)
    return cached_jit(first, first, RUN_ONCE)(setup.potential, beginning(setup), setup.topology)


def _first(
    potential: Potential,
    given: Beginning,
    topology: PolarizationTopology | None,
    *,
    method: Method,
    layout: Layout,
    mesh: Mesh | None,
    own: slice,
) -> tuple[MDState, Watch, Sample]:
    states, watch = jax.tree.map(lambda x: x[own], _start(potential, given, method, layout, mesh))
    return states, watch, sample(potential, method, states, watch, topology)


def first_layout(setup: Setup) -> Layout:
    """Room in the neighbour lists for where the replicas start and for what thermal disorder brings in."""
    system = from_ase(setup.atoms, np.dtype(setup.config.dtype))
    # shells that the perfect lattice has just outside; better to make room at the start
    shaken = [setup.atoms.copy() for _ in range(2)]
    for seed, atoms in enumerate(shaken):
        atoms.rattle(0.2, seed=seed)
    moved = [dataclasses.replace(system, positions=on_device(a.positions, system.positions.dtype)) for a in shaken]
    skin = setup.config.skin or setup.potential.usual_skin
    starts = [] if setup.systems is None else unstack(jax.device_get(setup.systems))
    # slots in whole vectors are headroom by themselves
    headroom = 1.05 if setup.potential.model.by_species else 1.1
    layout = in_whole_vectors(setup.potential.allocate([system, *moved, *starts], skin, headroom))
    return divisible(layout, setup.config.devices_per_replica)


def nearest_distance(atoms: ase.Atoms) -> float:
    """Smallest distance between two atoms (images included), Angstrom."""
    from ase.neighborlist import neighbor_list  # half a second to import, so only where it is used

    reach = 3.0
    while len(found := neighbor_list("d", atoms, reach)) == 0:
        reach *= 1.5
    return float(found.min())


def usable_devices(config: SweepConfig) -> list[jax.Device]:
    """The devices of this process that the settings let it use."""
    return local_devices()[: config.devices or None]


def _mesh_of_one(config: SweepConfig) -> Mesh | None:
    """The devices that share one replica at the start of a run, or None where each replica has one device."""
    per_replica = config.devices_per_replica
    return atom_mesh(usable_devices(config)[:per_replica]) if per_replica > 1 else None
