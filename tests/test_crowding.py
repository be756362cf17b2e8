"""Structures with more neighbours than a model counts."""

from __future__ import annotations

from ase.build import bulk

from jaxpto.models.deepmd import DPA1, DeepPotSE
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.models.suitability import neighbor_bound_warning
from jaxpto.potential import Potential

COPPER = bulk("Cu", "fcc", 3.6)  # 12 nearest neighbours at 2.55 A, 6 at 3.6 A
SALT = bulk("NaCl", "rocksalt", 5.64)  # 6 of the other kind at 2.82 A, 12 of the same at 3.99 A


def deep_pot(elements: tuple[int, ...], sel: tuple[int, ...], nearest_first: bool, cutoff: float = 4.2) -> Potential:
    model = DeepPotSE(elements, cutoff, 0.5, sel, nearest_first, 4, (), "tanh", (), "tanh")
    return Potential({}, model, "deep")


def dpa1(elements: tuple[int, ...], sel: int, cutoff: float) -> Potential:
    model = DPA1(elements, cutoff, 0.5, sel, 4, True, True, True, False, 1.0, 1e-6, 1e-3, (), "tanh", (), "tanh")
    return Potential({}, model, "dpa")


def test_dense_crystals_are_told() -> None:
    assert neighbor_bound_warning(dpa1((29,), 18, 3.7), [COPPER]) == ""
    message = neighbor_bound_warning(dpa1((29,), 17, 3.7), [COPPER])
    assert message.startswith(
        "the structure: an atom has 18 neighbours within 3.7 A where dpa counts the nearest 17 (sel)"
    )


def test_the_worst_of_several() -> None:
    dense = bulk("Cu", "fcc", 2.6)
    message = neighbor_bound_warning(dpa1((29,), 12, 3.7), [COPPER, bulk("Cu", "fcc", 4.5), dense])
    assert message.startswith("2 of 3 structures: an atom has 54 neighbours")


def test_each_type_has_a_bound_of_its_own() -> None:
    for sel, nearest_first, told in (
        ((12, 12), False, ""),
        ((12, 11), False, "12 neighbours within 4.2 A where deep counts the nearest 11"),
        ((17, 1), False, "12 neighbours within 4.2 A where deep counts the nearest 1 "),
        ((12, 12), True, ""),
    ):
        message = neighbor_bound_warning(deep_pot((11, 17), sel, nearest_first), [SALT])
        assert told in message
        assert bool(told) == bool(message)


def test_other_models_are_not_crowded() -> None:
    assert neighbor_bound_warning(lennard_jones(["Cu"], [0.1], [2.3], 6.0, 5.0), [COPPER]) == ""
