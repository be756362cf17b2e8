"""Targets and outcomes of relaxations, the same for every method."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import ase
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from jaxtyping import Float

from jaxpto import units
from jaxpto.errors import InputError
from jaxpto.structures import check_use
from jaxpto.system import check_atoms, made_anew

Mask = Literal["iso", "diag", "full", "fixed"]
NOT_FINITE = "energy, forces or stress not finite"


@dataclasses.dataclass(frozen=True)
class Target:
    """When a structure counts as relaxed, and what may move.

    The residual that `fmax` bounds is that of ASE's FrechetCellFilter in every method: with x = F z for positions and
    F = exp(U) for the cell, both relative to the cell at the start, it is the largest norm of a row of
    -dH/dz = f F (one row per atom) and of -dH/dU / n (three rows, n the number of atoms), H = E + p V the enthalpy.

    Attributes:
        fmax: bound of the residual, eV/Angstrom.
        mask: strain components relaxed besides the positions: iso (volume), diag (xx, yy, zz), full (all six
            components), fixed (none: positions only).
        pressure: GPa.
        steps: evaluations allowed after the first.

    Raises:
        InputError: a target that cannot be reached, or a pressure on a fixed cell.
    """

    fmax: float = 1e-3
    mask: Mask = "full"
    pressure: float = 0.0
    steps: int = 500

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fmax) and self.fmax > 0.0):
            raise InputError(f"fmax {self.fmax:g}: must be above 0 eV/A; 1e-3 is usual")
        if not math.isfinite(self.pressure):
            raise InputError(f"pressure {self.pressure}: must be a finite number of GPa")
        if self.mask == "fixed" and self.pressure != 0.0:
            raise InputError(f"pressure {self.pressure:g} GPa has no effect on a fixed cell; use the mask full")
        if self.steps < 1:
            raise InputError(f"steps {self.steps}: must be at least 1")

    @property
    def external_pressure(self) -> float:
        """eV/Angstrom^3."""
        return self.pressure * units.GIGAPASCAL


@dataclasses.dataclass(frozen=True)
class History:
    """Course of a relaxation, beginning with the starting structure.

    Attributes:
        energy: potential energy (without p V), eV.
        residual: what `Target.fmax` bounds, eV/Angstrom.
        force: largest norm of a force on an atom, eV/Angstrom.
        stress: largest component of stress + pressure, masked components included, GPa; NaN without stress.
        volume: Angstrom^3.
    """

    energy: Float[np.ndarray, " s"]
    residual: Float[np.ndarray, " s"]
    force: Float[np.ndarray, " s"]
    stress: Float[np.ndarray, " s"]
    volume: Float[np.ndarray, " s"]


@dataclasses.dataclass(frozen=True)
class Relaxed:
    """The outcome for one structure.

    Attributes:
        atoms: final structure with energy, forces and stress attached.
        converged: whether the residual is below `Target.fmax`.
        steps: evaluations after the first.
        reason: why it did not converge, or "".
        history: one entry for the start and for each step.
        pressure: pressure of the target, GPa.
    """

    atoms: ase.Atoms
    converged: bool
    steps: int
    reason: str
    history: History
    pressure: float

    @property
    def energy(self) -> float:
        """Potential energy, eV."""
        return float(self.history.energy[-1])

    @property
    def enthalpy(self) -> float:
        """E + p V, eV."""
        return self.energy + self.pressure * units.GIGAPASCAL * float(self.history.volume[-1])

    @property
    def residual(self) -> float:
        """What `Target.fmax` bounds, eV/Angstrom."""
        return float(self.history.residual[-1])

    @property
    def residual_force(self) -> float:
        """Largest norm of a force on an atom, eV/Angstrom."""
        return float(self.history.force[-1])

    @property
    def residual_stress(self) -> float:
        """Largest component of stress + pressure, GPa; masked components count too."""
        return float(self.history.stress[-1])


def check_start(atoms: ase.Atoms, where: str = "structure") -> None:
    """Refuse atoms that cannot be relaxed.

    Raises:
        InputError: `check_atoms` refuses them, or they have constraints, which would not be kept.
    """
    check_atoms(atoms, where)
    check_use(atoms, "relaxation", where)


def with_results(
    atoms: ase.Atoms, energy: float, forces: Float[np.ndarray, "n 3"], stress: Float[np.ndarray, "3 3"] | None
) -> ase.Atoms:
    """A new structure at rest with results attached (eV, eV/Angstrom, eV/Angstrom^3)."""
    relaxed = made_anew(atoms)
    relaxed.arrays.pop("momenta", None)
    results: dict = {"energy": energy, "free_energy": energy, "forces": forces}
    if stress is not None:
        results["stress"] = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    relaxed.calc = SinglePointCalculator(relaxed, **results)
    return relaxed


def measures(
    forces: Float[np.ndarray, "n 3"], stress: Float[np.ndarray, "3 3"] | None, target: Target
) -> tuple[float, float]:
    """Largest norm of a force, eV/Angstrom, and largest component of stress + pressure, GPa, as in `History`."""
    force = float(np.linalg.norm(forces, axis=1).max())
    if stress is None:
        return force, math.nan
    return force, float(np.abs(stress / units.GIGAPASCAL + target.pressure * np.eye(3)).max())


def stress_of(atoms: ase.Atoms) -> Float[np.ndarray, "3 3"] | None:
    """Stress of atoms with a calculator, eV/Angstrom^3, or None where it has none."""
    try:
        return atoms.get_stress(voigt=False)
    except PropertyNotImplementedError:
        return None
