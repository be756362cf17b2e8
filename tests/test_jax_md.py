"""Energy functions of jax-md as potentials, against jax-md with its own neighbour lists."""

from __future__ import annotations

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import energy, partition, quantity, space

import jaxpto
from jaxpto.errors import InputError
from jaxpto.reporting.provenance import fingerprint
from jaxpto.units import BOLTZMANN

SILICON_CUTOFF = 3.77118
EPSILON, SIGMA = 0.0104, 3.4


def deformed(atoms: ase.Atoms) -> ase.Atoms:
    """Triclinic, rattled, and with atoms outside of the cell."""
    atoms.set_cell(atoms.cell.array @ [[1.01, 0.02, -0.01], [0.0, 0.99, 0.03], [0.02, 0.0, 1.0]], scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    atoms.positions[3] += atoms.cell.array[0] - 2 * atoms.cell.array[2]
    return atoms


def silicon() -> ase.Atoms:
    return deformed(ase.build.bulk("Si", "diamond", a=5.43, cubic=True).repeat(2))


def argon() -> ase.Atoms:
    return deformed(ase.build.bulk("Ar", "fcc", a=5.3, cubic=True).repeat(3))


def box_of(atoms: ase.Atoms) -> jax.Array:
    return jnp.asarray(atoms.cell.array.T)


def compare(atoms: ase.Atoms, potential: jaxpto.Potential, neighbor_fn, energy_fn, fractional: bool) -> None:
    """Energy, forces and stress against jax-md's derivatives over jax-md's own list."""
    places = atoms.get_scaled_positions() if fractional else atoms.get_positions(wrap=True)
    places, box = jnp.asarray(places), box_of(atoms)
    with jax.numpy_rank_promotion("allow"):
        listed = {} if neighbor_fn is None else {"neighbor": neighbor_fn.allocate(places, box=box)}
        value, slope = jax.jit(jax.value_and_grad(lambda at: energy_fn(at, box=box, **listed)))(places)
        stress = -jax.jit(lambda at: quantity.stress(energy_fn, at, box, **listed))(places)
        system = jaxpto.from_ase(atoms, np.float64)
        neighbors = jaxpto.build(system, potential.allocate([system], 0.5))
        found = jax.jit(potential.evaluate)(system, neighbors)
    assert float(found.energy) == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose(found.forces, -slope, atol=1e-11)
    np.testing.assert_allclose(found.stress, stress, atol=1e-13)


@pytest.mark.parametrize("fractional", [True, False])
def test_stillinger_weber_silicon(fractional):
    atoms = silicon()
    displacement, _ = space.periodic_general(box_of(atoms), fractional_coordinates=fractional)
    neighbor_fn, energy_fn = energy.stillinger_weber_neighbor_list(
        displacement, box_of(atoms), fractional_coordinates=fractional, disable_cell_list=True
    )
    potential = jaxpto.potential_from_jax_md(
        energy_fn, cutoff=SILICON_CUTOFF, name="sw", format=partition.Dense, fractional_coordinates=fractional
    )
    compare(atoms, potential, neighbor_fn, energy_fn, fractional)


@pytest.mark.parametrize("format", [partition.Sparse, partition.OrderedSparse, partition.Dense, None])
def test_lennard_jones_argon(format):
    atoms, options = argon(), {"sigma": SIGMA, "epsilon": EPSILON, "r_onset": 1.8, "r_cutoff": 2.2}
    displacement, _ = space.periodic_general(box_of(atoms))
    if format is None:
        neighbor_fn, energy_fn = None, energy.lennard_jones_pair(displacement, **options)
    else:
        neighbor_fn, energy_fn = energy.lennard_jones_neighbor_list(
            displacement, box_of(atoms), **options, format=format, fractional_coordinates=True, disable_cell_list=True
        )
    potential = jaxpto.potential_from_jax_md(energy_fn, cutoff=2.2 * SIGMA, name="argon", format=format)
    compare(atoms, potential, neighbor_fn, energy_fn, True)


def silicon_potential(atoms: ase.Atoms, **options: float) -> tuple[jaxpto.Potential, jax.Array]:
    displacement, _ = space.periodic_general(box_of(atoms))
    _, energy_fn = energy.stillinger_weber_neighbor_list(displacement, box_of(atoms), **options)
    potential = jaxpto.potential_from_jax_md(energy_fn, cutoff=SILICON_CUTOFF, name="sw", format=partition.Dense)
    return potential, energy_fn


def test_the_hessian_is_that_of_jax_md():
    atoms = silicon()
    potential, _ = silicon_potential(atoms)
    displacement, _ = space.periodic_general(box_of(atoms), fractional_coordinates=False)
    full = energy.stillinger_weber(displacement)
    with jax.numpy_rank_promotion("allow"):
        places = jnp.asarray(atoms.positions)
        one = lambda at: jax.grad(full)(places.at[5].set(at))  # noqa: E731
        expected = jax.jit(jax.jacrev(one))(places[5])
        system = jaxpto.from_ase(atoms, np.float64)
        neighbors = jaxpto.build(system, potential.allocate([system], 0.0))
        found = jaxpto.force_constants(potential, system, neighbors, jnp.asarray([5]), batch=3)
    np.testing.assert_allclose(found[0], expected.transpose(0, 2, 1), atol=1e-9)


@pytest.mark.parametrize("ensemble", ["nve", "npt"])
def test_dynamics_conserve_what_they_should(ensemble):
    atoms = silicon()
    potential, _ = silicon_potential(atoms)
    system = jaxpto.from_ase(atoms, np.float64)
    neighbors = jaxpto.build(system, potential.allocate([system], 1.0))
    kT = jnp.asarray(300.0 * BOLTZMANN)
    strays = []
    for steps in (100, 200):
        timestep = 100.0 / steps  # fs
        if ensemble == "nve":
            integrator, further = jaxpto.nve(potential.evaluate, timestep), ()
        else:
            integrator = jaxpto.npt_parrinello_rahman(
                potential.evaluate, timestep, thermostat_time_fs=100.0, barostat_time_fs=500.0, mask="full"
            )
            further = (jaxpto.hydrostatic_stress(0.0),)
        with jax.numpy_rank_promotion("allow"):
            state = integrator.init(jax.random.PRNGKey(0), system, neighbors, kT, *further)
            start = integrator.invariant(state)
            advance = lambda _, state, step=integrator.apply: step(state)  # noqa: E731
            state = jax.jit(lambda state, n=steps, body=advance: jax.lax.fori_loop(0, n, body, state))(state)
            assert not jaxpto.needs_rebuild(state.neighbors, state.system)
            strays.append(abs(float(integrator.invariant(state) - start)))
            assert abs(state.prediction.energy - potential.energy(system, neighbors)) > 0.1
    assert strays[0] < 5e-3  # of 2.5 eV of kinetic energy
    assert strays[0] / strays[1] == pytest.approx(4.0, rel=0.1)  # of second order in the time step


def test_what_the_nearest_image_cannot_do_is_refused():
    atoms = ase.build.bulk("Si", "diamond", a=5.43, cubic=True)
    potential, _ = silicon_potential(atoms)
    with pytest.raises(InputError, match=r"5\.43 A wide.*twice its cutoff, 7\.542"):
        jaxpto.JaxptoCalculator(potential).get_potential_energy(atoms)
    with jax.numpy_rank_promotion("allow"):
        system = jaxpto.from_ase(atoms, np.float64)
        prediction = potential.evaluate(system, jaxpto.build(system, potential.allocate([system], 0.0)))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(prediction))  # a cell that has shrunk in a run


