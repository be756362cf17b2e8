"""The contract: every architecture of the manifest obeys the laws, or says why not."""

from __future__ import annotations

import dataclasses
import gc
import pathlib
from collections.abc import Callable

import jax
import model_contract as contract
import numpy as np
import pytest
from model_cases import CASES, ModelCase

from converters.pickles import CheckpointError
from jaxpto.model_interface import DirectModel
from jaxpto.models.manifest import architectures
from jaxpto.potential import Potential

LAWS: dict[str, Callable[[Potential, ModelCase], None]] = {
    "rotation": lambda potential, case: contract.rotation(potential, case.crystal()),
    "permutation": lambda potential, case: contract.permutation(potential, case.crystal()),
    "image_shift": lambda potential, case: contract.image_shift(potential, case.crystal()),
    "other_cell_vectors": lambda potential, case: contract.other_cell_vectors(potential, case.crystal()),
    "forces_are_gradients": lambda potential, case: contract.forces_are_gradients(potential, case.crystal()),
    "capacity": lambda potential, case: contract.capacity(potential, case.crystal()),
    "batch": lambda potential, case: contract.batch(potential, case.crystal()),
    "extensivity": lambda potential, case: contract.extensivity(potential, case.crystal()),
    "isolated_atom": lambda potential, case: contract.isolated_atom(potential, case.lone),
    "one_atom_cell": lambda potential, case: contract.one_atom_cell(potential, *case.tiny),
    "smooth_at_cutoff": lambda potential, case: contract.smooth_at_cutoff(potential, case.pair),
}
HELD = [
    pytest.param(name, law, marks=pytest.mark.slow if law in case.slow else (), id=f"{name}-{law}")
    for name, case in CASES.items()
    for law in LAWS
    if law not in case.broken
]


def test_every_architecture_has_a_case() -> None:
    assert set(CASES) == set(architectures())
    for case in CASES.values():
        assert set(case.broken) | case.slow <= set(LAWS)


@pytest.fixture(scope="module")
def made() -> dict[str, Potential]:
    """The models made so far, in float64: one at a time, as compiled programs take much room."""
    return {}


def given(name: str, shared: pathlib.Path, made: dict[str, Potential]) -> Potential:
    if name not in made:
        made.clear()
        jax.clear_caches()
        gc.collect()
        try:
            made[name] = contract.cast(CASES[name].make(shared), np.float64)
        except CheckpointError as error:
            pytest.skip(f"no published weights: {error}")
    return made[name]


@pytest.mark.parametrize(("name", "law"), HELD)
def test_laws(name: str, law: str, shared: pathlib.Path, made: dict[str, Potential]) -> None:
    LAWS[law](given(name, shared, made), CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_the_class_says_what_it_is(name: str) -> None:
    kind = architectures()[name].kind
    assert kind.__dataclass_params__.frozen
    assert (kind.conservative is True) != issubclass(kind, DirectModel)
    facts = {"by_species", "conservative", "usual_skin"}
    assert facts.isdisjoint(field.name for field in dataclasses.fields(kind))
    assert all(hasattr(kind, fact) for fact in facts)
