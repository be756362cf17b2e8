"""Parameters with which TensorNet begins to be trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxpto.models.initial_weights import normal, uniform_linear, unit_norm

RADIAL = 3  # radial functions


def initial_parameters(
    generator: np.random.Generator, elements: int, features: int, blocks: int, force_scale: float
) -> dict[str, Any]:
    """Parameters as PyTorch's linear layers begin, with biases of radial functions zero; reference energies zero.

    Args:
        generator: source of random numbers.
        elements: how many elements the model knows.
        features: channels.
        blocks: interactions.
        force_scale: root mean square of the forces of the data, eV/Angstrom; energies are counted in it.
    """

    def linear(outputs: int, inputs: int) -> dict[str, np.ndarray]:
        return uniform_linear(generator, outputs, inputs)

    def maps() -> dict[str, np.ndarray]:
        return {name: uniform_linear(generator, features, features, bias=False)["weight"] for name in "IAS"}

    def network(*widths: int) -> dict[str, Any]:
        return {str(k): linear(*sizes) for k, sizes in enumerate(zip(widths[1:], widths[:-1], strict=True))}

    return {
        "atom_embedding": normal(generator, elements, features),
        "embedding": {
            "mix": linear(features, 2 * features),
            "radial": linear(3 * features, RADIAL),
            "maps": maps(),
            "norm": unit_norm(features),
            "scales": network(features, 2 * features, 3 * features),
        },
        "blocks": {
            str(number): {
                "radial": network(RADIAL, features, 2 * features, 3 * features),
                "before": maps(),
                "after": maps(),
            }
            for number in range(blocks)
        },
        "readout": {
            "norm": unit_norm(3 * features),
            "mix": linear(features, 3 * features),
            "value": network(features, features, features, features, 1),
            "gate": network(features, features, features, features, 1),
        },
        "scale": np.float32(force_scale),
        "shift": np.float32(0.0),
        "offset": np.zeros(elements, np.float32),
    }
