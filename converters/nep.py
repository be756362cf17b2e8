"""COMMAND: convert a NEP file, as GPUMD, NEP_CPU and calorine read it, into a jaxpto model."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import ase.data
import numpy as np
import tyro

from converters.pickles import CheckpointError
from converters.sources import find_checkpoint, refuse_stand_in, sha256_of
from jaxpto.console.command import run_command
from jaxpto.models.catalogue import user_folder
from jaxpto.models.charged_nep import ChargedNEP, charged
from jaxpto.models.folder import save_potential
from jaxpto.models.manifest import published_models
from jaxpto.models.nep import NEP
from jaxpto.models.nep_file import parameters_of
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_folder

PUBLISHED = "nep89"
LARGEST = 200 * 2**20  # bytes of a file; NEP89 has 15 MiB
KIND = re.compile(r"nep(?P<version>3|4)(?P<repulsion>_zbl)?(_charge(?P<mode>[12]))?")
REMEDIES = {
    "vdw": "models with a van der Waals term are not supported",
    "charge": "of models with charges, NEP4 with mode 1 or 2 is supported",
    "temperature": "models with an electronic temperature are not supported",
    "dipole": "models of dipoles are no force fields",
    "polarizability": "models of polarizabilities are no force fields",
}


@dataclasses.dataclass(frozen=True)
class NepConfig:
    """Convert NEP89, or a NEP file of your own, into a jaxpto model, which --model NAME then finds."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """A nep.txt that GPUMD wrote: NEP3, NEP4 or qNEP. Default: that of NEP89, found or downloaded."""
    out: Path | None = None
    """Model folder to write. Default: the name of the file (nep89) in the folder of the user's models."""


def run(config: NepConfig) -> Path:
    """Convert; returns the model folder.

    Raises:
        CheckpointError: no file, or one that is damaged, not NEP, or of a kind that is not supported.
        StorageError: the disk refuses the write.
    """
    if config.file is None or _is_published(config.file):
        checkpoint = find_checkpoint(PUBLISHED, config.file)
        (path,), header = checkpoint.paths.values(), checkpoint.header()
        folder = config.out or user_folder() / PUBLISHED
    else:
        path, folder = config.file, config.out or user_folder() / config.file.stem
        if path.is_file():
            refuse_stand_in(path)
        header = {"source": f"NEP file {path.name} given by the user", "published": False}
        if folder.name == PUBLISHED and path.is_file():
            raise CheckpointError(f"{path} is not the published {PUBLISHED}; name the model by --out")
    check_output_folder(folder, resume=True)
    potential = convert(path, folder.name)
    save_potential(potential, folder, {"source_sha256": {path.name: sha256_of(path)}} | header)
    return folder


def _is_published(path: Path) -> bool:
    (file,) = published_models()[PUBLISHED].files
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256


def convert(path: Path, name: str) -> Potential:
    """The potential in a file.

    Raises:
        CheckpointError: there is none, or it is damaged, not NEP, or of a kind that is not supported.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise CheckpointError(f"{path} has more than {LARGEST >> 20} MiB; no NEP file is that large")
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is no text file; give a nep.txt that GPUMD wrote") from None
    model, rest = _read_header(path, [line.split() for line in lines])
    try:
        numbers = np.array([float(word) for line in rest for word in line])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; the file is damaged") from None
    wanted = sum(int(np.prod(shape)) for shape in model.shapes.values())
    if len(numbers) != wanted:
        raise CheckpointError(f"{path} has {len(numbers)} parameters, not the {wanted} of its header; it is damaged")
    if not np.isfinite(numbers).all():
        raise CheckpointError(f"{path} has parameters that are not finite; it is damaged")
    return Potential(parameters_of(model, numbers), model, name)


def _read_header(path: Path, lines: list[list[str]]) -> tuple[NEP | ChargedNEP, list[list[str]]]:
    """The model that the first lines describe, and the lines after them."""
    if not lines or not lines[0] or not re.fullmatch(r"nep\d?\w*", lines[0][0]):
        raise CheckpointError(f"{path} does not begin like a NEP file; give a nep.txt that GPUMD wrote")
    kind, count, *symbols = lines[0]
    match = KIND.fullmatch(kind)
    mode = int(match["mode"] or 0) if match else 0
    if match is None or (mode and match["version"] != "4"):
        why = next((text for word, text in REMEDIES.items() if word in kind), "give a file of NEP3 or NEP4")
        raise CheckpointError(f"{path} is of the kind {kind}: {why}")
    try:
        elements = tuple(ase.data.atomic_numbers[symbol] for symbol in symbols)
        if len(elements) != int(count) or len(set(elements)) < len(elements):
            raise ValueError(f"{count} elements, but {len(set(elements))} names")
        names = (*(("zbl",) if match["repulsion"] else ()), "cutoff", "n_max", "basis_size", "l_max", "ANN")
        given = {}
        for name, words in zip(names, lines[1:], strict=False):
            if words[:1] != [name]:
                raise ValueError(f"{' '.join(words)} where {name} should be")
            given[name] = [float(word) for word in words[1:]]
        model = _model(elements, given, one_net=match["version"] == "3", mode=mode)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path}: a header that is not understood ({error}); give a file of NEP3 or NEP4"
        ) from None
    return model, lines[1 + len(names) :]


def _model(elements: tuple[int, ...], given: dict[str, list[float]], *, one_net: bool, mode: int) -> NEP | ChargedNEP:
    whole = {name: [int(value) for value in given[name]] for name in ("n_max", "basis_size", "l_max", "ANN")}
    if len(given["cutoff"]) > 4:
        raise ValueError("cutoffs of single elements or pairs")
    if given["cutoff"][1] > given["cutoff"][0]:
        raise ValueError("an angular cutoff beyond the radial cutoff")
    repulsion = tuple(given.get("zbl", ())[:2])
    if repulsion and (len(given["zbl"]) > 2 or repulsion[1] <= repulsion[0]):
        raise ValueError("a flexible or typewise zbl")
    highest, four, five = (*whole["l_max"], 0, 0)[:3]
    if not 1 <= highest <= 4 or four not in (0, 2) or five not in (0, 1):
        raise ValueError(f"l_max {whole['l_max']}")
    local = NEP(
        elements,
        cutoff=given["cutoff"][0],
        angular_cutoff=given["cutoff"][1],
        radial=whole["n_max"][0] + 1,
        angular=whole["n_max"][1] + 1,
        radial_basis=whole["basis_size"][0] + 1,
        angular_basis=whole["basis_size"][1] + 1,
        highest=highest,
        four_body=four > 0,
        five_body=five > 0,
        hidden=whole["ANN"][0],
        one_net=one_net,
        repulsion=repulsion,
    )
    return charged(local, mode) if mode else local


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("converters.nep", NepConfig, _report, argv)


def _report(config: NepConfig) -> None:
    print(f"model written to {run(config)}")


if __name__ == "__main__":
    sys.exit(main())
