"""Pieces of a distillation: labels never computed twice, what is chosen, what counts as done, what is proved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.calculators.lj
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry.rdf import get_rdf

from jaxpto.calculator import JaxptoCalculator
from jaxpto.distillation.config import DistilConfig, check, ladder_of
from jaxpto.distillation.distillation import read_crystal
from jaxpto.distillation.exploration import Rung, agree, from_json, moved, to_json
from jaxpto.distillation.label_store import LabelStore, key_of, rounded
from jaxpto.distillation.proof import Independent, agreement
from jaxpto.distillation.relaxed import relaxed
from jaxpto.distillation.rounds import teacher_steps
from jaxpto.distillation.seeds import Crystal, displaced_supercells, random_structures, thermal_structures
from jaxpto.distillation.selection import CENTERS, REACH, Candidate, choose, descriptor, until_it_leaves
from jaxpto.distillation.teacher import Teacher, load_teacher
from jaxpto.errors import InputError
from jaxpto.models.catalogue import load_potential
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.relaxation.target import Target
from jaxpto.relaxation.with_ase import relax_with_ase
from jaxpto.units import BOLTZMANN

EPSILON, SIGMA, CUTOFF, ONSET = 0.0104, 3.4, 6.5, 5.0


def argon(repeats: int = 2, lattice: float = 5.3) -> ase.Atoms:
    return ase.build.bulk("Ar", "fcc", a=lattice, cubic=True).repeat(repeats)


def rattled(number: int, seed: int = 0) -> list[ase.Atoms]:
    found = []
    for k in range(number):
        atoms = argon()
        atoms.rattle(0.1, seed=seed + k)
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "argon"
    save_potential(lennard_jones(["Ar"], [EPSILON], [SIGMA], cutoff=CUTOFF, onset=ONSET), folder)
    return folder


def counted(teacher: Teacher, digest: str = "") -> tuple[Teacher, list[int]]:
    """The teacher, and how many structures it was asked for each time."""
    asked: list[int] = []

    def label(frames: Sequence[ase.Atoms]) -> list[ase.Atoms]:
        asked.append(len(frames))
        return teacher.label(frames)

    return Teacher(teacher.potential, teacher.name, digest or teacher.digest, label), asked


def test_labels_are_those_of_the_model(model: Path) -> None:
    """Energy, forces and stress in double precision, of structures of two sizes and volumes."""
    frames = [*rattled(3), argon(2, 4.9), argon(3)]
    for some in (frames[:4], frames[4:]):
        for given, labelled in zip(some, load_teacher(model).label(some), strict=True):
            given.calc = JaxptoCalculator(model)
            assert labelled.get_potential_energy() == pytest.approx(given.get_potential_energy(), abs=2e-5)
            np.testing.assert_allclose(labelled.get_forces(), given.get_forces(), atol=3e-6)
            np.testing.assert_allclose(labelled.get_stress(), given.get_stress(), atol=3e-7)


def test_labels_have_the_energies_of_the_elements(model: Path, tmp_path: Path) -> None:
    """A student is trained relative to them, and compared with its teacher by what `evaluate` says of both."""
    save_potential(load_potential(model), tmp_path / "argon", {"reference_energies_eV": {"Ar": -2.0}})
    frames = rattled(2)
    plain, shifted = load_teacher(model), load_teacher(tmp_path / "argon")
    assert plain.digest != shifted.digest
    for one, other in zip(plain.label(frames), shifted.label(frames), strict=True):
        difference = other.get_potential_energy() - one.get_potential_energy()
        assert difference == pytest.approx(-2.0 * len(one), abs=1e-9)
        np.testing.assert_array_equal(other.get_forces(), one.get_forces())


def test_nothing_is_labelled_twice(model: Path, tmp_path: Path) -> None:
    teacher, asked = counted(load_teacher(model))
    store = LabelStore(tmp_path / "labels", teacher)
    first = store.label(rattled(10), "one")
    again = store.label([*rattled(10)[::-1], *rattled(2, seed=50), *rattled(2, seed=50)], "two")
    assert sum(asked) == 12
    assert store.files() == {"one": 10, "two": 2}
    assert [atoms.get_potential_energy() for atoms in again[:10]] == [
        atoms.get_potential_energy() for atoms in first[::-1]
    ]
    read = LabelStore(tmp_path / "labels", teacher)
    assert len(read) == 12
    for before, after in zip(first, read.label(rattled(10), "three"), strict=True):
        assert after.get_potential_energy() == before.get_potential_energy()
        np.testing.assert_array_equal(after.get_forces(), before.get_forces())
        np.testing.assert_array_equal(after.get_stress(), before.get_stress())
    assert sum(asked) == 12


def test_labels_survive_a_teacher_that_dies(model: Path, tmp_path: Path) -> None:
    teacher, asked = counted(load_teacher(model))

    def label(frames: Sequence[ase.Atoms]) -> list[ase.Atoms]:
        if sum(asked) >= 16:
            raise KeyboardInterrupt
        return teacher.label(frames)

    with pytest.raises(KeyboardInterrupt):
        LabelStore(tmp_path, Teacher(teacher.potential, teacher.name, teacher.digest, label)).label(rattled(30), "some")
    LabelStore(tmp_path, teacher).label(rattled(30), "some")
    assert sum(asked) == 30


def test_labels_of_another_teacher_are_refused(model: Path, tmp_path: Path) -> None:
    teacher = load_teacher(model)
    LabelStore(tmp_path, teacher).label(rattled(1), "one")
    with pytest.raises(InputError, match=r"holds labels of .*argon.*not of"):
        LabelStore(tmp_path, counted(teacher, "other")[0])
    (tmp_path / "teacher.json").unlink()
    with pytest.raises(InputError, match="whose"):
        LabelStore(tmp_path, teacher)
    (tmp_path / "teacher.json").write_text(json.dumps({"name": "argon", "digest": teacher.digest}))
    (tmp_path / "one.extxyz").write_text("32\nno extxyz")
    with pytest.raises(InputError, match=r"one.extxyz cannot be read"):
        LabelStore(tmp_path, teacher)


def test_what_is_labelled_is_what_the_file_holds() -> None:
    atoms = rounded(rattled(1)[0])
    moved_little = atoms.copy()
    moved_little.positions += 2e-9
    assert key_of(atoms) == key_of(rounded(moved_little))
    moved_little.positions[0, 0] += 3e-8
    assert key_of(atoms) != key_of(rounded(moved_little))


def crystal(name: str = "argon") -> Crystal:
    return Crystal(name, name, argon(1), (2, 2, 2))


def test_random_structures_are_strained_and_rattled() -> None:
    found = random_structures(crystal(), 200, np.random.default_rng(0))
    perfect = crystal().supercell
    strains = np.array([np.linalg.inv(perfect.cell.array) @ atoms.cell.array - np.eye(3) for atoms in found])
    assert np.std(strains[:, 0, 1]) == pytest.approx(0.012 / np.sqrt(2), rel=0.2)
    assert np.std(np.trace(strains, axis1=1, axis2=2)) == pytest.approx(np.sqrt(3 * 0.012**2 + 9 * 0.01**2), rel=0.2)
    away = [np.ptp(atoms.get_scaled_positions() - perfect.get_scaled_positions()) for atoms in found]
    assert np.mean(np.array(away) < 1e-9) == pytest.approx(0.2)
    assert key_of(found[7]) == key_of(random_structures(crystal(), 200, np.random.default_rng(0))[7])


def test_thermal_structures_have_the_mean_energy_of_equipartition(model: Path) -> None:
    """A classical harmonic crystal has kT/2 of potential energy a mode; the three translations have none."""
    teacher = load_teacher(model)
    phonon, displaced = displaced_supercells(crystal())
    kelvin = 5.0
    found = thermal_structures(phonon, teacher.label(displaced), (kelvin,), 200, seed=1)
    at_rest = teacher.label([crystal().supercell])[0].get_potential_energy()
    energies = np.array([atoms.get_potential_energy() for atoms in teacher.label(found)]) - at_rest
    assert energies.mean() == pytest.approx(0.5 * (3 * 32 - 3) * BOLTZMANN * kelvin, rel=0.06)


def test_the_way_to_the_minimum_is_labelled_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with a relaxation of the unit cell itself; what is labelled are supercells."""
    teacher, asked = counted(load_teacher(model))
    start = Crystal("argon", "argon", argon(1, 5.0), (2, 2, 2))
    said: list[str] = []
    found = relaxed(start, LabelStore(tmp_path, teacher), 0.0, said.append)
    alone = relax_with_ase(argon(1, 5.0), JaxptoCalculator(model, dtype="float64"), Target(1e-4))
    np.testing.assert_allclose(found.atoms.cell.lengths(), alone.atoms.cell.lengths(), rtol=5e-3)
    assert not np.allclose(found.atoms.cell.lengths(), 5.0, rtol=0.02)
    a, b, c = found.atoms.cell.lengths()
    assert said == [f"argon: the teacher's minimum has edges of {a:.3f}, {b:.3f} and {c:.3f} A"]
    store = LabelStore(tmp_path, teacher)
    assert {len(atoms) for atoms in store.structures("relaxation-argon")} == {32}
    before = sum(asked)
    assert before == len(store) > 3
    relaxed(start, store, 0.0, said.append)
    assert sum(asked) == before
    monkeypatch.setattr("jaxpto.distillation.relaxed.STEPS", 1)
    assert relaxed(start, store, 0.0, said.append) is start
    assert "no minimum of the teacher nearby (1 steps done)" in said[-1]


