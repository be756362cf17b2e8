"""Space groups of structures, by spglib."""

from __future__ import annotations

import dataclasses
import warnings

import ase
import spglib

SYMPREC = 1e-3  # Angstrom


@dataclasses.dataclass(frozen=True)
class SpaceGroup:
    """International symbol and number of a space group; "unknown" and 0 where spglib finds none."""

    symbol: str
    number: int

    def __str__(self) -> str:
        return f"{self.symbol} ({self.number})" if self.number else self.symbol


def space_group(atoms: ase.Atoms, symprec: float = SYMPREC) -> SpaceGroup:
    """Space group of a structure by its elements; masses and magnetic moments are ignored.

    Args:
        atoms: a periodic structure.
        symprec: distance within which positions count as equivalent, Angstrom.
    """
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about how it will report errors some day: both are caught
        try:
            found = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except spglib.SpglibError:
            found = None
    return SpaceGroup("unknown", 0) if found is None else SpaceGroup(str(found.international), int(found.number))
