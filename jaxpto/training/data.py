"""Training data: DeePMD npy folders and files that ASE reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxpto.errors import InputError
from jaxpto.training.deepmd_folder import read_deepmd
from jaxpto.training.frames import (
    COLUMNS,
    LabelledFrames,
    Row,
    clean,
    faults,
    group_by_composition,
    hold_out_blocks,
    join,
    training_rows,
    usable,
)
from jaxpto.training.labelled_files import read_ase

__all__ = [
    "COLUMNS",
    "LabelledFrames",
    "Row",
    "clean",
    "deepmd_folders",
    "faults",
    "group_by_composition",
    "hold_out_blocks",
    "join",
    "read",
    "training_rows",
    "usable",
]


def read(path: Path, say: Callable[[str], None] = print) -> list[LabelledFrames]:
    """Read a DeePMD folder (type.raw, type_map.raw, set.*/*.npy), a folder of such folders, or a file that ASE reads.

    Args:
        path: the file or folder.
        say: called with a line about everything that is left out or not used.

    Raises:
        InputError: the path is none of these, or `read_deepmd` or `read_ase` refuses it.
    """
    path = Path(path)
    if path.is_dir():
        folders = deepmd_folders(path)
        if not folders:
            raise InputError(f"{path}: no type.raw in it or its folders; give a DeePMD npy folder or an extxyz file")
        return [frames for folder in folders for frames in read_deepmd(folder, say)]
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a DeePMD npy folder or an extxyz file")
    return read_ase(path, say)


def deepmd_folders(path: Path) -> list[Path]:
    """The DeePMD npy folders (those with a type.raw) that a path names: itself, or the ones in it, sorted by name."""
    if (path / "type.raw").exists():
        return [path]
    return sorted(inside.parent for inside in path.glob("*/type.raw"))
