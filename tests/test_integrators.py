"""Mechanics of the integrators: reversibility, conservation, covariance, masks, batches, agreement with jax-md."""

from __future__ import annotations

import dataclasses
import functools
from typing import get_args

import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import simulate
from toy_potentials import (
    argon_crystal,
    gas,
    ideal_gas,
    kT_of,
    lennard_jones,
    listed,
    no_neighbors,
    replicate,
    sample,
    thermal_bath,
)

from jaxpto.errors import InputError
from jaxpto.integrators import (
    ENSEMBLES,
    EnsembleName,
    hydrostatic_stress,
    kinetic_energy,
    npt_parrinello_rahman,
    nve,
    nvt_langevin,
    temperature,
    total_stress,
)
from jaxpto.integrators.external_stress import deviatoric_work, external_force, potential_work
from jaxpto.md.config import PRESETS, SweepConfig
from jaxpto.md.preparation import method_of
from jaxpto.neighbors import needs_rebuild
from jaxpto.system import volume
from jaxpto.units import BOLTZMANN, FEMTOSECOND, GIGAPASCAL

ARGON = lennard_jones()
KEY = jax.random.PRNGKey(0)
MASKS = ["iso", "diag", "full"]
STRESS = GIGAPASCAL * jnp.array([[-0.10, 0.03, -0.02], [0.03, -0.12, 0.01], [-0.02, 0.01, -0.15]])
"""Hydrostatic and deviatoric, no symmetry, as strong as solid argon bears."""


FAR = jnp.array([[0.1, 0.3, -0.2], [-0.1, -0.1, 0.4], [0.2, -0.3, 0.2]])
"""A deformation far from none, less the identity."""
MEASURES = ["cauchy", "piola-kirchhoff"]


@functools.cache
def npt(timestep: float = 5.0, mask: str = "full", measure: str = "cauchy"):
    times = {"thermostat_time_fs": 100.0, "barostat_time_fs": 300.0}
    return npt_parrinello_rahman(ARGON.evaluate, timestep, **times, mask=mask, stress_measure=measure)


@functools.cache
def crystal_and_list(sheared: bool):
    crystal = argon_crystal(sheared=sheared)
    return crystal, listed(crystal, ARGON.cutoff, 2.5)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _npt_state(integrator, mask, crystal, neighbors):
    state = integrator.init(KEY, crystal, neighbors, kT_of(20.0), STRESS)
    state = thermal_bath(state, jax.random.PRNGKey(1), mask)
    # as if the run had begun in another cell: there the two stress measures differ, and neither is the other's limit
    elsewhere = jnp.linalg.inv(crystal.cell @ (jnp.eye(3) + FAR))
    return state.replace(bath=state.bath.replace(inverse_reference_cell=elsewhere))


def npt_state(integrator, mask: str = "full"):
    """Sheared argon at 20 K with every bath variable in motion."""
    return _npt_state(integrator, mask, *crystal_and_list(True))


@functools.partial(jax.jit, static_argnums=(0, 2))
def advance(integrator, state, steps: int):
    return jax.lax.scan(lambda c, _: (integrator.apply(c), None), state, None, length=steps)[0]


@functools.partial(jax.jit, static_argnums=(0, 2))
def _invariants(integrator, state, steps: int):
    def one(current, _):
        current = integrator.apply(current)
        return current, integrator.invariant(current)

    return jax.lax.scan(one, state, None, length=steps)


def invariants(integrator, state, steps: int):
    last, values = _invariants(integrator, state, steps)
    assert bool(jnp.isfinite(values).all())
    assert not bool(needs_rebuild(last.neighbors, last.system))
    first = np.asarray(integrator.invariant(state))
    return last, np.concatenate([first[None], np.asarray(values)])


