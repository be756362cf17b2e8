"""Training data: DeePMD npy folders and extended-xyz files, cleaned, split by trajectory blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ase
import ase.data
import ase.io
import numpy as np

from jaxpto.errors import InputError

COLUMNS = ("positions", "cells", "energies", "forces", "virials")


@dataclasses.dataclass(frozen=True)
class Frames:
    """Labelled frames of one trajectory (numpy, float64).

    Attributes:
        name: of the folder or file.
        numbers: [n] atomic numbers.
        positions: [f, n, 3] Angstrom.
        cells: [f, 3, 3] Angstrom.
        energies: [f] eV.
        forces: [f, n, 3] eV / Angstrom.
        virials: [f, 3, 3] eV, -dE/dstrain; NaN where there is none.
    """

    name: str
    numbers: np.ndarray
    positions: np.ndarray
    cells: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    virials: np.ndarray

    def __len__(self) -> int:
        return len(self.energies)

    def __getitem__(self, index: np.ndarray) -> Frames:
        return Frames(
            self.name,
            self.numbers,
            *(getattr(self, k)[index] for k in COLUMNS),
        )


def read(path: Path) -> list[Frames]:
    """Read a DeePMD folder (type.raw, type_map.raw, set.*/*.npy), a folder of such folders, or a file that ASE reads.

    Raises:
        InputError: the path is none of these, or is incomplete.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "type.raw").exists():
            return [read_deepmd(path)]
        inside = sorted(p.parent for p in path.glob("*/type.raw"))
        if not inside:
            raise InputError(f"{path}: no type.raw in it or its folders; give a DeePMD npy folder or an extxyz file")
        return [read_deepmd(p) for p in inside]
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a DeePMD npy folder or an extxyz file")
    return read_ase(path)


def read_deepmd(folder: Path) -> Frames:
    """Read one DeePMD npy folder.

    Raises:
        InputError: a file is missing, unreadable or of the wrong shape.
    """
    try:
        kinds = np.loadtxt(folder / "type.raw", dtype=int, ndmin=1)
        names = (folder / "type_map.raw").read_text().split()
        numbers = np.array([ase.data.atomic_numbers[names[k]] for k in kinds])
        sets = sorted(folder.glob("set.*"))
        if not sets:
            raise InputError(f"{folder}: no set.* folder in it; a DeePMD folder has at least set.000")
        n = len(numbers)

        def column(name: str, *shape: int) -> np.ndarray:
            return np.concatenate([np.load(s / f"{name}.npy").reshape(-1, *shape) for s in sets]).astype(np.float64)

        energies = column("energy")
        virials = (
            column("virial", 3, 3)
            if all((s / "virial.npy").exists() for s in sets)
            else np.full((len(energies), 3, 3), np.nan)
        )
        frames = Frames(
            folder.name, numbers, column("coord", n, 3), column("box", 3, 3), energies, column("force", n, 3), virials
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: not a readable DeePMD folder ({error}); repair or leave it out") from error
    lengths = {len(a) for a in (frames.positions, frames.cells, frames.energies, frames.forces, frames.virials)}
    if len(lengths) > 1:
        raise InputError(f"{folder}: its arrays hold {sorted(lengths)} frames; they must agree")
    return frames


def read_ase(path: Path) -> list[Frames]:
    """Read a file with energies and forces (stress optional); frames of equal atomic numbers make one trajectory.

    Raises:
        InputError: it is unreadable, or a frame lacks energy or forces.
    """
    try:
        images = ase.io.read(path, index=":")
    except Exception as error:  # ASE's readers raise whatever they like
        why = str(error) or type(error).__name__
        raise InputError(f"{path}: unreadable ({why}); give a DeePMD npy folder or an extxyz file") from error
    groups: dict[tuple[int, ...], list[tuple]] = {}
    for number, atoms in enumerate(images):
        results = atoms.calc.results if atoms.calc is not None else {}
        if "energy" not in results or "forces" not in results:
            raise InputError(f"{path}: frame {number} has no energy or no forces; label it or leave it out")
        stress = atoms.get_stress(voigt=False) if "stress" in results else np.full((3, 3), np.nan)
        groups.setdefault(tuple(atoms.numbers.tolist()), []).append(
            (atoms.positions, atoms.cell.array, results["energy"], results["forces"], -stress * atoms.get_volume())
        )
    return [
        Frames(
            path.stem if len(groups) == 1 else f"{path.stem}-{g}",
            np.array(numbers),
            *(np.array(column, float) for column in zip(*rows, strict=True)),
        )
        for g, (numbers, rows) in enumerate(groups.items())
    ]


def clean(frames: Frames, largest_force: float = 100.0) -> Frames:
    """Drop frames with a label or coordinate that is not finite, an inverted cell, or an absurd force (eV / Angstrom).

    Frames that are merely wrong stay: the loss is robust against them.
    """
    f = len(frames)
    good = np.isfinite(frames.energies) & (np.linalg.det(frames.cells) > 0)
    for a in (frames.positions, frames.cells, frames.forces):
        good &= np.isfinite(a.reshape(f, -1)).all(1)
    good &= np.abs(np.nan_to_num(frames.forces)).reshape(f, -1).max(1) < largest_force
    return frames[np.flatnonzero(good)]


def split(frames: Frames, blocks: int = 20, held_out: tuple[int, ...] = (6, 13)) -> tuple[Frames, Frames]:
    """Training and validation frames: whole contiguous blocks are held out, for neighbouring frames are correlated."""
    block = np.arange(len(frames)) * blocks // max(1, len(frames))
    out = np.isin(block, held_out)
    return frames[np.flatnonzero(~out)], frames[np.flatnonzero(out)]


def join(parts: list[Frames]) -> Frames:
    """Concatenate trajectories with the same atoms."""
    return Frames(
        parts[0].name,
        parts[0].numbers,
        *(np.concatenate([getattr(p, k) for p in parts]) for k in COLUMNS),
    )
