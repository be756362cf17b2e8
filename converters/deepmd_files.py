"""What a model file of DeePMD-kit holds, in one form for all its formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.pickles import CheckpointError

REMEDY = "give a model frozen by DeePMD-kit (dp freeze): .pb of TensorFlow, .pth of PyTorch, or .dp"


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a network.

    Attributes:
        weight: [in, out].
        bias, step: [out], or None.
        activation: its name.
        copies: how many copies of the input are added to the result.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    step: np.ndarray | None
    activation: str
    copies: int


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """One layer of attention.

    Attributes:
        maps: query, key, value and out.
        norm: weight and bias [features].
        epsilon: of the normalization.
    """

    maps: dict[str, Layer]
    norm: tuple[np.ndarray, np.ndarray]
    epsilon: float


@dataclasses.dataclass(frozen=True)
class DeepmdFile:
    """A model file that was read.

    Attributes:
        path: where it lies, for messages.
        tensorflow: whether the rules of that back end hold.
        model, descriptor, fitting: options by DeePMD-kit's names.
        types: names of the types.
        cutoff, smooth_start: Angstrom.
        sel: largest numbers of neighbours.
        mean, std: [types, slots, 4] of the rows.
        embedding: networks in the order (type of the atom) + (number of types) (type of the neighbour).
        type_network: from one-hot types to their embedding; () without one.
        attention: its layers.
        networks: fitting networks, one or one for each type.
        scale, shift: [types] energy of an atom = scale (result of its network) + shift, eV.
    """

    path: Path
    tensorflow: bool
    model: Mapping[str, Any]
    descriptor: Mapping[str, Any]
    fitting: Mapping[str, Any]
    types: tuple[str, ...]
    cutoff: float
    smooth_start: float
    sel: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    embedding: tuple[tuple[Layer, ...], ...]
    type_network: tuple[Layer, ...]
    attention: tuple[AttentionLayer, ...]
    networks: tuple[tuple[Layer, ...], ...]
    scale: np.ndarray
    shift: np.ndarray

    def refuse(self, what: str, remedy: str = REMEDY) -> CheckpointError:
        """The error for something that jaxpto does not do."""
        return CheckpointError(f"checkpoint {self.path}: {what}; {remedy}")


def residual_copies(weight: np.ndarray, *, residual: bool, doubling: bool = True) -> int:
    """How many copies of its input a layer of these widths adds to its result."""
    inputs, outputs = weight.shape
    if residual and inputs == outputs:
        return 1
    return 2 if residual and doubling and outputs == 2 * inputs else 0


def require(path: Path, what: str, found: Any, *supported: Any) -> Any:
    """A value, which must be one of those.

    Raises:
        CheckpointError: it is another one.
    """
    if found not in supported:
        names = ", ".join(str(value) for value in supported)
        raise CheckpointError(f"checkpoint {path}: {what} {found} is not supported (only {names}); {REMEDY}")
    return found
