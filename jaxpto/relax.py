"""COMMAND python -m jaxpto.relax: positions and cell of structures relaxed at 0 K."""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ase
import jax
import numpy as np
import tyro

from jaxpto.calculator import JaxptoCalculator
from jaxpto.console import terminal
from jaxpto.console.command import FAILED, configure_devices, leave, run_command
from jaxpto.console.status_line import StatusLine
from jaxpto.errors import InputError
from jaxpto.models.ase_calculator import HostCalculator
from jaxpto.models.suitability import check_supports
from jaxpto.potential import Potential
from jaxpto.relaxation.batched import relax_batched
from jaxpto.relaxation.finished import check_begun, check_same, keep, load_kept
from jaxpto.relaxation.output import Entry, make_entries, print_relaxations, unique_names, write_folder
from jaxpto.relaxation.target import Relaxed, Target
from jaxpto.relaxation.with_ase import relax_with_ase
from jaxpto.reporting.provenance import fingerprint, provenance
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.identity import digest_of, make_identity
from jaxpto.storage.lock import one_run
from jaxpto.structures import read_input
from jaxpto.structures.axes import held_shear
from jaxpto.system import from_ase

NAME = "jaxpto.relax"


@dataclasses.dataclass(frozen=True)
class RelaxConfig:
    """Relax positions and cell of every frame of structure files, by default as the PTO-test paper does."""

    structures: tyro.conf.Positional[tuple[str, ...]]
    """Files in any ASE format, or PbTiO3-tetragonal, PbTiO3-cubic, PbTiO3-experimental."""
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
    """Format of the file, as ASE calls it (vasp, cif, extxyz, lammps-data, ...); guessed by default."""
    species: tuple[str, ...] | None = None
    """Element of each atom type, for files of LAMMPS that name none."""
    resume: bool = False
    """Go on with the run in the output folder, or begin if nothing is there; finished structures are kept."""


def run(config: RelaxConfig, potential: Potential | None = None) -> list[Entry]:
    """Relax every structure, write the output folder, and return the outcomes in the order given.

    A structure that does not converge is no error here: its outcome says so. Every structure is stored as soon as it is
    finished, so that a resumed run repeats only structures that were under way, and ends with the outcomes of an
    uninterrupted one. An interrupted run, too, writes tables and structure files if it has the time.

    Args:
        config: the settings.
        potential: takes the place of the model that the settings name.

    Raises:
        InputError: no or bad structures, unknown model or element, settings that cannot be used, an output folder in
            use, or an ASE calculator with the method batched; nothing is written then.
    """
    if potential is not None:
        config = dataclasses.replace(config, model=potential.name)
    begun = check_begun(config.out, resume=config.resume)
    with one_run(config.out):
        return _relax(config, potential, begun)


