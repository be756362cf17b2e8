"""Short runs at constant temperature and pressure, all replicas of all conditions in one compiled program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto import units
from jaxpto.devices.sequential import sequential_over_replicas
from jaxpto.errors import InputError
from jaxpto.integrators.state import MDState, Method
from jaxpto.md.config import SweepConfig, check
from jaxpto.md.loop import Limits, Sample, Schedule, Watch, pad_replicas, replica_mesh, watch_init
from jaxpto.md.loop import run as run_chunks
from jaxpto.md.preparation import ATOM_STEPS_PER_CHUNK, check_dynamics, method_of, nearest_distance
from jaxpto.neighbors import Layout, build
from jaxpto.observables.lattice import UnitCell
from jaxpto.perovskite.polarization import PolarizationTopology, build_topology
from jaxpto.perovskite.unit_cell import unit_cell
from jaxpto.potential import Potential
from jaxpto.structures import make_supercell, read_input
from jaxpto.system import System, from_ase


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is simulated, whatever the parameters.

    Attributes:
        atoms: the supercell.
        conditions: temperature (K) and pressure (GPa) of each of the s ensembles.
        replicas: independent runs of each.
        discarded: samples at the beginning of each run that are left out.
        unit: the cell whose lattice parameters are observed.
        topology: coefficients of the polarization, or None.
        note: why there is no polarization, or "".
        notes: what the structure's file holds and a simulation does not use.
        method, schedule, limits: what the compiled program depends on.
    """

    atoms: ase.Atoms
    conditions: tuple[tuple[float, float], ...]
    replicas: int
    discarded: int
    unit: UnitCell
    topology: PolarizationTopology | None
    note: str
    method: Method
    schedule: Schedule
    limits: Limits
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Samples kept of each run."""
        return self.schedule.n_samples - 1 - self.discarded

    @property
    def frames(self) -> int:
        """Frames of each ensemble."""
        return self.replicas * self.samples


@dataclasses.dataclass(frozen=True)
class Frames:
    """What was sampled: s ensembles of f frames, those of one replica in a row.

    Attributes:
        positions: [s, f, n, 3] Angstrom, unwrapped.
        cells: [s, f, 3, 3] Angstrom.
        polarizations: [s, f, 3] C/m^2, NaN where there is none.
    """

    positions: Float[np.ndarray, "s f n 3"]
    cells: Float[np.ndarray, "s f 3 3"]
    polarizations: Float[np.ndarray, "s f 3"]


def make_plan(settings: SweepConfig, conditions: list[tuple[float, float]]) -> Plan:
    """Settle everything that is the same in all simulations of a run.

    Args:
        settings: settings of one simulation; its temperatures and pressure are not used.
        conditions: temperature (K) and pressure (GPa) of each ensemble.

    Raises:
        InputError: settings that cannot run, or too few samples.
    """
    temperatures = tuple(dict.fromkeys(kelvin for kelvin, _ in conditions))
    check(dataclasses.replace(settings, temperatures=temperatures))
    given = read_input(settings.structure, "dynamics", format=settings.format, species=settings.species)
    atoms = make_supercell(given.atoms, settings.repeats)
    check_dynamics(settings, atoms)
    topology, note = build_topology(atoms, settings.charges, np.float32)
    runs = len(conditions) * settings.replicas
    per_sample = runs * len(atoms) * settings.sample_every
    chunk = int(np.clip(ATOM_STEPS_PER_CHUNK // per_sample, 1, 100))
    schedule = Schedule(settings.steps, settings.sample_every, chunk)
    discarded = math.ceil(settings.equilibration * (schedule.n_samples - 1))
    unit = unit_cell(atoms, settings.repeats)
    plan = Plan(
        atoms, tuple(conditions), settings.replicas, discarded, unit, topology, note, method_of(settings), schedule,
        Limits(), given.notes,
    )  # fmt: skip
    if plan.frames < 2:
        raise InputError(f"{settings.steps} steps leave {plan.frames} frames; take more steps or samples")
    return plan


def at_rest(plan: Plan) -> System:
    """Every replica [s * r] in the given structure."""
    system = from_ase(plan.atoms, np.float32)
    runs = len(plan.conditions) * plan.replicas
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * runs), system)


def last_frames(plan: Plan, frames: Frames) -> System:
    """Every replica [s * r] where it ended."""
    n = len(plan.atoms)
    last = lambda x, *shape: x.reshape(-1, plan.samples, *shape)[:, -1]  # noqa: E731
    return dataclasses.replace(
        at_rest(plan),
        positions=jnp.asarray(last(frames.positions, n, 3), np.float32),
        cell=jnp.asarray(last(frames.cells, 3, 3), np.float32),
    )


def simulate(
    plan: Plan,
    potential: Potential,
    starts: System,
    layout: Layout,
    key: Array,
    progress: Callable[[int], None],
) -> tuple[Frames, Layout]:
    """Run all replicas from `starts` with new velocities.

    Args:
        plan: what is simulated.
        potential: in float32.
        starts: batched, [s * r].
        layout: sizes of neighbour lists to begin with.
        key: PRNG key of the velocities.
        progress: told the steps done.

    Returns:
        The samples behind the equilibration, and the layout that did.

    Raises:
        FloatingPointError: a replica was lost.
    """
    kelvin, gigapascal = (np.repeat(column, plan.replicas) for column in np.array(plan.conditions).T)
    runs = len(kelvin)
    mesh = replica_mesh(runs)
    nearest = nearest_distance(plan.atoms)
    ideal = from_ase(plan.atoms, np.float32)

    def begin(potential: Potential, starts: System, key: Array) -> tuple[MDState, Watch]:
        integrator = plan.method(sequential_over_replicas(potential.evaluate))

        def one(system: System, own_key: Array, kT: Array, pressure: Array) -> tuple[MDState, Watch]:
            stress = -pressure * jnp.eye(3, dtype=pressure.dtype)
            state = integrator.init(own_key, system, build(system, layout), kT, stress)
            # displacements count from the sites of the crystal, wherever a replica starts
            return state, watch_init(ideal, kT, jnp.asarray(nearest, np.float32))

        keys = jax.vmap(lambda run: jax.random.fold_in(key, run))(jnp.arange(runs))
        kT = jnp.asarray(kelvin * units.BOLTZMANN, np.float32)
        return jax.vmap(one)(starts, keys, kT, jnp.asarray(gigapascal * units.GIGAPASCAL, np.float32))

    states, watch = pad_replicas(*jax.jit(begin)(potential, starts, key), mesh)
    collected: list[Sample] = []
    for chunk in run_chunks(potential, plan.method, states, watch, plan.schedule, plan.limits, plan.topology, 1, mesh):
        layout = chunk.states.neighbors.layout
        reasons = np.asarray(chunk.watch.reason)[:runs]
        if reasons.any():
            lost = int(np.argmax(reasons > 0))
            raise FloatingPointError(
                f"a replica at {kelvin[lost]:g} K was lost ({plan.limits.describe(int(reasons[lost]))}); "
                "the model has left what its data hold: lower `rate`, or ask for less"
            )
        collected.append(chunk.samples)
        progress(int(chunk.samples.step[-1].max()))
    samples = jax.tree.map(lambda *parts: np.concatenate(parts)[plan.discarded :, :runs], *collected)

    def arrange(values: np.ndarray) -> np.ndarray:
        by_run = np.swapaxes(np.asarray(values), 0, 1)
        return by_run.reshape(len(plan.conditions), plan.frames, *by_run.shape[2:])

    return Frames(*map(arrange, (samples.positions, samples.cell, samples.polarization))), layout
