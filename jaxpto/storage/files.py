"""Atomic writes: whenever the process dies, a file holds the old content or the new, never half of either."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CODE_IN_TEXT = re.compile(r"(?:errno = |OS error )(\d+)")  # how HDF5 and TensorStore report the system's error code


class StorageError(RuntimeError):
    """Raised when a write fails; the message is one line with the path, the bytes needed and the remedy."""


def storage_error(path: Path, error: BaseException, needed: int = 0) -> StorageError:
    """The error for a failed write, worded in one line.

    Args:
        path: the file or folder that was being written.
        error: what the system or a library raised.
        needed: bytes the write needs, 0 if unknown.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (found := _CODE_IN_TEXT.search(str(error))):
        code = int(found[1])
    reason = os.strerror(code) if code else str(error).strip().partition("\n")[0][:200]
    size = f" ({needed / 1e6:.1f} MB needed)" if needed else ""
    remedy = "free space" if code is None or code in NO_ROOM else "make the place writable"
    return StorageError(
        f"{path}: could not be written{size}: {reason}; {remedy} and run again (a sweep with `resume=True`); "
        "what was saved before is intact"
    )


@contextlib.contextmanager
def replacing(path: str | Path, needed: int = 0) -> Generator[Path]:
    """Hand out a temporary path with the same suffix, and replace `path` atomically with the file written there.

    The new file is on the disk (fsync) before it takes the name. If the body raises, `path` stays unchanged and the
    temporary file is removed; after a kill a file `.partial-NAME` may stay behind, which the next write overwrites.

    Args:
        path: the file to create or replace; its folder must exist.
        needed: bytes it will take, for the message when it cannot be written; 0 if unknown.

    Raises:
        StorageError: an OSError came out of the body or of the replacement (disk full, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".partial-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(path, error, needed) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically and durably (see `replacing`)."""
    with replacing(path, len(text)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically and durably; arrays become lists, NaN and infinities become null (strict JSON)."""
    write_text_atomic(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def sync_directory(path: Path) -> None:
    """Make the names in a folder durable, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        return _plain(np.asarray(value).tolist())
    return value
