"""Free energies from samples: MBAR against pymbar, the ladder against the closed form of a harmonic system."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pymbar
import pytest

from jaxpto.errors import InputError
from jaxpto.free_energy.estimators import mbar
from jaxpto.free_energy.estimators.samples import EnthalpySamples, enthalpy_samples
from jaxpto.free_energy.estimators.transition import phase_bracket, transition_thermodynamics
from jaxpto.free_energy.ladder import thermodynamics
from jaxpto.free_energy.ladder.analysis import analyse_ladder
from jaxpto.observables.summary import ReplicaRecord
from jaxpto.units import BOLTZMANN

STIFFNESS = np.array([1.0, 2.0, 4.0, 8.0])
CENTRES = np.array([0.0, 0.3, 0.6, 0.9])
COUNTS = np.array([300, 500, 200, 400])


@pytest.fixture(scope="module")
def oscillators() -> np.ndarray:
    """Reduced energies [k, n] of samples of four harmonic oscillators in all four."""
    generator = np.random.default_rng(0)
    places = [generator.normal(x, 1 / np.sqrt(k), n) for k, x, n in zip(STIFFNESS, CENTRES, COUNTS, strict=True)]
    x = np.concatenate(places)
    return 0.5 * STIFFNESS[:, None] * (x[None, :] - CENTRES[:, None]) ** 2


@pytest.fixture(scope="module")
def reference(oscillators: np.ndarray) -> dict[str, np.ndarray]:
    """What pymbar finds; it runs on JAX as well, less strictly than these tests."""
    with jax.numpy_rank_promotion("allow"):
        solved = pymbar.MBAR(oscillators, COUNTS, solver_protocol="robust", relative_tolerance=1e-14)
        differences = solved.compute_free_energy_differences()
        between = _between(oscillators)
        perturbed = solved.compute_perturbed_free_energies(np.stack([oscillators[0], between]))["Delta_f"][0, 1]
        average = solved.compute_expectations(oscillators[3], u_kn=between, state_dependent=False)["mu"]
        return {
            "free_energies": differences["Delta_f"][0],
            "errors": differences["dDelta_f"][0],
            "overlap": solved.compute_overlap()["matrix"],
            "between": perturbed,
            "average": np.ravel(average)[0],
        }


def _between(energies: np.ndarray) -> np.ndarray:
    """Energies in a state that was not sampled."""
    return 0.5 * (energies[1] + energies[2])


def _solve(energies: np.ndarray | jax.Array) -> mbar.Mixture:
    return jax.jit(mbar.solve)(jnp.asarray(energies), jnp.asarray(COUNTS, np.float64))


def test_free_energies_are_pymbar_s(oscillators: np.ndarray, reference: dict[str, np.ndarray]) -> None:
    found = _solve(oscillators).free_energies
    np.testing.assert_allclose(found, reference["free_energies"], atol=1e-10)


def test_free_energies_near_the_exact_ones(oscillators: np.ndarray, reference: dict[str, np.ndarray]) -> None:
    """f = ln(k) / 2; within three of pymbar's standard errors."""
    found = _solve(oscillators).free_energies
    assert (np.abs(found - 0.5 * np.log(STIFFNESS)) <= 3.0 * reference["errors"]).all()


def test_overlap_is_pymbar_s(oscillators: np.ndarray, reference: dict[str, np.ndarray]) -> None:
    mixture = _solve(oscillators)
    found = mbar.overlap(mixture, jnp.asarray(oscillators), jnp.asarray(COUNTS, np.float64))
    np.testing.assert_allclose(found, reference["overlap"], atol=1e-10)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-12)


def test_unsampled_state_and_its_averages_are_pymbar_s(
    oscillators: np.ndarray, reference: dict[str, np.ndarray]
) -> None:
    mixture, between = _solve(oscillators), jnp.asarray(_between(oscillators))
    np.testing.assert_allclose(mbar.free_energy(mixture, between), reference["between"], atol=1e-10)
    average = mbar.probabilities(mixture, between) @ oscillators[3]
    np.testing.assert_allclose(average, reference["average"], atol=1e-10)


def test_far_states_converge() -> None:
    """States that hardly overlap, and energies of thousands of kT."""
    generator = np.random.default_rng(1)
    centres = np.arange(12) * 4.0
    x = np.concatenate([generator.normal(c, 1.0, 50) for c in centres])
    energies = jnp.asarray(0.5 * (x[None, :] - centres[:, None]) ** 2 + 5000.0)
    counts = jnp.full(12, 50.0)
    mixture = jax.jit(mbar.solve)(energies, counts)
    residual = jax.scipy.special.logsumexp(mixture.log_weights[None, :] - energies, axis=1) + mixture.free_energies
    np.testing.assert_allclose(residual, 0.0, atol=1e-9)


