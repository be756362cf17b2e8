"""A model folder: writing it, reading it, and finding out what is damaged.

A model is a folder with a readable `model.json` and its parameters (Orbax). `model.json` names the parameter folder by
the digest of its content and is replaced last, in one rename: whenever a save is interrupted, the folder holds the old
model or the new one, never half of each. The other members of a committee (`models.committee`) lie in `committee/` in
the same way; who only wants the model never reads them.

Everything in `model.json` that decides an energy, the digest of the parameters included, is under one digest again, and
both are compared when a model is loaded. What they cannot tell, because somebody saved it so, `models.check` finds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import ase.data
import jax
import numpy as np
from jax.typing import DTypeLike

from jaxpto.errors import InputError
from jaxpto.models.check import MisfitError, build_model, check_cutoff, check_model, check_shapes, check_values
from jaxpto.models.manifest import architecture_of, architectures
from jaxpto.potential import Potential
from jaxpto.storage.alone import tree_checkpointer
from jaxpto.storage.output import check_output_folder

FORMAT_VERSION = 2
# Version 1 has no digest of the header; its `digest` is that of the parameters.
READ_VERSIONS = (1, 2)
# What the digest of version 2 is of. Everything else in model.json only describes the model.
DECISIVE = (
    "architecture",
    "conservative",
    "elements",
    "cutoff",
    "units",
    "n_parameters",
    "hyperparameters",
    "params_digest",
    "reference_energies_eV",
    "committee",
)
_SHA256 = "[0-9a-f]{64}"
_REMEDY = "save or copy the model again"
_UNITS = {"energy": "eV", "length": "Angstrom"}
HEADER = "model.json"
COMMITTEE = "committee"  # entry of `model.json`, and subfolder


def save_potential(
    potential: Potential,
    folder: str | Path,
    header_extra: Mapping[str, Any] | None = None,
    others: Any = None,
) -> None:
    """Save a potential as a model folder; an older model in the folder is replaced at one instant.

    Args:
        potential: its architecture must be one of the manifest's, its parameters nested dicts of arrays.
        folder: created if missing; other files in it (a model card, say) are left alone.
        header_extra: further entries of `model.json`: source, licence, citation, errors, whatever describes the model.
        others: parameters of the other members of its committee, with a leading axis; None if there are none.

    Raises:
        ValueError: unknown architecture, or an extra entry with the name of a computed one.
        InputError: `folder` is a file, or the potential would be refused when it is loaded; nothing is written then.
    """
    import orbax.checkpoint as ocp  # seconds to import, so only where it is used

    folder = Path(folder).absolute()
    check_output_folder(folder, resume=True, called="model folder")
    architecture = architecture_of(potential.model)
    arrays = jax.tree.map(np.asarray, potential.params)
    hyperparameters = dataclasses.asdict(potential.model)  # ty: ignore[invalid-argument-type]
    try:
        build_model(architecture, type(potential.model), hyperparameters)
        check_model(potential.model, potential.conservative)
        check_values(arrays)
        check_shapes(potential.model, arrays)
        further = None if others is None else jax.tree.map(np.asarray, others)
        _check_members(potential.model, further)
    except MisfitError as error:
        raise InputError(f"model {potential.name} is not saved to {folder}: {error}; make it again") from error
    digest = _digest(arrays)
    params_folder = f"params-{digest[:12]}"
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "name": potential.name,
        "conservative": potential.conservative,
        "elements": [ase.data.chemical_symbols[z] for z in potential.elements],
        "cutoff": potential.cutoff,
        "units": _UNITS,
        "n_parameters": int(sum(leaf.size for leaf in jax.tree.leaves(arrays))),
        "hyperparameters": hyperparameters,
        "params": params_folder,
        "params_digest": digest,
        "digest": "",
        "source": "",
        "licence": "",
        "citation": "",
    }
    described = ("source", "licence", "citation")
    stored = {params_folder: arrays}
    if further is not None:
        digest = _digest(further)
        header[COMMITTEE] = {"members": 1 + _count(further), "params": f"params-{digest[:12]}", "params_digest": digest}
        stored[f"{COMMITTEE}/{header[COMMITTEE]['params']}"] = further
    clash = sorted(set(header_extra or {}) & (set(header) - set(described)))
    if clash:
        raise ValueError(f"entries {clash} of model.json are computed; rename them in header_extra")
    header |= header_extra or {}

    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".saving-*"):  # by a process that was killed; two do not write one model at a time
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder / f".saving-{uuid.uuid4().hex}"
    try:
        for name, content in stored.items():
            with tree_checkpointer() as checkpointer:
                checkpointer.save(temporary / name, args=ocp.args.PyTreeSave(content))
            marker = temporary / name / "commit_success.txt"
            if marker.exists():  # only its existence counts, and Orbax writes the path on this machine into it
                marker.write_text("complete\n")
            if not _holds(folder / name, _digest(content)):  # what is whole stays: a model may depend on it
                shutil.rmtree(folder / name, ignore_errors=True)
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(temporary / name, folder / name)
        _write_header(folder, header, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in (*folder.glob("params-*"), *folder.glob(f"{COMMITTEE}/params-*")):
        if old.relative_to(folder).as_posix() not in stored:
            shutil.rmtree(old, ignore_errors=True)
    if further is None and (folder / COMMITTEE).is_dir():
        with contextlib.suppress(OSError):  # other files of the user lie there
            (folder / COMMITTEE).rmdir()


def _write_header(folder: Path, header: dict[str, Any], temporary: Path) -> None:
    """Replace `model.json` in one rename; `temporary` is a folder beside it."""
    header["digest"] = _header_digest(header)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda lst: " ".join(lst[0].split()), json.dumps(header, indent=2)) + "\n"
    (temporary / HEADER).write_text(text)
    os.replace(temporary / HEADER, folder / HEADER)


def describe_committee(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add facts to the entry `committee` of a model's `model.json`, which is replaced in one rename.

    Raises:
        InputError: what `read_header` refuses, or the model has no committee.
    """
    header = read_header(folder)
    if COMMITTEE not in header:
        raise InputError(f"model folder {folder} has no committee; train it with `committee` above 1")
    header[COMMITTEE] |= facts
    temporary = folder / f".saving-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        _write_header(folder, header, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_committee(folder: Path, header: Mapping[str, Any], model: Any, dtype: DTypeLike | None = None) -> Any:
    """Parameters [m - 1, ...] of the members that a header names beside the model itself.

    Args:
        folder: the model's.
        header: content of its `model.json`, with an entry `committee`.
        model: its architecture.
        dtype: that the parameters will be cast to.

    Raises:
        InputError: they are missing, damaged or others than those of the header.
    """
    entry = header[COMMITTEE]
    with _told(folder):
        path = folder / COMMITTEE / entry["params"]
        if not path.is_dir():
            raise MisfitError(f"{COMMITTEE}/{entry['params']} is missing")
        others = _read_params(path, entry["params_digest"])
        _check_members(model, others, dtype)
        if 1 + _count(others) != entry["members"]:
            raise MisfitError(f"{HEADER} says a committee of {entry['members']}, there are {1 + _count(others)}")
    return others


