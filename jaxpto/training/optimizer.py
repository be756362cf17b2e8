"""One training step: Muon on the matrices, Adam on the rest, restricted to the elements of the frame at hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float
from optax import contrib

from jaxpto.models.perovskite import ATOMWISE, PAIRWISE, Params, Perovskite, initialize, select
from jaxpto.models.perovskite_moments import moments
from jaxpto.training.batches import FrameBatch
from jaxpto.training.loss import LossWeights, loss, one_hot, predict_frame
from jaxpto.training.whitening import Whitening, fold, independent, inverse_root


@struct.dataclass
class TrainState:
    """Everything that changes during training.

    Attributes:
        raw: weights on whitened inputs.
        average: their exponential moving average, which is exported.
        moments: state of the optimizer.
        errors: [4] running means of the loss and of the squared errors of energy (eV^2 / atom^2), forces and virial;
            the last one over frames with a virial.
    """

    raw: Params
    average: Params
    moments: Any
    errors: Float[Array, 4]


def initial_raw(model: Perovskite, key: Array, dtype: jax.typing.DTypeLike) -> Params:
    """Random raw weights (on independent, whitened inputs) whose energy is zero."""
    params = initialize(model, key, dtype)
    d = len(independent(model))
    scale = np.sqrt(model.features / d).item()
    return params | {"weight1": params["weight1"][:, :d] * scale, "linear": params["linear"][:, :d]}


def make_optimizer(
    matrix_rate: float, other_rate: float, matrix_decay: float, steps: int, warmup: int
) -> optax.GradientTransformation:
    """Muon (Jordan et al., kellerjordan.github.io/posts/muon, 2024) for matrices, Adam for the rest; cosine rates.

    Muon's updates all have the same size, so that without decay the matrices keep growing and the nets become sums of
    steep steps: accurate on the data, and rugged where a hot crystal leaves them.
    """

    matrices = {
        "mix": contrib.MuonDimensionNumbers(3, 2),
        "weight1": contrib.MuonDimensionNumbers(1, 2),
        "weight2": contrib.MuonDimensionNumbers(1, 2),
    }

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, min(warmup, steps // 2), steps, peak * 0.01)

    return contrib.muon(
        schedule(matrix_rate),
        weight_decay=matrix_decay,
        adam_learning_rate=schedule(other_rate),
        adam_b2=0.99,
        muon_weight_dimension_numbers={k: matrices.get(k) for k in (*PAIRWISE, *ATOMWISE)},
    )


def _element_axes(path: tuple) -> int:
    names = [p.key for p in path if isinstance(p, jax.tree_util.DictKey)]
    name = names[-1] if names else ""
    return 2 if name in PAIRWISE else 1 if name in ATOMWISE else 0  # 0: a counter or setting of the optimizer


def take(tree: Any, known: np.ndarray) -> Any:
    """The part of a tree of weights or moments that belongs to the elements `known`."""

    def one(path: tuple, leaf: Array) -> Array:
        axes = _element_axes(path)
        return leaf if axes == 0 else leaf[known] if axes == 1 else leaf[known[:, None], known[None, :]]

    return jax.tree_util.tree_map_with_path(one, tree)


def put(tree: Any, part: Any, known: np.ndarray) -> Any:
    """The tree with the part of the elements `known` replaced."""

    def one(path: tuple, leaf: Array, new: Array) -> Array:
        axes = _element_axes(path)
        if axes == 0:
            return new
        return leaf.at[known].set(new) if axes == 1 else leaf.at[known[:, None], known[None, :]].set(new)

    return jax.tree_util.tree_map_with_path(one, tree, part)


def known_elements(model: Perovskite, batch: FrameBatch) -> np.ndarray:
    """Indices into the model's elements of the species of a batch."""
    return np.array([model.elements.index(z) for z in batch.species])


def _whitening_part(whitening: Whitening, known: np.ndarray) -> Whitening:
    return Whitening(whitening.radial[known[:, None], known[None, :]], whitening.mean[known], whitening.features[known])


def predictor(model: Perovskite, batch: FrameBatch) -> Callable:
    """Function (params of the species present, index, arrays) -> prediction and labels of one stored frame."""
    own = one_hot(batch.numbers, batch.species, batch.vectors.dtype)

    def apply(params: Params, index: Array, arrays: tuple[Array, ...]) -> tuple[tuple, tuple]:
        vectors, senders, energy, forces, virial = (a[index] for a in arrays)
        return predict_frame(model, params, jnp.asarray(own), vectors, senders, batch.layout), (energy, forces, virial)

    return apply


def errors_of(prediction: tuple, target: tuple, atoms: int) -> Float[Array, 3]:
    """Mean squared errors of energy, forces and virial (energy and virial per atom); NaN where there is no virial."""
    energy, forces, virial = (p - t for p, t in zip(prediction, target, strict=True))
    return jnp.stack([(energy / atoms) ** 2, (forces**2).mean(), ((virial / atoms) ** 2).mean()])


def frame_objective(model: Perovskite, batch: FrameBatch, whitening: Whitening, weights: LossWeights) -> Callable:
    """Function (raw weights of the species present, index, arrays) -> loss and squared errors of one frame."""
    part = _whitening_part(whitening, known_elements(model, batch))
    atoms = len(batch.numbers)
    apply = predictor(model, batch)
    everyone = list(range(len(batch.species)))

    def objective(raw: Params, index: Array, arrays: tuple[Array, ...]) -> tuple[Array, Array]:
        params = select(fold(model, raw, part), everyone)
        prediction, target = apply(params, index, arrays)
        return loss(prediction, target, atoms, weights), errors_of(prediction, target, atoms)

    return objective


