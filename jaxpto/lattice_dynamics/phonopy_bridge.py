"""Between this package and phonopy: structures, force constants from both methods, Born charges, sum rules."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import ase
import jax
import numpy as np
from ase.calculators.calculator import BaseCalculator
from jaxtyping import Float
from phonopy import Phonopy
from phonopy.file_IO import parse_BORN
from phonopy.physical_units import get_physical_units
from phonopy.structure.atoms import PhonopyAtoms
from phonopy.structure.cells import guess_primitive_matrix
from phonopy.structure.symmetry import Symmetry

from jaxpto.calculator import site_properties_of
from jaxpto.errors import InputError
from jaxpto.lattice_dynamics.hessian import force_constants_of
from jaxpto.model_interface import BORN_CHARGES, PolarizableModel
from jaxpto.potential import Potential
from jaxpto.structures import make_supercell
from jaxpto.system import site_kinds

SYMMETRY_PRECISION = 1e-4  # Angstrom


def to_phonopy(atoms: ase.Atoms) -> PhonopyAtoms:
    """A structure as phonopy's atoms with its own masses; isotopes of an element are called O, O1, O2, ..."""
    kinds = site_kinds(atoms)
    _, firsts = np.unique(kinds, return_index=True)
    names: list[str] = []
    for first in firsts:
        symbol = atoms.symbols[first]
        others = sum(atoms.symbols[other] == symbol for other in firsts[: len(names)])
        names.append(f"{symbol}{others}" if others else symbol)
    return PhonopyAtoms(
        symbols=[names[kind] for kind in kinds],
        cell=atoms.cell.array,
        positions=atoms.positions,
        masses=atoms.get_masses(),
    )


def from_phonopy(cell: PhonopyAtoms) -> ase.Atoms:
    """A cell of phonopy as periodic ASE atoms, in the same order."""
    return ase.Atoms(numbers=cell.numbers, cell=cell.cell, positions=cell.positions, masses=cell.masses, pbc=True)


def make_phonopy(atoms: ase.Atoms, supercell: tuple[int, int, int]) -> Phonopy:
    """Phonopy's object for a supercell of a structure, without force constants yet.

    The primitive cell is the structure's own cell if that is primitive, and otherwise the one that phonopy finds
    (of a conventional fcc cell, say) by symmetry within 1e-4 Angstrom. Isotopes count as different sites: one 18O
    among 16O makes a larger primitive cell of lower symmetry.

    Args:
        atoms: unit cell.
        supercell: repeats along its lattice vectors.

    Raises:
        InputError: counts below 1.
    """
    make_supercell(atoms[:1], supercell)  # refuses what are no counts
    cell = to_phonopy(atoms)
    guess = guess_primitive_matrix(cell, symprec=SYMMETRY_PRECISION, distinguish_symbol_index=True)
    smaller = np.linalg.det(guess) < 0.99
    return Phonopy(
        cell,
        np.diag(supercell),
        primitive_matrix=guess if smaller else np.eye(3),
        symprec=SYMMETRY_PRECISION,
        distinguish_symbol_index=True,
    )


def hessian_force_constants(
    phonon: Phonopy,
    potential: Potential,
    batch: int | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "p n 3 3"]:
    """Force constants [primitive atoms, supercell atoms, 3, 3] eV/Angstrom^2 by automatic differentiation.

    Args:
        phonon: from `make_phonopy`; it is not changed.
        potential, batch, on_row: as in `force_constants_of`.

    Raises:
        InputError: `force_constants_of` refuses the structure or the potential.
    """
    rows = [int(index) for index in phonon.primitive.p2s_map]
    return force_constants_of(from_phonopy(phonon.supercell), potential, rows, batch, on_row)


