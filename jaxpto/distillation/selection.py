"""Which structures to label: where the committee disagrees most, spread over temperatures and unlike each other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import ase
import numpy as np
from jaxtyping import Float, Int

REACH = 5.5  # Angstrom, farthest distance that descriptors see
CENTERS = np.arange(1.4, REACH, 0.2)  # Angstrom
WIDTH = 0.2  # Angstrom
PER_TEMPERATURE = 60  # candidates of the largest deviations that are compared at each temperature


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A structure that a student came to.

    Attributes:
        atoms: the structure.
        temperature: K.
        deviation: largest deviation of the committee's forces on an atom, eV/Angstrom.
    """

    atoms: ase.Atoms
    temperature: float
    deviation: float


def descriptor(atoms: ase.Atoms) -> Float[np.ndarray, " d"]:
    """Smeared distributions of distances, one for each pair of elements, per atom; each distance weighs as r^-2.

    A structure without a pair of some elements cannot be compared with one that has it: use it for equal compositions.

    Args:
        atoms: periodic in all directions.
    """
    cell = atoms.cell.array
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    ranges = [range(-int(np.ceil(REACH / h)), int(np.ceil(REACH / h)) + 1) for h in heights]
    images = np.array(list(itertools.product(*ranges))) @ cell
    positions = atoms.get_positions(wrap=True)
    between = positions[None, :, :] - positions[:, None, :]
    elements = sorted(set(atoms.numbers.tolist()))
    found = []
    for first, second in itertools.combinations_with_replacement(elements, 2):
        some = between[atoms.numbers == first][:, atoms.numbers == second]
        r = np.linalg.norm(some[:, :, None, :] + images, axis=-1).ravel()
        r = r[(r > 1e-6) & (r < REACH)]
        smeared = np.exp(-0.5 * ((r[:, None] - CENTERS) / WIDTH) ** 2) / r[:, None] ** 2
        found.append(smeared.sum(axis=0) / len(atoms))
    return np.concatenate(found)


def choose(
    candidates: Sequence[Candidate], known: Sequence[ase.Atoms], number: int, lowest: float = 0.0
) -> list[Candidate]:
    """Candidates to label: one temperature after the other gives the one with the largest deviation times distance.

    The distance is that of descriptors to the nearest structure that is known or chosen already.

    Args:
        candidates: structures of equal composition.
        known: labelled structures of the same composition.
        number: how many, at most.
        lowest: deviation below which nothing is learned, eV/Angstrom.
    """
    by_temperature: dict[float, list[Candidate]] = {}
    for one in sorted(candidates, key=lambda one: -one.deviation):
        if np.isfinite(one.deviation) and one.deviation >= lowest:
            by_temperature.setdefault(one.temperature, []).append(one)
    kept = [one for kelvin in sorted(by_temperature) for one in by_temperature[kelvin][:PER_TEMPERATURE]]
    if not kept:
        return []
    described = np.array([descriptor(one.atoms) for one in kept])
    nearest = _nearest(described, np.array([descriptor(atoms) for atoms in known]))
    order: list[int] = []
    temperatures = sorted(by_temperature)
    for turn in itertools.cycle(temperatures):
        if len(order) == min(number, len(kept)):
            return [kept[k] for k in order]
        free = [k for k, one in enumerate(kept) if one.temperature == turn and k not in order]
        if not free:
            continue
        best = max(free, key=lambda k: kept[k].deviation * nearest[k])
        order.append(best)
        nearest = np.minimum(nearest, np.linalg.norm(described - described[best], axis=1))
    raise AssertionError("a cycle has no end")


def _nearest(described: Float[np.ndarray, "k d"], known: np.ndarray) -> Float[np.ndarray, " k"]:
    """Distance of each descriptor to the nearest of some."""
    if not len(known):
        return np.ones(len(described))
    return np.array([np.linalg.norm(known - one, axis=1).min() for one in described])


def until_it_leaves(deviations: Float[np.ndarray, " f"], highest: float) -> Int[np.ndarray, " k"]:
    """Frames of one run up to the first whose deviation exceeds a limit, that one included; all if none does.

    What comes after it is a way that no crystal goes.
    """
    beyond = np.flatnonzero(~(deviations <= highest))
    return np.arange(len(deviations) if not len(beyond) else beyond[0] + 1)
