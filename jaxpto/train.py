"""COMMAND `python -m jaxpto.train`: train the `perovskite` model on energies, forces and virials, or fine-tune one.

With `--match` a model is tuned to measured averages on top of its loss on the data.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from ase.data import chemical_symbols

from jaxpto.console import terminal
from jaxpto.console.command import configure_devices, leave, run_command
from jaxpto.console.interrupts import interrupts_held
from jaxpto.errors import InputError
from jaxpto.models.catalogue import find_model, load_potential
from jaxpto.models.folder import read_header, save_potential
from jaxpto.models.perovskite import Params, Perovskite
from jaxpto.models.suitability import check_supports
from jaxpto.potential import Potential
from jaxpto.reporting.provenance import fingerprint, provenance
from jaxpto.storage.identity import digest_of, make_identity
from jaxpto.storage.lock import one_run
from jaxpto.storage.output import check_output_folder
from jaxpto.training import data, matching, matching_output, optimizer
from jaxpto.training.batches import Composition, group, reference_energies, share_of, shortest_distances
from jaxpto.training.checkpoint import checkpoint, previous_of, restore
from jaxpto.training.ensembles import Plan
from jaxpto.training.loss import LossWeights
from jaxpto.training.matching_options import MatchOptions, check_matching, plan_of
from jaxpto.training.progress import describe_data, progress_line, validate
from jaxpto.training.targets import parse_targets
from jaxpto.training.whitening import Whitening, fold, unfold

CHECKPOINT = "training.npz"
REPORT_EVERY = 1000  # steps between two progress lines; the order of frames is drawn for as many steps at a time
# options that do not change what the weights become; a resumed run may have others
FREE = ("data", "out", "initial", "resume", "source", "validate_every", "patience", "checkpoint_every")
# of --matching: a run that has not met its targets may be given more iterations, and read its file otherwise
FREE_MATCHING = ("iterations", "format", "species")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train the perovskite model.

    Attributes:
        data: DeePMD npy folders, folders of such folders, or extxyz files.
        out: folder of the model to write (also holds the training checkpoint and log).
        shares: how often trajectories are drawn, as GLOB=FRACTION of their names; those without a match share the rest.
        steps: optimization steps, one frame each.
        matrix_rate: peak learning rate of Muon on the weight matrices.
        other_rate: peak learning rate of Adam on everything else.
        matrix_decay: rate at which the weight matrices shrink, relative to the learning rate; keeps the nets smooth.
        ema: decay of the average of the weights that is exported.
        weights: weights and scales of the loss.
        hidden: width of the nets.
        channels: mixed channels.
        radial: radial functions.
        quartic: channels with four-body invariants.
        cutoff: Angstrom.
        validate_every: steps between validations; each writes checkpoint and, if it is the best, the model.
        checkpoint_every: seconds between two checkpoints; what a kill can cost.
        patience: stop after this many validations without a better one (0: never).
        initial: start from the weights of this model, a name or a folder (fine-tuning).
        resume: go on with the checkpoint in `out`, or begin if nothing is there.
        seed: seed of the initial weights and of the order of the frames.
        source: where the data come from, for model.json.
        match: tune the initial model to a measured average, as "c_over_a@300K=1.063" or "volume@300K,2GPa=61.5"; of
            c_over_a, a, c (Angstrom), volume (Angstrom^3, of five atoms), polarization (C/m^2). Once for each average.
        matching: settings of that tuning; steps, rates, decay, averages and validations above then have no effect.
    """

    data: tuple[Path, ...]
    out: Path
    shares: tuple[str, ...] = ()
    steps: int = 100_000
    matrix_rate: float = 3e-3
    other_rate: float = 1e-3
    matrix_decay: float = 0.02
    ema: float = 0.999
    weights: LossWeights = dataclasses.field(default_factory=LossWeights)
    hidden: int = 32
    channels: int = 12
    radial: int = 10
    quartic: int = 4
    cutoff: float = 6.0
    validate_every: int = 10_000
    checkpoint_every: float = 120.0
    patience: int = 0
    initial: Path | None = None
    resume: bool = False
    seed: int = 0
    source: str = ""
    match: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    matching: MatchOptions = dataclasses.field(default_factory=MatchOptions)


