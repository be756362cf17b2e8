"""Tunes a model to measured averages on top of its loss on DFT data, by gradients that need no trajectory.

Each iteration adds two gradients: that of the loss on some frames of DFT data, and that of the weighted squared
deviations of the averages from their targets. The second one comes from reweighting stored configurations
(`jaxpto.free_energy.estimators.reweighting`; Thaler and Zavadlav, Nat. Commun. 12, 6884 (2021)). New configurations are
sampled once the parameters have moved so far that too few of the old ones count. A step is halved where it would do
that to fresh configurations, or would end farther from the targets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from jaxpto.console.status_line import StatusLine
from jaxpto.model_interface import Model
from jaxpto.neighbors import Layout
from jaxpto.potential import Potential
from jaxpto.storage.checkpoint import layout_from_json, layout_to_json
from jaxpto.system import from_ase
from jaxpto.training.checkpoint import checkpoint, restore
from jaxpto.training.deviation import Look, make_look, sampled_ensembles
from jaxpto.training.ensembles import Frames, Plan, at_rest, last_frames, simulate
from jaxpto.training.groups import FrameGroup
from jaxpto.training.loss import LossWeights
from jaxpto.training.matching_options import MatchOptions
from jaxpto.training.parametrization import Parametrization
from jaxpto.training.recipe import Recipe
from jaxpto.training.steps import make_gradient, make_sum, no_gradient
from jaxpto.training.targets import MeasuredAverage

Params = Any  # what is trained, a pytree
CHECKPOINT = "matching.npz"
HALVINGS = 8  # of a step at most


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model to tune, its data and its targets.

    Attributes:
        model: architecture.
        recipe: how it is trained.
        parametrization: the weights to start from.
        groups: the DFT data.
        weights: weights of their loss.
        targets: measured averages.
        options: settings of the tuning.
        plan: the simulations.
        seed: seed of velocities and of the order of frames.
        identity: `make_identity` of the run.
    """

    model: Model
    recipe: Recipe
    parametrization: Parametrization
    groups: list[FrameGroup]
    weights: LossWeights
    targets: tuple[MeasuredAverage, ...]
    options: MatchOptions
    plan: Plan
    seed: int
    identity: dict[str, Any]

    def potential(self, raw: Params) -> Potential:
        """The potential of raw weights."""
        return Potential(self.parametrization.decode(raw, self.parametrization.constants), self.model, "matched")


@dataclasses.dataclass(frozen=True)
class Position:
    """State of a run between two iterations.

    Attributes:
        raw: weights.
        moments: state of the optimizer.
        sampled: weights that `frames` were sampled with.
        frames: configurations.
        fresh: whether they are used for the first time.
        layout: sizes of the neighbour lists in the simulation.
        iteration: changes of the weights so far.
        simulations: batches sampled so far.
        rows: the history.
        met: whether fresh configurations met all targets.
    """

    raw: Params
    moments: Any
    sampled: Params
    frames: Frames
    fresh: bool
    layout: Layout
    iteration: int
    simulations: int
    rows: tuple[dict[str, Any], ...]
    met: bool


