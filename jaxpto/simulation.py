"""A sweep between its settings and its folder: set-up, the stored and resumable run of the batch, how it ended."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import numpy as np
from ase.neighborlist import neighbor_list
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32
from rich.console import Console

from jaxpto import units
from jaxpto.catalogue import check_supports, load_potential
from jaxpto.config import SweepConfig
from jaxpto.dynamics import (
    Limits,
    Method,
    Sample,
    Schedule,
    Watch,
    pad_replicas,
    rebuild_all,
    replica_mesh,
    sample,
    watch_init,
)
from jaxpto.dynamics import run as run_chunks
from jaxpto.errors import InputError
from jaxpto.integrators.npt_parrinello_rahman import npt_parrinello_rahman
from jaxpto.integrators.nve import nve
from jaxpto.integrators.nvt_langevin import nvt_langevin
from jaxpto.integrators.state import MDState
from jaxpto.neighbors import Layout, build, in_whole_vectors
from jaxpto.observables.polarization import PolarizationTopology, build_topology, perovskite_repeats
from jaxpto.potential import Potential
from jaxpto.processes import Processes
from jaxpto.programs import kept
from jaxpto.progress import Progress
from jaxpto.replicas import in_turn
from jaxpto.sharding import atom_mesh, check_sharing, constrain, divisible, sharded
from jaxpto.storage.checkpoint import Checkpoints, CheckpointWarning, layout_from_json, layout_to_json
from jaxpto.storage.files import StorageError, write_json_atomic
from jaxpto.storage.trajectory import (
    Observable,
    check_trajectory,
    create_trajectory,
    finalize_trajectory,
    valid_frames,
    write_frames,
)
from jaxpto.structures import make_supercell, read_structure
from jaxpto.system import System, from_ase, on_device, unstack

# a program that runs once is not worth the compiler's effort; without it that of `perovskite` takes 0.37 of the time
RUN_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
ATOM_STEPS_PER_CHUNK = 1_000_000  # a few seconds on a processor core, so that progress is seen and little is redone
OBSERVABLES = {
    "temperature": Observable((), "K"),
    "potential_energy": Observable((), "eV"),
    "kinetic_energy": Observable((), "eV"),
    "conserved": Observable((), "eV"),
    "stress": Observable((3, 3), "eV Angstrom-3"),
    "static_stress": Observable((3, 3), "eV Angstrom-3"),
    "volume": Observable((), "Angstrom3"),
    "polarization": Observable((3,), "C m-2"),
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a configuration comes to before the first step.

    Attributes:
        config: the settings.
        potential: the force field in the precision of the run.
        atoms: the supercell every replica starts from.
        topology: coefficients of the polarization, or None.
        note: why there is no polarization, or "".
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


def prepare(config: SweepConfig) -> Setup:
    """Read structure and model and settle everything that is fixed during the run.

    Raises:
        InputError: what `read_structure`, `load_potential` or `check_supports` refuses.
    """
    if config.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise InputError('dtype float64 needs JAX in 64 bit; call jax.config.update("jax_enable_x64", True) first')
    dtype = np.dtype(config.dtype)
    atoms = make_supercell(read_structure(config.structure), config.supercell)
    potential = load_potential(config.model, dtype)
    check_supports(potential, atoms, config.structure, stress=config.ensemble == "npt")
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
    return Setup(config, potential, atoms, topology, note, method_of(config), schedule, Limits(), temperatures)


def method_of(config: SweepConfig) -> Method:
    """The integrator that a configuration asks for."""

    timestep = {"timestep_fs": config.timestep}
    if config.ensemble == "nve":
        integrator = functools.partial(nve, **timestep)
    elif config.ensemble == "nvt":
        integrator = functools.partial(nvt_langevin, **timestep, friction_per_fs=config.friction)
    else:
        integrator = functools.partial(
            npt_parrinello_rahman,
            **timestep,
            thermostat_time_fs=config.thermostat_time,
            barostat_time_fs=None if config.pfactor is not None else config.barostat_time,
            pfactor=config.pfactor,
            mask=config.mask,
        )
    return Method(integrator, config.timestep)


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
    integrator = method.integrator(in_turn(potential.evaluate if mesh is None else sharded(potential.evaluate, mesh)))

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
    return kept(first, first, RUN_ONCE)(setup.potential, beginning(setup), setup.topology)


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
    reach = 3.0
    while len(found := neighbor_list("d", atoms, reach)) == 0:
        reach *= 1.5
    return float(found.min())


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands; replaced as a whole, so that an interrupt never sees half of it.

    Attributes:
        states, watch: the batch after the last chunk.
        done: samples taken.
        pending: samples not yet in the trajectories, the last of `done`.

    With several processes these are the replicas of this one.
    """

    states: MDState
    watch: Watch
    done: int
    pending: tuple[Sample, ...]


