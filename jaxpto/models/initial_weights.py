"""Random parameters with which training begins, drawn as PyTorch and e3nn draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32

from jaxpto.neighbors import Neighbors, edge_vectors
from jaxpto.system import System

Samples = Sequence[tuple[System, Neighbors]]


def generator_of(key: Array) -> np.random.Generator:
    """NumPy's generator with the seed of a key: with `jax.random` every new shape would be compiled.

    Args:
        key: a random key of JAX.
    """
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def normal(generator: np.random.Generator, *shape: int, deviation: float = 1.0) -> Float32[np.ndarray, "..."]:
    """Numbers of a normal distribution around zero."""
    return (deviation * generator.normal(size=shape)).astype(np.float32)


def normal_map(generator: np.random.Generator, outputs: int, inputs: int) -> Float32[np.ndarray, "out in"]:
    """A linear map whose results are as large as its inputs, W ~ N(0, 1 / inputs), as e3nn begins (arXiv:2207.09453).

    e3nn keeps W of variance 1 and divides by the root of the inputs in every call; here the divisor is in W.
    """
    return normal(generator, outputs, inputs, deviation=inputs**-0.5)


def uniform_linear(
    generator: np.random.Generator, outputs: int, inputs: int, *, bias: bool = True
) -> dict[str, np.ndarray]:
    """A linear layer as PyTorch begins (torch.nn.Linear): weights and biases uniform up to +-1 / sqrt(inputs)."""
    bound = inputs**-0.5
    layer = {"weight": generator.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)}
    if bias:
        layer["bias"] = generator.uniform(-bound, bound, outputs).astype(np.float32)
    return layer


def unit_norm(width: int) -> dict[str, np.ndarray]:
    """A normalization without effect: weights 1, biases 0."""
    return {"weight": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}


def stacked(layers: Sequence[Any]) -> Any:
    """Trees of equal structure as one, whose leaves have a leading axis for them."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def mean_neighbors(samples: Samples, cutoff: float) -> float:
    """Mean number of neighbours of an atom within the cutoff; 1 where there are no neighbours.

    Args:
        samples: systems with their neighbour lists.
        cutoff: Angstrom.
    """
    squares = (np.sum(np.asarray(edge_vectors(*sample)) ** 2, axis=-1) for sample in samples)
    edges = sum(int(np.sum(square < cutoff**2)) for square in squares)  # empty slots are longer
    atoms = sum(system.positions.shape[0] for system, _ in samples)
    return edges / atoms if edges else 1.0


def require_sizes(model: Any, *names: str) -> None:
    """Refuse to make parameters for a model that does not say how many.

    Args:
        model: its hyperparameters.
        names: those that are 0 or () where the parameters decide.

    Raises:
        ValueError: one of them is.
    """
    for name in names:
        if not getattr(model, name):
            raise ValueError(f"{type(model).__name__}.{name} says nothing; let models.fresh.fresh_model make the model")
