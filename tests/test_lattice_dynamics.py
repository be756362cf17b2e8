"""Force constants, paths and modes, against closed forms, central differences and phonopy itself."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, ClassVar

import ase.build
import jax
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import pytest
from ase import units
from jaxtyping import Array
from phonopy import Phonopy

from converters import m3gnet as converter
from converters.sources import find_checkpoint
from jaxpto.calculator import JaxptoCalculator
from jaxpto.errors import InputError
from jaxpto.lattice_dynamics.harmonic import formula_units
from jaxpto.lattice_dynamics.hessian import force_constants, force_constants_of
from jaxpto.lattice_dynamics.modes import (
    IMAGINARY,
    frequencies_and_modes,
    imaginary_modes,
    is_polar,
    translations,
    wave_vectors,
)
from jaxpto.lattice_dynamics.paths import automatic_path, pto_test_path
from jaxpto.lattice_dynamics.phonopy_bridge import (
    SYMMETRY_PRECISION,
    displacement_force_constants,
    hessian_force_constants,
    make_phonopy,
    sum_rule_residual,
)
from jaxpto.model_interface import Prediction
from jaxpto.models.ase_calculator import load as wrap
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.neighbors import Neighbors, build
from jaxpto.potential import Potential
from jaxpto.structures import builtin_structure
from jaxpto.system import System, from_ase

EPSILON, SIGMA = 0.0104, 3.40
NEAREST = 2.0 ** (1 / 6) * SIGMA  # where a crystal with nearest neighbours only is at rest
STIFFNESS = 72.0 * EPSILON / (2.0 ** (1 / 3) * SIGMA**2)  # second derivative of the pair energy there, eV/A^2
THZ = np.sqrt(units._e / units._amu) * 1e10 / (2 * np.pi) * 1e-12  # of sqrt(eV / A^2 / amu)


@pytest.fixture(scope="module")
def argon() -> Potential:
    """Lennard-Jones pairs that reach the nearest neighbours of an fcc crystal only."""
    return lennard_jones(["Ar"], [EPSILON], [SIGMA], cutoff=5.0, onset=4.5, dtype=np.float64)


@pytest.fixture(scope="module")
def perovskite() -> JaxptoCalculator:
    return JaxptoCalculator("perovskite")


@pytest.fixture(scope="module")
def cubic(perovskite: JaxptoCalculator) -> Phonopy:
    """Cubic PbTiO3 with its force constants."""
    phonon = make_phonopy(builtin_structure("PbTiO3-cubic"), (2, 2, 2))
    phonon.force_constants = displacement_force_constants(phonon, perovskite)
    return phonon


def frequencies_at(phonon: Phonopy, q: Any) -> np.ndarray:
    return phonon.run_qpoints([q]).frequencies[0]


def fcc_frequencies() -> dict[str, list[float]]:
    """Closed form for nearest neighbours: eigenvalues of (2 k / m) sum over pairs of (1 - cos q.r) n n^T."""
    unit = THZ * np.sqrt(STIFFNESS / 39.948)
    by_stiffness = {"Γ": [0, 0, 0], "X": [4, 4, 8], "L": [2, 2, 8]}
    return {name: [unit * np.sqrt(value) for value in values] for name, values in by_stiffness.items()}


SKEWED = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]])  # other lattice vectors of the same fcc crystal


@pytest.mark.parametrize("method", ["hessian", "displacement"])
@pytest.mark.parametrize("cell", ["primitive", "skewed", "conventional"])
def test_fcc_crystal_against_the_closed_form(argon: Potential, cell: str, method: str) -> None:
    """Also that the names of seekpath's points belong to the vectors of whatever primitive cell there is."""
    atoms = ase.build.bulk("Ar", "fcc", np.sqrt(2.0) * NEAREST, cubic=cell == "conventional")
    if cell == "skewed":
        atoms.set_cell(SKEWED @ atoms.cell.array)
    phonon = make_phonopy(atoms, (2, 2, 2))
    assert len(phonon.primitive) == 1
    if method == "hessian":
        phonon.force_constants = hessian_force_constants(phonon, argon)
    else:
        phonon.force_constants = displacement_force_constants(phonon, JaxptoCalculator(argon), distance=1e-3)
    named = automatic_path(phonon.primitive, SYMMETRY_PRECISION).named_points
    exact = 1e-6 if method == "hessian" else 1e-4
    for name, expected in fcc_frequencies().items():
        found = frequencies_at(phonon, named[name])
        np.testing.assert_allclose(found, expected, atol=1e-4 if name == "Γ" else exact, err_msg=name)


