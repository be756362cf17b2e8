"""A sweep between its settings and its folder: set-up, the stored and resumable run of the batch, how it ended."""

from __future__ import annotations

import dataclasses
import time
import warnings
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.neighborlist import neighbor_list
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
    replica_mesh,
    sample,
    watch_init,
)
from jaxpto.dynamics import run as run_chunks
from jaxpto.errors import InputError
from jaxpto.integrators.npt_parrinello_rahman import npt_parrinello_rahman
from jaxpto.integrators.nve import nve
from jaxpto.integrators.nvt_langevin import nvt_langevin
from jaxpto.integrators.state import EvaluateFn, Integrator, MDState
from jaxpto.neighbors import Layout, build
from jaxpto.observables.polarization import PolarizationTopology, build_topology, perovskite_repeats
from jaxpto.potential import Potential
from jaxpto.progress import Progress
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
from jaxpto.system import from_ase

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

    def integrator(evaluate: EvaluateFn) -> Integrator:
        if config.ensemble == "nve":
            return nve(evaluate, config.timestep)
        if config.ensemble == "nvt":
            return nvt_langevin(evaluate, config.timestep, friction_per_fs=config.friction)
        return npt_parrinello_rahman(
            evaluate,
            config.timestep,
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


def start(setup: Setup, layout: Layout) -> tuple[MDState, Watch]:
    """The batch at step 0 with neighbour lists of the given capacities (traceable)."""
    config = setup.config
    system = from_ase(setup.atoms, np.dtype(config.dtype))
    dtype = system.positions.dtype
    kT = jnp.asarray(setup.temperatures * units.BOLTZMANN, dtype)
    integrator = setup.method.integrator(setup.potential.evaluate)
    stress = jnp.asarray(external_stress(config), dtype)
    key = jax.random.PRNGKey(config.seed)
    neighbors = build(system, layout)
    nearest = jnp.asarray(nearest_distance(setup.atoms), dtype)

    def one(replica: jax.Array, target: jax.Array) -> tuple[MDState, Watch]:
        own_key = jax.random.fold_in(key, replica)
        if config.ensemble == "npt":
            state = integrator.init(own_key, system, neighbors, target, stress)
        else:
            state = integrator.init(own_key, system, neighbors, target)
        return state, watch_init(system, target, nearest)

    return jax.vmap(one)(jnp.arange(len(setup.temperatures)), kT)


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
    """

    states: MDState
    watch: Watch
    done: int
    pending: tuple[Sample, ...]


def simulate(setup: Setup, folder: Path, console: Console) -> None:
    """Advance the sweep to its end from its newest checkpoint, or from the start, storing frames and checkpoints."""
    config, n_replicas = setup.config, len(setup.temperatures)
    paths = trajectory_paths(folder, config)
    checkpoints = Checkpoints(folder / "checkpoints")
    at, spent = _restore(setup, checkpoints, paths, console) or (_begin(setup, paths), 0.0)
    mesh = replica_mesh(n_replicas)
    states, watch = pad_replicas(at.states, at.watch, mesh)
    began = saved = time.monotonic()

    def save(at: Position) -> Position:
        if not at.pending:
            return at
        frames = _flush(paths, at, config.timestep)
        own = jax.tree.map(lambda x: x[:n_replicas], (at.states, at.watch))
        metadata = {
            "layout": layout_to_json(at.states.neighbors.layout),
            "frames": frames,
            "seconds": spent + time.monotonic() - began,
        }
        checkpoints.save(at.done, own, metadata)
        return dataclasses.replace(at, pending=())

    chunks = run_chunks(
        setup.potential, setup.method, states, watch, setup.schedule, setup.limits, setup.topology, at.done, mesh
    )
    first_step = min((at.done - 1) * config.sample_every, config.steps)
    labels = [f"{t:g}" for t in setup.temperatures]
    repeats = perovskite_repeats(setup.atoms) or config.supercell
    try:
        with Progress(console, config.steps, first_step, config.timestep, labels) as progress:
            for chunk in chunks:
                own = jax.tree.map(lambda x: x[:, :n_replicas], chunk.samples)
                if chunk.regrown:
                    progress.say("neighbour list enlarged; that chunk was done again")
                for line in _newly_lost(setup, at.watch, chunk.watch):
                    progress.say(line)
                done = chunk.first_sample + own.step.shape[0]
                at = Position(chunk.states, chunk.watch, done, (*at.pending, own))
                progress.update(int(own.step[-1].max()), own.valid[-1], _c_over_a(own.cell[-1], repeats))
                if time.monotonic() - saved > config.checkpoint_every:
                    at, saved = save(at), time.monotonic()
    except StorageError:
        raise
    except BaseException:  # an interrupt, say: what is computed is kept
        save(at)
        raise
    save(at)
    for path in paths:
        finalize_trajectory(path, valid_frames(path))
    _write_outcome(setup, folder, at.watch, spent + time.monotonic() - began)


def _begin(setup: Setup, paths: list[Path]) -> Position:
    """The run at step 0, with empty trajectories."""
    system = from_ase(setup.atoms, np.dtype(setup.config.dtype))
    # Thermal disorder brings in shells that the perfect lattice has just outside; better to make room at the start.
    shaken = [setup.atoms.copy() for _ in range(2)]
    for seed, atoms in enumerate(shaken):
        atoms.rattle(0.2, seed=seed)
    moved = [dataclasses.replace(system, positions=jnp.asarray(a.positions, system.positions.dtype)) for a in shaken]
    skin = setup.config.skin or setup.potential.usual_skin
    layout = setup.potential.allocate([system, *moved], skin, headroom=1.1)
    paths[0].parent.mkdir(exist_ok=True)
    for path in paths:
        create_trajectory(path, system, setup.schedule.n_samples, OBSERVABLES)

    def first(potential: Potential) -> tuple[MDState, Watch, Sample]:
        states, watch = start(dataclasses.replace(setup, potential=potential), layout)
        return states, watch, sample(potential, setup.method, states, watch, setup.topology)

    states, watch, initial = jax.jit(first)(setup.potential)  # parameters as arguments, not as constants
    return Position(states, watch, 1, (jax.tree.map(lambda x: np.asarray(x)[None], initial),))


def _restore(
    setup: Setup, checkpoints: Checkpoints, paths: list[Path], console: Console
) -> tuple[Position, float] | None:
    """The run at its newest usable checkpoint and the seconds it took to get there, or None where there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        checkpoint = checkpoints.restore()
    for warning in caught:
        console.print(f"warning: {warning.message}", highlight=False, soft_wrap=True)
    if checkpoint is None:
        return None
    layout = layout_from_json(checkpoint.metadata["layout"])
    states, watch = checkpoint.into(jax.eval_shape(lambda: start(setup, layout)))
    for path, frames in zip(paths, checkpoint.metadata["frames"], strict=True):
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


def _newly_lost(setup: Setup, before: Watch, after: Watch) -> list[str]:
    """One line for every replica that failed between two watches."""
    lines = []
    for replica, temperature in enumerate(setup.temperatures):
        reason = int(after.reason[replica])
        if reason and not int(before.reason[replica]):
            why = setup.limits.describe(reason)
            lines.append(
                f"{temperature:g} K stopped at step {int(after.failed_step[replica])}: {why}; the others go on"
            )
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


def _write_outcome(setup: Setup, folder: Path, watch: Watch, seconds: float) -> None:
    """How each replica ended, for the report."""
    reasons, steps = np.asarray(watch.reason), np.asarray(watch.failed_step)
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
