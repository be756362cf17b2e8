"""The stored run of a batch: it goes on from its newest checkpoint, keeps frames and says how it ended.

A sweep, the windows of a Landau free energy and the switches to an Einstein crystal all run through `advance`.
"""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Bool, Float
from rich.console import Console

from jaxpto.devices.processes import Processes
from jaxpto.devices.sharding import divisible
from jaxpto.errors import InputError
from jaxpto.integrators.state import MDState
from jaxpto.md.batch import Batch
from jaxpto.md.health import Limits, Watch
from jaxpto.md.initial import begin, first_layout, initial_state
from jaxpto.md.loop import pad_replicas, rebuild_all, replica_mesh
from jaxpto.md.loop import run as run_chunks
from jaxpto.observables.observable import Observable, Sample
from jaxpto.storage.checkpoint import Checkpoint, Checkpoints, CheckpointWarning, layout_from_json, layout_to_json
from jaxpto.storage.files import StorageError
from jaxpto.storage.run_folder import check_nothing_lost, mark_unsaved, remove_results, unmark_unsaved
from jaxpto.storage.trajectory import (
    Quantity,
    check_trajectory,
    create_trajectory,
    finalize_trajectory,
    valid_frames,
    write_frames,
)
from jaxpto.system import from_ase
from jaxpto.units import spell_kelvin


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """A batch and where its results go.

    Attributes:
        batch: the replicas.
        folder: for checkpoints/ and trajectories/; it exists, and is held by `one_run`.
        identity: what nothing but this run has; checkpoints and trajectories carry it, and those of another run are
            refused. "" for a run of an earlier version.
        frames: whether every sample is kept in trajectories; otherwise the final state is all there is.
        checkpoint_every: seconds between two checkpoints.
    """

    batch: Batch
    folder: Path
    identity: str
    frames: bool
    checkpoint_every: float

    @property
    def trajectories(self) -> list[Path]:
        """The file of each replica, or nothing."""
        return trajectory_paths(self.folder, self.batch.temperatures.tolist()) if self.frames else []


class Display(Protocol):
    """What a run tells while it goes on (a context manager); `ProgressLine` is one."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *_: object) -> None: ...

    def number(self, sample: Sample) -> Float[np.ndarray, " r"]:
        """One number of each replica, from a sample of the batch."""
        ...

    def update(self, step: int, alive: Bool[np.ndarray, " r"], numbers: Float[np.ndarray, " r"]) -> None:
        """Show the state after so many steps."""
        ...

    def say(self, line: str) -> None:
        """Write a line that stays."""
        ...


@dataclasses.dataclass(frozen=True)
class RunState:
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
    pending: tuple[Sample, ...] = ()


class Ended(NamedTuple):
    """Why [replicas] and at which step each replica of all processes ended, as in `Watch`."""

    reason: np.ndarray
    step: np.ndarray

    @classmethod
    def of(cls, watch: Watch, n_own: int, processes: Processes) -> Ended:
        """What the watch of each process's own replicas says."""
        reason, step = jax.device_get((watch.reason, watch.failed_step))
        return processes.join(cls(reason[:n_own], step[:n_own]))

    def describe(self, limits: Limits) -> list[str]:
        """Why each replica ended in words, "" where it came through."""
        return [limits.describe(int(reason)) if reason else "" for reason in self.reason]


class Finished(NamedTuple):
    """The end of a run: final states of this process's replicas, how all replicas ended, seconds it took in all."""

    states: MDState
    ended: Ended
    seconds: float


