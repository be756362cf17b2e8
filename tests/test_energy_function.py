"""Functions of the user as potentials: everything follows from the energy, and what is wrong with one is said."""

from __future__ import annotations

import functools
import json
import pathlib
import subprocess
import sys

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import jaxpto
from jaxpto import Neighbors, System
from jaxpto.errors import InputError
from jaxpto.models.energy_function import probe
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.reporting.provenance import fingerprint

CUTOFF, ONSET = 6.0, 5.0
PARAMS = {"epsilon": 0.0104, "sigma": 3.4}


def argon_energy(params: dict[str, Array], system: System, neighbors: Neighbors) -> Array:
    squared = jnp.sum(jaxpto.edge_vectors(system, neighbors) ** 2, axis=-1)
    x = jnp.clip((jnp.sqrt(squared) - ONSET) / (CUTOFF - ONSET), 0.0, 1.0)
    sixth = (params["sigma"] ** 2 / squared) ** 3
    return 2.0 * params["epsilon"] * jnp.sum((sixth**2 - sixth) * (1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x**2)))


def argon(**changes: float) -> jaxpto.Potential:
    return jaxpto.potential_from_energy(argon_energy, PARAMS | changes, cutoff=CUTOFF, name="my-argon", elements=["Ar"])


@pytest.fixture(scope="module")
def crystal() -> ase.Atoms:
    """Sheared and rattled, with a cell narrower than the cutoff: several images of one pair."""
    atoms = ase.build.bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.set_cell(atoms.cell.array @ [[1.01, 0.02, -0.01], [0.0, 0.99, 0.03], [0.02, 0.0, 1.0]], scale_atoms=True)
    atoms.rattle(0.1, seed=3)
    return atoms


def test_forces_stress_and_hessian_are_those_of_the_same_model_in_the_catalogue(crystal):
    known = lennard_jones(["Ar"], [PARAMS["epsilon"]], [PARAMS["sigma"]], CUTOFF, ONSET, np.float64)
    found = []
    for potential in (argon(), known):
        system = jaxpto.from_ase(crystal, np.float64)
        neighbors = jaxpto.build(system, potential.allocate([system], 0.3))
        prediction = jax.jit(potential.evaluate)(system, neighbors)
        rows = jnp.arange(len(crystal))
        found.append((prediction, jaxpto.force_constants(potential, system, neighbors, rows, batch=1)))
    for mine, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-13)


def test_what_enters_through_positions_and_cell_counts(crystal):
    """A harmonic crystal of scaled coordinates and a volume term, which no edge vector carries."""

    def energy(params: Array, system: System, neighbors: Neighbors) -> Array:
        volume = jnp.linalg.det(system.cell)
        waves = jnp.cos(2.0 * jnp.pi * jnp.linalg.solve(system.cell.T, system.positions.T))
        return params * jnp.sum(waves) * volume + (volume - 100.0) ** 2

    atoms = crystal.copy()
    atoms.calc = jaxpto.JaxptoCalculator(jaxpto.potential_from_energy(energy, 0.1, cutoff=3.0, name="waves"))
    for strain in range(3):
        for other in range(strain + 1):
            energies = []
            for step in (1e-5, -1e-5):
                moved = atoms.copy()
                deformation = np.eye(3)
                deformation[strain, other] += step / 2
                deformation[other, strain] += step / 2
                moved.set_cell(moved.cell.array @ deformation, scale_atoms=True)
                moved.calc = atoms.calc
                energies.append(moved.get_potential_energy())
            expected = (energies[0] - energies[1]) / 2e-5 / atoms.get_volume()
            assert atoms.get_stress(voigt=False)[strain, other] == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_parameters_can_be_differentiated_and_systems_batched(crystal):
    potential = argon().astype(np.float64)
    system = jaxpto.from_ase(crystal, np.float64)
    neighbors = jaxpto.build(system, potential.allocate([system], 0.3))
    slope = jax.grad(lambda p: p.energy(system, neighbors), allow_int=True)(potential)
    expected = float(potential.energy(system, neighbors)) / PARAMS["epsilon"]
    assert float(slope.params["epsilon"]) == pytest.approx(expected)
    both = jax.vmap(potential.evaluate)(*jax.tree.map(lambda x: jnp.stack([x, x]), (system, neighbors)))
    np.testing.assert_array_equal(both.forces[0], both.forces[1])


