"""The settings of a training, their limits, and what they become once the architecture is known."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxpto.errors import InputError, settings_of
from jaxpto.storage.output import check_output_folder
from jaxpto.training.loss import LossWeights
from jaxpto.training.matching_options import MatchOptions, check_matching
from jaxpto.training.recipe import Rates, Recipe
from jaxpto.training.targets import parse_targets

# options that do not change what the weights become; a resumed run may have others
FREE = ("data", "out", "initial", "resume", "source", "validate_every", "patience", "checkpoint_every")
# of --matching: a run that has not met its targets may be given more iterations, and read its file otherwise
FREE_MATCHING = ("iterations", "format", "species")
VALIDATIONS = 10  # of a training, unless asked otherwise


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a model from nothing, or fine-tune one: any architecture whose forces are derivatives of its energy.

    Attributes:
        data: DeePMD npy folders, folders of such folders, or files that ASE reads (extxyz, ...).
        out: folder of the model to write (also holds the training checkpoint, figures and report).
        initial: start from the weights of this model, a name or a folder (fine-tuning).
        architecture: train this architecture from nothing; perovskite by default.
        hyperparameters: its hyperparameters, as NAME=VALUE.
        committee: train this many models side by side, which differ by their first weights and by how much each frame
            counts for them; where they disagree, the model (the first of them) is not to be trusted.
        frames: train on so many frames only, drawn at random from all trajectories; fewer ones are among more, and
            held-out frames stay the same (0: on all).
        shares: how often trajectories are drawn, as GLOB=FRACTION of their names; those without a match share the rest.
        steps: optimization steps.
        batch: frames of each step, drawn at random from all compositions.
        rate: peak learning rate of Adam.
        matrix_rate: peak learning rate of Muon on the weight matrices (architecture perovskite).
        decay: rate at which weights shrink, relative to the learning rate (perovskite: matrices only).
        warmup: steps over which the rates rise; they fall along a cosine afterwards.
        clip: largest norm of the gradient of a step (0: no limit).
        ema: decay of the average of the weights that is exported.
        weights: weights and scales of the loss.
        freeze: parameters that stay as they are, as patterns of their names ("embedding", "layers/0/*").
        lora: train low-rank changes of the matrices, of this rank, in place of the matrices (0: the matrices).
        replay: data of what the initial model was made for, against forgetting; it labels those without labels itself.
        replay_share: how often frames of `replay` are drawn.
        validate_every: steps between validations; each writes checkpoint and, if it is the best, the model.
        checkpoint_every: seconds between two checkpoints; what a kill can cost.
        patience: stop after this many validations without a better one (0: never).
        resume: go on with the checkpoint in `out`, or begin if nothing is there.
        seed: seed of the initial weights and of the order of the frames.
        source: where the data come from, for model.json.
        match: tune the initial model to a measured average, as "c_over_a@300K=1.063" or "volume@300K,2GPa=61.5"; of
            c_over_a, a, c (Angstrom), volume (Angstrom^3, of five atoms), polarization (C/m^2). Once for each average.
        matching: settings of that tuning; steps, rates, decay, averages and validations above then have no effect.
    """

    data: tuple[Path, ...]
    out: Path
    initial: Path | None = None
    architecture: str | None = None
    hyperparameters: tuple[str, ...] = ()
    committee: int = 1
    frames: int = 0
    shares: tuple[str, ...] = ()
    steps: int | None = None
    batch: int | None = None
    rate: float | None = None
    matrix_rate: float | None = None
    decay: float | None = None
    warmup: int | None = None
    clip: float | None = None
    ema: float = 0.999
    weights: LossWeights = dataclasses.field(default_factory=LossWeights)
    freeze: tuple[str, ...] = ()
    lora: int = 0
    replay: tuple[Path, ...] = ()
    replay_share: float = 0.2
    validate_every: int | None = None
    checkpoint_every: float = 120.0
    patience: int = 0
    resume: bool = False
    seed: int = 0
    source: str = ""
    match: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    matching: MatchOptions = dataclasses.field(default_factory=MatchOptions)


