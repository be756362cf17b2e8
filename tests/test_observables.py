"""Statistics against closed forms, lattice and phases on constructed data, polarization against its definition."""

import dataclasses
import math
import pathlib

import ase
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import make_supercell

from jaxpto.observables import phases
from jaxpto.observables.lattice import UnitCell, lattice_parameters
from jaxpto.observables.statistics import (
    autocorrelation,
    blocking_standard_error,
    combine,
    cumulative_mean,
    estimate,
    settling_index,
    statistical_inefficiency,
)
from jaxpto.observables.summary import ReplicaRecord, Status, production_start, summarize, transitions
from jaxpto.perovskite.polarization import ChargeSet, build_topology, polarization
from jaxpto.perovskite.unit_cell import perovskite_bonds, unit_cell
from jaxpto.system import from_ase, stack


def repeated(*counts: int, perovskite: bool = True) -> UnitCell:
    """The unit cell of a supercell that repeats it along its own vectors."""
    return UnitCell(np.diag(1.0 / np.array(counts)), perovskite)


def autoregressive(frames: int, memory: float, seed: int) -> np.ndarray:
    """AR(1) series of unit variance, C(t) = memory^t, in equilibrium from its first frame."""
    random = np.random.default_rng(seed)
    series = random.standard_normal(frames)
    noise = math.sqrt(1.0 - memory**2) * series
    for t in range(1, frames):
        series[t] = memory * series[t - 1] + noise[t]
    return series


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_statistical_inefficiency_of_an_autoregressive_series(memory: float) -> None:
    exact = (1.0 + memory) / (1.0 - memory)
    found = np.mean([statistical_inefficiency(autoregressive(8000, memory, seed)) for seed in range(8)])
    assert found == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_both_standard_errors_match_the_scatter_of_independent_means(memory: float) -> None:
    frames = 2000
    runs = [autoregressive(frames, memory, seed) for seed in range(150)]
    exact = math.sqrt((1.0 + memory) / (1.0 - memory) / frames)
    assert np.std([run.mean() for run in runs]) == pytest.approx(exact, rel=0.15)  # the series is what it claims to be
    assert np.mean([blocking_standard_error(run) for run in runs]) == pytest.approx(exact, rel=0.15)
    assert np.mean([estimate(run).sem for run in runs]) == pytest.approx(exact, rel=0.15)


def test_autocorrelation_is_the_plain_sum() -> None:
    series = autoregressive(60, 0.5, 3) + 7.0
    centred = series - series.mean()
    direct = [np.sum(centred[: 60 - t] * centred[t:]) for t in range(60)]
    np.testing.assert_allclose(autocorrelation(series), np.array(direct) / direct[0], atol=1e-12)


def test_short_and_constant_series() -> None:
    assert math.isnan(estimate(np.zeros(0)).mean)
    single = estimate(np.array([2.0]))
    assert single.mean == 2.0
    assert math.isnan(single.sem)
    constant = estimate(np.full(50, 19.4, np.float32))
    assert constant.std == constant.sem == constant.drift == 0.0
    assert constant.independent == 50


def test_convergence_is_judged() -> None:
    assert estimate(autoregressive(2000, 0.5, 1)).converged
    assert not estimate(autoregressive(2000, 0.5, 1) + np.linspace(0.0, 5.0, 2000)).converged
    assert not estimate(autoregressive(200, 0.99, 1)).converged
    step = estimate(np.random.default_rng(0).standard_normal(1000) * 0.1 + (np.arange(1000) >= 500))
    assert step.drift == pytest.approx(1.0, abs=0.05)


def test_cumulative_mean_and_settling() -> None:
    series = np.array([1.0, 3.0, 2.0, 2.0])
    np.testing.assert_allclose(cumulative_mean(series), [1.0, 2.0, 2.0, 2.0])
    assert settling_index(series, 0.1) == 1
    assert settling_index(series, 2.0) == 0


def test_replicas_combine_with_the_larger_of_both_errors() -> None:
    alike = [estimate(autoregressive(1000, 0.3, seed)) for seed in range(4)]
    assert combine(alike).sem == pytest.approx(math.sqrt(sum(e.sem**2 for e in alike)) / 4, rel=0.6)
    apart = [estimate(autoregressive(1000, 0.3, seed) + 10.0 * seed) for seed in range(4)]
    assert combine(apart).sem == pytest.approx(np.std([e.mean for e in apart], ddof=1) / 2.0)
    assert combine(apart).std == pytest.approx(1.0, rel=0.1)


