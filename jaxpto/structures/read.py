"""Reading and checking structures, the built-in PbTiO3 cells, and supercells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import ase
import ase.data
import numpy as np

from jaxpto.bounds import check_size
from jaxpto.errors import InputError
from jaxpto.structures.files import read_file
from jaxpto.system import check_atoms, symbols

# lattice parameters a and c, Angstrom
CELLS = {"PbTiO3-tetragonal": (3.88, 4.19), "PbTiO3-cubic": (3.93, 3.93), "PbTiO3-experimental": (3.90, 4.15)}
BUILT_IN = tuple(CELLS)
Use = Literal["dynamics", "relaxation", "vibrations", "evaluation"]
MOVED_BY: dict[Use, str] = {
    "dynamics": "molecular dynamics",
    "relaxation": "a relaxation",
    "vibrations": "vibrations, where every atom is displaced",
}
UNUSED = "are not used; a model sees elements and positions only"
VACUUM = 6.0  # Angstrom, beyond the reach of most models; layers of crystals are 3 to 4 apart


def builtin_structure(name: str) -> ase.Atoms:
    """Five-atom PbTiO3 cell, order Pb, Ti, O (apical), O, O (equatorial).

    `PbTiO3-tetragonal` is P4mm with a = 3.88, c = 4.19 Angstrom and the internal coordinates measured by Nelmes & Kuhs
    (Solid State Commun. 54, 721 (1985)), turned so that the polarization points along +z; `PbTiO3-experimental` the
    same in the lattice measured at room temperature, a = 3.90, c = 4.15 Angstrom, in which the PTO-test holds the cell;
    `PbTiO3-cubic` is Pm-3m with a = 3.93 Angstrom.

    Raises:
        InputError: an unknown name.
    """
    if name not in BUILT_IN:
        raise InputError(f"unknown built-in structure '{name}'; choose one of {', '.join(BUILT_IN)}")
    a, c = CELLS[name]
    titanium, apical, equatorial = (0.5, 0.0, 0.5) if a == c else (0.4623, -0.1118, 0.3826)
    fractional = [
        [0.0, 0.0, 0.0],
        [0.5, 0.5, titanium],
        [0.5, 0.5, apical],
        [0.5, 0.0, equatorial],
        [0.0, 0.5, equatorial],
    ]
    return ase.Atoms("PbTiO3", scaled_positions=fractional, cell=[a, a, c], pbc=True)


@dataclasses.dataclass(frozen=True)
class Input:
    """Structures that a command has read.

    Attributes:
        frames: at least one checked structure.
        notes: one line on everything that was guessed, or that the file holds and the command does not use.
    """

    frames: tuple[ase.Atoms, ...]
    notes: tuple[str, ...] = ()

    @property
    def atoms(self) -> ase.Atoms:
        """The last structure."""
        return self.frames[-1]


def read_input(
    path: str | Path,
    use: Use,
    *,
    every: bool = False,
    format: str | None = None,
    species: Sequence[str] | None = None,
) -> Input:
    """Read and check the structures of a file, or a built-in one; every command reads structures through this.

    Args:
        path: file in any ASE format, or the name of a built-in structure.
        use: what the structures are for.
        every: take every structure of the file, otherwise the last one.
        format: ASE's name of the format; guessed if None.
        species: element of each atom type, for files of LAMMPS that name none.

    Raises:
        InputError: a missing or unreadable file, or a frame that `check_atoms` or `check_use` refuses.
    """
    if str(path) in BUILT_IN:
        return Input((builtin_structure(str(path)),))
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"structure {path} does not exist; give a file in any ASE format, or one of {', '.join(BUILT_IN)}"
        )
    if path.is_dir() and not path.suffix:
        raise InputError(f"structure {path} is a folder; give a file in any ASE format")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"structure {path} is an empty file; write it again")
    frames, notes = read_file(path, every=every, format=format, species=species)
    for index, atoms in enumerate(frames):
        where = str(path) if len(frames) == 1 else f"{path} frame {index}"
        check_atoms(atoms, where)
        check_use(atoms, use, where)
    return Input(tuple(frames), (*notes, *notes_on(frames, use, str(path))))


def read_structure(path: str | Path, use: Use = "evaluation") -> ase.Atoms:
    """The last structure of a file, or a built-in one: `read_input` without its notes.

    Raises:
        InputError: `read_input` refuses the file.
    """
    return read_input(path, use).atoms


def read_frames(path: str | Path, use: Use = "evaluation") -> list[ase.Atoms]:
    """Every structure of a file, or a built-in one: `read_input` without its notes.

    Raises:
        InputError: `read_input` refuses the file.
    """
    return list(read_input(path, use, every=True).frames)


def check_use(atoms: ase.Atoms, use: Use, where: str = "structure") -> None:
    """Refuse structures with something that a use would drop although it changes the result.

    Raises:
        InputError: constraints where atoms will move.
    """
    if atoms.constraints and use in MOVED_BY:
        raise InputError(
            f"{where}: constraints ({_kinds_of_constraints(atoms)}) are not kept by {MOVED_BY[use]}; "
            "remove them from the file"
        )


def notes_on(frames: Sequence[ase.Atoms], use: Use, where: str = "structure") -> list[str]:
    """One line on each thing that these structures hold and the use ignores.

    Args:
        frames: checked structures.
        use: what they are for.
        where: name for all of them in the notes.
    """

    def note(found: Sequence[bool], what: str) -> list[str]:
        frame = "" if len(frames) == 1 else f" ({sum(found)} of {len(frames)} structures)"
        return [f"{where}{frame}: {what}"] if any(found) else []

    gaps = [vacuum(atoms) for atoms in frames]
    widest = max(gaps, key=lambda gap: gap[0], default=(0.0, 0))
    image = f"{widest[0]:.1f} A of vacuum along lattice vector {widest[1] + 1}, with periodic images beyond it"
    closing = "; a cell that may change its shape closes it" if use in ("dynamics", "relaxation") else ""
    start = "each replica draws its own" if use == "dynamics" else "atoms start at rest"
    moving = [use in MOVED_BY and _holds(atoms, "momenta") for atoms in frames]
    return [
        *note([gap > VACUUM for gap, _ in gaps], f"{image}{closing}"),
        *note(moving, f"velocities are not used; {start}"),
        *note([_holds(atoms, "initial_magmoms") for atoms in frames], f"magnetic moments {UNUSED}"),
        *note([_holds(atoms, "initial_charges") for atoms in frames], f"charges {UNUSED}"),
        *note(
            [bool(atoms.constraints) for atoms in frames],
            f"constraints ({', '.join(sorted({_kinds_of_constraints(a) for a in frames if a.constraints}))}) are left "
            "out; forces are those of free atoms",
        ),
    ]


def vacuum(atoms: ase.Atoms) -> tuple[float, int]:
    """Width of the widest empty layer along a lattice vector, Angstrom, and the index of that vector."""
    places = np.sort(atoms.get_scaled_positions(), axis=0)
    gaps = np.diff(np.concatenate([places, places[:1] + 1.0]), axis=0).max(axis=0)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    along = int(np.argmax(gaps * heights))
    return float(gaps[along] * heights[along]), along


def _holds(atoms: ase.Atoms, name: str) -> bool:
    return name in atoms.arrays and bool(np.any(atoms.arrays[name]))


def _kinds_of_constraints(atoms: ase.Atoms) -> str:
    return ", ".join(sorted({type(constraint).__name__ for constraint in atoms.constraints}))


def check_elements(atoms: ase.Atoms, elements: Sequence[int], model: str, where: str = "structure") -> None:
    """Refuse atoms of elements that a model was not made for.

    Args:
        atoms: the structure.
        elements: atomic numbers the model knows.
        model: name of the model.
        where: name of the structure in the message.

    Raises:
        InputError: the message names the unknown elements and those of the model.
    """
    unknown = symbols(atoms.numbers[~np.isin(atoms.numbers, elements)])
    if unknown:
        known = ", ".join(symbols(np.asarray(elements)))
        raise InputError(
            f"{where}: model {model} does not know {', '.join(unknown)}; it knows {known}; "
            "choose another model or structure"
        )


def repeats_of(
    structure: str, given: tuple[int, int, int] | None, builtin: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Repeats along the lattice vectors: as given; by default 1 1 1 for a file, `builtin` for a built-in structure.

    Args:
        structure: file, or the name of a built-in structure.
        given: the repeats asked for, or None.
        builtin: repeats of the built-in five-atom cells.
    """
    if given is not None:
        return given
    return builtin if structure in BUILT_IN else (1, 1, 1)


def make_supercell(atoms: ase.Atoms, repeats: Sequence[int | float]) -> ase.Atoms:
    """Repeat a structure along its lattice vectors; the atoms of one cell stay together, the third vector runs fastest.

    Args:
        atoms: unit cell.
        repeats: three counts of at least 1.

    Raises:
        InputError: counts below 1, or more atoms than fit into memory.
    """
    counts = list(repeats)
    if len(counts) != 3 or any(int(count) != count or count < 1 for count in counts):
        raise InputError(
            f"supercell {' '.join(map(str, counts))}; give three whole numbers of at least 1, such as 4 4 4"
        )
    check_size(len(atoms) * math.prod(int(count) for count in counts), what=f"supercell {' '.join(map(str, counts))}")
    return atoms.repeat(tuple(int(count) for count in counts))