@pytest.mark.parametrize(("mask", "measure"), [("iso", "cauchy"), ("diag", "cauchy"), *(("full", m) for m in MEASURES)])
def test_npt_runs_backwards(mask, measure):
    integrator = npt(mask=mask, measure=measure)
    start = npt_state(integrator, mask)
    end = advance(integrator, start, 100)
    bath = end.bath
    turned = end.replace(
        momenta=-end.momenta,
        bath=bath.replace(
            strain_rate=-bath.strain_rate,
            particle_chain=bath.particle_chain.replace(momentum=-bath.particle_chain.momentum),
            cell_chain=bath.cell_chain.replace(momentum=-bath.cell_chain.momentum),
        ),
    )
    back = advance(integrator, turned, 100)
    assert np.abs(end.system.positions - start.system.positions).max() > 0.1  # it did move
    np.testing.assert_allclose(back.system.positions, start.system.positions, atol=1e-9)
    np.testing.assert_allclose(back.system.cell, start.system.cell, atol=1e-10)
    np.testing.assert_allclose(-back.momenta, start.momenta, atol=1e-9)
    np.testing.assert_allclose(back.bath.particle_chain.position, 0.0, atol=1e-9)
    np.testing.assert_allclose(back.bath.cell_chain.position, 0.0, atol=1e-9)
    if measure == "cauchy":
        assert (abs(end.bath.deviatoric_work) > 1e-3) == (mask != "iso")  # which a change of volume does not do
        np.testing.assert_allclose(back.bath.deviatoric_work, 0.0, atol=1e-12)


@pytest.mark.parametrize(("mask", "measure"), [("iso", "cauchy"), ("diag", "cauchy"), *(("full", m) for m in MEASURES)])
def test_npt_invariant_is_second_order(mask, measure):
    errors = {}
    start = npt_state(npt(mask=mask, measure=measure), mask)  # no time step enters it
    for timestep in (8.0, 4.0):
        _, values = invariants(npt(timestep, mask, measure), start, int(1600 / timestep))
        errors[timestep] = np.sqrt(np.mean((values - values[0]) ** 2))
    assert 3.4 < errors[8.0] / errors[4.0] < 4.6, errors
    assert errors[4.0] < 0.01 * 32 * kT_of(20.0), errors


def test_nve_invariant_is_second_order():
    crystal, neighbors = crystal_and_list(True)
    errors = {}
    for timestep in (8.0, 4.0):
        integrator = nve(ARGON.evaluate, timestep)
        start = jax.jit(integrator.init)(KEY, crystal, neighbors, kT_of(20.0))
        _, values = invariants(integrator, start, int(1600 / timestep))
        errors[timestep] = np.sqrt(np.mean((values - values[0]) ** 2))
    assert 3.4 < errors[8.0] / errors[4.0] < 4.6, errors


def test_langevin_effective_energy_keeps_what_the_total_energy_does_not():
    crystal, neighbors = crystal_and_list(False)
    errors = {}
    for timestep in (8.0, 4.0):
        integrator = nvt_langevin(ARGON.evaluate, timestep, friction_per_fs=0.01)
        state = jax.jit(integrator.init)(KEY, crystal, neighbors, kT_of(40.0))
        end, values = invariants(integrator, state, int(1600 / timestep))
        errors[timestep] = np.abs(values - values[0]).max()
        # the crystal starts without potential energy above its minimum: the bath has to give half of 3n kT
        assert float(end.bath.heat) > 0.2 * 3 * 32 * kT_of(40.0)
    assert errors[4.0] < 0.01 * 3 * 32 * kT_of(40.0), errors
    assert errors[8.0] / errors[4.0] > 2.5, errors


@pytest.mark.parametrize("mask", ["iso", "full"])
def test_npt_trajectory_turns_with_the_frame(mask):
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    integrator = npt(mask=mask)
    start = npt_state(integrator, mask)
    turn = lambda rows: rows @ rotation.T  # noqa: E731
    crystal = start.system.replace(positions=turn(start.system.positions), cell=turn(start.system.cell))
    turned = jax.jit(integrator.init)(KEY, crystal, start.neighbors, kT_of(20.0), rotation @ STRESS @ rotation.T)
    bath = start.bath.replace(
        strain_rate=rotation @ start.bath.strain_rate @ rotation.T,
        external_stress=turned.bath.external_stress,
        inverse_reference_cell=rotation @ start.bath.inverse_reference_cell,
    )
    turned = turned.replace(momenta=turn(start.momenta), bath=bath)
    end, turned_end = advance(integrator, start, 100), advance(integrator, turned, 100)
    np.testing.assert_allclose(turned_end.system.cell, turn(end.system.cell), atol=1e-9)
    np.testing.assert_allclose(turned_end.system.positions, turn(end.system.positions), atol=1e-9)