def make_step(
    model: Perovskite,
    batch: FrameBatch,
    whitening: Whitening,
    optimizer: optax.GradientTransformation,
    weights: LossWeights,
    ema: float,
) -> Callable:
    """Compiled step (state, index, arrays) -> state on one frame of a batch."""
    known = known_elements(model, batch)
    objective = frame_objective(model, batch, whitening, weights)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, index: Array, arrays: tuple[Array, ...]) -> TrainState:
        raw, average, moments = (take(t, known) for t in (state.raw, state.average, state.moments))
        (value, errors), gradient = jax.value_and_grad(objective, has_aux=True)(raw, index, arrays)
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, jnp.zeros_like(g)), gradient)
        updates, moments = optimizer.update(gradient, moments, raw)
        raw = jax.tree.map(jnp.add, raw, updates) | {k: raw[k] for k in ("trusted", "wall")}
        average = jax.tree.map(lambda a, r: ema * a + (1.0 - ema) * r, average, raw)
        unlabelled = jnp.array([False, False, False, True]) & ~jnp.isfinite(arrays[-1][index]).all()
        recent = jnp.where(unlabelled, state.errors, jnp.concatenate([value[None], errors]))
        return TrainState(
            put(state.raw, raw, known),
            put(state.average, average, known),
            put(state.moments, moments, known),
            state.errors + 0.002 * (recent - state.errors),
        )

    return step


def make_validation(model: Perovskite, batch: FrameBatch, whitening: Whitening) -> Callable:
    """Compiled (raw, arrays) -> [f, 3] mean squared errors of energy, forces and virial of the frames of a batch."""
    known = known_elements(model, batch)
    part = _whitening_part(whitening, known)
    apply = predictor(model, batch)
    atoms = len(batch.numbers)

    @jax.jit
    def validate(raw: Params, arrays: tuple[Array, ...]) -> Float[Array, 3]:
        params = select(fold(model, take(raw, known), part), list(range(len(known))))
        frames = jnp.arange(arrays[2].shape[0])
        return jax.lax.map(lambda f: errors_of(*apply(params, f, arrays), atoms), frames)

    return validate


def measure_whitening(
    model: Perovskite,
    weights: Params,
    batches: list[FrameBatch],
    *,
    folded: bool,
    floor: float = 1e-2,
    samples: int = 200,
) -> Whitening:
    """Whitening from a sample of frames of each batch.

    Args:
        model: the model.
        weights: weights whose mixing gives the invariants.
        batches: training data.
        folded: whether `weights` act on plain radial functions instead of whitened ones.
        floor: smallest variance, relative to the mean one, that is scaled to one.
        samples: number of frames taken from each batch.
    """
    e, k, d = len(model.elements), model.radial, len(independent(model))
    dtype = batches[0].vectors.dtype
    gram, count = np.zeros((e, e, k, k)), np.zeros((e, e))
    gathered = []
    for batch in batches:
        known = known_elements(model, batch)
        own = one_hot(batch.numbers, batch.species, dtype)
        chosen = np.unique(np.linspace(0, len(batch.energies) - 1, samples).astype(int))
        none = jnp.zeros((len(batch.numbers), len(known)), dtype) + 1e-3
        trusted = jnp.asarray(own) @ weights["trusted"][known][:, known]
        sample = jax.vmap(lambda v, r=trusted, w=none, b=batch: moments(v, r, w, model.cutoff, k, b.layout)[0])(
            batch.vectors[chosen]
        )
        sample = np.asarray(sample, np.float64)  # [f, n, t, 9, k]
        square = np.einsum("fntmk,fntml->ntkl", sample, sample, optimize=True) / (9 * len(chosen))
        for a, i in enumerate(known):
            mine = own[:, a] > 0
            for b, j in enumerate(known):
                gram[i, j] += square[mine, b].sum(0)
                count[i, j] += mine.sum()
        gathered.append((known, own, sample))
    radial = inverse_root_or_one(gram, count, floor)
    mix = np.asarray(weights["mix"], np.float64)
    mix = mix if folded else np.einsum("abnp,abpk->abnk", mix, radial)
    by_element: list[list[np.ndarray]] = [[] for _ in range(e)]
    for known, own, sample in gathered:
        for a, i in enumerate(known):
            mine = own[:, a] > 0
            channels = np.einsum("bck,fnbmk->fncm", mix[i][known], sample[:, mine], optimize=True)
            stacked = np.moveaxis(channels.reshape(-1, model.channels, 9), 0, 2).swapaxes(0, 1)
            features = model.invariants(jnp.asarray(stacked, dtype))
            by_element[i].append(np.asarray(features, np.float64)[independent(model)].T)
    mean, transform = np.zeros((e, d)), np.zeros((e, d, d))
    for i, rows in enumerate(by_element):
        if not rows:
            transform[i] = np.eye(d)
            continue
        x = np.concatenate(rows)
        mean[i] = x.mean(0)
        spread = x.std(0) + 1e-6
        z = (x - mean[i]) / spread
        transform[i] = inverse_root(z.T @ z / len(z), floor) / spread[None, :]
    return Whitening(jnp.asarray(radial, dtype), jnp.asarray(mean, dtype), jnp.asarray(transform, dtype))


def inverse_root_or_one(gram: np.ndarray, count: np.ndarray, floor: float) -> np.ndarray:
    """Inverse root of gram / count; the identity for pairs that never occur."""
    k = gram.shape[-1]
    seen = count > 0
    gram = np.where(seen[:, :, None, None], gram / np.maximum(count, 1)[:, :, None, None], np.eye(k)[None, None])
    return inverse_root(gram, floor)
