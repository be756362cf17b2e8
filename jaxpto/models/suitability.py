"""Whether a structure suits a model: elements it knows, what a calculator can give, neighbours it counts."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import ase.data
import numpy as np

from jaxpto.errors import InputError
from jaxpto.model_interface import BoundedModel, SelectiveModel
from jaxpto.models import ase_calculator
from jaxpto.models.energy_function import check_height
from jaxpto.potential import Potential
from jaxpto.structures import check_elements


def check_known(potential: Potential, atoms: ase.Atoms, where: str = "structure") -> None:
    """Refuse elements that a potential does not know, or not together, and cells too narrow for it.

    Raises:
        InputError: such an element, pair of elements or cell.
    """
    check_elements(atoms, potential.elements, potential.name, where)
    check_height(potential, atoms, where)
    if not isinstance(potential.model, SelectiveModel):
        return
    symbols, present = ase.data.chemical_symbols, set(atoms.numbers.tolist())
    strangers = [pair for pair in potential.model.strangers if present.issuperset(pair)]
    if strangers:
        pairs = ", ".join(f"{symbols[a]} with {symbols[b]}" for a, b in strangers)
        raise InputError(
            f"{where} has {pairs}, which the data of model {potential.name} never held together; "
            "leave one of them out, choose another model, or train it on data with both"
        )


def check_supports(potential: Potential, atoms: ase.Atoms, where: str = "structure", *, stress: bool = True) -> None:
    """Refuse a structure that a potential cannot handle, before anything is compiled or written.

    Args:
        potential: any potential.
        atoms: the structure.
        where: what to call the structure in the message.
        stress: whether stress will be needed (any simulation with a moving cell).

    Raises:
        InputError: what `check_known` refuses; or a calculator behind `ase:` that cannot give what is needed.
    """
    check_known(potential, atoms, where)
    if isinstance(potential.model, ase_calculator.HostCalculator):
        ase_calculator.probe(potential.model, atoms, where, stress=stress)


def neighbor_bound_warning(potential: Potential, frames: Sequence[ase.Atoms]) -> str:
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
    from ase.neighborlist import neighbor_list  # half a second to import, so only where it is used

    centers, others = neighbor_list("ij", atoms, cutoff)
    numbers = atoms.numbers[others]
    pairs = [(int(np.bincount(centers[np.isin(numbers, group)], minlength=1).max()), most) for group, most in bounds]
    return max(pairs, key=lambda pair: pair[0] - pair[1])
