"""COMMAND: convert the published TensorNet weights of matgl (MatPES) into a jaxpto model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ase.data
import numpy as np

from converters.matgl_files import architecture_arguments
from converters.pickles import CheckpointError
from converters.sources import Checkpoint, find_checkpoint
from converters.torch_files import read_checkpoint
from jaxpto.console.command import run_command
from jaxpto.models.catalogue import user_folder
from jaxpto.models.folder import save_potential
from jaxpto.models.tensornet import TensorNet
from jaxpto.models.tensornet_initial import RADIAL
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_folder

# what jaxpto.models.tensornet does; a checkpoint that wants anything else is refused
SUPPORTED = {
    "max_n": RADIAL,
    "rbf_type": "SphericalBessel",
    "use_smooth": True,
    "activation_type": "swish",
    "equivariance_invariance_group": "O(3)",
    "readout_type": "weighted_atom",
    "task_type": "regression",
    "is_intensive": False,
    "include_state": False,
    "ntargets": 1,
}


@dataclasses.dataclass(frozen=True)
class TensorNetConfig:
    """Convert the published TensorNet weights into a jaxpto model, which --model tensornet-VERSION then finds."""

    version: Literal["matpes-pbe", "matpes-r2scan"] = "matpes-pbe"
    """Which published model: trained on MatPES with PBE or with r2SCAN."""
    checkpoint: Path | None = None
    """Folder with state.pt and model.json of TensorNet-MatPES-PBE-v2025.1-PES or its r2SCAN sibling. Default: found or
    downloaded."""
    out: Path | None = None
    """Model folder to write. Default: tensornet-VERSION in the folder of the user's models."""


def run(config: TensorNetConfig) -> Path:
    """Convert; returns the model folder.

    Raises:
        CheckpointError: no checkpoint, or one that is damaged or no TensorNet.
        StorageError: the disk refuses the write.
    """
    name = f"tensornet-{config.version}"
    folder = config.out or user_folder() / name
    check_output_folder(folder, resume=True)
    checkpoint = find_checkpoint(name, config.checkpoint)
    save_potential(convert(checkpoint, folder.name), folder, checkpoint.header())
    return folder


def convert(checkpoint: Checkpoint, name: str) -> Potential:
    """The potential in a checkpoint.

    Raises:
        CheckpointError: it is damaged, no TensorNet, or of a kind that is not supported.
    """
    state, description = checkpoint.paths["state.pt"], checkpoint.paths["model.json"]
    try:
        arguments = architecture_arguments(description, SUPPORTED)
        model = TensorNet(
            elements=tuple(ase.data.atomic_numbers[symbol] for symbol in arguments["element_types"]),
            cutoff=float(arguments["cutoff"]),
        )
        params = parameters(read_checkpoint(state), int(arguments["nblocks"]))
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint {state} holds no TensorNet: {type(error).__name__} {error}; give the folder of "
            "TensorNet-MatPES-PBE-v2025.1-PES or of its r2SCAN sibling"
        ) from None
    return Potential(params, model, name)


def parameters(state: Mapping[str, np.ndarray], blocks: int) -> dict[str, Any]:
    """Parameters of `jaxpto.models.tensornet.TensorNet` from the entries of state.pt.

    The original deals the outputs of a layer out to I, A and S one by one; here those for I come first.

    Raises:
        KeyError: an entry is missing.
    """

    def linear(key: str) -> dict[str, np.ndarray]:
        return {name: np.asarray(state[f"model.{key}.{name}"]) for name in ("weight", "bias")}

    def dealt(key: str) -> dict[str, np.ndarray]:
        layer = linear(key)
        return {name: np.concatenate([array[part::3] for part in range(3)]) for name, array in layer.items()}

    def maps(key: str, first: int) -> dict[str, np.ndarray]:
        return {part: np.asarray(state[f"model.{key}.{first + k}.weight"]) for k, part in enumerate("IAS")}

    def joined(*layers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([layer[name] for layer in layers]) for name in ("weight", "bias")}

    def chain(key: str) -> dict[str, Any]:
        # in the checkpoint the activations between the linear layers are counted too
        return {str(number): linear(f"{key}.{2 * number}") for number in range(4)}

    embedding, readout = "tensor_embedding", "final_layer.gated"
    return {
        "atom_embedding": np.asarray(state[f"model.{embedding}.emb.weight"]),
        "embedding": {
            "mix": linear(f"{embedding}.emb2"),
            "radial": joined(*(linear(f"{embedding}.distance_proj{part}") for part in (1, 2, 3))),
            "maps": maps(f"{embedding}.linears_tensor", 0),
            "norm": linear(f"{embedding}.init_norm"),
            "scales": {
                "0": linear(f"{embedding}.linears_scalar.0"),
                "1": dealt(f"{embedding}.linears_scalar.1"),
            },
        },
        "blocks": {
            str(t): {
                "radial": {
                    "0": linear(f"layers.{t}.linears_scalar.0"),
                    "1": linear(f"layers.{t}.linears_scalar.1"),
                    "2": dealt(f"layers.{t}.linears_scalar.2"),
                },
                "before": maps(f"layers.{t}.linears_tensor", 0),
                "after": maps(f"layers.{t}.linears_tensor", 3),
            }
            for t in range(blocks)
        },
        "readout": {
            "norm": linear("out_norm"),
            "mix": linear("linear"),
            "value": chain(f"{readout}.layers"),
            "gate": chain(f"{readout}.gates"),
        },
        "scale": np.asarray(state["data_std"]),
        "shift": np.asarray(state["data_mean"]),
        "offset": np.asarray(state["element_refs.property_offset"]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("converters.tensornet", TensorNetConfig, _report, argv)


def _report(config: TensorNetConfig) -> None:
    print(f"model written to {run(config)}")


if __name__ == "__main__":
    sys.exit(main())