# --- lattice and phases -----------------------------------------------------------------------------------------------


def test_lattice_parameters_agree_with_ase() -> None:
    cell = ase.Atoms(cell=[7.8, 11.9, 16.4, 88.0, 91.0, 95.0], pbc=True).cell
    lattice = lattice_parameters(np.stack([cell.array, 1.01 * cell.array]), repeated(2, 3, 4, perovskite=False))
    a, b, c, *angles = cell.cellpar()
    np.testing.assert_allclose(lattice.lengths[0], [a / 2, b / 3, c / 4], rtol=1e-12)
    np.testing.assert_allclose(lattice.angles, [angles, angles], rtol=1e-12)
    np.testing.assert_allclose(lattice.volume, [cell.volume / 24, 1.01**3 * cell.volume / 24], rtol=1e-12)
    assert lattice.c_over_a[0] == pytest.approx(c / 4 / (0.5 * (a / 2 + b / 3)))


# --- polarization -----------------------------------------------------------------------------------------------------

FRACTIONS = {  # tetragonal PbTiO3, polar along +z; apical oxygen first
    "Pb": [(0.0, 0.0, 0.09)],
    "Ti": [(0.5, 0.5, 0.56)],
    "O": [(0.5, 0.5, 0.98), (0.5, 0.0, 0.47), (0.0, 0.5, 0.47)],
}
A, C = 3.87, 4.20


def tetragonal(a_symbol: str = "Pb", b_symbol: str = "Ti", sign: float = 1.0) -> ase.Atoms:
    positions = np.array([f for group in FRACTIONS.values() for f in group])
    atoms = ase.Atoms(f"{a_symbol}{b_symbol}O3", cell=[A, A, C], pbc=True)
    atoms.set_scaled_positions(positions * [1.0, 1.0, sign])
    return atoms


def polarization_of(atoms: ase.Atoms, charges: ChargeSet = "authors", start: ase.Atoms | None = None) -> np.ndarray:
    topology, note = build_topology(start or atoms, charges, np.float64)
    assert topology is not None, note
    return np.asarray(polarization(from_ase(atoms, np.float64), topology))


def test_polarization_by_hand() -> None:
    # displacements from the titanium, e Angstrom per cell, with the images on both sides of it averaged
    titanium = 0.56
    lead, apical, equatorial = 0.59 - titanium, 0.48 - titanium, 0.47 - titanium
    per_volume = C / (A * A * C) * 16.02176634
    authors = (3.44 * lead - 2.873 * (apical + 2 * equatorial)) * per_volume
    np.testing.assert_allclose(polarization_of(tetragonal()), [0.0, 0.0, authors], atol=1e-7)
    lda = (3.90 * lead - 5.83 * apical - 2 * 2.56 * equatorial) * per_volume
    np.testing.assert_allclose(polarization_of(tetragonal(), "lda"), [0.0, 0.0, lda], atol=1e-7)
    nominal = (2 * lead - 2 * (apical + 2 * equatorial)) * per_volume
    np.testing.assert_allclose(polarization_of(tetragonal(), "nominal"), [0.0, 0.0, nominal], atol=1e-7)


def test_polarization_of_the_published_structures(shared: pathlib.Path) -> None:
    def published(name: str) -> ase.Atoms:
        atoms = ase.io.read(shared / "data/pto-test" / name)
        assert isinstance(atoms, ase.Atoms)
        return atoms

    np.testing.assert_allclose(polarization_of(published("T.vasp")), [0.0, 0.0, 0.886], atol=5e-4)
    np.testing.assert_allclose(polarization_of(published("C.vasp")), np.zeros(3), atol=1e-9)
    unit = unit_cell(published("POSCAR_5x5x5.vasp"), (1, 1, 1))
    assert unit.perovskite
    np.testing.assert_allclose(unit.fractions, np.eye(3) / 5, atol=1e-15)


