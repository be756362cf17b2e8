"""COMMAND: convert the published M3GNet weights into a jaxpto model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ase.data
import jax
import numpy as np

from converters.matgl_files import architecture_arguments
from converters.pickles import CheckpointError
from converters.sources import Checkpoint, find_checkpoint
from converters.torch_files import read_checkpoint
from jaxpto.console.command import run_command
from jaxpto.models.catalogue import user_folder
from jaxpto.models.folder import save_potential
from jaxpto.models.m3gnet import ANGULAR, BASIS, RADIAL, M3GNet
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_folder

NAME = "m3gnet-mp-2021.2.8"
Version = Literal["mp-2021.2.8", "matpes-pbe", "matpes-r2scan"]
# what jaxpto.models.m3gnet does; a checkpoint that wants anything else is refused
_SUPPORTED = {
    "max_n": RADIAL,
    "max_l": ANGULAR,
    "rbf_type": "SphericalBessel",
    "is_intensive": False,
    "readout_type": "weighted_atom",
    "use_phi": False,
    "include_state": False,
    "activation_type": "swish",
}


@dataclasses.dataclass(frozen=True)
class M3gnetConfig:
    """Convert the published M3GNet weights into a jaxpto model, which --model m3gnet-VERSION then finds."""

    version: Version = "mp-2021.2.8"
    """Which published model: trained on the relaxations of the Materials Project, or on MatPES with PBE or r2SCAN."""
    checkpoint: Path | None = None
    """Folder with state.pt and model.json of M3GNet-MP-2021.2.8-PES, or of M3GNet-MatPES-PBE-v2025.1-PES or its r2SCAN
    sibling. Default: found or downloaded."""
    out: Path | None = None
    """Model folder to write. Default: m3gnet-VERSION in the folder of the user's models."""


def run(config: M3gnetConfig) -> Path:
    """Convert; returns the model folder.

    Raises:
        CheckpointError: no checkpoint, or one that is damaged or no such M3GNet.
        StorageError: the disk refuses the write.
    """
    name = f"m3gnet-{config.version}"
    folder = config.out or user_folder() / name
    check_output_folder(folder, resume=True)
    checkpoint = find_checkpoint(name, config.checkpoint)
    save_potential(convert(checkpoint, folder.name), folder, checkpoint.header())
    return folder


def convert(checkpoint: Checkpoint, name: str) -> Potential:
    """The potential in a checkpoint.

    Raises:
        CheckpointError: it is damaged, no M3GNet, or of a kind that is not supported.
    """
    state, description = checkpoint.paths["state.pt"], checkpoint.paths["model.json"]
    remedy = "give the folder of M3GNet-MP-2021.2.8-PES, or of an M3GNet-MatPES"
    try:
        arguments = architecture_arguments(description, _SUPPORTED)
        model = M3GNet(
            elements=tuple(ase.data.atomic_numbers[symbol] for symbol in arguments["element_types"]),
            cutoff=float(arguments["cutoff"]),
            three_body_cutoff=float(arguments["threebody_cutoff"]),
            smooth=bool(arguments["use_smooth"]),
        )
        params = parameters(read_checkpoint(state), int(arguments["nblocks"]))
        _check_shapes(params, model)
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {state} holds no M3GNet: {type(error).__name__} {error}; {remedy}") from None
    return Potential(params, model, name)


def parameters(state: Mapping[str, np.ndarray], n_blocks: int = 3) -> dict[str, Any]:
    """Parameters of `jaxpto.models.m3gnet.M3GNet` from the entries of state.pt.

    Raises:
        KeyError: an entry is missing.
    """

    def linear(key: str) -> dict[str, np.ndarray]:
        names = ("weight", "bias") if f"{key}.bias" in state else ("weight",)
        return {name: np.asarray(state[f"{key}.{name}"]) for name in names}

    def chain(key: str, depth: int) -> dict[str, Any]:
        # in the checkpoint the activations between the linear layers are counted too
        return {str(i): linear(f"{key}.{2 * i}") for i in range(depth)}

    def gated(key: str, depth: int) -> dict[str, Any]:
        return {"value": chain(f"{key}.layers", depth), "gate": chain(f"{key}.gates", depth)}

    blocks = []
    for t in range(n_blocks):
        three, conv = f"model.three_body_interactions.{t}", f"model.graph_layers.{t}.conv"
        block = {
            "three_body": {
                "atom": linear(f"{three}.update_network_atom.layers.0"),
                "value": linear(f"{three}.update_network_bond.layers.0"),
                "gate": linear(f"{three}.update_network_bond.gates.0"),
            },
            "edge": gated(f"{conv}.edge_update_func", 3) | {"weight": linear(f"{conv}.edge_weight_func")},
            "node": gated(f"{conv}.node_update_func", 3) | {"weight": linear(f"{conv}.node_weight_func")},
        }
        blocks.append(block)
    return {
        "atom_embedding": np.asarray(state["model.embedding.layer_node_embedding.weight"]),
        "edge_embedding": linear("model.embedding.layer_edge_embedding.layers.0"),
        "blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks),
        "readout": gated("model.final_layer.gated", 4),
        "scale": np.asarray(state["data_std"]),
        "shift": np.asarray(state["data_mean"]),
        "offset": np.asarray(state["element_refs.property_offset"]),
    }


def _check_shapes(params: dict[str, Any], model: M3GNet) -> None:
    elements, width, edge = len(model.elements), params["atom_embedding"].shape[1], params["blocks"]["edge"]
    wanted = {
        "atom embedding": (params["atom_embedding"], (elements, width)),
        "offsets": (params["offset"], (elements,)),
        "edge embedding": (params["edge_embedding"]["weight"], (width, RADIAL if model.smooth else BASIS)),
        "first layer": (edge["value"]["0"]["weight"][0], (edge["value"]["1"]["weight"].shape[-1], 3 * width)),
    }
    for what, (array, shape) in wanted.items():
        if array.shape != shape:
            raise ValueError(f"the {what} has shape {array.shape}, not {shape}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("converters.m3gnet", M3gnetConfig, _report, argv)


def _report(config: M3gnetConfig) -> None:
    print(f"model written to {run(config)}")


if __name__ == "__main__":
    sys.exit(main())