@pytest.mark.parametrize("mask", MASKS)
def test_npt_strains_only_what_the_mask_allows(mask):
    integrator = npt(mask=mask)
    start = npt_state(integrator, mask)
    end = advance(integrator, start, 100)
    strain = np.linalg.inv(start.system.cell) @ np.asarray(end.system.cell) - np.eye(3)
    off_diagonal = np.abs(strain - np.diag(np.diag(strain))).max()
    spread = np.ptp(np.diag(strain))
    assert np.abs(np.diag(strain)).max() > 1e-3
    assert (off_diagonal > 1e-3) if mask == "full" else (off_diagonal < 1e-14)
    assert (spread < 1e-14) if mask == "iso" else (spread > 1e-3)
    rate = np.asarray(end.bath.strain_rate)
    np.testing.assert_allclose(rate, rate.T, atol=1e-16)


def strained(strain) -> jax.Array:
    return crystal_and_list(True)[0].cell @ (jnp.eye(3) + strain)


def test_piola_kirchhoff_force_is_the_derivative_of_its_work():
    cell = strained(FAR)
    given = STRESS, jnp.linalg.inv(strained(0.0 * FAR))
    work = lambda strain: potential_work(*given, cell @ (jnp.eye(3) + strain), "piola-kirchhoff")  # noqa: E731
    gradient = jax.grad(work)(jnp.zeros((3, 3)))
    force = external_force(*given, cell, "piola-kirchhoff")
    np.testing.assert_allclose(force, -0.5 * (gradient + gradient.T), atol=1e-13)


def test_cauchy_force_is_the_present_volume_times_the_stress_and_its_work_depends_on_the_path():
    cell, reference = strained(FAR), jnp.linalg.inv(strained(0.0 * FAR))
    np.testing.assert_allclose(
        external_force(STRESS, reference, cell, "cauchy"), np.linalg.det(cell) * STRESS, rtol=1e-13
    )
    undeformed = [external_force(STRESS, reference, strained(0.0 * FAR), measure) for measure in MEASURES]
    np.testing.assert_allclose(*undeformed, rtol=1e-12)

    def work(*strains):
        """Along steps of one strain after the other: of the pressure by the volume, of the rest summed up."""
        present, total = cell, 0.0
        for strain in strains:
            for _ in range(200):
                after = present @ jax.scipy.linalg.expm(strain / 200)
                total += deviatoric_work(STRESS, strain / 200, present, after)
                present = after
        return float(total + potential_work(STRESS, reference, present, "cauchy"))

    x, y = jnp.diag(jnp.array([0.1, 0.0, 0.0])), jnp.diag(jnp.array([0.0, 0.1, 0.0]))
    # closed form: a strain e along x alone takes V to V exp(e), with the work -V s_xx (exp(e) - 1) of the whole stress
    size = float(np.linalg.det(cell)) * (np.exp(0.1) - 1.0)
    at_start = float(potential_work(STRESS, reference, cell, "cauchy"))
    for steps, first, second in (((x, y), STRESS[0, 0], STRESS[1, 1]), ((y, x), STRESS[1, 1], STRESS[0, 0])):
        np.testing.assert_allclose(work(*steps) - at_start, -size * (first + np.exp(0.1) * second), rtol=1e-6)
    np.testing.assert_allclose(work(x, -x), at_start, rtol=1e-12)


def test_both_measures_of_a_pressure_are_one():
    ends = []
    for measure in MEASURES:
        integrator = npt(mask="full", measure=measure)
        state = npt_state(integrator, "full")
        bath = state.bath.replace(external_stress=hydrostatic_stress(0.1 * GIGAPASCAL))
        end = advance(integrator, state.replace(bath=bath), 100)
        ends.append((end, float(integrator.invariant(end))))
    (one, energy), (other, same) = ends
    np.testing.assert_allclose(one.system.positions, other.system.positions, atol=1e-10)
    np.testing.assert_allclose(one.system.cell, other.system.cell, atol=1e-10)
    np.testing.assert_allclose(one.bath.deviatoric_work, 0.0, atol=1e-14)
    assert other.bath.deviatoric_work is None
    np.testing.assert_allclose(energy, same, atol=1e-10)


