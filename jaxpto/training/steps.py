"""The compiled pieces of a training: gradient of one frame's loss, change of the weights, prediction of one frame."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpto.model_interface import Model, Prediction, SiteModel
from jaxpto.potential import Potential
from jaxpto.training.batches import Frame
from jaxpto.training.loss import TERMS, LossWeights, deviations, loss, squares
from jaxpto.training.parametrization import Decode
from jaxpto.training.recipe import Recipe

MEMORY = 0.01  # share of the latest frame in running errors


@struct.dataclass
class TrainState:
    """Everything that changes during training.

    Attributes:
        raw: what is trained; see `Parametrization`.
        average: its exponential moving average, which is exported.
        moments: state of the optimizer.
        step: [] steps done.
        recent: [2, 5] fading sums of the loss and of the squared errors of energy (eV^2/atom^2), forces, virial and
            magnetic moments of the frames seen, and of their numbers.
    """

    raw: Any
    average: Any
    moments: Any
    step: Int[Array, ""]
    recent: Float[Array, "2 5"]

    @property
    def errors(self) -> Float[Array, "5"]:
        """[5] running means of these; NaN where no frame had a label."""
        return self.recent[0] / self.recent[1]


def begin(raw: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    # two copies, for a step gives the memory of its arguments to its results
    average, raw = (jax.tree.map(jnp.copy, raw) for _ in range(2))
    return TrainState(raw, average, optimizer.init(raw), jnp.int32(0), jnp.zeros((2, 1 + len(TERMS)), jnp.float32))


def predict(potential: Potential, frame: Frame, *, moments: bool) -> tuple[Prediction, Float[Array, " n"] | None]:
    """Energy, forces and stress of a frame, and the magnetic moments if they are asked for."""
    prediction = potential.evaluate(frame.system, frame.neighbors)
    return prediction, potential.site_properties(frame.system, frame.neighbors)["magmoms"] if moments else None


def predicts_moments(model: Model) -> bool:
    """Whether a model has magnetic moments."""
    return isinstance(model, SiteModel) and "magmoms" in model.site_quantities


def make_gradient(
    model: Model, recipe: Recipe, decode: Decode, weights: LossWeights, *, moments: bool
) -> Callable[[Any, Any, Frame], tuple[Any, Float[Array, "5"]]]:
    """Compiled (raw, constants, frame) -> gradient, in the part of `raw` that the frame touches, and [loss, errors^2].

    A gradient that is not finite counts as zero.

    Args:
        model: architecture.
        recipe: how it is trained.
        decode: makes its parameters.
        weights: weights and scales of the loss.
        moments: whether magnetic moments are learned.
    """

    @jax.jit
    def gradient(raw: Any, constants: Any, frame: Frame) -> tuple[Any, Array]:
        part = recipe.part(model, frame.neighbors.layout.species)
        own_constants = part.take(constants)

        def objective(own: Any) -> tuple[Array, Array]:
            potential = Potential(decode(own, own_constants), part.model, "")
            errors = deviations(*predict(potential, frame, moments=moments), frame)
            value = loss(errors, frame.labels, weights)
            return value, jnp.concatenate([value[None], squares(errors, frame.labels)])

        slope, errors = jax.grad(objective, has_aux=True)(part.take(raw))
        return jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, jnp.zeros_like(g)), slope), errors

    return gradient


def make_sum(model: Model, recipe: Recipe) -> Callable[[Any, Any, tuple[int, ...]], Any]:
    """Compiled (sum, gradient of a frame, its species) -> sum."""

    @functools.partial(jax.jit, static_argnames="species", donate_argnums=0)
    def add(total: Any, slope: Any, species: tuple[int, ...]) -> Any:
        part = recipe.part(model, species)
        return part.put(total, jax.tree.map(jnp.add, part.take(total), slope))

    return add


def make_update(
    model: Model, recipe: Recipe, optimizer: optax.GradientTransformation, ema: float
) -> Callable[[TrainState, Any, Float[Array, "b 5"], tuple[int, ...]], TrainState]:
    """Compiled (state, sum of gradients, [loss, errors^2] of each frame, all their species) -> state."""

    @functools.partial(jax.jit, static_argnames="species", donate_argnums=0)
    def update(state: TrainState, total: Any, errors: Float[Array, "b 5"], species: tuple[int, ...]) -> TrainState:
        part = recipe.part(model, species)
        raw, average, moments, total = (part.take(t) for t in (state.raw, state.average, state.moments, total))
        mean = jax.tree.map(lambda leaf: leaf / len(errors), total)
        updates, moments = optimizer.update(mean, moments, raw)
        raw = optax.apply_updates(raw, updates)
        # early on the average forgets faster, so that the weights of the beginning do not linger in it
        memory = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, r: (memory * a + (1.0 - memory) * r).astype(a.dtype), average, raw)
        recent = state.recent
        for seen in errors:
            known = jnp.isfinite(seen).at[0].set(True)  # the loss always is: where it is not a number, that shows
            latest = jnp.stack([jnp.where(known, seen, 0.0), known.astype(seen.dtype)])
            recent = jnp.where(known, recent + MEMORY * (latest - recent), recent)
        return TrainState(
            part.put(state.raw, raw), part.put(state.average, average), part.put(state.moments, moments),
            state.step + 1, recent,
        )  # fmt: skip

    return update


def make_prediction(model: Model) -> Callable[[Any, Frame], tuple[Prediction, Float[Array, " n"] | None]]:
    """Compiled (parameters, frame) -> prediction, and the magnetic moments of models that have them."""
    moments = predicts_moments(model)
    return jax.jit(lambda params, frame: predict(Potential(params, model, ""), frame, moments=moments))
