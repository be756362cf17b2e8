"""From settings and files to everything that stays the same during a training."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols

from jaxpto.errors import InputError
from jaxpto.model_interface import Model, SelectiveModel
from jaxpto.models.catalogue import load_potential, reference_energies_of
from jaxpto.models.fresh import fresh_model
from jaxpto.potential import Potential
from jaxpto.system import System
from jaxpto.training import data
from jaxpto.training.config import Settled, TrainConfig, settle
from jaxpto.training.groups import FrameGroup, group, share_of
from jaxpto.training.loss import LossWeights
from jaxpto.training.parametrization import Parametrization, frozen, low_rank
from jaxpto.training.recipe import Recipe, constants_of
from jaxpto.training.recipes import recipe_of
from jaxpto.training.reference_energies import missing_energies, reference_energies
from jaxpto.training.replay import labelled_by_model

FRESH = "perovskite"  # architecture of a training that names none


@dataclasses.dataclass(frozen=True)
class Task:
    """What stays the same during a training.

    Attributes:
        model: architecture.
        recipe: how it is trained.
        settled: settings that depend on the architecture.
        weights: weights and scales of the loss.
        reference: energy of each element that predictions are relative to, eV.
        trajectories: the data as they were read, those for replay included.
        weight_of: probability of drawing from each trajectory.
        groups: the data by programs.
        parametrization: what is trained, at the beginning.
        remarks: sentences for the user.
    """

    model: Model
    recipe: Recipe
    settled: Settled
    weights: LossWeights
    reference: dict[int, float]
    trajectories: list[data.LabelledFrames]
    weight_of: dict[str, float]
    groups: list[FrameGroup]
    parametrization: Parametrization
    remarks: tuple[str, ...]


def set_up(config: TrainConfig) -> Task:
    """Read the data and choose where to start.

    Raises:
        InputError: data, shares, model, settings or patterns are refused.
    """
    trajectories = load_frames(config.data)
    probability = share_of(trajectories, config.shares)
    elements = tuple(sorted({int(z) for t in trajectories for z in t.numbers}))
    initial = None if config.initial is None else initial_potential(config.initial, elements)
    model: Any = (
        fresh_model(config.architecture or FRESH, elements, _named(config.hyperparameters), _some_systems(trajectories))
        if initial is None
        else initial.model
    )
    recipe = recipe_of(model)
    settled = settle(config, recipe)
    model = _acquainted(model, trajectories, fresh=initial is None)

    own = {} if config.initial is None else _own_reference(config.initial, model)
    replayed: list[data.LabelledFrames] = []
    if initial is not None and config.replay:
        replayed = labelled_by_model(config.replay, initial, own)
        probability = np.concatenate(
            [(1.0 - config.replay_share) * probability, np.full(len(replayed), config.replay_share / len(replayed))]
        )
    everything = trajectories + replayed
    groups = group(everything, probability, Potential({}, model, "") if initial is None else initial)
    if initial is None:
        reference = dict(zip(elements, reference_energies(trajectories, elements).tolist(), strict=True))
    else:
        names = [t.name for t in trajectories]
        missing = missing_energies(initial, groups, names, elements)
        reference = own | dict(zip(elements, missing.tolist(), strict=True))
    references = {t.name: reference for t in trajectories} | {t.name: own for t in replayed}
    groups = [one.relative_to(references) for one in groups]

    key = jax.random.key(config.seed)
    start = recipe.parametrize(model, None if initial is None else initial.params, groups, key)
    total = _count(start.raw)
    start = frozen(start, constants_of(model), config.freeze)
    if config.lora:
        start = low_rank(start, config.lora, jax.random.fold_in(key, 1))
    energies = ", ".join(f"{chemical_symbols[z]} {reference[z]:.4f}" for z in elements)
    fitted = "fitted to the data" if initial is None else "what the data have beyond the initial model"
    frames = f"{settled.batch} frame{'s' if settled.batch > 1 else ''}"
    remarks = (
        f"{type(model).__name__}: {_count(start.raw):,} of {total:,} numbers are trained, "
        f"{settled.rates.steps} steps of {frames}",
        f"energies count from {energies} eV ({fitted})",
    )
    weight_of = {t.name: float(p) for t, p in zip(everything, probability, strict=True)}
    return Task(
        model, recipe, settled, config.weights, reference, everything, weight_of,
        groups, start, remarks,
    )  # fmt: skip


def load_frames(paths: Sequence[Path]) -> list[data.LabelledFrames]:
    """Read and clean all data, and give every trajectory a name of its own.

    Raises:
        InputError: there is no usable frame.
    """
    found = data.usable([frames for path in paths for frames in data.read(path)])
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no usable frame; give labelled structures")
    return found


def initial_potential(name: Path, elements: tuple[int, ...]) -> Potential:
    """The model to fine-tune.

    Raises:
        InputError: it has no forces that are derivatives of its energy, no parameters, or lacks one of `elements`.
    """
    potential = load_potential(name)
    if not potential.conservative:
        raise InputError(f"{name}: {potential.caveat}; train a model whose forces are")
    if not jax.tree.leaves(potential.params):
        raise InputError(f"{name}: has no parameters to train")
    unknown = [chemical_symbols[z] for z in elements if z not in potential.elements]
    if unknown:
        raise InputError(f"{name}: does not know {', '.join(unknown)}; train from nothing or leave those data out")
    return potential


def _own_reference(name: Path, model: Model) -> dict[int, float]:
    """Reference energies of the elements of the initial model, eV: what its header has, or zeros."""
    energies = reference_energies_of(name)
    return {z: energies.get(chemical_symbols[z], 0.0) for z in model.elements}


def _acquainted(model: Any, trajectories: Sequence[data.LabelledFrames], *, fresh: bool) -> Any:
    """The model with the pairs of elements that no data held together, where it keeps account of them."""
    if not isinstance(model, SelectiveModel) or "strangers" not in {f.name for f in dataclasses.fields(model)}:
        return model
    strangers = itertools.combinations(model.elements, 2) if fresh else model.strangers
    met = {pair for t in trajectories for pair in itertools.combinations(sorted(set(t.numbers.tolist())), 2)}
    return dataclasses.replace(model, strangers=tuple(pair for pair in strangers if pair not in met))


def _some_systems(trajectories: Sequence[data.LabelledFrames], each: int = 4) -> list[System]:
    """A few systems of each trajectory."""
    return [
        System(
            *(jnp.asarray(x[frame], np.float32) for x in (frames.positions, frames.cells)),
            jnp.asarray(frames.numbers, np.int32),
            jnp.ones(len(frames.numbers), np.float32),
        )
        for frames in trajectories
        for frame in np.unique(np.linspace(0, len(frames) - 1, each).astype(int)).tolist()
    ]


def _named(texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"hyperparameter {text!r}: write NAME=VALUE")
        pairs[name] = value
    return pairs


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
