"""The first structures to label: strained, rattled, and displaced along the teacher's phonons at each temperature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import ase
import numpy as np
from phonopy import Phonopy

from jaxpto.distillation.teacher import bare
from jaxpto.lattice_dynamics.phonopy_bridge import from_phonopy, make_phonopy
from jaxpto.structures import make_supercell

DISPLACEMENT = 0.03  # Angstrom, of an atom in the supercells that phonons are derived from
STRAIN = 0.012  # standard deviation of each component of a random strain
VOLUME = 0.01  # and of a third of the relative change of volume
RATTLES = (0.01, 0.02, 0.04, 0.06)  # Angstrom, standard deviations of random displacements, in turn
SOFTEST = 0.07  # of the highest frequency; modes below it are not displaced: they would go anywhere
FARTHEST = 0.25  # Angstrom, limit of the displacement of an atom along phonons

Label = Callable[[Sequence[ase.Atoms], str], list[ase.Atoms]]


@dataclasses.dataclass(frozen=True)
class Crystal:
    """One structure that is distilled.

    Attributes:
        name: that of its file without suffix, or the built-in one.
        source: what to give to a sweep: a file or a built-in name.
        atoms: the unit cell.
        repeats: repeats along its lattice vectors, in which it is labelled and simulated.
    """

    name: str
    source: str
    atoms: ase.Atoms
    repeats: tuple[int, int, int]

    @property
    def supercell(self) -> ase.Atoms:
        """What is labelled and simulated."""
        return make_supercell(bare(self.atoms), self.repeats)


def random_structures(crystal: Crystal, number: int, generator: np.random.Generator) -> list[ase.Atoms]:
    """Supercells with random strains and random displacements; every fifth is strained alone.

    Args:
        crystal: the structure.
        number: how many.
        generator: random numbers.
    """
    found = []
    for k in range(number):
        strain = generator.normal(scale=STRAIN, size=(3, 3))
        strain = 0.5 * (strain + strain.T) + generator.normal(scale=VOLUME) * np.eye(3)
        atoms = crystal.supercell
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        if k % 5:
            atoms.positions += generator.normal(scale=RATTLES[k % len(RATTLES)], size=(len(atoms), 3))
        found.append(atoms)
    return found


def displaced_supercells(crystal: Crystal) -> tuple[Phonopy, list[ase.Atoms]]:
    """Phonopy's object and the displaced supercells whose forces give the force constants; the number is symmetry's."""
    phonon = make_phonopy(bare(crystal.atoms), crystal.repeats)
    phonon.generate_displacements(distance=DISPLACEMENT, is_plusminus="auto", is_diagonal=False)
    return phonon, [from_phonopy(cell) for cell in phonon.supercells_with_displacements or []]


def thermal_structures(
    phonon: Phonopy,
    labelled: Sequence[ase.Atoms],
    temperatures: Sequence[float],
    number: int,
    seed: int,
) -> list[ase.Atoms]:
    """Supercells displaced along all phonons as a classical crystal is, a number of them at each temperature.

    Modes with imaginary frequencies are displaced as those with |frequency| are (phonopy's choice), and the softest
    ones not at all.

    Args:
        phonon: from `displaced_supercells`; it keeps the force constants.
        labelled: its displaced supercells with forces.
        temperatures: K.
        number: structures at each.
        seed: seed of the random numbers.
    """
    phonon.forces = np.array([atoms.get_forces() for atoms in labelled])
    phonon.produce_force_constants()
    highest = float(phonon.run_qpoints([[0.5, 0.5, 0.5]]).frequencies.max())
    phonon.init_random_displacements("classical", cutoff_frequency=SOFTEST * highest, max_distance=FARTHEST)
    found = []
    for k, kelvin in enumerate(temperatures):
        moved = phonon.get_random_displacements_at_temperature(kelvin, number, random_seed=seed + k)
        for displacement in moved:
            atoms = from_phonopy(phonon.supercell)
            atoms.positions += displacement
            found.append(bare(atoms))
    return found
