"""Structure files as ASE reads them, with notes on guessed elements, masses and warnings."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import ase
import ase.data
import numpy as np

from jaxpto.errors import InputError

COUNTED = 32 * 2**20  # bytes of a file whose structures are counted where one of them is taken
MASS_TOLERANCE = 0.25  # amu between a mass in a file and that of an element: 48 is Ti (47.867), 17.999 is not F
WARNINGS = 3  # of a reader that are shown
FORMATS = "vasp, cif, extxyz, lammps-data"
REMEDY = f"name its format with `format` ({FORMATS}, ...)"
NAMED = "name the element of each type in order, such as `species=('Pb', 'Ti', 'O')`"


def read_file(
    path: Path, *, every: bool, format: str | None = None, species: Sequence[str] | None = None
) -> tuple[list[ase.Atoms], list[str]]:
    """Structures of a file, not checked yet, and a line on each thing the user should know about them.

    Args:
        path: a file (or folder) that exists.
        every: take every structure, otherwise the last one.
        format: ASE's name of the format, such as vasp or lammps-data; guessed if None.
        species: element of each atom type, for files of LAMMPS.

    Raises:
        InputError: an unknown format, a file that ASE cannot read, or unknown elements.
    """
    import ase.io  # takes 30 MiB and a second, so only where it is used

    name = _format_of(path, format)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            # '@' in a name would be taken for an index, so the name is opened literally
            found = ase.io.read(path, ":" if every else -1, format=name, do_not_split_by_at_sign=True)
            count = "" if every else _count(path, name)
        except Exception as error:  # every parser has its own ways to fail
            reason = " ".join(str(error).split())[:160] or "no reason given"
            raise InputError(
                f"structure {path} cannot be read as {name} ({type(error).__name__}: {reason}); give a file in any ASE "
                f"format, or {REMEDY}"
            ) from error
    frames = found if isinstance(found, list) else [found]
    if not frames:
        raise InputError(f"structure {path} holds no frame; give a file with at least one")
    notes = [f"{path}: it holds {count} structures; the last one is taken"] if count else []
    notes += [f"{path}: {text}" for text in _elements(frames, path, name, species)]
    return frames, notes + [f"{path}: ASE's reader: {text}" for text in _said(said, path, frames)]


def _format_of(path: Path, format: str | None) -> str:
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    if format is None:
        try:
            name = filetype(str(path))
        except UnknownFileTypeError as error:
            raise InputError(f"structure {path} cannot be read ({error}); {REMEDY}") from None
        if name not in ioformats:
            raise InputError(f"structure {path} cannot be read: ASE knows no format {name}; {REMEDY}")
        return name
    if format not in ioformats or not ioformats[format].can_read:
        raise InputError(f"`format={format}`: ASE reads no format of that name; some are {FORMATS}")
    return format


def _count(path: Path, format: str) -> str:
    """How many structures a file holds, in words; "" for one."""
    import ase.io
    from ase.io.formats import ioformats

    if ioformats[format].single:
        return ""
    images = ase.io.iread(path, ":", format=format, do_not_split_by_at_sign=True)
    if path.is_file() and path.stat().st_size > COUNTED:
        return "several" if sum(1 for _ in islice(images, 2)) > 1 else ""
    number = sum(1 for _ in images)
    return str(number) if number > 1 else ""


def _said(said: list[warnings.WarningMessage], path: Path, frames: list[ase.Atoms]) -> Iterator[str]:
    """Warnings of a reader about the file, without deprecation warnings of libraries."""
    other = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning, ImportWarning)
    texts = [" ".join(str(one.message).split()) for one in said if not issubclass(one.category, other)]
    if "spacegroup" in frames[-1].info and not _setting_matters(path, frames[-1]):
        texts = [text for text in texts if not text.startswith("crystal system")]
    yield from list(dict.fromkeys(texts))[:WARNINGS]


def _setting_matters(path: Path, atoms: ase.Atoms) -> bool:
    """Whether a CIF file leaves open which setting of its space group is meant."""
    from ase.spacegroup import Spacegroup

    if any(re.search("symop[_.]operation_xyz|equiv_pos_as_xyz", line, re.IGNORECASE) for line in _lines(path)):
        return False
    try:
        Spacegroup(atoms.info["spacegroup"].no, 2)
    except Exception:  # ASE has its own error for a setting that is none
        return False
    return True


def _elements(frames: list[ase.Atoms], path: Path, format: str, species: Sequence[str] | None) -> list[str]:
    """Give atoms the elements of their types, or refuse types that name none; returns notes for the user."""
    typed = format in ("lammps-data", "lammps-dump-text", "lammps-dump-binary")
    named, masses = _named_types(frames[-1], path, format) if typed else (True, {})
    if format.startswith("lammps-dump") and masses:  # which ASE reads for the sake of elements only
        for atoms in frames:
            pairs = zip(atoms.arrays["type"].tolist(), atoms.get_masses().tolist(), strict=True)
            atoms.set_masses([masses.get(kind, usual) for kind, usual in pairs])
    if species is not None:
        if named:
            raise InputError(f"`species={tuple(species)}`: {path} names its elements itself; leave `species` out")
        _name_types(frames, path, species)
        return []
    if format == "vasp":
        return _vasp_elements(path, frames[-1])
    if named:
        return []
    if not masses:
        raise InputError(f"{path}: it has atom types but no elements; {NAMED}")
    for kind, mass in sorted(masses.items()):
        nearest = int(np.nanargmin(np.abs(ase.data.atomic_masses - mass)))
        if abs(ase.data.atomic_masses[nearest] - mass) > MASS_TOLERANCE:
            raise InputError(
                f"{path}: atom type {kind} has the mass {mass:g} u, which is that of no element (nearest: "
                f"{ase.data.chemical_symbols[nearest]} with {ase.data.atomic_masses[nearest]:.3f}); {NAMED}"
            )
    symbols = dict(zip(frames[-1].arrays["type"].tolist(), frames[-1].symbols, strict=True))
    return [f"elements by mass: {', '.join(f'type {kind} is {symbols[kind]}' for kind in sorted(symbols))}"]


def _named_types(atoms: ase.Atoms, path: Path, format: str) -> tuple[bool, dict[int, float]]:
    """Whether a file of LAMMPS names elements, and the mass of each type where it has masses, amu."""
    if format == "lammps-data":
        if atoms.has("masses"):
            return False, dict(zip(atoms.arrays["type"].tolist(), atoms.get_masses().tolist(), strict=True))
        labelled = any(line.strip().startswith("Atom Type Labels") for line in _lines(path))
        return labelled and bool((atoms.numbers != atoms.arrays["type"]).any()), {}
    columns, masses = _dump_columns(path) if format == "lammps-dump-text" else ([], {})
    return "element" in columns, masses


def _name_types(frames: list[ase.Atoms], path: Path, species: Sequence[str]) -> None:
    given = f"`species={tuple(species)}`"
    for symbol in species:
        if symbol not in ase.data.atomic_numbers or symbol == "X":
            raise InputError(f"{given}: {symbol} is no element; name one for each atom type, such as Pb Ti O")
    numbers = np.array([ase.data.atomic_numbers[symbol] for symbol in species])
    for atoms in frames:
        types = atoms.arrays.get("type")
        if types is None:
            raise InputError(f"{given}: {path} has no column of atom types; write one, or one of elements, into it")
        if types.min() < 1 or types.max() > len(species):
            raise InputError(
                f"{given}: {path} has atom types from {types.min()} to {types.max()}; name one element for each"
            )
        atoms.numbers[:] = numbers[types - 1]


def _dump_columns(path: Path) -> tuple[list[str], dict[int, float]]:
    """Columns of the first frame of a LAMMPS dump, and the mass of each type where both are columns."""
    lines, number = _lines(path), 0
    for line in lines:
        if line.startswith("ITEM: NUMBER OF ATOMS"):
            number = int(next(lines))
        if line.startswith("ITEM: ATOMS"):
            columns = line.split()[2:]
            if not {"type", "mass"} <= set(columns):
                return columns, {}
            kind, mass = columns.index("type"), columns.index("mass")
            rows = [row.split() for row in islice(lines, number)]
            return columns, {int(row[kind]): float(row[mass]) for row in rows}
    return [], {}


def _vasp_elements(path: Path, atoms: ase.Atoms) -> list[str]:
    """A note on POSCAR files of VASP 4: they name no elements, and ASE guesses them from the comment line."""
    counts = next(islice(_lines(path), 5, None)).split()
    if not counts or not counts[0].isdigit():
        return []
    guessed = " ".join(dict.fromkeys(atoms.symbols))
    return [f"it names no elements (VASP 4); {guessed} are guessed from its comment line"]


def _lines(path: Path) -> Iterator[str]:
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "r") as file:
        yield from file
