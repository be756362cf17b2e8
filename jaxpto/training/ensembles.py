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
from jaxpto.errors import InputError
from jaxpto.integrators.state import Method
from jaxpto.md.batch import Batch, Schedule, Start, schedule_of
from jaxpto.md.config import SweepConfig, check
from jaxpto.md.health import Limits
from jaxpto.md.initial import begin, nearest_distance
from jaxpto.md.loop import pad_replicas, replica_mesh
from jaxpto.md.loop import run as run_chunks
from jaxpto.md.preparation import check_dynamics, method_of
from jaxpto.neighbors import Layout
from jaxpto.observables.lattice import UnitCell
from jaxpto.observables.observable import Sample
from jaxpto.perovskite.measurements import polarization_observable
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
        timestep: fs.
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
    timestep: float
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
    topology, note = build_topology(atoms, dtype=np.float32)
    runs = len(conditions) * settings.replicas
    schedule = schedule_of(settings.steps, settings.sample_every, runs * len(atoms))
    discarded = math.ceil(settings.equilibration * (schedule.n_samples - 1))
    unit = unit_cell(atoms, settings.repeats)
    plan = Plan(
        atoms, tuple(conditions), settings.replicas, discarded, unit, topology, note, method_of(settings), schedule,
        Limits(), settings.timestep, given.notes,
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
    stress = -gigapascal[:, None, None] * units.GIGAPASCAL * np.eye(3)
    batch = Batch(
        potential=potential,
        atoms=plan.atoms,
        temperatures=kelvin,
        start=Start(
            systems=starts,
            kT=jnp.asarray(kelvin * units.BOLTZMANN, np.float32),
            key=key,
            nearest=jnp.asarray(nearest_distance(plan.atoms), np.float32),
            stress=jnp.asarray(stress, np.float32),
            crystal=from_ase(plan.atoms, np.float32),  # displacements count from its sites, wherever a replica starts
        ),
        method=plan.method,
        schedule=plan.schedule,
        limits=plan.limits,
        observables=(polarization_observable(plan.topology),),
        timestep=plan.timestep,
        skin=potential.usual_skin,
    )
    mesh = replica_mesh(len(kelvin))
    states, watch, _ = begin(batch, layout)
    states, watch = pad_replicas(states, watch, mesh)
    collected: list[Sample] = []
    for chunk in run_chunks(batch, states, watch, 1, mesh):
        layout = chunk.states.neighbors.layout
        reasons = np.asarray(chunk.watch.reason)[: len(kelvin)]
        if reasons.any():
            lost = int(np.argmax(reasons > 0))
            raise FloatingPointError(
                f"a replica at {kelvin[lost]:g} K was lost ({plan.limits.describe(int(reasons[lost]))}); "
                "the model has left what its data hold: lower `rate`, or ask for less"
            )
        collected.append(chunk.samples)
        progress(int(chunk.samples.step[-1].max()))
    samples = jax.tree.map(lambda *parts: np.concatenate(parts)[plan.discarded :, : len(kelvin)], *collected)

    def arrange(values: np.ndarray) -> np.ndarray:
        by_run = np.swapaxes(np.asarray(values), 0, 1)
        return by_run.reshape(len(plan.conditions), plan.frames, *by_run.shape[2:])

    return Frames(*map(arrange, (samples.positions, samples.cell, samples.values["polarization"]))), layout