def _compare_with_central_differences(potential: Potential, atoms: ase.Atoms) -> None:
    """Every element, with an error of the fourth order in the step; symmetric; no force on a translation."""
    found = force_constants_of(atoms, potential, list(range(len(atoms))))
    calculator = JaxptoCalculator(potential)
    expected = np.zeros_like(found)
    step = 5e-4
    for atom, axis in np.ndindex(len(atoms), 3):
        for multiple, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
            moved = atoms.copy()
            moved.positions[atom, axis] += multiple * step
            moved.calc = calculator
            expected[atom, :, axis] -= weight * moved.get_forces() / (12 * step)
    largest = np.abs(found).max()
    assert largest > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * largest)
    np.testing.assert_allclose(found, found.transpose(1, 0, 3, 2), rtol=0, atol=1e-13 * largest)
    np.testing.assert_allclose(found.sum(axis=1), 0.0, atol=1e-13 * largest)


def test_hessian_against_central_differences(crystal: ase.Atoms) -> None:
    """On a triclinic, rattled cell that is smaller than the cutoff."""
    pairs = lennard_jones(
        ["Pb", "O", "Sr", "Ti"], [0.1, 0.2, 0.3, 0.4], [2.5, 1.5, 2.0, 1.8], cutoff=6.0, onset=4.0, dtype=np.float64
    )
    _compare_with_central_differences(pairs, crystal)


@pytest.mark.slow
def test_hessian_of_perovskite_against_central_differences(perovskite: JaxptoCalculator, crystal: ase.Atoms) -> None:
    crystal = crystal.copy()
    crystal.symbols[crystal.symbols == "Sr"] = "Pb"  # the model knows the two only apart
    _compare_with_central_differences(perovskite.potential, crystal)


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_the_batch_does_not_matter(argon: Potential, batch: int) -> None:
    atoms = ase.build.bulk("Ar", "fcc", 5.3, cubic=True)
    atoms.rattle(0.1, seed=0)
    reference = force_constants_of(atoms, argon, [3, 0, 2], batch=3)
    seen = []
    found = force_constants_of(atoms, argon, [3, 0, 2], batch, lambda done, total: seen.append((done, total)))
    assert found.shape == (3, 4, 3, 3)
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-15)
    assert seen[-1] == (3, 3)


def test_hessian_can_be_differentiated(argon: Potential) -> None:
    """What a free energy will need: the slope of a function of the Hessian, in the strain and in a parameter."""
    atoms = ase.build.bulk("Ar", "fcc", 5.3, cubic=True)
    system = from_ase(atoms, np.float64)
    found = build(system, argon.allocate([system], skin=0.1))

    @jax.jit
    def logarithm(strain: Array, params: Any) -> Array:
        grow = 1.0 + strain
        strained = dataclasses.replace(system, positions=grow * system.positions, cell=grow * system.cell)
        hessian = force_constants(argon.replace(params=params), strained, found, jnp.arange(4), batch=12)
        matrix = hessian.transpose(0, 2, 1, 3).reshape(12, 12)
        return jnp.sum(jnp.log(jnp.linalg.eigvalsh(matrix)[3:]))

    by_strain, by_params = jax.jit(jax.grad(logarithm, argnums=(0, 1)))(jnp.zeros(()), argon.params)
    ends = [logarithm(jnp.asarray(s), argon.params) for s in (1e-5, -1e-5)]
    np.testing.assert_allclose(by_strain, (ends[0] - ends[1]) / 2e-5, rtol=1e-6)
    # every eigenvalue is proportional to epsilon
    np.testing.assert_allclose(by_params["epsilon"], [9 / EPSILON], rtol=1e-9)


