"""Parameters with which M3GNet begins to be trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpto.models.initial_weights import normal, stacked, uniform_linear

READOUT_DEPTH, CHAIN_DEPTH = 4, 3  # linear layers of the readout and of the networks of edges


def initial_parameters(
    generator: np.random.Generator, elements: int, features: int, blocks: int, basis: int, radial: int, scale: float
) -> dict[str, Any]:
    """Parameters as matgl begins (Chen & Ong, Nat. Comput. Sci. 2, 718 (2022)): those of PyTorch's layers.

    Energies are in units of the forces' root mean square, reference energies zero.

    Args:
        generator: source of random numbers.
        elements: number of elements.
        features: width of the features of atoms and edges.
        blocks: number of blocks.
        basis: number of functions of a third atom.
        radial: number of radial functions of edges.
        scale: root mean square of the forces, eV/Angstrom.
    """

    def chain(widths: Sequence[int]) -> dict[str, Any]:
        return {str(i): uniform_linear(generator, b, a) for i, (a, b) in enumerate(itertools.pairwise(widths))}

    def gated(widths: Sequence[int]) -> dict[str, Any]:
        return {"value": chain(widths), "gate": chain(widths)}

    def block() -> dict[str, Any]:
        ends = (3 * features, *[features] * CHAIN_DEPTH)
        weight = lambda inputs: uniform_linear(generator, features, inputs, bias=False)  # noqa: E731
        return {
            "three_body": {
                "atom": uniform_linear(generator, basis, features),
                "value": weight(basis),
                "gate": weight(basis),
            },
            "edge": gated(ends) | {"weight": weight(radial)},
            "node": gated(ends) | {"weight": weight(radial)},
        }

    return {
        "atom_embedding": normal(generator, elements, features),
        "edge_embedding": uniform_linear(generator, features, radial),
        "blocks": stacked([block() for _ in range(blocks)]),
        "readout": gated((*[features] * READOUT_DEPTH, 1)),
        "scale": np.asarray(scale, np.float32),
        "shift": np.zeros((), np.float32),
        "offset": np.zeros(elements, np.float32),
    }
