"""COMMAND: convert a checkpoint of MatterSim-v1 into a jaxpto model."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from converters.pickles import CheckpointError
from converters.sources import Checkpoint, find_checkpoint
from converters.torch_files import read_checkpoint
from jaxpto.console.command import run_command
from jaxpto.models.catalogue import user_folder
from jaxpto.models.folder import save_potential
from jaxpto.models.mattersim import HIGHEST, RADIAL, MatterSim
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_folder

# those of the training data; the files have rows for all up to Pu, and for number 0
_ELEMENTS = (*range(1, 84), *range(89, 95))
_BASIS = (HIGHEST + 1) * RADIAL
# which coefficient of which angular momentum stands before which inverse power of the distance, as the mattersim
# package orders them; (l, power, place, sign)
_SINES = ((1, 2, 2, 1.0), (2, 1, 0, 1.0), (2, 3, 4, 1.0), (3, 2, 2, -1.0), (3, 4, 6, 1.0))
_COSINES = ((1, 1, 0, 1.0), (2, 2, 2, -1.0), (3, 1, 0, 1.0), (3, 3, 4, -1.0))

Version = Literal["v1-1m", "v1-5m"]
NAME = "mattersim-v1-1m"


@dataclasses.dataclass(frozen=True)
class MatterSimConfig:
    """Convert a checkpoint of MatterSim-v1 into a jaxpto model, which --model mattersim-VERSION then finds."""

    version: Version = "v1-1m"
    """Which published model; of a fine-tuned one, the model it started from."""
    checkpoint: Path | None = None
    """Checkpoint of the mattersim package (.pth)."""
    out: Path | None = None
    """Model folder to write. Default: mattersim-VERSION in the folder of the user's models."""


def run(config: MatterSimConfig) -> Path:
    """Convert; returns the model folder.

    Raises:
        CheckpointError: no checkpoint, or one that is damaged or no MatterSim-v1.
        StorageError: the disk refuses the write.
    """
    name = f"mattersim-{config.version}"
    folder = config.out or user_folder() / name
    check_output_folder(folder, resume=True)
    checkpoint = find_checkpoint(name, config.checkpoint)
    save_potential(convert(checkpoint, folder.name), folder, checkpoint.header())
    return folder


def convert(checkpoint: Checkpoint, name: str) -> Potential:
    """The potential in a checkpoint.

    Raises:
        CheckpointError: it is damaged, no MatterSim, or of a kind that is not supported.
    """
    (path,) = checkpoint.paths.values()
    content = read_checkpoint(path)
    try:
        if content["model_name"] != "m3gnet":
            raise CheckpointError(
                f"checkpoint {path} holds a {content['model_name']}, which is not supported; give a MatterSim-v1"
            )
        arguments = content["model_args"]
        for key, wanted in (("max_n", RADIAL), ("max_l", HIGHEST + 1)):
            if arguments[key] != wanted:
                raise CheckpointError(f"checkpoint {path}: {key} = {arguments[key]} is not supported (only {wanted})")
        model = MatterSim(_ELEMENTS, float(arguments["cutoff"]), float(arguments["threebody_cutoff"]))
        params = parameters(content["model"], int(arguments["num_blocks"]), int(arguments["units"]))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint {path} holds no MatterSim-v1: {type(error).__name__} {error}; "
            "give one of the mattersim package"
        ) from None
    return Potential(params, model, name)