def match_averages(
    problem: Problem,
    out: Path,
    validate: Callable[[Params], float],
    save: Callable[[Position], None],
    *,
    resume: bool,
    console: Console,
) -> Position:
    """Tune until fresh configurations meet all targets, or to the last iteration.

    Args:
        problem: the model, its data and its targets.
        out: folder of the checkpoint.
        validate: RMS error of the forces on held-out DFT data, eV/Angstrom, of weights (NaN without such data).
        save: called with the state after every iteration, to write model and history.
        resume: go on with the checkpoint in `out`.
        console: console for reports.

    Raises:
        InputError: `restore` refuses the checkpoint.
        FloatingPointError: a replica was lost, or the loss is not finite.
    """
    options, plan = problem.options, problem.plan
    rule = optax.adam(options.rate, b1=0.5)  # more momentum would carry it past the target
    look_at = make_look(problem.targets, problem.potential, plan.replicas, options.weight, options.tolerance)
    dft_gradient = make_dft_gradient(problem)
    at = _restore(problem, rule, out) if resume else _start(problem, rule)
    if not resume:
        _checkpoint(problem, at, out)
    if not at.simulations:
        at = _sample(problem, at, console)
        _checkpoint(problem, at, out)
    sampled = sampled_ensembles(plan, problem.targets, at.frames, problem.potential, at.sampled, [])
    look = look_at(at.raw, sampled)

    def sample_again() -> None:
        nonlocal at, sampled, look
        at = _sample(problem, at, console)
        sampled = sampled_ensembles(plan, problem.targets, at.frames, problem.potential, at.sampled, sampled)
        look = look_at(at.raw, sampled)

    while not at.met and at.iteration < options.iterations:
        last = at.iteration + 1 >= options.iterations
        if not at.fresh and (last or _met(problem, look)):
            sample_again()
            _checkpoint(problem, at, out)
        loss, gradient = dft_gradient(at.raw, at.iteration)
        row = _row(problem, at, look, loss, validate(at.raw))
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is not finite in iteration {at.iteration + 1}; lower `rate`")
        met = at.fresh and _met(problem, look)
        at = dataclasses.replace(at, rows=(*at.rows, row), iteration=at.iteration + 1, met=met)
        console.print(iteration_line(problem, at))
        save(at)
        if not (met or last):
            total = jax.tree.map(jnp.add, gradient, look.gradient)
            updates, moments = rule.update(total, at.moments, at.raw)
            for _ in range(HALVINGS):
                raw = jax.tree.map(jnp.add, at.raw, updates)
                there = look_at(raw, sampled)
                enough = there.effective >= options.effective
                if enough and (there.deviation <= look.deviation or _met(problem, there)):
                    break
                if not enough and not at.fresh:
                    sample_again()
                else:
                    updates = jax.tree.map(lambda leaf: 0.5 * leaf, updates)
            at, look = dataclasses.replace(at, raw=raw, moments=moments), there
        at = dataclasses.replace(at, fresh=False)
        _checkpoint(problem, at, out)
    return at


def iteration_line(problem: Problem, at: Position) -> str:
    """One line: every average, the share of effective configurations, and the errors on DFT data."""
    row, first = at.rows[-1], at.rows[0]
    averages = "  ".join(
        f"{t.name} {row[t.name]:.4f} +/- {row[f'{t.name}_error']:.4f} ({t.value:g})" for t in problem.targets
    )
    source = "new frames" if row["fresh"] else f"{100 * row['effective']:.0f} % of frames"
    line = f"iteration {row['iteration']}/{problem.options.iterations}  {averages}  {source}  "
    line += f"DFT loss {row['dft_loss']:.3f}"
    if math.isnan(row["force_rmse"]):  # no frames were held out
        return line
    change = 100.0 * (row["force_rmse"] / first["force_rmse"] - 1.0)
    return f"{line}  F {1e3 * row['force_rmse']:.1f} meV/A ({change:+.1f} %)"


def _row(problem: Problem, at: Position, look: Look, loss: float, force_rmse: float) -> dict[str, Any]:
    row: dict[str, Any] = {"iteration": at.iteration + 1, "fresh": at.fresh, "effective": look.effective}
    for target, value, error in zip(problem.targets, look.values.tolist(), look.errors.tolist(), strict=True):
        row |= {target.name: value, f"{target.name}_error": error}
    return row | {"dft_loss": loss, "force_rmse": force_rmse}


def _met(problem: Problem, look: Look) -> bool:
    """Whether every average is within the tolerance, or within its standard error where that is larger."""
    wanted = np.array([target.value for target in problem.targets])
    return bool((np.abs(look.values - wanted) <= np.maximum(problem.options.tolerance * wanted, look.errors)).all())


