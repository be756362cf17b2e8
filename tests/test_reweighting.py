"""Reweighting against closed forms of harmonic ensembles, the covariance formula and finite differences."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from toy_potentials import argon_crystal, lennard_jones

from jaxpto.errors import InputError
from jaxpto.free_energy.estimators import reweighting
from jaxpto.free_energy.estimators.mbar import effective_samples
from jaxpto.neighbors import Layout, Neighbors, build
from jaxpto.potential import Potential
from jaxpto.system import System, stack, volume
from jaxpto.units import BOLTZMANN, GIGAPASCAL

ATOMS = 4
KELVIN = 400.0
KT = BOLTZMANN * KELVIN
FRAMES = 5_000
DEGREES = 3 * ATOMS


@dataclasses.dataclass(frozen=True)
class Einstein:
    """U = E + k/2 sum |x|^2 + K/2 (V - V0)^2: positions and volume are Gaussian at every temperature and pressure."""

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3

    elements: tuple[int, ...] = (18,)
    cutoff: float = 0.5

    def energy(self, params: Any, system: System, neighbors: Neighbors, vectors: Array) -> Array:
        swelling = volume(system.cell) - params["volume"]
        springs = 0.5 * params["stiffness"] * jnp.sum(system.positions**2)
        return params["energy"] + springs + 0.5 * params["modulus"] * swelling**2


PARAMS = {"energy": -5000.0, "stiffness": 2.0, "modulus": 0.002, "volume": 60.0}


def einstein(**changes: float) -> Potential:
    return Potential({k: jnp.asarray(v) for k, v in (PARAMS | changes).items()}, Einstein(), "Einstein")


def drawn(kelvin: float, pressure: float, frames: int = FRAMES, seed: int = 0, **changes: float) -> System:
    """Independent samples of the exact ensemble."""
    params, generator = PARAMS | changes, np.random.default_rng(seed)
    kT = BOLTZMANN * kelvin
    positions = generator.normal(size=(frames, ATOMS, 3)) * np.sqrt(kT / params["stiffness"])
    volumes = generator.normal(size=frames) * np.sqrt(kT / params["modulus"])
    volumes += params["volume"] - pressure / params["modulus"]
    cells = np.cbrt(volumes)[:, None, None] * np.eye(3)
    numbers, masses = np.full((frames, ATOMS), 18, np.int32), np.full((frames, ATOMS), 40.0)
    return System(*map(jnp.asarray, (positions, cells, numbers, masses)))


def look(potential: Potential, system: System, neighbors: Neighbors) -> dict[str, Array]:
    return {"square": jnp.sum(system.positions**2), "volume": volume(system.cell)}


@functools.partial(jax.jit, static_argnums=2)
def measured(params: dict, systems: System, layout: Layout) -> reweighting.Measured:
    return reweighting.measure(Potential(params, Einstein(), "Einstein"), systems, layout, look, batch=500)


PRESSURE = 0.5 * GIGAPASCAL


@pytest.fixture(scope="module")
def sampled() -> tuple[reweighting.Ensemble, Any]:
    return reweighting.record(einstein(), drawn(KELVIN, PRESSURE), KELVIN, PRESSURE, batch=500)


def averages(sampled: tuple, params: dict, kelvin: Any, pressure: Any) -> dict[str, Array]:
    ensemble, layout = sampled
    found = measured(params, ensemble.systems, layout)
    weights = reweighting.weights(ensemble, found.energies, kelvin, pressure)
    return {name: reweighting.average(weights, values) for name, values in found.values.items()}


def test_derivatives_are_those_of_the_harmonic_crystal(sampled: tuple) -> None:
    """d<x^2>/dk = -d kT/k^2, d<x^2>/dT = d k_B/k, d<V>/dV0 = 1, d<V>/dK = P/K^2, d<V>/dP = -1/K, the others zero."""
    slopes = jax.jit(jax.jacrev(lambda *where: averages(sampled, *where), argnums=(0, 1, 2)))(
        einstein().params, jnp.asarray(KELVIN), jnp.asarray(PRESSURE)
    )
    k, modulus = PARAMS["stiffness"], PARAMS["modulus"]
    exact = {
        "square": ({"energy": 0.0, "stiffness": -DEGREES * KT / k**2, "modulus": 0.0, "volume": 0.0},
                   DEGREES * BOLTZMANN / k, 0.0),
        "volume": ({"energy": 0.0, "stiffness": 0.0, "modulus": PRESSURE / modulus**2, "volume": 1.0},
                   0.0, -1.0 / modulus),
    }  # fmt: skip
    # what one independent sample scatters by: the product of the standard deviations of O and of what it is paired with
    spread = {"square": np.sqrt(2 * DEGREES) * KT / k, "volume": np.sqrt(KT / modulus)}
    partner = {"energy": 0.0, "stiffness": np.sqrt(2 * DEGREES) / (2 * k), "volume": np.sqrt(modulus / KT)}
    partner["modulus"] = (PRESSURE / modulus * np.sqrt(KT / modulus) + KT / modulus) / KT
    enthalpy = np.sqrt(0.5 * (DEGREES + 1)) * KT + PRESSURE * np.sqrt(KT / modulus)
    for name, (by_params, by_kelvin, by_pressure) in exact.items():
        in_params, in_kelvin, in_pressure = slopes[name]
        one = 4.0 * np.sqrt(3.0) * spread[name] / np.sqrt(FRAMES)
        for parameter, value in by_params.items():
            assert abs(in_params[parameter] - value) <= one * partner[parameter] + 1e-12, (name, parameter)
        assert abs(in_kelvin - by_kelvin) <= one * enthalpy / (KT * KELVIN), name
        assert abs(in_pressure - by_pressure) <= one * np.sqrt(KT / modulus) / KT, name


@pytest.mark.parametrize(
    ("changes", "kelvin", "pressure"),
    [({"stiffness": 2.1}, KELVIN, PRESSURE), ({"volume": 61.0}, 430.0, PRESSURE), ({}, KELVIN, 2 * PRESSURE)],
)
def test_other_parameters_against_exact(sampled: tuple, changes: dict, kelvin: float, pressure: float) -> None:
    params = PARAMS | changes
    found = averages(sampled, einstein(**changes).params, kelvin, pressure)
    np.testing.assert_allclose(found["square"], DEGREES * BOLTZMANN * kelvin / params["stiffness"], rtol=0.01)
    expected = params["volume"] - pressure / params["modulus"]
    assert abs(found["volume"] - expected) <= 5.0 * np.sqrt(KT / params["modulus"] / FRAMES)


def test_effective_samples_of_a_stiffer_crystal(sampled: tuple) -> None:
    """With k' = a k, (sum w)^2 / sum w^2 is the fraction (sqrt(2 a - 1) / a)^d of the frames."""
    ensemble, layout = sampled
    energies = measured(einstein(stiffness=2.3).params, ensemble.systems, layout).energies
    weights = reweighting.weights(ensemble, energies, ensemble.temperature, ensemble.pressure)
    a = 1.15
    np.testing.assert_allclose(effective_samples(weights) / FRAMES, (np.sqrt(2 * a - 1) / a) ** DEGREES, rtol=0.02)
    unchanged = reweighting.weights(ensemble, ensemble.energies, ensemble.temperature, ensemble.pressure)
    np.testing.assert_allclose(unchanged, 1.0 / FRAMES, rtol=1e-12)


