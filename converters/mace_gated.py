"""The gated layers of MACE-MH in a pickled model of mace-torch (`RealAgnosticResidualNonLinearInteractionBlock`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from converters.mace_files import MaceFile
from jaxpto.models.couplings import CouplingPath, path_name

BLOCK = "RealAgnosticResidualNonLinearInteractionBlock"
_EPSILON = 1e-5  # of the norms


def interaction(
    file: MaceFile,
    number: int,
    paths: tuple[CouplingPath, ...],
    elements: int,
    channels: int,
    edge_channels: int,
    prefactor: float,
) -> dict[str, Any]:
    """Parameters of `jaxpto.models.mace_gated`, every linear map as [out, in] with its normalization.

    up, own, mix, after and skip for each l or path; radial and density with first, senders, receivers, hidden and
    norms; couplings and offsets for each path; alpha [] and beta [].

    Args:
        file: its tensors are used up.
        number: of the layer.
        paths: its couplings.
        elements: number of elements.
        channels: of the features of atoms.
        edge_channels: of the features that are sent.
        prefactor: of the radial functions.
    """
    key = f"interactions.{number}"
    highest = max(path.features for path in paths)
    degrees = range(max(path.result for path in paths) + 1)
    widths = [channels * (len(degrees) if degree == 0 else 1) for degree in degrees]  # gates stand behind the scalars
    skipped = file.highest(f"{key}.skip_tp", "irreps_out", channels)

    def maps(name: str, inputs: int, outputs: list[int]) -> list[np.ndarray]:
        """Maps of the l from 0 on, which stand one after the other."""
        flat = file.take(f"{key}.{name}.weight", inputs * sum(outputs))
        parts = np.split(flat, np.cumsum([inputs * width for width in outputs])[:-1])
        return [part.reshape(inputs, width).T / math.sqrt(inputs) for part, width in zip(parts, outputs, strict=True)]

    up = maps("linear_up", channels, [edge_channels] * (highest + 1))
    own = maps("linear_res", edge_channels, widths[: highest + 1])
    after = maps("linear_2", channels, [channels] * len(degrees))
    skip = maps("skip_tp", channels, [channels] * (min(highest, skipped) + 1))
    scalar, gate = _activations(file, f"{key}.equivariant_nonlin")
    flat = file.take(f"{key}.linear_1.weight", edge_channels * sum(widths[path.result] for path in paths))
    mix = {}
    for path in paths:
        size, together = edge_channels * widths[path.result], sum(path.result == other.result for other in paths)
        block, flat = flat[:size].reshape(edge_channels, -1), flat[size:]
        mix[path_name(path)] = np.ascontiguousarray(block.T) / math.sqrt(edge_channels * together)
    ends = [
        file.take(f"{key}.{end}_embedding.weight", elements, channels) / math.sqrt(elements)
        for end in ("source", "target")
    ]
    radial, last = _network(file, f"{key}.conv_tp_weights", ends, prefactor)
    density, weight = _network(file, f"{key}.density_fn", ends, prefactor)
    rows = np.split(last["weight"], len(paths)), np.split(last["bias"], len(paths))
    return {
        "up": _by_number(up),
        "own": _by_number(own),
        "mix": mix,
        "after": _by_number([(gate if degree else scalar) * weight for degree, weight in enumerate(after)]),
        "skip": _by_number(skip),
        "radial": radial,
        "couplings": {path_name(path): part for path, part in zip(paths, rows[0], strict=True)},
        "offsets": {path_name(path): part for path, part in zip(paths, rows[1], strict=True)},
        "density": density | {"last": weight},
        "alpha": file.take(f"{key}.alpha"),
        "beta": file.take(f"{key}.beta"),
    }


def _network(
    file: MaceFile, key: str, ends: list[np.ndarray], prefactor: float
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A network of the distance and the elements of both ends without its last layer, and that layer.

    Args:
        file: its tensors are used up.
        key: of the network.
        ends: embeddings of the elements [elements, d] of sender and receiver.
        prefactor: of the radial functions.
    """
    names = file.children(f"{key}.net")
    kinds = [file.class_of(f"{key}.net.{name}") for name in names]
    if kinds[:-1] != ["Linear", "LayerNorm", "SiLU"] * (len(kinds) // 3) or kinds[-1:] != ["Linear"]:
        raise file.refuse(f"{key} is a network of {', '.join(kinds)}, which is not supported")

    def layer(name: str) -> dict[str, np.ndarray]:
        shape = file.left[f"{key}.net.{name}.weight"].shape
        return {part: file.take(f"{key}.net.{name}.{part}", *shape[: 2 - size]) for size, part in enumerate(_PARTS)}

    linear = [layer(name) for name in names[::3]]
    norms = [layer(name) for name in names[1::3]]
    for name in names[1::3]:
        if file.attribute(f"{key}.net.{name}", "eps") != _EPSILON:
            raise file.refuse(f"{key} has norms with another epsilon than {_EPSILON}")
    first = linear[0]["weight"]
    radial, *tables = np.split(
        first, [first.shape[1] - 2 * ends[0].shape[1], first.shape[1] - ends[0].shape[1]], axis=1
    )
    senders, receivers = (end @ table.T for end, table in zip(ends, tables, strict=True))
    params = {
        "first": radial * prefactor,
        "senders": senders,
        "receivers": receivers + linear[0]["bias"],
        "norms": _by_number(norms),
    }
    hidden = {str(place): linear[place] for place in range(1, len(linear) - 1)}
    return params | ({"hidden": hidden} if hidden else {}), linear[-1]


_PARTS = ("weight", "bias")


def _activations(file: MaceFile, key: str) -> tuple[float, float]:
    """Factors of the activations of scalars (silu) and gates (sigmoid), of mace-torch's block or of e3nn's."""
    if file.class_of(key) == "Gate":
        return (
            file.activation_constant(f"{key}.act_scalars.acts.0", "silu"),
            file.activation_constant(f"{key}.act_gates.acts.0", "sigmoid"),
        )
    file.require_class(key, "GatedEquivariantBlock", "Gate")
    factors = []
    for part, function in (("scalar", "silu"), ("gate", "sigmoid")):
        found = file.attribute(key, f"_act_{part}")
        file.require_function(key, found, function)
        factors.append(float(file.attribute(key, f"_{part}_cst")))
    return factors[0], factors[1]


def _by_number(values: list[Any]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}