def test_descriptors_are_distributions_of_distances() -> None:
    """Compared with ASE's radial distribution function, smeared; the same in every orientation and order."""
    atoms = rattled(1)[0].repeat(2)
    found = descriptor(atoms)
    bins = 1100
    rdf, r = get_rdf(atoms, REACH, bins)
    step, density = r[1] - r[0], len(atoms) / atoms.get_volume()
    count = rdf * 4.0 * np.pi * r**2 * step * density
    smeared = [np.sum(count * np.exp(-0.5 * ((r - center) / 0.2) ** 2) / r**2) for center in CENTERS]
    np.testing.assert_allclose(found, smeared, rtol=0.02, atol=2e-3)
    turned = atoms[np.random.default_rng(0).permutation(len(atoms))]
    turned.rotate(40, "x", rotate_cell=True)
    turned.positions += 3.0
    np.testing.assert_allclose(descriptor(turned), found, atol=1e-9)


def test_the_most_uncertain_and_unlike_are_chosen() -> None:
    frames = rattled(12)
    candidates = [
        Candidate(frames[0], 300.0, 0.5),
        Candidate(frames[0].copy(), 300.0, 0.4),  # the same structure again
        Candidate(frames[1], 300.0, 0.3),
        Candidate(frames[2], 300.0, 0.05),
        Candidate(frames[3], 900.0, 2.0),
        Candidate(frames[4], 900.0, 0.1),
        Candidate(frames[5], 900.0, np.nan),
    ]
    chosen = choose(candidates, [], 4)
    assert [(one.temperature, one.deviation) for one in chosen] == [
        (300.0, 0.5),
        (900.0, 2.0),
        (300.0, 0.3),
        (900.0, 0.1),
    ]
    assert [one.deviation for one in choose(candidates, [frames[0]], 1)] == [0.3]
    assert [one.deviation for one in choose(candidates, [], 9, lowest=0.25)] == [0.5, 2.0, 0.3, 0.4]
    assert choose([], [], 3) == []


