"""COMMAND python -m jaxpto.evaluate: energy, forces and stress of every frame, and their errors against labels."""

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
from jaxpto.models.catalogue import reference_energies_of
from jaxpto.models.suitability import check_supports, neighbor_bound_warning
from jaxpto.potential import Potential
from jaxpto.reporting.columns import terminal_table
from jaxpto.reporting.error_report import ERRORS, PARITY_FIGURE, error_sections, error_sentence
from jaxpto.reporting.parity import ERROR_COLUMNS, error_table, shown_columns
from jaxpto.reporting.provenance import provenance
from jaxpto.reporting.result import Result, write_result
from jaxpto.storage.output import check_output_file, check_output_folder
from jaxpto.structures.labels import listed, names_in
from jaxpto.structures.write import check_suffix, write_frames
from jaxpto.system import made_anew
from jaxpto.training.comparison import Comparison, Zero, compare
from jaxpto.training.trajectories import LabelledTrajectory, read_trajectories


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Energy, forces, stress and other predictions for every frame, at full precision in eV and Angstrom.

    Where frames carry energies, forces or stresses (or virials) of their own, as training data do, the predictions are
    compared with them.
    """

    structures: tyro.conf.Positional[tuple[str, ...]]
    """Files in any ASE format, DeePMD npy folders, folders of these, or PbTiO3-tetragonal, PbTiO3-cubic,
    PbTiO3-experimental."""
    model: str
    """Name of a model, a model folder, or ase:package.module:factory."""
    out: Path | None = None
    """File for the frames with their predictions: .extxyz, .traj or .json."""
    errors: Path | None = None
    """Folder for the errors against the labels: errors.csv, errors.json, parity.png, report.html."""
    energy_zero: Zero = "auto"
    """Added to predicted energies: what the model is relative to (auto; fit if unknown), a fit for each element (fit),
    nothing (same)."""
    dtype: Literal["float32", "float64"] = "float64"
    """Floating-point type of the calculation."""
    overwrite: bool = False
    """Replace the output files if they exist."""
    format: str | None = None
    """Format of the file, as ASE calls it (vasp, cif, extxyz, lammps-data, ...); guessed by default."""
    species: tuple[str, ...] | None = None
    """Element of each atom type, for files of LAMMPS that name none."""


def run(config: EvaluateConfig, potential: Potential | None = None) -> list[ase.Atoms]:
    """Evaluate every frame, write them and their errors, and return them with their results attached.

    Args:
        config: the settings.
        potential: takes the place of the model that the settings name.

    Raises:
        InputError: no or bad structures, unknown model or element, unknown suffix, output that exists, no output, or
            errors asked of frames without labels.
    """
    if potential is not None:
        config = dataclasses.replace(config, model=potential.name)
    _check_output(config)
    if not config.structures:
        raise InputError("no structure given; name one or more files, or PbTiO3-tetragonal")
    calculator = JaxptoCalculator(config.model if potential is None else potential, config.dtype)
    trajectories = read_trajectories(config.structures, config.format, config.species)
    labelled = any(one.labelled.any() for one in trajectories)
    if config.errors is not None and not labelled:
        raise InputError(_without_labels(trajectories))
    for one in trajectories:
        for index, atoms in enumerate(one.frames):
            where = f"{one.source} frame {index}" if len(one.frames) > 1 else one.source
            check_supports(calculator.potential, atoms, where, stress=False)
    frames = [atoms for one in trajectories for atoms in one.frames]
    evaluated = evaluate_frames(frames, calculator.potential, config.dtype, progress=sys.stderr.isatty())
    if config.out is not None:
        write_frames(evaluated, config.out)
    notes = [note for one in trajectories for note in one.notes]
    _show(
        evaluated, config, calculator.potential.caveat, [*notes, neighbor_bound_warning(calculator.potential, frames)]
    )
    if labelled:
        references = {} if potential is not None else reference_energies_of(config.model)
        found = compare(trajectories, evaluated, references, config.energy_zero)
        _show_errors(found, config, calculator.potential.caveat, notes)
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


def _check_output(config: EvaluateConfig) -> None:
    if config.out is None and config.errors is None:
        raise InputError(
            "nothing to write; name a file with `out`, or a folder for errors against labels with `errors`"
        )
    if config.out is not None:
        check_suffix(config.out)
        check_output_file(config.out, overwrite=config.overwrite, remedy="add --overwrite to replace it")
    if config.errors is not None:
        check_output_folder(config.errors, resume=config.overwrite, called="folder")


def _without_labels(trajectories: Sequence[LabelledTrajectory]) -> str:
    there = sorted({name for one in trajectories for atoms in one.frames for name in names_in(atoms)})
    return (
        f"no frame has an energy, forces or a stress to compare with (they hold {listed(there) or 'nothing else'}); "
        "label them with the keys energy, forces, stress, or leave `errors` out"
    )


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
    if config.out is not None:
        console.print(f"{len(frames)} frames written to {config.out}")


def _show_errors(found: Comparison, config: EvaluateConfig, caveat: str, notes: Sequence[str]) -> None:
    """Print the errors against the labels, and write them where that was asked."""
    console = terminal.console(EvaluateConfig)
    rows = error_table(found.parities)
    if config.errors is None:
        console.print(terminal_table(shown_columns(ERROR_COLUMNS, rows), rows, "errors against the labels"))
        for note in found.notes:
            console.print(note)
        return
    errors, worst, drawn = error_sections(found.parities, rows)
    result = Result(
        title=f"Errors of {Path(config.model).name}",
        headline=error_sentence(rows[-1]),
        remarks=found.notes,
        table=errors,
        sections=[worst],
        pictures={PARITY_FIGURE: drawn},
        settings=dataclasses.asdict(config) | provenance(),
        stem=ERRORS,
        about={"element_energies_added_eV": found.offsets, "worst_frames": worst.rows},
        notes=notes,
        caveat=caveat,
        options=EvaluateConfig,
    )
    write_result(config.errors, result, console)
    console.print(terminal_table(worst.columns, worst.rows, worst.heading.lower()))


if __name__ == "__main__":
    leave(main())
