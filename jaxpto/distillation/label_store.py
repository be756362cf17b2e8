"""Labels of one teacher on the disk: extended xyz files that every command takes; nothing is ever computed twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np

from jaxpto.distillation.teacher import Teacher, bare
from jaxpto.errors import InputError
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.identity import digest_of
from jaxpto.structures.write import write_frames

TEACHER_FILE = "teacher.json"
DIGITS = 8  # of positions and cells, Angstrom; what the files hold is what was labelled
AT_ONCE = 8  # structures labelled between two writes: what a kill can cost
SAY_EVERY = 15.0  # seconds between two progress lines


class LabelStore:
    """A folder with NAME.extxyz files of labelled structures and the identity of the teacher that labelled them."""

    def __init__(self, folder: Path, teacher: Teacher, say: Callable[[str], None] = print):
        """Open a store, or begin one.

        Args:
            folder: created at the first label.
            teacher: labels what is not known.
            say: called with lines of progress.

        Raises:
            InputError: the folder holds labels of another teacher, or a damaged file.
        """
        self._folder, self._teacher, self._say = folder, teacher, say
        self._files: dict[str, list[ase.Atoms]] = {}
        self._known: dict[str, ase.Atoms] = {}
        self.seconds_per_label: float | None = None
        self.computed = 0
        if (folder / TEACHER_FILE).exists():
            stored = _read_identity(folder / TEACHER_FILE)
            if stored["digest"] != teacher.digest:
                raise InputError(
                    f"{folder} holds labels of {stored['name']} ({stored['digest']}), not of {teacher.name} "
                    f"({teacher.digest}); name another `out`, or the teacher that made them"
                )
        elif any(folder.glob("*.extxyz")):
            raise InputError(f"{folder} holds labels but no {TEACHER_FILE} that says whose; restore it or remove them")
        for path in sorted(folder.glob("*.extxyz")):
            self._files[path.stem] = _read(path)
            self._known |= {key_of(atoms): atoms for atoms in self._files[path.stem]}

    def __len__(self) -> int:
        return len(self._known)

    def path(self, name: str) -> Path:
        """The file of a name."""
        return self._folder / f"{name}.extxyz"

    def files(self) -> dict[str, int]:
        """Number of labelled structures by the name of their file."""
        return {name: len(frames) for name, frames in self._files.items()}

    def structures(self, name: str) -> list[ase.Atoms]:
        """The labelled structures of a file."""
        return self._files.get(name, [])

    def missing(self, frames: Sequence[ase.Atoms]) -> int:
        """How many of some structures are not labelled yet."""
        return len({key_of(rounded(atoms)) for atoms in frames} - self._known.keys())

    def label(self, frames: Sequence[ase.Atoms], name: str) -> list[ase.Atoms]:
        """Structures with energy, forces and stress; those not known are computed and go to the file of a name.

        Args:
            frames: structures.
            name: file, without suffix.

        Raises:
            InputError: the teacher refuses a structure.
        """
        wanted = [rounded(atoms) for atoms in frames]
        todo = list({key_of(atoms): atoms for atoms in wanted if key_of(atoms) not in self._known}.values())
        began = said = time.monotonic()
        done, before = 0, 0
        for some in _of_equal_atoms(todo, AT_ONCE):
            self._write(name, self._teacher.label(some))
            done += len(some)
            now = time.monotonic()
            self.seconds_per_label = (now - began) / (done - before)
            if done <= AT_ONCE:  # the first ones held the compilation
                began, before = now, done
            if now - said > SAY_EVERY and AT_ONCE < done < len(todo):
                left = (len(todo) - done) * self.seconds_per_label
                self._say(f"labels {name}: {done} of {len(todo)}, about {left:.0f} s left")
                said = now
        self.computed += done
        return [self._known[key_of(atoms)] for atoms in wanted]

    def _write(self, name: str, labelled: Sequence[ase.Atoms]) -> None:
        if not (self._folder / TEACHER_FILE).exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._folder / TEACHER_FILE, {"name": self._teacher.name, "digest": self._teacher.digest})
        frames = [*self._files.get(name, []), *labelled]
        write_frames(frames, self.path(name))
        self._files[name] = frames
        self._known |= {key_of(atoms): atoms for atoms in labelled}


def rounded(atoms: ase.Atoms) -> ase.Atoms:
    """The structure as the store keeps it: to 1e-8 Angstrom."""
    plain = bare(atoms)
    plain.positions = np.round(plain.positions, DIGITS)
    plain.set_cell(np.round(plain.cell.array, DIGITS))
    return plain


def key_of(atoms: ase.Atoms) -> str:
    """What structures are told apart by."""
    return digest_of(
        np.asarray(atoms.numbers, np.int64),
        np.round(atoms.positions, DIGITS) + 0.0,  # no negative zero
        np.round(atoms.cell.array, DIGITS) + 0.0,
    )


def _of_equal_atoms(frames: Sequence[ase.Atoms], most: int) -> list[list[ase.Atoms]]:
    """The structures in lists of equal atoms in equal order, of limited length."""
    groups: dict[tuple[int, ...], list[ase.Atoms]] = {}
    for atoms in frames:
        groups.setdefault(tuple(atoms.numbers.tolist()), []).append(atoms)
    return [group[k : k + most] for group in groups.values() for k in range(0, len(group), most)]


def _read(path: Path) -> list[ase.Atoms]:
    try:
        return list(ase.io.iread(path, index=":", format="extxyz"))
    except Exception as error:  # ASE's readers raise whatever they like
        raise InputError(
            f"{path} cannot be read ({' '.join(str(error).split())[:120]}); restore it or remove it"
        ) from None


def _read_identity(path: Path) -> dict[str, str]:
    try:
        stored = json.loads(path.read_text())
        return {"name": str(stored["name"]), "digest": str(stored["digest"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged; restore it") from None