def test_derivatives_are_those_of_the_solution(oscillators: np.ndarray) -> None:
    """With respect to a parameter of the energies, against central differences."""

    def last(scale: jax.Array) -> jax.Array:
        return mbar.solve(jnp.asarray(oscillators) ** scale, jnp.asarray(COUNTS, np.float64)).free_energies[-1]

    step = 1e-5
    expected = (last(jnp.asarray(1.0 + step)) - last(jnp.asarray(1.0 - step))) / (2.0 * step)
    np.testing.assert_allclose(jax.grad(last)(jnp.asarray(1.0)), expected, rtol=1e-7)


def test_effective_samples() -> None:
    np.testing.assert_allclose(mbar.effective_samples(jnp.full(7, 0.3)), 7.0)
    np.testing.assert_allclose(mbar.effective_samples(jnp.asarray([1.0, 0.0, 0.0])), 1.0)


COORDINATES, MOMENTA = 60, 57
LADDER = np.linspace(300.0, 600.0, 7)


@pytest.fixture(scope="module")
def harmonic() -> list[np.ndarray]:
    """Samples of the energy of a harmonic system, Gamma-distributed, for each temperature; its constant is -100 eV."""
    generator = np.random.default_rng(0)
    return [-100.0 + generator.gamma(COORDINATES / 2, BOLTZMANN * t, 4000) for t in LADDER]