@pytest.mark.parametrize("charges", ["authors", "lda", "nominal"])
def test_polarization_does_not_depend_on_the_description(charges: ChargeSet) -> None:
    cell = tetragonal()
    expected = polarization_of(cell, charges)
    random = np.random.default_rng(0)
    large = cell.repeat((3, 2, 2))
    np.testing.assert_allclose(polarization_of(large, charges), expected, atol=1e-9)
    # images, order and origin of the initial structure
    moved = large.copy()
    moved.positions += random.integers(-2, 3, (len(moved), 3)) @ moved.cell.array + np.array([0.7, -1.1, 2.3])
    moved = moved[random.permutation(len(moved))]
    np.testing.assert_allclose(polarization_of(moved, charges), expected, atol=1e-9)
    # a supercell whose vectors are not the pseudo-cubic ones
    slanted = make_supercell(cell, [[1, 1, 0], [-1, 1, 0], [1, 0, 2]])
    np.testing.assert_allclose(polarization_of(slanted, charges), expected, atol=1e-9)
    # inversion, and the polar axis along x
    np.testing.assert_allclose(polarization_of(tetragonal(sign=-1.0), charges), -expected, atol=1e-9)
    turned = cell.copy()
    turned.set_cell(cell.cell.array[[2, 0, 1]][:, [2, 0, 1]])
    turned.positions = cell.positions[:, [2, 0, 1]]
    np.testing.assert_allclose(polarization_of(turned, charges), expected[[2, 0, 1]], atol=1e-9)


def test_polarization_along_a_trajectory_is_continuous_and_linear() -> None:
    start = tetragonal().repeat((2, 2, 2))
    later = start.copy()
    random = np.random.default_rng(1)
    later.set_cell(start.cell.array @ (np.eye(3) + 0.02 * random.standard_normal((3, 3))), scale_atoms=True)
    later.positions += 0.1 * random.standard_normal((len(start), 3)) + np.array([30.0, -50.0, 12.0])  # drifted far
    # from the displaced structure itself the same neighbours are found, so both descriptions agree
    np.testing.assert_allclose(polarization_of(later, "authors", start), polarization_of(later), atol=1e-8)
    # moving one titanium by u changes the dipole by the charge that makes its cell neutral
    moved = later.copy()
    titanium = int(np.flatnonzero(start.numbers == 22)[0])
    moved.positions[titanium] += [0.0, 0.2, 0.0]
    change = polarization_of(moved, "authors", start) - polarization_of(later, "authors", start)
    charge = 3 * 2.873 - 3.44
    np.testing.assert_allclose(change, [0.0, charge * 0.2 / later.get_volume() * 16.02176634, 0.0], atol=1e-8)


def test_polarization_in_single_precision_and_under_vmap() -> None:
    start = tetragonal().repeat((3, 3, 3))
    far = start.copy()
    far.positions += 500.0
    topology, _ = build_topology(start)
    assert topology is not None
    assert topology.charges.dtype == jnp.float32
    batch = stack([from_ase(start), from_ase(far)])
    found = jax.jit(jax.vmap(polarization, in_axes=(0, None)))(batch, topology)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.stack([polarization_of(start)] * 2), atol=3e-4)


def test_other_compositions() -> None:
    barium = tetragonal("Ba", "Zr")
    np.testing.assert_allclose(polarization_of(barium, "nominal"), polarization_of(tetragonal(), "nominal"), atol=1e-9)
    chosen, note = build_topology(barium, "auto", np.float64)
    assert chosen is not None
    assert "formal charges" in note
    np.testing.assert_array_equal(chosen.charges[0], 2.0 * np.eye(3))
    topology, note = build_topology(barium, "authors")
    assert topology is None
    assert "`charges=nominal`" in note
    niobate, _ = build_topology(tetragonal("K", "Nb"), "nominal", np.float64)
    assert niobate is not None
    np.testing.assert_allclose(np.diag(niobate.charges[1]), 5.0)
    np.testing.assert_allclose(np.asarray(niobate.charges).sum(axis=0), np.zeros((3, 3)), atol=1e-12)


def test_no_perovskite_has_no_polarization() -> None:
    for atoms in (
        ase.Atoms("Ar", cell=[4, 4, 4], pbc=True),
        ase.Atoms("PbO", positions=[[0, 0, 0], [2, 2, 2]], cell=[4, 4, 4], pbc=True),
        ase.Atoms("PbTiO3", positions=2.0 * np.arange(15).reshape(5, 3), cell=[40, 40, 40], pbc=True),
    ):
        assert perovskite_bonds(atoms) is None
        unit = unit_cell(atoms, (2, 1, 1))
        assert (unit.perovskite, unit.count) == (False, 2)
        topology, note = build_topology(atoms, "nominal")
        assert topology is None
        assert "perovskite" in note


def test_neighbours_are_found_in_a_supertetragonal_and_in_a_hot_structure() -> None:
    stretched = tetragonal()
    stretched.set_cell([3.79, 3.79, 5.01], scale_atoms=True)
    assert unit_cell(stretched, (1, 1, 1)).count == 1
    hot = tetragonal().repeat((2, 3, 4))
    hot.rattle(0.15, seed=2)
    np.testing.assert_allclose(unit_cell(hot, (1, 1, 1)).fractions, np.diag([1 / 2, 1 / 3, 1 / 4]), atol=1e-15)


