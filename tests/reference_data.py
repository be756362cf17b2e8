"""Energies, forces and stress of original implementations, and what a reproduction of them must reach."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ase
import numpy as np

from jaxpto.model_interface import Prediction

ENERGY, FORCE, STRESS, RELATIVE = 1e-8, 1e-7, 1e-8, 1e-8  # eV/atom, eV/Angstrom, eV/Angstrom^3, and of large forces
LARGE_FORCE = 10.0  # eV/Angstrom
EXTRA = ("magmoms", "site_energies", "charges", "born_effective_charges")
ROUNDING_FACTOR = 3.0  # float32 errors allowed, as a multiple of the original's own


@dataclasses.dataclass(frozen=True)
class Case:
    """One structure with the original's results.

    Attributes:
        name: of the structure, as in structures.extxyz.
        atoms: the structure.
        exact: float64 energy eV, forces eV/Angstrom, stress [3, 3] eV/Angstrom^3.
        rounding: largest differences between the original's float32 and float64 results (eV, eV/Angstrom,
            eV/Angstrom^3); None where the file holds no float32 results of the variant.
        extra: other float64 results in the file, see `EXTRA`.
    """

    name: str
    atoms: ase.Atoms
    exact: Prediction
    rounding: tuple[float, float, float] | None
    extra: dict[str, np.ndarray]

    def errors(self, found: Prediction) -> tuple[float, float, float]:
        """Differences of a prediction from `exact`: energy eV/atom, largest of forces and of stress."""
        return (
            abs(float(found.energy) - float(self.exact.energy)) / len(self.atoms),
            float(np.abs(np.asarray(found.forces, np.float64) - self.exact.forces).max()),
            float(np.abs(np.asarray(found.stress, np.float64) - self.exact.stress).max()),
        )

    def assert_exact(self, found: Prediction) -> None:
        """A float64 prediction agrees to rounding; where forces are large, to rounding relative to their size."""
        energy, force, stress = self.errors(found)
        largest = float(np.abs(self.exact.forces).max())
        assert energy <= ENERGY, f"{self.name}: energy off by {energy:.2e} eV/atom"
        assert force <= max(FORCE, RELATIVE * largest if largest > LARGE_FORCE else 0.0), f"{self.name}: forces {force}"
        assert stress <= STRESS, f"{self.name}: stress off by {stress:.2e} eV/A^3"

    def assert_as_exact_as(self, found: Prediction, cases: list[Case]) -> None:
        """A float32 prediction is as exact as the original's own.

        Its forces on this structure, where the file holds them, and on the worst one otherwise. The difference of two
        numbers with few digits vanishes now and then by accident: the energy is held to the worst structure, and the
        stress, six numbers, to this one or the usual one (the median), whichever is worse.
        """
        errors = self.errors(found)
        roundings = [(case.rounding[0] / len(case.atoms), *case.rounding[1:]) for case in cases if case.rounding]
        worst, usual = np.max(roundings, axis=0), np.median(roundings, axis=0)
        own = self.rounding if self.rounding else worst
        allowed = (worst[0], own[1], max(own[2], usual[2]))
        for name, error, limit in zip(("energy", "forces", "stress"), errors, allowed, strict=True):
            assert error <= ROUNDING_FACTOR * limit, f"{self.name}: {name} {error:.2e}, the original's {limit:.2e}"


def load_reference(shared: Path, name: str, block: str = "") -> list[Case]:
    """Every structure of reference/<name>.json.

    Args:
        shared: folder of the reference data.
        name: file without suffix, such as chgnet-0.3.0.
        block: variant of the original ("parent_indexed", "no_self_images") in place of the default one; structures
            without such a block are those where the variants agree. Rounding is always that of the default variant.
    """
    return read_cases(shared / "reference" / f"{name}.json", block)


def read_cases(path: Path, block: str = "") -> list[Case]:
    """Every structure of a file; see `load_reference`."""
    return [_case(entry, block) for entry in json.loads(path.read_text())["structures"]]


def _case(entry: dict[str, Any], block: str) -> Case:
    default = entry.get("float64", entry)
    chosen = entry.get(block, default) if block else default
    exact, rounding = _prediction(default), None
    if "float32" in entry:
        single = _prediction(entry["float32"])
        rounding = (
            abs(float(single.energy) - float(exact.energy)),
            float(np.abs(single.forces - exact.forces).max()),
            float(np.abs(single.stress - exact.stress).max()),
        )
    atoms = ase.Atoms(numbers=entry["numbers"], positions=entry["positions"], cell=entry["cell"], pbc=True)
    extra = {key: np.asarray(chosen[key]) for key in EXTRA if key in chosen}
    return Case(entry["name"], atoms, _prediction(chosen), rounding, extra)


def _prediction(block: dict[str, Any]) -> Prediction:
    return Prediction(np.asarray(block["energy"]), np.asarray(block["forces"]), np.asarray(block["stress"]))
