"""COMMAND: convert a model of DeePMD-kit (DPA-1, UniPero among them, or DeepPot-SE) into a jaxpto model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import ase.data
import numpy as np
import tyro

from converters.deepmd_files import REMEDY, DeepmdFile, Layer
from converters.deepmd_graph import from_graph
from converters.deepmd_tables import compress
from converters.deepmd_trees import from_modules, from_tree, read_tree
from converters.pickles import CheckpointError
from converters.protobuf import read_graph
from converters.sources import refuse_stand_in, sha256_of
from converters.torch_files import read_checkpoint
from jaxpto.console.command import run_command
from jaxpto.models.deepmd import DPA1, DeepPotSE
from jaxpto.models.deepmd_layers import ACTIVATIONS
from jaxpto.models.folder import save_potential
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_folder

_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK"
_CITATIONS: dict[type, str] = {
    DPA1: "D. Zhang et al., npj Comput. Mater. 10, 94 (2024), doi:10.1038/s41524-024-01278-7",
    DeepPotSE: "L. Zhang et al., Adv. Neural Inf. Process. Syst. 31 (2018), arXiv:1805.09003",
}
# options that change what a model computes, with the values that are supported
_SUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "model": {
        "pair_exclude_types": ([], None),
        "atom_exclude_types": ([], None),
        "use_srtab": (None,),
        "spin": (None,),
        "modifier": (None,),
        "bridging_method": ("None", None),
    },
    "descriptor": {
        "exclude_types": ([], None),
        "env_protection": (0.0, None),
        "protection": (0.0, None),
        "use_exp_switch": (False, None),
        "stripped_type_embedding": (False, None),
        "tebd_input_mode": ("concat", None),
        "smooth_type_embedding": (False, None),
        "use_econf_tebd": (False, None),
        "normalize": (True, None),
        "lmax": (1, None),
        "spin": (None,),
        "compress": (None,),
    },
    "fitting": {
        "type": ("ener", None),
        "numb_fparam": (0, None),
        "numb_aparam": (0, None),
        "dim_case_embd": (0, None),
        "atom_ener": ([], None),
        "use_aparam_as_mask": (False, None),
        "exclude_types": ([], None),
        "layer_name": (None,),
        "spin": (None,),
    },
}


@dataclasses.dataclass(frozen=True)
class DeepmdConfig:
    """Convert a frozen model of DeePMD-kit (graph.pb, .pth or .dp) into a jaxpto model; without DeePMD-kit."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """File that dp freeze has written: .pb of TensorFlow, .pth of PyTorch, or .dp."""
    out: Path
    """Model folder to write, which --model then takes."""
    compress: bool = False
    """Replace the embedding networks of se_e2_a by tables, as dp compress does; prints their error and speed."""
    table_error: float = 1e-8
    """Largest error of an embedding in the tables (its values are of the order of 1)."""


def run(config: DeepmdConfig) -> Path:
    """Convert; returns the model folder.

    Raises:
        CheckpointError: no checkpoint, one that is damaged, or a model of a kind that is not supported.
        StorageError: the disk refuses the write.
    """
    if not config.table_error > 0:
        raise CheckpointError(f"--table-error {config.table_error}: give a number above 0, such as 1e-8")
    folder = config.out.absolute()
    check_output_folder(folder, resume=True)
    file = read_model(config.checkpoint)
    potential = convert(file, folder.name)
    print(_describe(file, potential.model))
    header: dict[str, Any] = {
        "source": f"DeePMD-kit model {config.checkpoint.name}, given by the user",
        "licence": "that of the model given by the user",
        "citation": _CITATIONS[type(potential.model)],
        "published": False,
        "source_sha256": {config.checkpoint.name: sha256_of(config.checkpoint)},
    }
    if config.compress:
        if not isinstance(potential.model, DeepPotSE):
            raise file.refuse(
                "--compress is for se_e2_a: this se_atten feeds the embeddings of types into its embedding network "
                "(tebd_input_mode concat), of which dp compress makes no tables either",
                "leave --compress out; attention takes most of the time of such a model",
            )
        potential, measured = compress(potential, config.table_error)
        header["compressed"] = measured.header()
        print(measured)
    save_potential(potential, folder, header)
    return folder


def read_model(path: Path) -> DeepmdFile:
    """The content of a model file; its first bytes say of which format it is.

    Raises:
        CheckpointError: it is missing, empty, damaged, of another format or of a kind that is not read here.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror or error}; {REMEDY}") from None
    if not content:
        raise CheckpointError(f"checkpoint {path} is empty; download or copy it again")
    refuse_stand_in(path)
    try:
        if content.startswith(_HDF5):
            return from_tree(path, read_tree(path, content))
        if content.startswith(_ZIP):
            return from_modules(path, read_checkpoint(path))
        return from_graph(path, read_graph(path, content))
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise _damaged(path, error) from None