def test_energies_of_thousands_of_electronvolts_do_not_lose_digits(sampled: tuple) -> None:
    """A constant in U and U0 changes no weight, whatever the temperature."""
    ensemble, _ = sampled
    shifted = dataclasses.replace(ensemble, energies=ensemble.energies - 1e6)
    one = reweighting.weights(ensemble, ensemble.energies, jnp.asarray(410.0), ensemble.pressure)
    two = reweighting.weights(shifted, shifted.energies, jnp.asarray(410.0), ensemble.pressure)
    np.testing.assert_allclose(one, two, rtol=1e-7)


@pytest.fixture(scope="module")
def argon() -> tuple[reweighting.Ensemble, Any]:
    """Twelve rattled, strained crystals of 32 atoms."""
    generator, crystal, frames = np.random.default_rng(0), argon_crystal(), []
    for _ in range(12):
        strain = jnp.asarray(np.eye(3) + 0.01 * generator.normal(size=(3, 3)))
        moved = crystal.positions @ strain + 0.05 * generator.normal(size=crystal.positions.shape)
        frames.append(dataclasses.replace(crystal, positions=moved, cell=crystal.cell @ strain))
    return reweighting.record(lennard_jones(), stack(frames), 60.0)


def observe(potential: Potential, system: System, neighbors: Neighbors) -> Array:
    """A length, and the energy itself, which depends on the parameters."""
    return jnp.stack([jnp.linalg.norm(system.cell[2]), potential.energy(system, neighbors)])


def argon_average(argon: tuple, params: Any, *, batch: int = 5) -> Array:
    ensemble, layout = argon
    found = reweighting.measure(lennard_jones().replace(params=params), ensemble.systems, layout, observe, batch=batch)
    weights = reweighting.weights(ensemble, found.energies, ensemble.temperature, ensemble.pressure)
    return reweighting.average(weights, found.values)


