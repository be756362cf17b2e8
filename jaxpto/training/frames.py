"""Labelled frames: grouped by composition, cleaned with reasons, split into blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import ase
import numpy as np

from jaxpto.errors import InputError
from jaxpto.storage.identity import digest_of

COLUMNS = ("positions", "cells", "energies", "forces", "virials", "moments")

# numbers [n], positions [n, 3], cell [3, 3], energy, forces [n, 3], virial [3, 3], magnetic moments [n] of one frame
Row = tuple[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LabelledFrames:
    """Labelled frames of one trajectory (numpy, float64).

    Attributes:
        name: name of the folder or file.
        numbers: [n] atomic numbers.
        positions: [f, n, 3] Angstrom.
        cells: [f, 3, 3] Angstrom.
        energies: [f] eV.
        forces: [f, n, 3] eV / Angstrom.
        virials: [f, 3, 3] eV, -dE/dstrain = -stress * volume; NaN where there is none.
        moments: [f, n] magnetic moments, Bohr magnetons; NaN where there are none.
    """

    name: str
    numbers: np.ndarray
    positions: np.ndarray
    cells: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    virials: np.ndarray
    moments: np.ndarray

    def __len__(self) -> int:
        return len(self.energies)

    def __getitem__(self, index: np.ndarray) -> LabelledFrames:
        return LabelledFrames(
            self.name,
            self.numbers,
            *(getattr(self, k)[index] for k in COLUMNS),
        )

    @property
    def with_virial(self) -> np.ndarray:
        """[f] whether a frame has a virial."""
        return np.asarray(np.isfinite(self.virials).all(axis=(1, 2)))

    @property
    def digest(self) -> str:
        """Digest of atoms, coordinates and labels, without the name."""
        columns = (np.asarray(getattr(self, column), np.float64) for column in COLUMNS)
        return digest_of(np.asarray(self.numbers, np.int64), *columns)


def group_by_composition(name: str, rows: Iterable[Row]) -> list[LabelledFrames]:
    """One trajectory for each composition in the rows, with the atoms in the order of its first frame.

    A trajectory is called `name`, or NAME-FORMULA where there are several.
    """
    groups: dict[tuple[int, ...], tuple[np.ndarray, list[tuple]]] = {}
    for numbers, positions, cell, energy, forces, virial, moments in rows:
        order = np.argsort(numbers, kind="stable")
        first, members = groups.setdefault(tuple(np.sort(numbers).tolist()), (np.array(numbers), []))
        order = order[np.argsort(np.argsort(first, kind="stable"))]  # where each atom of the first frame is in this one
        members.append((positions[order], cell, energy, forces[order], virial, moments[order]))
    found = []
    for first, members in groups.values():
        formula = ase.Atoms(first).symbols.formula.format("metal")
        columns = (np.array(column, np.float64) for column in zip(*members, strict=True))
        found.append(LabelledFrames(name if len(groups) == 1 else f"{name}-{formula}", first, *columns))
    return found


def faults(frames: LabelledFrames, largest_force: float = 100.0) -> dict[str, np.ndarray]:
    """Frames [f] that cannot be trained on, by reason; a frame counts under the first that fits.

    Args:
        frames: frames of one trajectory.
        largest_force: component above which a force counts as wrong, eV/Angstrom.
    """
    count = len(frames)
    columns = (frames.positions, frames.cells, frames.forces, frames.energies)
    finite = np.all([np.isfinite(column.reshape(count, -1)).all(axis=1) for column in columns], axis=0)
    volumes = np.linalg.det(np.where(np.isfinite(frames.cells), frames.cells, 0.0))
    largest = np.abs(np.nan_to_num(frames.forces)).reshape(count, -1).max(axis=1, initial=0.0)
    reasons = {
        "with coordinates or labels that are not finite": ~finite,
        "with a cell without volume": np.abs(volumes) < 1e-3,
        "with a left-handed cell (reverse its three vectors: the lattice stays the same)": volumes < 0.0,
        f"with a force above {largest_force:g} eV/A": largest >= largest_force,
    }
    told = np.zeros(count, bool)
    for reason, hit in reasons.items():
        reasons[reason] = hit & ~told
        told |= hit
    return {reason: hit for reason, hit in reasons.items() if hit.any()}


def clean(frames: LabelledFrames, largest_force: float = 100.0) -> LabelledFrames:
    """The frames without those that `faults` names.

    Frames with merely inaccurate labels stay: the loss is robust against them.
    """
    bad = np.zeros(len(frames), bool)
    for hit in faults(frames, largest_force).values():
        bad |= hit
    return frames[np.flatnonzero(~bad)]


def usable(trajectories: Iterable[LabelledFrames], say: Callable[[str], None] = print) -> list[LabelledFrames]:
    """What can be trained on, every trajectory with a name of its own: a second one of a name has -2 appended.

    Args:
        trajectories: as they were read.
        say: called with a line about what is left out.
    """
    found: list[LabelledFrames] = []
    names: list[str] = []
    for frames in trajectories:
        kept = clean(frames)
        if len(kept) < len(frames):
            why = ", ".join(f"{hit.sum()} {reason}" for reason, hit in faults(frames).items())
            say(f"{frames.name}: left out {len(frames) - len(kept)} of {len(frames)} frames: {why}")
        names.append(frames.name)
        if names.count(frames.name) > 1:  # shares and errors go by name
            kept = dataclasses.replace(kept, name=f"{frames.name}-{names.count(frames.name)}")
        if len(kept):
            found.append(kept)
    return found


def held_out_rows(count: int, blocks: int = 20, held_out: tuple[int, ...] = (6, 13)) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and validation frames of `hold_out_blocks`, out of `count` frames."""
    out = np.isin(np.arange(count) * blocks // max(1, count), held_out)
    return np.flatnonzero(~out), np.flatnonzero(out)


def training_rows(counts: Sequence[int], limit: int = 0, seed: int = 0) -> list[np.ndarray]:
    """Rows of the frames of each trajectory that are trained on: all that are not held out, or some of them at random.

    Each trajectory gives its share. The rows of a smaller limit are among those of a larger one.

    Args:
        counts: frames of each trajectory, held-out ones included.
        limit: how many rows in all; 0 for all.
        seed: seed of the choice.

    Raises:
        InputError: more rows than there are, or fewer than trajectories.
    """
    rows = [held_out_rows(count)[0] for count in counts]
    total = sum(map(len, rows))
    if not limit:
        return rows
    if not len(rows) <= limit <= total:
        raise InputError(f"frames = {limit}: give between {len(rows)}, one of each trajectory, and {total}, all")
    mixed = [np.random.default_rng([seed, place]).permutation(own) for place, own in enumerate(rows)]
    # frames in the order in which they are taken: one of every trajectory, then in proportion
    order = [(k > 0, (k + 0.5) / len(own), place) for place, own in enumerate(mixed) for k in range(len(own))]
    taken = [place for *_, place in sorted(order)[:limit]]
    return [np.sort(own[: taken.count(place)]) for place, own in enumerate(mixed)]


def hold_out_blocks(
    frames: LabelledFrames, blocks: int = 20, held_out: tuple[int, ...] = (6, 13)
) -> tuple[LabelledFrames, LabelledFrames]:
    """Training and validation frames: whole blocks are held out because neighbouring frames are correlated."""
    kept, out = held_out_rows(len(frames), blocks, held_out)
    return frames[kept], frames[out]


def join(parts: list[LabelledFrames]) -> LabelledFrames:
    """Concatenate trajectories with the same atoms."""
    return LabelledFrames(
        parts[0].name,
        parts[0].numbers,
        *(np.concatenate([getattr(p, k) for p in parts]) for k in COLUMNS),
    )