@dataclasses.dataclass(frozen=True)
class Settled:
    """What the settings become for an architecture.

    Attributes:
        rates: settings of the optimizer.
        batch: frames of each step.
        validate_every: steps between validations.
    """

    rates: Rates
    batch: int
    validate_every: int


def check(config: TrainConfig) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        InputError: a number out of range, no data, or an output folder in the way.
    """
    if not config.data:
        raise InputError("no training data; give `data`: DeePMD folders or extxyz files")
    for name in ("steps", "batch", "committee", "validate_every", "checkpoint_every", "rate", "matrix_rate"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} = {value}: it must be positive")
    for name in ("frames", "warmup", "patience", "lora", "decay", "clip"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"{name} = {value}: it must not be negative")
    if not 0 <= config.ema < 1:
        raise InputError(f"ema = {config.ema}: it must lie in [0, 1)")
    if not 0 < config.replay_share < 1:
        raise InputError(f"replay_share = {config.replay_share}: it must lie between 0 and 1")
    if config.initial is not None and (config.architecture is not None or config.hyperparameters):
        raise InputError(
            "an initial model has its architecture and hyperparameters; leave out `architecture` and `hyperparameters`"
        )
    if config.replay and config.initial is None:
        raise InputError("`replay` keeps what an initial model knows; name it: `initial`")
    if config.match and config.committee > 1:
        raise InputError(f"`committee={config.committee}`: `match` tunes one model; leave out one of them")
    if config.match:
        parse_targets(config.match)
        with settings_of("matching"):
            check_matching(config.matching)
        if config.initial is None:
            raise InputError("`match` tunes a model: name it with `initial`, as `initial=perovskite`")
    elif config.matching != MatchOptions():
        raise InputError("settings of `matching` without a target; give `match` as OBSERVABLE@TEMPERATUREK=VALUE too")
    check_output_folder(config.out, resume=True)
    for name, paths in (("data", config.data), ("replay", config.replay)):
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise InputError(f"`{name}` has {twice} twice; give it once (`shares` says how often it is drawn)")


def settle(config: TrainConfig, recipe: Recipe) -> Settled:
    """Settings that were not given are those of the architecture's recipe.

    Raises:
        InputError: a rate of Muon for an architecture without it, or a decay that would make weights change sign.
    """
    usual = recipe.usual if config.initial is None else recipe.tuning
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(Rates)}
    rates = dataclasses.replace(usual, **{name: value for name, value in given.items() if value is not None})
    if config.matrix_rate is not None and not usual.matrix_rate:
        raise InputError(
            f"matrix_rate = {config.matrix_rate}: only the architecture perovskite is trained with Muon; give `rate`"
        )
    fastest = rates.matrix_rate or rates.rate
    if not rates.decay < 1 / fastest:
        raise InputError(f"decay = {rates.decay}: it must lie in [0, 1 / learning rate = {1 / fastest:g})")
    batch = recipe.batch if config.batch is None else config.batch
    every = max(1, rates.steps // VALIDATIONS) if config.validate_every is None else config.validate_every
    return Settled(rates, batch, every)


def describe_settings(config: TrainConfig, settled: Settled) -> dict[str, Any]:
    """The settings without the places of files; those of `match`, `frames` and a committee only where they are used."""
    places = ("data", "out", "initial", "resume", "source", "replay")
    unused = () if config.match else ("match", "matching")
    unused += () if config.frames else ("frames",)
    unused += () if config.committee > 1 else ("committee",)
    settings = dataclasses.asdict(config) | dataclasses.asdict(settled.rates)
    settings |= {"batch": settled.batch, "validate_every": settled.validate_every}
    return {name: value for name, value in settings.items() if name not in (*places, *unused)}
