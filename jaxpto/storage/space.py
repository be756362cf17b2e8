"""Check, before the first byte is written, that a run will fit on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from jaxpto.errors import InputError

RESERVE = 4 << 20  # bytes for config.json, figures and report: some 1.5 MB for eight temperatures


def require_space(folder: Path, needed: int, what: str, present: Iterable[Path] = ()) -> None:
    """Refuse a run that the disk cannot hold.

    Args:
        folder: output folder, which need not exist.
        needed: bytes of the whole run.
        what: what these bytes are, for the message.
        present: existing files that count towards these bytes.

    Raises:
        InputError: less is free than the run still needs.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError:  # no such figure here; the disk itself will tell
        return
    # what a sparse file promises is not yet taken: blocks count, not lengths
    taken = sum(path.stat().st_blocks * 512 for path in present if path.is_file())
    missing = needed - taken
    if missing + RESERVE > free > 0 or free == 0 < missing:
        already = f", {taken / 1e6:.0f} MB of it already there" if taken else ""
        room = f"{RESERVE / 1e6:.0f} MB for figures and report"
        raise InputError(
            f"`out={folder}`: the run takes {(needed + RESERVE) / 1e6:.0f} MB ({what}, {room}){already}, "
            f"{free / 1e6:.0f} MB are free; "
            "free space, name a place with more, or store less with `sample_every` or `steps`"
        )
