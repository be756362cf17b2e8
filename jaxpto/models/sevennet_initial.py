"""Parameters with which SevenNet begins to be trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpto.models.couplings import coupling_paths
from jaxpto.models.initial_weights import normal_map

RADIAL = 8  # functions of the distance
HIDDEN = (64, 64)  # widths of the networks of the distance


def initial_parameters(
    generator: np.random.Generator,
    elements: int,
    cutoff: float,
    channels: Sequence[tuple[int, ...]],
    highest: int,
    neighbors: float,
    scale: float,
) -> dict[str, Any]:
    """Parameters as the sevenn package begins (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)).

    Maps of unit gain (e3nn's), the readout a product of two of them; frequencies n pi / cutoff; sums over neighbours
    divided by their mean number; energies in units of the forces' root mean square.

    Args:
        generator: source of random numbers.
        elements: number of elements.
        cutoff: Angstrom.
        channels, highest: as in `SevenNet`.
        neighbors: mean number of neighbours.
        scale: root mean square of the forces, eV/Angstrom.
    """

    def maps(inputs: Sequence[int], outputs: Sequence[int]) -> dict[str, np.ndarray]:
        pairs = enumerate(zip(inputs, outputs, strict=False))
        return {str(order): normal_map(generator, b, a) for order, (a, b) in pairs}

    layers = {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
        gated = (sum(outputs), *outputs[1:])  # scalars, then a gate for every other channel
        paths = coupling_paths(len(inputs) - 1, highest, len(outputs) - 1, parity=False)
        summed = [sum(inputs[p.features] for p in paths if p.result == order) for order in range(len(outputs))]
        widths = (RADIAL, *HIDDEN, sum(summed))
        layers[str(number)] = {
            "before": maps(inputs, inputs),
            "radial": {str(i): normal_map(generator, b, a) for i, (a, b) in enumerate(itertools.pairwise(widths))},
            "after": {order: weight / np.float32(neighbors) for order, weight in maps(summed, gated).items()},
            "connection": maps(inputs, gated),
        }
    last = channels[-1][0]
    half = max(1, last // 2)
    return {
        "embedding": normal_map(generator, channels[0][0], elements).T,
        "frequencies": (np.arange(1, RADIAL + 1) * (np.pi / cutoff)).astype(np.float32),
        "layers": layers,
        "readout": (normal_map(generator, 1, half) @ normal_map(generator, half, last))[0],
        "scale": np.full(elements, scale, np.float32),
        "shift": np.zeros(elements, np.float32),
    }
