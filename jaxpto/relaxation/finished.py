"""Outcomes that a relaxation stores as soon as each structure is finished, to go on from after an interrupt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from jaxpto.errors import InputError
from jaxpto.relaxation.target import History, Relaxed, with_results
from jaxpto.storage.arrays import DamagedError, read_arrays, write_arrays
from jaxpto.storage.identity import differences
from jaxpto.storage.output import check_output_folder

FOLDER = "finished"
HISTORY = tuple(field.name for field in dataclasses.fields(History))


def check_begun(folder: Path, *, resume: bool) -> bool:
    """Whether the output folder holds a run to go on with; without `resume` it must be empty.

    Raises:
        InputError: it is a file, in use, or holds other things.
    """
    check_output_folder(folder, resume=True)
    inside = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
    if not inside:
        return False
    if not resume:
        raise InputError(
            f"`out={folder}` exists and is not empty; name a new folder, or `resume=True` to finish its run"
        )
    if not (folder / "config.json").exists():
        raise InputError(
            f"`resume=True`: {folder} holds no config.json of a relaxation; restore it or name a new folder"
        )
    return True


def check_same(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse to go on with a relaxation that had other settings, structures or model.

    Raises:
        InputError: the message names every difference.
    """
    stored = folder / "config.json"
    try:
        changes = differences(json.loads(stored.read_text())["identity"], identity, "structure")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{stored} is damaged or of an earlier version; restore it or name a new `out`") from None
    if changes:
        raise InputError(
            f"`resume=True` with changed settings: {'; '.join(changes)}; resume with what {stored} says, or name a new "
            "`out`"
        )


def keep(folder: Path, name: str, relaxed: Relaxed) -> None:
    """Write the outcome of one structure to folder/finished/NAME.npz, atomically.

    Raises:
        StorageError: the write fails.
    """
    assert relaxed.atoms.calc is not None
    results = relaxed.atoms.calc.results
    arrays = {"positions": relaxed.atoms.positions, "cell": relaxed.atoms.cell.array}
    arrays |= {key: np.asarray(results[key]) for key in ("energy", "forces", "stress") if key in results}
    arrays |= {f"history_{column}": getattr(relaxed.history, column) for column in HISTORY}
    meta = {field: getattr(relaxed, field) for field in ("converged", "steps", "reason", "pressure")}
    (folder / FOLDER).mkdir(exist_ok=True)
    write_arrays(folder / FOLDER / f"{name}.npz", arrays, meta)


def load_kept(
    folder: Path, names: Sequence[str], starts: Sequence[ase.Atoms], say: Callable[[str], None]
) -> dict[int, Relaxed]:
    """The outcomes that `keep` wrote, by index into the names; damaged ones are reported and left out.

    Args:
        folder: output folder.
        names: names of all structures.
        starts: the structures as read; elements and metadata come from them.
        say: called with a line about each damaged file.
    """
    found: dict[int, Relaxed] = {}
    for index, (name, start) in enumerate(zip(names, starts, strict=True)):
        path = folder / FOLDER / f"{name}.npz"
        if not path.exists():
            continue
        try:
            found[index] = _outcome(start, *read_arrays(path))
        except (DamagedError, KeyError, ValueError, TypeError) as error:
            say(f"{path}: {error}; this structure is relaxed again")
    return found


def _outcome(start: ase.Atoms, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Relaxed:
    atoms = start.copy()
    atoms.set_cell(arrays["cell"])
    atoms.positions[:] = arrays["positions"]
    stress = voigt_6_to_full_3x3_stress(arrays["stress"]) if "stress" in arrays else None
    return Relaxed(
        atoms=with_results(atoms, float(arrays["energy"]), arrays["forces"], stress),
        history=History(*(arrays[f"history_{column}"] for column in HISTORY)),
        **meta,
    )
