"""COMMAND: convert the published SevenNet weights into a jaxpto model."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converters.pickles import CheckpointError
from converters.sources import Checkpoint, find_checkpoint
from converters.torch_files import read_checkpoint
from jaxpto.console.command import run_command
from jaxpto.models.catalogue import user_folder
from jaxpto.models.couplings import CouplingPath, coupling_paths
from jaxpto.models.equivariant import wigner_3j
from jaxpto.models.folder import save_potential
from jaxpto.models.sevennet import SevenNet
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_folder

# what jaxpto.models.sevennet does, and what the sevenn package takes where a checkpoint is silent
_SUPPORTED: dict[str, tuple[Any, Any]] = {
    "_model_type": ("E3_equivariant_model", None),
    "is_parity": (False, True),
    "self_connection_type": ("linear", "nequip"),
    "interaction_type": ("nequip", "nequip"),
    "act_radial": ("silu", "silu"),
    "use_bias_in_linear": (False, False),
    "readout_as_fcn": (False, False),
    "optimize_by_reduce": (True, True),
    "_normalize_sph": (True, False),
}
MODALITIES = {"mf-0-pbe": "PBE", "mf-0-r2scan": "R2SCAN"}
# setting of a checkpoint with several modalities, and the end of the names of the layers that then know them
MODAL_LAYERS = {
    "use_modal_node_embedding": "onehot_to_feature_x",
    "use_modal_self_inter_intro": "self_interaction_1",
    "use_modal_self_inter_outro": "self_interaction_2",
    "use_modal_output_block": "reduce_input_to_hidden",
}
_SORTED_SINCE = (0, 11)  # version whose checkpoints have the weights of convolutions ordered by their result


@dataclasses.dataclass(frozen=True)
class SevennetConfig:
    """Convert the published SevenNet weights into a jaxpto model, which --model 7net-VERSION then finds."""

    version: Literal["l3i5", "0", "mf-0-pbe", "mf-0-r2scan"] = "l3i5"
    """Which published model; of a fine-tuned one, the model it started from. SevenNet-MF-0 is a model for each of its
    two modalities (functionals)."""
    modality: str = ""
    """Modality of a checkpoint that has several. Default: that of the version."""
    checkpoint: Path | None = None
    """Checkpoint of the sevenn package (.pth). Default: found or downloaded."""
    out: Path | None = None
    """Model folder to write. Default: 7net-VERSION in the folder of the user's models."""


def run(config: SevennetConfig) -> Path:
    """Convert; returns the model folder.

    Raises:
        CheckpointError: no checkpoint, or one that is damaged or no SevenNet.
        StorageError: the disk refuses the write.
    """
    name = f"7net-{config.version}"
    folder = config.out or user_folder() / name
    check_output_folder(folder, resume=True)
    checkpoint = find_checkpoint(name, config.checkpoint)
    modality = config.modality or MODALITIES.get(config.version, "")
    header = checkpoint.header() | ({"modality": modality} if modality else {})
    save_potential(convert(checkpoint, folder.name, modality), folder, header)
    return folder


def convert(checkpoint: Checkpoint, name: str, modality: str = "") -> Potential:
    """The potential in a checkpoint, its parameters in float64.

    Args:
        checkpoint: its file.
        name: what to call it.
        modality: which of its modalities, where it has several.

    Raises:
        CheckpointError: it is damaged, no SevenNet, of a kind that is not supported, or of other modalities.
    """
    (path,) = checkpoint.paths.values()
    content = read_checkpoint(path)
    try:
        config, state = content["config"], content["model_state_dict"]
        _check_config(path, config)
        model = architecture(path, config)
        by_result = tuple(int(part) for part in config["version"].split(".")[:2]) >= _SORTED_SINCE
        params = parameters(state, model, by_result=by_result, modal=_modal(path, config, modality))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint {path} holds no SevenNet: {type(error).__name__} {error}; "
            "give one written by the sevenn package"
        ) from None
    return Potential(params, model, name)


def architecture(path: Path, config: Mapping[str, Any]) -> SevenNet:
    """The hyperparameters in the configuration of a checkpoint.

    Raises:
        CheckpointError: features or cutoff function of another kind.
        KeyError: an entry is missing.
    """
    types = config["_type_map"]
    elements = tuple(sorted(types, key=lambda number: types[number]))
    if [types[number] for number in elements] != list(range(len(elements))):
        raise ValueError("the types in _type_map are not numbered from 0 on")
    envelope = dict(config["cutoff_function"])
    kind = envelope["cutoff_function_name"]
    parameter = {"poly_cut": "poly_cut_p_value", "XPLOR": "cutoff_on"}
    if kind not in parameter:
        raise _unsupported(path, "cutoff_function_name", kind, "poly_cut or XPLOR")
    if config["irreps_manual"] is False:
        raise _unsupported(path, "irreps_manual", False, "a list of features")
    highest = config["lmax_edge"] if config.get("lmax_edge", -1) > 0 else config["lmax"]
    return SevenNet(
        elements=elements,
        cutoff=float(config["cutoff"]),
        channels=tuple(_channels(path, text) for text in config["irreps_manual"]),
        highest=int(highest),
        envelope={"poly_cut": "polynomial", "XPLOR": "xplor"}[kind],
        envelope_parameter=float(envelope[parameter[kind]]),
    )