def convert(file: DeepmdFile, name: str) -> Potential:
    """The potential in a model file, its parameters in float64.

    Raises:
        CheckpointError: it is of a kind that is not supported.
    """
    try:
        check(file)
        model = hyperparameters(file)
        return Potential(parameters(file, model), model, name)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise _damaged(file.path, error) from None


def check(file: DeepmdFile) -> None:
    """Refuse what `jaxpto.models.deepmd` does not compute.

    Raises:
        CheckpointError: there is something of the kind.
    """
    for part, options in _SUPPORTED.items():
        found: Mapping[str, Any] = getattr(file, part)
        for option, values in options.items():
            if option in found and found[option] not in values:
                where = "" if part == "model" else f" of the {part}"
                raise file.refuse(f"{option} = {found[option]}{where} is not supported (only {values[0]})")
    symbols = [symbol for symbol in ase.data.chemical_symbols if symbol != "X"]
    for symbol in file.types:
        if symbol not in symbols:
            raise file.refuse(f"the type '{symbol}' is no chemical element", "rename the types in its type_map")
    if len(set(file.types)) != len(file.types):
        raise file.refuse(f"several types are the same element: {' '.join(file.types)}", "rename them in its type_map")
    for networks in (file.embedding, file.networks):
        for layer in [layer for network in networks for layer in network]:
            if layer.activation.lower() not in {*ACTIVATIONS, "none", "gelu_tf"}:
                known = ", ".join(ACTIVATIONS)
                raise file.refuse(f"the activation {layer.activation} is not supported (only {known})")
    if not file.tensorflow and file.descriptor.get("attn_mask"):
        raise file.refuse("attn_mask = True of the descriptor is not supported in .dp and .pth files")
    if (file.mean != file.mean[:, :1]).any() or (file.std != file.std[:, :1]).any():
        raise file.refuse("statistics that differ from slot to slot are not supported")
    if file.type_network and file.mean.any():
        raise file.refuse("se_atten with averages that are not zero (set_davg_zero false) is not supported")


def hyperparameters(file: DeepmdFile) -> DPA1 | DeepPotSE:
    """The architecture."""
    common: dict[str, Any] = {
        "elements": tuple(ase.data.atomic_numbers[symbol] for symbol in file.types),
        "cutoff": file.cutoff,
        "smooth_start": file.smooth_start,
        "axis": int(file.descriptor["axis_neuron"]),
        "embedding": _same(tuple(layer.copies for layer in network) for network in file.embedding),
        "embedding_activation": _activation(file.embedding, slice(None)),
        "fitting": _same(tuple(layer.copies for layer in network[:-1]) for network in file.networks),
        "fitting_activation": _activation(file.networks, slice(-1)),
    }
    if not 0.0 <= file.smooth_start < file.cutoff < 100.0:
        raise ValueError(f"rcut {file.cutoff} and rcut_smth {file.smooth_start}")
    if not file.type_network:
        return DeepPotSE(sel=file.sel, nearest_first=not file.tensorflow, **common)
    descriptor, scale = file.descriptor, 1.0
    if file.attention and not file.tensorflow:
        width = file.attention[0].maps["query"].weight.shape[1]
        temperature = descriptor.get("temperature")
        # what is called temperature multiplies
        scale = (width * descriptor.get("scaling_factor", 1.0)) ** -0.5 if temperature is None else temperature
    return DPA1(
        sel=sum(file.sel),
        one_sided=bool(descriptor.get("type_one_side", False)),
        appended=bool(descriptor.get("concat_output_tebd", True)),
        gated=bool(descriptor.get("attn_dotr", True)),
        masked=bool(descriptor.get("attn_mask", False)),
        scale=float(scale),
        floor=1e-6 if file.tensorflow else 1e-12,
        epsilon=_same(layer.epsilon for layer in file.attention) if file.attention else 0.0,
        **common,
    )


