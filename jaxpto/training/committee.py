"""The members of a committee in training: where each begins, and how much each frame counts for it.

Members differ in two ways. Their first weights: drawn with keys of their own, or those of the initial model with small
relative changes. And their data: in each gradient of member k, frame f is multiplied by a weight w_kf drawn from the
exponential distribution of mean 1, which is the Bayesian bootstrap (Rubin, Ann. Statist. 9, 130, 1981): no frame is
lost to a member, and members weigh the same data differently, as if they had been collected again. The first member
begins and counts as a training without committee does, so that the model is the same one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto.storage.identity import digest_of
from jaxpto.training.batches import FrameBatch
from jaxpto.training.parametrization import Parametrization

VARIATION = 0.01  # relative change of a weight where members begin with the weights of one model
_STREAM = 2  # of random keys: 1 is that of low-rank changes


def member_key(key: Array, member: int) -> Array:
    """The random key of a member: that of the training for the first one, and one of its own for each other."""
    return key if member == 0 else jax.random.fold_in(jax.random.fold_in(key, _STREAM), member)


def varied(start: Parametrization, key: Array) -> Parametrization:
    """The same with every trained number w replaced by w (1 + 0.01 g), g normally distributed."""
    leaves, structure = jax.tree.flatten(start.raw)
    keys = jax.random.split(key, len(leaves))
    changed = [
        leaf * (1.0 + VARIATION * jax.random.normal(one, leaf.shape, leaf.dtype))
        for leaf, one in zip(leaves, keys, strict=True)
    ]
    return dataclasses.replace(start, raw=jax.tree.unflatten(structure, changed))


def stacked(starts: Sequence[Parametrization]) -> Parametrization:
    """All members in one: weights and constants have a leading axis; `decode` is still that of one member."""
    join = lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves])  # noqa: E731
    raw, constants = (jax.tree.map(join, *(getattr(one, name) for one in starts)) for name in ("raw", "constants"))
    return Parametrization(raw, constants, starts[0].decode)


def member_of(tree: Any, member: int) -> Any:
    """One member of a tree of arrays with a leading axis."""
    return jax.tree.map(lambda leaf: leaf[member, ...], tree)  # with the dots a number stays an array


def frame_counts(batch: FrameBatch, members: int, seed: int) -> Float[np.ndarray, "f m"]:
    """How much each frame counts for each member: 1 for the first, exponentially distributed for the others.

    The numbers follow from seed, member and what the frame holds, so that they stay when data are added.

    Args:
        batch: the frames.
        members: number of members.
        seed: seed of the training.
    """
    frames = batch.frames
    columns = (frames.system.numbers, frames.system.positions, frames.system.cell, frames.labels.forces)
    counts = np.ones((len(batch), members), np.float32)
    for row in range(len(batch)):
        own = int(digest_of(*(np.asarray(column[row]) for column in columns)), 16)
        counts[row, 1:] = np.random.default_rng([seed, own]).exponential(size=members - 1)
    return counts
