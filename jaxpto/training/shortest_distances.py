"""Shortest distances in the data: how far inwards a model may be trusted, and where its wall stands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii

from jaxpto.training.batches import FrameBatch, vectors_of


def shortest_distances(
    batches: Sequence[FrameBatch], elements: tuple[int, ...], cutoff: float, rare: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Trusted distance and wall [e, e] of each pair of elements, Angstrom.

    Trusted: all but `rare` of the distances in the data are longer (all but one in a thousand where there are few).
    Wall: 0.98 of the shortest of them. Both are 0.8 of the sum of covalent radii for pairs that are never in contact.
    """
    radii = covalent_radii[list(elements)]
    number = np.zeros((len(elements), len(elements)), int)
    closest = np.full((len(elements), len(elements), rare), np.inf)
    for batch in batches:
        numbers, species = batch.numbers[0], batch.layout.species
        vectors = np.asarray(vectors_of(batch, np.arange(len(batch))))
        distances = np.linalg.norm(vectors.reshape(len(batch), len(numbers), -1, 3), axis=3)
        ends = np.cumsum(batch.layout.slots)
        for other, end, size in zip(species, ends, batch.layout.slots, strict=True):
            for own in species:
                pair = elements.index(own), elements.index(other)
                if pair[0] <= pair[1]:  # the other direction holds the same distances
                    found = distances[:, numbers == own, end - size : end].ravel()
                    number[pair] += (found < 0.999 * cutoff).sum()
                    merged = np.concatenate([closest[pair], np.partition(found, min(rare, len(found) - 1))[:rare]])
                    closest[pair] = closest[pair[::-1]] = np.sort(merged)[:rare]
    contact = radii[:, None] + radii[None, :]
    seen = closest[..., 0] < 1.75 * contact
    number = np.maximum(number, number.T)
    last = np.clip(number // 1000, 1, rare) - 1
    trusted = np.take_along_axis(closest, last[..., None], axis=2)[..., 0]
    return np.where(seen, trusted, 0.8 * contact), np.where(seen, 0.98 * closest[..., 0], 0.8 * contact)