def test_npt_total_momentum_is_zero_even_with_a_net_force():
    def pushed(system, neighbors):
        prediction = ARGON.evaluate(system, neighbors)
        return prediction.replace(forces=prediction.forces + 0.01)

    for evaluate in (ARGON.evaluate, pushed):
        integrator = npt_parrinello_rahman(evaluate, 5.0, thermostat_time_fs=100.0, barostat_time_fs=300.0, mask="full")
        end = advance(integrator, npt_state(integrator), 100)
        assert np.abs(end.momenta.sum(axis=0)).max() < 1e-12
        assert float(kinetic_energy(end)) > 0.0


def test_momenta_are_thermal_and_without_drift():
    crystal = argon_crystal()
    masses = crystal.masses * jnp.linspace(0.3, 4.0, 32)
    crystal = crystal.replace(masses=masses)
    neighbors = no_neighbors()
    for integrator, more, freedom in (
        (nve(ideal_gas, 1.0), (), 93),
        (npt(), (STRESS,), 93),
        (nvt_langevin(ideal_gas, 1.0, friction_per_fs=0.01), (), 96),
    ):
        init = lambda key: integrator.init(key, crystal, neighbors, 0.025, *more)  # noqa: B023, E731
        states = jax.jit(jax.vmap(init))(jax.random.split(KEY, 4000))
        kinetic = np.asarray(jax.vmap(kinetic_energy)(states))
        assert states.bath.degrees_of_freedom == freedom
        expected = 0.5 * freedom * 0.025
        assert abs(kinetic.mean() - expected) < 4 * kinetic.std() / np.sqrt(4000)
        np.testing.assert_allclose(kinetic.var(), expected * 0.025, rtol=0.1)
        np.testing.assert_allclose(
            np.asarray(jax.vmap(temperature)(states)), 2 * kinetic / (freedom * ase.units.kB), rtol=1e-12
        )
        drift = np.abs(np.asarray(states.momenta.sum(axis=1))).max()
        assert (drift > 1.0) if freedom == 96 else (drift < 1e-12)


def test_total_stress_is_ase_s():
    state = npt_state(npt())
    stress = np.asarray(total_stress(state))
    velocities = np.asarray(state.momenta) / np.asarray(state.system.masses)[:, None]
    kinetic = np.asarray(state.momenta).T @ velocities / float(volume(state.system.cell))
    np.testing.assert_allclose(-stress, kinetic - np.asarray(state.prediction.stress), atol=1e-15)
    assert np.linalg.eigvalsh(kinetic).min() > 0.0


def test_langevin_is_jax_md_s():
    crystal, neighbors = crystal_and_list(False)
    integrator = nvt_langevin(ARGON.evaluate, 5.0, friction_per_fs=0.01)
    state = jax.jit(integrator.init)(KEY, crystal, neighbors, kT_of(40.0))
    _, their_apply = simulate.nvt_langevin(
        lambda positions, **_: ARGON.evaluate(crystal.replace(positions=positions), neighbors).forces,
        lambda positions, displacement, **_: positions + displacement,
        dt=5.0 * FEMTOSECOND,
        kT=kT_of(40.0),
        gamma=0.01 / FEMTOSECOND,
    )
    theirs = simulate.NVTLangevinState(
        crystal.positions, state.momenta, state.prediction.forces, crystal.masses[:, None], state.key
    )
    for _ in range(20):
        theirs = their_apply(theirs)
    ours = advance(integrator, state, 20)
    np.testing.assert_allclose(ours.system.positions, theirs.position, atol=1e-12)
    np.testing.assert_allclose(ours.momenta, theirs.momentum, atol=1e-11)
    np.testing.assert_array_equal(ours.key, theirs.rng)


