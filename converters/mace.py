"""COMMAND: convert a published MACE model into a jaxpto model."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converters import mace_gated
from converters.mace_files import MaceFile, open_model
from converters.pickles import CheckpointError
from converters.sources import Checkpoint, find_checkpoint, refuse_stand_in, sha256_of
from converters.torch_files import read_checkpoint
from jaxpto.console.command import run_command
from jaxpto.models.catalogue import user_folder
from jaxpto.models.folder import save_potential
from jaxpto.models.mace import MACE, path_name
from jaxpto.models.mace_product import in_this_basis, width
from jaxpto.models.manifest import published_models
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_folder

NAME = "mace-mp-0b-medium"
Version = Literal[
    "mp-0-small",
    "mp-0-medium",
    "mp-0-large",
    "mp-0b-small",
    "mp-0b-medium",
    "mp-0b2-small",
    "mp-0b2-medium",
    "mp-0b2-large",
    "mp-0b3-medium",
    "mpa-0-medium",
    "omat-0-small",
    "omat-0-medium",
    "matpes-pbe-0",
    "matpes-r2scan-0",
    "off23-small",
    "off23-medium",
    "off23-large",
    "mh-0",
    "mh-1",
]
# interaction blocks: whether the input is added to the result, and whether messages are divided by a density
_BLOCKS = {
    mace_gated.BLOCK: (True, True),
    "RealAgnosticInteractionBlock": (False, False),
    "RealAgnosticResidualInteractionBlock": (True, False),
    "RealAgnosticDensityInteractionBlock": (False, True),
    "RealAgnosticDensityResidualInteractionBlock": (True, True),
}
_MODULES = {
    "node_embedding",
    "radial_embedding",
    "pair_repulsion_fn",
    "spherical_harmonics",
    "atomic_energies_fn",
    "interactions",
    "products",
    "readouts",
    "scale_shift",
}
# attributes of the model that change what it computes; older files lack some
_SUPPORTED = {"use_so3": (False, None)}
_HIGHEST_EDGE, _HIGHEST_ORDER = 3, 3
_RADII = (
    "radial_embedding.distance_transform.covalent_radii",
    "pair_repulsion_fn.covalent_radii",
)


@dataclasses.dataclass(frozen=True)
class MaceConfig:
    """Convert a published MACE, or your own, into a jaxpto model, which --model mace-VERSION then finds."""

    version: Version | None = None
    """Which published model. Default: the one whose file has the name of the checkpoint; a file of another name is a
    model of your own."""
    checkpoint: Path | None = None
    """Model file of mace-torch (.model)."""
    head: str | None = None
    """Which head of a model that has several."""
    out: Path | None = None
    """Model folder to write. Default: mace-VERSION (and the head), or the name of your file, in the folder of the
    user's models."""


def run(config: MaceConfig) -> Path:
    """Convert; returns the model folder.

    Raises:
        CheckpointError: no checkpoint, or one that is damaged or no MACE of a supported kind.
        StorageError: the disk refuses the write.
    """
    name = published_name(config)
    tail = f"-{config.head}" if config.head else ""
    if name:
        checkpoint = find_checkpoint(name, config.checkpoint)
        (path,), header = checkpoint.paths.values(), checkpoint.header()
    else:
        assert config.checkpoint is not None  # `published_name` has a name where there is none
        path = config.checkpoint
        if not path.is_file():
            raise CheckpointError(f"checkpoint {path} is no file; give another path")
        refuse_stand_in(path)
        source = {"source": f"MACE file {path.name} given by the user", "published": False}
        header = source | {"source_sha256": {path.name: sha256_of(path)}}
    folder = config.out or user_folder() / f"{name or path.stem}{tail}"
    check_output_folder(folder, resume=True)
    potential = convert_file(path, folder.name, config.head)
    save_potential(potential, folder, header | ({"head": config.head} if config.head else {}))
    return folder


def published_name(config: MaceConfig) -> str:
    """Name of the published model that a checkpoint is taken for; "" for one of the user's own."""
    if config.version is not None:
        return f"mace-{config.version}"
    if config.checkpoint is None:
        return NAME
    names = {
        _letters(file.name): model.name
        for model in published_models().values()
        for file in model.files
        if model.architecture == "mace"
    }
    return names.get(_letters(config.checkpoint.name), "")


def _letters(file: str) -> str:
    """A file's name as mace-torch writes it in its cache: without hyphens and points."""
    return "".join(letter for letter in file if letter.isalnum() or letter == "_")


def convert(checkpoint: Checkpoint, name: str, head: str | None = None) -> Potential:
    """The potential in the only file of a checkpoint; see `convert_file`."""
    (path,) = checkpoint.paths.values()
    return convert_file(path, name, head)