def displacement_force_constants(
    phonon: Phonopy,
    calculator: BaseCalculator,
    distance: float = 0.01,
    diagonal: bool = False,
    on_row: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "p n 3 3"]:
    """The same by phonopy's finite displacements, reduced by the symmetry of the structure.

    Where no symmetry reverses a displacement, both signs are taken, so that the error is of second order in
    `distance`. Displacements and forces stay in `phonon.dataset`.

    Args:
        phonon: from `make_phonopy`; it keeps the displacements and the force constants.
        calculator: any ASE calculator.
        distance: Angstrom.
        diagonal: displace along diagonals too, as phonopy does by default, which takes fewer displacements; otherwise
            along lattice vectors only. For forces that are smooth over `distance` it makes no difference.
        on_row: called with the number of displacements done and their total.

    Raises:
        InputError: a distance that is not above 0.
    """
    if not 0.0 < distance < 1.0:
        raise InputError(f"displacement {distance:g} A: must be above 0 and below 1 A; 0.01 is usual")
    phonon.generate_displacements(distance=distance, is_plusminus="auto", is_diagonal=diagonal)
    supercells = phonon.supercells_with_displacements or []
    forces = []
    for supercell in supercells:
        atoms = from_phonopy(supercell)
        atoms.calc = calculator
        forces.append(atoms.get_forces())
        if on_row is not None:
            on_row(len(forces), len(supercells))
    phonon.forces = np.array(forces)
    phonon.produce_force_constants(calculate_full_force_constants=False)
    assert phonon.force_constants is not None
    return phonon.force_constants


def largest_force(phonon: Phonopy, calculator: BaseCalculator) -> float:
    """Largest force on an atom of the undisplaced supercell, eV/Angstrom; zero at an extremum of the energy."""
    atoms = from_phonopy(phonon.supercell)
    atoms.calc = calculator
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def sum_rule_residual(phonon: Phonopy, constants: Float[np.ndarray, "p n 3 3"]) -> float:
    """Largest component of sum_j Phi_ij and sum_i Phi_ij, eV/Angstrom^2; zero where a translation costs no energy.

    Args:
        phonon: phonopy's object with the cells that the indices refer to.
        constants: force constants [primitive atoms, supercell atoms, 3, 3] eV/Angstrom^2, before any symmetrization.
    """
    cell = [phonon.primitive.p2p_map[index] for index in phonon.primitive.s2p_map]
    images = np.eye(len(constants))[cell]  # [n, p], whether an atom is an image of one of the primitive cell
    onsite = np.einsum("injk,np->ipjk", constants, images)
    return float(max(np.abs(onsite.sum(axis=axis)).max() for axis in (0, 1)))


def add_born_charges(phonon: Phonopy, path: Path) -> None:
    """Switch the non-analytical term on, with the charges and dielectric tensor of a BORN file of phonopy.

    Args:
        phonon: from `make_phonopy`.
        path: factor (or a comment), the dielectric tensor, and the Born charges of the symmetry-inequivalent atoms of
            the primitive cell, in their order, one tensor a line.

    Raises:
        InputError: the file is missing, or phonopy cannot read it for this structure.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            charges = parse_BORN(phonon.primitive, symprec=SYMMETRY_PRECISION, filename=path)
    except FileNotFoundError:
        raise InputError(f"`born={path}` does not exist; give a BORN file of phonopy") from None
    except Exception as error:  # whatever the parser meets
        # Born charges do not depend on masses, and phonopy reads them by the symmetry of the elements
        atoms = len(Symmetry(phonon.primitive, SYMMETRY_PRECISION).get_independent_atoms())
        raise InputError(
            f"`born={path}`: {' '.join(str(error).split())}; phonopy's BORN format has a first line with the factor, "
            f"nine numbers of the dielectric tensor, and for this structure {atoms} lines of nine Born charges"
        ) from error
    phonon.nac_params = charges


def take_born_charges(phonon: Phonopy, potential: Potential) -> None:
    """Switch the non-analytical term on, with the charges and dielectric tensor that a model predicts.

    Args:
        phonon: from `make_phonopy`; the charges are those in its primitive cell.
        potential: one that predicts Born charges and whose model is a `PolarizableModel`.
    """
    assert isinstance(potential.model, PolarizableModel)
    units = get_physical_units()
    with jax.enable_x64(True):
        dielectric = np.asarray(potential.model.dielectric(potential.params), np.float64)
    phonon.nac_params = {
        "born": site_properties_of(potential, from_phonopy(phonon.primitive))[BORN_CHARGES],
        "dielectric": dielectric,
        "factor": units.Hartree * units.Bohr,  # e^2 / 4 pi epsilon_0 in eV Angstrom
    }
