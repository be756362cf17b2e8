"""Reading `.dp` files (HDF5) and frozen TorchScript archives (`.pth`) of DeePMD-kit, without executing anything.

The standard deviation `out_std` in them says how the training data scatter: these back ends do not multiply energies
by it, as TensorFlow's does.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from converters.deepmd_files import AttentionLayer, DeepmdFile, Layer, require, residual_copies
from converters.pickles import CheckpointError, StandIn

_VARIABLE = "/variable_"


def read_tree(path: Path, content: bytes) -> dict[str, Any]:
    """The tree of a `.dp` file, arrays in place of their names.

    Raises:
        CheckpointError: it is damaged or no such file.
    """
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            tree = json.loads(file.attrs["json"])
            return {key: _with_arrays(value, file, within=False) for key, value in tree.items()}
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        MemoryError,
    ) as error:
        words = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise CheckpointError(f"checkpoint {path} is damaged or no .dp file: {words}; copy it again") from None


def _with_arrays(value: Any, file: h5py.File, *, within: bool) -> Any:
    if isinstance(value, dict):
        return {key: _with_arrays(part, file, within=within or key == "@variables") for key, part in value.items()}
    if isinstance(value, list):
        return [_with_arrays(part, file, within=within) for part in value]
    if within and isinstance(value, str) and value.startswith(_VARIABLE):
        return np.asarray(file[value][()])
    return value


def from_tree(path: Path, tree: Mapping[str, Any]) -> DeepmdFile:
    """The model in the tree of a `.dp` file.

    Raises:
        CheckpointError: it is of a kind that is not read here.
        KeyError, ValueError, ...: something is missing or damaged.
    """
    if "model_dict" in tree["model"] or "model_dict" in (tree.get("model_def_script") or {}):
        raise CheckpointError(f"checkpoint {path}: a multi-task model is not supported; freeze one of its heads")
    model = dict(tree["model"])
    require(path, "a model of type", model.get("type", "standard"), "standard")
    descriptor, fitting = model.pop("descriptor"), model.pop("fitting")
    kind = require(path, "the descriptor", descriptor["type"], "dpa1", "se_atten", "se_e2_a", "se_a")
    attention, type_network = [], ()
    if kind in ("dpa1", "se_atten"):
        type_network = _tree_network(descriptor["type_embedding"]["embedding"])
        for entry in descriptor["attention_layers"]["attention_layers"]:
            maps, norm = entry["attention_layer"], entry["attn_layer_norm"]
            require(path, "num_heads", maps.get("num_heads", 1), 1)
            joint, out = (_tree_layer(maps[name]) for name in ("in_proj", "out_proj"))
            scale_and_shift = norm["@variables"]["w"], norm["@variables"]["b"]
            attention.append(_attention_layer(joint, out, scale_and_shift, norm["eps"]))
    options = {key: value for key, value in fitting.items() if key not in ("nets", "@variables")}
    bias = fitting["@variables"]["bias_atom_e"].reshape(-1)
    return DeepmdFile(
        path=path,
        tensorflow=False,
        model={key: value for key, value in model.items() if key != "@variables"},
        descriptor=descriptor | descriptor.get("env_mat", {}),
        fitting=options,
        types=tuple(model["type_map"]),
        cutoff=float(descriptor["rcut"]),
        smooth_start=float(descriptor["rcut_smth"]),
        sel=_sizes(descriptor["sel"]),
        mean=descriptor["@variables"]["davg"],
        std=descriptor["@variables"]["dstd"],
        embedding=tuple(_tree_network(network) for network in descriptor["embeddings"]["networks"]),
        type_network=type_network,
        attention=tuple(attention),
        networks=tuple(_tree_network(network) for network in fitting["nets"]["networks"]),
        shift=bias + model["@variables"]["out_bias"].reshape(-1),
        scale=np.ones(len(bias)),
    )


def _tree_network(network: Mapping[str, Any]) -> tuple[Layer, ...]:
    return tuple(_tree_layer(layer) for layer in network["layers"])


def _tree_layer(layer: Mapping[str, Any]) -> Layer:
    arrays = layer["@variables"]
    activation = layer.get("activation_function")
    return _layer(arrays["w"], arrays.get("b"), arrays.get("idt"), activation, residual=layer["resnet"])


def _layer(weight: np.ndarray, bias: Any, step: Any, activation: str | None, *, residual: bool) -> Layer:
    flat = lambda values: None if values is None else values.reshape(-1)  # noqa: E731
    return Layer(weight, flat(bias), flat(step), activation or "linear", residual_copies(weight, residual=residual))


def _attention_layer(joint: Layer, out: Layer, norm: tuple[np.ndarray, np.ndarray], epsilon: float) -> AttentionLayer:
    """The layer with its joint map of query, key and value taken apart."""
    parts = np.split(joint.weight, 3, axis=1)
    biases = [None] * 3 if joint.bias is None else np.split(joint.bias, 3)
    maps = {
        name: Layer(weight, bias, None, "linear", 0)
        for name, weight, bias in zip(("query", "key", "value"), parts, biases, strict=True)
    }
    return AttentionLayer(maps | {"out": out}, norm, float(epsilon))


def from_modules(path: Path, root: Any) -> DeepmdFile:
    """The model in a TorchScript archive, from the state of its modules; their code is not looked at.

    Raises:
        CheckpointError: it is of a kind that is not read here.
        KeyError, ValueError, ...: something is missing or damaged.
    """
    if not isinstance(root, StandIn) or not root.reference.module.startswith("__torch__"):
        raise CheckpointError(f"checkpoint {path} is no frozen model; run dp --pt freeze")
    require(path, "a model of class", _class_of(root), "EnergyModel")
    atomic = root.state["atomic_model"]
    require(path, "a model of class", _class_of(atomic), "DPEnergyAtomicModel", "DPAtomicModel")
    script = json.loads(root.state["model_def_script"])
    descriptor, fitting = atomic.state["descriptor"], atomic.state["fitting_net"]
    kind = require(path, "the descriptor", _class_of(descriptor), "DescrptDPA1", "DescrptSeA")
    require(path, "the fitting network", _class_of(fitting), "EnergyFittingNet")
    block = descriptor.state["se_atten" if kind == "DescrptDPA1" else "sea"].state
    for module in (descriptor.state, block):
        for flag in ("compress", "tebd_compress", "geo_compress"):
            require(path, flag, module.get(flag, False), False)
    attention, type_network = [], ()
    if kind == "DescrptDPA1":
        type_network = _module_network(descriptor.state["type_embedding"].state["embedding"].state["embedding_net"])
        for entry in _listed(block["dpa1_attention"].state["attention_layers"]):
            maps, norm = entry.state["attention_layer"].state, entry.state["attn_layer_norm"].state
            require(path, "num_heads", maps.get("num_heads", 1), 1)
            joint, out = (_module_layer(maps[name]) for name in ("in_proj", "out_proj"))
            attention.append(_attention_layer(joint, out, (norm["matrix"], norm["bias"]), norm["eps"]))
    bias = fitting.state["bias_atom_e"].reshape(-1)
    # the script has the names of the descriptors' options; what was trained is in the modules
    chosen = {"temperature": block.get("temperature"), "scaling_factor": block.get("scaling_factor", 1.0)}
    chosen |= {"normalize": block.get("normalize", True), "axis_neuron": block["axis_neuron"]}
    return DeepmdFile(
        path=path,
        tensorflow=False,
        model={key: value for key, value in script.items() if key not in ("descriptor", "fitting_net")},
        descriptor=script["descriptor"] | chosen,
        fitting=script["fitting_net"],
        types=tuple(atomic.state["type_map"]),
        cutoff=float(block["rcut"]),
        smooth_start=float(block["rcut_smth"]),
        sel=_sizes(block["sel"]),
        mean=block["mean"],
        std=block["stddev"],
        embedding=_module_networks(block["filter_layers"]),
        type_network=type_network,
        attention=tuple(attention),
        networks=_module_networks(fitting.state["filter_layers"]),
        shift=bias + atomic.state["out_bias"].reshape(-1),
        scale=np.ones(len(bias)),
    )


def _class_of(module: StandIn) -> str:
    return module.reference.name


def _listed(modules: StandIn) -> Iterator[StandIn]:
    """The modules in a list of modules, in order."""
    numbers = sorted(int(key) for key in modules.state if key.isdecimal())
    return (modules.state[str(number)] for number in numbers)


def _module_networks(collection: StandIn) -> tuple[tuple[Layer, ...], ...]:
    return tuple(_module_network(network) for network in _listed(collection.state["networks"]))


def _module_network(network: StandIn) -> tuple[Layer, ...]:
    return tuple(_module_layer(layer) for layer in _listed(network.state["layers"]))


def _module_layer(layer: StandIn) -> Layer:
    state = layer.state
    activation = state["activate"].state["activation"]
    return _layer(state["matrix"], state.get("bias"), state.get("idt"), activation, residual=state["resnet"])


def _sizes(sel: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in (sel if isinstance(sel, list) else [sel]))