def advance(
    run: StoredRun,
    display: Callable[[int], Display],
    console: Console,
    processes: Processes = Processes(),  # noqa: B008
) -> Finished:
    """Advance a run to its end from its newest checkpoint, or from the start, storing frames and checkpoints.

    Of several processes each advances and stores its own replicas; the first one saves the checkpoints.

    Args:
        run: the batch and its folder.
        display: (first step) -> what is shown while the run goes on.
        console: for warnings.
        processes: that share the run.

    Raises:
        InputError: checkpoints or trajectories of the run so far are missing, damaged or of another run.
        StorageError: the disk fails; what was computed up to the last checkpoint stays.
    """
    batch, mine = run.batch, processes.own(len(run.batch.temperatures))
    n_own = mine.stop - mine.start
    files = _Files(run, mine)
    restored = _restore(run, files, console, processes)
    if restored is None:
        check_nothing_lost(run.folder, files.paths)
    processes.any(False)  # all have found theirs whole before anything changes
    if processes.first and (restored is None or restored[0].done < batch.schedule.n_samples):
        remove_results(run.folder)
    at, spent = restored or (_begin(run, files, processes), 0.0)
    mesh = replica_mesh(n_own, batch.usable_devices(), batch.devices_per_replica)
    states, watch = pad_replicas(at.states, at.watch, mesh)
    began = saved = time.monotonic()

    def save(at: RunState) -> RunState:
        if not at.pending:
            return at
        frames = processes.join(np.asarray(files.flush(at), np.int64))
        metadata = {
            "identity": run.identity,
            "layout": layout_to_json(at.states.neighbors.layout),
            "frames": frames.tolist(),
            "seconds": spent + time.monotonic() - began,
        }
        own = jax.tree.map(lambda x: x[:n_own], (at.states, at.watch))
        if (everything := processes.collect(own)) is not None:
            files.checkpoints.save(at.done, everything, metadata)
            unmark_unsaved(run.folder)
        return dataclasses.replace(at, pending=())

    ended = Ended.of(at.watch, n_own, processes)
    first_step = min((at.done - 1) * batch.schedule.sample_every, batch.schedule.steps)
    try:
        with display(first_step) as shown:
            for chunk in run_chunks(batch, states, watch, at.done, mesh, processes):
                own = jax.tree.map(lambda x: x[:, :n_own], chunk.samples)
                if chunk.regrown:
                    shown.say("neighbour list enlarged")
                before, ended = ended, Ended.of(chunk.watch, n_own, processes)
                for line in _newly_lost(batch, before, ended):
                    shown.say(line)
                done = chunk.first_sample + own.step.shape[0]
                at = RunState(chunk.states, chunk.watch, done, (*at.pending, own))
                last = jax.tree.map(lambda x: x[-1], own)
                step, valid, numbers = processes.join((last.step, last.valid, shown.number(last)))
                shown.update(int(step.max()), valid, numbers)
                # the clock of the first process counts for all
                if processes.join(np.asarray([time.monotonic() - saved]))[0] > run.checkpoint_every:
                    at, saved = save(at), time.monotonic()
    except StorageError:
        raise
    except BaseException:  # an interrupt, say: what is computed is kept
        if processes.count == 1:  # of several, the others may be elsewhere: the run goes back to its last checkpoint
            save(at)
        raise
    save(at)
    files.finalize()
    ended = Ended.of(at.watch, n_own, processes)  # and all trajectories are complete
    return Finished(jax.tree.map(lambda x: x[:n_own], at.states), ended, spent + time.monotonic() - began)


class _Files:
    """Checkpoints of a run, and the trajectories of some of its replicas."""

    def __init__(self, run: StoredRun, mine: slice):
        self.run, self.checkpoints = run, Checkpoints(run.folder / "checkpoints")
        self.paths = run.trajectories[mine]
        named: dict[str, str | int | float] = {"run": run.identity} if run.identity else {}
        numbers = _numbers_at_temperature(run.batch.temperatures.tolist())
        origins = [named | {"temperature_K": kelvin, "replica": number} for kelvin, number in numbers]
        self.origins = origins[mine] if run.frames else []

    def create(self) -> None:
        """Empty trajectories of full length."""
        batch = self.run.batch
        system = from_ase(batch.atoms, np.dtype(batch.start.systems.positions.dtype))
        for path, origin in zip(self.paths, self.origins, strict=True):
            path.parent.mkdir(exist_ok=True)
            create_trajectory(path, system, batch.schedule.n_samples, quantities(batch.observables), origin)

    def check(self, checkpoint: Checkpoint, mine: slice) -> None:
        """Refuse trajectories that do not hold what a checkpoint counts, or other observables than the run measures."""
        wanted = quantities(self.run.batch.observables)
        counts = checkpoint.metadata["frames"][mine] if self.run.frames else []
        for path, frames, origin in zip(self.paths, counts, self.origins, strict=True):
            check_trajectory(path, frames, origin, wanted)

    def flush(self, at: RunState) -> list[int]:
        """Write the valid pending samples of each replica to its trajectory; gives the frames each then holds."""
        if not self.paths:
            return []
        samples = jax.tree.map(lambda *parts: np.concatenate(parts), *at.pending)
        first = at.done - samples.step.shape[0]
        for replica, path in enumerate(self.paths):
            n_valid = int(samples.valid[:, replica].sum())  # a replica that failed never comes back: a prefix
            if n_valid == 0:
                continue
            own = jax.tree.map(lambda x, r=replica, n=n_valid: x[:n, r], samples)
            time_fs = own.step * self.run.batch.timestep
            frames = {"step": own.step, "time": time_fs, "position": own.positions, "cell": own.cell}
            write_frames(path, first, frames | own.values)
        return [valid_frames(path) for path in self.paths]

    def finalize(self) -> None:
        """Cut trajectories of replicas that ended early to their frames."""
        for path in self.paths:
            finalize_trajectory(path, valid_frames(path))


