"""Relaxation against ASE's optimizers and filter, closed forms and the original programs; how failures are told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, ClassVar

import ase
import jax
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from jax.sharding import Mesh
from jaxtyping import Array

from converters import gptff, m3gnet
from converters.sources import find_checkpoint
from jaxpto import units
from jaxpto.calculator import JaxptoCalculator
from jaxpto.errors import InputError
from jaxpto.model_interface import Prediction
from jaxpto.models.catalogue import load_potential
from jaxpto.models.lennard_jones import LennardJones, lennard_jones
from jaxpto.neighbors import Neighbors
from jaxpto.potential import Potential
from jaxpto.relaxation import batched, coordinates, lanes
from jaxpto.relaxation.batched import relax_batched
from jaxpto.relaxation.target import NOT_FINITE, Relaxed, Target
from jaxpto.relaxation.with_ase import relax_with_ase
from jaxpto.structures import builtin_structure, read_structure
from jaxpto.structures.space_group import space_group
from jaxpto.system import System, from_ase, volume

MASKS = ["iso", "diag", "full", "fixed"]
TIGHT = 1e-6  # eV/Angstrom: minima are then told to far less than 1e-4 Angstrom


@pytest.fixture(scope="module")
def noble() -> Potential:
    return lennard_jones(["Ar", "Kr"], [0.0104, 0.0140], [3.40, 3.65], 6.0, 5.0, np.float64)


@pytest.fixture(scope="module")
def calculator(noble: Potential) -> JaxptoCalculator:
    """One for all tests, so that ASE's side is compiled once."""
    return JaxptoCalculator(noble)


def triclinic(seed: int = 1, rattle: float = 0.1) -> ase.Atoms:
    """Three argon and one krypton in a skewed cell smaller than the cutoff."""
    atoms = bulk("Ar", "fcc", 5.4, cubic=True)
    atoms.numbers[2] = 36
    atoms.set_cell(atoms.cell.array @ [[1.0, 0.1, 0.0], [-0.05, 1.02, 0.08], [0.03, 0.0, 0.97]], scale_atoms=True)
    atoms.rattle(rattle, seed=seed)
    return atoms


def shape(relaxed: Relaxed) -> np.ndarray:
    """Lattice parameters and distances (Angstrom, angles as arc lengths), free of rotations and translations."""
    cell = relaxed.atoms.cell.cellpar()
    cell[3:] = np.deg2rad(cell[3:]) * cell[:3].mean()
    return np.concatenate([cell, relaxed.atoms.get_all_distances(mic=True).ravel()])


def assert_same_minimum(found: Relaxed, expected: Relaxed) -> None:
    assert found.converged
    assert expected.converged
    np.testing.assert_allclose(shape(found), shape(expected), rtol=0, atol=1e-4)
    assert found.energy == pytest.approx(expected.energy, abs=1e-6)


def assert_equal(found: Relaxed, expected: Relaxed, tolerance: float) -> None:
    assert (found.converged, found.reason, found.steps) == (expected.converged, expected.reason, expected.steps)
    for name in ("positions", "cell"):
        a, b = (np.asarray(getattr(relaxed.atoms, name)) for relaxed in (found, expected))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.history.energy, expected.history.energy, rtol=0, atol=tolerance)


# Coordinates