def _check_members(model: Any, others: Any, dtype: DTypeLike | None = None) -> None:
    """Refuse members with parameters that the model cannot have.

    Raises:
        MisfitError: one line.
    """
    for number in range(0 if others is None else _count(others)):
        one = jax.tree.map(lambda leaf, k=number: leaf[k], others)
        check_values(one, dtype)
        check_shapes(model, one)


def _count(others: Any) -> int:
    """Length of the leading axis."""
    return len(jax.tree.leaves(others)[0])


def read_folder(folder: Path, dtype: DTypeLike | None = None) -> tuple[dict[str, Any], Any, Any]:
    """Header, model and parameters of a folder, with which nothing is wrong.

    Args:
        folder: the model's.
        dtype: that the parameters will be cast to.
    """
    header, model = _read_header(folder)
    with _told(folder):
        arrays = _read_params(_params_folder(folder, header), header.get("params_digest", header["digest"]))
        check_values(arrays, dtype)
        count = sum(leaf.size for leaf in jax.tree.leaves(arrays))
        if count != header["n_parameters"]:
            raise MisfitError(f"{HEADER} says {header['n_parameters']} parameters, there are {count}")
        check_shapes(model, arrays)
    return header, model, arrays


def read_header(folder: Path) -> dict[str, Any]:
    """Content of `model.json`.

    Raises:
        InputError: it is unreadable, of a newer format, misses entries, has values that no model has, or has been
            changed since it was saved.
    """
    return _read_header(folder)[0]


@contextlib.contextmanager
def _told(folder: Path) -> Generator[None]:
    """What is wrong with a model is told with its folder and the remedy."""
    try:
        yield
    except MisfitError as error:
        raise InputError(f"model folder {folder} is damaged: {error}; {_REMEDY}") from error


