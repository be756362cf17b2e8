"""Named arrays and metadata in one file that is replaced atomically; damage is noticed on reading."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpto.storage.files import replacing

_META = "meta"


class DamagedError(ValueError):
    """Raised when a file is not what `write_arrays` wrote; the message is the reason in one line, without the path."""


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], previous: Path | None = None
) -> None:
    """Write arrays and metadata to an .npz file, atomically and durably.

    Args:
        path: the file to create or replace; its folder must exist.
        arrays: arrays by name; no name may be "meta".
        meta: JSON values.
        previous: name under which a replaced file is kept.

    Raises:
        StorageError: the write fails; the file is then unchanged.
    """
    needed = sum(array.nbytes for array in arrays.values())
    with replacing(path, needed) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, **{**arrays, _META: np.array(json.dumps(meta))})  # ty: ignore[invalid-argument-type]
        if previous is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, previous)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read arrays and metadata and check them against their checksums.

    Raises:
        DamagedError: the file is missing, damaged or something else.
    """
    try:
        with np.load(path) as stored:
            meta = json.loads(str(stored[_META]))
            return {name: stored[name] for name in stored.files if name != _META}, meta
    except FileNotFoundError:
        raise DamagedError("there is no such file") from None
    except Exception as error:  # a damaged archive raises whatever its bytes lead to
        reason = " ".join(str(error).split())[:160]
        raise DamagedError(f"damaged ({reason})" if reason else "damaged") from error