def parameters(state: Mapping[str, np.ndarray], blocks: int, width: int) -> dict[str, Any]:
    """Parameters of `jaxpto.models.mattersim` from a state dict of the mattersim package.

    atom_embedding [elements, d]; edge_embedding; blocks, stacked, as those of `jaxpto.models.m3gnet`; readout; scale
    and offset [elements]; smooth and bessel, the radial functions with the numbers that the file has rounded.

    Args:
        state: tensors by name.
        blocks: number of blocks.
        width: d, of the features.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor is left over, or has another shape than belongs there.
    """
    left = {key: np.asarray(array) for key, array in state.items()}

    def take(key: str, *shape: int) -> np.ndarray:
        array = left.pop(key)
        if array.shape != shape:
            raise ValueError(f"{key} has the shape {array.shape}, not {shape}")
        return array

    def linear(key: str, outputs: int, inputs: int, *, bias: bool = True) -> dict[str, np.ndarray]:
        weight = {"weight": take(f"{key}.linear.weight", outputs, inputs)}
        return weight | ({"bias": take(f"{key}.linear.bias", outputs)} if bias else {})

    def chain(key: str, *widths: int) -> dict[str, Any]:
        return {str(place): linear(f"{key}.{place}", b, a) for place, (a, b) in enumerate(itertools.pairwise(widths))}

    def gated(key: str, *widths: int) -> dict[str, Any]:
        return {"value": chain(f"{key}.g", *widths), "gate": chain(f"{key}.sigma", *widths)}

    def block(key: str) -> dict[str, Any]:
        three = f"{key}.three_body"
        maps = {"value": "g", "gate": "sigma"}
        return {
            "three_body": {"atom": linear(f"{three}.atom_mlp", _BASIS, width)}
            | {
                name: linear(f"{three}.edge_gate_mlp.{part}.0", width, _BASIS, bias=False)
                for name, part in maps.items()
            },
            "edge": gated(f"{key}.gated_mlp_edge", 3 * width, width, width)
            | {"weight": linear(f"{key}.edge_layer_edge", width, RADIAL, bias=False)},
            "node": gated(f"{key}.gated_mlp_atom", 3 * width, width, width)
            | {"weight": linear(f"{key}.edge_layer_atom", width, RADIAL, bias=False)},
        }

    rows = len(left["normalizer.scale"])
    known = list(_ELEMENTS)
    layers = [block(f"graph_conv.{number}") for number in range(blocks)]
    params = {
        "atom_embedding": take("atom_embedding.mlp.0.linear.weight", width, rows).T[known],
        "edge_embedding": linear("edge_encoder.mlp.0", width, RADIAL, bias=False),
        "blocks": jax.tree.map(lambda *parts: np.stack(parts), *layers),
        "readout": gated("final", width, width, width, 1),
        "scale": take("normalizer.scale", rows)[known],
        "offset": take("normalizer.shift", rows)[known],
        "smooth": _smooth(take),
        "bessel": _bessel(take),
    }
    if left:
        raise ValueError(f"unknown tensors {', '.join(sorted(left)[:3])}")
    return params


def _smooth(take: Any) -> dict[str, np.ndarray]:
    """Waves [5] and coefficients [4, 5] of the radial functions, by the recursion that they follow."""
    take("rbf.r_max")
    first, second = (take(f"rbf.n_{number}_pi_cutoff", 1, RADIAL)[0].astype(np.float64) for number in (1, 2))
    norm, e = (take(f"rbf.{name}", 1, RADIAL)[0].astype(np.float64) for name in ("fnr_weights", "en"))
    d = take("rbf.dn", RADIAL).astype(np.float64)
    if not np.array_equal(first[1:], second[:-1]):
        raise ValueError("rbf.n_2_pi_cutoff does not go on where rbf.n_1_pi_cutoff does")
    sines = np.zeros((RADIAL, RADIAL + 1))
    for n in range(RADIAL):
        sines[n, n : n + 2] = norm[n]
        if n:
            sines[n] = (sines[n] + math.sqrt(e[n] / d[n - 1]) * sines[n - 1]) / math.sqrt(d[n])
    return {"waves": np.append(first, second[-1]), "sines": sines}


def _bessel(take: Any) -> dict[str, np.ndarray]:
    """Zeros [16] and amplitudes [16, 4] of sines and cosines before each inverse power."""
    factor = float(take("sbf.factor"))
    table = take("sbf.coef", HIGHEST + 1, 9, RADIAL).astype(np.float64)
    zeros = np.stack([table[0, 0], *(table[degree, 1] for degree in range(1, HIGHEST + 1))])
    for degree in range(1, HIGHEST + 1):
        if not (table[degree, 1 : 2 * degree + 2 : 2] == zeros[degree]).all():
            raise ValueError("sbf.coef has several zeros for one function")
    sines, cosines = (np.zeros((HIGHEST + 1, RADIAL, HIGHEST + 1)) for _ in range(2))
    sines[0, :, 0] = 1.0
    for amplitudes, terms in ((sines, _SINES), (cosines, _COSINES)):
        for degree, power, place, sign in terms:
            amplitudes[degree, :, power - 1] = sign * table[degree, place]
    shape = (_BASIS, HIGHEST + 1)
    return {
        "zeros": zeros.reshape(-1),
        "sines": factor * sines.reshape(shape),
        "cosines": factor * cosines.reshape(shape),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("converters.mattersim", MatterSimConfig, _report, argv)


def _report(config: MatterSimConfig) -> None:
    print(f"model written to {run(config)}")


if __name__ == "__main__":
    sys.exit(main())
