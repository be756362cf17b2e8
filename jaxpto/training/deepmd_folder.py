"""Training data in DeePMD npy folders, including the mixed type format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import ase.data
import numpy as np

from jaxpto.errors import InputError
from jaxpto.training.frames import LabelledFrames, Row, group_by_composition

USED = ("box", "coord", "energy", "force", "virial", "real_atom_types")


def read_deepmd(folder: Path, say: Callable[[str], None]) -> list[LabelledFrames]:
    """Read one DeePMD npy folder, one trajectory for each composition in it; see `deepmd_rows`."""
    return group_by_composition(folder.name, deepmd_rows(folder, say))


def deepmd_rows(folder: Path, say: Callable[[str], None]) -> list[Row]:
    """The frames of one DeePMD npy folder (type.raw, type_map.raw and set.*/*.npy), in the order of the folder.

    In the mixed type format `real_atom_types.npy` holds the types of every frame, each of its own composition, and
    type -1 marks the virtual atoms that fill smaller frames up; they are left out.

    Args:
        folder: the folder.
        say: called with a line about everything that is not used.

    Raises:
        InputError: frames that are not periodic, or a file that is missing, unreadable or of the wrong shape.
    """
    if (folder / "nopbc").exists():
        raise InputError(
            f"{folder}: its file nopbc says that the frames are not periodic, and the model is for crystals; "
            "leave it out, or give the molecules a cell with vacuum and remove nopbc"
        )
    try:
        return list(_rows(folder, say))
    except (OSError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: not a readable DeePMD folder ({error}); repair or leave it out") from error


def _rows(folder: Path, say: Callable[[str], None]) -> Iterator[Row]:
    kinds = np.loadtxt(folder / "type.raw", dtype=int, ndmin=1)
    names = (folder / "type_map.raw").read_text().split()
    unknown = [name for name in names if name not in ase.data.atomic_numbers]
    if unknown:
        raise InputError(f"{folder}: type_map.raw names {', '.join(unknown)}, no element; write symbols as in Pb Ti O")
    sets = sorted(folder.glob("set.*"))
    if not sets:
        raise InputError(f"{folder}: no set.* folder in it; a DeePMD folder has at least set.000")
    without_cell = [s.name for s in sets if not (s / "box.npy").exists()]
    if without_cell:
        raise InputError(f"{folder}: no box.npy in {', '.join(without_cell)}; frames without a cell cannot be used")
    n = len(kinds)
    energies = _column(sets, "energy")
    columns = {
        "real_atom_types": _types(folder, sets, kinds),
        "coord": _column(sets, "coord", n, 3),
        "box": _column(sets, "box", 3, 3),
        "energy": energies,
        "force": _column(sets, "force", n, 3),
    }
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"{folder}: its arrays hold different numbers of frames ({said}); they must agree")
    virials = _virials(folder, sets, say)
    if len(virials) != len(energies):
        raise InputError(f"{folder}: virial has {len(virials)} frames, energy {len(energies)} frames; they must agree")
    unused = sorted({file.stem for s in sets for file in s.glob("*.npy")} - set(USED))
    if unused:
        say(f"{folder.name}: not used: {', '.join(unused)}")
    types = columns["real_atom_types"]
    if types.min(initial=0) < -1 or types.max(initial=0) >= len(names):
        raise InputError(
            f"{folder}: types from {types.min()} to {types.max()}; type_map.raw has {len(names)} names, so they must "
            f"lie between 0 and {len(names) - 1}, or be -1 for virtual atoms"
        )
    empty = (types < 0).all(axis=1)
    if empty.any():
        raise InputError(f"{folder}: frame {np.argmax(empty)} holds virtual atoms only; leave it out")
    numbers = np.array([ase.data.atomic_numbers[name] for name in names])
    for f, energy in enumerate(energies):
        real = types[f] >= 0
        yield (
            numbers[types[f][real]],
            columns["coord"][f][real],
            columns["box"][f],
            energy,
            columns["force"][f][real],
            virials[f],
            np.full(real.sum(), np.nan),
        )


def _column(sets: list[Path], name: str, *shape: int) -> np.ndarray:
    return np.concatenate([np.load(s / f"{name}.npy").reshape(-1, *shape) for s in sets]).astype(np.float64)


def _types(folder: Path, sets: list[Path], kinds: np.ndarray) -> np.ndarray:
    """[f, n] indices into type_map.raw, of every frame."""
    mixed = [s for s in sets if (s / "real_atom_types.npy").exists()]
    if mixed and len(mixed) < len(sets):
        lacking = ", ".join(s.name for s in sets if s not in mixed)
        raise InputError(f"{folder}: mixed type format, but no real_atom_types.npy in {lacking}; add or remove them")
    if mixed:
        return _column(mixed, "real_atom_types", len(kinds)).astype(int)
    return np.tile(kinds, (sum(len(np.load(s / "energy.npy").reshape(-1)) for s in sets), 1))


def _virials(folder: Path, sets: list[Path], say: Callable[[str], None]) -> np.ndarray:
    """[f, 3, 3], NaN for the frames of a set without."""
    without = [s.name for s in sets if not (s / "virial.npy").exists()]
    if without and len(without) < len(sets):
        say(f"{folder.name}: no virials in {', '.join(without)}")
    return np.concatenate(
        [
            np.full((len(np.load(s / "energy.npy").reshape(-1)), 3, 3), np.nan)
            if s.name in without
            else _column([s], "virial", 3, 3)
            for s in sets
        ]
    )
