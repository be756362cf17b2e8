"""The output folder of a free energy: new, empty, or one that the same method has begun."""

from __future__ import annotations

from pathlib import Path

from jaxpto.errors import InputError
from jaxpto.storage.lock import is_empty


def check_folder(out: Path, *, begun: bool) -> None:
    """Refuse an output folder that holds something else.

    Args:
        out: the folder, which need not exist.
        begun: whether it holds what this method leaves behind, so that the method goes on from there.

    Raises:
        InputError: a file, or a folder that is neither empty nor begun.
    """
    if out.is_file():
        raise InputError(f"--out {out} is a file; name a folder")
    if out.is_dir() and not is_empty(out) and not begun:
        raise InputError(f"--out {out} exists and holds something else; name a new folder")
