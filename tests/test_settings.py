"""Settings of dynamics that do not fit together, or do not fit the structure: refused before anything is compiled."""

from __future__ import annotations

import dataclasses
import functools

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.geometry import cellpar_to_cell

from jaxpto import relax
from jaxpto.console.options import as_typed
from jaxpto.errors import InputError
from jaxpto.md.config import PRESETS, SweepConfig, changed_fields, check, is_hydrostatic, to_json
from jaxpto.md.preparation import check_dynamics, external_stress, method_of, prepare
from jaxpto.perovskite.measurements import crystal_measurements
from jaxpto.structures import builtin_structure
from jaxpto.structures.axes import degrees_off_axes, held_shear
from jaxpto.training.matching_options import MatchOptions, plan_of
from jaxpto.training.targets import parse_target

PULLED = (0.0, 0.0, -3.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stress": PULLED, "mask": "iso"}, ["--stress 0 0 -3 0 0 0", "mean", "--mask diag or full", "--pressure 1"]),
        ({"stress": (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)}, ["--mask full"]),
        ({"stress": PULLED, "ensemble": "nvt"}, ["--stress", "no effect in nvt", "--ensemble npt"]),
        ({"pressure": 1.0, "ensemble": "nve"}, ["--pressure 1", "no effect in nve"]),
        ({"mask": "full", "ensemble": "nvt"}, ["--mask full", "no effect in nvt"]),
        ({"thermostat_time": 50.0, "ensemble": "nvt"}, ["--thermostat-time 50", "no effect in nvt"]),
        ({"thermostat_time": 50.0, "ensemble": "nve"}, ["--thermostat-time 50", "no effect in nve"]),
        ({"barostat_time": 300.0, "ensemble": "nvt"}, ["--barostat-time 300", "no effect in nvt"]),
        ({"pfactor": 300.0, "ensemble": "nve"}, ["--pfactor 300", "no effect in nve"]),
        ({"friction": 0.1}, ["--friction 0.1", "no effect in npt", "--ensemble nvt"]),
        ({"friction": 0.1, "ensemble": "nve"}, ["--friction 0.1", "no effect in nve"]),
        ({"barostat_time": 300.0, "pfactor": 500.0}, ["--barostat-time 300", "--pfactor 500", "one of them"]),
        ({"stress_measure": "piola-kirchhoff"}, ["--stress-measure piola-kirchhoff", "no effect", "--stress"]),
        ({"stress_measure": "piola-kirchhoff", "stress": (1.0,) * 3 + (0.0,) * 3}, ["--stress-measure", "no effect"]),
    ],
)
def test_what_would_be_ignored_is_refused(settings, words):
    with pytest.raises(InputError) as refused:
        check(SweepConfig(**settings))
    for word in words:
        assert word in as_typed(str(refused.value), SweepConfig)


def test_what_has_an_effect_or_comes_from_the_preset_is_accepted():
    for settings in (
        {"stress": (1.0, 1.0, 1.0, 0.0, 0.0, 0.0), "mask": "iso"},
        {"stress": PULLED},
        {"stress": PULLED, "stress_measure": "piola-kirchhoff"},
        {"stress": (0.0, 0.0, 0.0, 1.0, 0.0, 0.0), "mask": "full"},
        {"friction": 0.1, "ensemble": "nvt"},
        {"thermostat_time": 50.0, "barostat_time": 300.0},
    ):
        check(SweepConfig(**settings))
    paper = PRESETS["pto-test"]
    for ensemble in ("npt", "nvt", "nve"):
        check(dataclasses.replace(paper, ensemble=ensemble))
    with pytest.raises(InputError, match=r"`barostat_time=300`.*`pfactor=None`"):
        check(dataclasses.replace(paper, barostat_time=300.0))
    check(dataclasses.replace(paper, barostat_time=300.0, pfactor=None))


def test_a_pressure_runs_the_same_program_however_it_is_given():
    """A second Piola-Kirchhoff stress and a Cauchy stress differ in their deviatoric part alone."""
    pressed, even = SweepConfig(pressure=1.3), SweepConfig(stress=(-1.3, -1.3, -1.3, 0.0, 0.0, 0.0))
    assert is_hydrostatic(pressed)
    assert is_hydrostatic(even)
    np.testing.assert_array_equal(external_stress(pressed), external_stress(even))
    programs = [method_of(config).keywords for config in (pressed, even)]
    assert programs[0] == programs[1]
    measure = functools.partial(dict.get, method_of(SweepConfig(stress=PULLED)).keywords)
    assert measure("stress_measure") == "cauchy"
    other = SweepConfig(stress=PULLED, stress_measure="piola-kirchhoff")
    assert method_of(other).keywords["stress_measure"] == "piola-kirchhoff"


