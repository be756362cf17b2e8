"""Relaxation of many structures at once on the device: L-BFGS over positions and log-strain, one lane per structure.

A lane's numbers depend on its own structure alone (though a program for another number of lanes may sum in another
order). A finished lane is frozen until the next structure of the same composition takes it over; the host reads a
few small arrays after each chunk of compiled steps.
"""

from __future__ import annotations

import dataclasses
import types
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxpto.errors import InputError
from jaxpto.md.loop import REPLICAS, replica_mesh
from jaxpto.model_interface import Prediction
from jaxpto.models.ase_calculator import HostCalculator
from jaxpto.models.energy_function import probe
from jaxpto.models.suitability import check_known
from jaxpto.neighbors import Layout, NeighborOverflowError, grow, grow_until_it_fits
from jaxpto.potential import Potential
from jaxpto.relaxation import lanes as device
from jaxpto.relaxation.lanes import Bounds, Lane
from jaxpto.relaxation.target import History, Relaxed, Target, check_start, with_results
from jaxpto.system import System, from_ase, stack

ATOMS_AT_ONCE = {"cpu": 512}  # enough to hide what a step costs besides the model
ATOMS_ON_ACCELERATORS = 16_384
REGROWS = 5

Advanced = tuple[Lane, Float[Array, "c r 5"]]
Advance = Callable[[Lane, Array], Advanced]


def relax_batched(
    structures: Sequence[ase.Atoms],
    potential: Potential,
    target: Target,
    on_chunk: Callable[[int, float], None] | None = None,
    on_outcome: Callable[[int, Relaxed], None] | None = None,
    finished: Mapping[int, Relaxed] = types.MappingProxyType({}),
) -> list[Relaxed]:
    """Relax many structures at once; those with the same atomic numbers in the same order share a compiled program.

    Coordinates are in double precision whatever the precision of the parameters, as in `JaxptoCalculator`. A step that
    raises the enthalpy beyond rounding is taken back, unless the potential is not conservative: its energy is not the
    integral of its forces, so that only the forces are followed, and they may vanish where there is no minimum.

    Args:
        structures: the starts; they are left as they are.
        potential: any potential but one around an ASE calculator.
        target: when a structure counts as relaxed.
        on_chunk: called with the number of structures finished and the largest residual of those running, eV/Angstrom.
        on_outcome: called with the index and the outcome of every structure as soon as it is finished.
        finished: known outcomes by index; the other outcomes are the same as if these were computed too.

    Returns:
        One outcome for each structure, in the same order.

    Raises:
        InputError: `check_start` or `check_known` refuses a structure, or the potential wraps an ASE calculator.
    """
    if isinstance(potential.model, HostCalculator):
        raise InputError(f"model {potential.name} runs in Python, one structure at a time; use the method bfgs or fire")
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, atoms in enumerate(structures):
        check_start(atoms, f"structure {index}")
        check_known(potential, atoms, f"structure {index}")
        groups[tuple(atoms.numbers.tolist())].append(index)
    outcomes: dict[int, Relaxed] = dict(finished)
    with jax.enable_x64(True):
        for members in groups.values():
            probe(potential, structures[members[0]], f"structure {members[0]}")

            def finish(place: int, outcome: Relaxed, members: list[int] = members) -> None:
                outcomes[members[place]] = outcome
                if on_outcome is not None:
                    on_outcome(members[place], outcome)

            def report(residual: float) -> None:
                if on_chunk is not None:
                    on_chunk(len(outcomes), residual)

            to_do = [place for place, index in enumerate(members) if index not in finished]
            if to_do:
                _relax_alike([structures[index] for index in members], to_do, potential, target, report, finish)
    return [outcomes[index] for index in range(len(structures))]


