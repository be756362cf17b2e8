"""Switching to an Einstein crystal and reversible scaling: closed forms, a harmonic crystal, stored runs, command."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import pathlib
from typing import Any, ClassVar

import ase
import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.constants
from closed_forms import harmonic_free_energy
from jaxtyping import Array
from pymbar.other_estimators import bar as pymbar_bar
from rich.console import Console
from toy_potentials import argon_crystal, lennard_jones, listed, no_neighbors

from jaxpto.console.status_line import StatusLine
from jaxpto.errors import InputError
from jaxpto.free_energy.command import main
from jaxpto.free_energy.switching import einstein_crystal, paths, works
from jaxpto.free_energy.switching.analysis import (
    SwitchedCrystal,
    analyse_scaling,
    analyse_switches,
    at_temperatures,
    sites_of,
)
from jaxpto.free_energy.switching.langevin import Switch, switching_langevin, weights_at
from jaxpto.free_energy.switching.run import Lanes, Protocol, run_lanes
from jaxpto.integrators.nvt_langevin import nvt_langevin
from jaxpto.integrators.state import MDState
from jaxpto.model_interface import EvaluateFn, Prediction
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones as cut_lennard_jones
from jaxpto.neighbors import Neighbors
from jaxpto.potential import Potential
from jaxpto.system import System
from jaxpto.units import BOLTZMANN

KELVIN = 300.0
MASSES = jnp.asarray([207.2, 47.867, 15.999, 15.999, 39.948])
SPRINGS = jnp.asarray([3.0, 7.0, 2.0, 4.0, 1.5])


@dataclasses.dataclass(frozen=True)
class HarmonicCrystal:
    """U = d . Phi . d / 2 of the displacements d from the sites; params (sites, Phi)."""

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3

    cutoff: float = 4.0
    elements: tuple[int, ...] = (8, 18)

    def energy(self, params: Any, system: System, neighbors: Neighbors, vectors: Array) -> Array:
        raise NotImplementedError

    def predict(self, params: Any, system: System, neighbors: Neighbors) -> Prediction:
        sites, constants = params
        moved = (system.positions - sites).reshape(-1)
        forces = -constants @ moved
        return Prediction(-0.5 * jnp.sum(forces * moved), forces.reshape(-1, 3), jnp.zeros((3, 3), moved.dtype))


def test_the_path_begins_and_ends_at_rest() -> None:
    times = jnp.linspace(0.0, 1.0, 101)
    done, left = paths.smooth_step(times)
    polynomial = sum(c * times**k for k, c in zip(range(5, 10), (126, -420, 540, -315, 70), strict=True))
    np.testing.assert_allclose(done, polynomial, atol=1e-13)
    np.testing.assert_allclose(done + left, 1.0, atol=1e-15)
    assert (np.diff(done) >= 0.0).all()
    derivative = lambda t: paths.smooth_step(t)[0]  # noqa: E731
    for _ in range(4):
        derivative = jax.grad(derivative)
        np.testing.assert_allclose([derivative(0.0), derivative(1.0)], 0.0, atol=1e-10)


def test_single_precision_loses_nothing_at_the_ends_of_the_path() -> None:
    done, left = paths.smooth_step(jnp.asarray([0.003, 0.997], jnp.float32))
    exact = 126 * 0.003**5 - 420 * 0.003**6 + 540 * 0.003**7
    np.testing.assert_allclose([done[0], left[1]], exact, rtol=1e-4)


def test_equal_springs_are_the_published_formula() -> None:
    """F of 3 N oscillators and the centre of mass as Freitas, Asta, de Koning (2016) give them, in SI units."""
    number, mass, stiffness, volume = 32, 39.948, 1.7, 700.0
    kT = scipy.constants.k * KELVIN
    omega = math.sqrt(stiffness * scipy.constants.e * 1e20 / (mass * scipy.constants.u))
    oscillators = 3 * number * kT * math.log(scipy.constants.hbar * omega / kT)
    width = 2.0 * math.pi * kT / (number * mass * scipy.constants.u * omega**2)
    centre = kT * math.log(number / (volume * 1e-30) * width**1.5)
    ours = einstein_crystal.einstein_free_energy(
        jnp.full(number, stiffness), jnp.full(number, mass), jnp.asarray(KELVIN), jnp.asarray(volume), number
    )
    assert float(ours) == pytest.approx((oscillators + centre) / scipy.constants.e, rel=1e-6)  # CODATA 2014 and 2018


def test_an_einstein_crystal_is_a_harmonic_one() -> None:
    """Unequal springs and masses: the closed form against normal modes of the same energy."""

    def energy(flat: Array) -> Array:
        return einstein_crystal.spring_energy(flat.reshape(-1, 3), SPRINGS)[0]

    roots = 1.0 / jnp.sqrt(jnp.repeat(MASSES, 3))
    modes = jnp.linalg.eigvalsh(jax.hessian(energy)(jnp.ones(15)) * roots[:, None] * roots[None, :])
    np.testing.assert_allclose(modes[:3], 0.0, atol=1e-12)
    where = (MASSES, jnp.asarray(KELVIN), jnp.asarray(64.0), 2)
    assert float(harmonic_free_energy(modes[3:], *where)) == pytest.approx(
        float(einstein_crystal.einstein_free_energy(SPRINGS, *where)), rel=1e-12
    )


def test_springs_do_not_feel_a_translation() -> None:
    moved = jax.random.normal(jax.random.PRNGKey(0), (5, 3))
    energy, forces = einstein_crystal.spring_energy(moved, SPRINGS)
    shifted, _ = einstein_crystal.spring_energy(moved + jnp.asarray([[5.0, -3.0, 1.0]]), SPRINGS)
    assert float(shifted) == pytest.approx(float(energy), rel=1e-12)
    gradient = jax.grad(lambda u: einstein_crystal.spring_energy(u, SPRINGS)[0])(moved)
    np.testing.assert_allclose(forces, -gradient, atol=1e-12)
    np.testing.assert_allclose(forces.sum(0), 0.0, atol=1e-12)


def test_draws_of_the_einstein_crystal_have_its_energy() -> None:
    keys = jax.random.split(jax.random.PRNGKey(1), 4000)
    draws = jax.vmap(einstein_crystal.einstein_displacements, (0, None, None))(keys, SPRINGS, jnp.asarray(KELVIN))
    energies = jax.vmap(lambda u: einstein_crystal.spring_energy(u, SPRINGS)[0])(draws)
    expected = 0.5 * 12 * BOLTZMANN * KELVIN  # 3 n - 3 modes
    assert abs(float(energies.mean()) - expected) < 4.0 * float(energies.std()) / math.sqrt(4000)
    np.testing.assert_allclose(jnp.einsum("i,rij->rj", SPRINGS, draws), 0.0, atol=1e-12)


def gaussian_works(number: int, dissipation: float) -> tuple[np.ndarray, np.ndarray]:
    """Works of a linear process of free-energy change 0.3 eV: variance 2 kT times the dissipation."""
    generator = np.random.default_rng(3)
    width = math.sqrt(2.0 * BOLTZMANN * KELVIN * dissipation)
    return generator.normal(0.3 + dissipation, width, number), generator.normal(-0.3 + dissipation, width, number)


def test_bar_is_that_of_pymbar_and_can_be_differentiated() -> None:
    forward, backward = gaussian_works(50, 0.06)
    kT, rest = BOLTZMANN * KELVIN, (jnp.asarray(backward), jnp.asarray(KELVIN))
    ours = jax.jit(jax.value_and_grad(works.bar))
    value, slopes = ours(jnp.asarray(forward), *rest)
    assert float(value) == pytest.approx(kT * pymbar_bar(forward / kT, backward / kT)["Delta_f"], rel=1e-9)
    step = 1e-5 * np.eye(50)[7]
    higher, lower = (float(ours(jnp.asarray(forward + s), *rest)[0]) for s in (step, -step))
    assert float(slopes[7]) == pytest.approx((higher - lower) / 2e-5, rel=1e-5)


def test_bar_and_the_mean_find_the_change_within_their_errors() -> None:
    forward, backward = map(jnp.asarray, gaussian_works(400, 0.05))
    value = jax.jit(works.free_energy_change)(forward, backward, jnp.asarray(KELVIN))
    error = jax.jit(works.bootstrap)(jax.random.PRNGKey(0), forward, backward, jnp.asarray(KELVIN))
    assert abs(float(value.change) - 0.3) < 3.0 * float(error.change)
    assert abs(float(value.bar) - 0.3) < 3.0 * float(error.bar)
    assert abs(float(value.dissipation) - 0.05) < 3.0 * float(error.dissipation)
    expected = 0.5 * math.sqrt((forward.var(ddof=1) + backward.var(ddof=1)) / 400)
    assert float(error.change) == pytest.approx(expected, rel=0.15)


def test_the_bootstrap_of_few_switches_is_not_too_small() -> None:
    forward, backward = (jnp.asarray(works) for works in gaussian_works(4, 0.05))
    error = works.bootstrap(jax.random.PRNGKey(0), forward, backward, jnp.asarray(KELVIN), 4000)
    expected = 0.5 * math.sqrt((forward.var(ddof=1) + backward.var(ddof=1)) / 4)
    assert float(error.change) == pytest.approx(expected, rel=0.05)


def test_the_way_back_meets_the_weights_of_the_way_there() -> None:
    zero = jnp.zeros(())
    for ratio in (0.0, 2.0):
        there, back = (
            Switch(jnp.zeros((1, 3)), jnp.ones(1), zero, jnp.asarray(ratio, jnp.float32), jnp.asarray(backward))
            for backward in (False, True)
        )
        for elapsed in (-5, 0, 1, 333, 999, 1000, 1001):
            first = weights_at(there, jnp.asarray(elapsed), 1000)
            second = weights_at(back, jnp.asarray(1000 - min(max(elapsed, 0), 1000)), 1000)
            assert first == second
    assert weights_at(there, jnp.asarray(1000), 1000) == (0.5, 0.0)


def test_a_sudden_switch_is_a_step_under_the_springs() -> None:
    """One step that switches all at once: the work is the difference of the energies, then the springs hold."""
    perfect, neighbors, kT = argon_crystal(), no_neighbors(), BOLTZMANN * 40.0
    noise = 0.1 * jax.random.normal(jax.random.PRNGKey(4), (32, 3))
    system = dataclasses.replace(perfect, positions=perfect.positions + noise)
    springs = jnp.linspace(0.1, 0.4, 32)

    def held(by: Array) -> EvaluateFn:
        def evaluate(system: System, _: Neighbors) -> Prediction:
            return Prediction(
                *einstein_crystal.spring_energy(system.positions - perfect.positions, by), jnp.zeros((3, 3))
            )

        return evaluate

    model = held(2.0 * springs[::-1])
    switch = Switch(perfect.positions, springs, jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(False))
    ours = switching_langevin(model, 4.0, friction_per_fs=0.01, hold=0, length=1, slices=1)
    theirs = nvt_langevin(held(springs), 4.0, friction_per_fs=0.01)
    key = jax.random.PRNGKey(0)

    @jax.jit
    def both() -> tuple[MDState, MDState, MDState, Array, Array]:
        start = ours.init(key, system, neighbors, kT, switch)
        expected = theirs.apply(theirs.init(key, system, neighbors, kT))
        before, after = model(system, neighbors).energy, held(springs)(system, neighbors).energy
        return start, ours.apply(start), expected, before, after

    start, after, expected, of_model, of_springs = both()
    np.testing.assert_allclose(after.system.positions, expected.system.positions, atol=1e-12)
    np.testing.assert_allclose(after.momenta, expected.momenta, atol=1e-12)
    assert float(start.prediction.energy) == pytest.approx(float(of_model) + 2.0)
    assert float(after.bath.work[0]) == pytest.approx(float(of_springs) - float(of_model) - 2.0)


def test_energy_is_accounted_for_while_switching() -> None:
    """Energy less heat less work stays, to within a hundredth of the work, at a small time step."""
    system, potential, length = argon_crystal(), lennard_jones(), 300
    neighbors = listed(system, 6.5, 1.0)
    springs = jnp.full(32, 0.2)
    switch = Switch(system.positions, springs, jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(False))
    integrator = switching_langevin(potential.evaluate, 2.0, friction_per_fs=0.01, hold=0, length=length, slices=10)
    state = jax.jit(integrator.init)(jax.random.PRNGKey(0), system, neighbors, BOLTZMANN * 40.0, switch)
    start = integrator.invariant(state)
    state = jax.jit(lambda s: jax.lax.fori_loop(0, length, lambda _, x: integrator.apply(x), s))(state)
    work, heat = float(state.bath.work.sum()), float(state.bath.heat)
    drift = abs(float(integrator.invariant(state) - start))
    assert drift < 0.01 * min(abs(work), abs(heat))


@pytest.fixture(scope="module")
def harmonic() -> tuple[ase.Atoms, Potential, np.ndarray]:
    """Eight atoms of two masses with random force constants that obey the acoustic sum rule, and their covariance."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.3, cubic=True)
    atoms.set_atomic_numbers([18, 8] * 4)
    n = len(atoms)
    noise = np.random.default_rng(0).normal(size=(3 * n, 3 * n))
    together = np.tile(np.eye(3), (n, 1)) / math.sqrt(n)
    inner = np.eye(3 * n) - together @ together.T
    constants = inner @ (noise @ noise.T / (3 * n) + np.eye(3 * n)) @ inner
    potential = Potential((jnp.asarray(atoms.positions), jnp.asarray(constants)), HarmonicCrystal(), "harmonic")
    return atoms, potential, np.linalg.pinv(constants, rcond=1e-9, hermitian=True)


