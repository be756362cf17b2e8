"""Structures in which an atom has more neighbours than a model counts."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import numpy as np
from ase.neighborlist import neighbor_list

from jaxpto.model_interface import BoundedModel
from jaxpto.potential import Potential


def crowding(potential: Potential, frames: Sequence[ase.Atoms]) -> str:
    """One line for the user if atoms of these structures have more neighbours than the model counts, else "".

    Args:
        potential: any potential; only a `BoundedModel` can be crowded.
        frames: periodic structures.
    """
    if not isinstance(potential.model, BoundedModel):
        return ""
    counts = [_worst(atoms, potential.cutoff, potential.model.neighbor_bounds) for atoms in frames]
    crowded = [(have, bound) for have, bound in counts if have > bound]
    if not crowded:
        return ""
    have, bound = max(crowded, key=lambda pair: pair[0] - pair[1])
    which = "the structure" if len(frames) == 1 else f"{len(crowded)} of {len(frames)} structures"
    return (
        f"{which}: an atom has {have} neighbours within {potential.cutoff:g} A where {potential.name} counts the "
        f"nearest {bound} (sel); its energy jumps when another takes the last place, as in the original"
    )


def _worst(atoms: ase.Atoms, cutoff: float, bounds: tuple[tuple[tuple[int, ...], int], ...]) -> tuple[int, int]:
    """The largest number of neighbours, and the bound it is up against."""
    centers, others = neighbor_list("ij", atoms, cutoff)
    numbers = atoms.numbers[others]
    pairs = [(int(np.bincount(centers[np.isin(numbers, group)], minlength=1).max()), most) for group, most in bounds]
    return max(pairs, key=lambda pair: pair[0] - pair[1])