def test_a_batch_is_its_members():
    kelvin = np.array([20.0, 40.0, 60.0])
    pressure = np.array([0.0, 0.05, 0.1]) * GIGAPASCAL
    crystal, neighbors = crystal_and_list(True)
    keys = jax.random.split(KEY, 3)
    for integrator, more in (
        (npt(), lambda r: (hydrostatic_stress(pressure[r]),)),
        (nvt_langevin(ARGON.evaluate, 5.0, friction_per_fs=0.01), lambda r: ()),
    ):
        init = jax.jit(integrator.init)
        singles = [init(keys[r], crystal, neighbors, kT_of(kelvin[r]), *more(r)) for r in range(3)]
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
        batch, _ = sample(integrator, batch, samples=1, every=50)
        for r in range(3):
            single = advance(integrator, singles[r], 50)
            np.testing.assert_allclose(batch.system.positions[r], single.system.positions, atol=1e-11)
            np.testing.assert_allclose(batch.system.cell[r], single.system.cell, atol=1e-11)
            np.testing.assert_allclose(batch.momenta[r], single.momenta, atol=1e-10)


def test_noise_of_replicas_is_uncorrelated():
    crystal = argon_crystal()
    neighbors = no_neighbors()
    integrator = nvt_langevin(ideal_gas, 5.0, friction_per_fs=0.1)
    keys = jax.vmap(lambda r: jax.random.fold_in(KEY, r))(jnp.arange(4))
    states = jax.jit(jax.vmap(lambda key: integrator.init(key, crystal, neighbors, kT_of(40.0))))(keys)
    _, momenta = sample(integrator, states, samples=100, every=10, observe=lambda s: s.momenta)
    series = momenta.transpose(1, 0, 2, 3).reshape(4, -1)
    correlation = np.corrcoef(series)
    # velocities forget 63 % from sample to sample: about half of the 9600 numbers are independent
    assert np.abs(correlation - np.eye(4)).max() < 4.5 / np.sqrt(series.shape[1] * (1 - np.exp(-1.0)) / 2)
    assert np.unique(series[:, :96], axis=0).shape[0] == 4


def test_replicas_reach_their_own_temperature_and_pressure():
    kelvin, pressure = np.array([15.0, 30.0, 30.0]), np.array([0.0, 0.0, 0.2]) * GIGAPASCAL
    crystal, neighbors = crystal_and_list(False)
    integrator = npt(8.0, "iso")
    init = lambda key, kT, stress: integrator.init(key, crystal, neighbors, kT, stress)  # noqa: E731
    stresses = jnp.stack([hydrostatic_stress(p) for p in pressure])
    states = jax.jit(jax.vmap(init))(jax.random.split(KEY, 3), jnp.asarray(kT_of(1.0) * kelvin), stresses)
    states, seen = sample(integrator, states, samples=150, every=20)
    assert not bool(jax.vmap(needs_rebuild)(states.neighbors, states.system).any())
    measured = 2 * seen["kinetic"][50:].mean(axis=0) / (93 * ase.units.kB)
    np.testing.assert_allclose(measured, kelvin, rtol=0.06)
    volumes = seen["volume"][50:].mean(axis=0)
    assert volumes[1] > volumes[0] * 1.005  # thermal expansion
    assert volumes[2] < volumes[1] * 0.97  # 0.2 GPa against a modulus of about 2 GPa