def parameters(file: DeepmdFile, model: DPA1 | DeepPotSE) -> dict[str, Any]:
    """Parameters of `jaxpto.models.deepmd`, every linear map as [out, in].

    embedding and fitting, layers "0", "1", ...; mean and std [types, 4] of the rows; scale and shift [types] of the
    energies, eV. DPA-1: types [types, features], and the layers of attention. Leaves of DeepPot-SE's embedding are
    stacked [types of the atom or 1, types of the neighbour, ...], those of fitting [types or 1, ...].

    Raises:
        ValueError: shapes that do not fit together.
    """
    types, columns = len(file.types), file.embedding[0][-1].weight.shape[1]
    invariants = columns * model.axis
    params: dict[str, Any] = {
        "fitting": _stacked([_layers(network) for network in file.networks]),
        "std": _float64(file.std[:, 0], types, 4),
        "scale": _float64(file.scale, types),
        "shift": _float64(file.shift, types),
    }
    if len(file.networks) not in (1, types):
        raise ValueError(f"{len(file.networks)} fitting networks of {types} types")
    if isinstance(model, DPA1):
        table = _type_table(file.type_network, types)
        params |= {"types": table, "embedding": _layers(file.embedding[0])}
        params["attention"] = {str(number): _attention(layer) for number, layer in enumerate(file.attention)}
        wanted = 1 + table.shape[1] * (1 if model.one_sided else 2)
        invariants += table.shape[1] if model.appended else 0
    else:
        wanted = 1
        centres = len(file.embedding) // types
        if centres not in (1, types) or len(file.embedding) % types or len(file.sel) != types:
            raise ValueError(
                f"{len(file.embedding)} embedding networks and {len(file.sel)} numbers sel of {types} types"
            )
        rows = [[_layers(file.embedding[c + centres * n]) for n in range(types)] for c in range(centres)]
        params |= {"mean": _float64(file.mean[:, 0], types, 4)}
        params["embedding"] = _stacked([_stacked(row) for row in rows])
    found = file.embedding[0][0].weight.shape[0], file.networks[0][0].weight.shape[0]
    if found != (wanted, invariants):
        raise ValueError(f"the networks have {found} inputs, not {(wanted, invariants)}")
    return params


def _layers(network: Sequence[Layer]) -> dict[str, dict[str, np.ndarray]]:
    """Layers as the model has them; each must fit the one before."""
    result, width = {}, network[0].weight.shape[0]
    for number, layer in enumerate(network):
        outputs = layer.weight.shape[1]
        arrays = {"weight": _float64(layer.weight, width, outputs).T}
        if layer.bias is not None:
            arrays["bias"] = _float64(layer.bias, outputs)
        if layer.step is not None:
            arrays["step"] = _float64(layer.step, outputs)
        result[str(number)] = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        width = outputs
    return result


def _attention(layer: Any) -> dict[str, dict[str, np.ndarray]]:
    maps = {name: _layers([part])["0"] for name, part in layer.maps.items()}
    features = layer.maps["out"].weight.shape[1]
    return maps | {"norm": {n: _float64(a, features) for n, a in zip(("weight", "bias"), layer.norm, strict=True)}}


def _type_table(network: Sequence[Layer], types: int) -> np.ndarray:
    """Embedding [types, features] of each type: the network of one-hot vectors."""
    x = np.eye(types)
    for layer in network:
        if layer.activation.lower() not in ("tanh", "linear", "none"):
            raise ValueError(f"a type embedding with the activation {layer.activation}")
        y = x @ layer.weight.astype(np.float64) + (0.0 if layer.bias is None else layer.bias)
        y = np.tanh(y) if layer.activation.lower() == "tanh" else y
        y = y if layer.step is None else y * layer.step
        x = y + np.tile(x, layer.copies) if layer.copies else y
    return _float64(x, types, x.shape[1])


def _stacked(trees: Sequence[Any]) -> Any:
    """Nested dicts of arrays with the arrays of all of them stacked."""
    if isinstance(trees[0], dict):
        if any(tree.keys() != trees[0].keys() for tree in trees):
            raise ValueError("networks of different kinds")
        return {key: _stacked([tree[key] for tree in trees]) for key in trees[0]}
    return np.stack(trees)


def _float64(array: np.ndarray, *shape: int) -> np.ndarray:
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"an array {array.shape} where a finite one {shape} belongs")
    return np.asarray(array, np.float64)


def _same(values: Any) -> Any:
    """The value that all have."""
    first, *others = list(values)
    if any(value != first for value in others):
        raise ValueError(f"{first} and others in one model")
    return first


def _activation(networks: Sequence[Sequence[Layer]], which: slice) -> str:
    name = _same(layer.activation.lower() for network in networks for layer in network[which])
    return {"none": "linear", "gelu_tf": "gelu"}.get(name, name)


def _describe(file: DeepmdFile, model: Any) -> str:
    kind = f"se_atten, {len(file.attention)} layers of attention" if isinstance(model, DPA1) else "se_e2_a"
    sel = ", ".join(map(str, file.sel))
    rules = "TensorFlow" if file.tensorflow else "PyTorch"
    return (
        f"{file.path.name}: {kind}, types {' '.join(file.types)}, computed as {rules} does\n"
        f"at most {sel} neighbours within {model.cutoff:g} A count, the nearest, as in DeePMD-kit (sel)"
    )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    words = " ".join(f"{type(error).__name__} {error}".split())[:200]
    return CheckpointError(f"checkpoint {path} holds no DeePMD-kit model, or a damaged one: {words}; {REMEDY}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("converters.deepmd", DeepmdConfig, _report, argv)


def _report(config: DeepmdConfig) -> None:
    print(f"model written to {run(config)}")


if __name__ == "__main__":
    sys.exit(main())