@pytest.mark.parametrize("mask", MASKS[:3])
def test_coordinates_and_gradient_are_those_of_ases_filter(noble: Potential, mask: str) -> None:
    """At a strained, displaced state under pressure, where no term of the chain rule vanishes."""
    atoms = triclinic()
    start = from_ase(atoms.copy(), np.float64)  # its arrays may share the memory of the atoms, which will move
    generator = np.random.default_rng(2)
    strain = generator.normal(size=(3, 3)) * 0.1
    rows = np.concatenate([atoms.positions + 0.05 * generator.normal(size=(4, 3)), 4 * (strain + strain.T) / 2])
    target = Target(mask=mask, pressure=0.3)
    kept = [True] * 3 + [False] * 3 if mask == "diag" else None
    atoms.calc = JaxptoCalculator(noble)
    free = FrechetCellFilter(
        atoms, mask=kept, hydrostatic_strain=mask == "iso", scalar_pressure=target.external_pressure
    )
    unmasked = FrechetCellFilter(atoms)  # so that the cell really goes there; its rows start from n log(n), not from 0
    unmasked.set_positions(rows + unmasked.get_positions() - np.asarray(coordinates.rows_of(start)))
    system = coordinates.system_at(start, jnp.asarray(rows))
    np.testing.assert_allclose(system.positions, atoms.positions, atol=1e-12)
    np.testing.assert_allclose(system.cell, atoms.cell.array, atol=1e-12)
    prediction = Prediction(
        jnp.asarray(atoms.get_potential_energy()),
        jnp.asarray(atoms.get_forces()),
        jnp.asarray(atoms.get_stress(voigt=False)),
    )
    pressure = jnp.asarray(target.external_pressure)
    found = coordinates.gradient(jnp.asarray(rows), system, prediction, pressure, mask)
    np.testing.assert_allclose(found, -free.get_forces(), atol=1e-12)
    assert np.abs(found).max() > 0.1
    assert float(coordinates.enthalpy(system, prediction, pressure)) == pytest.approx(free.get_potential_energy())


def test_fixed_cell_has_no_gradient() -> None:
    atoms = triclinic()
    system = from_ase(atoms, np.float64)
    prediction = Prediction(jnp.asarray(0.0), jnp.ones((4, 3)), jnp.eye(3))
    found = coordinates.gradient(coordinates.rows_of(system), system, prediction, jnp.asarray(0.0), "fixed")
    np.testing.assert_array_equal(found, np.concatenate([-np.ones((4, 3)), np.zeros((3, 3))]))


# The same minimum as ASE's


