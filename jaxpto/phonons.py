"""COMMAND python -m jaxpto.phonons: force constants, bands, density of states and thermal properties of a crystal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ase
import tyro
from phonopy import Phonopy
from rich.console import Console

from jaxpto.calculator import JaxptoCalculator
from jaxpto.console import terminal
from jaxpto.console.command import leave, run_command
from jaxpto.console.status_line import StatusLine
from jaxpto.errors import InputError
from jaxpto.lattice_dynamics.harmonic import harmonic_properties, largest_difference
from jaxpto.lattice_dynamics.output import (
    AGREEMENT,
    Calculation,
    ModelResult,
    print_phonons,
    write_model,
    write_phonons,
)
from jaxpto.lattice_dynamics.paths import PathName, band_path
from jaxpto.lattice_dynamics.phonopy_bridge import (
    SYMMETRY_PRECISION,
    add_born_charges,
    displacement_force_constants,
    hessian_force_constants,
    largest_force,
    make_phonopy,
    sum_rule_residual,
    take_born_charges,
)
from jaxpto.model_interface import BORN_CHARGES, PolarizableModel, predicts
from jaxpto.models.ase_calculator import HostCalculator
from jaxpto.models.suitability import check_supports
from jaxpto.potential import Potential
from jaxpto.relaxation.target import Relaxed, Target, with_results
from jaxpto.relaxation.with_ase import relax_with_ase
from jaxpto.reporting.provenance import provenance
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.output import check_output_folder
from jaxpto.structures import read_input

DEFAULT_TEMPERATURES = tuple(float(kelvin) for kelvin in range(0, 1001, 10))
RELAXATION = Target(fmax=1e-5)


@dataclasses.dataclass(frozen=True)
class PhononsConfig:
    """Phonons of a crystal with one or more models, in double precision; it is relaxed with each model first."""

    structure: tyro.conf.Positional[str]
    """File in any ASE format, or PbTiO3-tetragonal, PbTiO3-cubic, PbTiO3-experimental."""
    model: tuple[str, ...]
    """Names of models, model folders, or ase:package.module:factory."""
    out: Path
    """Folder to write; it must be new or empty."""
    supercell: tuple[int, int, int] = (2, 2, 2)
    """Repeats along the lattice vectors."""
    method: Literal["displacement", "hessian", "both"] = "displacement"
    """Force constants by finite displacements, by automatic differentiation, or by both and compared."""
    symmetrize: bool = False
    """Make the force constants obey the acoustic sum rule, as phonopy does it; the residual from before is shown."""
    path: PathName = "auto"
    """Path of the bands: auto (by symmetry, from seekpath), or pto-test (G X M G Z R A Z)."""
    distance: float = 0.01
    """Length of a displacement, Angstrom."""
    diagonal: bool = False
    """Displace along diagonals too, as phonopy does by default; fewer displacements, the same if forces are smooth."""
    mesh: tuple[int, int, int] | None = None
    """Wave vectors of density of states and thermal properties; by default 100 A over the lattice parameters."""
    temperatures: tuple[float, ...] | None = None
    """Temperatures of the thermal properties, K; by default 0 to 1000 in steps of 10."""
    born: Literal["model"] | Path | None = None
    """For the splitting of longitudinal optical modes: a BORN file of phonopy (dielectric tensor and Born charges), or
    model for those that the model itself predicts for the relaxed structure."""
    relax: bool = True
    """Relax positions and cell with the same model first, to 1e-5 eV/A."""
    batch: int | None = None
    """Rows of the Hessian in memory together; by default 1 on a processor, 12 on an accelerator."""
    format: str | None = None
    """Format of the file, as ASE calls it (vasp, cif, extxyz, lammps-data, ...); guessed by default."""
    species: tuple[str, ...] | None = None
    """Element of each atom type, for files of LAMMPS that name none."""


def run(config: PhononsConfig, potential: Potential | None = None, *, brief: bool = False) -> list[ModelResult]:
    """Compute the phonons of a structure with every model, write the output folder, and return what was found.

    Args:
        config: the settings.
        potential: takes the place of the models that the settings name.
        brief: leave the results to the output folder and print the progress alone.

    Raises:
        InputError: settings, structure, model, BORN file or output folder that cannot be used; nothing is written then.
    """
    console = terminal.console(PhononsConfig)
    _check(config)
    given = read_input(config.structure, "vibrations", format=config.format, species=config.species)
    atoms = given.atoms
    calculators = _calculators(config, potential, atoms)
    _prepare(config, atoms)  # refuses what only the structure can tell, before any time is spent
    config.out.mkdir(parents=True, exist_ok=True)
    write_json_atomic(config.out / "config.json", {"config": dataclasses.asdict(config)} | provenance())
    for note in given.notes:
        console.print(note)
    results = []
    for name, calculator in calculators.items():
        results.append(_run_model(name, calculator, atoms, config, console))
        write_model(results[-1], config.out / name if len(calculators) > 1 else config.out)
    write_phonons(results, config.out)
    if not brief:
        print_phonons(results, console)
        console.print(f"written to {config.out}")
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("jaxpto.phonons", PhononsConfig, run, argv)


def _run_model(
    name: str, calculator: JaxptoCalculator, atoms: ase.Atoms, config: PhononsConfig, console: Console
) -> ModelResult:
    def say(line: str) -> None:
        console.print(f"{name}: {line}")

    relaxed, atoms = _relax(name, calculator, atoms, config, console)
    say(_structure_line(atoms, relaxed))
    if relaxed is not None and not relaxed.converged:
        say(f"NOT relaxed to {RELAXATION.fmax:g} eV/A ({relaxed.reason}): frequencies are off by what these forces do")
    if not calculator.potential.conservative:
        say("its forces need not be derivatives of its energy; of the force constants the symmetric part is used")
    methods = ("hessian", "displacement") if config.method == "both" else (config.method,)
    force, calculations = 0.0, {}
    for method in methods:
        phonon = _prepare(config, atoms)
        if config.born == "model":
            take_born_charges(phonon, calculator.potential)
        if not calculations:
            force = largest_force(phonon, calculator)
            say(_cells_line(phonon, force))
        with StatusLine(console, f"{method} ...", name) as line:
            if method == "hessian":
                line.update("compiling the second derivatives (once; kept in the compilation cache)")
                constants = hessian_force_constants(
                    phonon,
                    calculator.potential,
                    config.batch,
                    lambda done, total: line.update(f"atom {done} of {total}"),
                )
            else:
                constants = displacement_force_constants(
                    phonon, calculator, config.distance, config.diagonal,
                    lambda done, total: line.update(f"displacement {done} of {total}"),
                )  # fmt: skip
            line.update("bands, density of states, thermal properties")
            phonon.force_constants = constants
            if config.symmetrize:
                phonon.symmetrize_force_constants()
            path = band_path(config.path, phonon.primitive, SYMMETRY_PRECISION)
            harmonic = harmonic_properties(
                phonon, path, sorted(set(config.temperatures or DEFAULT_TEMPERATURES)), config.mesh
            )
        residual = sum_rule_residual(phonon, constants)
        calculations[method] = Calculation(phonon, harmonic, residual, config.symmetrize)
        effort = f"{_count(len(phonon.displacements), 'displacement')}, " if method == "displacement" else ""
        say(f"{method}: {effort}acoustic sum rule violated by {residual:.1e} eV/A^2")
    difference = None
    if len(calculations) > 1:
        difference = largest_difference(*(calculation.harmonic for calculation in calculations.values()))
        place = f"{difference.point}, band {difference.band}"
        say(f"the methods differ by {difference.frequency:.4f} THz at most, at {place}")
        if difference.frequency > AGREEMENT:
            say(
                f"that is above {AGREEMENT:g} THz: the forces are not linear over {config.distance:g} A (those of some "
                "models have jumps, or cusps where three atoms are in line); compare with another --distance"
            )
    return ModelResult(name, calculator.potential.conservative, atoms, relaxed, force, calculations, difference)


def _relax(
    name: str, calculator: JaxptoCalculator, atoms: ase.Atoms, config: PhononsConfig, console: Console
) -> tuple[Relaxed | None, ase.Atoms]:
    if config.relax:
        with StatusLine(console, "relaxing ...", name) as line:
            relaxed = relax_with_ase(
                atoms,
                calculator,
                RELAXATION,
                on_step=lambda step, residual: line.update(f"step {step}, {residual:.1e} eV/A"),
            )
        return relaxed, relaxed.atoms
    single = atoms.copy()
    single.calc = calculator
    return None, with_results(single, single.get_potential_energy(), single.get_forces(), None)


def _prepare(config: PhononsConfig, atoms: ase.Atoms) -> Phonopy:
    """Phonopy's object for the structure, with the Born charges of a file if there is one."""
    phonon = make_phonopy(atoms, config.supercell)
    band_path(config.path, phonon.primitive, SYMMETRY_PRECISION)
    if isinstance(config.born, Path):
        add_born_charges(phonon, config.born)
    return phonon