# --- summary ----------------------------------------------------------------------------------------------------------


def record(
    kelvin: float, lengths: tuple[float, float, float], *, seed: int = 0, status: Status = "ok", fixed: bool = False
) -> ReplicaRecord:
    """A replica of 2x2x3 cells: edges that fluctuate around `lengths`, a polarization proportional to the stretch."""
    frames = 400 if status == "ok" else 20
    random = np.random.default_rng(seed)
    noise = 0.0 if fixed else 0.01
    edges = (np.array(lengths) + noise * random.standard_normal((frames, 3))) * [2, 2, 3]
    polar = 10.0 * (np.array(lengths) - min(lengths)) + 0.02 * random.standard_normal((frames, 3))
    time = 0.1 * np.arange(frames)
    edges[time <= 0.25 * time[-1]] += 0.0 if fixed else 3.0  # equilibration that must not count
    flat = np.zeros(frames)
    return ReplicaRecord(
        temperature_K=kelvin,
        pressure_GPa=0.0,
        replica=seed,
        status=status,
        reason="" if status == "ok" else "it melted",
        step_failed=None if status == "ok" else 100,
        time_ps=time,
        cell=np.stack([np.diag(e) for e in edges]),
        temperature=kelvin + random.standard_normal(frames),
        potential_energy=flat,
        kinetic_energy=flat,
        conserved=-500.0 + 0.012 * time,
        stress=np.zeros((frames, 3, 3)),
        polarization=polar,
    )


CELLS = repeated(2, 2, 3)
TETRAGONAL, CUBIC = (3.90, 3.90, 4.10), (3.96, 3.96, 3.96)


def test_production_starts_after_the_equilibration() -> None:
    time = np.arange(11.0)
    assert production_start(time, 0.0) == 1  # the initial structure is no sample of the ensemble
    assert production_start(time, 0.5) == 6
    assert production_start(time[:1], 0.5) == 0
    assert production_start(time[:0], 0.5) == 0


def test_summary_of_a_ladder() -> None:
    records = [record(800.0, CUBIC, seed=2), record(300.0, TETRAGONAL, seed=1), record(900.0, CUBIC, status="molten")]
    cold, hot, lost = summarize(records, CELLS, 0.25)
    assert (cold.temperature_K, cold.phase, cold.polar_axis, cold.status) == (300.0, "tetragonal", "c", "ok")
    assert cold.a == pytest.approx(3.90, abs=0.003)
    assert cold.c == pytest.approx(4.10, abs=0.003)
    assert cold.c_std == pytest.approx(0.01, rel=0.2)
    assert cold.c_sem == pytest.approx(0.01 / math.sqrt(300), rel=0.35)
    assert cold.c_over_a == pytest.approx(4.10 / 3.90, abs=0.002)
    assert cold.volume == pytest.approx(3.90 * 3.90 * 4.10, rel=2e-3)
    assert cold.Pz == pytest.approx(2.0, abs=0.01)
    assert pytest.approx(2.0, abs=0.01) == cold.P
    assert cold.conserved_drift == pytest.approx(12.0 / 12)  # 12 meV/ps over 12 cells
    assert cold.warnings == ""
    assert (hot.phase, hot.polar_axis) == ("cubic", "none")
    assert (lost.phase, lost.status, lost.n_ok, lost.n_replicas) == ("molten", "molten", 0, 1)
    assert math.isnan(lost.c)
    lattice, polar = transitions([cold, hot, lost])
    assert (lattice.temperature_K, polar.temperature_K) == (550.0, 550.0)


def test_polar_axis_along_a_is_tetragonal() -> None:
    (row,) = summarize([record(300.0, (4.10, 3.90, 3.90))], CELLS, 0.25)
    assert (row.phase, row.polar_axis) == ("tetragonal", "a")
    assert row.c_over_a == pytest.approx(3.90 / 4.00, abs=0.002)
    assert row.tetragonality == pytest.approx(4.10 / 3.90, abs=0.002)
    assert (row.c_polar, row.a_plane) == (pytest.approx(4.10, abs=0.003), pytest.approx(3.90, abs=0.003))