def convert_file(path: Path, name: str, head: str | None = None) -> Potential:
    """The potential in a file.

    Args:
        path: the file.
        name: of the potential.
        head: which one, by name; may be None if there is only one.

    Raises:
        CheckpointError: it is damaged, no MACE, or of a kind that is not supported.
    """
    content = read_checkpoint(path)
    try:
        file = open_model(path, content)
        check(file)
        model = hyperparameters(file)
        params = parameters(file, model, choose_head(file, head))
        if file.left:
            raise ValueError(f"unknown tensors {', '.join(sorted(file.left)[:3])}")
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint {path} holds no MACE: {type(error).__name__} {error}; "
            "give a model of the MACE-MP family as its authors saved it"
        ) from None
    return Potential(params, model, name)


def check(file: MaceFile) -> None:
    """Refuse what `jaxpto.models.mace` does not compute.

    Raises:
        CheckpointError: there is something of the kind.
    """
    file.require_class("", "ScaleShiftMACE", "MACE")
    for module in file.children():
        if module not in _MODULES:
            raise file.refuse(f"the module {module} ({file.class_of(module)}) is not supported")
    for attribute, values in _SUPPORTED.items():
        value = file.attribute("", attribute)
        if value not in values:
            raise file.refuse(f"{attribute} = {value!r} is not supported (only {values[0]!r})")
    file.require_class("radial_embedding.bessel_fn", "BesselBasis")
    file.require_class("radial_embedding.cutoff_fn", "PolynomialCutoff")
    if file.has("radial_embedding.distance_transform"):
        file.require_class("radial_embedding.distance_transform", "AgnesiTransform")
    if file.has("pair_repulsion_fn"):
        file.require_class("pair_repulsion_fn", "ZBLBasis")
    gated = file.class_of("interactions.0") == mace_gated.BLOCK
    if gated and file.attribute("radial_embedding", "apply_cutoff", default=True):
        raise file.refuse(
            "apply_cutoff = True is not supported with gated layers, whose energy would jump at the cutoff"
        )
    if not gated and file.attribute("", "edge_irreps") is not None:
        raise file.refuse("edge_irreps are not supported but with gated layers")
    for key in file.children("interactions"):
        blocks = [mace_gated.BLOCK] if gated else [block for block in _BLOCKS if block != mace_gated.BLOCK]
        file.require_class(f"interactions.{key}", *blocks)
        file.require_class(f"interactions.{key}.conv_tp_weights", "RadialMLP" if gated else "FullyConnectedNet")
    for key in file.children("products"):
        file.require_class(f"products.{key}", "EquivariantProductBasisBlock")
        file.require_class(f"products.{key}.symmetric_contractions", "SymmetricContraction")
    for key in file.children("readouts"):
        file.require_class(f"readouts.{key}", "LinearReadoutBlock", "NonLinearReadoutBlock")


def choose_head(file: MaceFile, head: str | None) -> tuple[int, int]:
    """Number of the wanted head, and of all heads.

    Raises:
        CheckpointError: there is none of that name, or several and none is wanted.
    """
    heads = [str(name) for name in file.attribute("", "heads") or ["Default"]]
    listed = ", ".join(heads)
    if head is None and len(heads) > 1:
        raise file.refuse(f"it has the heads {listed}", "choose one by --head")
    if head is not None and head not in heads:
        raise file.refuse(f"it has no head {head}", f"choose one of: {listed}")
    return (0 if head is None else heads.index(head)), len(heads)