@dataclasses.dataclass(frozen=True)
class Modal:
    """One of several modalities.

    Attributes:
        index: its number.
        count: how many there are.
        layers: ends of the names of the layers that know it.
    """

    index: int
    count: int
    layers: tuple[str, ...]


def _modal(path: Path, config: Mapping[str, Any], modality: str) -> Modal | None:
    """The modality that was asked for, or None where the checkpoint has none."""
    known = dict(config.get("_modal_map") or {}) if config.get("use_modality", False) else {}
    if modality not in (known or [""]):
        available = f"it has {' and '.join(known)}" if known else "it has none"
        raise CheckpointError(f"checkpoint {path}: modality '{modality}': {available}; give one by --modality")
    layers = tuple(end for key, end in MODAL_LAYERS.items() if config.get(key, False))
    return Modal(known[modality], len(known), layers) if known else None


def parameters(
    state: Mapping[str, np.ndarray], model: SevenNet, *, by_result: bool, modal: Modal | None = None
) -> dict[str, Any]:
    """Parameters of `jaxpto.models.sevennet.SevenNet` from the state dict of the sevenn package.

    The factors that e3nn applies to weights (one over the root of the number of inputs), the denominator of the sums
    over neighbours and the signs of the stored 3j tensors are put into the weights, in float64.

    Args:
        state: arrays by name.
        model: hyperparameters.
        by_result: whether the weights of a convolution's paths are ordered by (l of the result, of the features, of the
            harmonics), as versions from 0.11 on write them, or by (features, harmonics, result).
        modal: the modality, whose weights become biases.

    Raises:
        KeyError: an entry is missing.
        ValueError: an entry is left over or has another shape.
    """
    # masks, absent biases and the like
    left = {key: a for key, a in state.items() if np.size(a) and not key.endswith(".output_mask")}

    def take(key: str, *shape: int) -> np.ndarray:
        array = np.asarray(left.pop(key), np.float64)
        if math.prod(shape) != array.size:
            raise ValueError(f"{key} has {array.size} numbers, not {math.prod(shape)}")
        return array.reshape(shape)

    def linear(key: str, inputs: Sequence[int], outputs: Sequence[int]) -> dict[str, np.ndarray]:
        """Weights [out, in] for each l; e3nn stores [in, out] of one l after another."""
        flat = np.asarray(left.pop(f"{key}.linear.weight"), np.float64)
        widths = list(zip(inputs, outputs, strict=False))
        # a modality is one more kind of scalar, 1 for the chosen one and 0 for the others, behind all features
        more = modal.count if modal is not None and key.endswith(modal.layers) else 0
        if flat.size != sum(a * b for a, b in widths) + more * outputs[0]:
            raise ValueError(f"{key} has {flat.size} weights, not {sum(a * b for a, b in widths) + more * outputs[0]}")
        *parts, last = np.split(flat, np.cumsum([a * b for a, b in widths]))
        found = {
            str(order): part.reshape(a, b).T / math.sqrt(a + (0 if order else more))
            for order, (part, (a, b)) in enumerate(zip(parts, widths, strict=True))
        }
        if modal is not None and more:
            found["bias"] = last.reshape(more, outputs[0])[modal.index] / math.sqrt(inputs[0] + more)
        return found

    def signs(t: int, paths: Sequence[CouplingPath]) -> dict[CouplingPath, float]:
        """Sign of the stored 3j tensor of each path against ours, with which the weights were trained."""
        found = {}
        for path in paths:
            l1, l2, l3 = path.features, path.harmonics, path.result
            found[path] = 1.0
            if min(l1, l2, l3) > 0:  # the others are products of vectors, which e3nn does without a tensor
                stored = left.pop(f"{t}_convolution.convolution._compiled_main_left_right._w3j_{l1}_{l2}_{l3}")
                found[path] = math.copysign(1.0, float(np.sum(stored * wigner_3j(l1, l2, l3))))
                if not np.allclose(stored, found[path] * wigner_3j(l1, l2, l3), atol=1e-6):
                    raise ValueError(f"the stored 3j tensor {l1}, {l2}, {l3} is in another basis")
        return found

    layers = {}
    for t, (inputs, outputs) in enumerate(zip(model.channels[:-1], model.channels[1:], strict=True)):
        gated = (sum(outputs), *outputs[1:])  # scalars, then a gate for every other channel
        paths = coupling_paths(len(inputs) - 1, model.highest, len(outputs) - 1, parity=False)
        summed = [sum(inputs[p.features] for p in paths if p.result == order) for order in range(len(outputs))]
        network = f"{t}_convolution.weight_nn.layer"
        maps = [left.pop(key) for key in sorted(left) if key.startswith(network)]
        radial = {str(i): np.asarray(a, np.float64).T / math.sqrt(len(a)) for i, a in enumerate(maps)}
        last = str(len(radial) - 1)
        radial[last] = _signed_and_sorted(radial[last], paths, inputs, signs(t, paths), by_result=by_result)
        denominator = take(f"{t}_convolution.denominator", 1)[0]
        after = linear(f"{t}_self_interaction_2", summed, gated)
        layers[str(t)] = {
            "connection": linear(f"{t}_self_connection_intro", inputs, gated),
            "before": linear(f"{t}_self_interaction_1", inputs, inputs),
            "radial": radial,
            "after": {name: array if name == "bias" else array / denominator for name, array in after.items()},
        }
    n, width = len(model.elements), model.channels[-1][0]
    hidden = linear("reduce_input_to_hidden", (width,), (width // 2,))
    last = linear("reduce_hidden_to_energy", (width // 2,), (1,))["0"]
    embedding = linear("onehot_to_feature_x", (n,), model.channels[0])
    scale, shift = (np.asarray(left.pop(f"rescale_atomic_energy.{name}"), np.float64) for name in ("scale", "shift"))
    scale, shift = (one[modal.index] if modal is not None and one.ndim == 2 else one for one in (scale, shift))
    params = {
        "embedding": embedding["0"].T + embedding.get("bias", 0.0),
        "frequencies": take("edge_embedding.basis_function.coeffs", left["edge_embedding.basis_function.coeffs"].size),
        "layers": layers,
        "readout": (last @ hidden["0"])[0],
        "scale": np.broadcast_to(scale, n),
        "shift": np.broadcast_to(shift + scale * (last @ hidden.get("bias", np.zeros(width // 2)))[0], n),
    }
    if left:
        raise ValueError(f"unknown parameters {', '.join(sorted(left)[:3])}")
    return params


def _signed_and_sorted(
    weight: np.ndarray,
    paths: Sequence[CouplingPath],
    inputs: Sequence[int],
    signs: Mapping[CouplingPath, float],
    *,
    by_result: bool,
) -> np.ndarray:
    """Rows of the last radial layer in the order of `coupling_paths`, with the signs of the 3j tensors."""
    stored = paths if by_result else sorted(paths, key=lambda p: (p.features, p.harmonics, p.result))
    widths = [inputs[path.features] for path in stored]
    if len(weight) != sum(widths):
        raise ValueError(f"the radial network has {len(weight)} results, not {sum(widths)}")
    parts = dict(zip(stored, np.split(weight, np.cumsum(widths)[:-1]), strict=True))
    return np.concatenate([signs[path] * parts[path] for path in paths])


def _channels(path: Path, text: str) -> tuple[int, ...]:
    """Channels of l = 0, 1, ... in e3nn's notation, such as 128x0e+64x1e."""
    parts = [re.fullmatch(r"\s*(\d+)x(\d+)e\s*", part) for part in str(text).split("+")]
    if not all(parts) or [int(part[2]) for part in parts if part] != list(range(len(parts))):
        raise _unsupported(path, "irreps_manual", text, "even features of l = 0, 1, ...")
    return tuple(int(part[1]) for part in parts if part)


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    for key, (supported, default) in _SUPPORTED.items():
        found = config.get(key, default)
        # some entries may differ from layer to layer
        if any(value != supported for value in (found if isinstance(found, list) else [found])):
            raise _unsupported(path, key, found, repr(supported))
    for key in ("act_scalar", "act_gate"):
        if config.get(key, {"e": "silu"})["e"] != "silu":
            raise _unsupported(path, key, config[key], "silu for even features")
    if config["radial_basis"]["radial_basis_name"] != "bessel":
        raise _unsupported(path, "radial_basis_name", config["radial_basis"]["radial_basis_name"], "'bessel'")


def _unsupported(path: Path, key: str, value: Any, supported: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path}: {key} = {value!r} is not supported (only {supported}); "
        "give a checkpoint of the published architecture"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("converters.sevennet", SevennetConfig, _report, argv)


def _report(config: SevennetConfig) -> None:
    print(f"model written to {run(config)}")


if __name__ == "__main__":
    sys.exit(main())
