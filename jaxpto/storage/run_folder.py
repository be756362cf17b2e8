"""A run's folder before the run: whose it is, what it holds already, and what must not be overwritten."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from jaxpto.errors import InputError
from jaxpto.storage.files import sync_directory, write_json_atomic
from jaxpto.storage.output import check_output_folder
from jaxpto.storage.trajectory import valid_frames

CONFIG_FILE = "config.json"
OUTCOME_FILE = "outcome.json"
THERMO_FILE = "thermo.csv"
# what makes a folder look finished; a run that goes on removes them first
RESULTS = (OUTCOME_FILE, THERMO_FILE, "summary.json", "summary.csv", "transition.json", "report.html")
# there from the first frame to the first checkpoint, while a run that was killed has to begin anew
UNSAVED = ".no-checkpoint-yet"


def read_config(folder: Path) -> dict[str, Any] | None:
    """Content of a folder's config.json, or None where it has none.

    Raises:
        InputError: the folder is in a place that cannot be written, or the file cannot be read or is not what a run
            writes.
    """
    check_output_folder(folder, resume=True)
    path = folder / CONFIG_FILE
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; restore it or start in a new folder") from None
    except ValueError:
        raise InputError(f"{path} is damaged, not JSON in UTF-8; restore it or start in a new folder") from None
    for name in ("config", "identity"):
        if not isinstance(document, dict) or not isinstance(document.get(name), dict):
            raise InputError(f"{path} is damaged, without its entry '{name}'; restore it or start in a new folder")
    return document


def check_unclaimed(folder: Path, *, resume: bool) -> None:
    """Refuse to begin a run where it would overwrite something.

    Args:
        folder: without a config.json; need not exist.
        resume: whether the folder may hold other files.

    Raises:
        InputError: a file, a folder in use, or one with trajectories.
    """
    check_output_folder(folder, resume=resume)
    if any((folder / "trajectories").glob("*.h5md")):
        raise InputError(
            f"`out={folder}` holds trajectories but no {CONFIG_FILE}; restore it from a copy or name a new folder"
        )


def write_config(folder: Path, document: dict[str, Any]) -> str:
    """Claim a folder for a run: write config.json with `document` and a name that only this run has; returns the name.

    Raises:
        StorageError: the disk refuses the write.
    """
    run = uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / CONFIG_FILE, {"run": run} | document)
    return run


def run_name(document: dict[str, Any]) -> str:
    """The name that `write_config` gave a run; "" for one of an earlier version."""
    return str(document.get("run", ""))


def check_nothing_lost(folder: Path, trajectories: list[Path]) -> None:
    """Refuse to begin at step 0 over the frames of a run whose checkpoints are gone.

    Raises:
        InputError: there are frames, and they are not those that a killed run leaves before its first checkpoint.
    """
    if (folder / UNSAVED).exists():
        return
    for path in trajectories:
        frames = valid_frames(path) if path.exists() else 0
        if frames:
            raise InputError(
                f"{path} holds {frames} frames, but {folder / 'checkpoints'} holds no checkpoint to go on from; "
                "restore that folder from a copy, or remove the run or name a new `out` to begin anew "
                "(python -m jaxpto.report still reads a finished run)"
            )


def mark_unsaved(folder: Path) -> None:
    """Note that frames may come before a checkpoint does; `unmark_unsaved` after the first one."""
    (folder / UNSAVED).touch()
    sync_directory(folder)


def unmark_unsaved(folder: Path) -> None:
    """See `mark_unsaved`."""
    (folder / UNSAVED).unlink(missing_ok=True)


def remove_results(folder: Path) -> None:
    """Remove the files that would make the folder of a run that goes on look finished."""
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)
    sync_directory(folder)
