"""Free energies from samples: MBAR against pymbar, the ladder against the closed form of a harmonic system."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pymbar
import pytest

from jaxpto.thermodynamics import ladder, mbar
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


def _thermodynamics(samples: list[np.ndarray], wanted: np.ndarray) -> ladder.Thermodynamics:
    return jax.jit(ladder.thermodynamics, static_argnums=5)(
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
    found = ladder.gibbs_helmholtz(*map(jnp.asarray, (means, variances, LADDER)), MOMENTA)
    np.testing.assert_allclose(found, _exact(LADDER)[0], atol=2e-5)
    capacity = ladder.fluctuation_heat_capacity(jnp.asarray(variances), jnp.asarray(LADDER), MOMENTA)
    np.testing.assert_allclose(capacity, _exact(LADDER)[3], rtol=1e-12)


def test_both_roads_agree_on_the_same_samples(harmonic: list[np.ndarray]) -> None:
    """MBAR and Gibbs-Helmholtz integration share samples, so that they differ by less than either is uncertain."""
    means, variances = (jnp.asarray([f(s) for s in harmonic]) for f in (np.mean, np.var))
    integrated = ladder.gibbs_helmholtz(means, variances, jnp.asarray(LADDER), MOMENTA)
    np.testing.assert_allclose(_thermodynamics(harmonic, LADDER).gibbs, integrated, atol=1e-3)


def test_entropy_and_heat_capacity_are_those_of_averages(harmonic: list[np.ndarray]) -> None:
    """Automatic derivatives in T against weighted averages of h and its fluctuations at the same temperature."""
    samples = np.concatenate(harmonic)
    t = 430.0
    found = _thermodynamics(harmonic, np.array([300.0, t]))
    mixture = mbar.solve(ladder.reduced(jnp.asarray(samples + 100.0), jnp.asarray(LADDER)), jnp.full(7, 4000.0))
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