@dataclasses.dataclass(frozen=True)
class Springs:
    """Forces -K (x - x0), K given and not symmetric: a direct model."""

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = False
    usual_skin: ClassVar[float] = 0.3

    elements: tuple[int, ...] = (18,)
    cutoff: float = 3.0

    def energy(self, params: Any, system: System, neighbors: Neighbors, vectors: Array) -> Array:
        return jnp.zeros(())

    def predict(self, params: Any, system: System, neighbors: Neighbors) -> Prediction:
        forces = -(params @ system.positions.reshape(-1)).reshape(-1, 3)
        return Prediction(jnp.zeros(()), forces, jnp.zeros((3, 3)))


def test_direct_models_give_rows_of_their_forces() -> None:
    atoms = ase.build.bulk("Ar", "fcc", 5.3, cubic=True)
    matrix = np.random.default_rng(0).normal(size=(12, 12))
    found = force_constants_of(atoms, Potential(jnp.asarray(matrix), Springs(), "springs"), [1, 2])
    np.testing.assert_allclose(found, matrix.reshape(4, 3, 4, 3).transpose(0, 2, 1, 3)[[1, 2]], rtol=1e-14)


def test_hessian_refusals(argon: Potential) -> None:
    atoms = ase.build.bulk("Ar", "fcc", 5.3)
    with pytest.raises(InputError, match="use method displacement"):
        force_constants_of(atoms, wrap("ase:ase.calculators.emt:EMT"), [0])
    with pytest.raises(InputError, match="batch 0"):
        force_constants_of(atoms, argon, [0], batch=0)
    with pytest.raises(InputError, match="Kr"):
        force_constants_of(ase.build.bulk("Kr"), argon, [0])
    with pytest.raises(InputError, match="displacement -1 A"):
        displacement_force_constants(make_phonopy(atoms, (1, 1, 1)), JaxptoCalculator(argon), distance=-1.0)


def test_sum_rule_residual(argon: Potential) -> None:
    """Rows and columns both count, for a primitive cell of several atoms in any order of the supercell."""
    phonon = make_phonopy(ase.build.bulk("Ar", "hcp", 3.8, 6.2), (2, 2, 1))
    constants = hessian_force_constants(phonon, argon)
    assert sum_rule_residual(phonon, constants) < 1e-14
    broken = constants.copy()
    broken[0, 5, 1, 2] += 0.25
    assert sum_rule_residual(phonon, broken) == pytest.approx(0.25)
    # moved within its row to another sublattice, which only the column sees
    moved = constants.copy()
    first, second = (phonon.primitive.s2p_map == index for index in phonon.primitive.p2s_map)
    moved[0, np.argmax(first), 0, 0] += 0.1
    moved[0, np.argmax(second), 0, 0] -= 0.1
    assert sum_rule_residual(phonon, moved) == pytest.approx(0.1)


def test_pto_test_path() -> None:
    phonon = make_phonopy(builtin_structure("PbTiO3-tetragonal"), (1, 1, 1))
    path = pto_test_path(phonon.primitive)
    assert path.labels == ["Γ", "X", "M", "Γ", "Z", "R", "A", "Z"]
    assert path.connections == [True] * 6 + [False]
    assert [len(segment.points) for segment in path.segments] == [101] * 7
    np.testing.assert_allclose(path.segments[4].points[[0, 50, 100]], [[0, 0, 0.5], [0, 0.25, 0.5], [0, 0.5, 0.5]])
    fcc = make_phonopy(ase.build.bulk("Ar", "fcc", 5.3), (1, 1, 1))
    with pytest.raises(InputError, match=r"30\.0 degrees off; use `path=auto`"):
        pto_test_path(fcc.primitive)


