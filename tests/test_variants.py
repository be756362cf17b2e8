"""Models as somebody else evaluated them: what a variant changes, and what it leaves alone."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from small_fresh import small_fresh

from jaxpto.calculator import JaxptoCalculator
from jaxpto.errors import InputError
from jaxpto.models.catalogue import load_potential
from jaxpto.models.folder import save_potential
from jaxpto.models.variants import STRESS_IN_GPA
from jaxpto.structures import builtin_structure
from jaxpto.units import GIGAPASCAL


def test_stress_in_gpa_is_160_times_the_stress_and_says_so() -> None:
    atoms = builtin_structure("PbTiO3-tetragonal")
    right, wrong = JaxptoCalculator("perovskite"), JaxptoCalculator("perovskite:stress-in-GPa")
    for name in ("energy", "forces"):
        np.testing.assert_array_equal(wrong.get_property(name, atoms), right.get_property(name, atoms))
    factor = wrong.get_property("stress", atoms) / right.get_property("stress", atoms)
    np.testing.assert_allclose(factor, 1.0 / GIGAPASCAL, rtol=1e-12)
    assert 160.2 < factor[0] < 160.3
    assert wrong.potential.name == "perovskite:stress-in-GPa"
    assert wrong.potential.caveat == STRESS_IN_GPA


def test_old_neighbors_are_those_of_gptff_alone(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="it is no GPTFF"):
        load_potential("perovskite:old-neighbors")
    folder = tmp_path / "new"
    save_potential(small_fresh("gptff", builtin_structure("PbTiO3-cubic"))[0], folder, {})
    assert load_potential(folder).model.self_images
    assert not load_potential(f"{folder}:old-neighbors").model.self_images


def test_an_unknown_variant_is_an_unknown_model() -> None:
    with pytest.raises(InputError, match="unknown model 'perovskite:upside-down'"):
        load_potential("perovskite:upside-down")
