"""Parameters with which GPTFF begins to be trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxpto.models.initial_weights import normal, stacked, uniform_linear, unit_norm


def initial_parameters(
    generator: np.random.Generator, rows: int, features: int, blocks: int, radial: int, *, attention: bool
) -> dict[str, Any]:
    """Parameters as the gptff program begins (Xie et al., Sci. Bull. 69, 3525 (2024)): those of PyTorch's layers.

    Args:
        generator: source of random numbers.
        rows: length of the tables of elements, one more than the largest atomic number.
        features: width of the features of atoms and edges.
        blocks: number of blocks.
        radial: number of radial functions.
        attention: whether atoms attend to each other, as in version 2.
    """
    d = features

    def linear(outputs: int, inputs: int) -> Any:
        return uniform_linear(generator, outputs, inputs)

    def block() -> dict[str, Any]:
        three = {name: linear(d, d) for name in ("gate", "value")}
        three |= {name: linear(d, radial) for name in ("radial_first", "radial_second")}
        parts = {
            "three_body": {"features": linear(d, 5 * d), **three, "angle": linear(d, 1)},
            "edge": {
                "value": linear(d, 3 * d),
                "gate": linear(d, 3 * d),
                "out": linear(d, d),
                "radial": linear(d, radial),
            },
            "node": {
                "features": linear(2 * d, 3 * d),
                "value": linear(d, 2 * d),
                "gate": linear(d, 2 * d),
                "radial": linear(d, radial),
            },
        }
        return parts | ({"attention": _attention(generator, d)} if attention else {})

    return {
        "atom_embedding": normal(generator, rows, d),
        "edge_embedding": {
            "mix": linear(d, 3 * d),
            "radial_features": linear(d, radial),
            "radial_weight": linear(d, radial),
        },
        "blocks": stacked([block() for _ in range(blocks)]),
        "readout": {"0": linear(d, d), "1": linear(d, d), "2": linear(1, d)},
        "reference": np.zeros(rows, np.float32),
    }


def _attention(generator: np.random.Generator, d: int) -> dict[str, Any]:
    """torch.nn.TransformerEncoderLayer: the projection uniform by fan-in and fan-out, its biases zero."""
    bound = (6.0 / (4 * d)) ** 0.5
    return {
        **{name: unit_norm(d) for name in ("before", "after_heads", "after_feed", "after")},
        "project": {
            "weight": generator.uniform(-bound, bound, (3 * d, d)).astype(np.float32),
            "bias": np.zeros(3 * d, np.float32),
        },
        "heads": uniform_linear(generator, d, d) | {"bias": np.zeros(d, np.float32)},
        "feed": uniform_linear(generator, 4 * d, d),
        "out": uniform_linear(generator, d, 4 * d),
    }