def check(config: TrainConfig) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        InputError: a number out of range, no data, or an output folder in the way.
    """
    if not config.data:
        raise InputError("no training data; give --data with DeePMD folders or extxyz files")
    positive = (
        "steps", "validate_every", "checkpoint_every", "hidden", "channels", "radial", "cutoff", "matrix_rate",
        "other_rate",
    )  # fmt: skip
    for name in positive:
        if not 0 < getattr(config, name) < math.inf:
            raise InputError(f"{name} = {getattr(config, name)}: it must be positive")
    if not 0 <= config.quartic <= config.channels:
        raise InputError(f"quartic = {config.quartic}: it must lie between 0 and channels ({config.channels})")
    if config.radial < 3:
        raise InputError(f"radial = {config.radial}: at least 3 radial functions are needed")
    if not 0 <= config.matrix_decay < 1 / config.matrix_rate:
        raise InputError(
            f"matrix_decay = {config.matrix_decay}: it must lie in [0, 1 / matrix_rate = {1 / config.matrix_rate:g})"
        )
    if not 0 <= config.ema < 1:
        raise InputError(f"ema = {config.ema}: it must lie in [0, 1)")
    if config.match:
        parse_targets(config.match)
        check_matching(config.matching)
        if config.initial is None:
            raise InputError("--match tunes a model: name it with --initial, as --initial perovskite")
    elif config.matching != MatchOptions():
        raise InputError("--matching options without a target; give --match OBSERVABLE@TEMPERATUREK=VALUE too")
    check_output_folder(config.out, resume=True)
    if len(set(config.data)) < len(config.data):
        twice = next(path for path in config.data if config.data.count(path) > 1)
        raise InputError(f"--data {twice} is given twice; give it once (--shares says how often it is drawn)")


def goes_on(config: TrainConfig) -> bool:
    """Whether `out` holds a checkpoint to go on with; without `resume` it must be empty.

    Raises:
        InputError: a file, a folder in use, or one that holds other things but no checkpoint.
    """
    out, stored = config.out, config.out / (matching.CHECKPOINT if config.match else CHECKPOINT)
    inside = [path for path in out.iterdir() if not path.name.startswith(".")] if out.exists() else []
    if not config.resume and inside:
        raise InputError(f"{out}: not empty; choose another --out, or --resume to go on with it")
    if stored.exists() or previous_of(stored).exists():
        return True
    if inside:
        raise InputError(
            f"--resume: {out} holds {inside[0].name} but no {stored.name} to go on with; restore that file, or choose "
            "another --out"
        )
    if config.resume:
        print(f"nothing in {out} to go on with: begins")
    return False


def load_frames(config: TrainConfig) -> list[data.LabelledFrames]:
    """Read and clean all data, and give every trajectory a name of its own.

    Raises:
        InputError: there is no usable frame.
    """
    trajectories: list[data.LabelledFrames] = []
    names: list[str] = []
    for frames in (frames for path in config.data for frames in data.read(path)):
        kept = data.clean(frames)
        if len(kept) < len(frames):
            why = ", ".join(f"{hit.sum()} {reason}" for reason, hit in data.faults(frames).items())
            print(f"{frames.name}: left out {len(frames) - len(kept)} of {len(frames)} frames: {why}")
        names.append(frames.name)
        if names.count(frames.name) > 1:  # shares and errors go by name
            kept = dataclasses.replace(kept, name=f"{frames.name}-{names.count(frames.name)}")
        if len(kept):
            trajectories.append(kept)
    if not trajectories:
        raise InputError(f"{', '.join(map(str, config.data))}: no usable frame; give labelled structures")
    return trajectories


@dataclasses.dataclass(frozen=True)
class Task:
    """What stays the same during a training.

    Attributes:
        model: architecture.
        reference: energy of each element that labels are relative to, eV.
        trajectories: the data as they were read.
        compositions: the data on the device.
        scales: whitening.
        raw: weights to start from.
    """

    model: Perovskite
    reference: dict[int, float]
    trajectories: list[data.LabelledFrames]
    compositions: list[Composition]
    scales: Whitening
    raw: Params


def set_up(config: TrainConfig) -> Task:
    """Read the data and choose where to start.

    Raises:
        InputError: `load_frames`, `share_of` or `initial_model` refuses data or model.
    """
    trajectories = load_frames(config)
    probability = share_of(trajectories, config.shares)
    elements = tuple(sorted({int(z) for t in trajectories for z in t.numbers}))
    params = None
    if config.initial is None:
        model = Perovskite(elements, config.cutoff, config.radial, config.channels, config.quartic, config.hidden)
        strangers = itertools.combinations(elements, 2)
        reference = dict(zip(elements, reference_energies(trajectories, elements).tolist(), strict=True))
    else:
        model, params, reference = initial_model(config.initial, elements)
        strangers = model.strangers
    met = {pair for t in trajectories for pair in itertools.combinations(sorted(set(t.numbers.tolist())), 2)}
    model = dataclasses.replace(model, strangers=tuple(pair for pair in strangers if pair not in met))
    compositions = group(trajectories, probability, reference, model.cutoff)
    batches = [c.train for c in compositions]
    raw = optimizer.initial_raw(model, jax.random.key(config.seed), np.float32)
    if params is None:
        raw["trusted"], raw["wall"] = map(jnp.float32, shortest_distances(compositions, elements, model.cutoff))
    scales = optimizer.measure_whitening(model, raw if params is None else params, batches, folded=params is not None)
    if params is not None:
        raw = unfold(model, params, scales)
    return Task(model, reference, trajectories, compositions, scales, raw)


def initial_model(folder: Path, elements: tuple[int, ...]) -> tuple[Perovskite, Params, dict[int, float]]:
    """Model, parameters and reference energies to fine-tune.

    Raises:
        InputError: the model is of another kind or lacks one of `elements`.
    """
    initial, folder = load_potential(folder), find_model(folder)
    if not isinstance(initial.model, Perovskite):
        raise InputError(f"{folder}: a {type(initial.model).__name__}; only perovskite models can be trained further")
    unknown = [chemical_symbols[z] for z in elements if z not in initial.elements]
    if unknown:
        raise InputError(f"{folder}: does not know {', '.join(unknown)}; train from nothing or leave those data out")
    energies = read_header(folder).get("reference_energies_eV", {})
    if any(chemical_symbols[z] not in energies for z in initial.elements):
        raise InputError(f"{folder}: its model.json has no reference_energies_eV; start from a model that train wrote")
    return initial.model, initial.params, {z: energies[chemical_symbols[z]] for z in initial.elements}


def run(config: TrainConfig) -> Potential:
    """Train, writing model and checkpoint at every validation; returns the model that did best.

    A checkpoint is written every `checkpoint_every` seconds too, and at an interrupt. A resumed run ends with the
    weights of an uninterrupted one, bit for bit.

    Raises:
        InputError: `check`, `one_run`, `goes_on`, `set_up` or `restore` refuses settings, folder, data or checkpoint.
        FloatingPointError: the training diverged.
    """
    check(config)
    with one_run(config.out):
        resumed = goes_on(config)
        return match(config, resumed) if config.match else _train(config, resumed)


def _train(config: TrainConfig, resumed: bool) -> Potential:
    task = set_up(config)
    model, compositions, scales = task.model, task.compositions, task.scales
    rule = optimizer.make_optimizer(
        config.matrix_rate, config.other_rate, config.matrix_decay, config.steps, warmup=200
    )
    # two copies, for the step gives the memory of its arguments to its results
    average, raw = (jax.tree.map(jnp.copy, task.raw) for _ in range(2))
    state = optimizer.TrainState(raw, average, rule.init(raw), jnp.zeros(4, np.float32))
    progress: dict[str, Any] = {"step": 0, "best": None, "since_best": 0, "seconds": 0.0}
    identity = identity_of(config, task)
    config.out.mkdir(parents=True, exist_ok=True)
    if resumed:
        (state, scales), progress = restore(config.out / CHECKPOINT, (state, scales), identity)
    for line in describe_data(task.trajectories, len(model.elements), len(compositions)):
        print(line, flush=True)
    if resumed:
        print(f"goes on after step {progress['step']} of {config.steps}", flush=True)
    already, began = progress["seconds"], time.time()

    def save() -> None:
        checkpoint(config.out / CHECKPOINT, (state, scales), progress | {"identity": identity})

    def position(done: int) -> dict[str, Any]:
        return {"step": done, "seconds": already + time.time() - began}

    if not resumed:
        save()
    batches = [c.train for c in compositions]
    steps = [optimizer.make_step(model, b, scales, rule, config.weights, config.ema) for b in batches]
    checks = [optimizer.make_validation(model, c.held_out, scales) if c.held_out else None for c in compositions]
    virials = any(t.with_virial.any() for t in task.trajectories)
    draw = np.concatenate([c.probability for c in compositions])
    which = np.repeat(np.arange(len(compositions)), [len(c.probability) for c in compositions])
    row = np.concatenate([np.arange(len(c.probability)) for c in compositions])
    first, saved = progress["step"], time.monotonic()
    order = np.zeros(REPORT_EVERY, int)
    with interrupts_held() as interrupted:  # a step that is cut off takes the state with it
        for step in range(first, config.steps):
            if config.patience and progress["since_best"] >= config.patience:
                print(f"no better validation in {config.patience} checks; stopped at step {step}", flush=True)
                break
            if step == first or step % REPORT_EVERY == 0:  # depends on seed and step alone: a resumed run repeats it
                generator = np.random.default_rng([config.seed, step // REPORT_EVERY])
                order = generator.choice(len(draw), REPORT_EVERY, p=draw / draw.sum())
            pick = order[step % REPORT_EVERY]
            state = steps[which[pick]](state, int(row[pick]), batches[which[pick]].arrays)
            done = step + 1
            last = done == config.steps
            if done % REPORT_EVERY == 0 or last:
                pace = (time.time() - began) / (done - first)
                print(progress_line(done, config.steps, state, pace, virials=virials), flush=True)
            if done % config.validate_every == 0 or last:
                errors, score = validate(compositions, checks, state.average)
                print(json.dumps({"step": done, "validation": errors}), flush=True)
                if not np.isfinite(score if score is not None else np.asarray(state.errors[0])):
                    raise FloatingPointError(
                        f"training diverged before step {done}; lower --matrix-rate and --other-rate"
                    )
                better = score is None or progress["best"] is None or score < progress["best"]
                progress = position(done) | {
                    "best": score if better else progress["best"],
                    "since_best": 0 if better else progress["since_best"] + 1,
                }
                if better:
                    params = fold(model, state.average, scales)
                    header = describe(config, task.reference, errors, progress)
                    save_potential(Potential(params, model, config.out.name), config.out, header)
                save()
                saved = time.monotonic()
            elif interrupted() or time.monotonic() - saved > config.checkpoint_every:
                progress |= position(done)
                save()
                saved = time.monotonic()
            if interrupted():
                print(f"stopped after step {done} of {config.steps}, which is saved", flush=True)
                raise KeyboardInterrupt
    return load_potential(config.out)


def identity_of(config: TrainConfig, task: Task, plan: Plan | None = None) -> dict[str, Any]:
    """The identity that a checkpoint must share to be continued; see `make_identity`."""
    settings = {name: value for name, value in describe_settings(config).items() if name not in FREE}
    if "matching" in settings:
        settings["matching"] = {k: v for k, v in settings["matching"].items() if k not in FREE_MATCHING}
    initial = None if config.initial is None else fingerprint(load_potential(config.initial))
    digests = {"initial model": initial}
    if plan is not None:
        atoms = plan.atoms
        digests["structure of the simulations"] = digest_of(
            atoms.numbers, atoms.positions, atoms.cell.array, atoms.get_masses()
        )
    return make_identity(settings, [(frames.name, frames.digest) for frames in task.trajectories], digests)


def match(config: TrainConfig, resumed: bool) -> Potential:
    """Tune the initial model to `config.match`, writing model, history and checkpoint in every iteration.

    Raises:
        InputError: `set_up`, `plan_of` or `matching.match_averages` refuses data, settings or checkpoint.
        FloatingPointError: the tuning diverged, or a simulation with it.
    """
    settled = dataclasses.replace(config.matching, supercell=config.matching.repeats)
    config = dataclasses.replace(config, matching=settled)
    targets, options, console = parse_targets(config.match), config.matching, terminal.console(TrainConfig)
    configure_devices()
    plan = plan_of(options, targets, config.seed)
    check_supports(load_potential(config.initial or ""), plan.atoms, options.structure)
    for note in plan.notes:
        console.print(note)
    task = set_up(config)
    problem = matching.Problem(
        task.model, task.raw, task.scales, task.compositions, config.weights, targets, options, plan, config.seed,
        identity_of(config, task, plan),
    )  # fmt: skip
    checks = [optimizer.make_validation(task.model, c.held_out, task.scales) if c.held_out else None
              for c in task.compositions]  # fmt: skip
    settings = describe_settings(config) | provenance()
    config.out.mkdir(parents=True, exist_ok=True)
    for line in describe_data(task.trajectories, len(task.model.elements), len(task.compositions)):
        print(line, flush=True)
    began = time.time()
    errors: dict[str, dict[str, float | None]] = {}

    def force_error(raw: Params) -> float:
        errors.update(validate(task.compositions, checks, raw)[0])
        return (
            float(np.sqrt(np.mean([(1e-3 * (e["forces"] or 0.0)) ** 2 for e in errors.values()]))) if errors else np.nan
        )

    def save(at: matching.Position) -> None:
        progress = {"step": at.iteration, "seconds": time.time() - began}
        header = describe(config, task.reference, errors, progress)
        save_potential(
            Potential(fold(task.model, at.raw, task.scales), task.model, config.out.name), config.out, header
        )
        matching_output.write_history(config.out, targets, at.rows, settings)

    at = matching.match_averages(problem, config.out, force_error, save, resume=resumed, console=console)
    matching_output.write_figure(config.out, targets, at.rows)
    matching_output.print_matching(targets, at.rows, at.met, config.out, console)
    return load_potential(config.out)


def describe(
    config: TrainConfig,
    reference: dict[int, float],
    errors: dict[str, dict[str, float | None]],
    progress: dict[str, Any],
) -> dict[str, Any]:
    """What `model.json` says about a training."""
    return {
        "source": config.source,
        "reference_energies_eV": {chemical_symbols[z]: e for z, e in reference.items()},
        "training": {
            "data": [p.name for p in config.data],
            "config": describe_settings(config),
            "steps_done": progress["step"],
            "seconds": round(progress["seconds"]),
            "validation_rmse_meV": errors,
        },
    }


def describe_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings without the places of files, and those of `--match` only where it is used."""
    places = ("data", "out", "initial", "resume", "source")
    unused = ("match", "matching") if not config.match else ()
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in (*places, *unused)}


def main() -> int:
    """Run the command; returns its exit code."""
    return run_command("jaxpto.train", TrainConfig, run)


if __name__ == "__main__":
    leave(main())
