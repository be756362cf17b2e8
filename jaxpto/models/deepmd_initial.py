"""Parameters with which DeepPot-SE begins to be trained, and the statistics of its rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxpto.models.initial_weights import normal, stacked

LEAST_DEVIATION = 1e-2  # by which rows are divided
STEP, STEP_DEVIATION = 0.1, 1e-3  # factors of the fitting networks' residual layers


def residual_copies(widths: Sequence[int], first: int) -> tuple[int, ...]:
    """How many copies of its input each layer adds: one where it is as wide, two where it is twice as wide, else none.

    Args:
        widths: widths of the layers.
        first: number of inputs of the first one.
    """
    return tuple({a: 1, 2 * a: 2}.get(b, 0) for a, b in itertools.pairwise((first, *widths)))


def fitting_copies(widths: Sequence[int]) -> tuple[int, ...]:
    """The same in a fitting network: none in the first layer, and of equally wide layers only."""
    return (0, *[int(a == b) for a, b in itertools.pairwise(widths)])


def initial_networks(
    generator: np.random.Generator, elements: int, embedding: Sequence[int], fitting: Sequence[int], axis: int
) -> dict[str, Any]:
    """Networks as DeePMD-kit begins (Zhang et al., NeurIPS 2018; Zeng et al., J. Chem. Phys. 159, 054801 (2023)).

    Weights ~ N(0, 1 / (inputs + outputs)), biases ~ N(0, 1), factors of residual layers of the fitting networks
    ~ N(0.1, 1e-6). One embedding network for each type of neighbour, and a fitting network for each type of atom; the
    last bias, to which the original gives the mean energy, is zero.

    Args:
        generator: source of random numbers.
        elements: number of types.
        embedding, fitting: widths of the hidden layers.
        axis: columns of the second factor of the invariants.
    """

    def layer(outputs: int, inputs: int) -> dict[str, np.ndarray]:
        weight = normal(generator, outputs, inputs, deviation=(inputs + outputs) ** -0.5)
        return {"weight": weight, "bias": normal(generator, outputs)}

    def embed() -> dict[str, Any]:
        widths = itertools.pairwise((1, *embedding))
        return {str(number): layer(b, a) for number, (a, b) in enumerate(widths)}

    def fit() -> dict[str, Any]:
        widths = (embedding[-1] * axis, *fitting)
        layers = {str(number): layer(b, a) for number, (a, b) in enumerate(itertools.pairwise(widths))}
        for number, copies in enumerate(fitting_copies(fitting)):
            if copies:
                layers[str(number)]["step"] = STEP + normal(generator, fitting[number], deviation=STEP_DEVIATION)
        last = layer(1, fitting[-1]) | {"bias": np.zeros(1, np.float32)}
        return layers | {str(len(fitting)): last}

    return {
        "embedding": stacked([stacked([embed() for _ in range(elements)])]),
        "fitting": stacked([fit() for _ in range(elements)]),
        "scale": np.ones(elements, np.float32),
        "shift": np.zeros(elements, np.float32),
    }


def row_statistics(
    rows: Iterable[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n s 4"]]], elements: int, slots: int, cutoff: float
) -> dict[str, np.ndarray]:
    """Mean and standard deviation [elements, 4] of the rows of each type of atoms over all slots, empty ones included.

    As in DeePMD-kit: directions have the mean 0 and a deviation in common, no deviation is below 0.01; a type without
    atoms is left as it is, but for a factor.

    Args:
        rows: types of atoms, and their rows; those of empty slots are 0, and may be left out.
        elements: number of types.
        slots: how many each atom has.
        cutoff: Angstrom.
    """
    count = np.zeros(elements)
    first, second = np.zeros((elements, 4)), np.zeros((elements, 4))
    for types, values in rows:
        values = np.asarray(values, np.float64)
        np.add.at(count, types, slots)
        np.add.at(first, types, values.sum(axis=1))
        np.add.at(second, types, (values**2).sum(axis=1))
    seen = count > 0
    number = np.maximum(count, 1)[:, None]
    mean, square = (
        np.stack([x[:, 0], *[x[:, 1:].mean(axis=1)] * 3], axis=1) for x in (first / number, second / number)
    )
    deviation = np.maximum(np.sqrt(np.maximum(square - mean**2, 0.0)), LEAST_DEVIATION)
    mean[:, 1:] = 0.0
    deviation = np.where(seen[:, None], deviation, 1.0 / cutoff)
    return {"mean": mean.astype(np.float32), "std": deviation.astype(np.float32)}