def simulate(setup: Setup, folder: Path, console: Console, processes: Processes = Processes()) -> None:  # noqa: B008
    """Advance the sweep to its end from its newest checkpoint, or from the start, storing frames and checkpoints.

    Of several processes each advances and stores its own replicas; the first one writes everything else.
    """
    config = setup.config
    mine = processes.own(len(setup.temperatures))
    paths, n_replicas = trajectory_paths(folder, config)[mine], mine.stop - mine.start
    checkpoints = Checkpoints(folder / "checkpoints")
    at, spent = _restore(setup, checkpoints, paths, console, processes) or (_begin(setup, paths, processes), 0.0)
    mesh = replica_mesh(n_replicas, usable_devices(config), config.devices_per_replica)
    states, watch = pad_replicas(at.states, at.watch, mesh)
    began = saved = time.monotonic()

    def save(at: Position) -> Position:
        if not at.pending:
            return at
        frames = processes.join(np.asarray(_flush(paths, at, config.timestep)))
        metadata = {
            "layout": layout_to_json(at.states.neighbors.layout),
            "frames": frames.tolist(),
            "seconds": spent + time.monotonic() - began,
        }
        own = jax.tree.map(lambda x: x[:n_replicas], (at.states, at.watch))
        if (everything := processes.collect(own)) is not None:
            checkpoints.save(at.done, everything, metadata)
        return dataclasses.replace(at, pending=())

    chunks = run_chunks(
        setup.potential, setup.method, states, watch, setup.schedule, setup.limits, setup.topology, at.done, mesh,
        processes,
    )  # fmt: skip
    first_step = min((at.done - 1) * config.sample_every, config.steps)
    labels = [f"{t:g}" for t in setup.temperatures]
    repeats = perovskite_repeats(setup.atoms) or config.supercell
    ended = _Ended.of(at.watch, n_replicas, processes)
    try:
        with Progress(console, config.steps, first_step, config.timestep, labels) as progress:
            for chunk in chunks:
                own = jax.tree.map(lambda x: x[:, :n_replicas], chunk.samples)
                if chunk.regrown:
                    progress.say("neighbour list enlarged; that chunk was done again")
                before, ended = ended, _Ended.of(chunk.watch, n_replicas, processes)
                for line in _newly_lost(setup, before, ended):
                    progress.say(line)
                done = chunk.first_sample + own.step.shape[0]
                at = Position(chunk.states, chunk.watch, done, (*at.pending, own))
                step, valid, cells = processes.join((own.step[-1], own.valid[-1], own.cell[-1]))
                progress.update(int(step.max()), valid, _c_over_a(cells, repeats))
                # the clock of the first process counts for all
                if processes.join(np.asarray([time.monotonic() - saved]))[0] > config.checkpoint_every:
                    at, saved = save(at), time.monotonic()
    except StorageError:
        raise
    except BaseException:  # an interrupt, say: what is computed is kept
        if processes.count == 1:  # of several, the others may be elsewhere: the run goes back to its last checkpoint
            save(at)
        raise
    save(at)
    for path in paths:
        finalize_trajectory(path, valid_frames(path))
    ended = _Ended.of(at.watch, n_replicas, processes)  # and all trajectories are complete
    if processes.first:
        _write_outcome(setup, folder, ended, spent + time.monotonic() - began)


def usable_devices(config: SweepConfig) -> list[jax.Device]:
    """The devices of this process that the settings let it use."""
    return jax.local_devices()[: config.devices or None]


def _mesh_of_one(config: SweepConfig) -> Mesh | None:
    """The devices that share one replica at the start of a run, or None where each replica has one device."""
    per_replica = config.devices_per_replica
    return atom_mesh(usable_devices(config)[:per_replica]) if per_replica > 1 else None


class _Ended(NamedTuple):
    """Why [replicas] and at which step each replica of all processes ended, as in `Watch`."""

    reason: np.ndarray
    step: np.ndarray

    @classmethod
    def of(cls, watch: Watch, n_own: int, processes: Processes) -> _Ended:
        reason, step = jax.device_get((watch.reason, watch.failed_step))
        return processes.join(cls(reason[:n_own], step[:n_own]))


def _begin(setup: Setup, paths: list[Path], processes: Processes) -> Position:
    """The run at step 0, with empty trajectories."""
    system, layout = from_ase(setup.atoms, np.dtype(setup.config.dtype)), first_layout(setup)
    # rounding may differ between kinds of machines: the first process decides
    layout = layout_from_json(json.loads(processes.gather(json.dumps(layout_to_json(layout)).encode())[0]))
    paths[0].parent.mkdir(exist_ok=True)
    for path in paths:
        create_trajectory(path, system, setup.schedule.n_samples, OBSERVABLES)

    states, watch, initial = begin(setup, layout, processes.own(len(setup.temperatures)))
    return Position(states, watch, 1, (jax.tree.map(lambda x: np.asarray(x)[None], initial),))