def hyperparameters(file: MaceFile) -> MACE:
    """The architecture; uses up the buffers that belong to it."""
    channels = file.irreps("node_embedding.linear", "irreps_out")[0][0]
    file.highest("node_embedding.linear", "irreps_out", channels)
    highest_edge = file.highest("spherical_harmonics", "irreps_out", 1)
    if highest_edge > _HIGHEST_EDGE:
        raise file.refuse(f"harmonics up to l = {highest_edge} are not supported (at most {_HIGHEST_EDGE})")
    number = len(file.children("interactions"))
    layers = range(number)
    orders = []
    for layer in layers:
        contraction = f"products.{layer}.symmetric_contractions.contractions.0"
        correlation = int(file.attribute(contraction, "correlation"))
        if correlation > _HIGHEST_ORDER:
            raise file.refuse(f"correlation {correlation} is not supported (at most {_HIGHEST_ORDER})")
        orders.append(tuple(range(correlation, 0, -1)))
    kinds = [_BLOCKS[file.class_of(f"interactions.{layer}")] for layer in layers]
    readouts = len(file.children("readouts"))
    if readouts not in (1, number):
        raise ValueError(f"{readouts} readouts of {number} layers")
    elements = tuple(int(z) for z in file.take("atomic_numbers", len(file.left["atomic_numbers"])))
    cutoff = file.number("r_max")
    for key in ("num_interactions", "radial_embedding.bessel_fn.r_max", "radial_embedding.cutoff_fn.r_max"):
        expected = number if key == "num_interactions" else cutoff
        if file.number(key) != expected:
            raise ValueError(f"{key} is not {expected}")
    radii, agnesi, repulsion = (), (), ()
    if file.has("radial_embedding.distance_transform"):
        agnesi = tuple(file.number(f"radial_embedding.distance_transform.{key}") for key in "aqp")
    if file.has("pair_repulsion_fn"):
        weights = file.take("pair_repulsion_fn.c", 4).tolist()
        repulsion = (*weights, *(file.number(f"pair_repulsion_fn.{key}") for key in ("a_exp", "a_prefactor", "p")))
        file.left.pop("pair_repulsion_fn.r_max", None)  # of older files, which do not use it either
    for key in _RADII:
        if key in file.left:
            table = file.take(key, file.left[key].size)
            if radii and radii != tuple(table[list(elements)].tolist()):
                raise ValueError("two tables of covalent radii")
            radii = tuple(table[list(elements)].tolist())
    return MACE(
        elements=elements,
        radii=radii,
        cutoff=cutoff,
        cutoff_power=int(file.number("radial_embedding.cutoff_fn.p")),
        frequencies=tuple(file.take(key := "radial_embedding.bessel_fn.bessel_weights", file.left[key].size).tolist()),
        agnesi=agnesi,
        repulsion=repulsion,
        smooth_features=bool(file.attribute("radial_embedding", "apply_cutoff", default=True)),
        highest_edge=highest_edge,
        hidden=tuple(file.highest(f"products.{layer}.linear", "irreps_out", channels) for layer in layers),
        residual=tuple(residual for residual, _ in kinds),
        density=tuple(density for _, density in kinds),
        orders=tuple(orders),
        readouts=tuple(layers)[-readouts:],
        gated=file.class_of("interactions.0") == mace_gated.BLOCK,
    )


