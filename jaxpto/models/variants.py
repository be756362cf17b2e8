"""Models as somebody else evaluated them, by name: NAME:VARIANT, to find out what published results rest on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import struct

from jaxpto import units
from jaxpto.errors import InputError
from jaxpto.model_interface import Prediction
from jaxpto.neighbors import Neighbors
from jaxpto.potential import Potential
from jaxpto.system import System

STRESS_IN_GPA = "a deliberate error: its stress is 160.2 times too large, GPa where eV/Angstrom^3 is meant"
OLD_NEIGHBORS = "the neighbour rule of its first version: an atom is no neighbour of its own images"


@dataclasses.dataclass(frozen=True)
class Variant:
    """Another way to evaluate a model.

    Attributes:
        label: what differs, in words that every result must carry.
        apply: makes it of the model.
    """

    label: str
    apply: Callable[[Potential], Potential]


@struct.dataclass
class StressInGPa(Potential):
    """A potential whose stress is a number of GPa, taken for eV/Angstrom^3."""

    @property
    def caveat(self) -> str:
        """Says so."""
        return STRESS_IN_GPA

    def evaluate(self, system: System, neighbors: Neighbors) -> Prediction:
        """As of the potential, with stress / (1 GPa) in place of the stress."""
        right = super().evaluate(system, neighbors)
        return dataclasses.replace(right, stress=right.stress / units.GIGAPASCAL)


def _stress_in_gpa(potential: Potential) -> Potential:
    return StressInGPa(potential.params, potential.model, potential.name)


def _old_neighbors(potential: Potential) -> Potential:
    if not hasattr(potential.model, "self_images"):  # asked like this, for importing GPTFF costs every command time
        raise InputError(f"{potential.name}: it is no GPTFF, which alone has another neighbour rule; leave it out")
    model: Any = potential.model
    return dataclasses.replace(potential, model=dataclasses.replace(model, self_images=False))


VARIANTS = {
    "stress-in-GPa": Variant(STRESS_IN_GPA, _stress_in_gpa),
    "old-neighbors": Variant(OLD_NEIGHBORS, _old_neighbors),
}


def split_variant(name: str | Path) -> tuple[str | Path, Variant | None]:
    """The name of the model, and the variant that stands after its last colon, or None."""
    model, colon, variant = str(name).rpartition(":")
    return (model, VARIANTS[variant]) if colon and variant in VARIANTS else (name, None)