def _restore(
    setup: Setup, checkpoints: Checkpoints, paths: list[Path], console: Console, processes: Processes
) -> tuple[Position, float] | None:
    """The run at its newest usable checkpoint and the seconds it took to get there, or None where there is none.

    Raises:
        InputError: the processes do not find the same one, or what `Checkpoints.restore`, `into` and `check_trajectory`
            refuse.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        checkpoint = checkpoints.restore()
    for warning in caught:
        console.print(f"warning: {warning.message}", highlight=False, soft_wrap=True)
    found = processes.join(np.asarray([-1 if checkpoint is None else checkpoint.index]))
    if (found != found[0]).any():
        raise InputError(f"{checkpoints.directory}: processes find the checkpoints {found.tolist()}; run again")
    if checkpoint is None:
        return None
    layout = layout_from_json(checkpoint.metadata["layout"])
    mine = processes.own(len(setup.temperatures))
    states, watch = jax.tree.map(lambda x: x[mine], checkpoint.into(jax.eval_shape(lambda: start(setup, layout))))
    shared = divisible(layout, setup.config.devices_per_replica)
    if shared != layout:  # fewer devices shared a replica when this was saved
        states = rebuild_all(states, shared)
    for path, frames in zip(paths, checkpoint.metadata["frames"][mine], strict=True):
        check_trajectory(path, frames)
    console.print(f"continuing after {checkpoint.index} of {setup.schedule.n_samples} samples", highlight=False)
    return Position(states, watch, checkpoint.index, ()), float(checkpoint.metadata["seconds"])


def _flush(paths: list[Path], at: Position, timestep_fs: float) -> list[int]:
    """Write the valid pending samples of each replica to its trajectory.

    Returns:
        The frames each trajectory then holds.
    """
    samples = jax.tree.map(lambda *parts: np.concatenate(parts), *at.pending)
    first = at.done - samples.step.shape[0]
    for replica, path in enumerate(paths):
        n_valid = int(samples.valid[:, replica].sum())  # a replica that failed never comes back: a prefix
        if n_valid == 0:
            continue
        own = jax.tree.map(lambda x, r=replica, n=n_valid: x[:n, r], samples)
        frames = {"step": own.step, "time": own.step * timestep_fs, "position": own.positions, "cell": own.cell}
        write_frames(path, first, frames | {name: getattr(own, name) for name in OBSERVABLES})
    return [valid_frames(path) for path in paths]


def _newly_lost(setup: Setup, before: _Ended, after: _Ended) -> list[str]:
    """One line for every replica that failed in between."""
    lines = []
    for replica, temperature in enumerate(setup.temperatures):
        reason = int(after.reason[replica])
        if reason and not int(before.reason[replica]):
            why = setup.limits.describe(reason)
            lines.append(f"{temperature:g} K stopped at step {int(after.step[replica])}: {why}; the others go on")
    return lines


def _c_over_a(cells: np.ndarray, repeats: tuple[int, int, int]) -> np.ndarray:
    a, b, c = np.moveaxis(np.linalg.norm(cells, axis=-1), -1, 0) / np.asarray(repeats)[:, None]
    return c / (0.5 * (a + b))


def trajectory_paths(folder: Path, config: SweepConfig) -> list[Path]:
    """One file a replica, in the order of the batch: 300K.h5md, or 300K_1.h5md with several replicas."""
    return [
        folder / "trajectories" / (f"{t:g}K.h5md" if config.replicas == 1 else f"{t:g}K_{r}.h5md")
        for t in config.temperatures
        for r in range(config.replicas)
    ]


def _write_outcome(setup: Setup, folder: Path, ended: _Ended, seconds: float) -> None:
    """How each replica ended, for the report."""
    reasons, steps = ended
    replicas = [
        {
            "temperature_K": float(temperature),
            "trajectory": path.name,
            "status": "ok" if reasons[r] == 0 else "molten" if reasons[r] == 4 else "failed",
            "reason": "" if reasons[r] == 0 else setup.limits.describe(int(reasons[r])),
            "step_failed": None if reasons[r] == 0 else int(steps[r]),
        }
        for r, (temperature, path) in enumerate(
            zip(setup.temperatures, trajectory_paths(folder, setup.config), strict=True)
        )
    ]
    notes = {"polarization_note": setup.note, "caveat": setup.potential.caveat}
    write_json_atomic(folder / "outcome.json", {"replicas": replicas, **notes, "seconds": seconds})