def test_replicas_of_a_temperature_are_combined() -> None:
    mixed = [record(500.0, TETRAGONAL), record(500.0, (4.10, 3.90, 3.90), seed=1)]
    (row,) = summarize([*mixed, record(500.0, CUBIC, seed=2, status="failed")], CELLS, 0.25)
    assert (row.n_replicas, row.n_ok, row.status, row.polar_axis) == (3, 2, "partial", "mixed")
    assert row.replica_phases == "tetragonal 2, failed 1"
    assert row.c == pytest.approx(4.00, abs=0.003)
    assert row.c_sem == pytest.approx(0.1, rel=0.05)  # replicas disagree: the error says so
    assert row.c_polar_sem < 0.01
    (row,) = summarize([record(500.0, TETRAGONAL), record(500.0, CUBIC, seed=1)], CELLS, 0.25)
    assert "different phases" in row.warnings


@pytest.mark.parametrize("breathing", [0.0, 0.01])
def test_fixed_shape_is_labelled_by_its_polarization(breathing: float) -> None:
    def fixed(kelvin: float, lengths: tuple[float, float, float]) -> ReplicaRecord:
        still = record(kelvin, lengths, fixed=True)
        scale = 1.0 + breathing * np.random.default_rng(0).standard_normal(still.time_ps.shape)
        return dataclasses.replace(still, cell=(still.cell * scale[:, None, None]).astype(np.float32))

    rows = summarize([fixed(300.0, TETRAGONAL), fixed(900.0, (4.0, 4.0, 4.0))], CELLS, 0.25)
    assert [row.phase for row in rows] == ["polar", "nonpolar"]
    (found,) = transitions(rows)
    assert (found.order_parameter, found.temperature_K) == ("polarization", 600.0)


def test_short_runs_are_reported_as_such() -> None:
    full = record(300.0, TETRAGONAL)
    fields = ("time_ps", "cell", "temperature", "potential_energy", "kinetic_energy", "conserved", "stress")
    for frames, word in ((1, "single"), (6, "independent")):
        cut = {name: getattr(full, name)[-frames:] for name in fields}
        (row,) = summarize([dataclasses.replace(full, polarization=None, **cut)], CELLS, 0.0)
        assert word in row.warnings
        assert row.phase == "tetragonal"
        assert math.isnan(row.Pz)


def turning(seed: int) -> ReplicaRecord:
    """Polar along z for 19 ps of production, then along -x for 11 ps."""
    before = record(500.0, TETRAGONAL, seed=seed)
    after = record(500.0, (4.10, 3.90, 3.90), seed=seed)
    assert before.polarization is not None
    assert after.polarization is not None
    early = before.time_ps < 29.0
    return dataclasses.replace(
        before,
        cell=np.where(early[:, None, None], before.cell, after.cell),
        polarization=np.where(early[:, None], before.polarization, after.polarization * [-1.0, 1.0, 1.0]),
    )


def test_a_polar_axis_that_turns_is_still_tetragonal() -> None:
    [row] = summarize([turning(0)], CELLS, 0.25)
    assert (row.phase, row.polar_axis) == ("tetragonal", "turns")
    assert row.tetragonality == pytest.approx(4.10 / 3.90, abs=0.002)
    assert (row.a_plane, row.c_polar) == pytest.approx((3.90, 4.10), abs=0.005)
    assert abs(row.P - 2.0) < 0.02
    assert row.a == pytest.approx(3.90 + 0.2 * 11 / 30, abs=0.01)  # a, b, c stay with x, y, z
    assert "turned after 29.0 ps" in row.warnings


def test_a_cubic_lattice_that_fluctuates_slowly_stays_cubic() -> None:
    """The longest axis of a cubic crystal changes all the time; that is no polar axis."""
    base = record(700.0, CUBIC)
    noise = 0.012 * np.stack([autoregressive(400, 0.9, seed) for seed in range(3)], axis=1)
    shaken = dataclasses.replace(base, cell=base.cell * (1.0 + noise[:, None, :] / 3.96))
    [row] = summarize([shaken], CELLS, 0.25)
    assert (row.phase, row.polar_axis) == ("cubic", "none")
    assert row.tetragonality < 1.01


def test_one_stray_block_does_not_turn_the_axis() -> None:
    time = 0.1 * np.arange(100)
    lengths = np.tile([3.9, 3.9, 4.1], (100, 1))
    lengths[40:50] = [3.95, 3.95, 3.95]
    np.testing.assert_array_equal(phases.polar_axis_in_time(time, lengths), 2)
    cubic = np.tile([3.95, 3.95, 3.95], (100, 1))
    cubic[:10, 0] = cubic[50:60, 1] = 4.1
    assert len(set(phases.polar_axis_in_time(time, cubic).tolist())) == 1
