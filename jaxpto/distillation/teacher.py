"""Labels of a teacher: energy, forces and stress of structures, several at a time on the cores of one device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import ase.data
import jax
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from jaxtyping import Array

from jaxpto.errors import InputError
from jaxpto.model_interface import Prediction
from jaxpto.models import ase_calculator
from jaxpto.models.catalogue import load_potential, reference_energies_of
from jaxpto.models.suitability import check_known
from jaxpto.neighbors import Layout, NeighborOverflowError, build, grow, grow_until_it_fits
from jaxpto.potential import Potential
from jaxpto.reporting.provenance import fingerprint
from jaxpto.storage.identity import digest_of
from jaxpto.system import System, from_ase

ENLARGEMENTS = 10  # of the neighbour list


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Whoever labels structures.

    Attributes:
        potential: a model, or an ASE calculator as one.
        name: as the user named it.
        digest: digest of its architecture, parameters and reference energies; of an ASE calculator, its name.
        label: structures of equal atoms in equal order -> the same with energy, forces and stress.
    """

    potential: Potential
    name: str
    digest: str
    label: Callable[[Sequence[ase.Atoms]], list[ase.Atoms]]


def load_teacher(name: str | Path) -> Teacher:
    """A teacher by what `load_potential` takes; it labels in single precision, with the reference energies it has.

    Raises:
        InputError: `load_potential` refuses it.
    """
    potential = load_potential(name)
    references = {ase.data.atomic_numbers[symbol]: energy for symbol, energy in reference_energies_of(name).items()}
    digest = str(name) if str(name).startswith(ase_calculator.PREFIX) else fingerprint(potential)
    if references:
        digest = f"{digest}-{digest_of(np.array(sorted(references.items())))}"
    layouts: dict[tuple[int, ...], Layout] = {}

    def label(frames: Sequence[ase.Atoms]) -> list[ase.Atoms]:
        for atoms in frames:
            check_known(potential, atoms)
        systems = [from_ase(atoms, np.float32) for atoms in frames]
        kind = tuple(frames[0].numbers.tolist())
        first = layouts.get(kind) or potential.allocate(systems, 0.0)

        def compute(layout: Layout) -> list[tuple[Prediction, np.ndarray]]:
            # dispatched without waiting: the device computes as many at a time as it has cores
            return jax.device_get([_evaluate(potential, system, layout=layout) for system in systems])

        try:
            fitted = grow_until_it_fits(
                compute,
                first,
                overflowed=lambda found: any(bool(overflow) for _, overflow in found),
                enlarge=lambda layout, _: grow(layout, np.array([atoms.cell.array for atoms in frames])),
                enlargements=ENLARGEMENTS,
            )
        except NeighborOverflowError:
            raise InputError(
                f"a structure has ever more neighbours within {potential.cutoff:g} A; its atoms have collapsed: begin "
                "with other structures, or lower `beyond`"
            ) from None
        layouts[kind] = fitted.layout
        offset = sum(references.get(z, 0.0) for z in kind)
        return [_labelled(atoms, one, offset) for atoms, (one, _) in zip(frames, fitted.result, strict=True)]

    return Teacher(potential, str(name), digest, label)


@functools.partial(jax.jit, static_argnames="layout")
def _evaluate(potential: Potential, system: System, layout: Layout) -> tuple[Prediction, Array]:
    """Energy, forces and stress, and whether the neighbour list was too small for them."""
    neighbors = build(system, layout)
    return potential.evaluate(system, neighbors), neighbors.overflow


def _labelled(atoms: ase.Atoms, found: Prediction, offset: float) -> ase.Atoms:
    labelled = bare(atoms)
    labelled.calc = SinglePointCalculator(
        labelled,
        energy=float(found.energy) + offset,
        forces=np.asarray(found.forces, np.float64),
        stress=full_3x3_to_voigt_6_stress(np.asarray(found.stress, np.float64)),
    )
    return labelled


def bare(atoms: ase.Atoms) -> ase.Atoms:
    """Elements, positions and cell of a structure alone, in all directions periodic."""
    return ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=True)