def test_a_run_of_before_the_choice_is_continued_where_the_choice_changes_nothing():
    def before(config: SweepConfig) -> dict:
        return {name: value for name, value in to_json(config).items() if name != "stress_measure"}

    pressed, pulled = SweepConfig(pressure=1.0), SweepConfig(stress=PULLED)
    assert changed_fields(pressed, before(pressed)) == []
    assert changed_fields(pulled, before(pulled)) == ["stress_measure was piola-kirchhoff, now cauchy"]
    assert changed_fields(dataclasses.replace(pulled, stress_measure="piola-kirchhoff"), before(pulled)) == []
    still = SweepConfig(ensemble="nvt")
    assert changed_fields(still, to_json(still) | {"mask": "full", "thermostat_time": 5.0}) == []
    assert changed_fields(still, to_json(still) | {"friction": 0.1}) == ["friction was 0.1, now 0.01"]


@pytest.mark.parametrize("ensemble", ["npt", "nve"])
def test_one_atom_has_no_thermal_motion_without_its_momentum(ensemble):
    one = ase.build.bulk("Ar", "sc", 4.0)
    with pytest.raises(InputError, match=rf"{ensemble} of 1 atom: .*3N - 3 = 0 .*larger supercell, or nvt"):
        check_dynamics(SweepConfig(ensemble=ensemble), one)
    check_dynamics(SweepConfig(ensemble="nvt"), one)
    check_dynamics(SweepConfig(ensemble=ensemble), one.repeat((2, 1, 1)))


def turned(atoms: ase.Atoms, degrees: float, axis: str) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.rotate(degrees, axis, rotate_cell=True)
    return atoms


UPRIGHT = builtin_structure("PbTiO3-tetragonal")
OFF = {
    "upright": (UPRIGHT.cell.array, 0.0),
    "a along y, b along z, c along x": (UPRIGHT.cell.array[:, [2, 0, 1]], 0.0),
    "half a turn": (turned(UPRIGHT, 180.0, "z").cell.array, 0.0),
    "rounded": (UPRIGHT.cell.array + 1e-4, 0.0021),
    "45 degrees about x": (turned(UPRIGHT, 45.0, "x").cell.array, 45.0),
    "a degree about z": (turned(UPRIGHT, 1.0, "z").cell.array, 1.0),
    "hexagonal": (ase.build.bulk("Ti", "hcp", 2.95, 4.68).cell.array, 30.0),
    "monoclinic": (cellpar_to_cell([4.0, 4.1, 4.2, 90.0, 92.0, 90.0]), 2.0),
    "primitive fcc": (ase.build.bulk("Cu", "fcc", 3.6).cell.array, 45.0),
}


@pytest.mark.parametrize(("cell", "degrees"), OFF.values(), ids=OFF.keys())
def test_diag_is_for_cells_along_x_y_and_z(cell, degrees):
    """Angles by construction, between the vectors of a turned, hexagonal or monoclinic cell and their axes."""
    found = degrees_off_axes(cell)
    assert found == pytest.approx(degrees, abs=1e-3)
    atoms = ase.Atoms("Ar2", cell=cell, scaled_positions=[[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], pbc=True)
    upright = degrees < 0.01
    assert (held_shear(cell) == "") == upright
    for mask in ("iso", "full"):
        check_dynamics(SweepConfig(mask=mask), atoms)
    check_dynamics(SweepConfig(ensemble="nvt"), atoms)
    if upright:
        check_dynamics(SweepConfig(mask="diag"), atoms)
        return
    with pytest.raises(InputError, match=rf"`mask=diag`: .*up to {found:.3g} degrees off .*use full"):
        check_dynamics(SweepConfig(mask="diag"), atoms)


def test_every_way_into_dynamics_refuses_diag_on_a_turned_cell(tmp_path):
    """A sweep (free energies are made from sweeps) and the simulations of `train --match`, each with its own option."""
    file = tmp_path / "turned.extxyz"
    ase.io.write(file, turned(UPRIGHT, 10.0, "x"))
    with pytest.raises(InputError, match=r"^`mask=diag`: .*10 degrees"):
        prepare(SweepConfig(structure=str(file), supercell=(1, 1, 1)), crystal_measurements)
    targets = (parse_target("c_over_a@300K=1.06"),)
    options = MatchOptions(structure=str(file), supercell=(1, 1, 1))
    with pytest.raises(InputError, match=r"^`matching.mask=diag`: .*10 degrees"):
        plan_of(options, targets, 0)
    assert plan_of(dataclasses.replace(options, mask="full"), targets, 0).method.keywords["mask"] == "full"


def test_relaxation_says_where_diag_holds_a_shear():
    upright, leaning = UPRIGHT, turned(UPRIGHT, 45.0, "x")
    assert relax._held(["a.cif", "b.cif"], [upright, upright]) == []
    (line,) = relax._held(["a.cif", "b.cif", "c.cif"], [upright, leaning, leaning])
    assert line.startswith("b.cif (and of 1 more): the cell's vectors are up to 45 degrees off x, y and z")
    assert "--mask full" in line