def exact(atoms: ase.Atoms, potential: Potential, kelvin: float) -> float:
    masses = np.repeat(atoms.get_masses(), 3)
    modes = np.linalg.eigvalsh(np.asarray(potential.params[1]) / np.sqrt(masses[:, None] * masses[None, :]))[3:]
    where = (jnp.asarray(atoms.get_masses()), jnp.asarray(kelvin), jnp.asarray(atoms.get_volume()), 4)
    return float(harmonic_free_energy(jnp.asarray(modes), *where))


def batch(atoms: ase.Atoms, covariance: np.ndarray, replicas: int, ratio: float | None = None) -> Lanes:
    """Replicas to the Einstein crystal and back and, with a ratio, of reversible scaling, all begun in equilibrium."""
    n, generator = len(atoms), np.random.default_rng(1)
    squares = BOLTZMANN * KELVIN * np.diag(covariance).reshape(n, 3).sum(1)
    springs = np.asarray(einstein_crystal.spring_constants(jnp.asarray(squares), jnp.asarray(KELVIN)))
    keys = jax.random.split(jax.random.PRNGKey(2), replicas)

    def thermal(kelvin: float) -> np.ndarray:
        width = BOLTZMANN * kelvin * covariance
        return generator.multivariate_normal(np.zeros(3 * n), width, replicas, method="eigh").reshape(-1, n, 3)

    einstein = jax.vmap(einstein_crystal.einstein_displacements, (0, None, None))(
        keys, jnp.asarray(springs), jnp.asarray(KELVIN)
    )
    starts, ratios = [thermal(KELVIN), np.asarray(einstein)], [0.0]
    if ratio is not None:
        starts, ratios = [*starts, thermal(KELVIN), thermal(ratio * KELVIN)], [0.0, ratio]
    number = len(starts) * replicas
    return Lanes(
        temperatures=np.full(number, KELVIN),
        starts=atoms.positions + np.concatenate(starts),
        sites=np.tile(atoms.positions, (number, 1, 1)),
        springs=np.tile(springs, (number, 1)),
        ratios=np.repeat(ratios, 2 * replicas),
        backward=np.tile(np.repeat([False, True], replicas), len(ratios)),
        origin=0.0,
    )