def test_automatic_path_of_tetragonal_and_hexagonal_crystals() -> None:
    tetragonal = automatic_path(make_phonopy(builtin_structure("PbTiO3-tetragonal"), (1, 1, 1)).primitive, 1e-4)
    assert set(tetragonal.named_points) == {"Γ", "X", "M", "Z", "R", "A"}
    for name, q in pto_test_path(
        make_phonopy(builtin_structure("PbTiO3-tetragonal"), (1, 1, 1)).primitive
    ).named_points.items():
        np.testing.assert_allclose(tetragonal.named_points[name], q)
    jumps = [tetragonal.segments[i].end for i, go_on in enumerate(tetragonal.connections) if not go_on]
    assert jumps == ["Z", "R", "A"]
    hexagonal = automatic_path(make_phonopy(ase.build.bulk("Ti"), (1, 1, 1)).primitive, 1e-4)
    np.testing.assert_allclose(np.abs(hexagonal.named_points["K"]), [1 / 3, 1 / 3, 0])
    lengths = {
        (s.start, s.end): np.linalg.norm(
            np.diff(s.points[:2], axis=0) @ np.linalg.inv(ase.build.bulk("Ti").cell.array).T
        )
        for s in hexagonal.segments
    }
    assert max(lengths.values()) < 1.05 * min(lengths.values())  # points are equally dense


def test_imaginary_modes_of_cubic_lead_titanate(cubic: Phonopy) -> None:
    """The polar mode at Γ and the rotations of the octahedra at M and R, where only oxygen moves."""
    path = automatic_path(cubic.primitive, SYMMETRY_PRECISION)
    modes = {mode.point: mode for mode in imaginary_modes(cubic, path)}
    assert set(modes) == {"Γ", "M", "R"}
    polar = modes["Γ"]
    assert (polar.degeneracy, polar.polar, polar.exact) == (3, True, True)
    assert polar.frequency == pytest.approx(frequencies_at(cubic, [0, 0, 0])[:3].mean())
    for axis, mode in enumerate(polar.eigenvectors):  # along x, y and z, titanium against oxygen
        assert np.sum(np.abs(mode[:, axis]) ** 2) == pytest.approx(1.0, abs=1e-6)
        assert (mode[1, axis] / mode[2, axis]).real < 0.0
    assert "Ti1" in polar.motions[2]
    assert " +z " in polar.motions[2]
    for name, degeneracy in (("M", 1), ("R", 3)):
        rotation = modes[name]
        assert (rotation.degeneracy, rotation.polar) == (degeneracy, False)
        assert rotation.species == pytest.approx({"Pb": 0.0, "Ti": 0.0, "O": 1.0}, abs=1e-6)
    # about z: the oxygen atoms beside titanium along x and along y move at right angles to these directions
    assert sorted(part[:2] + part[4] + part[-4:] for part in modes["M"].motions[0].split(", ")) == [
        "O3x50 %",
        "O4y50 %",
    ]
    for mode in modes.values():
        gram = np.einsum("mia,nia->mn", mode.eigenvectors.conj(), mode.eigenvectors)
        np.testing.assert_allclose(gram, np.eye(mode.degeneracy), atol=1e-10)
    assert imaginary_modes(cubic, path, threshold=-100.0) == []
    raised = [mode for mode in imaginary_modes(cubic, path, threshold=0.3) if mode.point == "Γ"]
    assert len(raised) == 1  # the translations, at almost zero, are still left out


def test_eigenvectors_belong_to_their_frequency(cubic: Phonopy) -> None:
    """After the recombination of degenerate ones: D e = (2 pi f)^2 e."""
    path = automatic_path(cubic.primitive, SYMMETRY_PRECISION)
    modes = imaginary_modes(cubic, path)
    assert modes
    for mode in modes:
        matrix = cubic.run_qpoints([mode.q], with_dynamical_matrices=True).dynamical_matrices[0]
        for vector in mode.eigenvectors.reshape(mode.degeneracy, -1):
            np.testing.assert_allclose(matrix @ vector, -((mode.frequency / THZ) ** 2) * vector, atol=1e-6)