def test_float32_stays_float32_and_conserves():
    crystal = argon_crystal(sheared=True, dtype=jnp.float32)
    neighbors = listed(crystal, ARGON.cutoff, 2.5)
    potential = lennard_jones()
    for integrator, more in (
        (npt(4.0), (STRESS.astype(jnp.float32),)),
        (nvt_langevin(potential.evaluate, 4.0, friction_per_fs=0.01), ()),
        (nve(potential.evaluate, 4.0), ()),
    ):
        start = jax.jit(integrator.init)(KEY, crystal, neighbors, kT_of(20.0), *more)
        _, values = invariants(integrator, start, 1000)
        floats = [leaf.dtype for leaf in jax.tree.leaves(start) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert set(floats) == {jnp.dtype("float32")}
        assert values.dtype == np.float32
        slope = np.polyfit(np.arange(len(values)), values, 1)[0] * len(values)
        assert abs(slope) < 0.01 * 3 * 32 * kT_of(20.0)


def test_pto_test_preset_is_the_paper_s():
    preset = PRESETS["pto-test"]
    assert preset.pfactor == 75**2 * ase.units.fs
    assert (preset.timestep, preset.thermostat_time, preset.mask) == (2.0, 25.0, "diag")
    system = gas(10, 20.0 * jnp.eye(3))
    state = method_of(preset)(ideal_gas).init(KEY, system, no_neighbors(), 0.03, hydrostatic_stress(0.0))
    np.testing.assert_allclose(state.bath.cell_mass, 75**2 * ase.units.fs * 8000.0)
    np.testing.assert_allclose(state.bath.particle_chain.mass[0], 27 * 0.03 * (25 * ase.units.fs) ** 2, rtol=1e-6)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_integrator_does_as_its_entry_says(name):
    """With the settings of a default simulation: degrees of freedom, momentum, cell, invariant."""
    facts, config = ENSEMBLES[name], SweepConfig(ensemble=name)
    assert name in get_args(EnsembleName)
    assert {*facts.settings.values()} <= {field.name for field in dataclasses.fields(SweepConfig)}
    crystal, neighbors = crystal_and_list(True)
    integrator = method_of(config)(ARGON.evaluate)
    stress = (hydrostatic_stress(0.0),) if facts.flexible_cell else ()
    state = integrator.init(KEY, crystal, neighbors, kT_of(40.0), *stress)
    n = len(crystal.masses)
    assert state.bath.degrees_of_freedom == facts.degrees_of_freedom(n)
    after = advance(integrator, state, 20)
    for one in (state, after):
        drift = float(jnp.abs(one.momenta.sum(axis=0)).max())
        assert (drift < 1e-10) is facts.momentum_at_rest
        expected = 2.0 * float(kinetic_energy(one)) / (facts.degrees_of_freedom(n) * BOLTZMANN)
        np.testing.assert_allclose(temperature(one), expected, rtol=1e-12)
    assert bool(jnp.any(after.system.cell != state.system.cell)) is facts.flexible_cell
    assert int(after.step) == 20
    assert abs(float(integrator.invariant(after) - integrator.invariant(state))) < 1e-3 * n * kT_of(40.0)


def test_bad_parameters_are_refused():
    one = gas(1, 5.0 * jnp.eye(3))
    times = {"thermostat_time_fs": 100.0, "barostat_time_fs": 300.0}
    for broken, word in (
        (lambda: nve(ideal_gas, 0.0), "timestep"),
        (lambda: nve(ideal_gas, float("nan")), "timestep"),
        (lambda: nvt_langevin(ideal_gas, -2.0, friction_per_fs=0.01), "timestep"),
        (lambda: nvt_langevin(ideal_gas, 2.0, friction_per_fs=0.0), "friction"),
        (lambda: npt_parrinello_rahman(ideal_gas, 2.0, thermostat_time_fs=0.0, pfactor=1.0), "thermostat"),
        (lambda: npt_parrinello_rahman(ideal_gas, 2.0, thermostat_time_fs=100.0), "exactly one"),
        (lambda: npt_parrinello_rahman(ideal_gas, 2.0, **times, pfactor=1.0), "exactly one"),
        (lambda: npt_parrinello_rahman(ideal_gas, 2.0, thermostat_time_fs=100.0, pfactor=-1.0), "pfactor"),
        (lambda: npt_parrinello_rahman(ideal_gas, 2.0, **times, chain_length=1), "chain length"),
        (
            lambda: npt_parrinello_rahman(ideal_gas, 2.0, **times).init(KEY, one, no_neighbors(), 0.03, STRESS),
            "npt of 1 atom",
        ),
        (lambda: nve(ideal_gas, 2.0).init(KEY, one, no_neighbors(), 0.03), "nve of 1 atom"),
    ):
        with pytest.raises(InputError, match=word):
            broken()


def test_replicated_states_stay_equal():
    integrator = npt()
    states, _ = sample(integrator, replicate(npt_state(integrator), 2), samples=1, every=20)
    np.testing.assert_array_equal(states.system.positions[0], states.system.positions[1])