def test_a_harmonic_crystal_has_its_free_energy(harmonic, tmp_path: pathlib.Path) -> None:
    """Exact, at 300 K by the Einstein crystal and up to 600 K by scaling: within the error and 1 meV/atom."""
    atoms, potential, covariance = harmonic
    lanes = batch(atoms, covariance, 12, ratio=2.0)
    protocol = Protocol(timestep=2.0, friction=0.01, hold=100, length=3000, slices=100)
    work = run_lanes(potential, atoms, lanes, protocol, 0, tmp_path, Console(quiet=True)).reshape(2, 2, 12, 100)
    crystal = SwitchedCrystal(atoms.get_masses(), atoms.get_volume(), 4, 0.0)
    switched = analyse_switches(*work[0], lanes.springs[0], KELVIN, crystal)
    assert switched.error < 1e-3 * len(atoms) / 3.0
    for value, error in ((switched.free_energy, switched.error), (switched.bar, switched.bar_error)):
        assert abs(value - exact(atoms, potential, KELVIN)) < 3.0 * error
    assert -2.0 * switched.dissipation_error < switched.dissipation < 2.0 * BOLTZMANN * KELVIN
    scaled = analyse_scaling(*work[1], switched, 600.0, crystal)
    wanted = np.array([300.0, 371.0, 450.0, 600.0])
    for kelvin, value, error in zip(wanted, *at_temperatures(scaled, wanted), strict=True):
        assert error < 1e-3 * len(atoms)
        assert abs(value - exact(atoms, potential, kelvin)) < 3.0 * error
    assert scaled.bar == pytest.approx(scaled.free_energy[-1], abs=1e-3 * len(atoms))