def _exact(temperatures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """G, H, S relative to 300 K, and Cp."""
    capacity = 0.5 * (COORDINATES + MOMENTA) * BOLTZMANN
    enthalpy, entropy = capacity * (temperatures - 300.0), capacity * np.log(temperatures / 300.0)
    return enthalpy - temperatures * entropy, enthalpy, entropy, capacity


def _thermodynamics(samples: list[np.ndarray], wanted: np.ndarray) -> thermodynamics.Thermodynamics:
    return jax.jit(thermodynamics.thermodynamics, static_argnums=5)(
        jnp.asarray(np.concatenate(samples)),
        jnp.asarray([float(len(s)) for s in samples]),
        jnp.asarray(LADDER),
        jnp.asarray(wanted),
        jnp.asarray(300.0),
        MOMENTA,
    )


def test_ladder_of_a_harmonic_system(harmonic: list[np.ndarray]) -> None:
    """Within three standard errors, those from halves of the samples being one estimate each."""
    wanted = np.array([325.0, 400.0, 475.0, 600.0])
    found = _thermodynamics(harmonic, wanted)
    parts = [_thermodynamics([s[k::8] for s in harmonic], wanted) for k in range(8)]
    for name, exact in zip(("gibbs", "enthalpy", "entropy", "heat_capacity"), _exact(wanted), strict=True):
        spread = np.std([getattr(part, name) for part in parts], axis=0, ddof=1) / np.sqrt(8.0)
        assert (np.abs(getattr(found, name) - exact) <= 3.5 * spread).all(), name
    assert (found.samples > 4000).all()


def test_gibbs_helmholtz_of_exact_means() -> None:
    """With the exact means and variances only the interpolation is left."""
    means = -100.0 + 0.5 * COORDINATES * BOLTZMANN * LADDER
    variances = 0.5 * COORDINATES * (BOLTZMANN * LADDER) ** 2
    found = thermodynamics.gibbs_helmholtz(*map(jnp.asarray, (means, variances, LADDER)), MOMENTA)
    np.testing.assert_allclose(found, _exact(LADDER)[0], atol=2e-5)
    capacity = thermodynamics.fluctuation_heat_capacity(jnp.asarray(variances), jnp.asarray(LADDER), MOMENTA)
    np.testing.assert_allclose(capacity, _exact(LADDER)[3], rtol=1e-12)


def test_both_roads_agree_on_the_same_samples(harmonic: list[np.ndarray]) -> None:
    """MBAR and Gibbs-Helmholtz integration share samples, so that they differ by less than either is uncertain."""
    means, variances = (jnp.asarray([f(s) for s in harmonic]) for f in (np.mean, np.var))
    integrated = thermodynamics.gibbs_helmholtz(means, variances, jnp.asarray(LADDER), MOMENTA)
    np.testing.assert_allclose(_thermodynamics(harmonic, LADDER).gibbs, integrated, atol=1e-3)


def test_entropy_and_heat_capacity_are_those_of_averages(harmonic: list[np.ndarray]) -> None:
    """Automatic derivatives in T against weighted averages of h and its fluctuations at the same temperature."""
    samples = np.concatenate(harmonic)
    t = 430.0
    found = _thermodynamics(harmonic, np.array([300.0, t]))
    mixture = mbar.solve(thermodynamics.reduced(jnp.asarray(samples + 100.0), jnp.asarray(LADDER)), jnp.full(7, 4000.0))
    averages = {}
    for kelvin in (300.0, t):
        weights = mbar.probabilities(mixture, jnp.asarray((samples + 100.0) / (BOLTZMANN * kelvin)))
        mean = weights @ samples
        averages[kelvin] = mean, weights @ (samples - mean) ** 2
    kinetic = 0.5 * MOMENTA * BOLTZMANN
    np.testing.assert_allclose(
        found.enthalpy[1], averages[t][0] - averages[300.0][0] + kinetic * (t - 300.0), rtol=1e-9
    )
    np.testing.assert_allclose(found.heat_capacity[1], averages[t][1] / (BOLTZMANN * t**2) + kinetic, rtol=1e-9)


def test_derivatives_of_the_gibbs_energy_are_averages(harmonic: list[np.ndarray]) -> None:
    """dG/dp = <dh/dp> relative to the reference, for h = h0 + p w with any w of the samples."""
    samples = np.concatenate(harmonic)
    other = np.sin(samples)
    counts, kelvin = jnp.full(7, 4000.0), jnp.asarray([300.0, 430.0])

    def gibbs(p: jax.Array) -> jax.Array:
        h = jnp.asarray(samples) + p * jnp.asarray(other)
        return thermodynamics.thermodynamics(h, counts, jnp.asarray(LADDER), kelvin, jnp.asarray(300.0), MOMENTA).gibbs[
            1
        ]

    mixture = mbar.solve(thermodynamics.reduced(jnp.asarray(samples), jnp.asarray(LADDER)), counts)
    # G(T) - H(T0) + T S(T0) = G(T) - T / T0 G(T0) + (T / T0 - 1) H(T0), and d<h>/dp = <w> - cov(w, h) / kT
    averages = {}
    for t in (300.0, 430.0):
        weights = mbar.probabilities(mixture, jnp.asarray(samples / (BOLTZMANN * t)))
        mean, slope = weights @ samples, weights @ other
        averages[t] = slope, slope - (weights @ (samples * other) - mean * slope) / (BOLTZMANN * t)
    ratio = 430.0 / 300.0
    expected = averages[430.0][0] - ratio * averages[300.0][0] + (ratio - 1.0) * averages[300.0][1]
    np.testing.assert_allclose(jax.grad(gibbs)(jnp.asarray(0.0)), expected, rtol=1e-6)


def _samples(temperatures: np.ndarray, n: int, seed: int = 0) -> EnthalpySamples:
    generator = np.random.default_rng(seed)
    drawn = tuple(-2000.0 + generator.gamma(COORDINATES / 2, BOLTZMANN * t, n) for t in temperatures)
    return EnthalpySamples(temperatures, drawn, np.ones(len(temperatures)))


def test_analysis_of_a_ladder_with_its_error_bars() -> None:
    """All three roads within 3.5 of their own standard errors of the closed form."""
    wanted = np.array([350.0, 470.0, 600.0])
    found = analyse_ladder(_samples(LADDER, 1000), wanted, MOMENTA, resamplings=40)
    exact = _exact(wanted)
    for k, name in enumerate(("gibbs", "enthalpy", "entropy", "heat_capacity")):
        value, error = getattr(found.values, name), getattr(found.errors, name)
        assert (error > 0.0).all()
        assert (np.abs(value - exact[k]) <= 3.5 * error).all(), name
    assert (np.abs(found.integrated - _exact(LADDER)[0])[1:] <= 3.5 * found.integrated_errors[1:]).all()
    assert (np.abs(found.fluctuations - exact[3]) <= 3.5 * found.fluctuations_errors).all()
    assert (found.effective > 1000).all()


def test_error_bars_shrink_as_they_should() -> None:
    few, many = (analyse_ladder(_samples(LADDER, n), LADDER[-1:], MOMENTA, resamplings=60) for n in (250, 4000))
    ratio = few.errors.gibbs[0] / many.errors.gibbs[0]
    assert 2.5 < ratio < 6.5  # 4, and a bootstrap of 60 knows it to a tenth


def test_ladder_without_overlap_is_refused_with_a_spacing_that_does() -> None:
    sparse = np.array([300.0, 1050.0, 1800.0])
    with pytest.raises(InputError, match=r"300 and 1050 K overlap by .* steps of (\d+|\d.*e\+02) K") as refusal:
        analyse_ladder(_samples(sparse, 500), sparse, MOMENTA)
    spacing = float(re.search(r"steps of (\S+) K", str(refusal.value))[1])
    analyse_ladder(_samples(np.arange(300.0, 900.0, spacing), 500), np.array([310.0]), MOMENTA, resamplings=2)


def test_temperatures_outside_of_the_ladder_are_refused() -> None:
    with pytest.raises(InputError, match="the ladder goes from 300 to 600 K only"):
        analyse_ladder(_samples(LADDER, 50), np.array([700.0]), MOMENTA)


def _record(kelvin: float, energies: np.ndarray, status: str = "ok", pressure: float = 0.0) -> ReplicaRecord:
    frames = len(energies)
    nothing = np.zeros(frames)
    cells = np.tile(10.0 * np.eye(3), (frames, 1, 1))
    return ReplicaRecord(
        kelvin, pressure, 0, status, "" if status == "ok" else "it moved", None, nothing, cells, nothing, energies,
        nothing, nothing, np.zeros((frames, 3, 3)), None,
    )  # fmt: skip


def test_samples_of_a_sweep() -> None:
    """The equilibration is left out, correlated frames are thinned, and p V is added."""
    generator = np.random.default_rng(0)
    white, slow = generator.normal(size=2000), np.repeat(generator.normal(size=200), 10)
    white[:1000] = 1e6
    found = enthalpy_samples([_record(400.0, white, pressure=1.0), _record(300.0, slow, pressure=1.0)], 0.5)
    np.testing.assert_array_equal(found.temperatures, [300.0, 400.0])
    assert 60 <= found.counts[0] <= 160
    assert found.counts[1] >= 450
    np.testing.assert_allclose(found.enthalpies[1].mean(), 6.2415, atol=0.3)  # 1 GPa times 1000 A^3


def test_sweeps_that_are_no_ladder_are_refused() -> None:
    values = np.random.default_rng(0).normal(size=100)
    with pytest.raises(InputError, match="at least two"):
        enthalpy_samples([_record(300.0, values)], 0.5)
    with pytest.raises(InputError, match=r"400 K: replica 0 is molten \(it moved\)"):
        enthalpy_samples([_record(300.0, values), _record(400.0, values, "molten")], 0.5)
    with pytest.raises(InputError, match="5 independent samples, at least 10"):
        enthalpy_samples([_record(300.0, values[:5]), _record(400.0, values)], 0.0)


def test_what_a_transition_takes() -> None:
    """Two phases with a jump of H, and heat capacities that rise towards it in the ordered one."""
    kelvin = jnp.linspace(300.0, 900.0, 13)
    critical, jump, slope = 610.0, 0.02, 1e-3
    tail = 4e-4  # eV/K at the transition, on top of the common slope, from zero at 300 K
    ordered = kelvin < critical
    # ordered: dH/dT = slope + tail (T - 300) / (critical - 300); S is the integral of it over T
    extra = tail / (critical - 300.0)
    heat = slope * (kelvin - 300.0) + jnp.where(ordered, 0.5 * extra * (kelvin - 300.0) ** 2, 0.0)
    entropy = slope * jnp.log(kelvin / 300.0)
    entropy += jnp.where(ordered, extra * (kelvin - 300.0 - 300.0 * jnp.log(kelvin / 300.0)), 0.0)
    lost = 0.5 * extra * (critical - 300.0) ** 2, extra * (critical - 300.0 - 300.0 * np.log(critical / 300.0))
    heat += jnp.where(ordered, 0.0, lost[0] + jump)
    entropy += jnp.where(ordered, 0.0, lost[1] + jump / critical)
    bracket = phase_bracket(np.asarray(kelvin), 600.0, 620.0)
    assert bracket is not None
    assert bracket.temperature == critical
    found = transition_thermodynamics(kelvin, heat, entropy, bracket)
    np.testing.assert_allclose(found.enthalpy, jump, rtol=1e-9)
    np.testing.assert_allclose(found.entropy, jump / critical, rtol=1e-9)
    np.testing.assert_allclose(found.total_entropy, jump / critical + lost[1], rtol=1e-9)


def test_no_bracket_without_both_phases() -> None:
    kelvin = np.linspace(300.0, 600.0, 7)
    assert phase_bracket(kelvin, None, 500.0) is None
    assert phase_bracket(kelvin, 350.0, 400.0) is None  # two ordered temperatures only
    found = phase_bracket(kelvin, 400.0, 500.0)
    assert found is not None
    assert (found.ordered.sum(), found.disordered.sum()) == (3, 3)
