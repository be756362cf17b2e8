"""Method harmonic: absolute free energy of the vibrations about one structure, from its force constants."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float
from phonopy import Phonopy
from rich.console import Console

from jaxpto.calculator import JaxptoCalculator
from jaxpto.console.status_line import StatusLine
from jaxpto.errors import InputError
from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.free_energy.estimators.spectral import ModeFunction, frequencies
from jaxpto.free_energy.harmonic.output import HarmonicResult, Treatment, write_harmonic
from jaxpto.free_energy.harmonic.vibrations import (
    VibratingCrystal,
    VibrationalThermodynamics,
    dynamical_matrices,
    make_crystal,
    usual_mesh,
    vibrational_free_energy,
    vibrational_thermodynamics,
    without_translations,
)
from jaxpto.free_energy.quasiharmonic.landscape import imaginary_text
from jaxpto.lattice_dynamics.harmonic import formula_units
from jaxpto.lattice_dynamics.phonopy_bridge import hessian_force_constants, make_phonopy
from jaxpto.models.ase_calculator import HostCalculator
from jaxpto.models.suitability import check_supports
from jaxpto.relaxation.target import Target
from jaxpto.relaxation.with_ase import relax_with_ase
from jaxpto.reporting.provenance import provenance
from jaxpto.reporting.subject import Subject
from jaxpto.storage.output import check_output_folder
from jaxpto.structures import read_input
from jaxpto.structures.axes import held_shear
from jaxpto.units import GIGAPASCAL

FMAX = 1e-5  # eV/Angstrom, of the relaxation
COLD = 1e-3  # K, where only the zero-point energy is left


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A structure and a model, prepared for the computation of vibrations.

    Attributes:
        calculator: the model in double precision.
        atoms: unit cell, relaxed if `relax` says so.
        phonon: phonopy's object for the supercell.
        crystal: the vibrating crystal, with its mesh.
        subject: crystal and model; energies belong to the primitive cell.
        treatment: statistics, pressure, supercell and mesh.
    """

    calculator: JaxptoCalculator
    atoms: ase.Atoms
    phonon: Phonopy
    crystal: VibratingCrystal
    subject: Subject
    treatment: Treatment


def run_harmonic(config: FreeEnergyConfig, console: Console) -> HarmonicResult:
    """Compute the harmonic free energy at every temperature, write the output folder, and return what was found.

    Raises:
        InputError: settings, structure, model or output folder that cannot be used, or imaginary modes that are
            refused; nothing is written then.
    """
    with jax.enable_x64(True):
        check_harmonic(config)
        prepared = prepare_crystal(config, console)
        result = _analyse(config, prepared, console)
    settings = dataclasses.asdict(config) | provenance()
    write_harmonic(result, prepared.subject, prepared.treatment, config.out, settings, console)
    return result


def check_harmonic(config: FreeEnergyConfig) -> None:
    """Refuse settings that neither harmonic nor qha can use, and output folders of other methods.

    Raises:
        InputError: one line with the value, the limit and the remedy.
    """
    if not config.temperatures:
        raise InputError("`temperatures` (none): give at least one temperature in K")
    for kelvin in config.temperatures:
        if not (math.isfinite(kelvin) and kelvin > 0.0):
            raise InputError(f"`temperatures={kelvin:g}`: must be above 0 K; 1 K is as good as 0 K")
    if not math.isfinite(config.pressure):
        raise InputError(f"`pressure={config.pressure}`: must be a finite number of GPa")
    mesh = config.harmonic.mesh
    if mesh is not None and min(mesh) < 1:
        raise InputError(f"`mesh={mesh}`: must be three counts of at least 1")
    check_output_folder(config.out, resume=_method_of(config.out) == config.method)