def test_translations_are_told_by_their_motion_not_by_their_rank(cubic: Phonopy) -> None:
    """At Γ of this crystal the three translations lie above three imaginary modes."""
    frequencies, modes = frequencies_and_modes(cubic, np.zeros(3))
    found = translations(np.zeros(3), modes, cubic.primitive.masses)
    np.testing.assert_array_equal(np.flatnonzero(found), [3, 4, 5])
    assert frequencies[0] < IMAGINARY
    assert not translations(np.array([0.5, 0, 0]), modes, cubic.primitive.masses).any()


@pytest.mark.parametrize(("formula", "masses", "expected"), [
    ("Si", (28.0, 28.0), False), ("Si", (28.0, 30.0), False), ("GaAs", (70.0, 75.0), True), ("GaAs", (70.0, 70.0), True)
])  # fmt: skip
def test_a_mode_is_polar_when_unlike_atoms_part(formula: str, masses: tuple[float, float], expected: bool) -> None:
    atoms = ase.build.bulk(formula, "diamond" if formula == "Si" else "zincblende", 5.5)
    phonon = make_phonopy(atoms, (1, 1, 1))
    phonon.masses = masses
    optical = np.zeros((1, 2, 3), complex)
    optical[0, :, 2] = np.array([1.0, -1.0]) * np.sqrt(masses)  # both atoms move as far
    optical /= np.linalg.norm(optical)
    assert is_polar(phonon, optical) is expected


@pytest.mark.parametrize(("formula", "expected"), [("PbTiO3", 1), ("Al2O3", 1), ("Al4O6", 2), ("Ti2", 2)])
def test_formula_units(formula: str, expected: int) -> None:
    assert formula_units(ase.Atoms(formula).numbers) == expected


def test_wave_vectors_are_one_of_each_symmetric_set(cubic: Phonopy) -> None:
    path = automatic_path(cubic.primitive, SYMMETRY_PRECISION)
    assert list(wave_vectors(cubic, path)) == list(path.named_points)  # all that fit 2x2x2 have a name
    larger = make_phonopy(builtin_structure("PbTiO3-cubic"), (4, 4, 4))
    names = list(wave_vectors(larger, path))
    # the 64 points of 4x4x4 are 10 sets, 4 of which have a name on the path
    assert len(names) == 10
    assert "(0 0 0.25)" in names


def _largest_gap(phonon: Phonopy, reference: dict[str, Any]) -> float:
    gaps = []
    for name, q in reference["qpoints"].items():
        gaps.append(np.abs(frequencies_at(phonon, q) - reference["frequencies_THz"][name]).max())
    return max(gaps)


@pytest.mark.slow
def test_m3gnet_agrees_with_the_original(shared: pathlib.Path) -> None:
    """Frequencies of the original program at its own relaxed cell, by the same displacements and by the Hessian.

    The Hessian is the limit of small displacements: that of 0.01 A is off by 0.021 THz itself.
    """
    reference = json.loads((shared / "reference/m3gnet_mp_2021_2_8.json").read_text())["phonons"]
    checkpoint = find_checkpoint(converter.NAME, shared / "weights/M3GNet-MP-2021.2.8-PES")
    calculator = JaxptoCalculator(contract.cast(converter.convert(checkpoint, converter.NAME), np.float64))
    atoms = ase.Atoms(numbers=reference["numbers"], positions=reference["positions"], cell=reference["cell"], pbc=True)
    phonon = make_phonopy(atoms, (2, 2, 2))
    phonon.force_constants = displacement_force_constants(phonon, calculator, diagonal=True)
    assert len(phonon.displacements) == reference["n_displacements"]
    assert _largest_gap(phonon, reference) < 0.001
    small = make_phonopy(atoms, (2, 2, 2))
    small.force_constants = displacement_force_constants(small, calculator, distance=1e-4, diagonal=True)
    exact = make_phonopy(atoms, (2, 2, 2))
    exact.force_constants = hessian_force_constants(exact, calculator.potential)
    for q in reference["qpoints"].values():
        np.testing.assert_allclose(frequencies_at(exact, q), frequencies_at(small, q), atol=1e-3)
    assert _largest_gap(exact, reference) < 0.022