def test_fast_switches_dissipate_and_the_mean_still_holds(harmonic, tmp_path: pathlib.Path) -> None:
    atoms, potential, covariance = harmonic
    lanes = batch(atoms, covariance, 40)
    protocol = Protocol(timestep=2.0, friction=0.01, hold=0, length=40, slices=10)
    work = run_lanes(potential, atoms, lanes, protocol, 0, tmp_path, Console(quiet=True)).reshape(2, 40, 10)
    switched = analyse_switches(
        *work, lanes.springs[0], KELVIN, SwitchedCrystal(atoms.get_masses(), atoms.get_volume(), 4, 0.0)
    )
    assert switched.dissipation > 3.0 * switched.dissipation_error
    assert abs(switched.bar - exact(atoms, potential, KELVIN)) < 3.0 * switched.bar_error


def step_of(line: str) -> int:
    return int(line.split("step ")[1].split(" of ")[0])


def test_an_interrupted_batch_goes_on_to_the_same_numbers(
    harmonic, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms, potential, covariance = harmonic
    lanes, console = batch(atoms, covariance, 2), Console(quiet=True)
    protocol = Protocol(timestep=2.0, friction=0.01, hold=20, length=200, slices=10)
    whole = run_lanes(potential, atoms, lanes, protocol, 0, tmp_path / "whole", console)
    with monkeypatch.context() as patch:
        original, seen = StatusLine.update, []

        def interrupted(line: StatusLine, text: str) -> None:
            original(line, text)
            seen.append(text)
            if len(seen) == 2:
                raise KeyboardInterrupt

        patch.setattr(StatusLine, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_lanes(potential, atoms, lanes, protocol, 0, tmp_path / "cut", console)
    stopped = step_of(seen[-1])
    assert 0 < stopped < 220
    assert not (tmp_path / "cut" / "work.json").exists()
    steps = []
    monkeypatch.setattr(StatusLine, "update", lambda line, text: steps.append(text))
    np.testing.assert_array_equal(run_lanes(potential, atoms, lanes, protocol, 0, tmp_path / "cut", console), whole)
    assert stopped < step_of(steps[0]) <= 220
    with pytest.raises(InputError, match="other settings"):
        run_lanes(potential, atoms, lanes, protocol, 1, tmp_path / "cut", console)


def test_sites_and_springs_of_a_harmonic_trajectory(harmonic) -> None:
    atoms, _, covariance = harmonic
    masses = atoms.get_masses()
    away = np.zeros((8, 3))
    away[::2] = [0.05, 0.0, 0.0]  # the mean is off the lattice, alike in the four unit cells of two atoms
    moved = (
        np.random.default_rng(0)
        .multivariate_normal(np.zeros(24), BOLTZMANN * KELVIN * covariance, 4000)
        .reshape(-1, 8, 3)
    )
    drift = np.linspace(0.0, 4.0, 4000)[:, None, None]
    found = sites_of([atoms.positions + away + moved + drift], atoms.positions, masses, 2, KELVIN)
    expected = away - (masses[:, None] * away).sum(0) / masses.sum()
    np.testing.assert_allclose(found.positions - atoms.positions, expected, atol=3e-3)
    share = np.kron(np.tile(masses / masses.sum(), (8, 1)), np.eye(3))
    held = (np.eye(24) - share) @ covariance @ (np.eye(24) - share).T  # of the centre of mass
    squares = np.diag(held).reshape(4, 2, 3).sum(2).mean(0)
    np.testing.assert_allclose(found.springs, np.tile(3.0 / squares, 4), rtol=0.05)
    last = found.last[0] - atoms.positions
    np.testing.assert_allclose((masses[:, None] * last).sum(0), 0.0, atol=1e-9)


COMMAND = ("--method", "switching", "--ensemble", "nvt", "--supercell", "1", "1", "1", "--replicas", "3")
COMMAND += ("--steps", "800", "--timestep", "4", "--temperatures", "20", "30", "40", "--equilibration", "0.25")
COMMAND += ("--switching.scaling", "--switching.relax", "cell")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a model, a cube of argon, and another one."""
    folder = tmp_path_factory.mktemp("given")
    save_potential(cut_lennard_jones(["Ar"], [0.0104], [3.40], cutoff=6.0, onset=5.0), folder / "model")
    for name, lattice in (("argon", 5.36), ("other", 5.4)):
        ase.io.write(folder / f"{name}.vasp", ase.build.bulk("Ar", "fcc", a=lattice, cubic=True))
    return folder


def command(given: pathlib.Path, structure: str, out: pathlib.Path) -> int:
    return main([str(given / structure), "--model", str(given / "model"), *COMMAND, "--out", str(out)])


def test_files_of_the_command(given: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "energy"
    assert command(given, "argon.vasp", folder) == 0
    document = json.loads((folder / "free_energy.json").read_text())
    assert (document["formula"], document["formula_units"], document["lattice_translations"]) == ("Ar", 4, 4)
    with (folder / "free_energy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["temperature_K"] for row in rows] == ["20.0", "30.0", "40.0"]
    assert rows[1]["free_energy_eV"] == ""  # only scaling goes there
    assert [row["scaling_eV"] for row in rows] == [str(row["scaling_eV"]) for row in document["rows"]]
    assert [one["temperature"] for one in document["switches"]] == [20.0, 40.0]
    assert np.shape(document["switches"][0]["forward"]) == (3,)
    first, switches = document["rows"][0], document["switches"][0]
    assert first["scaling_eV"] == pytest.approx(first["free_energy_eV"], abs=1e-9)
    change = (np.mean(switches["forward"]) - np.mean(switches["backward"])) / 2.0
    assert first["free_energy_eV"] == pytest.approx((switches["einstein"] - change) / 4.0)
    for name in ("switching.png", "report.html", "sweep/summary.json", "switching/work.json"):
        assert (folder / name).stat().st_size > 1000
    edges = ase.io.read(folder / "relaxed.extxyz").cell.lengths()
    np.testing.assert_allclose(edges, edges[0], atol=1e-4)
    assert abs(edges[0] - 5.36) > 0.01

    before = (folder / "free_energy.csv").read_text()
    capsys.readouterr()
    assert command(given, "argon.vasp", folder) == 0
    assert (folder / "free_energy.csv").read_text() == before
    assert "switches:" not in capsys.readouterr().out  # nothing was simulated again
    assert command(given, "other.vasp", folder) == 2
    assert "another structure or model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ensemble", "npt", "--replicas", "4"), "--ensemble npt: switching is done at fixed cell"),
        (("--ensemble", "nvt"), "--replicas 1: errors come from independent switches"),
        (("--ensemble", "nvt", "--replicas", "4", "--steps", "100"), "70 of switching, at least 100 are needed"),
        (("--ensemble", "nvt", "--replicas", "4", "--temperatures", "300", "--switching.scaling"), "at least two"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--method", "switching", *arguments, "--out", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_options_of_another_method(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--switching.scaling", "--out", str(tmp_path / "new")]) == 2
    assert "--method switching" in capsys.readouterr().err