def test_gradient_is_the_covariance_formula(argon: tuple) -> None:
    """<dO/dp> - beta cov(O, dU/dp) written out, at parameters that were not the sampled ones."""
    ensemble, layout = argon
    params = (jnp.asarray(0.0110), jnp.asarray(3.43))
    found = jax.jit(jax.jacrev(lambda p: argon_average(argon, p)))(params)

    def alone(p: Any) -> tuple[Array, Array]:
        def one(system: System) -> tuple[Array, Array]:
            potential, neighbors = lennard_jones().replace(params=p), build(system, layout)
            return potential.energy(system, neighbors), observe(potential, system, neighbors)

        return jax.vmap(one)(ensemble.systems)

    energies, values = jax.jit(alone)(params)
    by_energy, by_value = jax.jit(jax.jacrev(alone))(params)
    weights = reweighting.weights(ensemble, energies, ensemble.temperature, ensemble.pressure)
    assert 1.5 < effective_samples(weights) < 11.0
    for k in range(2):
        force, direct = by_energy[k], by_value[k]
        covariance = weights @ (values * force[:, None]) - (weights @ values) * (weights @ force)
        expected = weights @ direct - covariance / (BOLTZMANN * 60.0)
        np.testing.assert_allclose(found[k], expected, rtol=1e-8)


def test_gradient_is_that_of_finite_differences(argon: tuple) -> None:
    base = np.array([0.01042, 3.401])
    wrap = lambda p: argon_average(argon, tuple(jnp.asarray(p)))  # noqa: E731
    found = jax.jit(jax.jacrev(wrap))(jnp.asarray(base))
    for k, step in enumerate((1e-8, 1e-6)):
        moved = step * np.eye(2)[k]
        expected = (wrap(base + moved) - wrap(base - moved)) / (2 * step)
        np.testing.assert_allclose(found[:, k], expected, rtol=2e-5)


def test_batches_change_nothing(argon: tuple) -> None:
    params = lennard_jones().params
    np.testing.assert_allclose(
        argon_average(argon, params, batch=1), argon_average(argon, params, batch=12), rtol=1e-12
    )


def test_memory_of_the_gradient_does_not_grow_with_the_frames(argon: tuple) -> None:
    """Temporary memory of the compiled gradient with eight times as many frames."""
    ensemble, layout = argon

    def temporary(copies: int) -> int:
        many = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * copies), ensemble.systems)

        def total(params: Any, positions: Array, cells: Array) -> Array:
            systems = System(positions, cells, many.numbers, many.masses)
            return reweighting.measure(lennard_jones().replace(params=params), systems, layout, batch=4).energies.sum()

        lowered = jax.jit(jax.grad(total)).lower(lennard_jones().params, many.positions, many.cell)
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    few, more = temporary(1), temporary(8)
    inputs = 7 * 12 * 32 * 3 * 8  # bytes of the further positions, which may be laid out anew
    assert more < few + 4 * inputs


