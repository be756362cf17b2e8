"""Umbrella windows on the polarization: bias, ensemble, MBAR to Landau coefficients, and the command end to end."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_potentials as toy
from numpy.testing import assert_allclose

from jaxpto.errors import InputError
from jaxpto.free_energy.command import main
from jaxpto.free_energy.config import LandauOptions
from jaxpto.free_energy.estimators import mbar
from jaxpto.free_energy.landau import profile
from jaxpto.free_energy.landau.analysis import Windows, WindowSamples, analyse_windows, thinned
from jaxpto.free_energy.landau.method import choose_windows
from jaxpto.free_energy.landau.umbrella import Umbrella, bias_energy, biased, displaced, prediction_from_energy, settled
from jaxpto.integrators import npt_parrinello_rahman, nvt_langevin
from jaxpto.integrators.parametrised import parametrised
from jaxpto.md import stored_run
from jaxpto.models.catalogue import load_potential
from jaxpto.neighbors import build
from jaxpto.perovskite.literature import LANDAU
from jaxpto.perovskite.polarization import PolarizationTopology, build_topology, polarization
from jaxpto.structures import read_structure
from jaxpto.system import System, from_ase, volume
from jaxpto.units import BOLTZMANN

KT = 300.0 * BOLTZMANN


@functools.cache
def charged() -> tuple[System, PolarizationTopology]:
    """A triclinic, rattled crystal with arbitrary charge tensors that add up to zero."""
    system = toy.argon_crystal(sheared=True)
    generator = np.random.default_rng(4)
    charges = generator.normal(size=(32, 3, 3))
    charges -= charges.mean(axis=0)
    moved = system.positions + 0.1 * generator.normal(size=(32, 3))
    topology = PolarizationTopology(jnp.asarray(charges), jnp.asarray(0.3 * generator.normal(size=(3, 3, 3))))
    return dataclasses.replace(system, positions=moved), topology


def umbrella_at(system: System, topology: PolarizationTopology, away: float, strength: float) -> Umbrella:
    center = polarization(system, topology) + jnp.asarray([0.3, -0.5, 1.0]) * away
    return Umbrella(center, strength * jnp.asarray([1.0, 0.5, 2.0]))


def test_forces_and_stress_of_the_bias() -> None:
    """Against central differences in every position and in every symmetric strain of a triclinic cell."""
    system, topology = charged()
    umbrella = umbrella_at(system, topology, 0.02, 300.0)
    found = prediction_from_energy(lambda moved: bias_energy(umbrella, moved, topology), system)
    step = 1e-5

    @jax.jit
    def energy(positions: jax.Array, cell: jax.Array) -> jax.Array:
        return bias_energy(umbrella, dataclasses.replace(system, positions=positions, cell=cell), topology)

    for atom, axis in ((0, 2), (7, 0), (31, 1)):
        shift = jnp.zeros((32, 3)).at[atom, axis].set(step)
        low, high = (energy(system.positions + sign * shift, system.cell) for sign in (-1.0, 1.0))
        assert_allclose(found.forces[atom, axis], -(high - low) / (2.0 * step), rtol=1e-6)
    assert_allclose(found.forces.sum(axis=0), 0.0, atol=1e-12)
    for a in range(3):
        for b in range(3):
            strain = jnp.zeros((3, 3)).at[a, b].add(0.5 * step).at[b, a].add(0.5 * step)
            ends = [
                energy(system.positions @ (jnp.eye(3) + sign * strain), system.cell @ (jnp.eye(3) + sign * strain))
                for sign in (-1.0, 1.0)
            ]
            slope = (ends[1] - ends[0]) / (2.0 * step) / volume(system.cell)
            assert_allclose(found.stress[a, b], slope, rtol=1e-5, atol=1e-9)
    assert float(jnp.abs(found.stress).max()) > 1e-4


def test_a_start_has_the_wanted_polarization() -> None:
    system, topology = charged()
    target = jnp.asarray([0.1, -0.2, 0.3])
    moved = displaced(system, topology, target)
    assert_allclose(polarization(moved, topology), target, atol=1e-12)
    assert_allclose(moved.positions.sum(axis=0), system.positions.sum(axis=0), atol=1e-10)  # no net charge, no drift


def test_a_start_settles_at_its_polarization() -> None:
    """Cubic PbTiO3 displaced to 1 C/m^2 loses most of the energy that it took, and keeps its polarization."""
    atoms = read_structure("PbTiO3-cubic")
    system, potential = from_ase(atoms, np.float64), load_potential("perovskite", np.float64)
    topology, _ = build_topology(atoms, dtype=np.float64)
    moved = displaced(system, topology, jnp.asarray([0.0, 0.0, 1.0]))
    layout = potential.allocate([system, moved], 0.3)
    energy = jax.jit(lambda at: potential.energy(at, build(at, layout)))
    after = jax.jit(lambda at: settled(potential.evaluate, at, topology, layout))(moved)
    assert_allclose(polarization(after, topology), [0.0, 0.0, 1.0], atol=1e-10)
    cost = float(energy(moved) - energy(system))
    assert cost > 0.5
    assert float(energy(after) - energy(system)) < 0.2 * cost


def test_replicas_with_their_own_bias_in_one_batch() -> None:
    """A batch of two windows equals each alone with its bias written into the potential; its quantity is conserved."""
    system, topology = charged()
    potential = toy.lennard_jones()
    neighbors = toy.listed(system, 6.5, 1.0)
    made = functools.partial(npt_parrinello_rahman, timestep_fs=1.0, thermostat_time_fs=100.0, barostat_time_fs=500.0)
    umbrellas = [umbrella_at(system, topology, away, 300.0) for away in (0.01, -0.02)]
    together = parametrised(made, biased(potential.evaluate, topology))
    key, kT, stress = jax.random.PRNGKey(0), toy.kT_of(40.0), jnp.zeros((3, 3))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *umbrellas)
    begin = lambda umbrella: together.init(key, system, neighbors, kT, stress, umbrella)  # noqa: E731
    states = jax.jit(jax.vmap(begin))(stacked)
    states, (quantity, bias) = toy.sample(
        together, states, samples=40, every=5, observe=lambda s: (together.invariant(s), bias_of(s, topology))
    )
    assert np.ptp(bias, axis=0).min() > 0.02  # energy went in and out of the bias
    assert (np.ptp(quantity, axis=0) < 0.02 * np.ptp(bias, axis=0)).all()
    assert states.bath.degrees_of_freedom == 93
    for replica, umbrella in enumerate(umbrellas):
        alone = made(functools.partial(biased(potential.evaluate, topology), umbrella))
        state = jax.jit(alone.init)(key, system, neighbors, kT, stress)
        state = jax.jit(lambda s, step=alone.apply: jax.lax.fori_loop(0, 200, lambda _, s: step(s), s))(state)
        assert_allclose(states.system.positions[replica], state.system.positions, atol=1e-9)
        assert_allclose(states.system.cell[replica], state.system.cell, atol=1e-9)


def bias_of(state, topology: PolarizationTopology) -> jax.Array:
    return bias_energy(state.bath.parameters, state.system, topology)


def test_a_window_samples_its_gaussian() -> None:
    """Atoms without interaction, under the bias alone: P_a has mean P0_a and variance kT / K_a, exactly."""
    system, topology = charged()
    replicas = 32
    umbrella = umbrella_at(system, topology, 0.02, 300.0)
    integrator = parametrised(
        lambda evaluate: nvt_langevin(evaluate, 2.0, friction_per_fs=0.02), biased(toy.ideal_gas, topology)
    )
    neighbors = toy.no_neighbors()
    keys = jax.random.split(jax.random.PRNGKey(1), replicas)
    states = jax.jit(jax.vmap(lambda key: integrator.init(key, system, neighbors, KT, umbrella)))(keys)
    observe = lambda state: polarization(state.system, topology)  # noqa: E731
    _, seen = toy.sample(integrator, states, samples=130, every=15, observe=observe)
    seen = seen[30:]
    for axis in range(3):
        away = seen[:, :, axis] - float(umbrella.center[axis])
        assert abs(away.mean()) < 4.0 * toy.standard_error(away)
        square = away**2 * float(umbrella.strength[axis]) / KT
        assert toy.standard_error(square) < 0.07
        assert abs(square.mean() - 1.0) < 4.0 * toy.standard_error(square)


# --- from samples to coefficients, on a polynomial that is known -------------------------------------------------

KNOWN = np.array([-1.7e8, -7.3e7, 2.6e8])
CELL = 500.0  # Angstrom^3
GRID = np.linspace(-2.0, 2.0, 40001)


def exact(place: np.ndarray, coefficients: np.ndarray = KNOWN) -> np.ndarray:
    """F in eV."""
    return (
        CELL
        / profile.JOULE_PER_CUBIC_METRE
        * np.asarray(profile.landau_energy(jnp.asarray(coefficients), jnp.asarray(place)))
    )


def draw(windows: Windows, samples: int, seed: int, kelvin: float = 300.0, coefficients=KNOWN) -> WindowSamples:
    """Independent samples of the exact biased distributions."""
    generator = np.random.default_rng(seed)
    kT, found = kelvin * BOLTZMANN, []
    for center in windows.centers:
        log_density = -(exact(GRID, coefficients) + 0.5 * windows.strength * (GRID - center) ** 2) / kT
        weights = np.exp(log_density - log_density.max())
        found.append(generator.choice(GRID, samples, p=weights / weights.sum()))
    volumes = tuple(np.full(samples, CELL) for _ in found)
    return WindowSamples(kelvin, tuple(found), volumes, np.ones(len(found)))


@pytest.mark.parametrize("symmetric", [True, False])
def test_double_well(symmetric: bool) -> None:
    """Profile, P_s, barrier and coefficients within four of their standard errors, and these small enough to tell."""
    centers = np.linspace(0.0, 1.0, 16) if symmetric else np.linspace(-1.0, 1.0, 31)
    windows = Windows(centers, 13.0, symmetric)
    row = analyse_windows([draw(windows, 300, seed=3)], windows, resamplings=40).rows[0]
    middles = 0.5 * (windows.edges[1:] + windows.edges[:-1])
    wanted = [*KNOWN, *(float(x) for x in profile.landau_well(jnp.asarray(KNOWN)))]
    wanted[4] *= CELL / profile.JOULE_PER_CUBIC_METRE
    found = [*row.values.landau, row.values.spontaneous, row.values.barrier]
    errors = np.array([*row.errors.landau, row.errors.spontaneous, row.errors.barrier])
    assert (np.abs(np.subtract(found, wanted)) < 4.0 * errors).all()
    assert (errors < [3e7, 6e7, 4e7, 0.01, 0.03]).all()
    away = np.abs(row.values.profile - exact(middles))
    populated = row.values.counts > 20
    assert populated.sum() > 40
    assert (away < 4.5 * row.errors.profile)[populated].all()
    assert row.errors.profile[populated].max() < 0.05
    assert row.values.misfit < 0.02
    gap = row.integrated - exact(windows.edges)
    assert np.abs(gap[np.abs(windows.edges) < 0.95]).max() < 0.06


def test_single_well() -> None:
    windows = Windows(np.linspace(0.0, 1.0, 16), 25.0, True)
    above = LANDAU["PbTiO3"].at(900.0)
    row = analyse_windows([draw(windows, 200, seed=5, kelvin=900.0, coefficients=above)], windows, resamplings=10).rows[
        0
    ]
    assert row.values.barrier < 0.02
    assert row.values.spontaneous < 0.25
    assert_allclose(profile.landau_well(jnp.asarray(above)), 0.0)


def test_symmetry_is_that_of_mirrored_windows() -> None:
    """Weights with F(P) = F(-P) equal those of all windows, samples and their mirror images together."""
    windows = Windows(np.linspace(0.0, 1.0, 8), 13.0, True)
    samples = draw(windows, 50, seed=7)
    place, counts, centers = (
        jnp.asarray(x) for x in (np.concatenate(samples.polarizations), samples.counts, windows.centers)
    )
    bias = functools.partial(profile.reduced_bias, strength=jnp.asarray(13.0), kT=jnp.asarray(KT))
    folded = mbar.solve(bias(place, centers, symmetric=True), counts)
    weights = mbar.probabilities(folded, jnp.zeros(400))
    both = jnp.concatenate([place, -place])
    doubled = mbar.solve(
        bias(both, jnp.concatenate([centers, -centers]), symmetric=False), jnp.concatenate([counts, counts])
    )
    mirrored = mbar.probabilities(doubled, jnp.zeros(800))
    assert_allclose(weights, mirrored[:400] + mirrored[400:], rtol=1e-8, atol=1e-15)


def test_derivatives_of_the_landscape() -> None:
    """dF/d(a1), barrier and P_s by automatic differentiation in the strength of the bias against differences."""
    windows = Windows(np.linspace(0.0, 1.0, 12), 10.0, True)
    samples = draw(windows, 100, seed=8)
    place, counts, centers, edges = (
        jnp.asarray(x) for x in (np.concatenate(samples.polarizations), samples.counts, windows.centers, windows.edges)
    )

    @jax.jit
    def of(strength: jax.Array) -> jax.Array:
        found = profile.free_energy_profile(
            place, jnp.full(1200, CELL), counts, centers, strength, jnp.asarray(KT), edges, symmetric=True
        )
        return jnp.concatenate([found.landau / 1e8, jnp.stack([found.spontaneous, found.barrier])])

    slope = jax.jacobian(of)(jnp.asarray(10.0))
    step = 1e-4
    assert_allclose(slope, (of(jnp.asarray(10.0 + step)) - of(jnp.asarray(10.0 - step))) / (2 * step), rtol=2e-3)


def test_closed_forms() -> None:
    place, height = profile.landau_well(jnp.asarray(KNOWN))
    fine = np.linspace(0.0, 1.0, 200001)
    values = np.asarray(profile.landau_energy(jnp.asarray(KNOWN), jnp.asarray(fine)))
    assert_allclose(place, fine[values.argmin()], atol=1e-5)
    assert_allclose(height, -values.min(), rtol=1e-8)
    first_order = LANDAU["PbTiO3"].at(760.0)  # between T0 and the transition: three wells
    values = np.asarray(profile.landau_energy(jnp.asarray(first_order), jnp.asarray(fine)))
    place, height = profile.landau_well(jnp.asarray(first_order))
    assert_allclose(place, fine[values.argmin()], atol=1e-5)
    assert_allclose(height, values[: values.argmin()].max() - values.min(), rtol=1e-6)
    temperatures = np.array([300.0, 500.0, 700.0, 900.0])
    stiffness = 3.8e5 * (temperatures - 752.0) + np.array([1e6, -2e6, 0.0, 3e6])
    errors = np.array([1e6, 2e6, 3e6, 2e6])
    law, spread = profile.curie_weiss(*(jnp.asarray(x) for x in (temperatures, stiffness, errors)))
    (slope, start), covariance = np.polyfit(temperatures, stiffness, 1, w=1.0 / errors, cov="unscaled")
    assert_allclose(law, [slope, -start / slope], rtol=1e-9)
    assert_allclose(spread[0], np.sqrt(covariance[0, 0]), rtol=1e-9)


def test_umbrella_integration_is_exact_for_a_parabola() -> None:
    """Windows of a harmonic free energy c/2 P^2 are Gaussian: the mean force is then exact."""
    stiffness, strength, centers = 5.0, 20.0, np.linspace(0.0, 1.0, 6)
    means, variances = strength * centers / (strength + stiffness), np.full(6, KT / (strength + stiffness))
    grid = np.linspace(0.0, 1.0, 41)
    numbers = (means, variances, np.full(6, 100.0), centers, np.float64(strength), np.float64(KT), grid)
    curve = profile.umbrella_integration(*(jnp.asarray(x) for x in numbers))
    assert_allclose(curve, 0.5 * stiffness * grid**2, atol=1e-12)


def test_windows_that_do_not_overlap_are_refused_with_the_number_that_would_do() -> None:
    few = Windows(np.linspace(0.0, 1.0, 6), 60.0, True)
    with pytest.raises(InputError, match=r"overlap by .* take `windows=(\d+)` with") as refused:
        analyse_windows([draw(few, 200, seed=1)], few)
    number = int(str(refused.value).split("`windows=")[1].split("`")[0])
    enough = Windows(np.linspace(0.0, 1.0, number), 60.0, True)
    analyse_windows([draw(enough, 200, seed=1)], enough, resamplings=2)
    with pytest.raises(InputError, match=r"widths of the bias apart at 300 K.* take `windows=23`,"):
        choose_windows(LandauOptions(windows=8, strength=50.0), 300.0, 8)


def test_other_refusals() -> None:
    short = Windows(np.linspace(0.0, 0.5, 8), 60.0, True)
    with pytest.raises(InputError, match=r"lowest at the end of the range, 0.5 C/m\^2; take `range=\(0, 0.65\)`"):
        analyse_windows([draw(short, 200, seed=1)], short, resamplings=2)
    series = [[np.random.default_rng(0).normal(size=9)] for _ in short.centers]
    with pytest.raises(InputError, match=r"window at 0 C/m\^2: 9 independent samples, at least 10"):
        thinned(300.0, series, series, short)


# --- the command ------------------------------------------------------------------------------------------------

TINY = (
    *("PbTiO3-cubic", "--method", "landau", "--supercell", "1", "1", "1", "--temperatures", "300", "600"),
    *("--landau.windows", "6", "--landau.range", "0", "1.2", "--replicas", "2"),
    *("--steps", "1200", "--sample-every", "4"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that was interrupted after its first chunk, and went on."""
    out = tmp_path_factory.mktemp("landau") / "run"
    whole = stored_run.run_chunks

    def stopping(*arguments) -> Iterator:
        yield next(whole(*arguments))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_run, "run_chunks", stopping)
        assert main([*TINY, "--out", str(out)]) == 130
    assert not (out / "landau.csv").exists()
    assert main([*TINY, "--out", str(out)]) == 0
    return out


