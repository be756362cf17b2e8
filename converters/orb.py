"""COMMAND: convert a published ORB model into a jaxpto model."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from converters.pickles import CheckpointError
from converters.sources import Checkpoint, find_checkpoint
from converters.torch_files import read_checkpoint
from jaxpto.console.command import run_command
from jaxpto.models.catalogue import user_folder
from jaxpto.models.folder import save_potential
from jaxpto.models.manifest import published_models
from jaxpto.models.orb import CUTOFF, GAUSSIANS, HARMONICS, OrbConservative, OrbDirect
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_folder

# what a checkpoint may hold besides what is converted: other heads, the pre-training's decoder, statistics of training
_UNUSED = re.compile(r"heads\.|model\._decoder\.|grad_\w+_normalizer\.|.*\.num_batches_tracked$")
_OLD_HEADS = {"graph_head.": "heads.energy.", "node_head.": "heads.forces.", "stress_head.": "heads.stress."}
_BUFFERS = "model.rbf_transform."
_LONGEST = 20.0  # Angstrom; a longer cutoff is damage
# the others are not in the training data (MPtrj, Alexandria, OMat24); the files have rows for them all the same
_ELEMENTS = (*range(1, 84), *range(89, 95))

Version = Literal[
    "v2",
    "v3-conservative-20-omat",
    "v3-conservative-inf-omat",
    "v3-conservative-20-mpa",
    "v3-conservative-inf-mpa",
    "v3-direct-20-omat",
    "v3-direct-inf-omat",
    "v3-direct-20-mpa",
    "v3-direct-inf-mpa",
]
_VERSIONS: tuple[Version, ...] = get_args(Version)
_UNLIMITED = 120  # edges from an atom of the "inf" models; the others have 20, and no file says which
_LIMITED = 20
_HEADS = {"energy": 1, "forces": 3, "stress": 6}  # results of each
_STATISTICS = {"mean": "mean", "variance": "var"}


@dataclasses.dataclass(frozen=True)
class OrbConfig:
    """Convert a published ORB model into a jaxpto model, which --model orb-VERSION then finds."""

    version: Version | None = None
    """Which published model; of a fine-tuned one, the model it started from. Default: the one whose file has the name
    of the checkpoint, and v2 of a file of version 2. The v3 models take 20 or up to 120 (inf) neighbours of each atom
    and are trained on OMat24 (omat) or MPtrj and Alexandria (mpa)."""
    checkpoint: Path | None = None
    """Checkpoint of the orb-models package (.ckpt)."""
    out: Path | None = None
    """Model folder to write. Default: orb-VERSION in the folder of the user's models."""


def run(config: OrbConfig) -> Path:
    """Convert; returns the model folder.

    Raises:
        CheckpointError: no checkpoint, or one that is damaged or no ORB of that version.
        StorageError: the disk refuses the write.
    """
    version = chosen_version(config)
    name = f"orb-{version}"
    folder = config.out or user_folder() / name
    check_output_folder(folder, resume=True)
    checkpoint = find_checkpoint(name, config.checkpoint)
    header = checkpoint.header() | {"version": version}
    save_potential(convert(checkpoint, folder.name, version), folder, header)
    return folder


def chosen_version(config: OrbConfig) -> Version:
    """The version that is asked for, or that the file's name or its content says.

    How many neighbours count stands in no file; with the wrong number energies are silently off by about 0.1 eV/atom.

    Raises:
        CheckpointError: nobody says, or two say different things.
    """
    path = config.checkpoint
    files = {published_models()[f"orb-{version}"].files[0].name: version for version in _VERSIONS}
    named = files.get(path.name) if path is not None else None
    if config.version is not None:
        if named is not None and named != config.version:
            raise CheckpointError(
                f"{path} has the name of the published orb-{named}, not orb-{config.version}; give --version {named}, "
                "or rename a model of your own"
            )
        return config.version
    if named is not None or path is None or not path.is_file():
        return named or "v2"
    content = read_checkpoint(path)
    kind = _kind(content) if isinstance(content, Mapping) and all(isinstance(key, str) for key in content) else "v2"
    if kind == "v2":
        return "v2"
    raise CheckpointError(
        f"checkpoint {path} holds ORB {kind}; whether {_LIMITED} or up to {_UNLIMITED} (inf) neighbours count stands "
        "in no file, and the wrong number costs 0.1 eV/atom; name the model it started from by --version: "
        f"{', '.join(version for version in _VERSIONS if version.startswith(kind))}"
    )


def convert(checkpoint: Checkpoint, name: str, version: Version) -> Potential:
    """The potential in a checkpoint, its parameters as they are stored.

    Args:
        checkpoint: its file.
        name: of the potential.
        version: which model it is, or started from.

    Raises:
        CheckpointError: it is damaged, no ORB, or of another version.
    """
    (path,) = checkpoint.paths.values()
    content = read_checkpoint(path)
    try:
        state = {_with_new_head(key): np.asarray(array) for key, array in content.items()}
        kind = _kind(state)
        if not any(key.startswith("model.gnn_stacks.") for key in state):
            raise ValueError("no message passing")
        if not version.startswith(kind):
            raise CheckpointError(
                f"checkpoint {path} holds ORB {kind}, not {version}; convert one of "
                f"{', '.join(known for known in _VERSIONS if known.startswith(kind))} and name it by --version"
            )
        params = parameters(state, kind)
        cutoff = CUTOFF if kind == "v2" else float(state[f"{_BUFFERS}r_max"])
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint {path} holds no ORB: {type(error).__name__} {error}; give one of the orb-models package"
        ) from None
    nearest = _UNLIMITED if "-inf-" in version else _LIMITED
    if kind == "v3-conservative":
        return Potential(params, OrbConservative(_ELEMENTS, nearest, cutoff), name)
    return Potential(params, OrbDirect(_ELEMENTS, nearest, cutoff, 2 if kind == "v2" else 3), name)