def _relax_alike(
    structures: list[ase.Atoms],
    to_do: Sequence[int],
    potential: Potential,
    target: Target,
    report: Callable[[float], None],
    finish: Callable[[int, Relaxed], None],
) -> None:
    """Those `to_do` of structures with the same atomic numbers, in as many lanes, as wide, as all would have."""
    systems = [from_ase(atoms, np.float64) for atoms in structures]
    layout = potential.allocate(systems, potential.usual_skin)
    at_once = ATOMS_AT_ONCE.get(layout.platform, ATOMS_ON_ACCELERATORS) // len(structures[0])
    wanted = min(len(systems), max(1, at_once))
    mesh = replica_mesh(wanted)
    width = -(-wanted // mesh.size) * mesh.size
    waiting = deque(to_do)
    occupants: list[int | None] = [waiting.popleft() if lane < wanted and waiting else None for lane in range(width)]
    spread = NamedSharding(mesh, PartitionSpec(REPLICAS))

    def starts() -> System:
        """Starting structures of the lanes; a lane without one is given the first."""
        return jax.device_put(stack([systems[own or 0] for own in occupants]), spread)

    lanes = device.enter(starts(), layout)
    lanes = _end(lanes, np.asarray([own is None for own in occupants]), device.CONVERGED)
    bounds = Bounds(jnp.asarray(target.fmax), jnp.asarray(target.external_pressure), jnp.asarray(target.steps))
    program = device.compile_advance(target.mask, mesh)
    records: list[list[np.ndarray]] = [[] for _ in systems]
    while any(own is not None for own in occupants):
        before = jax.device_get(lanes.step)
        # put in place each time: arrays elsewhere, be it one without elements, ask for another program
        lanes, measured = _advance(lambda lanes, n: program(potential, bounds, jax.device_put(lanes, spread), n), lanes)
        after, status, residual, measured = jax.device_get((lanes.step, lanes.status, lanes.residual, measured))
        for lane, own in enumerate(occupants):
            if own is not None:
                records[own].append(measured[: after[lane] - before[lane], lane])
        fresh = np.zeros(width, bool)
        ended = [lane for lane, own in enumerate(occupants) if own is not None and status[lane] != device.RUNNING]
        if ended:
            final = jax.device_get((lanes.system, lanes.prediction))
            for lane in ended:
                own = occupants[lane]
                assert own is not None
                history = np.concatenate(records[own])
                finish(own, _outcome(structures[own], *final, lane, history, int(status[lane]), target))
                fresh[lane] = bool(waiting)
                occupants[lane] = waiting.popleft() if waiting else None
            if fresh.any():
                lanes = device.choose(jnp.asarray(fresh), device.enter(starts(), lanes.neighbors.layout), lanes)
        report(float(residual[status == device.RUNNING].max(initial=0.0)))


def _advance(program: Advance, lanes: Lane, n_steps: int = device.CHUNK) -> Advanced:
    """One chunk; while a running lane overflows, discard it, enlarge the lists and do it again (bounded)."""
    running = jax.device_get(lanes.status) == device.RUNNING

    def begun(layout: Layout) -> Lane:
        return lanes if layout == lanes.neighbors.layout else device.rebuild(lanes, layout)

    def lost(advanced: Advanced) -> np.ndarray:
        return jax.device_get(advanced[0].neighbors.overflow) & running

    def enlarge(layout: Layout, advanced: Advanced) -> Layout:
        cells = np.concatenate(jax.device_get((lanes.system.cell, advanced[0].system.cell)))
        return grow(layout, cells[np.isfinite(cells).all(axis=(1, 2))])

    try:
        return grow_until_it_fits(
            lambda layout: program(begun(layout), jnp.asarray(n_steps)),
            lanes.neighbors.layout,
            overflowed=lambda advanced: bool(lost(advanced).any()),
            enlarge=enlarge,
            enlargements=REGROWS,
        ).result
    except NeighborOverflowError as error:
        collapsed, lanes = lost(error.result), begun(error.layout)
    if n_steps > 1:  # the steps before the one that overflows are kept
        return _advance(program, lanes, 1)
    return _advance(program, _end(lanes, collapsed, device.OVERFLOWED), 1)


def _end(lanes: Lane, which: np.ndarray, status: int) -> Lane:
    return dataclasses.replace(
        lanes, status=jnp.where(jnp.asarray(which), jnp.asarray(status, lanes.status.dtype), lanes.status)
    )


def _outcome(
    start: ase.Atoms,
    systems: System,
    predictions: Prediction,
    lane: int,
    history: np.ndarray,
    status: int,
    target: Target,
) -> Relaxed:
    atoms = start.copy()
    atoms.set_cell(systems.cell[lane])
    atoms.positions[:] = systems.positions[lane]
    forces, stress = np.asarray(predictions.forces[lane]), np.asarray(predictions.stress[lane])
    return Relaxed(
        atoms=with_results(atoms, float(predictions.energy[lane]), forces, stress),
        converged=status == device.CONVERGED,
        steps=len(history) - 1,
        reason=device.REASONS[status].format(steps=target.steps),
        history=History(*history.T),
        pressure=target.pressure,
    )