def _begin(run: StoredRun, files: _Files, processes: Processes) -> RunState:
    """The run at step 0, with empty trajectories."""
    layout = first_layout(run.batch)
    # rounding may differ between kinds of machines: the first process decides
    layout = layout_from_json(json.loads(processes.gather(json.dumps(layout_to_json(layout)).encode())[0]))
    if processes.first:
        mark_unsaved(run.folder)
    files.create()
    states, watch, initial = begin(run.batch, layout, processes.own(len(run.batch.temperatures)))
    return RunState(states, watch, 1, (jax.tree.map(lambda x: np.asarray(x)[None], initial),))


def _restore(run: StoredRun, files: _Files, console: Console, processes: Processes) -> tuple[RunState, float] | None:
    """The run at its newest usable checkpoint and the seconds it took to get there, or None where there is none.

    Raises:
        InputError: the processes do not find the same one, it is that of another run, or what `Checkpoints.restore`,
            `into` and `check_trajectory` refuse.
    """
    batch, mine = run.batch, processes.own(len(run.batch.temperatures))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        checkpoint = files.checkpoints.restore()
    for warning in caught:
        console.print(f"warning: {warning.message}")
    found = processes.join(np.asarray([-1 if checkpoint is None else checkpoint.index]))
    if (found != found[0]).any():
        raise InputError(f"{files.checkpoints.directory}: processes find the checkpoints {found.tolist()}; run again")
    if checkpoint is None:
        return None
    # of an earlier version only checkpoints without trajectories have an identity
    if checkpoint.metadata.get("identity", run.identity) != run.identity:
        raise InputError(f"{files.checkpoints.directory} is that of a run with other settings; name a new `out`")
    layout = layout_from_json(checkpoint.metadata["layout"])
    template = jax.eval_shape(lambda: initial_state(batch, layout))
    states, watch = jax.tree.map(lambda x: x[mine], checkpoint.into(template))
    shared = divisible(layout, batch.devices_per_replica)
    if shared != layout:  # fewer devices shared a replica when this was saved
        states = rebuild_all(states, shared)
    files.check(checkpoint, mine)
    console.print(f"continuing after {checkpoint.index} of {batch.schedule.n_samples} samples")
    return RunState(states, watch, checkpoint.index), float(checkpoint.metadata.get("seconds", 0.0))


def _newly_lost(batch: Batch, before: Ended, after: Ended) -> list[str]:
    """One line for every replica that failed in between."""
    return [
        f"{spell_kelvin(kelvin)} K stopped at step {int(step)}: {batch.limits.describe(int(reason))}; the others go on"
        for kelvin, reason, step, earlier in zip(batch.temperatures, *after, before.reason, strict=True)
        if reason and not earlier
    ]


def quantities(observables: tuple[Observable, ...]) -> dict[str, Quantity]:
    """What a trajectory stores of observables, in their order."""
    return {one.name: Quantity(one.shape, one.unit) for one in observables}


def trajectory_paths(folder: Path, temperatures: Sequence[float]) -> list[Path]:
    """One file a replica, in the order of the batch: 300K.h5md, or 300K_1.h5md with several replicas at 300 K.

    Args:
        folder: output folder of the run.
        temperatures: target of each replica, K.
    """
    alone = len(set(temperatures)) == len(temperatures)
    names = [
        f"{spell_kelvin(kelvin)}K.h5md" if alone else f"{spell_kelvin(kelvin)}K_{number}.h5md"
        for kelvin, number in _numbers_at_temperature(temperatures)
    ]
    return [folder / "trajectories" / name for name in names]


def _numbers_at_temperature(temperatures: Sequence[float]) -> list[tuple[float, int]]:
    """The temperature of each replica, and its number among those of that temperature."""
    seen: Counter[float] = Counter()
    found = []
    for kelvin in temperatures:
        found.append((float(kelvin), seen[kelvin]))
        seen[kelvin] += 1
    return found
