"""What a frozen TensorFlow graph of DeePMD-kit holds: its parameters by the names that `dp freeze` gives them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.deepmd_files import AttentionLayer, DeepmdFile, Layer, require, residual_copies
from converters.pickles import CheckpointError
from converters.protobuf import Graph

_EPSILON = 1e-3  # of the normalizations where the script says null
_ENVIRONMENT = ("ProdEnvMatA", "ProdEnvMatAMix")


def from_graph(path: Path, graph: Graph) -> DeepmdFile:
    """The model in a graph.

    Raises:
        CheckpointError: it is of a kind that is not read here.
        KeyError, ValueError: something is missing or damaged.
    """
    if "train_attr/training_script" not in graph:
        raise CheckpointError(
            f"checkpoint {path} holds no script of its training, as dp freeze writes it since DeePMD-kit 2.0; "
            "convert it by dp convert-from first"
        )
    script = json.loads(graph.text("train_attr/training_script"))["model"]
    if "model_dict" in script or "fitting_net_dict" in script:
        raise CheckpointError(f"checkpoint {path}: a multi-task model is not supported; freeze one of its heads")
    if "model_attr/model_type" in graph:
        require(path, "a model of type", graph.text("model_attr/model_type"), "ener")
    if "model_type" in graph and graph.text("model_type") == "compressed_model":
        raise CheckpointError(
            f"checkpoint {path} was compressed by dp compress, which leaves out the embedding networks; "
            "give the model from before, and --compress"
        )
    require(path, "a model of type", script.get("type", "standard"), "standard")
    descriptor = script["descriptor"]
    kind = require(path, "the descriptor", descriptor["type"], "se_atten", "dpa1", "se_e2_a", "se_a")
    types = tuple(graph.text("model_attr/tmap").split())
    count = len(types)
    environment = [node for node in graph.nodes.values() if node.operation in _ENVIRONMENT]
    require(path, "the number of descriptors", len(environment), 1)
    attention, type_network = (), ()
    if kind in ("se_atten", "dpa1"):
        type_script = script.get("type_embedding") or {}
        require(path, "use_econf_tebd", type_script.get("use_econf_tebd", False), False)
        type_network = _network(graph, "type_embed_net/{}_{}", _activation(type_script))
        embedding = (_network(graph, "filter_type_all/{}_{}", _activation(descriptor)),)
        epsilon = descriptor.get("ln_eps") or _EPSILON
        attention = tuple(_attention(graph, epsilon))
        networks = (_fitting(graph, "", _activation(script["fitting_net"])),)
    else:
        if script.get("type_embedding"):
            raise CheckpointError(f"checkpoint {path}: a type_embedding with the descriptor {kind} is not supported")
        centres = ["all"] if descriptor.get("type_one_side", False) else list(range(count))
        embedding = tuple(
            _network(graph, f"filter_type_{centre}/{{}}_{{}}_{neighbor}", _activation(descriptor))
            for neighbor in range(count)
            for centre in centres
        )
        networks = tuple(
            _fitting(graph, f"_type_{centre}", _activation(script["fitting_net"])) for centre in range(count)
        )
    sel = tuple(int(size) for size in graph.array("descrpt_attr/sel").reshape(-1))
    slots = (count, sum(sel), 4)
    output = "model_attr/model_attr/t_out_"
    offset = graph.array(f"{output}bias").reshape(-1) if f"{output}bias" in graph else np.zeros(count)
    scale = graph.array(f"{output}std").reshape(-1) if f"{output}std" in graph else np.ones(count)
    fitting = dict(script["fitting_net"])
    for option, name in (("numb_fparam", "dfparam"), ("numb_aparam", "daparam")):
        fitting[option] = int(graph.array(f"fitting_attr/{name}"))
    return DeepmdFile(
        path=path,
        tensorflow=True,
        model={key: value for key, value in script.items() if key not in ("descriptor", "fitting_net")},
        descriptor=descriptor,
        fitting=fitting,
        types=types,
        # single precision, in which the operation has them
        cutoff=environment[0].number("rcut_r"),
        smooth_start=environment[0].number("rcut_r_smth"),
        sel=sel,
        mean=graph.array("descrpt_attr/t_avg").reshape(slots),
        std=graph.array("descrpt_attr/t_std").reshape(slots),
        embedding=embedding,
        type_network=type_network,
        attention=attention,
        networks=networks,
        shift=scale * graph.array("fitting_attr/t_bias_atom_e").reshape(-1) + offset,
        scale=scale,
    )


def _activation(script: Mapping[str, Any]) -> str:
    return script.get("activation_function") or "tanh"


def _network(graph: Graph, names: str, activation: str) -> tuple[Layer, ...]:
    """An embedding network; `names` has places for what (matrix, bias, idt) and for the number of the layer."""
    layers = []
    while (name := names.format("matrix", len(layers) + 1)) in graph:
        weight = graph.array(name)
        bias, step = (_optional(graph, names.format(what, len(layers) + 1)) for what in ("bias", "idt"))
        layers.append(Layer(weight, bias, step, activation, residual_copies(weight, residual=True)))
    if not layers:
        raise KeyError(names.format("matrix", 1))
    return tuple(layers)


def _fitting(graph: Graph, suffix: str, activation: str) -> tuple[Layer, ...]:
    layers = []
    while f"layer_{len(layers)}{suffix}/matrix" in graph:
        name = f"layer_{len(layers)}{suffix}"
        weight = graph.array(f"{name}/matrix")
        copies = residual_copies(weight, residual=bool(layers), doubling=False)
        layers.append(Layer(weight, graph.array(f"{name}/bias"), _optional(graph, f"{name}/idt"), activation, copies))
    weight, bias = graph.array(f"final_layer{suffix}/matrix"), graph.array(f"final_layer{suffix}/bias").reshape(-1)
    return (*layers, Layer(weight, bias, None, "linear", 0))


def _attention(graph: Graph, epsilon: float) -> Iterator[AttentionLayer]:
    number = 0
    while f"attention_layer_{number}/c_query/matrix" in graph:
        name = f"attention_layer_{number}"
        maps = {
            part: Layer(graph.array(f"{name}/c_{part}/matrix"), graph.array(f"{name}/c_{part}/bias"), None, "linear", 0)
            for part in ("query", "key", "value", "out")
        }
        # TensorFlow numbers the scopes of equal name in files of DeePMD-kit 2
        pattern = re.compile(rf"{name}/layer_normalization[_\d]*/gamma")
        (gamma,) = [found for found in graph.nodes if pattern.fullmatch(found)]
        norm = graph.array(gamma), graph.array(gamma.replace("gamma", "beta"))
        yield AttentionLayer(maps, norm, float(epsilon))
        number += 1


def _optional(graph: Graph, name: str) -> np.ndarray | None:
    return graph.array(name).reshape(-1) if name in graph else None