def parameters(file: MaceFile, model: MACE, head: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """Parameters of `jaxpto.models.mace.MACE`, every linear map as [out, in] with its normalization.

    embedding [elements, channels]; for each layer up, radial, mix, skip, polynomials, product, readout and density;
    scale [], shift [], references [elements].

    Args:
        file: its tensors are used up.
        model: its architecture.
        head: number of the wanted head, and of all heads.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has the wrong number of elements.
    """
    elements = len(model.elements)
    channels = file.irreps("node_embedding.linear", "irreps_out")[0][0]
    embedding = file.take("node_embedding.linear.weight", elements, channels) / math.sqrt(elements)
    prefactor = file.number("radial_embedding.bessel_fn.prefactor")
    layers = {}
    for number in range(len(model.hidden)):
        layers[str(number)] = (
            _interaction(file, model, number, channels, prefactor)
            | _products(file, model, number, channels)
            | _readout(file, model, number, channels, head)
        )
    scaled = file.class_of("") == "ScaleShiftMACE"
    references = file.take(key := "atomic_energies_fn.atomic_energies", file.left[key].size // elements, elements)

    def of_head(key: str) -> np.ndarray:
        values = file.take(key, file.left[key].size)
        return values[head[0] if len(values) > 1 else 0]

    return {
        "embedding": embedding,
        "layers": layers,
        "scale": of_head("scale_shift.scale") if scaled else np.ones(()),
        "shift": of_head("scale_shift.shift") if scaled else np.zeros(()),
        "references": references[head[0] if len(references) > 1 else 0],
    }


def _interaction(file: MaceFile, model: MACE, number: int, channels: int, prefactor: float) -> dict[str, Any]:
    key, elements, paths = f"interactions.{number}", len(model.elements), model.paths(number)
    highest = model.hidden[number - 1] if number else 0
    edge_channels = file.irreps(f"{key}.linear_up", "irreps_out")[0][0]
    for name in ("irreps_in1", "irreps_in2"):
        file.highest(f"{key}.conv_tp", name, edge_channels if name == "irreps_in1" else 1)
    instructions = [item.arguments[:4] for item in file.attribute(f"{key}.conv_tp", "instructions")]
    results = [degree for _, degree, _ in file.irreps(f"{key}.conv_tp", "irreps_out")]
    found = tuple((first, second, results[out]) for first, second, out, _ in instructions)
    if found != paths or [item[2:] for item in instructions] != [(p, "uvu") for p in range(len(paths))]:
        raise file.refuse(f"{key}.conv_tp has the couplings {found}, not {paths}")
    if model.gated:
        return mace_gated.interaction(file, number, paths, elements, channels, edge_channels, prefactor)

    def flat(name: str, count: int, *shape: int) -> np.ndarray:
        return file.take(f"{key}.{name}.weight", count, *shape)

    up = flat("linear_up", highest + 1, channels, channels).transpose(0, 2, 1) / math.sqrt(channels)
    mix = flat("linear", len(paths), channels, channels).transpose(0, 2, 1)
    neighbors = 1.0 if model.density[number] else file.scalar(key, "avg_num_neighbors")
    fan_in = {path: channels * sum(path[2] == other[2] for other in paths) for path in paths}
    skipped = min(highest, model.hidden[number]) if model.residual[number] else model.highest_edge
    skip = flat("skip_tp", skipped + 1, channels, elements, channels) / math.sqrt(channels * elements)
    *hidden, last = _radial(file, f"{key}.conv_tp_weights", prefactor)
    last = last.reshape(len(paths), channels, -1)
    result = {
        "up": _by_name(up),
        "mix": {path_name(p): w / (math.sqrt(fan_in[p]) * neighbors) for p, w in zip(paths, mix, strict=True)},
        "skip": _by_name(skip.transpose(0, 2, 3, 1)),
        "radial": _by_name(hidden),
        "couplings": {path_name(p): np.ascontiguousarray(w) for p, w in zip(paths, last, strict=True)},
    }
    if model.density[number]:
        weight = file.take(f"{key}.density_fn.layer0.weight", len(model.frequencies), 1)
        result["density"] = weight.T * (prefactor / math.sqrt(len(model.frequencies)))
    return result


def _radial(file: MaceFile, key: str, prefactor: float) -> list[np.ndarray]:
    """Layers of the radial network; the factor of an activation is in the layer after it."""
    layers, factor = [], prefactor
    names = file.children(key)
    for number, name in enumerate(names):
        shape = file.left[f"{key}.{name}.weight"].shape
        layers.append(file.take(f"{key}.{name}.weight", *shape).T * (factor / math.sqrt(shape[0])))
        if number < len(names) - 1:
            factor = file.activation_constant(f"{key}.{name}.act")
        elif file.has(f"{key}.{name}.act"):
            raise file.refuse(f"{key} ends in an activation, which is not supported")
    return layers


def _products(file: MaceFile, model: MACE, number: int, channels: int) -> dict[str, Any]:
    key, highest = f"products.{number}", model.hidden[number]
    linear = file.take(f"{key}.linear.weight", highest + 1, channels, channels).transpose(0, 2, 1)
    rows = 1 if file.attribute(key, "use_agnostic_product") else len(model.elements)
    polynomials = []
    for degree in range(highest + 1):
        contraction = f"{key}.symmetric_contractions.contractions.{degree}"
        parts = []
        for order in model.orders[number]:
            stored = file.left[f"{contraction}.U_matrix_{order}"]
            shape = (2 * degree + 1, *(width(model.highest_edge),) * order, stored.shape[-1])
            tensors = file.left.pop(f"{contraction}.U_matrix_{order}").reshape(shape)
            place = model.orders[number].index(order)
            name = f"{contraction}.{f'weights.{place - 1}' if place else 'weights_max'}"
            weights = file.take(name, rows, shape[-1], channels)
            parts.append(in_this_basis(tensors, weights, model.highest_edge, degree))
        polynomials.append(np.concatenate(parts, axis=1))
    return {"polynomials": dict(_by_name(polynomials)), "product": _by_name(linear / math.sqrt(channels))}


def _readout(file: MaceFile, model: MACE, number: int, channels: int, head: tuple[int, int]) -> dict[str, Any]:
    if number not in model.readouts:
        return {}
    chosen, heads = head
    key = f"readouts.{model.readouts.index(number)}"
    if file.class_of(key) == "LinearReadoutBlock":
        weight = file.take(f"{key}.linear.weight", channels, heads)
        return {"readout": {"0": weight[:, chosen : chosen + 1].T / math.sqrt(channels)}}
    second = file.take(f"{key}.linear_2.weight", file.left[f"{key}.linear_2.weight"].size // heads, heads)
    inner = len(second)
    first = file.take(f"{key}.linear_1.weight", channels, inner)
    own = slice(chosen * inner // heads, (chosen + 1) * inner // heads)
    constant = file.activation_constant(f"{key}.non_linearity.acts.0")
    return {
        "readout": {
            "0": first[:, own].T / math.sqrt(channels),
            "1": second[own, chosen : chosen + 1].T * (constant / math.sqrt(inner)),
        }
    }


def _by_name(arrays: Sequence[np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
    return {str(number): np.ascontiguousarray(array) for number, array in enumerate(arrays)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("converters.mace", MaceConfig, _report, argv)


def _report(config: MaceConfig) -> None:
    print(f"model written to {run(config)}")


if __name__ == "__main__":
    sys.exit(main())
