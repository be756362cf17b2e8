"""Masses from the file to the frequencies: phonons, free energies, relaxed structures, and the symmetry they leave."""

from __future__ import annotations

import pathlib

import ase
import ase.build
import ase.io
import numpy as np
import phonopy
import pytest
from phonopy import Phonopy
from rich.console import Console

from jaxpto import phonons, relax
from jaxpto.calculator import JaxptoCalculator
from jaxpto.free_energy.config import FreeEnergyConfig, HarmonicOptions, SwitchingOptions
from jaxpto.free_energy.harmonic.method import prepare_crystal as prepare_harmonic
from jaxpto.free_energy.switching.method import _relaxed, _translations
from jaxpto.lattice_dynamics.paths import automatic_path
from jaxpto.lattice_dynamics.phonopy_bridge import (
    SYMMETRY_PRECISION,
    displacement_force_constants,
    make_phonopy,
    to_phonopy,
)
from jaxpto.models.catalogue import load_potential
from jaxpto.structures import builtin_structure

HEAVY = [207.2, 47.867, 17.999, 17.999, 17.999]
MIXED = [207.2, 47.867, 15.999, 17.999, 15.999]


def cubic(masses: list[float] | None = None) -> ase.Atoms:
    atoms = builtin_structure("PbTiO3-cubic")
    if masses is not None:
        atoms.set_masses(masses)
    return atoms


def at_gamma(phonon: Phonopy) -> np.ndarray:
    return phonon.run_qpoints([[0, 0, 0]]).frequencies[0]


@pytest.fixture(scope="module")
def calculator() -> JaxptoCalculator:
    return JaxptoCalculator("perovskite")


def test_frequencies_are_those_of_the_isotopes(tmp_path) -> None:
    """Right values: phonopy with masses set by hand on the force constants that were found before masses came along."""
    ase.io.write(tmp_path / "given.extxyz", cubic(HEAVY))
    out = tmp_path / "out"
    given = str(tmp_path / "given.extxyz")
    phonons.run(phonons.PhononsConfig(given, ("perovskite",), out, (1, 1, 1), relax=False, mesh=(2, 2, 2)))
    stored = phonopy.load(out / "phonopy_params.yaml", log_level=0)
    np.testing.assert_allclose(stored.unitcell.masses, HEAVY)
    assert at_gamma(stored)[[0, -1]] == pytest.approx([-4.371, 13.844], abs=1e-3)
    assert ase.io.read(out / "structure.extxyz").get_masses().tolist() == HEAVY
    stored.masses = HEAVY[:2] + [15.999] * 3
    assert at_gamma(stored)[[0, -1]] == pytest.approx([-4.584, 14.683], abs=1e-3)


def test_mixed_isotopes_break_the_symmetry(calculator) -> None:
    """Against phonopy without any symmetry: frequencies, and a free energy that averages over wave vectors."""
    atoms = cubic(MIXED)
    phonon = make_phonopy(atoms, (1, 1, 1))
    assert phonon.symmetry.get_international_table() == "P4/mmm (123)"
    assert list(phonon.unitcell.symbols) == ["Pb", "Ti", "O", "O1", "O"]
    assert phonon.unitcell.numbers.tolist() == atoms.numbers.tolist()
    plain = Phonopy(to_phonopy(atoms), np.eye(3), primitive_matrix=np.eye(3), is_symmetry=False)
    free, points = [], []
    for one in (phonon, plain):
        displacement_force_constants(one, calculator)
        one.run_mesh([4, 4, 4])
        one.run_thermal_properties(temperatures=[300.0])
        free.append(one.thermal_properties.free_energy)
        points.append(one.run_qpoints([[0, 0, 0], [0.3, 0, 0], [0, 0.3, 0], [0, 0, 0.3]]).frequencies)
    np.testing.assert_allclose(points[0], points[1], atol=1e-4)
    np.testing.assert_allclose(free[0], free[1], atol=1e-6)
    assert np.abs(points[0][1] - points[0][2]).max() > 0.1  # 18O lies at (1/2, 0, 1/2): x and z, but not y


def test_isotopes_make_a_larger_primitive_cell() -> None:
    atoms = ase.build.bulk("Ar", "fcc", 5.3, cubic=True)
    assert len(make_phonopy(atoms, (1, 1, 1)).primitive) == 1
    assert _translations(atoms) == 4
    atoms.set_masses([36.0, 40.0, 40.0, 40.0])
    phonon = make_phonopy(atoms, (1, 1, 1))
    assert sorted(phonon.primitive.masses) == [36.0, 40.0, 40.0, 40.0]
    assert phonon.primitive_symmetry.get_international_table() == "Pm-3m (221)"
    assert _translations(atoms) == 1
    # Cu3Au's path, not that of fcc
    assert set(automatic_path(phonon.primitive, SYMMETRY_PRECISION).named_points) == {"Γ", "X", "M", "R"}


def test_relaxed_structures_keep_masses(tmp_path) -> None:
    ase.io.write(tmp_path / "given.extxyz", cubic(MIXED))
    out = tmp_path / "out"
    given = (str(tmp_path / "given.extxyz"),)
    (entry,) = relax.run(relax.RelaxConfig(given, "perovskite", out, fmax=1e-3, mask="iso"))
    assert entry.relaxed.steps > 0
    assert ase.io.read(out / "relaxed" / "given.extxyz").get_masses().tolist() == MIXED


def test_free_energies_have_the_masses_of_the_file(tmp_path) -> None:
    path = str(tmp_path / "given.extxyz")
    ase.io.write(path, cubic(MIXED))
    config = FreeEnergyConfig(
        path, method="harmonic", supercell=(1, 1, 1), mask="iso", out=tmp_path / "out",
        harmonic=HarmonicOptions(relax="cell"),
    )  # fmt: skip
    prepared = prepare_harmonic(config, Console(quiet=True))
    np.testing.assert_allclose(prepared.crystal.masses, MIXED)


def test_switching_goes_on_with_the_masses_of_the_file(tmp_path) -> None:
    config = FreeEnergyConfig("given", out=pathlib.Path(tmp_path), switching=SwitchingOptions(relax="cell"))
    potential = load_potential("perovskite", np.float32)
    path = _relaxed(config, cubic(MIXED), potential, Console(quiet=True))
    assert ase.io.read(path).get_masses().tolist() == MIXED
    assert _relaxed(config, cubic(MIXED), potential, Console(quiet=True)) == path  # as it is
    with pytest.raises(ValueError, match="another structure"):
        _relaxed(config, cubic(HEAVY), potential, Console(quiet=True))