def prepare_crystal(config: FreeEnergyConfig, console: Console) -> Prepared:
    """Load the model and the structure, relax it if wanted, and set up its supercell and wave vectors.

    Raises:
        InputError: structure or model that cannot be used, or a relaxation that does not converge.
    """
    read = read_input(config.structure, "vibrations", format=config.format, species=config.species)
    given = read.atoms
    calculator = JaxptoCalculator(config.model)
    potential = calculator.potential
    check_supports(potential, given, config.structure)
    if isinstance(potential.model, HostCalculator):
        raise InputError(
            f"`method={config.method}`: model {potential.name} runs in Python, where JAX has no derivatives; "
            "use python -m jaxpto.phonons `method=displacement`"
        )
    make_phonopy(given, config.repeats)  # refuses what are no counts, before any time is spent
    for note in read.notes:
        console.print(note)
    atoms = given
    if config.harmonic.relax != "none":
        fixed = config.harmonic.relax == "positions"
        if not fixed and config.mask == "diag" and (held := held_shear(given.cell.array)):
            console.print(f"{config.structure}: {held}; `mask=full` relaxes it")
        target = Target(FMAX, "fixed" if fixed else config.mask, 0.0 if fixed else config.pressure)
        with StatusLine(console, "relaxing ...") as line:
            relaxed = relax_with_ase(
                given, calculator, target, on_step=lambda step, left: line.update(f"step {step}, {left:.1e} eV/A")
            )
        if not relaxed.converged:
            raise InputError(
                f"{config.structure} does not relax to {FMAX:g} eV/A ({relaxed.reason}); start from a structure nearer "
                "to equilibrium, or take it as it is with `harmonic.relax=none`"
            )
        atoms = relaxed.atoms
    phonon = make_phonopy(atoms, config.repeats)
    mesh = config.harmonic.mesh or usual_mesh(phonon.primitive)
    formula, _ = given.symbols.formula.reduce()
    subject = Subject(
        formula=formula.format("metal"),
        model=config.model,
        units=formula_units(phonon.primitive.numbers),
        atoms=len(phonon.primitive),
        caveat=potential.caveat,
    )
    treatment = Treatment(config.harmonic.statistics, config.pressure, config.repeats, mesh)
    return Prepared(calculator, atoms, phonon, make_crystal(phonon, mesh), subject, treatment)


def _analyse(config: FreeEnergyConfig, prepared: Prepared, console: Console) -> HarmonicResult:
    with StatusLine(console, "compiling the second derivatives (once; kept in the compilation cache) ...") as line:
        constants = hessian_force_constants(
            prepared.phonon,
            prepared.calculator.potential,
            on_row=lambda done, total: line.update(f"force constants of atom {done} of {total}"),
        )
        line.update("vibrations")
        crystal = prepared.crystal
        matrices = dynamical_matrices(crystal, jnp.asarray(constants))
        found = np.asarray(frequencies(without_translations(crystal, matrices)))
        if config.harmonic.imaginary == "refuse" and found.min() <= 0.0:
            worst = np.unravel_index(found.argmin(), found.shape)[0]
            raise InputError(
                f"{imaginary_text(float(found.min()), np.asarray(crystal.points)[worst])}: a harmonic free energy is "
                "that of a stable crystal; take another phase or a larger `supercell`, or say what is to become of "
                "such modes with `imaginary=omit` or absolute"
            )
        function = ModeFunction(config.harmonic.statistics, config.harmonic.imaginary)
        kelvin = np.unique(config.temperatures)
        values = jax.device_get(_thermal(function, crystal, matrices, jnp.asarray(kelvin)))
        zero = vibrational_free_energy(
            dataclasses.replace(function, statistics="quantum"), crystal, matrices, jnp.asarray(COLD)
        )
    single = prepared.atoms.copy()
    single.calc = prepared.calculator
    cells = len(single) / prepared.subject.atoms
    return HarmonicResult(
        temperatures=kelvin,
        static=float(single.get_potential_energy()) / cells,
        volume=float(single.get_volume()) / cells,
        work=config.pressure * GIGAPASCAL * float(single.get_volume()) / cells,
        values=values,
        zero_point=float(zero),
        lowest=float(found.min()),
        imaginary=float(np.asarray(crystal.weights) @ (found <= 0.0).sum(axis=1) / (3 * prepared.subject.atoms)),
        treatment=config.harmonic.imaginary,
        force=float(np.linalg.norm(single.get_forces(), axis=1).max()),
        lengths=tuple(single.cell.lengths().tolist()),
    )


@functools.partial(jax.jit, static_argnames="function")
def _thermal(
    function: ModeFunction,
    crystal: VibratingCrystal,
    matrices: Complex[Array, "q m m"],
    temperatures: Float[Array, " t"],
) -> VibrationalThermodynamics:
    return jax.vmap(lambda kelvin: vibrational_thermodynamics(function, crystal, matrices, kelvin))(temperatures)


def _method_of(out: Path) -> str | None:
    """The method that writes or wrote an output folder; None if it was neither harmonic nor qha."""
    for name in ("free_energy.json", "points.json"):
        try:
            document = json.loads((out / name).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(document, dict) and "method" in document:
            return str(document["method"])
    return None
