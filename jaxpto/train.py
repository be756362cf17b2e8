"""COMMAND `python -m jaxpto.train`: train the `perovskite` model on energies, forces and virials, or continue from a model."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from ase.data import chemical_symbols, covalent_radii

from jaxpto.catalogue import load_potential, save_potential
from jaxpto.errors import InputError
from jaxpto.models.perovskite import Params, Perovskite
from jaxpto.potential import Potential
from jaxpto.training import data, optimizer
from jaxpto.training.loss import LossWeights
from jaxpto.training.whitening import fold, unfold


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the perovskite model.

    Attributes:
        data: DeePMD npy folders, folders of such folders, or extxyz files.
        out: folder of the model to write (also holds the training checkpoint and log).
        shares: how often a trajectory is drawn, as GLOB=FRACTION of its name; what matches nothing shares the rest.
        steps: optimization steps, one frame each.
        matrix_rate: peak learning rate of Muon on the weight matrices.
        other_rate: peak learning rate of Adam on everything else.
        ema: decay of the average of the weights that is exported.
        weights: weights and scales of the loss.
        hidden: width of the nets.
        channels: mixed channels.
        radial: radial functions.
        quartic: channels with four-body invariants.
        cutoff: Angstrom.
        validate_every: steps between validations; each writes checkpoint and model.
        patience: stop after this many validations without a better one (0: never).
        initial: start from the weights of this model folder (fine-tuning).
        resume: go on with the checkpoint in `out`.
        seed: of initial weights and of the order of frames.
    """

    data: tuple[Path, ...]
    out: Path
    shares: tuple[str, ...] = ()
    steps: int = 100_000
    matrix_rate: float = 3e-3
    other_rate: float = 1e-3
    ema: float = 0.999
    weights: LossWeights = dataclasses.field(default_factory=LossWeights)
    hidden: int = 32
    channels: int = 12
    radial: int = 10
    quartic: int = 4
    cutoff: float = 6.0
    validate_every: int = 10_000
    patience: int = 0
    initial: Path | None = None
    resume: bool = False
    seed: int = 0