def _start(problem: Problem, rule: optax.GradientTransformation) -> Position:
    """Before the first configurations."""
    plan = problem.plan
    shape = len(plan.conditions), plan.frames
    n = len(plan.atoms)
    empty = Frames(np.zeros((*shape, n, 3), np.float32), np.zeros((*shape, 3, 3), np.float32), np.zeros((*shape, 3)))
    system = from_ase(plan.atoms, np.float32)
    rattled = plan.atoms.copy()
    rattled.rattle(0.2, seed=0)
    moved = dataclasses.replace(system, positions=jnp.asarray(rattled.positions, np.float32))
    potential = problem.potential(problem.parametrization.raw)
    layout = potential.allocate([system, moved], potential.usual_skin, headroom=1.1)
    return Position(
        problem.parametrization.raw,
        rule.init(problem.parametrization.raw),
        problem.parametrization.raw,
        empty,
        False,
        layout,
        0,
        0,
        (),
        False,
    )


def _sample(problem: Problem, at: Position, console: Console) -> Position:
    """New configurations with the present weights, from where the last ones ended."""
    plan = problem.plan
    starts = last_frames(plan, at.frames) if at.simulations else at_rest(plan)
    key = jax.random.fold_in(jax.random.PRNGKey(problem.seed), at.simulations)
    runs = len(plan.conditions) * plan.replicas
    potential = jax.jit(problem.potential)(at.raw)
    first = f"simulation {at.simulations + 1}: {runs} runs of {plan.schedule.steps} steps, {len(plan.atoms)} atoms ..."
    with StatusLine(console, first) as line:
        frames, layout = simulate(
            plan, potential, starts, at.layout, key,
            lambda step: line.update(f"simulation {at.simulations + 1}: step {step}/{plan.schedule.steps}"),
        )  # fmt: skip
    return dataclasses.replace(
        at, frames=frames, fresh=True, layout=layout, sampled=at.raw, simulations=at.simulations + 1
    )


def make_dft_gradient(problem: Problem) -> Callable[[Params, int], tuple[float, Params]]:
    """Function (weights, iteration) -> mean loss of some frames of the DFT data, and its gradient.

    The frames depend on the seed and the iteration alone, so that a resumed run repeats them.
    """
    draw = np.concatenate([group.probability for group in problem.groups])
    sizes = [len(group.probability) for group in problem.groups]
    which, row = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])
    count, constants = problem.options.frames, problem.parametrization.constants
    decode = problem.parametrization.decode
    gradient = make_gradient(problem.model, problem.recipe, decode, problem.weights, moments=False)
    add = make_sum(problem.model, problem.recipe)

    def gradient_of(raw: Params, iteration: int) -> tuple[float, Params]:
        generator = np.random.default_rng([problem.seed, iteration])
        value, total = 0.0, no_gradient(raw)
        for pick in generator.choice(len(draw), count, p=draw / draw.sum()):
            frame = problem.groups[which[pick]].train.frame(int(row[pick]))
            slope, seen = gradient(raw, constants, frame)
            value, total = value + float(seen[0]), add(total, slope, None, frame.neighbors.layout.species)
        return value / count, jax.tree.map(lambda leaf: leaf / count, total)

    return gradient_of


def _arrays(at: Position) -> dict[str, Any]:
    frames = {name: getattr(at.frames, name) for name in ("positions", "cells", "polarizations")}
    return {"raw": at.raw, "moments": at.moments, "sampled": at.sampled, "frames": frames}


def _checkpoint(problem: Problem, at: Position, out: Path) -> None:
    meta = {
        "identity": problem.identity,
        "layout": layout_to_json(at.layout),
        "iteration": at.iteration,
        "fresh": at.fresh,
        "simulations": at.simulations,
        "rows": list(at.rows),
        "met": at.met,
    }
    checkpoint(out / CHECKPOINT, _arrays(at), meta)


def _restore(problem: Problem, rule: optax.GradientTransformation, out: Path) -> Position:
    begin = _start(problem, rule)
    arrays, meta = restore(out / CHECKPOINT, _arrays(begin), problem.identity)
    return Position(
        raw=arrays["raw"],
        moments=arrays["moments"],
        sampled=arrays["sampled"],
        frames=Frames(**{name: np.asarray(values) for name, values in arrays["frames"].items()}),
        fresh=meta["fresh"],
        layout=layout_from_json(meta["layout"]),
        iteration=meta["iteration"],
        simulations=meta["simulations"],
        rows=tuple(meta["rows"]),
        met=meta["met"],
    )
