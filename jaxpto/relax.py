"""COMMAND python -m jaxpto.relax: positions and cell of structures relaxed at 0 K."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ase
import tyro

from jaxpto import terminal
from jaxpto.ase_potential import HostCalculator
from jaxpto.axes import held_shear
from jaxpto.calculator import JaxptoCalculator
from jaxpto.catalogue import check_supports
from jaxpto.command import FAILED, configure_devices, leave, run_command
from jaxpto.errors import InputError
from jaxpto.provenance import provenance
from jaxpto.relaxation.batched import relax_batched
from jaxpto.relaxation.output import Entry, check_folder, make_entries, show, unique_names, write_folder
from jaxpto.relaxation.target import Relaxed, Target
from jaxpto.relaxation.with_ase import relax_with_ase
from jaxpto.status_line import StatusLine
from jaxpto.structures import read_input

NAME = "jaxpto.relax"


@dataclasses.dataclass(frozen=True)
class RelaxConfig:
    """Relax positions and cell of every frame of structure files, by default as the PTO-test paper does."""

    structures: tyro.conf.Positional[tuple[str, ...]]
    """Files in any ASE format, or PbTiO3-tetragonal, PbTiO3-cubic."""
    model: str
    """Name of a model, a model folder, or ase:package.module:factory."""
    out: Path
    """Output folder: config.json, relaxation.json, convergence.csv and the relaxed structures."""
    fmax: float = 1e-3
    """Bound of the residual, eV/A: forces, and stress in the form of ASE's FrechetCellFilter."""
    mask: Literal["iso", "diag", "full", "fixed"] = "full"
    """Strain of the cell: iso (volume), diag (xx, yy, zz), full (all six components), fixed (positions only)."""
    pressure: float = 0.0
    """GPa."""
    steps: int = 500
    """Evaluations allowed for each structure."""
    method: Literal["bfgs", "fire", "batched"] = "bfgs"
    """ASE's BFGS or FIRE, one structure after the other; or L-BFGS on the device, many structures at once."""
    dtype: Literal["float32", "float64"] = "float64"
    """Floating-point type of the model."""
    format: str | None = None
    """Of the file, as ASE calls it (vasp, cif, extxyz, lammps-data, ...); guessed by default."""
    species: tuple[str, ...] | None = None
    """Element of each atom type, for files of LAMMPS that name none."""


def run(config: RelaxConfig) -> list[Entry]:
    """Relax every structure, write the output folder, and return what came of each, in the order given.

    A structure that does not converge is no error here: its outcome says so. Whatever ends the command early, the
    structures that are finished by then are written.

    Raises:
        InputError: no or bad structures, unknown model or element, settings that cannot be used, an output folder in
            use, or an ASE calculator with the method batched; nothing is written then.
    """
    console = terminal.console()
    check_folder(config.out)
    target = Target(config.fmax, config.mask, config.pressure, config.steps)
    files, frames, notes = _read(config)
    if config.method == "batched":
        configure_devices()
    calculator = JaxptoCalculator(config.model, config.dtype)
    potential = calculator.potential
    for file, atoms in zip(files, frames, strict=True):
        check_supports(potential, atoms, file, stress=False)
    if config.method == "batched" and isinstance(potential.model, HostCalculator):
        raise InputError(f"model {config.model} runs in Python, one structure at a time; use --method bfgs or fire")
    held = _held(files, frames) if config.mask == "diag" else []
    for note in (*notes, *held):
        console.print(note)
    outcomes: dict[int, Relaxed] = {}

    def store() -> list[Entry]:
        """Write what is finished; the names are those of the whole."""
        done = sorted(outcomes)
        names = unique_names(files)
        entries = make_entries(
            [names[i] for i in done], [files[i] for i in done], [frames[i] for i in done], [outcomes[i] for i in done]
        )
        missing = [name for index, name in enumerate(names) if index not in outcomes]
        about: dict[str, Any] = {"model": potential.name, "conservative": potential.conservative, "missing": missing}
        write_folder(config.out, entries, {"config": dataclasses.asdict(config)} | provenance(), about)
        return entries

    try:
        with StatusLine(console, "compiling (once; kept in the compilation cache) ...") as line:
            if config.method == "batched":

                def report(done: int, residual: float) -> None:
                    worst = f", largest residual of those running {residual:.2e} eV/A" if residual else ""
                    line.update(f"{done} of {len(frames)} done{worst}")

                relax_batched(frames, potential, target, report, outcomes.__setitem__)
            else:
                _one_by_one(frames, calculator, target, config.method, line, outcomes)
    except BaseException:  # an interrupt, say
        if outcomes:
            store()
            console.print(f"{len(outcomes)} of {len(frames)} structures are finished and in {config.out}")
        raise
    entries = store()
    show(entries, _title(config, potential.name), console)
    if not potential.conservative:
        console.print(
            f"the forces of {potential.name} need not be derivatives of its energy: where they vanish need not be a "
            "minimum of it",
        )
    console.print(f"written to {config.out}")
    return entries


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 1 if a structure did not converge."""
    entries: list[Entry] = []
    code = run_command(NAME, RelaxConfig, lambda config: entries.extend(run(config)), argv)
    lost = [entry.name for entry in entries if not entry.relaxed.converged]
    if code or not lost:
        return code
    print(f"{NAME}: not converged: {', '.join(lost)} ({len(lost)} of {len(entries)})", file=sys.stderr)
    return FAILED


def _read(config: RelaxConfig) -> tuple[list[str], list[ase.Atoms], list[str]]:
    """Every frame of every file, the file it comes from, and what is to be said of them."""
    if not config.structures:
        raise InputError("no structure given; name one or more files, or PbTiO3-tetragonal")
    files: list[str] = []
    frames: list[ase.Atoms] = []
    notes: list[str] = []
    for path in config.structures:
        read = read_input(path, "relaxation", every=True, format=config.format, species=config.species)
        files += [path] * len(read.frames)
        frames += read.frames
        notes += read.notes
    return files, frames, notes


def _held(files: Sequence[str], frames: Sequence[ase.Atoms]) -> list[str]:
    """One line on the structures whose shear the mask diag holds, if there are any."""
    notes = [(file, held) for file, atoms in zip(files, frames, strict=True) if (held := held_shear(atoms.cell.array))]
    if not notes:
        return []
    file, held = notes[0]
    others = f" (and of {len(notes) - 1} more)" if len(notes) > 1 else ""
    return [f"{file}{others}: {held}; --mask full relaxes it"]


def _one_by_one(
    frames: Sequence[ase.Atoms],
    calculator: JaxptoCalculator,
    target: Target,
    optimizer: Literal["bfgs", "fire"],
    line: StatusLine,
    outcomes: dict[int, Relaxed],
) -> None:
    """Each structure by ASE; those of the same composition in a row, so that they share compiled programs."""
    for index in sorted(range(len(frames)), key=lambda index: frames[index].numbers.tolist()):

        def report(step: int, residual: float) -> None:
            line.update(f"{len(outcomes)} of {len(frames)} done; step {step}, residual {residual:.2e} eV/A")

        outcomes[index] = relax_with_ase(frames[index], calculator, target, optimizer, report)


def _title(config: RelaxConfig, model: str) -> str:
    cell = "cell fixed" if config.mask == "fixed" else f"mask {config.mask}, {config.pressure:g} GPa"
    return f"{model}, {config.dtype}, {config.method}, {cell}, fmax {config.fmax:g} eV/A"


if __name__ == "__main__":
    leave(main())