def test_files(folder: pathlib.Path) -> None:
    document = json.loads((folder / "landau.json").read_text())
    assert document["formula"] == "PbTiO3"
    assert len(document["centers_C_m-2"]) == 6
    assert document["literature"]["slope"] == 3.8e5
    assert [row["temperature_K"] for row in document["rows"]] == [300.0, 600.0]
    for row in document["rows"]:
        assert row["barrier_eV_per_cell"] == pytest.approx(row["barrier_eV_per_formula_unit"])  # one formula unit
        assert row["a1_J_m_C-2_error"] > 0.0
        assert 60.0 < row["volume_A3_per_formula_unit"] < 70.0
    with (folder / "landau.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    with (folder / "profiles.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["temperature_K"] for row in rows} == {"300.0", "600.0"}
    for name in ("landau.png", "report.html", "windows/outcome.json"):
        assert (folder / name).stat().st_size > 1000


def test_windows_hold_the_polarization(folder: pathlib.Path) -> None:
    """The mean polarizations rise with the centres and stay within the width of a window of them."""
    rows = json.loads((folder / "landau.json").read_text())["windows"]
    assert rows
    for row in rows:
        means = np.array(row["mean_polarization_C_m-2"])
        assert (np.diff(means) > 0.0).all()
        assert np.abs(means - np.linspace(0.0, 1.2, 6)).max() < 0.5


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_numbers_of_another(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    assert main([*TINY, "--out", str(out)]) == 0
    assert (out / "landau.csv").read_text() == (folder / "landau.csv").read_text()


def test_the_same_command_again_and_another(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "profiles.csv").read_text()
    assert main([*TINY, "--out", str(folder)]) == 0
    assert (folder / "profiles.csv").read_text() == before
    assert main([*TINY, "--landau.strength", "2", "--out", str(folder)]) == 2
    assert "was run with other settings: the windows' strength differ; name a new --out" in capsys.readouterr().err


def test_bad_input(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "none"
    for options, words in (
        (("--landau.range", "-1", "1"), "starts at 0 where F(P) = F(-P) is used; add --landau.no-symmetric"),
        (("--landau.no-symmetric",), "must hold P = 0 within"),
        (("--landau.range", "1", "0"), "give the lowest and the highest centre"),
        (("--landau.windows", "2"), "at least 4 are needed"),
        (("--landau.strength", "-1"), "must be above 0"),
        (("--landau.transverse", "-1"), "must be 0 (free) or above"),
        (("--temperatures", "0"), "must be above 0 K"),
    ):
        assert main(["--method", "landau", *options, "--out", str(out)]) == 2
        assert words in capsys.readouterr().err
    assert main(["--method", "ladder", "--landau.windows", "8", "--out", str(out)]) == 2
    assert "--method landau" in capsys.readouterr().err
    assert not out.exists()
