"""Parameters with which CHGNet begins to be trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxpto.models.initial_weights import normal, uniform_linear, unit_norm

RADIAL, WAVES = 31, 15  # radial functions, and frequencies of the angles
READOUT_LAYERS = 3


def initial_parameters(generator: np.random.Generator, rows: int, features: int, layers: int) -> dict[str, Any]:
    """Parameters as the chgnet package begins (Deng et al., Nat. Mach. Intell. 5, 1031 (2023)), layout of 0.3.0.

    PyTorch's linear layers; frequencies n pi of distances and n of angles; reference energies zero.

    Args:
        generator: source of random numbers.
        rows: length of the tables of elements, the largest atomic number.
        features: width of the features of atoms, bonds and angles.
        layers: number of convolutions of atoms, at least two.
    """

    def linear(outputs: int, inputs: int, *, bias: bool = True) -> Any:
        return uniform_linear(generator, outputs, inputs, bias=bias)

    def gated(parts: int, *, second: bool) -> dict[str, Any]:
        def network() -> dict[str, Any]:
            maps = {"first": linear(features, parts * features)}
            maps |= {"second": linear(features, features)} if second else {}
            return maps | {"norm": unit_norm(features)}

        return {"core": network(), "gate": network()}

    def convolution(parts: int) -> dict[str, Any]:
        return gated(parts, second=True) | {"out": linear(features, features, bias=False)}

    multiples = np.arange(1, RADIAL + 1) * np.pi
    readout = [*(linear(features, features) for _ in range(READOUT_LAYERS)), linear(1, features)]
    return {
        "references": np.zeros(rows, np.float32),
        "atom_embedding": normal(generator, rows, features),
        "frequencies": {
            "edges": multiples.astype(np.float32),
            "bonds": multiples.astype(np.float32),
            "angles": np.arange(1, WAVES + 1).astype(np.float32),
        },
        "edge_embedding": linear(features, RADIAL, bias=False),
        "edge_weights": linear(features, RADIAL, bias=False),
        "bond_weights": linear(features, RADIAL, bias=False),
        "angle_embedding": linear(features, 2 * WAVES + 1, bias=False),
        "atom_convolutions": {str(number): convolution(3) for number in range(layers)},
        "bond_convolutions": {str(number): convolution(4) for number in range(layers - 1)},
        # the original has one more, whose angles nothing reads
        "angle_updates": {str(number): gated(4, second=False) for number in range(layers - 2)},
        "moments": linear(1, features),
        "readout_norm": unit_norm(features),
        "readout": {str(number): layer for number, layer in enumerate(readout)},
    }