def parameters(state: Mapping[str, np.ndarray], kind: str) -> dict[str, Any]:
    """Parameters of `jaxpto.models.orb` from a state dict with the names of orb-models 0.5.

    embedding [119, d]; nodes and edges, with layers "0", "1", ... and norm; steps, stacked, with edge (layers, norm,
    receive, send) and node (layers, norm); the heads energy and, unless conservative, forces and stress, with layers,
    mean and variance; references [118]. The edges of version 3 also have frequencies and prefactor.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor is left over, is not finite, or has another shape than belongs there.
    """
    left, old, direct = dict(state), kind == "v2", kind != "v3-conservative"

    def take(key: str, *shape: int) -> np.ndarray:
        array = left.pop(key)
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise ValueError(f"{key} holds what is no number")
        if array.size != int(np.prod(shape)):
            raise ValueError(f"{key} has {array.size} numbers, not {' x '.join(map(str, shape)) or 1}")
        return array.reshape(shape)

    def linear(key: str, inputs: int) -> dict[str, np.ndarray]:
        outputs = len(left[f"{key}.weight"])
        return {"weight": take(f"{key}.weight", outputs, inputs), "bias": take(f"{key}.bias", outputs)}

    def perceptron(key: str, inputs: int, outputs: int) -> dict[str, Any]:
        layers: dict[str, Any] = {}
        while f"{key}.NN-{len(layers)}.weight" in left:
            layers[str(len(layers))] = layer = linear(f"{key}.NN-{len(layers)}", inputs)
            inputs = len(layer["bias"])
        if not layers or inputs != outputs:
            raise ValueError(f"{key} has {inputs if layers else 'no'} results, not {outputs}")
        return layers

    def block(key: str, inputs: int, width: int) -> dict[str, Any]:
        norm = {"weight": take(f"{key}.layer_norm.weight", width)}
        if old:
            norm["bias"] = take(f"{key}.layer_norm.bias", width)
        return {"layers": perceptron(f"{key}.mlp", inputs, width), "norm": norm}

    def taken(key: str, statistic: str) -> np.ndarray:
        """One number of a head; or six, of the diagonal and the other components of the stress."""
        if old or not key.endswith("stress."):
            return take(f"{key}{statistic}")
        return np.repeat([take(f"{key}{part}_{statistic}") for part in ("diag", "offdiag")], 3)

    def head(name: str, width: int, outputs: int) -> dict[str, Any]:
        key = f"heads.{name}"
        statistics = {part: taken(f"{key}.", f"normalizer.bn.running_{end}") for part, end in _STATISTICS.items()}
        if not (statistics["variance"] > 0).all():
            raise ValueError(f"{key} has the variance {statistics['variance']}")
        return {"layers": perceptron(f"{key}.mlp", width, outputs), **statistics}

    rows, width = state["model.atom_emb.embeddings.weight"].shape
    params: dict[str, Any] = {"embedding": take("model.atom_emb.embeddings.weight", rows, width)}
    buffers = {}
    if not old:
        radial = left[f"{_BUFFERS}bessel_weights"].size
        buffers = {"frequencies": take(f"{_BUFFERS}bessel_weights", radial), "prefactor": take(f"{_BUFFERS}prefactor")}
        if not 0 < take(f"{_BUFFERS}r_max") <= _LONGEST:
            raise ValueError(f"r_max = {state[f'{_BUFFERS}r_max']} Angstrom")
    features = (HARMONICS + 1) ** 2 * len(buffers["frequencies"]) if not old else GAUSSIANS + 3
    params["nodes"] = block("model._encoder._node_fn", width, width)
    params["edges"] = block("model._encoder._edge_fn", features, width) | buffers
    steps = []
    while f"model.gnn_stacks.{len(steps)}._receive_attn.weight" in left:
        key = f"model.gnn_stacks.{len(steps)}"
        maps = {name: linear(f"{key}._{name}_attn", width) for name in ("receive", "send")}
        if any(len(map_["bias"]) != 1 for map_ in maps.values()):
            raise ValueError(f"{key} has more than one attention")
        steps.append({"edge": block(f"{key}._edge_mlp", 3 * width, width) | maps})
        steps[-1]["node"] = block(f"{key}._node_mlp", 3 * width, width)
    params["steps"] = jax.tree.map(lambda *layers: np.stack(layers), *steps)
    for name, outputs in _HEADS.items():
        if name == "energy" or direct:
            params[name] = head(name, width, outputs)
    references = left["heads.energy.reference.linear.weight"].size
    params["references"] = take("heads.energy.reference.linear.weight", references)
    if min(rows, references) <= max(_ELEMENTS):
        raise ValueError(f"embeddings of {rows} and references of {references} elements")
    unknown = sorted(key for key in left if not _UNUSED.match(key))
    if unknown:
        raise ValueError(f"unknown tensors {', '.join(unknown[:3])}")
    return params


def _with_new_head(key: str) -> str:
    """The name that orb-models 0.5 gives to a tensor."""
    for old, new in _OLD_HEADS.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _kind(state: Mapping[str, np.ndarray]) -> str:
    """What ORB it is: v2, v3-conservative, or another one; by its radial functions and what its training kept."""
    if f"{_BUFFERS}bessel_weights" in state:
        trained_on_gradients = any(key.startswith("grad_forces_normalizer.") for key in state)
        return "v3-conservative" if trained_on_gradients else "v3-direct"
    return "v2"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("converters.orb", OrbConfig, _report, argv)


def _report(config: OrbConfig) -> None:
    print(f"model written to {run(config)}")


if __name__ == "__main__":
    sys.exit(main())
