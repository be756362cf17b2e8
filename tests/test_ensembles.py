"""Statistics of the integrators: closed forms, `physical_validation`, and ASE's Martyna-Tobias-Klein barostat."""

from __future__ import annotations

import functools

import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import physical_validation as pv
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.stress import full_3x3_to_voigt_6_stress
from toy_potentials import (
    ARGON_MASS,
    VectorSprings,
    argon_crystal,
    gas,
    ideal_gas,
    kT_of,
    lennard_jones,
    listed,
    no_neighbors,
    sample,
    standard_error,
    thermal_bath,
)

from jaxpto.integrators import hydrostatic_stress, npt_parrinello_rahman, nvt_langevin, total_stress
from jaxpto.integrators.external_stress import external_force
from jaxpto.neighbors import edge_vectors, needs_rebuild
from jaxpto.potential import Potential
from jaxpto.system import System, to_ase
from jaxpto.units import GIGAPASCAL

pytestmark = pytest.mark.simulation

ARGON = lennard_jones()
MASKS = ["iso", "diag", "full"]
TRICLINIC = np.array([[1.0, 0.2, -0.1], [0.1, 1.1, 0.3], [-0.2, 0.1, 0.9]])
STIFFNESS, SPACING = 0.2, 3.0


def npt(evaluate, mask: str, timestep: float = 2.0, thermostat: float = 40.0, barostat: float = 80.0):
    # of a pressure both measures are the same; this is the one that sweeps at a pressure run
    measure = "piola-kirchhoff"
    times = {"thermostat_time_fs": thermostat, "barostat_time_fs": barostat}
    return npt_parrinello_rahman(evaluate, timestep, **times, mask=mask, stress_measure=measure)


def within(series: np.ndarray, expected: float, sigmas: float = 4.0) -> None:
    """The mean of [samples, replicas] agrees with the expectation within its standard error."""
    error = standard_error(series)
    assert abs(series.mean() - expected) < sigmas * error, (series.mean(), expected, error)


@pytest.mark.parametrize("mask", MASKS)
def test_ideal_gas_volume_is_gamma_distributed(mask):
    """P V / kT of n atoms without momentum is Gamma(n): mean n, variance n, whatever strain the cell may undergo.

    The ensemble starts in that distribution, every bath variable drawn from its own, and has to stay in it.
    """
    n, replicas, kT, pressure = 5, 500, 0.03, 1e-3
    integrator, neighbors = npt(ideal_gas, mask), no_neighbors()
    keys = jax.random.split(jax.random.PRNGKey(5), replicas)

    def start(key):
        draw, init, bath = jax.random.split(key, 3)
        size = jax.random.gamma(draw, float(n)) * kT / pressure
        shape = jnp.asarray(TRICLINIC / np.cbrt(np.linalg.det(TRICLINIC)))
        system = gas(n, jnp.cbrt(size) * shape)
        state = integrator.init(init, system, neighbors, kT, hydrostatic_stress(pressure))
        return thermal_bath(state, bath, mask)

    _, seen = sample(integrator, jax.jit(jax.vmap(start))(keys), samples=30, every=20)
    reduced = seen["volume"][10:] * pressure / kT
    within(reduced, n)
    within((reduced - n) ** 2, n)
    within(seen["kinetic"][10:], 0.5 * (3 * n - 3) * kT)


def springs(replicas_of: int = 2) -> tuple[System, Potential, object]:
    """Simple cubic crystal of vector springs, its potential and list."""
    n = replicas_of**3
    grid = np.stack(np.meshgrid(*[np.arange(replicas_of)] * 3, indexing="ij"), -1).reshape(-1, 3)
    crystal = System(
        positions=jnp.asarray(SPACING * grid),
        cell=SPACING * replicas_of * jnp.eye(3),
        numbers=jnp.full(n, 18, jnp.int32),
        masses=jnp.asarray(ARGON_MASS * np.linspace(0.5, 2.0, n)),
    )
    neighbors = listed(crystal, SPACING * 1.1, 0.0)
    model = VectorSprings(stiffness=STIFFNESS, cutoff=SPACING * 1.1)
    return crystal, Potential(edge_vectors(crystal, neighbors), model, "springs"), neighbors