def test_a_space_that_knows_no_box_and_coordinates_of_the_other_kind_are_refused():
    atoms = silicon()
    displacement, _ = space.periodic(10.86)
    _, energy_fn = energy.stillinger_weber_neighbor_list(displacement, 10.86)
    fixed = jaxpto.potential_from_jax_md(energy_fn, cutoff=SILICON_CUTOFF, name="sw", format=partition.Dense)
    _, energy_fn = silicon_potential(atoms)
    swapped = jaxpto.potential_from_jax_md(
        energy_fn, cutoff=SILICON_CUTOFF, name="sw", format=partition.Dense, fractional_coordinates=False
    )
    with jax.numpy_rank_promotion("allow"):
        with pytest.raises(InputError, match="UnexpectedBox"):
            jaxpto.JaxptoCalculator(fixed).get_potential_energy(atoms)
        with pytest.raises(InputError, match="not periodic"):
            jaxpto.JaxptoCalculator(swapped).get_potential_energy(atoms)


def test_captured_parameters_are_part_of_the_fingerprint():
    atoms = silicon()
    same, again, other = (silicon_potential(atoms, lam=lam)[0] for lam in (21.0, 21.0, 22.0))
    assert fingerprint(same) == fingerprint(again) != fingerprint(other)


def test_a_sweep_runs_with_jax_md(tmp_path):
    atoms = ase.build.bulk("Si", "diamond", a=5.43, cubic=True).repeat(2)
    ase.io.write(tmp_path / "silicon.extxyz", atoms)
    potential, _ = silicon_potential(atoms)
    config = jaxpto.SweepConfig(
        str(tmp_path / "silicon.extxyz"), temperatures=(300.0, 600.0), steps=20, sample_every=10, timestep=1.0,
        mask="full", out=str(tmp_path / "run"), devices=1,
    )  # fmt: skip
    with jax.numpy_rank_promotion("allow"):
        folder = jaxpto.run_sweep(config, potential)
    assert (folder / "summary.csv").is_file()
