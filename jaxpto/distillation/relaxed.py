"""Where the teacher has its minima: relaxed structures, whose every step on the way is a label too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ase
from ase.calculators.calculator import Calculator, all_changes

from jaxpto.distillation.label_store import LabelStore
from jaxpto.distillation.seeds import Crystal
from jaxpto.distillation.teacher import bare
from jaxpto.relaxation.target import Target
from jaxpto.relaxation.with_ase import relax_with_ase

RESIDUAL = 0.01  # eV/Angstrom
STEPS = 60  # labels that a relaxation may take


class _OfUnitCell(Calculator):
    """Results of a unit cell from the labels of its supercell."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 (as ASE declares it)

    def __init__(self, crystal: Crystal, store: LabelStore):
        super().__init__()
        self._crystal, self._store = crystal, store

    def calculate(
        self, atoms: ase.Atoms | None = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        unit = bare(atoms or self._crystal.atoms)
        supercell = dataclasses.replace(self._crystal, atoms=unit).supercell
        (labelled,) = self._store.label([supercell], f"relaxation-{self._crystal.name}")
        cells = len(supercell) // len(unit)  # whose atoms stay together
        self.results = {
            "energy": labelled.get_potential_energy() / cells,
            "forces": labelled.get_forces().reshape(cells, len(unit), 3).mean(axis=0),
            "stress": labelled.get_stress(),
        }


def relaxed(crystal: Crystal, store: LabelStore, pressure: float, say: Callable[[str], None]) -> Crystal:
    """The crystal in the minimum of the teacher next to it; as it was given where the teacher has none.

    What was labelled on the way is not labelled again by a resumed distillation, which takes the same way.

    Args:
        crystal: the structure.
        store: labels; the steps go to the file relaxation-NAME.
        pressure: GPa.
        say: told where it leads.

    Raises:
        InputError: the teacher refuses a structure.
    """
    found = relax_with_ase(
        bare(crystal.atoms), _OfUnitCell(crystal, store), Target(RESIDUAL, pressure=pressure, steps=STEPS)
    )
    if not found.converged:
        say(f"{crystal.name}: no minimum of the teacher nearby ({found.reason}); first structures are as it was given")
        return crystal
    a, b, c = found.atoms.cell.lengths()
    say(f"{crystal.name}: the teacher's minimum has edges of {a:.3f}, {b:.3f} and {c:.3f} A")
    return dataclasses.replace(crystal, atoms=bare(found.atoms))