def spring_displacements(crystal: System, potential: Potential, neighbors, kT: float, replicas: int) -> np.ndarray:
    """Displacements [replicas, n, 3] from the canonical distribution with the centre of geometry at rest."""
    energy = lambda x: potential.energy(crystal.replace(positions=x.reshape(-1, 3)), neighbors)  # noqa: E731
    curvature = np.asarray(jax.jit(jax.hessian(energy))(crystal.positions.reshape(-1)))
    values, vectors = np.linalg.eigh(curvature)
    assert np.abs(values[:3]).max() < 1e-10 < values[3]
    amplitudes = np.random.default_rng(2).normal(size=(replicas, len(values) - 3)) * np.sqrt(kT / values[3:])
    return (amplitudes @ vectors[:, 3:].T).reshape(replicas, -1, 3)


@pytest.mark.parametrize("mask", ["iso", "diag"])
def test_harmonic_crystal_under_npt(mask):
    """The energy is quadratic in displacements u and cell scales s alike, U = u D u / 2 + sum_k K (s_k - 1)^2 / 2.

    With the measures of the integrator, p(s) ~ exp(-U/kT) for "diag" and s^2 exp(-U/kT) for "iso" at zero pressure, and
    exp(-P V/kT) more under pressure; an ensemble that starts there stays.
    """
    replicas, kT, pressure = 600, 0.03, 0.004
    crystal, potential, neighbors = springs()
    n = crystal.positions.shape[0]
    stiffness = n * STIFFNESS * SPACING**2
    volume = float(SPACING**3 * n)
    random = np.random.default_rng(1)
    grid = np.linspace(0.65, 1.25, 101)  # six widths on either side, eight points a width
    if mask == "iso":
        weight = grid**2 * np.exp(-(1.5 * stiffness * (grid - 1) ** 2 + pressure * volume * grid**3) / kT)
        scales = random.choice(grid, replicas, p=weight / weight.sum())[:, None] * np.ones(3)
        axes = [grid, grid, grid]
    else:
        axes = np.meshgrid(grid, grid, grid, indexing="ij")
        exponent = 0.5 * stiffness * sum((a - 1) ** 2 for a in axes) + pressure * volume * np.prod(axes, axis=0)
        weight = np.exp(-(exponent - exponent.min()) / kT)
        picked = random.choice(weight.size, replicas, p=(weight / weight.sum()).ravel())
        scales = np.stack([a.ravel()[picked] for a in axes], -1)
    weight = weight / weight.sum()
    elastic = float((weight * 0.5 * stiffness * sum((a - 1) ** 2 for a in axes)).sum())
    mean_volume = float((weight * volume * np.prod(axes, axis=0)).sum())
    square_volume = float((weight * (volume * np.prod(axes, axis=0)) ** 2).sum())
    displacements = spring_displacements(crystal, potential, neighbors, kT, replicas)
    integrator = npt(potential.evaluate, mask)

    def start(key, scale, displacement):
        system = crystal.replace(
            positions=crystal.positions * scale[None, :] + displacement, cell=crystal.cell * scale[None, :]
        )
        state = integrator.init(key, system, neighbors, kT, hydrostatic_stress(pressure))
        return thermal_bath(state, jax.random.fold_in(key, 1), mask)

    keys = jax.random.split(jax.random.PRNGKey(6), replicas)
    _, seen = sample(
        integrator,
        jax.jit(jax.vmap(start))(keys, jnp.asarray(scales), jnp.asarray(displacements)),
        samples=25,
        every=20,
    )
    within(seen["kinetic"], 0.5 * (3 * n - 3) * kT)
    within(seen["potential"], 0.5 * (3 * n - 3) * kT + elastic)
    within(seen["volume"], mean_volume)
    within((seen["volume"] - mean_volume) ** 2, square_volume - mean_volume**2)