def _calculators(config: PhononsConfig, given: Potential | None, atoms: ase.Atoms) -> dict[str, JaxptoCalculator]:
    """A calculator for every model, by names that tell them apart and can be those of folders."""
    found: dict[str, JaxptoCalculator] = {}
    for model in config.model:
        calculator = JaxptoCalculator(model if given is None else given)
        potential = calculator.potential
        check_supports(potential, atoms, config.structure, stress=config.relax)
        if config.born == "model" and not (
            predicts(potential.model, BORN_CHARGES) and isinstance(potential.model, PolarizableModel)
        ):
            raise InputError(
                f"--born model: {potential.name} predicts no Born charges with a dielectric tensor; give a BORN file"
            )
        if config.method != "displacement" and isinstance(potential.model, HostCalculator):
            raise InputError(
                f"--method {config.method}: model {potential.name} runs in Python, where JAX has no derivatives; "
                "use --method displacement"
            )
        name = potential.name.replace(":", "_").replace("/", "_")
        clashes = sum(other == name or other.startswith(f"{name}-") for other in found)
        found[f"{name}-{clashes + 1}" if name in found else name] = calculator
    return found


def _check(config: PhononsConfig) -> None:
    def require(condition: bool, name: str, value: Any, limit: str) -> None:
        if not condition:
            spelled = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise InputError(f"--{name} {spelled}: {limit}")

    require(len(config.model) > 0, "model", "(none)", "name at least one model")
    repeated = len(set(config.model)) < len(config.model)
    require(not repeated, "model", config.model, "names one model twice; name each once")
    require(min(config.supercell) >= 1, "supercell", config.supercell, "must be three counts of at least 1")
    require(
        0.0 < config.distance <= 0.5, "distance", config.distance, "must be above 0 and at most 0.5 A; 0.01 is usual"
    )
    require(config.mesh is None or min(config.mesh) >= 1, "mesh", config.mesh, "must be three counts of at least 1")
    require(config.batch is None or config.batch >= 1, "batch", config.batch, "must be at least 1 row")
    for kelvin in config.temperatures or ():
        require(math.isfinite(kelvin) and kelvin >= 0.0, "temperatures", kelvin, "must be 0 K or above")
    require(config.temperatures != (), "temperatures", "(none)", "give at least one temperature in K")
    check_output_folder(config.out)


def _structure_line(atoms: ase.Atoms, relaxed: Relaxed | None) -> str:
    a, b, c, *angles = atoms.cell.cellpar()
    cell = f"a b c {a:.4f} {b:.4f} {c:.4f} A, angles {angles[0]:.2f} {angles[1]:.2f} {angles[2]:.2f}"
    if relaxed is None:
        largest = float((atoms.get_forces() ** 2).sum(axis=1).max() ** 0.5)
        return f"as given, not relaxed: largest force {largest:.1e} eV/A; {cell}"
    return f"{relaxed.steps} steps of relaxation, residual {relaxed.residual:.1e} eV/A; {cell}"


def _cells_line(phonon: Phonopy, force: float) -> str:
    primitive, unit, supercell = len(phonon.primitive), len(phonon.unitcell), len(phonon.supercell)
    kind = f"primitive cell of {_count(primitive, 'atom')}" + (
        "" if primitive == unit else f" (of {unit} in the structure)"
    )
    space_group = phonon.symmetry.get_international_table()
    return f"{space_group}, {kind}, supercell of {supercell}, largest force in it {force:.1e} eV/A"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


if __name__ == "__main__":
    leave(main())