def check(config: Config) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        InputError: a number out of range, no data, or an output folder in the way.
    """
    if not config.data:
        raise InputError("no training data; give --data with DeePMD folders or extxyz files")
    for name in ("steps", "validate_every", "hidden", "channels", "radial", "cutoff", "matrix_rate", "other_rate"):
        if not getattr(config, name) > 0:
            raise InputError(f"{name} = {getattr(config, name)}: it must be positive")
    if not 0 <= config.quartic <= config.channels:
        raise InputError(f"quartic = {config.quartic}: it must lie between 0 and channels ({config.channels})")
    if config.radial < 3:
        raise InputError(f"radial = {config.radial}: at least 3 radial functions are needed")
    if not 0 <= config.ema < 1:
        raise InputError(f"ema = {config.ema}: it must lie in [0, 1)")
    if config.out.exists() and any(config.out.iterdir()) and not config.resume:
        raise InputError(f"{config.out}: not empty; choose another --out, or --resume to go on with it")


def load_frames(config: Config) -> list[data.Frames]:
    """Read and clean all data.

    Raises:
        InputError: nothing usable in it.
    """
    trajectories = []
    for path in config.data:
        for frames in data.read(path):
            kept = data.clean(frames)
            if len(kept) < len(frames):
                print(f"{frames.name}: left out {len(frames) - len(kept)} of {len(frames)} frames (not finite or absurd forces)")
            if len(kept):
                trajectories.append(kept)
    if not trajectories:
        raise InputError(f"{', '.join(map(str, config.data))}: no usable frame; give labelled structures")
    return trajectories


def share_of(trajectories: list[data.Frames], shares: tuple[str, ...]) -> np.ndarray:
    """Probability of each trajectory [t]; every GLOB's fraction is spread evenly over what it matches.

    Raises:
        InputError: a share that cannot be read, matches nothing, or fractions above one.
    """
    probability, free = np.zeros(len(trajectories)), np.ones(len(trajectories), bool)
    for share in shares:
        pattern, _, fraction = share.rpartition("=")
        try:
            value = float(fraction)
        except ValueError:
            value = -1.0
        hits = np.array([fnmatch.fnmatch(t.name, pattern) for t in trajectories]) & free
        if not 0 < value <= 1 or not hits.any():
            raise InputError(f"share {share!r}: write GLOB=FRACTION with a fraction in (0, 1] and a pattern that matches data")
        probability[hits] = value / hits.sum()
        free &= ~hits
    rest = 1.0 - probability.sum()
    if rest < -1e-9:
        raise InputError(f"the shares add up to {probability.sum():.3f}; the limit is 1")
    if free.any():
        probability[free] = max(rest, 0.0) / free.sum()
    return probability / probability.sum()


@dataclasses.dataclass(frozen=True)
class Composition:
    """Training and validation frames of all trajectories that have the same atoms.

    Attributes:
        name: of the first of them.
        probability: [f] of drawing each training frame.
        weight_of: probability of each trajectory.
        train, held_out: batches on the device.
        held_out_names: trajectory of each held-out frame.
    """

    name: str
    probability: np.ndarray
    weight_of: dict[str, float]
    train: data.Batch
    held_out: data.Batch | None
    held_out_names: list[str]


def join(parts: list[data.Frames]) -> data.Frames:
    """Concatenate trajectories with the same atoms."""
    return data.Frames(
        parts[0].name,
        parts[0].numbers,
        *(np.concatenate([getattr(p, k) for p in parts]) for k in ("positions", "cells", "energies", "forces", "virials")),
    )


def group(
    trajectories: list[data.Frames], probability: np.ndarray, reference: dict[int, float], cutoff: float
) -> list[Composition]:
    """Split every trajectory into blocks and gather those with the same atoms, for they share a compiled program."""
    gathered: dict[tuple[int, ...], list[int]] = {}
    for index, frames in enumerate(trajectories):
        gathered.setdefault(tuple(frames.numbers.tolist()), []).append(index)
    compositions = []
    for indices in gathered.values():
        pieces = [data.split(trajectories[i]) for i in indices]
        held = [p[1] for p in pieces if len(p[1])]
        compositions.append(
            Composition(
                trajectories[indices[0]].name,
                np.concatenate([np.full(len(p[0]), probability[i] / len(p[0])) for i, p in zip(indices, pieces, strict=True)]),
                {trajectories[i].name: float(probability[i]) for i in indices},
                data.prepare(join([p[0] for p in pieces]), reference, cutoff, np.float32),
                data.prepare(join(held), reference, cutoff, np.float32) if held else None,
                [p.name for p in held for _ in range(len(p))],
            )
        )
    return compositions


def wall_distances(compositions: list[Composition], elements: tuple[int, ...]) -> np.ndarray:
    """Distance [e, e] in Angstrom below which the wall starts: 0.97 of the shortest one seen in the data, or 0.8 of the sum
    of covalent radii for pairs that are never neighbours there."""
    radii = covalent_radii[list(elements)]
    shortest = np.full((len(elements), len(elements)), np.inf)
    batches = [b for c in compositions for b in (c.train, c.held_out) if b is not None]
    for batch in batches:
        closest = np.linalg.norm(np.asarray(batch.vectors), axis=-1).min(0)
        ends = np.cumsum(batch.slots)
        for other, end, size in zip(batch.species, ends, batch.slots, strict=True):
            for own in batch.species:
                found = closest[batch.numbers == own, end - size : end].min()
                pair = elements.index(own), elements.index(other)
                shortest[pair] = shortest[pair[::-1]] = min(shortest[pair], found)
    seen = shortest < 1.5 * (radii[:, None] + radii[None, :])
    return np.where(seen, 0.97 * shortest, 0.8 * (radii[:, None] + radii[None, :]))


def checkpoint(path: Path, state: Any, meta: dict[str, Any]) -> None:
    """Write a pytree and a little metadata to one file, all or nothing."""
    leaves = {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}
    temporary = path.with_suffix(".tmp.npz")
    with open(temporary, "wb") as file:
        np.savez(file, meta=json.dumps(meta), **leaves)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def restore(path: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """Read what `checkpoint` wrote into the structure of `like`.

    Raises:
        InputError: the file is missing, damaged, or of another model.
    """
    try:
        with np.load(path) as stored:
            meta = json.loads(str(stored["meta"]))
            leaves = [jnp.asarray(stored[jax.tree_util.keystr(p)]) for p, _ in jax.tree_util.tree_leaves_with_path(like)]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no usable checkpoint ({error}); start anew with another --out") from error
    shapes = [x.shape for x in jax.tree.leaves(like)]
    if [x.shape for x in leaves] != shapes:
        raise InputError(f"{path}: its arrays have other shapes than this configuration; resume with the same options")
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta


def start(config: Config, elements: tuple[int, ...]) -> tuple[Perovskite, Params | None]:
    """The model to train, and the parameters to start from if there are any.

    Raises:
        InputError: the initial model is of another kind.
    """
    if config.initial is None:
        model = Perovskite(elements, config.cutoff, config.radial, config.channels, config.quartic, config.hidden)
        return model, None
    initial = load_potential(config.initial)
    if not isinstance(initial.model, Perovskite):
        raise InputError(f"{config.initial}: a {type(initial.model).__name__}, not a perovskite model; start from another")
    unknown = [chemical_symbols[z] for z in elements if z not in initial.elements]
    if unknown:
        raise InputError(f"{config.initial}: does not know {', '.join(unknown)}; train from nothing or leave those data out")
    return initial.model, initial.params


def run(config: Config) -> Potential:
    """Train and write the model; returns it.

    Raises:
        InputError: see `check`, `load_frames`, `start` and `restore`.
    """
    check(config)
    began = time.time()
    trajectories = load_frames(config)
    probability = share_of(trajectories, config.shares)
    elements = tuple(sorted({int(z) for t in trajectories for z in t.numbers}))
    model, params = start(config, elements)
    if config.initial is None:
        energies = data.reference_energies(trajectories, elements)
    else:
        header = json.loads((config.initial / "model.json").read_text())
        energies = np.array([header["reference_energies_eV"][chemical_symbols[z]] for z in model.elements])
    reference = dict(zip(model.elements, energies.tolist(), strict=True))
    compositions = group(trajectories, probability, reference, model.cutoff)

    rule = optimizer.make_optimizer(config.matrix_rate, config.other_rate, config.steps, warmup=200)
    raw = optimizer.initial_raw(model, jax.random.key(config.seed), np.float32)
    raw["wall"] = jnp.asarray(wall_distances(compositions, model.elements), np.float32)
    batches = [c.train for c in compositions]
    scales = optimizer.measure_whitening(model, raw if params is None else params, batches, folded=params is not None)
    if params is not None:
        raw = unfold(model, params, scales)
    state = optimizer.TrainState(raw, jax.tree.map(jnp.copy, raw), rule.init(raw), jnp.zeros(4, np.float32))
    saved = config.out / "training.npz"
    progress = {"step": 0, "best": float("inf"), "since_best": 0, "seconds": 0.0}
    if config.resume:
        (state, scales), progress = restore(saved, (state, scales))
    config.out.mkdir(parents=True, exist_ok=True)
    steps = [optimizer.make_step(model, b, scales, rule, config.weights, config.ema) for b in batches]
    checks = [optimizer.make_validation(model, c.held_out, scales) if c.held_out else None for c in compositions]
    print(
        f"{sum(len(t) for t in trajectories)} frames, {len(compositions)} compositions, {len(model.elements)} elements; "
        f"ready after {time.time() - began:.0f} s",
        flush=True,
    )
    already = progress["seconds"]
    began, first = time.time(), progress["step"]
    draw = np.concatenate([c.probability for c in compositions])
    which = np.concatenate([[k] * len(c.probability) for k, c in enumerate(compositions)])
    row = np.concatenate([np.arange(len(c.probability)) for c in compositions])
    result = None
    for step in range(first, config.steps):
        if step == first or step % 1000 == 0:  # the order depends on seed and step alone, so a resumed run repeats it
            order = np.random.default_rng([config.seed, step // 1000]).choice(len(draw), 1000, p=draw)
        pick = order[step % 1000]
        state = steps[which[pick]](state, int(row[pick]), batches[which[pick]].arrays)
        done = step + 1
        if done % 1000 == 0 or done == config.steps:
            value, *squares = np.asarray(state.errors).tolist()
            e, f, v = (1e3 * s**0.5 for s in squares)
            rate = (time.time() - began) / (done - first)
            print(
                f"step {done}/{config.steps}  loss {value:.3f}  E {e:.2f} meV/atom  F {f:.1f} meV/A  V {v:.2f} meV/atom  "
                f"{1e3 * rate:.2f} ms/step  ETA {(config.steps - done) * rate / 60:.1f} min",
                flush=True,
            )
        if done % config.validate_every == 0 or done == config.steps:
            errors, score = validate(compositions, checks, state.average)
            print(json.dumps({"step": done, "validation": errors}), flush=True)
            if not np.isfinite(score):
                raise FloatingPointError(f"training diverged before step {done}; lower --matrix-rate and --other-rate")
            better = score < progress["best"]
            progress = {
                "step": done,
                "best": min(score, progress["best"]),
                "since_best": 0 if better else progress["since_best"] + 1,
                "seconds": already + time.time() - began,
            }
            checkpoint(saved, (state, scales), progress)
            result = Potential(fold(model, state.average, scales), model, config.out.name)
            if better:
                save_potential(result, config.out, describe(config, reference, errors, progress))
            if config.patience and progress["since_best"] >= config.patience:
                print(f"no better validation in {config.patience} checks; stopped at step {done}", flush=True)
                break
    return load_potential(config.out) if result is not None else Potential(fold(model, state.average, scales), model, config.out.name)


def validate(
    compositions: list[Composition], checks: list[Callable | None], raw: Params
) -> tuple[dict[str, dict[str, float]], float]:
    """RMS errors of each held-out trajectory block (meV/atom, meV/Angstrom, meV/atom), and one score to compare models by."""
    errors: dict[str, dict[str, float]] = {}
    score = []
    for composition, check_errors in zip(compositions, checks, strict=True):
        if check_errors is None:
            continue
        squares = np.asarray(check_errors(raw, composition.held_out.arrays))
        names = np.array(composition.held_out_names)
        for name in dict.fromkeys(composition.held_out_names):
            e, f, v = 1e3 * np.sqrt(squares[names == name].mean(0))
            errors[name] = {"energy": round(float(e), 3), "forces": round(float(f), 2), "virial": round(float(v), 2)}
            score.append(composition.weight_of[name] * (e / 3.0 + f / 100.0 + v / 6.0))
    return errors, float(np.sum(score)) if score else 0.0


def describe(
    config: Config, reference: dict[int, float], errors: dict[str, dict[str, float]], progress: dict[str, Any]
) -> dict[str, Any]:
    """What `model.json` says about a training."""
    return {
        "reference_energies_eV": {chemical_symbols[z]: e for z, e in reference.items()},
        "training": {
            "data": [p.name for p in config.data],
            "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data", "out", "initial", "resume")},
            "steps_done": progress["step"],
            "seconds": round(progress["seconds"]),
            "validation_rmse_meV": errors,
        },
    }


def main() -> None:
    """Run the command; exit code 2 for bad input."""
    try:
        run(tyro.cli(Config, description=__doc__))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