def test_harmonic_crystal_under_langevin():
    """<U> = (3n - 3) kT / 2 of the springs, <K> = 3n kT / 2 with the free centre of mass."""
    kT, replicas = 0.03, 100
    crystal, potential, neighbors = springs()
    n = crystal.positions.shape[0]
    integrator = nvt_langevin(potential.evaluate, 2.0, friction_per_fs=0.02)
    init = lambda key: integrator.init(key, crystal, neighbors, kT)  # noqa: E731
    states = jax.jit(jax.vmap(init))(jax.random.split(jax.random.PRNGKey(8), replicas))
    _, seen = sample(integrator, states, samples=120, every=20)
    within(seen["potential"][40:], 0.5 * (3 * n - 3) * kT)
    within(seen["kinetic"][40:], 0.5 * 3 * n * kT)
    within((seen["kinetic"][40:] - 1.5 * n * kT) ** 2, 1.5 * n * kT**2)


# physical_validation: an argon crystal of 32 atoms, 16 replicas

EV_UNITS = pv.data.UnitData(
    kb=ase.units.kB,
    energy_str="eV",
    energy_conversion=96.48533,
    length_str="A",
    length_conversion=0.1,
    volume_str="A^3",
    volume_conversion=1e-3,
    temperature_str="K",
    temperature_conversion=1.0,
    pressure_str="eV/A^3",
    pressure_conversion=1602176.6,
    time_str="fs",
    time_conversion=1e-3,
)
REPLICAS, EQUILIBRATION = 16, 80


@functools.cache
def argon() -> tuple[System, object]:
    crystal = argon_crystal(lattice=5.38)  # the equilibrium at 20 K, so that the volume does not ring
    return crystal, listed(crystal, ARGON.cutoff, 2.5)


def argon_run(mask: str | None, kelvin: float, pressure: float, samples: int, seed: int, every: int = 20):
    """Simulate argon (Langevin without a mask) and package it for `physical_validation`; also the raw series."""
    crystal, neighbors = argon()
    n = crystal.positions.shape[0]
    keys = jax.random.split(jax.random.PRNGKey(seed), REPLICAS)
    if mask is None:
        integrator = nvt_langevin(ARGON.evaluate, 8.0, friction_per_fs=0.005)
        init = lambda key, kT, stress: integrator.init(key, crystal, neighbors, kT)  # noqa: E731
    else:
        # this crystal's cell then oscillates with 0.5 ps, as its atoms do: it samples well, and the time step is fine
        integrator = npt(ARGON.evaluate, mask, timestep=8.0, thermostat=150.0, barostat=2000.0)

        def init(key, kT, stress):
            state = integrator.init(key, crystal, neighbors, kT, stress)
            return thermal_bath(state, jax.random.fold_in(key, 1), mask)

    states = jax.jit(jax.vmap(init, (0, None, None)))(keys, kT_of(kelvin), hydrostatic_stress(pressure))
    states, seen = sample(integrator, states, samples=EQUILIBRATION + samples, every=every)
    assert not bool(jax.vmap(needs_rebuild)(states.neighbors, states.system).any())
    seen = {name: values[EQUILIBRATION:] for name, values in seen.items()}
    flat = {name: values.swapaxes(0, 1).reshape(-1) for name, values in seen.items() if values.ndim == 2}
    ensemble = pv.data.EnsembleData(
        "NVT" if mask is None else "NPT",
        natoms=n,
        volume=float(np.linalg.det(crystal.cell)) if mask is None else None,
        pressure=None if mask is None else pressure,
        temperature=kelvin,
    )
    data = pv.data.SimulationData(
        units=EV_UNITS,
        dt=8.0 * every,
        ensemble=ensemble,
        system=pv.data.SystemData(
            natoms=n,
            nconstraints=0,
            ndof_reduction_tra=0 if mask is None else 3,
            ndof_reduction_rot=0,
            mass=np.full(n, ARGON_MASS),
        ),
        observables=pv.data.ObservableData(
            kinetic_energy=flat["kinetic"],
            potential_energy=flat["potential"],
            total_energy=flat["kinetic"] + flat["potential"],
            volume=flat["volume"],
        ),
    )
    return data, seen


