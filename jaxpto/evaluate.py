"""COMMAND python -m jaxpto.evaluate: energy, forces and stress of every frame of structure files."""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import ase
import numpy as np
import tyro
from ase.calculators.singlepoint import SinglePointCalculator
from rich.progress import track

from jaxpto.calculator import JaxptoCalculator
from jaxpto.console import terminal
from jaxpto.console.command import leave, run_command
from jaxpto.console.terminal import WholeTable
from jaxpto.errors import InputError
from jaxpto.models.suitability import check_supports, neighbor_bound_warning
from jaxpto.potential import Potential
from jaxpto.storage.output import check_output_file
from jaxpto.structures import read_input
from jaxpto.structures.write import check_suffix, write_frames
from jaxpto.system import made_anew


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Energy, forces, stress and other predictions for every frame, at full precision in eV and Angstrom."""

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
    format: str | None = None
    """Format of the file, as ASE calls it (vasp, cif, extxyz, lammps-data, ...); guessed by default."""
    species: tuple[str, ...] | None = None
    """Element of each atom type, for files of LAMMPS that name none."""


def run(config: EvaluateConfig, potential: Potential | None = None) -> list[ase.Atoms]:
    """Evaluate every frame, write them to `config.out`, and return them with their results attached.

    Args:
        config: the settings.
        potential: takes the place of the model that the settings name.

    Raises:
        InputError: no or bad structures, unknown model or element, unknown suffix, or an output file that exists.
    """
    if potential is not None:
        config = dataclasses.replace(config, model=potential.name)
    _check_output(config.out, config.overwrite)
    if not config.structures:
        raise InputError("no structure given; name one or more files, or PbTiO3-tetragonal")
    calculator = JaxptoCalculator(config.model if potential is None else potential, config.dtype)
    frames: list[ase.Atoms] = []
    notes: list[str] = []
    for path in config.structures:
        read = read_input(path, "evaluation", every=True, format=config.format, species=config.species)
        for index, atoms in enumerate(read.frames):
            check_supports(
                calculator.potential, atoms, f"{path} frame {index}" if len(read.frames) > 1 else path, stress=False
            )
        frames += read.frames
        notes += read.notes
    evaluated = evaluate_frames(frames, calculator.potential, config.dtype, progress=sys.stderr.isatty())
    write_frames(evaluated, config.out)
    _show(
        evaluated, config, calculator.potential.caveat, [*notes, neighbor_bound_warning(calculator.potential, frames)]
    )
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
    for numbers, index in track(order, "evaluating", console=terminal.console(stderr=True), disable=not progress):
        if numbers != current:
            calculator, current = JaxptoCalculator(potential, dtype), numbers
        evaluated[index] = _single_point(frames[index], calculator)
    return [atoms for atoms in evaluated if atoms is not None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("jaxpto.evaluate", EvaluateConfig, run, argv)


def _single_point(atoms: ase.Atoms, calculator: JaxptoCalculator) -> ase.Atoms:
    bare = made_anew(atoms)
    calculator.calculate(bare, calculator.implemented_properties)
    bare.calc = SinglePointCalculator(bare, **calculator.results)
    return bare


def _check_output(path: Path, overwrite: bool) -> None:
    check_suffix(path)
    check_output_file(path, overwrite=overwrite, remedy="add --overwrite to replace it")


def _show(frames: Sequence[ase.Atoms], config: EvaluateConfig, caveat: str, notes: Sequence[str]) -> None:
    table = WholeTable(
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
    console = terminal.console(EvaluateConfig)
    console.print(table)
    for note in filter(None, notes):
        console.print(note)
    console.print(f"{len(frames)} frames written to {config.out}")


if __name__ == "__main__":
    leave(main())
