"""How an architecture is trained: its parametrization, its optimizer, and which parameters a frame touches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array

from jaxpto.errors import InputError
from jaxpto.model_interface import Model, ModelWithConstants, TrainableModel
from jaxpto.training.groups import FrameGroup
from jaxpto.training.parametrization import Parametrization, scaled


@dataclasses.dataclass(frozen=True)
class Rates:
    """Settled settings of the optimizer.

    Attributes:
        steps: optimization steps in all.
        warmup: steps over which the rates rise.
        rate: peak learning rate of Adam.
        matrix_rate: peak learning rate of Muon, where an architecture has matrices for it; 0 elsewhere.
        decay: rate at which weights shrink, relative to the learning rate.
        clip: largest norm of a gradient; 0 for no limit.
    """

    steps: int
    warmup: int
    rate: float
    matrix_rate: float
    decay: float
    clip: float

    def schedule(self, peak: float) -> optax.Schedule:
        """Linear warm-up to `peak`, then a cosine down to a hundredth of it."""
        return optax.warmup_cosine_decay_schedule(0.0, peak, min(self.warmup, self.steps // 2), self.steps, peak * 0.01)

    def limited(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """An optimizer that is told no gradient longer than `clip`."""
        return optax.chain(optax.clip_by_global_norm(self.clip), optimizer) if self.clip else optimizer


@dataclasses.dataclass(frozen=True)
class Part:
    """The part of a model that frames of some species touch.

    Attributes:
        model: the model with these elements alone.
        take: the part of a tree of weights, constants or moments that belongs to them.
        put: (tree, part) -> the tree with that part replaced.
    """

    model: Any
    take: Callable[[Any], Any]
    put: Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an architecture is trained.

    Attributes:
        usual: rates of a training from nothing; `steps` too.
        tuning: rates of fine-tuning.
        batch: frames of a step.
        parametrize: (model, parameters or None to begin from nothing, data, key) -> parametrization.
        optimizer: (weights, rates) -> optimizer.
        part: (model, species of the frames) -> the part of the model that they touch.
    """

    usual: Rates
    tuning: Rates
    batch: int
    parametrize: Callable[[Any, Any, Sequence[FrameGroup], Array], Parametrization]
    optimizer: Callable[[Any, Rates], optax.GradientTransformation]
    part: Callable[[Any, tuple[int, ...]], Part]


def _parametrize(model: Model, params: Any, groups: Sequence[FrameGroup], key: Array) -> Parametrization:
    if params is not None:
        return scaled(params)
    if not isinstance(model, TrainableModel):
        raise InputError(
            f"{type(model).__name__} cannot be trained from nothing; name a model to start from: `initial`"
        )
    samples = []
    for group in groups:
        for row in np.unique(np.linspace(0, len(group.train) - 1, 16).astype(int)).tolist():
            frame = jax.device_put(group.train.frame(row))
            samples.append((frame.system, frame.neighbors))
    forces = [np.square(group.train.frames.labels.forces).mean() for group in groups]
    return scaled(model.initialize(key, samples, float(np.sqrt(np.mean(forces)))))


def _adam(raw: Any, rates: Rates) -> optax.GradientTransformation:
    return rates.limited(optax.adamw(rates.schedule(rates.rate), b2=0.99, weight_decay=rates.decay))


def _everything(model: Model, species: tuple[int, ...]) -> Part:
    return Part(model, lambda tree: tree, lambda tree, part: part)


PLAIN = Recipe(
    usual=Rates(steps=20_000, warmup=500, rate=5e-3, matrix_rate=0.0, decay=0.0, clip=10.0),
    tuning=Rates(steps=2_000, warmup=100, rate=1e-3, matrix_rate=0.0, decay=0.0, clip=10.0),
    batch=4,
    parametrize=_parametrize,
    optimizer=_adam,
    part=_everything,
)
"""Adam on all weights in units of their size, with a limit on the gradient's norm; any model by its interface alone."""


def constants_of(model: Model) -> tuple[str, ...]:
    """Patterns of the parameters that training leaves alone."""
    return model.constants if isinstance(model, ModelWithConstants) else ()
