"""What was computed, with which model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ase import units as ase_units

from jaxpto.units import BOLTZMANN

JOULE_PER_MOLE = ase_units._e * ase_units._Nav  # J/mol per eV


@dataclasses.dataclass(frozen=True)
class Subject:
    """A crystal and a model.

    Attributes:
        formula: one formula unit, metals first, as in "PbTiO3".
        model: name or folder.
        units: formula units in the cell that energies belong to.
        atoms: number of atoms in it.
        flexible: whether this cell changes (npt), so that energies are G and H, not F and U.
        caveat: what the model's forces are not, as in `Potential.caveat`; "" if there is nothing to say.
    """

    formula: str
    model: str
    units: int
    atoms: int
    flexible: bool = False
    caveat: str = ""

    @property
    def name(self) -> str:
        """Formula and model, as in "PbTiO3 with perovskite"."""
        return f"{self.formula} with {Path(self.model).name}"

    @property
    def free_energy(self) -> str:
        """Symbol of the free energy."""
        return "G" if self.flexible else "F"

    @property
    def enthalpy(self) -> str:
        """Symbol of the enthalpy or the internal energy."""
        return "H" if self.flexible else "U"

    @property
    def heat_capacity(self) -> str:
        """Symbol of the heat capacity."""
        return "Cp" if self.flexible else "Cv"

    @property
    def molar(self) -> float:
        """J/mol of formula units per eV of the cell."""
        return JOULE_PER_MOLE / self.units

    @property
    def dulong_petit(self) -> float:
        """Classical limit of the heat capacity of a harmonic crystal, 3 R for each atom, J/K/mol of formula units."""
        return 3.0 * BOLTZMANN * self.atoms * self.molar