def fails(function, atoms, message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe(jaxpto.potential_from_energy(function, {}, cutoff=4.0, name="wrong"), atoms)


def test_what_is_wrong_with_a_function_is_said(crystal):
    distances = lambda system, neighbors: jnp.linalg.norm(jaxpto.edge_vectors(system, neighbors), axis=-1)  # noqa: E731
    fails(lambda p, s, n: jnp.sum(distances(s, n) ** -6), crystal, "make it 0 from the cutoff")
    fails(lambda p, s, n: jnp.sum(s.positions**2), crystal, "not periodic")
    fails(lambda p, s, n: jnp.where(distances(s, n) < 4.0, 1.0, 0.0), crystal, "sum it up")
    fails(lambda p, s, n: jnp.sum(s.positions) / 0.0, crystal, "check the function")
    fails(lambda p, s, n: p["missing"], crystal, "KeyError")
    with pytest.raises(InputError, match="cutoff"):
        jaxpto.potential_from_energy(argon_energy, PARAMS, cutoff=0.0, name="wrong")
    with pytest.raises(InputError, match="'Xy'"):
        jaxpto.potential_from_energy(argon_energy, PARAMS, cutoff=4.0, name="wrong", elements=["Xy"])
    with pytest.raises(InputError, match="Kr"):
        jaxpto.JaxptoCalculator(argon()).get_potential_energy(ase.build.bulk("Kr", "fcc", a=5.6))


def scaled(factor: float) -> jaxpto.Potential:
    def energy(params: dict[str, Array], system: System, neighbors: Neighbors) -> Array:
        return factor * argon_energy(params, system, neighbors)

    return jaxpto.potential_from_energy(energy, PARAMS, cutoff=CUTOFF, name="scaled")


def test_a_fingerprint_tells_functions_from_each_other():
    same, other = fingerprint(argon()), fingerprint(argon(sigma=3.41))
    assert fingerprint(argon()) == same != other
    assert fingerprint(scaled(1.0)) == fingerprint(scaled(1.0)) != fingerprint(scaled(1.1))
    jitted = [jax.jit(functools.partial(argon_energy, {"sigma": size})) for size in (1.0, 1.0, 2.0)]
    made = [fingerprint(jaxpto.potential_from_energy(one, {}, cutoff=3.0, name="jitted")) for one in jitted]
    assert made[0] == made[1] != made[2]
    code = (
        f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
        "import jax; jax.config.update('jax_enable_x64', True)\n"
        "import test_energy_function as t; print(t.fingerprint(t.argon()), t.fingerprint(t.scaled(1.1)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [same, fingerprint(scaled(1.1))]


def test_a_sweep_runs_with_a_function_and_refuses_to_go_on_with_another(tmp_path):
    atoms = ase.build.bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)
    ase.io.write(tmp_path / "argon.extxyz", atoms)
    config = jaxpto.SweepConfig(
        str(tmp_path / "argon.extxyz"), temperatures=(20.0, 40.0), steps=40, sample_every=10, mask="full",
        out=str(tmp_path / "run"), devices=1, dtype="float64", resume=True,
    )  # fmt: skip
    folder = jaxpto.run_sweep(config, argon())
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["status"] for row in summary] == ["ok", "ok"]
    with pytest.raises(InputError, match="the model is another one"):
        jaxpto.run_sweep(config, argon(epsilon=0.011))
    assert jaxpto.run_sweep(config, argon()) == folder


def test_relaxation_phonons_and_evaluation_take_a_function(tmp_path):
    atoms = ase.build.bulk("Ar", "fcc", a=5.2, cubic=True)
    path = str(tmp_path / "argon.extxyz")
    ase.io.write(path, atoms)
    (evaluated,) = jaxpto.run_evaluate(jaxpto.EvaluateConfig((path,), "", tmp_path / "out.extxyz"), argon())
    for method in ("bfgs", "batched"):
        (entry,) = jaxpto.run_relax(
            jaxpto.RelaxConfig((path,), "", tmp_path / method, mask="iso", method=method), argon()
        )
        assert entry.relaxed.converged
        assert entry.relaxed.energy < evaluated.get_potential_energy()
    (found,) = jaxpto.run_phonons(
        jaxpto.PhononsConfig(path, ("",), tmp_path / "phonons", method="both", mesh=(2, 2, 2)), argon()
    )
    assert found.difference is not None
    assert found.difference.frequency < 1e-3