def _relax(config: RelaxConfig, given: Potential | None, begun: bool) -> list[Entry]:
    console = terminal.console(RelaxConfig)
    target = Target(config.fmax, config.mask, config.pressure, config.steps)
    files, frames, notes = _read(config)
    if config.method == "batched":
        configure_devices()
    calculator = JaxptoCalculator(config.model if given is None else given, config.dtype)
    potential = calculator.potential
    for file, atoms in zip(files, frames, strict=True):
        check_supports(potential, atoms, file, stress=False)
    if config.method == "batched" and isinstance(potential.model, HostCalculator):
        raise InputError(f"model {config.model} runs in Python, one structure at a time; use --method bfgs or fire")
    held = _held(files, frames) if config.mask == "diag" else []
    for note in (*notes, *held):
        console.print(note)
    names, identity = unique_names(files), _identity(config, potential, files, frames)
    outcomes: dict[int, Relaxed] = {}
    if begun:
        check_same(config.out, identity)
        outcomes = load_kept(config.out, names, frames, lambda line: print(line, file=sys.stderr))
        console.print(f"{len(outcomes)} of {len(frames)} structures were finished before")
    elif config.resume:
        print(f"nothing in {config.out} to go on with: begins")

    def finish(index: int, outcome: Relaxed) -> None:
        nonlocal begun
        if not begun:  # not before there is something to keep: what is refused leaves no folder
            config.out.mkdir(parents=True, exist_ok=True)
            document = {"config": dataclasses.asdict(config), "identity": identity}
            write_json_atomic(config.out / "config.json", document | provenance())
            begun = True
        keep(config.out, names[index], outcome)
        outcomes[index] = outcome

    def store() -> list[Entry]:
        """Write the finished structures; the names are those of the whole run."""
        done = sorted(outcomes)
        entries = make_entries(
            [names[i] for i in done], [files[i] for i in done], [frames[i] for i in done], [outcomes[i] for i in done]
        )
        missing = [name for index, name in enumerate(names) if index not in outcomes]
        about: dict[str, Any] = {"model": potential.name, "conservative": potential.conservative, "missing": missing}
        write_folder(config.out, entries, about)
        return entries

    try:
        with StatusLine(console, "compiling (once; kept in the compilation cache) ...") as line:
            if config.method == "batched":

                def report(done: int, residual: float) -> None:
                    worst = f", largest residual of those running {residual:.2e} eV/A" if residual else ""
                    line.update(f"{done} of {len(frames)} done{worst}")

                relax_batched(frames, potential, target, report, finish, dict(outcomes))
            else:
                _one_by_one(frames, calculator, target, config.method, line, outcomes, finish)
    except BaseException:  # an interrupt, say
        if outcomes:
            store()
            console.print(f"{len(outcomes)} of {len(frames)} structures are finished and in {config.out}")
        raise
    entries = store()
    print_relaxations(entries, _title(config, potential.name), console)
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
    """Every frame of every file, the file it comes from, and notes for the user."""
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
    outcomes: Mapping[int, Relaxed],
    finish: Callable[[int, Relaxed], None],
) -> None:
    """Each structure without an outcome by ASE; those with the same atoms share a compiled program.

    Each begins with neighbour lists of the same sizes, so that its numbers do not depend on the structures before it.
    """

    def report(step: int, residual: float) -> None:
        line.update(f"{len(outcomes)} of {len(frames)} done; step {step}, residual {residual:.2e} eV/A")

    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, atoms in enumerate(frames):
        groups[tuple(atoms.numbers.tolist())].append(index)
    for _, members in sorted(groups.items()):
        to_do = [index for index in members if index not in outcomes]
        if not to_do:
            continue
        with jax.enable_x64(True):
            systems = [from_ase(frames[index], np.float64) for index in members]
            layout = calculator.potential.allocate(systems, calculator.skin)
        for index in to_do:
            own = JaxptoCalculator(calculator.potential, str(calculator.dtype), calculator.skin, layout)
            finish(index, relax_with_ase(frames[index], own, target, optimizer, report))


def _identity(
    config: RelaxConfig, potential: Potential, files: Sequence[str], frames: Sequence[ase.Atoms]
) -> dict[str, Any]:
    """The identity that a resumed run must share."""
    settings = {name: getattr(config, name) for name in ("fmax", "mask", "pressure", "steps", "method", "dtype")}
    host = isinstance(potential.model, HostCalculator)  # of which no more than the name is known
    structures = [
        (name, digest_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.get_masses()))
        for name, atoms in zip(unique_names(files), frames, strict=True)
    ]
    return make_identity(settings | ({"model": config.model} if host else {}), structures,
                         {"model": None if host else fingerprint(potential)})  # fmt: skip


def _title(config: RelaxConfig, model: str) -> str:
    cell = "cell fixed" if config.mask == "fixed" else f"mask {config.mask}, {config.pressure:g} GPa"
    return f"{model}, {config.dtype}, {config.method}, {cell}, fmax {config.fmax:g} eV/A"


if __name__ == "__main__":
    leave(main())
