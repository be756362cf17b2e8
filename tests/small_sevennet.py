"""A small SevenNet: its hyperparameters, the settings of its checkpoint, and random parameters as they are stored."""

from __future__ import annotations

import itertools

import numpy as np

from jaxpto.models.couplings import coupling_paths
from jaxpto.models.equivariant import wigner_3j
from jaxpto.models.sevennet import SevenNet

SMALL = SevenNet(
    elements=(82, 22, 8, 38),
    cutoff=3.6,
    channels=((8,), (8, 6), (8, 6), (8,)),
    highest=2,
    envelope="polynomial",
    envelope_parameter=6.0,
)
CONFIG = {
    "version": "0.9.2",
    "_model_type": "E3_equivariant_model",
    "is_parity": False,
    "self_connection_type": "linear",
    "_normalize_sph": True,
    "act_gate": {"e": "silu", "o": "tanh"},
    "act_scalar": {"e": "silu", "o": "tanh"},
    "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 8},
    "cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 6},
    "irreps_manual": ["8x0e", "8x0e+6x1e", "8x0e+6x1e", "8x0e"],
    "lmax": 2,
    "lmax_edge": -1,
    "cutoff": 3.6,
    "_type_map": {8: 2, 22: 1, 38: 3, 82: 0},
}


def stored_state(flipped: tuple[int, ...] = (), *, by_result: bool = False) -> dict[str, np.ndarray]:
    """A random checkpoint of `SMALL`; the stored 3j tensor of one path may have the other sign."""
    generator = np.random.default_rng(0)
    draw = lambda *shape: generator.normal(size=shape).astype(np.float32)  # noqa: E731
    found = {"edge_embedding.basis_function.coeffs": np.arange(1, 9, dtype=np.float32) * np.float32(np.pi / 3.6)}
    found["onehot_to_feature_x.linear.weight"] = draw(4 * 8)
    found["onehot_to_feature_x.linear.output_mask"] = np.ones(8, np.float32)
    found["onehot_to_feature_x.linear.bias"] = np.zeros(0, np.float32)
    for t, (inputs, outputs) in enumerate(itertools.pairwise(SMALL.channels)):
        gated = (sum(outputs), *outputs[1:])
        paths = coupling_paths(len(inputs) - 1, 2, len(outputs) - 1, parity=False)
        summed = [sum(inputs[p.features] for p in paths if p.result == order) for order in range(len(outputs))]
        sizes = {"self_connection_intro": (inputs, gated), "self_interaction_1": (inputs, inputs)}
        for name, (first, second) in (sizes | {"self_interaction_2": (summed, gated)}).items():
            found[f"{t}_{name}.linear.weight"] = draw(sum(a * b for a, b in zip(first, second, strict=False)))
        columns = {path: draw(16, inputs[path.features]) for path in paths}
        for path in paths:
            if min(path) > 0:
                sign = -1.0 if tuple(path) == flipped else 1.0
                columns[path] *= sign
                name = f"_w3j_{path.features}_{path.harmonics}_{path.result}"
                stored = (sign * wigner_3j(*path)).astype(np.float32)
                found[f"{t}_convolution.convolution._compiled_main_left_right.{name}"] = stored
        stored = paths if by_result else sorted(paths, key=lambda p: (p.features, p.harmonics, p.result))
        found[f"{t}_convolution.weight_nn.layer0.weight"] = draw(8, 16)
        found[f"{t}_convolution.weight_nn.layer1.weight"] = draw(16, 16)
        found[f"{t}_convolution.weight_nn.layer2.weight"] = np.concatenate([columns[p] for p in stored], axis=1)
        found[f"{t}_convolution.denominator"] = np.full(1, 3.0, np.float32)
    found["reduce_input_to_hidden.linear.weight"] = draw(8 * 4)
    found["reduce_hidden_to_energy.linear.weight"] = draw(4)
    found["rescale_atomic_energy.shift"] = draw(4)
    found["rescale_atomic_energy.scale"] = np.ones(1, np.float32)
    return found
