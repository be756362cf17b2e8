"""Checks, before anything is computed, that a command will be able to write its output."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from jaxpto.errors import InputError
from jaxpto.storage.lock import is_empty

_INSIDE = 160  # characters of the longest path that a command makes inside its output folder
_BESIDE = len(".partial-")  # what a file is called while it is written


def check_output_folder(out: str | Path, *, resume: bool = False, called: str = "") -> None:
    """Refuse an output folder that cannot be written or is in use; nothing is written to find out.

    Args:
        out: the folder, which need not exist.
        resume: whether the command goes on with what it holds.
        called: what the message calls it; the setting `out` where this is empty.

    Raises:
        InputError: a file, a folder that is not empty (without `resume`), or a place where nothing can be written.
    """
    out = Path(out)
    name = f"{called} {out}" if called else f"`out={out}`"
    _check_place(out, name, os.path.join(out, "x" * 32, "x" * (_INSIDE - 34)))
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"{name} is a file; name a folder")
    try:
        used = out.is_dir() and not is_empty(out)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}; name another folder") from None
    if used and not resume:
        raise InputError(f"{name} exists and is not empty; name a new folder")


def check_output_file(path: str | Path, *, overwrite: bool = False, remedy: str = "remove it") -> None:
    """Refuse an output file that cannot be written or exists; nothing is written to find out.

    Args:
        path: the file.
        overwrite: whether an existing one is replaced.
        remedy: what to do about an existing one.

    Raises:
        InputError: a folder, an existing file (without `overwrite`), or a place where nothing can be written.
    """
    path = Path(path)
    _check_place(path, f"output {path}", path.with_name("x" * (_BESIDE + len(os.fsencode(path.name)))))
    if path.is_dir():
        raise InputError(f"output {path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise InputError(f"output {path} exists; choose another name, or {remedy}")
    parent = path.absolute().parent
    if path.exists() and not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"output {path} cannot be written: {_why(parent)}; choose another place")


def _check_place(path: Path, subject: str, longest: str | Path) -> None:
    """Refuse a path below a file or a dangling link, one that is too long, and one that this user may not write."""
    path = path.absolute()
    try:
        for place in (path, longest):
            _lstat(place)
    except OSError as error:
        raise InputError(f"{subject} cannot be written: {_reason(error)}; choose another place") from None
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise InputError(
                f"{subject} cannot be written: {place} is a link to {os.readlink(place)}, which does not exist; "
                "mend the link or choose another place"
            )
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if nearest != path and not nearest.is_dir():
        raise InputError(f"{subject} cannot be written: {nearest} is a file; choose another place")
    if not os.access(nearest, os.W_OK | (os.X_OK if nearest.is_dir() else 0)):
        raise InputError(f"{subject} cannot be written: {_why(nearest)}; choose another place")


def _lstat(path: str | Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # said of the path's parts, by name
        os.lstat(path)


def _reason(error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return "the name is too long"
    return os.strerror(error.errno or 0).lower() or str(error)


def _why(place: Path) -> str:
    read_only = bool(os.statvfs(place).f_flag & os.ST_RDONLY)
    return f"{place} is on a read-only disk" if read_only else f"no permission to write in {place}"