def assert_ensembles_differ_as_they_should(first, second) -> None:
    """The slopes of ln p2/p1 agree with the imposed temperatures and pressures within 3 standard errors."""
    quantiles = pv.ensemble.check(first, second, total_energy=False, bootstrap_seed=1, verbosity=0)
    assert max(quantiles) < 3.5, quantiles


def assert_kinetic_energy_is_thermal(data) -> None:
    """Mean and width of the kinetic energy agree with the temperature within 3.5 standard errors."""
    quantiles = pv.kinetic_energy.distribution(data, strict=False, bootstrap_seed=1, verbosity=0)
    assert max(quantiles) < 3.5, quantiles


SIX = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
STRESS_ASKED = np.array([[-0.25, 0.02, 0.0], [0.02, -0.25, 0.015], [0.0, 0.015, -0.33]])  # GPa


def mean_stresses(measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Internal stress times volume, and what acts on the cell from outside, both over the mean volume, in GPa.

    From a crystal of argon that the stress deforms by 5 %.
    """
    crystal = argon_crystal(lattice=5.25)
    neighbors = listed(crystal, ARGON.cutoff, 2.5)
    integrator = npt_parrinello_rahman(
        ARGON.evaluate, 8.0, thermostat_time_fs=150.0, barostat_time_fs=2000.0, stress_measure=measure
    )

    def start(key):
        state = integrator.init(key, crystal, neighbors, kT_of(10.0), jnp.asarray(STRESS_ASKED * GIGAPASCAL))
        return thermal_bath(state, jax.random.fold_in(key, 1), "full")

    def observe(state):
        bath, cell = state.bath, state.system.cell
        still = kT_of(10.0) * jnp.eye(3)  # of the centre of mass, which does not move
        inside = jnp.linalg.det(cell) * total_stress(state) - still
        outside = external_force(bath.external_stress, bath.inverse_reference_cell, cell, measure)
        return inside, outside, jnp.linalg.det(cell)

    states = jax.jit(jax.vmap(start))(jax.random.split(jax.random.PRNGKey(3), 8))
    states, (inside, outside, size) = sample(integrator, states, samples=120, every=10, observe=observe)
    assert not bool(jax.vmap(needs_rebuild)(states.neighbors, states.system).any())
    scale = 1.0 / (size[40:].mean() * GIGAPASCAL)
    return inside[40:] * scale, outside[40:] * scale


def test_mean_internal_stress_is_the_cauchy_stress_that_was_asked_for():
    inside, _ = mean_stresses("cauchy")
    for i, j in SIX:
        assert standard_error(inside[..., i, j]) < 3e-4
        within(inside[..., i, j], STRESS_ASKED[i, j], sigmas=5.0)


@pytest.mark.slow
def test_a_piola_kirchhoff_stress_leads_elsewhere_as_far_as_it_should():
    inside, outside = mean_stresses("piola-kirchhoff")
    for i, j in SIX:
        within(inside[..., i, j] - outside[..., i, j], 0.0, sigmas=5.0)
    assert abs(inside[..., 2, 2].mean() - STRESS_ASKED[2, 2]) > 10 * standard_error(inside[..., 2, 2])


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, *MASKS])
def test_argon_passes_physical_validation(mask):
    samples = 500
    low, _ = argon_run(mask, 20.0, 0.0, samples, 1)
    hot, _ = argon_run(mask, 22.0, 0.0, samples, 2)
    assert_kinetic_energy_is_thermal(low)
    assert_kinetic_energy_is_thermal(hot)
    assert_ensembles_differ_as_they_should(low, hot)
    if mask is not None:
        pressed, _ = argon_run(mask, 20.0, 0.03 * GIGAPASCAL, samples, 3)
        both, _ = argon_run(mask, 22.0, 0.03 * GIGAPASCAL, samples, 4)
        assert_ensembles_differ_as_they_should(low, pressed)
        assert_ensembles_differ_as_they_should(low, both)


# ASE's Martyna-Tobias-Klein barostat on the same crystal


class ToyCalculator(Calculator):
    """The toy potential as an ASE calculator on a fixed list (ASE's barostat leaves positions unwrapped)."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, crystal, neighbors):
        super().__init__()
        self.crystal, self.neighbors = crystal, neighbors
        self.evaluate = jax.jit(ARGON.evaluate)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        system = self.crystal.replace(positions=self.atoms.positions.copy(), cell=self.atoms.cell.array.copy())
        prediction = jax.device_get(self.evaluate(system, self.neighbors))
        self.results = {
            "energy": float(prediction.energy),
            "free_energy": float(prediction.energy),
            "forces": np.asarray(prediction.forces),
            "stress": full_3x3_to_voigt_6_stress(np.asarray(prediction.stress)),
        }


def test_toy_argon_is_ase_s_lennard_jones():
    crystal = argon_crystal(sheared=True)
    crystal = crystal.replace(positions=crystal.positions + jax.random.normal(jax.random.PRNGKey(0), (32, 3)) * 0.1)
    neighbors = listed(crystal, ARGON.cutoff, 0.5)
    atoms = to_ase(crystal)
    atoms.calc = AseLennardJones(epsilon=ARGON.params[0], sigma=ARGON.params[1], rc=6.5, ro=4.5, smooth=True)
    ours = ARGON.evaluate(crystal, neighbors)
    np.testing.assert_allclose(float(ours.energy), atoms.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(ours.forces, atoms.get_forces(), atol=1e-12)
    np.testing.assert_allclose(ours.stress, atoms.get_stress(voigt=False), atol=1e-14)


@pytest.mark.slow
def test_volumes_are_those_of_ase_s_barostat():
    kelvin, pressure, runs, steps = 20.0, 0.01 * GIGAPASCAL, 10, 2000
    crystal, neighbors = argon()
    n = crystal.positions.shape[0]
    volumes = np.zeros((runs, steps // 10))
    for run in range(runs):
        atoms = to_ase(crystal)
        atoms.calc = ToyCalculator(crystal, neighbors)
        MaxwellBoltzmannDistribution(atoms, temperature_K=kelvin, rng=np.random.default_rng(run))
        Stationary(atoms, preserve_temperature=False)
        dynamics = IsotropicMTKNPT(
            atoms,
            timestep=8.0 * ase.units.fs,
            temperature_K=kelvin,
            pressure_au=pressure,
            tdamp=150.0 * ase.units.fs,
            pdamp=2000.0 * ase.units.fs,
        )
        # ASE counts 3n degrees of freedom though the momentum it was given is zero; 3n - 3 are there to be heated
        dynamics._num_atoms_global = dynamics._thermostat._num_atoms_global = n - 1
        dynamics.run(1000)
        for sample_index in range(steps // 10):
            dynamics.run(10)
            volumes[run, sample_index] = atoms.get_volume()
    _, ours = argon_run("iso", kelvin, pressure, 300, 11)
    theirs = volumes.T
    for power in (1, 2):
        # first the mean, then the variance about a common centre
        a = theirs if power == 1 else (theirs - theirs.mean()) ** 2
        b = ours["volume"] if power == 1 else (ours["volume"] - ours["volume"].mean()) ** 2
        error = np.hypot(standard_error(a), standard_error(b))
        assert abs(a.mean() - b.mean()) < 4 * error, (power, a.mean(), b.mean(), error)
