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
from jaxtyping import Array, Float

from jaxpto.errors import InputError
from jaxpto.model_interface import Model, SelectiveModel
from jaxpto.models.catalogue import load_potential, reference_energies_of
from jaxpto.models.committee import load_committee
from jaxpto.models.fresh import fresh_model
from jaxpto.potential import Potential
from jaxpto.system import System
from jaxpto.training import data
from jaxpto.training.committee import frame_counts, member_key, stacked, varied
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
        parametrization: what is trained, at the beginning; of a committee with a leading axis, see `stacked`.
        remarks: sentences for the user.
        members: number of models trained side by side.
        counts: [f, m] how much each training frame of each group counts for each member; None of one model.
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
    members: int = 1
    counts: tuple[Float[np.ndarray, "f m"], ...] | None = None


def set_up(config: TrainConfig) -> Task:
    """Read the data and choose where to start.

    Raises:
        InputError: data, shares, model, settings or patterns are refused.
    """
    trajectories = load_frames(config.data)
    training = data.training_rows([len(frames) for frames in trajectories], config.frames)
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
    rows = training + data.training_rows([len(frames) for frames in replayed])
    groups = group(everything, rows, probability, Potential({}, model, "") if initial is None else initial)
    if initial is None:
        known = [frames[kept] for frames, kept in zip(trajectories, training, strict=True)]
        reference = dict(zip(elements, reference_energies(known, elements).tolist(), strict=True))
    else:
        names = [t.name for t in trajectories]
        missing = missing_energies(initial, groups, names, elements)
        reference = own | dict(zip(elements, missing.tolist(), strict=True))
    references = {t.name: reference for t in trajectories} | {t.name: own for t in replayed}
    groups = [one.relative_to(references) for one in groups]

    key = jax.random.key(config.seed)
    start, total = _start(config, model, recipe, groups, None if initial is None else initial.params, key)
    trained = _count(start.raw)
    counts, whole = None, ()
    if config.committee > 1:
        others, whole = _other_starts(config, model, recipe, groups, initial, key)
        start = stacked([start, *others])
        counts = tuple(frame_counts(one.train, config.committee, config.seed) for one in groups)
    energies = ", ".join(f"{chemical_symbols[z]} {reference[z]:.4f}" for z in elements)
    fitted = "fitted to the data" if initial is None else "what the data have beyond the initial model"
    frames = f"{settled.batch} frame{'s' if settled.batch > 1 else ''}"
    fewer = f"trained on {config.frames} frames, drawn at random; all that are held out are validated on"
    remarks = (
        f"{type(model).__name__}: {trained:,} of {total:,} numbers are trained, "
        f"{settled.rates.steps} steps of {frames}",
        f"energies count from {energies} eV ({fitted})",
        *whole,
        *((fewer,) if config.frames else ()),
    )
    weight_of = {t.name: float(p) for t, p in zip(everything, probability, strict=True)}
    return Task(
        model, recipe, settled, config.weights, reference, everything, weight_of,
        groups, start, remarks, config.committee, counts,
    )  # fmt: skip


def _start(
    config: TrainConfig, model: Any, recipe: Recipe, groups: list[FrameGroup], params: Any, key: Array
) -> tuple[Parametrization, int]:
    """What is trained, from these parameters or (None) from nothing, and how many numbers there are in all."""
    start = recipe.parametrize(model, params, groups, key)
    total = _count(start.raw)
    start = frozen(start, constants_of(model), config.freeze)
    if config.lora:
        start = low_rank(start, config.lora, jax.random.fold_in(key, 1))
    return start, total


def _other_starts(
    config: TrainConfig, model: Any, recipe: Recipe, groups: list[FrameGroup], initial: Potential | None, key: Array
) -> tuple[list[Parametrization], tuple[str, ...]]:
    """Where the members after the first begin, and a sentence about it."""
    committee = None if config.initial is None else load_committee(config.initial, np.float32)
    known = 1 if committee is None else committee.members
    starts = []
    for member in range(1, config.committee):
        own = member_key(key, member)
        params = None if initial is None else initial.params
        if committee is not None and member < known:
            params = committee.member(member).params
        start, _ = _start(config, model, recipe, groups, params, own)
        alike = initial is not None and member >= known
        starts.append(varied(start, jax.random.fold_in(own, 2)) if alike else start)
    if initial is None:
        begins = "each begins with weights of its own"
    elif known >= config.committee:
        begins = "each goes on from its own in the initial model's committee"
    else:
        begins = "those that the initial model does not have begin with its weights, changed by 1 %"
    return starts, (f"committee of {config.committee} members: {begins}, and frames count differently for each",)


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
