"""Parameters with which MACE begins to be trained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpto.models.couplings import CouplingPath, path_name
from jaxpto.models.equivariant import SILU_NORM
from jaxpto.models.initial_weights import normal, normal_map
from jaxpto.models.mace_product import symmetric_tensors

HIDDEN = (64, 64, 64)  # widths of the networks of the distance
READOUT = 16  # width of the last layer's readout


def interaction(
    generator: np.random.Generator,
    paths: Sequence[CouplingPath],
    channels: int,
    frequencies: int,
    cutoff: float,
    neighbors: float,
    density: bool,
) -> dict[str, Any]:
    """Maps of features and distances of one layer, of unit gain as in mace-torch (Batatia et al., NeurIPS 2022).

    Constants of the original are in them: sqrt(2 / cutoff) of its radial functions, the norm of its activation, and the
    mean number of neighbours by which it divides sums, unless a density is learned.

    Args:
        generator: source of random numbers.
        paths: the layer's couplings.
        channels: number of features for each l and m.
        frequencies: number of radial functions.
        cutoff: Angstrom.
        neighbors: mean number of neighbours.
        density: whether messages are divided by a learned density.
    """
    prefactor = math.sqrt(2.0 / cutoff)
    gains = (prefactor, *[SILU_NORM] * len(HIDDEN))
    maps = zip(gains, itertools.pairwise((frequencies, *HIDDEN)), strict=False)
    radial = [gain * normal_map(generator, b, a) for gain, (a, b) in maps]
    together = {path: sum(path.result == other.result for other in paths) for path in paths}
    divisor = 1.0 if density else neighbors

    def mix(path: CouplingPath) -> np.ndarray:
        return normal(generator, channels, channels, deviation=(channels * together[path]) ** -0.5 / divisor)

    highest = max(path.features for path in paths)
    last = gains[-1] * HIDDEN[-1] ** -0.5
    result = {
        "up": {str(order): normal_map(generator, channels, channels) for order in range(highest + 1)},
        "radial": {str(number): layer for number, layer in enumerate(radial)},
        "couplings": {path_name(path): normal(generator, channels, HIDDEN[-1], deviation=last) for path in paths},
        "mix": {path_name(path): mix(path) for path in paths},
    }
    if density:
        result["density"] = normal(generator, 1, frequencies, deviation=prefactor / math.sqrt(frequencies))
    return result


def products(
    generator: np.random.Generator, elements: int, channels: int, highest_edge: int, orders: Sequence[int], hidden: int
) -> dict[str, Any]:
    """Weights of the polynomials of one layer, and the maps of their sums.

    The original draws a weight ~ N(0, 1) / p for each of the p ordered chains of couplings that give the l of the
    result. These chains are orthogonal, each of norm sqrt(2 l + 1), and span all equivariant tensors; so in an
    orthonormal basis of the symmetric ones, as here, the same energies have independent weights of deviation
    sqrt(2 l + 1) / p.

    Args:
        generator: source of random numbers.
        elements: number of elements.
        channels: number of features for each l and m.
        highest_edge: largest l of the sums.
        orders: powers.
        hidden: largest l of the results.
    """
    polynomials = {}
    for degree in range(hidden + 1):
        parts = [
            normal(
                generator,
                elements,
                len(symmetric_tensors(highest_edge, order, degree)),
                channels,
                deviation=math.sqrt(2 * degree + 1) / max(1, ordered_chains(highest_edge, order, degree)),
            )
            for order in orders
        ]
        polynomials[str(degree)] = np.concatenate(parts, axis=1)
    maps = {str(degree): normal_map(generator, channels, channels) for degree in range(hidden + 1)}
    return {"polynomials": polynomials, "product": maps}


def skips(generator: np.random.Generator, elements: int, channels: int, highest: int) -> dict[str, Any]:
    """Maps of the features for each element, up to an l; the original's take features times one-hot elements."""
    shape, deviation = (elements, channels, channels), 1.0 / math.sqrt(channels * elements)
    return {str(order): normal(generator, *shape, deviation=deviation) for order in range(highest + 1)}


def readout(generator: np.random.Generator, channels: int, last: bool) -> dict[str, Any]:
    """The readout of a layer: a linear map, in the last one a network."""
    if not last:
        return {"0": normal_map(generator, 1, channels)}
    return {
        "0": normal_map(generator, READOUT, channels),
        "1": normal(generator, 1, READOUT, deviation=SILU_NORM / math.sqrt(READOUT)),
    }


def ordered_chains(highest: int, order: int, degree: int) -> int:
    """Number of ways to couple harmonics with l <= highest, one after another, to an l of parity (-1)^l.

    Args:
        highest: largest l of the harmonics.
        order: how many harmonics.
        degree: l of the result.
    """
    counts = {(first, first % 2): 1 for first in range(highest + 1)}  # by l and parity
    for _ in range(order - 1):
        longer: dict[tuple[int, int], int] = {}
        for (so_far, parity), ways in counts.items():
            for other in range(highest + 1):
                for result in range(abs(so_far - other), so_far + other + 1):
                    key = (result, (parity + other) % 2)
                    longer[key] = longer.get(key, 0) + ways
        counts = longer
    return counts.get((degree, degree % 2), 0)
