"""How `perovskite` is trained: on whitened inputs, with Muon on its matrices, element by element."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from optax import contrib

from jaxpto.models.perovskite import ATOMWISE, PAIRWISE, Params, Perovskite, initialize
from jaxpto.training.groups import FrameGroup
from jaxpto.training.measured_whitening import measure_whitening
from jaxpto.training.parametrization import Parametrization
from jaxpto.training.recipe import Part, Rates, Recipe
from jaxpto.training.shortest_distances import shortest_distances
from jaxpto.training.whitening import fold, independent, unfold

MATRICES = {
    "mix": contrib.MuonDimensionNumbers(3, 2),
    "weight1": contrib.MuonDimensionNumbers(1, 2),
    "weight2": contrib.MuonDimensionNumbers(1, 2),
}
# leading axes that count elements, of leaves of weights, moments and `Whitening`
ELEMENT_AXES = dict.fromkeys((*PAIRWISE, "radial"), 2) | dict.fromkeys((*ATOMWISE, "mean", "features"), 1)


def initial_raw(model: Perovskite, key: Array, dtype: jax.typing.DTypeLike) -> Params:
    """Random raw weights (on independent, whitened inputs) whose energy is zero."""
    params = initialize(model, key, dtype)
    d = len(independent(model))
    scale = np.sqrt(model.features / d).item()
    return params | {"weight1": params["weight1"][:, :d] * scale, "linear": params["linear"][:, :d]}


def whitened(model: Perovskite, params: Params | None, groups: Sequence[FrameGroup], key: Array) -> Parametrization:
    """Weights on whitened inputs; see `whitening`.

    Args:
        model: the model.
        params: parameters to start from, or None to begin from nothing.
        groups: training data.
        key: PRNG key of the weights.
    """
    raw = initial_raw(model, key, np.float32)
    if params is None:
        batches = [batch for group in groups for batch in group.batches]
        raw["trusted"], raw["wall"] = map(jnp.float32, shortest_distances(batches, model.elements, model.cutoff))
    trained = [group.train for group in groups]
    scales = measure_whitening(model, raw if params is None else params, trained, folded=params is not None)
    if params is not None:
        raw = unfold(model, params, scales)
    return Parametrization(raw, scales, lambda raw, scales: fold(model, raw, scales))


def muon(raw: Any, rates: Rates) -> optax.GradientTransformation:
    """Muon (Jordan et al., kellerjordan.github.io/posts/muon, 2024) for matrices, Adam for the rest; cosine rates.

    Muon's updates all have the same size, so that without decay the matrices keep growing and the nets become sums of
    steep steps: accurate on the data, and rugged where a hot crystal leaves them.
    """
    dimensions = {
        name: dict.fromkeys(leaf) if isinstance(leaf, dict) else MATRICES.get(name) for name, leaf in raw.items()
    }
    rule = contrib.muon(
        rates.schedule(rates.matrix_rate),
        weight_decay=rates.decay,
        adam_learning_rate=rates.schedule(rates.rate),
        adam_b2=0.99,
        muon_weight_dimension_numbers=dimensions,
    )
    return rates.limited(rule)


def part_of(model: Perovskite, species: tuple[int, ...]) -> Part:
    """The tables of some elements, and the model that knows these alone."""
    known = np.array([model.elements.index(z) for z in species])
    return Part(
        dataclasses.replace(model, elements=species),
        lambda tree: take(tree, known),
        lambda tree, part: put(tree, part, known),
    )


def _element_axes(path: tuple) -> int:
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    return next((ELEMENT_AXES[name] for name in names if name in ELEMENT_AXES), 0)  # 0: a counter of the optimizer


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


WHITENED = Recipe(
    usual=Rates(steps=100_000, warmup=200, rate=1e-3, matrix_rate=3e-3, decay=0.02, clip=0.0),
    tuning=Rates(steps=20_000, warmup=200, rate=1e-4, matrix_rate=3e-4, decay=0.02, clip=0.0),
    batch=1,
    parametrize=whitened,
    optimizer=muon,
    part=part_of,
)
