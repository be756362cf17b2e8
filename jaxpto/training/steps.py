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

from jaxpto.devices.sequential import over_members
from jaxpto.model_interface import Model, Prediction, predicts
from jaxpto.potential import Potential
from jaxpto.training.batches import Frame
from jaxpto.training.loss import TERMS, LossWeights, deviations, loss, squares
from jaxpto.training.parametrization import Decode
from jaxpto.training.recipe import Recipe

MEMORY = 0.01  # share of the latest frame in running errors


@struct.dataclass
class TrainState:
    """Everything that changes during training.

    Every array of a committee's state has a leading axis: one member after the other.

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
    step: Int[Array, "*m"]
    recent: Float[Array, "*m 2 5"]

    @property
    def errors(self) -> Float[Array, "5"]:
        """[5] running means of these, of a committee its first member's; NaN where no frame had a label."""
        recent = self.recent if self.recent.ndim == 2 else self.recent[0]
        return recent[0] / recent[1]


def begin(raw: Any, optimizer: optax.GradientTransformation, *, members: int = 1) -> TrainState:
    """The state before the first step; `raw` has a leading axis of more than one member."""
    # two copies, for a step gives the memory of its arguments to its results
    average, raw = (jax.tree.map(jnp.copy, raw) for _ in range(2))
    moments = optimizer.init(raw) if members == 1 else jax.vmap(optimizer.init)(raw)
    each = () if members == 1 else (members,)
    recent = jnp.zeros((*each, 2, 1 + len(TERMS)), jnp.float32)
    return TrainState(raw, average, moments, jnp.zeros(each, jnp.int32), recent)


def predict(potential: Potential, frame: Frame, *, moments: bool) -> tuple[Prediction, Float[Array, " n"] | None]:
    """Energy, forces and stress of a frame, and the magnetic moments if they are asked for."""
    prediction = potential.evaluate(frame.system, frame.neighbors)
    return prediction, potential.site_properties(frame.system, frame.neighbors)["magmoms"] if moments else None


def predicts_moments(model: Model) -> bool:
    """Whether a model has magnetic moments."""
    return predicts(model, "magmoms")


def make_gradient(
    model: Model, recipe: Recipe, decode: Decode, weights: LossWeights, *, moments: bool, members: int = 1
) -> Callable[[Any, Any, Frame], tuple[Any, Float[Array, "5"]]]:
    """Compiled (raw, constants, frame) -> gradient, in the part of `raw` that the frame touches, and [loss, errors^2].

    A gradient that is not finite counts as zero.

    Args:
        model: architecture.
        recipe: how it is trained.
        decode: makes its parameters.
        weights: weights and scales of the loss.
        moments: whether magnetic moments are learned.
        members: number of models; with more than one, weights, constants and both results have a leading axis.
    """

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

    def of_each(raw: Any, constants: Any, frame: Frame) -> tuple[Any, Array]:
        evaluate = over_members(lambda raw, own: gradient(raw, own, frame), frame.neighbors.layout.platform)
        return evaluate(raw, constants)

    return jax.jit(gradient if members == 1 else of_each)


@jax.jit
def no_gradient(raw: Any) -> Any:
    """The sum of no gradients: one program, for array by array takes longer than a step of a small model."""
    return jax.tree.map(jnp.zeros_like, raw)


def make_sum(model: Model, recipe: Recipe) -> Callable[[Any, Any, Array | None, tuple[int, ...]], Any]:
    """Compiled (sum, gradient of a frame, how much it counts for each member, its species) -> sum.

    None in the third place is for a training without committee: every frame counts as much as any other.
    """

    @functools.partial(jax.jit, static_argnames="species", donate_argnums=0)
    def add(total: Any, slope: Any, counts: Array | None, species: tuple[int, ...]) -> Any:
        part = recipe.part(model, species)

        def one(total: Any, slope: Any) -> Any:
            return part.put(total, jax.tree.map(jnp.add, part.take(total), slope))

        def weighted(total: Any, slope: Any, count: Array) -> Any:
            return one(total, jax.tree.map(lambda leaf: count.astype(leaf.dtype) * leaf, slope))

        return one(total, slope) if counts is None else jax.vmap(weighted)(total, slope, counts)

    return add


def make_update(
    model: Model, recipe: Recipe, optimizer: optax.GradientTransformation, ema: float, *, members: int = 1
) -> Callable[[TrainState, Any, list[Float[Array, "*m 5"]], tuple[int, ...]], TrainState]:
    """Compiled (state, sum of gradients, [loss, errors^2] of each frame, all their species) -> state.

    Of more than one member each has its own norm of the gradient, state of the optimizer and average.
    """

    def one(species: tuple[int, ...], state: TrainState, total: Any, errors: Float[Array, "b 5"]) -> TrainState:
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

    @functools.partial(jax.jit, static_argnames="species", donate_argnums=0)
    def update(state: TrainState, total: Any, errors: list[Array], species: tuple[int, ...]) -> TrainState:
        change = functools.partial(one, species)
        return (change if members == 1 else jax.vmap(change, in_axes=(0, 0, 1)))(state, total, jnp.stack(errors))

    return update


def make_prediction(
    model: Model, *, members: int = 1
) -> Callable[[Any, Frame], tuple[Prediction, Float[Array, "*m n"] | None]]:
    """Compiled (parameters, frame) -> prediction, and the magnetic moments of models that have them.

    Of more than one member, parameters and results have a leading axis.
    """
    moments = predicts_moments(model)

    def of_one(params: Any, frame: Frame) -> tuple[Prediction, Float[Array, " n"] | None]:
        return predict(Potential(params, model, ""), frame, moments=moments)

    def of_each(params: Any, frame: Frame) -> tuple[Prediction, Float[Array, "m n"] | None]:
        return over_members(lambda own: of_one(own, frame), frame.neighbors.layout.platform)(params)

    return jax.jit(of_one if members == 1 else of_each)
