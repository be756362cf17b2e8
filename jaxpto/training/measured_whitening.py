"""Whitening measured on the data: radial functions of a pair of elements and invariants of an element, uncorrelated."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxpto.models.perovskite import Params, Perovskite
from jaxpto.models.perovskite_moments import moments
from jaxpto.training.batches import FrameBatch, vectors_of
from jaxpto.training.whitening import Whitening, independent, inverse_root


def one_hot(numbers: np.ndarray, species: tuple[int, ...], dtype: jax.typing.DTypeLike) -> np.ndarray:
    """One-hot species [n, t] of atomic numbers [n]."""
    return (numbers[:, None] == np.array(species)[None, :]).astype(dtype)


def measure_whitening(
    model: Perovskite,
    weights: Params,
    batches: Sequence[FrameBatch],
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
    dtype = batches[0].frames.system.positions.dtype
    gram, count = np.zeros((e, e, k, k)), np.zeros((e, e))
    gathered = []
    for batch in batches:
        species = batch.layout.species
        known = np.array([model.elements.index(z) for z in species])
        numbers = batch.numbers[0]
        own = one_hot(numbers, species, dtype)
        chosen = np.unique(np.linspace(0, len(batch) - 1, samples).astype(int))
        none = jnp.zeros((len(numbers), len(known)), dtype) + 1e-3
        vectors = jnp.swapaxes(vectors_of(batch, chosen).reshape(len(chosen), len(numbers), -1, 3), 2, 3)
        trusted = jnp.asarray(own) @ weights["trusted"][known][:, known]
        sample = jax.vmap(
            lambda v, r=trusted, w=none, b=batch: moments(v, r, w, model.cutoff, k, model.envelope, b.layout)[0]
        )(vectors)
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
