"""Folders that only their owner can write to, for files that are executed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


def own_folder(folder: Path) -> str:
    """Make a folder private to this user; an existing one that others could write to is refused.

    Args:
        folder: the folder; its parents are made too.

    Returns:
        "", or one line with the folder, the reason and the remedy.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if hasattr(os, "getuid") and found.st_uid == os.getuid() and not found.st_mode & _WRITABLE:
            folder.chmod(0o700)  # a umask may let others write to the files in it
    except OSError as error:
        return f"{folder} cannot be used: {error.strerror or error}"
    if not hasattr(os, "getuid"):  # no such owners and modes on this system
        return ""
    if found.st_uid != os.getuid():
        return f"{folder} belongs to another user; name a folder of your own in JAX_COMPILATION_CACHE_DIR"
    if found.st_mode & _WRITABLE:
        return f"{folder} could be written to by others; remove it"
    return ""
