"""Structures: reading and checking files, the built-in PbTiO3 cells, supercells."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import ase
import ase.data
import numpy as np

from jaxpto.bounds import check_size
from jaxpto.errors import InputError
from jaxpto.system import check_atoms, symbols

BUILT_IN = ("PbTiO3-tetragonal", "PbTiO3-cubic")


def builtin_structure(name: str) -> ase.Atoms:
    """Five-atom PbTiO3 cell, order Pb, Ti, O (apical), O, O (equatorial).

    `PbTiO3-tetragonal` is P4mm with a = 3.88, c = 4.19 Angstrom and the internal coordinates measured by Nelmes & Kuhs
    (Solid State Commun. 54, 721 (1985)), turned so that the polarization points along +z; `PbTiO3-cubic` is Pm-3m with
    a = 3.93 Angstrom.

    Raises:
        InputError: another name.
    """
    if name not in BUILT_IN:
        raise InputError(f"unknown built-in structure '{name}'; choose one of {', '.join(BUILT_IN)}")
    tetragonal = name == "PbTiO3-tetragonal"
    a, c = (3.88, 4.19) if tetragonal else (3.93, 3.93)
    titanium, apical, equatorial = (0.4623, -0.1118, 0.3826) if tetragonal else (0.5, 0.0, 0.5)
    fractional = [
        [0.0, 0.0, 0.0],
        [0.5, 0.5, titanium],
        [0.5, 0.5, apical],
        [0.5, 0.0, equatorial],
        [0.0, 0.5, equatorial],
    ]
    return ase.Atoms("PbTiO3", scaled_positions=fractional, cell=[a, a, c], pbc=True)


def read_structure(path: str | Path) -> ase.Atoms:
    """The last structure of a file in any ASE format, or a built-in one by its name, checked.

    Raises:
        InputError: missing, unreadable or empty file, or what `check_atoms` refuses.
    """
    if str(path) in BUILT_IN:
        return builtin_structure(str(path))
    atoms = _read(path, -1)[-1]
    check_atoms(atoms, str(path))
    return atoms


def read_frames(path: str | Path) -> list[ase.Atoms]:
    """Every structure of a file in any ASE format (or a built-in one by its name), checked.

    Raises:
        InputError: missing, unreadable or empty file, or what `check_atoms` refuses, naming the frame.
    """
    if str(path) in BUILT_IN:
        return [builtin_structure(str(path))]
    frames = _read(path, ":")
    for index, atoms in enumerate(frames):
        check_atoms(atoms, str(path) if len(frames) == 1 else f"{path} frame {index}")
    return frames


def _read(path: str | Path, index: int | str) -> list[ase.Atoms]:
    import ase.io  # takes 30 MiB and a second, so only where it is used

    path = Path(path)
    if not path.exists():
        raise InputError(
            f"structure {path} does not exist; give a file in any ASE format, or one of {', '.join(BUILT_IN)}"
        )
    if path.is_dir() and not path.suffix:
        raise InputError(f"structure {path} is a folder; give a file in any ASE format")
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"structure {path} is an empty file; write it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parsers warn about fields that are not read here
            # '@' in a name would be taken for an index, so the name is opened literally
            frames = ase.io.read(path, index=index, do_not_split_by_at_sign=True)
    except InputError:
        raise
    except Exception as error:  # every parser has its own ways to fail
        reason = " ".join(str(error).split())[:160] or "no reason given"
        raise InputError(
            f"structure {path} cannot be read ({type(error).__name__}: {reason}); give a file in any ASE format"
        ) from error
    frames = frames if isinstance(frames, list) else [frames]
    if not frames:
        raise InputError(f"structure {path} holds no frame; give a file with at least one")
    return frames


def check_elements(atoms: ase.Atoms, elements: Sequence[int], model: str, where: str = "structure") -> None:
    """Refuse atoms of elements that a model was not made for.

    Args:
        atoms: the structure.
        elements: atomic numbers the model knows.
        model: its name.
        where: what to call the structure in the message.

    Raises:
        InputError: naming the unknown elements and those of the model.
    """
    unknown = symbols(atoms.numbers[~np.isin(atoms.numbers, elements)])
    if unknown:
        known = ", ".join(symbols(np.asarray(elements)))
        raise InputError(
            f"{where}: model {model} does not know {', '.join(unknown)}; it knows {known}; "
            "choose another model or structure"
        )


def make_supercell(atoms: ase.Atoms, repeats: Sequence[int | float]) -> ase.Atoms:
    """Repeat a structure along its lattice vectors; the atoms of one cell stay together, the third vector runs fastest.

    Args:
        atoms: unit cell.
        repeats: three counts of at least 1.

    Raises:
        InputError: other counts, or more atoms than fit into memory.
    """
    counts = list(repeats)
    if len(counts) != 3 or any(int(count) != count or count < 1 for count in counts):
        raise InputError(
            f"supercell {' '.join(map(str, counts))}; give three whole numbers of at least 1, such as 4 4 4"
        )
    check_size(len(atoms) * math.prod(int(count) for count in counts), what=f"supercell {' '.join(map(str, counts))}")
    return atoms.repeat(tuple(int(count) for count in counts))
