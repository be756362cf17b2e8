"""The training loop: frames drawn at random, gradients on all devices, validations, checkpoints, the best model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpto.console.interrupts import interrupts_held
from jaxpto.training.checkpoint import checkpoint, restore
from jaxpto.training.config import TrainConfig
from jaxpto.training.progress import progress_line
from jaxpto.training.setup import Task
from jaxpto.training.steps import (
    TrainState,
    begin,
    make_gradient,
    make_sum,
    make_update,
    no_gradient,
    predicts_moments,
)
from jaxpto.training.validation import Validation, make_validation

CHECKPOINT = "training.npz"
BLOCK = 1000  # steps whose frames are drawn at a time
PLAIN_INTERVAL = 20.0  # seconds between two progress lines


class DrawnFrames:
    """Which frames each step takes: a function of seed and step alone, so that a resumed run repeats it."""

    def __init__(self, task: Task, seed: int):
        self._draw = np.concatenate([group.probability for group in task.groups])
        sizes = [len(group.probability) for group in task.groups]
        self._group = np.repeat(np.arange(len(sizes)), sizes)
        self._row = np.concatenate([np.arange(size) for size in sizes])
        self._batch, self._seed, self._block = task.settled.batch, seed, -1
        self._order = np.zeros((BLOCK, self._batch), int)

    def of_step(self, step: int) -> list[tuple[int, int]]:
        """Group and row of each frame of a step."""
        if step // BLOCK != self._block:
            self._block = step // BLOCK
            generator = np.random.default_rng([self._seed, self._block])
            probability = self._draw / self._draw.sum()
            self._order = generator.choice(len(self._draw), (BLOCK, self._batch), p=probability)
        picks = self._order[step % BLOCK]
        return [(int(self._group[pick]), int(self._row[pick])) for pick in picks]


def make_step(config: TrainConfig, task: Task, devices: list[jax.Device]) -> Callable[[TrainState, list], TrainState]:
    """Function (state, frames as (group, row)) -> state.

    Members of a committee take the same frames, side by side in one program.
    Every frame's gradient is computed on one device, in turn; they are summed in the order of the frames, so that the
    number of devices changes nothing. The one device of a CPU computes as many frames at a time as it has cores.
    """
    moments = predicts_moments(task.model) and any(batch.has_moments for g in task.groups for batch in g.batches)
    gradient = make_gradient(task.model, task.recipe, task.parametrization.decode, config.weights, moments=moments,
                             members=task.members)  # fmt: skip
    optimizer = task.recipe.optimizer(task.parametrization.raw, task.settled.rates)
    update = make_update(task.model, task.recipe, optimizer, config.ema, members=task.members)
    add = make_sum(task.model, task.recipe)
    devices = devices[: task.settled.batch]
    constants = [jax.device_put(task.parametrization.constants, device) for device in devices]

    def step(state: TrainState, picks: list[tuple[int, int]]) -> TrainState:
        copies = [state.raw, *(jax.device_put(state.raw, device) for device in devices[1:])]
        results, species = [], []
        for k, (group, row) in enumerate(picks):
            frame, d = task.groups[group].train.frame(row), k % len(devices)
            results.append(gradient(copies[d], constants[d], frame))  # whose arrays go where the weights are
            species.append(frame.neighbors.layout.species)
        total = no_gradient(state.raw)
        for (slope, _), some, (group, row) in zip(results, species, picks, strict=True):
            counts = None if task.counts is None else task.counts[group][row]
            total = add(total, jax.device_put(slope, devices[0]), counts, some)
        errors = [jax.device_put(seen, devices[0]) for _, seen in results]
        touched = tuple(sorted({z for some in species for z in some}))
        # else the host would run ahead by any number of steps, whose frames all lie in memory
        return jax.block_until_ready(update(state, total, errors, touched))

    return step


def optimize(
    config: TrainConfig,
    task: Task,
    identity: dict[str, Any],
    devices: list[jax.Device],
    save_model: Callable[[Any, dict[str, Any], Validation], None],
    *,
    resumed: bool,
) -> tuple[TrainState, dict[str, Any]]:
    """Train to the last step, or until patience ends.

    Args:
        config: the settings.
        task: what is trained, and on which data.
        identity: identity of the run, stored in its checkpoint.
        devices: what to compute on.
        save_model: called with parameters (of all members), progress and errors whenever a validation is the best.
        resumed: whether to go on with the checkpoint in `out`.

    Returns:
        The last state, and the progress with its history.

    Raises:
        InputError: `restore` refuses the checkpoint.
        FloatingPointError: the training diverged.
    """
    path, steps = config.out / CHECKPOINT, task.settled.rates.steps
    optimizer = task.recipe.optimizer(task.parametrization.raw, task.settled.rates)
    state = begin(task.parametrization.raw, optimizer, members=task.members)
    constants = task.parametrization.constants
    progress: dict[str, Any] = {"step": 0, "best": None, "since_best": 0, "seconds": 0.0, "history": []}
    if resumed:
        (state, constants), progress = restore(path, (state, constants), identity)
        print(f"goes on after step {progress['step']} of {steps}", flush=True)
    state = jax.device_put(state, devices[0])  # as the steps return it, or the second one would be compiled anew
    task = _with_constants(task, constants)
    take, validate = make_step(config, task, devices), make_validation(task, devices)
    decode = jax.jit(task.parametrization.decode if task.members == 1 else jax.vmap(task.parametrization.decode))
    drawn, has_virials = DrawnFrames(task, config.seed), any(t.with_virial.any() for t in task.trajectories)
    already, began, first = progress["seconds"], time.time(), progress["step"]

    def save() -> None:
        checkpoint(path, (state, constants), progress | {"identity": identity})

    if not resumed:
        save()
    compiled, saved, said = began, time.monotonic(), time.monotonic()
    every, aside, check = task.settled.validate_every, 0.0, 0.0  # seconds of all validations, and of the last one
    with interrupts_held() as interrupted:  # a step that is cut off takes the state with it
        for step in range(first, steps):
            if config.patience and progress["since_best"] >= config.patience:
                print(f"no better validation in {config.patience} checks; stopped at step {step}", flush=True)
                break
            state = take(state, drawn.of_step(step))
            done, last = step + 1, step + 1 == steps
            compiled = time.time() if step == first else compiled  # the first step holds the compilation
            if last or (step > first and time.monotonic() - said > PLAIN_INTERVAL):
                pace = (time.time() - compiled - aside) / max(done - first - 1, 1)
                left = (steps - done) * pace + (-(-steps // every) - done // every) * check
                print(progress_line(done, steps, state, pace, left, virials=has_virials), flush=True)
                said = time.monotonic()
            if done % every == 0 or last:
                stopped = time.time()
                params = decode(state.average, constants)
                found = validate(params)
                score = found.score
                if not np.isfinite(np.asarray(state.errors[0]) if score is None else score) or found.diverged:
                    raise FloatingPointError(f"training diverged before step {done}; lower `rate`")
                better = score is None or progress["best"] is None or score < progress["best"]
                row = _row(task, state, done, already + time.time() - began, found)
                progress = {
                    "step": done,
                    "seconds": row["seconds"],
                    "best": score if better else progress["best"],
                    "since_best": 0 if better else progress["since_best"] + 1,
                    "history": [*progress["history"], row],
                }
                for line in found.lines(done):
                    print(line, flush=True)
                if better:
                    save_model(params, progress, found)
                save()
                saved, check = time.monotonic(), time.time() - stopped
                aside += check
            elif interrupted() or time.monotonic() - saved > config.checkpoint_every:
                progress |= {"step": done, "seconds": already + time.time() - began}
                save()
                saved = time.monotonic()
            if interrupted():
                print(f"stopped after step {done} of {steps}, which is saved", flush=True)
                raise KeyboardInterrupt
    return state, progress


def _with_constants(task: Task, constants: Any) -> Task:
    return dataclasses.replace(task, parametrization=dataclasses.replace(task.parametrization, constants=constants))


def _row(task: Task, state: TrainState, step: int, seconds: float, found: Validation) -> dict[str, Any]:
    """One line of the history: running errors of the training, errors on held-out frames."""
    value, *squares = np.asarray(state.errors).tolist()
    energy, forces, virial, moments = (1e3 * square**0.5 for square in squares)
    return {
        "step": step,
        "seconds": seconds,
        "loss": value,
        **{name: None if np.isnan(x) else x
           for name, x in (("energy", energy), ("forces", forces), ("virial", virial), ("moments", moments))},
        "learning_rate": float(np.asarray(task.settled.rates.schedule(task.settled.rates.rate)(step))),
        "validation": found.errors,
    }  # fmt: skip


def checkpoint_of(out: Path) -> Path:
    """Where the checkpoint of a training lies."""
    return out / CHECKPOINT