def test_a_run_is_followed_until_it_is_lost() -> None:
    assert until_it_leaves(np.array([0.1, 0.3, 2.5, 0.1]), 2.0).tolist() == [0, 1, 2]
    assert until_it_leaves(np.array([0.1, 0.3]), 2.0).tolist() == [0, 1]
    assert until_it_leaves(np.array([0.1, np.nan, 0.1]), 2.0).tolist() == [0, 1]


def rung(kelvin: float, status: str = "ok", deviation: float = 0.1, mean: float = 4.0, error: float = 0.01) -> Rung:
    return Rung("crystal", kelvin, status, deviation, {"a": (mean, error)} if status == "ok" else {})


def test_when_rounds_end() -> None:
    assert agree([rung(300.0), rung(900.0, deviation=0.3)], [300.0], 0.2)
    assert not agree([rung(300.0), rung(900.0, deviation=0.3)], [300.0, 900.0], 0.2)
    assert not agree([rung(300.0, deviation=np.nan)], [300.0], 0.2)
    assert moved([rung(300.0)], [rung(300.0, mean=4.02)], [300.0]) == []
    assert len(moved([rung(300.0)], [rung(300.0, mean=4.04)], [300.0])) == 1
    assert moved([rung(900.0)], [rung(900.0, status="molten")], [900.0]) == ["crystal at 900 K: ok, now molten"]
    assert moved([rung(900.0, status="molten")], [rung(900.0, status="molten")], [900.0]) == []
    assert moved([rung(900.0)], [rung(900.0, status="molten")], [300.0]) == []
    both = [rung(300.0), rung(900.0, status="molten", deviation=np.inf)]
    assert from_json(json.loads(json.dumps(to_json(both)))) == both


def told(atoms: ase.Atoms, energy: float, forces: np.ndarray) -> ase.Atoms:
    known = atoms.copy()
    known.calc = SinglePointCalculator(known, energy=energy, forces=forces, stress=np.zeros(6))
    return known


