"""COMMAND: convert the published CHGNet weights into a jaxpto model."""

from __future__ import annotations

import dataclasses
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
from jaxpto.models.chgnet import CHGNet
from jaxpto.models.folder import save_potential
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_folder

# hydrogen to plutonium without the five that the training data lack; the checkpoints have (untrained) rows for them
ELEMENTS = tuple(z for z in range(1, 95) if z not in (84, 85, 86, 87, 88))
# what jaxpto.models.chgnet does; a checkpoint that wants anything else is refused
_SUPPORTED = {
    "update_bond": (True,),
    "update_angle": (True,),
    "mlp_first": (True,),
    "non_linearity": ("silu",),
    "conv_norm": (None,),
    "gMLP_norm": ("layer", None),
    "readout_norm": ("layer", None),
    "final_mlp": ("MLP", "normal"),
    "skip_connection": (False,),
}


@dataclasses.dataclass(frozen=True)
class ChgnetConfig:
    """Convert the published CHGNet weights into a jaxpto model, which --model chgnet-VERSION then finds."""

    version: Literal["0.3.0", "0.2.0", "r2scan"] = "0.3.0"
    """Which published model; of a fine-tuned one, the model it started from."""
    checkpoint: Path | None = None
    """Checkpoint of the chgnet package (.pth.tar). Default: found or downloaded."""
    out: Path | None = None
    """Model folder to write. Default: chgnet-VERSION in the folder of the user's models."""


def run(config: ChgnetConfig) -> Path:
    """Convert; returns the model folder.

    Raises:
        CheckpointError: no checkpoint, or one that is damaged or no CHGNet.
        StorageError: the disk refuses the write.
    """
    name = f"chgnet-{config.version}"
    folder = config.out or user_folder() / name
    check_output_folder(folder, resume=True)
    checkpoint = find_checkpoint(name, config.checkpoint)
    potential = convert(checkpoint, folder.name)
    save_potential(potential, folder, checkpoint.header())
    return folder


def convert(checkpoint: Checkpoint, name: str) -> Potential:
    """The potential in a checkpoint.

    Raises:
        CheckpointError: it is damaged, no CHGNet, or of a kind that is not supported.
    """
    (path,) = checkpoint.paths.values()
    content = read_checkpoint(path)
    try:
        state, arguments = content["model"]["state_dict"], content["model"]["model_args"]
        _check_arguments(path, arguments)
        model = CHGNet(
            elements=ELEMENTS,
            cutoff=float(arguments.get("atom_graph_cutoff", 6)),
            angle_cutoff=float(arguments.get("bond_graph_cutoff", 3)),
            envelope=int(arguments.get("cutoff_coeff", 8)),
        )
        params = parameters(state)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint {path} holds no CHGNet: {type(error).__name__} {error}; give one written by the chgnet package"
        ) from None
    return Potential(params, model, name)


def parameters(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of `jaxpto.models.chgnet.CHGNet` from the state dict of the chgnet package.

    Raises:
        KeyError: an entry is missing.
        ValueError: an entry is left over.
    """
    left = dict(state)

    def take(key: str) -> np.ndarray:
        return np.array(left.pop(key))

    def layer(key: str) -> dict[str, np.ndarray]:
        return {name: take(f"{key}.{name}") for name in ("weight", "bias") if f"{key}.{name}" in left}

    def gated(key: str) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        for part, norm in (("core", "bn1"), ("gate", "bn2")):
            # the original numbers activations and dropouts too; one map only is preceded by a dropout
            numbers = ("0", "3") if f"{key}.mlp_{part}.layers.0.weight" in left else ("1",)
            maps = [layer(f"{key}.mlp_{part}.layers.{number}") for number in numbers]
            parts[part] = dict(zip(("first", "second"), maps, strict=False))
            if f"{key}.{norm}.weight" in left:
                parts[part]["norm"] = layer(f"{key}.{norm}")
        return parts

    def count(prefix: str) -> int:
        return 1 + max(int(key.split(".")[1]) for key in state if key.startswith(prefix + "."))

    params: dict[str, Any] = {
        "references": take("composition_model.fc.weight")[0],
        "atom_embedding": take("atom_embedding.embedding.weight"),
        "frequencies": {
            "edges": take("bond_basis_expansion.rbf_expansion_ag.frequencies"),
            "bonds": take("bond_basis_expansion.rbf_expansion_bg.frequencies"),
            "angles": take("angle_basis_expansion.fourier_expansion.frequencies"),
        },
        "edge_embedding": layer("bond_embedding"),
        "edge_weights": layer("bond_weights_ag"),
        "bond_weights": layer("bond_weights_bg"),
        "angle_embedding": layer("angle_embedding"),
        "atom_convolutions": {
            str(i): gated(f"atom_conv_layers.{i}.twoBody_atom")
            | {"out": layer(f"atom_conv_layers.{i}.mlp_out.layers.1")}
            for i in range(count("atom_conv_layers"))
        },
        "bond_convolutions": {
            str(i): gated(f"bond_conv_layers.{i}.twoBody_bond")
            | {"out": layer(f"bond_conv_layers.{i}.mlp_out.layers.1")}
            for i in range(count("bond_conv_layers"))
        },
        "angle_updates": {str(i): gated(f"angle_layers.{i}.twoBody_bond") for i in range(count("angle_layers"))},
        "moments": layer("site_wise"),
        "readout": {},
    }
    if "readout_norm.weight" in left:
        params["readout_norm"] = layer("readout_norm")
    numbers = sorted({int(key.split(".")[2]) for key in left if key.startswith("mlp.layers.")})
    params["readout"] = {str(i): layer(f"mlp.layers.{number}") for i, number in enumerate(numbers)}
    if left:
        raise ValueError(f"unknown parameters {', '.join(sorted(left)[:3])}")
    return params


def _check_arguments(path: Path, arguments: Mapping[str, Any]) -> None:
    for key, values in _SUPPORTED.items():
        if key in arguments and arguments[key] not in values:
            raise CheckpointError(
                f"checkpoint {path}: {key} = {arguments[key]!r} is not supported (only {values[0]!r}); "
                "give a checkpoint of the published architecture"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("converters.chgnet", ChgnetConfig, _report, argv)


def _report(config: ChgnetConfig) -> None:
    print(f"model written to {run(config)}")


if __name__ == "__main__":
    sys.exit(main())