def test_lead_titanate(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two devices arrays stay where they are from chunk to chunk: elsewhere they would ask for another program."""
    potential, target = load_potential("perovskite", np.float64), Target(TIGHT)
    places, compile_advance = [], lanes.compile_advance

    def watched(mask: str, mesh: Mesh) -> Callable[..., Any]:
        program = compile_advance(mask, mesh)

        def call(potential: Any, bounds: Any, batch: Any, steps: Any) -> Any:
            places.append(tuple(str(leaf.sharding) for leaf in jax.tree.leaves(batch)))
            return program(potential, bounds, batch, steps)

        return call

    monkeypatch.setattr(lanes, "compile_advance", watched)
    calculator = JaxptoCalculator(potential)
    names = ["PbTiO3-tetragonal", "PbTiO3-cubic"]
    starts = [builtin_structure(name) for name in names]
    for name, start, found in zip(names, starts, relax_batched(starts, potential, target), strict=True):
        expected = relax_with_ase(start, calculator, target)
        assert_same_minimum(found, expected)
        np.testing.assert_allclose(found.atoms.cell.lengths(), expected.atoms.cell.lengths(), atol=1e-5)
        assert space_group(found.atoms) == space_group(expected.atoms) == space_group(start)
        assert found.steps <= expected.steps
        np.testing.assert_array_equal(start.positions, builtin_structure(name).positions)  # left as it was
    assert len(places) > 1
    assert len(set(places)) == 1


@pytest.mark.parametrize("mask", MASKS)
def test_masks_on_a_triclinic_cell(noble: Potential, calculator: JaxptoCalculator, mask: str) -> None:
    start = triclinic()
    target = Target(TIGHT, mask)
    (found,) = relax_batched([start], noble, target)
    assert_same_minimum(found, relax_with_ase(start, calculator, target))
    deformation = np.linalg.solve(start.cell.array, found.atoms.cell.array)
    np.testing.assert_allclose(deformation, deformation.T, atol=1e-12)  # strained, not rotated
    off_diagonal = np.abs(deformation - np.diag(np.diag(deformation))).max()
    spread = np.ptp(np.diag(deformation))
    assert (off_diagonal > 1e-3) == (mask == "full")
    assert (spread > 1e-3) == (mask in ("diag", "full"))
    assert (np.abs(deformation - np.eye(3)).max() > 1e-3) == (mask != "fixed")
    assert (found.residual_stress < 1e-3) == (mask == "full")


def test_fire_finds_the_same(calculator: JaxptoCalculator) -> None:
    target = Target(TIGHT, "diag")
    found = relax_with_ase(triclinic(), calculator, target, "fire")
    assert_same_minimum(found, relax_with_ase(triclinic(), calculator, target))
    assert found.steps > 50  # it is another method


@pytest.mark.parametrize("method", ["bfgs", "batched"])
def test_under_pressure_the_stress_is_minus_the_pressure(
    noble: Potential, calculator: JaxptoCalculator, method: str
) -> None:
    target = Target(1e-7, pressure=0.5)
    start = triclinic()
    relaxed = (
        relax_with_ase(start, calculator, target) if method == "bfgs" else relax_batched([start], noble, target)[0]
    )
    assert relaxed.converged
    stress = relaxed.atoms.get_stress(voigt=False)
    np.testing.assert_allclose(stress, -0.5 * units.GIGAPASCAL * np.eye(3), atol=1e-8)
    assert relaxed.residual_stress < 1e-5
    size = relaxed.atoms.get_volume()
    energies = []
    for factor in (1 - 1e-4, 1 + 1e-4):
        atoms = relaxed.atoms.copy()
        atoms.set_cell(atoms.cell.array * factor ** (1 / 3), scale_atoms=True)
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
    assert -(energies[1] - energies[0]) / (2e-4 * size) == pytest.approx(0.5 * units.GIGAPASCAL, rel=1e-4)
    assert relaxed.enthalpy == pytest.approx(relaxed.energy + 0.5 * units.GIGAPASCAL * size, abs=1e-12)


def test_history_belongs_to_the_relaxation(noble: Potential, calculator: JaxptoCalculator) -> None:
    start, target = triclinic(), Target(1e-4, pressure=0.1)
    for relaxed in (relax_batched([start], noble, target)[0], relax_with_ase(start, calculator, target)):
        history = relaxed.history
        assert {len(getattr(history, field.name)) for field in dataclasses.fields(history)} == {relaxed.steps + 1}
        for atoms, index in ((start.copy(), 0), (relaxed.atoms.copy(), -1)):
            atoms.calc = calculator
            stress = atoms.get_stress(voigt=False) / units.GIGAPASCAL + 0.1 * np.eye(3)
            assert history.energy[index] == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
            assert history.force[index] == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max(), abs=1e-12)
            assert history.stress[index] == pytest.approx(np.abs(stress).max(), abs=1e-10)
            assert history.volume[index] == pytest.approx(atoms.get_volume())
        free = FrechetCellFilter(start.copy(), scalar_pressure=target.external_pressure)
        free.atoms.calc = calculator
        free.atoms.set_cell(relaxed.atoms.cell)
        free.atoms.positions[:] = relaxed.atoms.positions
        assert relaxed.residual == pytest.approx(np.linalg.norm(free.get_forces(), axis=1).max(), rel=1e-6)
        assert relaxed.residual < target.fmax <= history.residual[:-1].min()
        assert relaxed.atoms.get_potential_energy() == relaxed.energy


def test_converged_means_below_the_bound(noble: Potential) -> None:
    for bound in np.logspace(-1, -6, 11):
        (relaxed,) = relax_batched([triclinic()], noble, Target(float(bound)))
        assert relaxed.converged
        assert relaxed.residual < bound <= relaxed.history.residual[:-1].min()


# Batches


def test_batch_equals_singles(noble: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed compositions in any order; also when the structures of one composition take turns in fewer lanes.

    Bit for bit in one program; programs for other numbers of structures may sum in another order. Each keeps its own
    masses, whatever those of the others in its lanes.
    """
    starts = [triclinic(1), bulk("Ar", "fcc", 5.0), triclinic(2, 0.02), triclinic(3, 0.2)]
    starts[2].set_masses([36.0, 38.0, 84.0, 40.0])
    target, calls = Target(1e-5), []
    together = relax_batched(starts, noble, target, lambda *seen: calls.append(seen))
    assert [len(relaxed.atoms) for relaxed in together] == [4, 1, 4, 4]
    assert len({relaxed.steps for relaxed in together}) > 2  # some are frozen while others go on
    assert calls[-1] == (4, 0.0)
    assert [finished for finished, _ in calls] == sorted(finished for finished, _ in calls)
    for relaxed, other in zip(relax_batched(starts[::-1], noble, target)[::-1], together, strict=True):
        assert_equal(relaxed, other, 0.0)
    for relaxed, start in zip(together, starts, strict=True):
        assert_equal(relaxed, relax_batched([start], noble, target)[0], 1e-9)
    monkeypatch.setattr(batched, "ATOMS_AT_ONCE", {"cpu": 8})
    for relaxed, other in zip(relax_batched(starts, noble, target), together, strict=True):
        assert_equal(relaxed, other, 1e-9)
    assert [r.atoms.get_masses().tolist() for r in together] == [start.get_masses().tolist() for start in starts]


def test_capacities_follow_the_cell(
    noble: Potential, calculator: JaxptoCalculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell that must shrink by a quarter along each axis: the list allocated for the start does not do."""
    grown = []
    grow = batched.grow
    monkeypatch.setattr(batched, "grow", lambda *given: grown.append(1) or grow(*given))
    start = bulk("Ar", "fcc", 6.9, cubic=True)
    start.rattle(0.02, seed=0)
    (found,) = relax_batched([start], noble, Target(TIGHT))
    assert_same_minimum(found, relax_with_ase(start, calculator, Target(TIGHT)))
    assert grown


# What is not converged is not called so


@dataclasses.dataclass(frozen=True)
class Staircase(LennardJones):
    """An energy that jumps up by 40 meV wherever it has fallen by 20 meV, with forces that know nothing of it."""

    def energy(self, params: Any, system: System, neighbors: Neighbors, vectors: Array) -> Array:
        smooth = super().energy(params, system, neighbors, vectors)
        return smooth + 0.04 * jnp.floor(-smooth / 0.02)


@dataclasses.dataclass(frozen=True)
class Cusp(LennardJones):
    """Bonds of 3.75 Angstrom are favoured by an energy with a kink there."""

    def energy(self, params: Any, system: System, neighbors: Neighbors, vectors: Array) -> Array:
        length = jnp.linalg.norm(vectors, axis=1)
        kinks = -0.05 * jnp.sum(jnp.maximum(0.0, 0.3 - jnp.abs(length - 3.75)))
        return super().energy(params, system, neighbors, vectors) + kinks


@dataclasses.dataclass(frozen=True)
class Broken(LennardJones):
    """Not a number in large cells."""

    def energy(self, params: Any, system: System, neighbors: Neighbors, vectors: Array) -> Array:
        return super().energy(params, system, neighbors, vectors) + jnp.where(volume(system.cell) > 200.0, jnp.nan, 0.0)


@dataclasses.dataclass(frozen=True)
class Direct(LennardJones):
    """The forces of Lennard-Jones beside an energy that falls where it should rise."""

    conservative: ClassVar[bool | None] = False

    def predict(self, params: Any, system: System, neighbors: Neighbors) -> Prediction:
        true = Potential(params, LennardJones(self.elements, self.cutoff, self.onset), "lj").evaluate(system, neighbors)
        return true.replace(energy=-true.energy)


def of_kind(noble: Potential, kind: type[LennardJones]) -> Potential:
    return noble.replace(model=kind(*dataclasses.astuple(noble.model)))


def assert_not_converged(relaxed: Relaxed, target: Target, reason: str) -> None:
    assert not relaxed.converged
    assert reason in relaxed.reason
    assert relaxed.residual >= target.fmax


def test_step_limit_is_stated(noble: Potential, calculator: JaxptoCalculator) -> None:
    target = Target(1e-9, steps=13)
    for relaxed in (
        relax_batched([triclinic()], noble, target)[0],
        relax_with_ase(triclinic(), calculator, target),
    ):
        assert_not_converged(relaxed, target, "13 steps done")
        assert relaxed.steps == 13


def test_single_precision_stalls(noble: Potential) -> None:
    """Its forces end in noise, far above the target; with a target above the noise it converges."""
    single = contract.cast(noble, np.float32)
    target = Target(1e-9)
    (relaxed,) = relax_batched([triclinic()], single, target)
    assert_not_converged(relaxed, target, "stalled")
    assert relaxed.steps < target.steps
    (converged,) = relax_batched([triclinic()], single, Target(1e-4))
    assert converged.converged
    assert converged.energy == pytest.approx(relax_batched([triclinic()], noble, target)[0].energy, abs=1e-5)


def test_jumps_in_the_energy_are_crossed(noble: Potential) -> None:
    """As ASE's optimizers do, which look at forces only: the end is the minimum of the smooth part."""
    target = Target(TIGHT)
    (found,) = relax_batched([triclinic()], of_kind(noble, Staircase), target)
    assert np.diff(found.history.energy).max() > 0.01
    assert found.converged
    np.testing.assert_allclose(shape(found), shape(relax_batched([triclinic()], noble, target)[0]), rtol=0, atol=1e-4)


def test_cusps_stall(noble: Potential) -> None:
    target = Target(1e-4)
    (relaxed,) = relax_batched([triclinic()], of_kind(noble, Cusp), target)
    assert_not_converged(relaxed, target, "no step lowers the energy")
    assert relaxed.residual > 1e-2


def test_what_is_not_finite_is_frozen(noble: Potential) -> None:
    broken, target = of_kind(noble, Broken), Target(1e-4)
    compact, large = triclinic(), triclinic()
    large.set_cell(large.cell.array * 1.1, scale_atoms=True)
    lost, fine = relax_batched([large, compact], broken, target)
    assert (lost.converged, lost.reason, lost.steps) == (False, NOT_FINITE, 0)
    assert np.isnan(lost.energy)
    np.testing.assert_array_equal(lost.atoms.positions, large.positions)
    assert fine.converged
    with_ase = relax_with_ase(large, JaxptoCalculator(broken), target)
    assert (with_ase.converged, with_ase.reason, with_ase.steps) == (False, NOT_FINITE, 0)


def test_direct_models_are_led_by_forces_alone(noble: Potential) -> None:
    target = Target(1e-5)
    direct = of_kind(noble, Direct)
    (led,) = relax_batched([triclinic()], direct, target)
    assert led.converged
    np.testing.assert_allclose(shape(led), shape(relax_batched([triclinic()], noble, target)[0]), atol=1e-3)


class Failing(AseLennardJones):
    """Fails on the third structure."""

    calls = 0

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        self.calls += 1
        if self.calls > 2:
            raise RuntimeError("it broke\ndown")
        super().calculate(atoms, properties, system_changes)


def test_calculator_that_fails_on_the_way() -> None:
    start = bulk("Ar", "fcc", 5.4, cubic=True)
    relaxed = relax_with_ase(start, Failing(sigma=3.4, epsilon=0.0104, rc=6.0), Target(1e-6))
    assert (relaxed.converged, relaxed.reason, relaxed.steps) == (False, "a step led nowhere: it broke down", 1)
    assert relaxed.atoms.get_potential_energy() == relaxed.energy


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fmax": 0.0}, "fmax 0: must be above 0"),
        ({"fmax": float("nan")}, "fmax nan"),
        ({"pressure": float("inf")}, "pressure inf"),
        ({"pressure": 1.0, "mask": "fixed"}, "no effect on a fixed cell"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_bad_targets_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Target(**settings)


class StressLess(Calculator):
    implemented_properties = ["energy", "forces"]  # noqa: RUF012, the way of ASE

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": float(np.sum(atoms.positions**2)), "forces": -2.0 * atoms.positions}


def test_calculator_without_stress() -> None:
    atoms = ase.Atoms("Ar", [[0.3, 0.1, 0.2]], cell=[9.0] * 3, pbc=True)
    with pytest.raises(InputError, match=r"StressLess gives no stress.*fixed"):
        relax_with_ase(atoms, StressLess(), Target())
    relaxed = relax_with_ase(atoms, StressLess(), Target(TIGHT, "fixed"))
    assert relaxed.converged
    np.testing.assert_allclose(relaxed.atoms.positions, 0.0, atol=TIGHT)
    assert np.isnan(relaxed.residual_stress)


def test_bad_structures_are_refused(noble: Potential, calculator: JaxptoCalculator) -> None:
    held = triclinic()
    held.set_constraint(FixAtoms([0]))
    for relax in (
        lambda atoms: relax_with_ase(atoms, calculator, Target()),
        lambda atoms: relax_batched([triclinic(), atoms], noble, Target()),
    ):
        with pytest.raises(InputError, match=r"constraints \(FixAtoms\)"):
            relax(held)
        with pytest.raises(InputError, match="does not know Ne"):
            relax(bulk("Ne", "fcc", 4.4))
    with pytest.raises(InputError, match="use the method bfgs or fire"):
        relax_batched([bulk("Cu")], load_potential("ase:ase.calculators.emt:EMT"), Target())


# Space groups


def test_space_groups() -> None:
    assert str(space_group(bulk("Si"))) == "Fd-3m (227)"
    assert str(space_group(builtin_structure("PbTiO3-tetragonal"))) == "P4mm (99)"
    for shift, number in ((3e-4, 221), (3e-3, 99)):
        atoms = builtin_structure("PbTiO3-cubic")
        atoms.positions[1, 2] += shift
        assert space_group(atoms).number == number
    assert str(space_group(ase.Atoms("Ar2", [[0, 0, 0]] * 2, cell=[4.0] * 3, pbc=True))) == "unknown"


# The original programs


def _against_the_original(potential: Potential, entries: list[dict[str, Any]], shared: Any) -> None:
    """The relaxations that the original did with ASE from T.vasp and C.vasp, to the same bound."""
    calculator = JaxptoCalculator(potential)
    starts = [read_structure(shared / "data" / "pto-test" / f"{name}.vasp") for name in "TC"]
    found = [relax_with_ase(start, calculator, Target()) for start in starts]
    for relaxed, entry in zip(found, entries, strict=True):
        assert relaxed.converged
        np.testing.assert_allclose(relaxed.atoms.cell.lengths(), entry["cellpar"][:3], atol=2e-3)
    energies = [relaxed.energy for relaxed in found]
    assert energies[1] - energies[0] == pytest.approx(entries[1]["energy"] - entries[0]["energy"], abs=1e-3)


def test_m3gnet_relaxes_as_the_original(shared: Any) -> None:
    found = find_checkpoint(m3gnet.NAME, shared / "weights/M3GNet-MP-2021.2.8-PES")
    reference = json.loads((shared / "reference/m3gnet_mp_2021_2_8.json").read_text())["relaxation"]
    entries = [reference["T_parent_indexed"], reference["C_parent_indexed"]]
    _against_the_original(m3gnet.convert(found, m3gnet.NAME), entries, shared)


@pytest.mark.slow
def test_gptff_relaxes_as_the_original(shared: Any) -> None:
    reference = json.loads((shared / "reference/gptff_v2.json").read_text())["relaxation"]
    converted = gptff.convert(find_checkpoint("gptff-v2", shared / "weights/gptff_v2.pth"), "gptff-v2")
    _against_the_original(converted, [reference["T_111"], reference["C_111"]], shared)
