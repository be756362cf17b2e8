"""Structures with their results written to files, at full precision."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.io.extxyz import output_column_format

from jaxpto.errors import InputError

FORMATS = {".extxyz": "extxyz", ".traj": "traj", ".json": "json"}
PER_ATOM = ("forces", "energies", "magmoms", "charges", "born_effective_charges")


def write_frames(frames: Sequence[ase.Atoms], path: str | Path) -> None:
    """Write frames and their results to .extxyz, .traj or .json atomically and at full precision.

    Numbers and words in arrays and `info` are written, other objects are not. ASE's .traj and .json hold ASE's own
    arrays only (masses, tags, moments, charges, momenta).

    Raises:
        InputError: an unknown suffix.
    """
    path = Path(path)
    check_suffix(path)
    frames = [_writable(atoms) for atoms in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        if path.suffix == ".extxyz":
            temporary.write_text("".join(map(_extxyz, frames)))
        else:
            ase.io.write(temporary, list(frames), format=FORMATS[path.suffix])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _writable(atoms: ase.Atoms) -> ase.Atoms:
    """The atoms with their results, without entries that some formats cannot hold."""
    plain = atoms.copy()
    plain.calc = atoms.calc
    for name, values in atoms.arrays.items():
        words = values.dtype.kind == "U" and all(len(word.split()) == 1 for word in values.ravel())
        if values.ndim > 2 or not (words or values.dtype.kind in "fib"):
            del plain.arrays[name]
    kinds = str | bool | int | float | np.bool_ | np.number
    plain.info = {
        key: value
        for key, value in atoms.info.items()
        if isinstance(value, kinds) or (isinstance(value, np.ndarray) and value.dtype.kind in "fib")
    }
    return plain


def _extxyz(atoms: ase.Atoms) -> str:
    """One frame as extended XYZ; ASE's own writer keeps only eight decimals of positions and forces."""
    assert atoms.calc is not None
    results = dict(atoms.calc.results)
    per_atom = {name: results.pop(name).reshape(len(atoms), -1) for name in PER_ATOM if name in results}
    if "stress" in results:
        results["stress"] = atoms.get_stress(voigt=False)
    described = atoms.copy()
    described.info |= results
    arrays = {"symbols": np.array(atoms.get_chemical_symbols()), "positions": atoms.positions}
    arrays |= {name: values for name, values in atoms.arrays.items() if name not in ("numbers", "positions")}
    arrays |= per_atom
    comment, _, _, row = output_column_format(described, list(arrays), arrays)
    row = row.replace("%16.8f", "%24.17g")
    columns = [column for values in arrays.values() for column in values.reshape(len(atoms), -1).T]
    return f"{len(atoms)}\n{comment}\n" + "".join(row % values for values in zip(*columns, strict=True))


def check_suffix(path: Path) -> None:
    """Refuse a file name whose suffix stands for no format that can be written.

    Raises:
        InputError: an unknown suffix.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"output {path} has the suffix '{path.suffix}'; choose .extxyz, .traj or .json")
