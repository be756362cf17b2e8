"""COMMAND python -m jaxpto.evaluate: energy, forces and stress of every frame of structure files."""

from __future__ import annotations

import dataclasses
import os
import sys
import uuid
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import ase
import ase.io
import numpy as np
import tyro
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import output_column_format
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxpto.calculator import JaxptoCalculator
from jaxpto.catalogue import check_supports
from jaxpto.command import leave, run_command
from jaxpto.crowding import crowding
from jaxpto.errors import InputError
from jaxpto.potential import Potential
from jaxpto.structures import read_frames

FORMATS = {".extxyz": "extxyz", ".traj": "traj", ".json": "json"}


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Energy, forces, stress (and what else a model knows) of every frame, at full precision in eV and Angstrom."""

    structures: tyro.conf.Positional[tuple[str, ...]]
    """Files in any ASE format, or PbTiO3-tetragonal, PbTiO3-cubic."""
    model: str
    """Name of a model, a model folder, or ase:package.module:factory."""
    out: Path
    """File to write: .extxyz, .traj or .json."""
    dtype: Literal["float32", "float64"] = "float64"
    """Floating-point type of the calculation."""
    overwrite: bool = False
    """Replace the output file if it exists."""


def run(config: EvaluateConfig) -> list[ase.Atoms]:
    """Evaluate every frame, write them to `config.out`, and return them with their results attached.

    Raises:
        InputError: no or bad structures, unknown model or element, unknown suffix, or an output file that exists.
    """
    _check_output(config.out, config.overwrite)
    if not config.structures:
        raise InputError("no structure given; name one or more files, or PbTiO3-tetragonal")
    calculator = JaxptoCalculator(config.model, config.dtype)
    frames: list[ase.Atoms] = []
    for path in config.structures:
        read = read_frames(path)
        for index, atoms in enumerate(read):
            check_supports(
                calculator.potential, atoms, f"{path} frame {index}" if len(read) > 1 else path, stress=False
            )
        frames += read
    evaluated = evaluate_frames(frames, calculator.potential, config.dtype, progress=sys.stderr.isatty())
    write_frames(evaluated, config.out)
    _show(evaluated, config, calculator.potential.caveat, crowding(calculator.potential, frames))
    return evaluated


def evaluate_frames(
    frames: Sequence[ase.Atoms], potential: Potential, dtype: str = "float64", *, progress: bool = False
) -> list[ase.Atoms]:
    """Copies of the frames with energy, forces and stress attached, in the same order.

    Frames of one composition share neighbour capacities, and so a compiled program. Constraints are left out, because
    ASE would read back forces that they have zeroed.

    Args:
        frames: any periodic structures the potential supports.
        potential: any potential.
        dtype: "float32" or "float64".
        progress: whether to show a progress bar on stderr.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, atoms in enumerate(frames):
        groups[tuple(atoms.numbers)].append(index)
    evaluated: list[ase.Atoms | None] = [None] * len(frames)
    order = [(numbers, index) for numbers, members in groups.items() for index in members]
    calculator, current = JaxptoCalculator(potential, dtype), None
    for numbers, index in track(order, "evaluating", console=Console(stderr=True), disable=not progress):
        if numbers != current:
            calculator, current = JaxptoCalculator(potential, dtype), numbers
        evaluated[index] = _single_point(frames[index], calculator)
    return [atoms for atoms in evaluated if atoms is not None]


def write_frames(frames: Sequence[ase.Atoms], path: str | Path) -> None:
    """Write frames and their results to .extxyz, .traj or .json at full precision, all or nothing.

    Raises:
        InputError: another suffix.
    """
    path = Path(path)
    _check_suffix(path)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("jaxpto.evaluate", EvaluateConfig, run, argv)


def _single_point(atoms: ase.Atoms, calculator: JaxptoCalculator) -> ase.Atoms:
    bare = ase.Atoms(
        numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True, celldisp=atoms.get_celldisp()
    )
    for name, values in atoms.arrays.items():
        if name not in bare.arrays and values.dtype.kind in "fib" and values.ndim <= 2:
            bare.set_array(name, values)
    bare.info = {key: value for key, value in atoms.info.items() if isinstance(value, str | bool | int | float)}
    calculator.calculate(bare, calculator.implemented_properties)
    bare.calc = SinglePointCalculator(bare, **calculator.results)
    return bare


def _extxyz(atoms: ase.Atoms) -> str:
    """One frame as extended XYZ; ASE's own writer keeps only eight decimals of positions and forces."""
    assert atoms.calc is not None
    results = dict(atoms.calc.results)
    per_atom = {name: results.pop(name) for name in ("forces", "energies", "magmoms") if name in results}
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


def _check_suffix(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise InputError(f"output {path} has the suffix '{path.suffix}'; choose .extxyz, .traj or .json")


def _check_output(path: Path, overwrite: bool) -> None:
    _check_suffix(path)
    if path.is_dir():
        raise InputError(f"output {path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise InputError(f"output {path} exists; choose another name, or add --overwrite to replace it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise InputError(f"output {path} cannot be written: {parent} is not a writable folder; choose another place")


def _show(frames: Sequence[ase.Atoms], config: EvaluateConfig, caveat: str, crowded: str) -> None:
    table = Table(
        "formula",
        "frames",
        "atoms",
        "energy (eV/atom)",
        "largest force (eV/A)",
        title=f"{config.model}, {config.dtype}",
        caption=f"the model's {caveat}" if caveat else None,
    )
    groups: dict[str, list[ase.Atoms]] = defaultdict(list)
    for atoms in frames:
        groups[atoms.get_chemical_formula()].append(atoms)
    for formula, members in groups.items():
        energies = [atoms.get_potential_energy() / len(atoms) for atoms in members]
        span = f"{min(energies):.6f}" if len(members) == 1 else f"{min(energies):.6f} to {max(energies):.6f}"
        force = max(np.linalg.norm(atoms.get_forces(), axis=1).max() for atoms in members)
        table.add_row(formula, str(len(members)), str(len(members[0])), span, f"{force:.4f}")
    console = Console()
    console.print(table)
    if crowded:
        console.print(crowded, soft_wrap=True, highlight=False)
    console.print(f"{len(frames)} frames written to {config.out}", soft_wrap=True)


if __name__ == "__main__":
    leave(main())