def test_errors_and_reweighted_averages() -> None:
    """Volumes normal with variance s^2 and U_teacher - U_student = g V: weights move the mean by -s^2 g / kT."""
    generator = np.random.default_rng(3)
    kelvin, spread, frames = 50.0, 1.0, 1500
    perfect = crystal().supercell
    volume = perfect.get_volume() / 8.0
    volumes = volume + spread * generator.normal(size=frames)
    slope = 0.5 * BOLTZMANN * kelvin / spread
    structures = []
    for one in volumes:
        atoms = perfect.copy()
        atoms.set_cell(perfect.cell.array * (one / volume) ** (1 / 3), scale_atoms=True)
        structures.append(atoms)
    zero = np.zeros((len(perfect), 3))
    student = [told(atoms, 1.0, zero) for atoms in structures]
    teacher = [told(atoms, 1.0 + slope * one, zero + 0.002) for atoms, one in zip(structures, volumes, strict=True)]
    some = Independent("argon", kelvin, teacher, student, np.zeros(frames))
    found = agreement(some, crystal())
    assert found.student["volume"] == pytest.approx(volumes.mean())
    assert found.reweighted["volume"] == pytest.approx(volume - 0.5 * spread, abs=0.1)
    assert found.effective / frames == pytest.approx(np.exp(-0.25), rel=0.08)  # exp(-variance of the exponent)
    assert found.forces == pytest.approx(2.0)
    assert found.energy == pytest.approx(1e3 * slope * np.sqrt(np.mean(volumes**2)) / len(perfect), rel=1e-6)
    few = Independent("argon", kelvin, teacher[:4], student[:4], np.zeros(4))
    assert np.isnan(agreement(few, crystal()).reweighted["volume"])


def config(**changes: Any) -> DistilConfig:
    return DistilConfig(**{"teacher": "argon", "structures": ("argon.cif",), "out": "student"} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structures": ()}, "no structure"),
        ({"structures": ("a.cif", "a.cif")}, "twice"),
        ({"temperatures": (300.0, -1.0)}, "temperature -1 K"),
        ({"beyond": 0.5}, "beyond=0.5"),
        ({"members": 1}, "members=1.*at least 2"),
        ({"hours": 0.0}, "hours=0.0.*positive"),
        ({"labels": 30}, "labels=30.*no budget"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(config(**changes))


def test_the_ladder_goes_beyond_the_highest_temperature() -> None:
    assert ladder_of(config(temperatures=(900.0, 300.0))) == (300.0, 900.0, 1035.0)
    assert ladder_of(config(temperatures=(300.0,), beyond=1.0)) == (300.0,)


def test_the_teacher_runs_as_long_as_the_time_allows(model: Path, tmp_path: Path) -> None:
    """A seventh of an hour, for two crystals at three temperatures each; a resumed distillation has the same."""
    store, said = LabelStore(tmp_path / "labels", load_teacher(model)), []
    hour = config(temperatures=(300.0, 900.0), out=str(tmp_path / "one"))
    store.seconds_per_label = 0.5
    assert teacher_steps(hour, 2, store, said.append) == int(3600 / 7 / (0.5 * 6))
    store.seconds_per_label = 0.1
    assert teacher_steps(hour, 2, store, said.append) == int(3600 / 7 / (0.5 * 6))
    assert teacher_steps(dataclasses.replace(hour, out=str(tmp_path / "fast")), 2, store, said.append) == 500
    store.seconds_per_label = 5.0
    assert teacher_steps(dataclasses.replace(hour, out=str(tmp_path / "slow")), 2, store, said.append) == 0
    assert "a step of all temperatures takes 15 s" in said[-1]
    assert teacher_steps(config(teacher="ase:package:factory"), 2, store, said.append) == 0
    assert teacher_steps(config(teacher="ase:package:factory", teacher_steps=30), 2, store, said.append) == 30
    assert len(said) == 3


def test_supercells_have_edges_of_7_angstrom_and_a_half(tmp_path: Path) -> None:
    argon(1).write(tmp_path / "argon.cif")
    found = read_crystal(str(tmp_path / "argon.cif"), config(), print)
    assert (found.name, found.repeats, len(found.supercell)) == ("argon", (2, 2, 2), 32)
    assert read_crystal(str(tmp_path / "argon.cif"), config(supercell=(1, 2, 3)), print).repeats == (1, 2, 3)


def test_calculators_of_ase_are_teachers(tmp_path: Path) -> None:
    teacher = load_teacher("ase:test_distillation:calculator")
    assert teacher.digest == "ase:test_distillation:calculator"
    store = LabelStore(tmp_path, teacher)
    (found,) = store.label(rattled(1), "one")
    given = rattled(1)[0]
    given.calc = calculator()
    assert found.get_potential_energy() == pytest.approx(given.get_potential_energy(), abs=2e-5)
    np.testing.assert_allclose(found.get_forces(), given.get_forces(), atol=3e-6)


def calculator() -> ase.calculators.lj.LennardJones:
    return ase.calculators.lj.LennardJones(epsilon=EPSILON, sigma=SIGMA, rc=CUTOFF, ro=ONSET, smooth=True)


def test_a_teacher_refuses_elements_that_it_does_not_know(model: Path) -> None:
    with pytest.raises(InputError, match="does not know Kr"):
        load_teacher(model).label([ase.build.bulk("Kr", "fcc", a=5.7, cubic=True).repeat(2)])
    assert load_potential(model).elements == (18,)
