"""Structures to evaluate, by trajectory, with the labels that they carry, if any."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import ase
import numpy as np
from jaxtyping import Bool, Float

from jaxpto.errors import InputError
from jaxpto.structures import BUILT_IN, notes_on, read_input
from jaxpto.structures.labels import FrameLabels, energies_of, fixed_note, labels_of, unused_note
from jaxpto.system import check_atoms
from jaxpto.training.data import deepmd_folders
from jaxpto.training.deepmd_folder import deepmd_rows


@dataclasses.dataclass(frozen=True)
class LabelledTrajectory:
    """Frames of one file or DeePMD folder in their order there, of any composition, and their labels.

    Attributes:
        name: name of the folder, or of the file without its suffix; unique.
        source: the folder or file.
        frames: checked structures.
        energies: [f] eV; NaN where there is no label, as below.
        forces: [n, 3] eV/Angstrom of each frame.
        virials: [f, 3, 3] eV, -stress * volume.
        moments: [n] magnetic moments of each frame, Bohr magnetons.
        notes: one line on everything that was guessed or is not used.
    """

    name: str
    source: str
    frames: tuple[ase.Atoms, ...]
    energies: Float[np.ndarray, " f"]
    forces: tuple[Float[np.ndarray, "_ 3"], ...]
    virials: Float[np.ndarray, "f 3 3"]
    moments: tuple[Float[np.ndarray, " _"], ...]
    notes: tuple[str, ...] = ()

    @property
    def labelled(self) -> Bool[np.ndarray, " f"]:
        """[f] whether a frame has any label."""
        return np.any(list(self.has.values()), axis=0)

    @property
    def has(self) -> dict[str, Bool[np.ndarray, " f"]]:
        """[f] whether a frame has each kind of label."""
        return {
            "an energy": np.isfinite(self.energies),
            "forces": np.array([bool(np.isfinite(one).any()) for one in self.forces]),
            "a stress": np.array([bool(np.isfinite(one).any()) for one in self.virials]),
            "magnetic moments": np.array([bool(np.isfinite(one).any()) for one in self.moments]),
        }


def read_trajectories(
    paths: Sequence[str], format: str | None = None, species: Sequence[str] | None = None
) -> list[LabelledTrajectory]:
    """Read files, DeePMD npy folders, folders of such folders and built-in structures; nothing is left out.

    A label that is not finite counts as none. A second trajectory of one name has -2 appended, and so on.

    Args:
        paths: what to read.
        format: ASE's name of the format of the files; guessed if None.
        species: element of each atom type, for files of LAMMPS that name none.

    Raises:
        InputError: `read_input`, `deepmd_rows` or `labels_of` refuses one.
    """
    found: list[LabelledTrajectory] = []
    for path in paths:
        folders = deepmd_folders(Path(path)) if Path(path).is_dir() else []
        if not folders and Path(path).is_dir() and not Path(path).suffix:
            raise InputError(
                f"structure {path} is a folder without a type.raw in it or its folders; give a DeePMD npy folder or a "
                "file in any ASE format"
            )
        for one in [_of_folder(folder) for folder in folders] or [_of_file(path, format, species)]:
            names = [other.name for other in found]
            free = (name for k in range(1, len(names) + 2) if (name := one.name + f"-{k}" * (k > 1)) not in names)
            found.append(dataclasses.replace(one, name=next(free)))
    return found


def _of_file(path: str, format: str | None, species: Sequence[str] | None) -> LabelledTrajectory:
    read = read_input(path, "evaluation", every=True, format=format, species=species)
    name = path if path in BUILT_IN else Path(path).stem
    labels = [labels_of(atoms, f"{path}: frame {index}") for index, atoms in enumerate(read.frames)]
    notes = list(read.notes)
    energies = energies_of(Path(path), read.frames, labels, notes.append)
    if any(one.has_any for one in labels):
        notes += [*unused_note(Path(path), read.frames), *fixed_note(Path(path), read.frames, labels)]
    return _gathered(name, path, read.frames, energies, labels, notes)


def _of_folder(folder: Path) -> LabelledTrajectory:
    notes: list[str] = []
    rows = deepmd_rows(folder, notes.append)
    if not rows:
        raise InputError(f"{folder}: it holds no frame; leave it out")
    frames = tuple(ase.Atoms(numbers, positions, cell=cell, pbc=True) for numbers, positions, cell, *_ in rows)
    for index, atoms in enumerate(frames):
        check_atoms(atoms, f"{folder} frame {index}")
    notes += notes_on(frames, "evaluation", folder.name)
    labels = [
        FrameLabels(energy, None, forces, None if np.isnan(virial).all() else 0.5 * (virial + virial.T))
        for *_, energy, forces, virial, _ in rows
    ]
    energies = np.array([one.energy for one in labels], np.float64)
    return _gathered(folder.name, str(folder), frames, energies, labels, notes)


def _gathered(
    name: str,
    source: str,
    frames: tuple[ase.Atoms, ...],
    energies: np.ndarray,
    labels: list[FrameLabels],
    notes: list[str],
) -> LabelledTrajectory:
    broken = [one.has_any and not one.finite for one in labels]
    if any(broken):
        notes.append(
            f"{name}: {sum(broken)} of {len(frames)} frames have labels that are not finite (frame "
            f"{np.argmax(broken)}); they count as none"
        )
    forces = [np.full((len(atoms), 3), np.nan) if one.forces is None else one.forces
              for atoms, one in zip(frames, labels, strict=True)]  # fmt: skip
    moments = [np.full(len(atoms), np.nan) if one.moments is None else one.moments
               for atoms, one in zip(frames, labels, strict=True)]  # fmt: skip
    virials = np.array([np.full((3, 3), np.nan) if one.virial is None else one.virial for one in labels])
    forces, moments = (tuple(map(_or_none, column)) for column in (forces, moments))
    return LabelledTrajectory(
        name, source, frames, _or_none(energies), forces, _or_none(virials), moments, tuple(notes)
    )


def _or_none(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