def test_overflow_is_seen_and_record_makes_room(argon: tuple) -> None:
    ensemble, layout = argon
    small = dataclasses.replace(layout, edges=layout.edges // 3)
    assert bool(reweighting.measure(lennard_jones(), ensemble.systems, small).overflow)
    again, grown = reweighting.record(lennard_jones(), ensemble.systems, 60.0, layout=small)
    assert grown.edges > small.edges
    np.testing.assert_allclose(again.energies, ensemble.energies, rtol=1e-12)


def test_frames_without_an_energy_are_refused(argon: tuple) -> None:
    systems = argon[0].systems
    broken = dataclasses.replace(systems, positions=systems.positions.at[7, 0, 0].set(jnp.nan))
    with pytest.raises(InputError, match="frame 7 is not finite"):
        reweighting.record(lennard_jones(), broken, 60.0)


def test_errors_from_replicas() -> None:
    """Equal weights: the standard error of the mean of independent replicas' means."""
    values = np.random.default_rng(0).normal(size=(6, 50))
    found = reweighting.replica_error(jnp.zeros((6, 50)), jnp.asarray(values))
    np.testing.assert_allclose(found, values.mean(axis=1).std(ddof=1) / np.sqrt(6), rtol=1e-10)


def test_reduced_gibbs_energy_of_the_harmonic_crystal(sampled: tuple) -> None:
    """G / kT = E/kT + d/2 ln(k/kT) + 1/2 ln(K/kT) + (P V0 - P^2/2K)/kT, and its derivative <dU/dp> / kT."""
    ensemble, layout = sampled

    def exact(p: dict, kelvin: float, pressure: float) -> float:
        kT = BOLTZMANN * kelvin
        work = pressure * p["volume"] - pressure**2 / (2 * p["modulus"])
        return (p["energy"] + work) / kT + 0.5 * DEGREES * np.log(p["stiffness"] / kT) + 0.5 * np.log(p["modulus"] / kT)

    changed = {"stiffness": 2.05, "energy": -4999.0, "volume": 60.4}

    def reduced(params: dict) -> Array:
        energies = reweighting.measure(Potential(params, Einstein(), "x"), ensemble.systems, layout, batch=500).energies
        return reweighting.reduced_gibbs(ensemble, energies, jnp.asarray(405.0), jnp.asarray(1.2 * PRESSURE))

    expected = exact(PARAMS | changed, 405.0, 1.2 * PRESSURE) - exact(PARAMS, KELVIN, PRESSURE)
    value, slope = jax.value_and_grad(reduced)(einstein(**changed).params)
    np.testing.assert_allclose(value, expected, atol=0.02)
    kT = BOLTZMANN * 405.0
    np.testing.assert_allclose(slope["energy"] * kT, 1.0, rtol=1e-10)
    np.testing.assert_allclose(slope["stiffness"], 0.5 * DEGREES / 2.05, rtol=0.01)


SOFT = {"stiffness": 1.0, "volume": 62.0}
ENTROPY = 0.5 * DEGREES * BOLTZMANN * np.log(2.0)  # of the soft phase over the stiff one, at zero pressure


def test_transition_temperature_and_its_derivatives() -> None:
    """Two Einstein crystals: Tc = (E2 - E1) / dS, dTc/dE2 = 1/dS, dTc/dk1 = -(d kT / 2 k1) / dS, dTc/dP = dV / dS."""
    rise = ENTROPY * KELVIN
    one, layout = reweighting.record(einstein(), drawn(KELVIN, 0.0), KELVIN, batch=500)
    soft = SOFT | {"energy": PARAMS["energy"] + rise}
    two, _ = reweighting.record(einstein(**soft), drawn(KELVIN, 0.0, seed=1, **SOFT), KELVIN, batch=500)

    def critical(stiff: dict, soft: dict, pressure: Array) -> Array:
        energies = tuple(measured(p, phase.systems, layout).energies for p, phase in ((stiff, one), (soft, two)))
        return reweighting.transition_temperature(one, two, energies, pressure)

    arguments = einstein().params, einstein(**soft).params, jnp.asarray(0.0)
    both = jax.jit(jax.value_and_grad(critical, argnums=(0, 1, 2)))
    tc, (stiff, other, pressure) = both(*arguments)
    np.testing.assert_allclose(tc, KELVIN, rtol=1e-9)
    np.testing.assert_allclose(other["energy"], 1.0 / ENTROPY, rtol=0.02)
    np.testing.assert_allclose(stiff["energy"], -1.0 / ENTROPY, rtol=0.02)
    np.testing.assert_allclose(stiff["stiffness"], -0.5 * DEGREES * KT / 2.0 / ENTROPY, rtol=0.03)
    np.testing.assert_allclose(pressure, (62.0 - 60.0) / ENTROPY, rtol=0.15)
    higher = einstein(**(soft | {"energy": soft["energy"] + 10.0 * ENTROPY})).params
    np.testing.assert_allclose(both(arguments[0], higher, arguments[2])[0], KELVIN + 10.0, rtol=2e-3)


def test_two_macrostates_of_one_run() -> None:
    """With 1200 and 1000 frames in two states of one run, both are equally likely where dG / kT fell by ln 1.2."""
    one, _ = reweighting.record(einstein(), drawn(KELVIN, 0.0, 1200), KELVIN, batch=500)
    soft = SOFT | {"energy": PARAMS["energy"] + ENTROPY * KELVIN}
    two, _ = reweighting.record(einstein(**soft), drawn(KELVIN, 0.0, 1000, seed=1, **SOFT), KELVIN, batch=500)
    found = reweighting.transition_temperature(one, two, (one.energies, two.energies), 0.0, np.log(1.2))
    assert found == pytest.approx(KELVIN * (1.0 + np.log(1.2) / (ENTROPY / BOLTZMANN)), rel=0.02)
    at = lambda phase: reweighting.reduced_gibbs(phase, phase.energies, found, 0.0)  # noqa: E731
    np.testing.assert_allclose(at(two) - at(one), -np.log(1.2), atol=1e-9)