def _read_header(folder: Path) -> tuple[dict[str, Any], Any]:
    """Content of `model.json`, and the model without its parameters."""
    with _told(folder):
        try:
            header = json.loads((folder / HEADER).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise MisfitError(f"{HEADER}: {_one_line(error)}") from error
        if not isinstance(header, dict):
            raise MisfitError(f"{HEADER} holds no entries but a {type(header).__name__}")
        version = header.get("format_version")
        if version is not None and version not in READ_VERSIONS:
            raise InputError(
                f"model folder {folder} has format version {version}, this jaxpto reads "
                f"{' and '.join(map(str, READ_VERSIONS))}; upgrade jaxpto or convert the model again"
            )
        needed = {"format_version", "digest", "params", *DECISIVE} - {"units", "reference_energies_eV", COMMITTEE}
        needed -= {"params_digest"} if version == 1 else set()
        if missing := sorted(needed - header.keys()):
            raise MisfitError(f"{HEADER} misses {', '.join(missing)}")
        if header["architecture"] not in list(architectures()):
            raise InputError(
                f"model folder {folder} has the unknown architecture '{header['architecture']}'; "
                f"known: {', '.join(architectures())}; upgrade jaxpto"
            )
        return header, _checked(header)


def _checked(header: dict[str, Any]) -> Any:
    """The model of a header, every entry of which that decides something has been looked at.

    Raises:
        MisfitError: one line.
    """
    for name, pattern in {"params": r"params-[0-9a-f]+", "digest": _SHA256, "params_digest": _SHA256}.items():
        if name in header and not (isinstance(header[name], str) and re.fullmatch(pattern, header[name])):
            raise MisfitError(f"{HEADER}: {name} is not what jaxpto writes there")
    if not isinstance(header["hyperparameters"], dict):
        raise MisfitError(f"{HEADER}: hyperparameters are no entries with names")
    check_cutoff(header["cutoff"])
    architecture = architectures()[header["architecture"]]
    model = build_model(architecture.name, architecture.kind, header["hyperparameters"])
    check_model(model, header["conservative"])
    symbols = [ase.data.chemical_symbols[z] for z in model.elements]
    for entry, value in (("elements", symbols), ("cutoff", model.cutoff)):
        if header[entry] != value:
            raise MisfitError(f"{HEADER}: {entry} and those of the hyperparameters differ")
    if header.get("units", _UNITS) != _UNITS:
        raise MisfitError(f"{HEADER}: the units are not eV and Angstrom")
    entry = header.get(COMMITTEE)
    if entry is not None:
        texts = {"params": r"params-[0-9a-f]+", "params_digest": _SHA256}
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("members"), int)
            or not all(
                isinstance(entry.get(name), str) and re.fullmatch(pattern, entry[name])
                for name, pattern in texts.items()
            )
        ):
            raise MisfitError(f"{HEADER}: {COMMITTEE} is not what jaxpto writes there")
    if header["format_version"] != 1 and _header_digest(header) != header["digest"]:
        raise MisfitError(f"{HEADER} was changed after it was saved: it does not match its own digest")
    return model


def _header_digest(header: dict[str, Any]) -> str:
    decisive = {name: header[name] for name in DECISIVE if name in header}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def check_parameters_exist(folder: Path, header: dict[str, Any]) -> None:
    """Refuse a folder without the parameters that its header names; they are not read.

    Raises:
        InputError: there are none.
    """
    with _told(folder):
        _params_folder(folder, header)


def _params_folder(folder: Path, header: dict[str, Any]) -> Path:
    path = folder / header["params"]
    if not path.is_dir():
        raise MisfitError(f"{header['params']} is missing")
    return path


def _read_params(path: Path, digest: str) -> Any:
    """The parameters in a folder.

    Raises:
        MisfitError: they are missing, damaged, or not those of the digest.
    """
    import orbax.checkpoint as ocp

    try:
        with tree_checkpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
            wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            arrays = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=wanted))
    except Exception as error:  # whatever the storage layers raise on damaged files
        raise MisfitError(f"{path.name} cannot be read ({_one_line(error)})") from error
    if _digest(arrays) != digest:
        raise MisfitError(f"the parameters do not match the digest in {HEADER}")
    return arrays


def _holds(path: Path, digest: str) -> bool:
    """Whether a folder holds the parameters of this digest, whole."""
    try:
        return path.is_dir() and bool(_read_params(path, digest))
    except MisfitError:
        return False


def _digest(arrays: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(arrays)):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
