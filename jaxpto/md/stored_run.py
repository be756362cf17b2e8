"""A sweep between its set-up and its folder: the stored and resumable run of the batch, and how it ended."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from jaxpto.devices.processes import Processes
from jaxpto.devices.sharding import divisible
from jaxpto.errors import InputError
from jaxpto.integrators.state import MDState
from jaxpto.md.config import SweepConfig
from jaxpto.md.health import MOLTEN, Watch
from jaxpto.md.loop import pad_replicas, rebuild_all, replica_mesh
from jaxpto.md.loop import run as run_chunks
from jaxpto.md.preparation import Setup, begin, first_layout, start, usable_devices
from jaxpto.md.progress import ProgressLine
from jaxpto.observables.observable import Observable, Sample
from jaxpto.storage.checkpoint import Checkpoints, CheckpointWarning, layout_from_json, layout_to_json
from jaxpto.storage.files import StorageError, write_json_atomic
from jaxpto.storage.run_folder import OUTCOME_FILE, check_nothing_lost, mark_unsaved, remove_results, unmark_unsaved
from jaxpto.storage.space import require_space
from jaxpto.storage.thermo import BYTES_OF_A_NUMBER, write_thermo
from jaxpto.storage.trajectory import (
    Quantity,
    check_trajectory,
    create_trajectory,
    finalize_trajectory,
    trajectory_bytes,
    valid_frames,
    write_frames,
)
from jaxpto.system import from_ase
from jaxpto.units import spell_kelvin

CHECKPOINTS_AT_ONCE = 3  # the two that stay and the one being written
BYTES_OF_AN_EDGE = 8  # sender and image
BYTES_OF_AN_ATOM = 80  # positions, velocities, forces, wraps and what the neighbour list was built for


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


def simulate(
    setup: Setup,
    folder: Path,
    console: Console,
    processes: Processes = Processes(),  # noqa: B008
    run: str = "",
) -> None:
    """Advance the sweep to its end from its newest checkpoint, or from the start, storing frames and checkpoints.

    Of several processes each advances and stores its own replicas; the first one writes everything else.

    Args:
        setup: the sweep.
        folder: its output folder, in which no other run goes on.
        console: for the progress line.
        processes: that share the sweep.
        run: its name in config.json, which the trajectories carry.

    Raises:
        InputError: checkpoints or trajectories of the run so far are missing, damaged or of another run.
        StorageError: the disk fails; what was computed up to the last checkpoint stays.
    """
    config = setup.config
    mine = processes.own(len(setup.temperatures))
    paths, n_replicas = trajectory_paths(folder, config)[mine], mine.stop - mine.start
    checkpoints = Checkpoints(folder / "checkpoints")
    origins = _origins(config, run)[mine]
    restored = _restore(setup, checkpoints, paths, origins, console, processes)
    if restored is None:
        check_nothing_lost(folder, paths)
    processes.any(False)  # all have found theirs whole before anything changes
    if processes.first and (restored is None or restored[0].done < setup.schedule.n_samples):
        remove_results(folder)
    at, spent = restored or (_begin(setup, paths, origins, processes), 0.0)
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
            unmark_unsaved(folder)
        return dataclasses.replace(at, pending=())

    chunks = run_chunks(
        setup.potential, setup.method, states, watch, setup.schedule, setup.limits, setup.observables, at.done, mesh,
        processes,
    )  # fmt: skip
    first_step = min((at.done - 1) * config.sample_every, config.steps)
    labels = [spell_kelvin(t) for t in setup.temperatures]
    ended = _Ended.of(at.watch, n_replicas, processes)
    try:
        with ProgressLine(
            console, config.steps, first_step, config.timestep, labels, setup.measurements.label
        ) as progress:
            for chunk in chunks:
                own = jax.tree.map(lambda x: x[:, :n_replicas], chunk.samples)
                if chunk.regrown:
                    progress.say("neighbour list enlarged; that chunk was done again")
                before, ended = ended, _Ended.of(chunk.watch, n_replicas, processes)
                for line in _newly_lost(setup, before, ended):
                    progress.say(line)
                done = chunk.first_sample + own.step.shape[0]
                at = Position(chunk.states, chunk.watch, done, (*at.pending, own))
                last = jax.tree.map(lambda x: x[-1], own)
                step, valid, shown = processes.join((last.step, last.valid, setup.measurements.shown(last)))
                progress.update(int(step.max()), valid, shown)
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
        write_thermo(folder)


class _Ended(NamedTuple):
    """Why [replicas] and at which step each replica of all processes ended, as in `Watch`."""

    reason: np.ndarray
    step: np.ndarray

    @classmethod
    def of(cls, watch: Watch, n_own: int, processes: Processes) -> _Ended:
        reason, step = jax.device_get((watch.reason, watch.failed_step))
        return processes.join(cls(reason[:n_own], step[:n_own]))


def _begin(
    setup: Setup, paths: list[Path], origins: list[dict[str, str | int | float]], processes: Processes
) -> Position:
    """The run at step 0, with empty trajectories."""
    system, layout = from_ase(setup.atoms, np.dtype(setup.config.dtype)), first_layout(setup)
    # rounding may differ between kinds of machines: the first process decides
    layout = layout_from_json(json.loads(processes.gather(json.dumps(layout_to_json(layout)).encode())[0]))
    paths[0].parent.mkdir(exist_ok=True)
    if processes.first:
        mark_unsaved(paths[0].parent.parent)
    for path, origin in zip(paths, origins, strict=True):
        create_trajectory(path, system, setup.schedule.n_samples, quantities(setup.observables), origin)

    states, watch, initial = begin(setup, layout, processes.own(len(setup.temperatures)))
    return Position(states, watch, 1, (jax.tree.map(lambda x: np.asarray(x)[None], initial),))


def _restore(
    setup: Setup,
    checkpoints: Checkpoints,
    paths: list[Path],
    origins: list[dict[str, str | int | float]],
    console: Console,
    processes: Processes,
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
        console.print(f"warning: {warning.message}")
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
    for path, frames, origin in zip(paths, checkpoint.metadata["frames"][mine], origins, strict=True):
        check_trajectory(path, frames, origin)
    console.print(f"continuing after {checkpoint.index} of {setup.schedule.n_samples} samples")
    return Position(states, watch, checkpoint.index, ()), float(checkpoint.metadata["seconds"])


def quantities(observables: tuple[Observable, ...]) -> dict[str, Quantity]:
    """What a trajectory stores of observables, in their order."""
    return {one.name: Quantity(one.shape, one.unit) for one in observables}


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
        write_frames(path, first, frames | own.values)
    return [valid_frames(path) for path in paths]


def _newly_lost(setup: Setup, before: _Ended, after: _Ended) -> list[str]:
    """One line for every replica that failed in between."""
    lines = []
    for replica, temperature in enumerate(setup.temperatures):
        reason = int(after.reason[replica])
        if reason and not int(before.reason[replica]):
            why = setup.limits.describe(reason)
            lines.append(
                f"{spell_kelvin(temperature)} K stopped at step {int(after.step[replica])}: {why}; the others go on"
            )
    return lines


def trajectory_paths(folder: Path, config: SweepConfig) -> list[Path]:
    """One file a replica, in the order of the batch: 300K.h5md, or 300K_1.h5md with several replicas."""
    return [
        folder
        / "trajectories"
        / (f"{spell_kelvin(t)}K.h5md" if config.replicas == 1 else f"{spell_kelvin(t)}K_{r}.h5md")
        for t in config.temperatures
        for r in range(config.replicas)
    ]


def _origins(config: SweepConfig, run: str) -> list[dict[str, str | int | float]]:
    """What each trajectory is told of where it belongs, in the order of the batch."""
    named: dict[str, str | int | float] = {"run": run} if run else {}
    return [
        named | {"temperature_K": float(t), "replica": r} for t in config.temperatures for r in range(config.replicas)
    ]


def check_space(setup: Setup, folder: Path) -> None:
    """Refuse a run whose trajectories and checkpoints the disk cannot hold; what is there already counts.

    Raises:
        InputError: with the figures.
    """
    config, n_replicas = setup.config, len(setup.temperatures)
    system = from_ase(setup.atoms, np.dtype(config.dtype))
    stored = quantities(setup.observables)
    frames = n_replicas * trajectory_bytes(system, setup.schedule.n_samples, stored)
    columns = 4 + sum(math.prod(one.shape) for one in stored.values())
    table = n_replicas * setup.schedule.n_samples * columns * BYTES_OF_A_NUMBER
    # Neighbours as the mean density gives them, and as much again: capacities are those of the densest atom.
    reach = setup.potential.cutoff + (config.skin or setup.potential.usual_skin)
    edges = 2 * len(setup.atoms) ** 2 / setup.atoms.get_volume() * 4 / 3 * np.pi * reach**3
    state = n_replicas * (edges * BYTES_OF_AN_EDGE + len(setup.atoms) * BYTES_OF_AN_ATOM)
    paths = trajectory_paths(folder, config)
    saved = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    require_space(
        folder,
        int(frames + table + CHECKPOINTS_AT_ONCE * state),
        f"{frames / 1e6:.0f} MB for {setup.schedule.n_samples} frames of {n_replicas} replicas of {len(setup.atoms)} "
        f"atoms, {table / 1e6:.0f} MB for time series, {CHECKPOINTS_AT_ONCE * state / 1e6:.0f} MB for checkpoints",
        [*paths, *saved],
    )


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """How each replica of a finished run ended, as `simulate` wrote it; None where there is nothing."""
    path = folder / OUTCOME_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write_outcome(setup: Setup, folder: Path, ended: _Ended, seconds: float) -> None:
    """How each replica ended, for the report."""
    reasons, steps = ended
    replicas = [
        {
            "temperature_K": float(temperature),
            "trajectory": path.name,
            "frames": valid_frames(path),
            "status": "ok" if reasons[r] == 0 else "molten" if reasons[r] == MOLTEN else "failed",
            "reason": "" if reasons[r] == 0 else setup.limits.describe(int(reasons[r])),
            "step_failed": None if reasons[r] == 0 else int(steps[r]),
        }
        for r, (temperature, path) in enumerate(
            zip(setup.temperatures, trajectory_paths(folder, setup.config), strict=True)
        )
    ]
    notes = {"polarization_note": setup.measurements.note, "caveat": setup.potential.caveat}
    write_json_atomic(folder / OUTCOME_FILE, {"replicas": replicas, **notes, "seconds": seconds})
