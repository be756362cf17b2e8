"""Replicas of a batch that take turns on a processor."""

from __future__ import annotations

import ase
import jax
import numpy as np
import pytest
from ase.build import make_supercell as repeat

from jaxpto.devices.sequential import sequential_over_replicas
from jaxpto.model_interface import Prediction
from jaxpto.models.catalogue import load_potential
from jaxpto.neighbors import build
from jaxpto.potential import Potential
from jaxpto.structures import read_structure
from jaxpto.system import System, from_ase, stack

REPLICAS = 4


@pytest.fixture(scope="module")
def potential() -> Potential:
    return load_potential("perovskite", np.dtype(np.float32))


@pytest.fixture(scope="module")
def batch(potential: Potential):
    perfect: ase.Atoms = repeat(read_structure("PbTiO3-tetragonal"), 2 * np.eye(3, dtype=int))
    shaken = []
    for seed in range(REPLICAS):
        atoms = perfect.copy()
        atoms.rattle(0.05, seed=seed)
        shaken.append(from_ase(atoms, np.float32))
    layout = potential.allocate(shaken, 0.3)
    systems: System = stack(shaken)
    return systems, jax.jit(jax.vmap(lambda system: build(system, layout)))(systems)


def _one_after_another(potential: Potential, systems, neighbors) -> Prediction:
    return jax.vmap(sequential_over_replicas(potential.evaluate))(systems, neighbors)


def test_same_numbers_as_alone(potential: Potential, batch) -> None:
    found = jax.jit(_one_after_another)(potential, *batch)
    for replica in range(REPLICAS):
        own = jax.tree.map(lambda x, r=replica: x[r], batch)
        alone = jax.jit(lambda potential, system, neighbors: potential.evaluate(system, neighbors))(potential, *own)
        np.testing.assert_allclose(found.energy[replica], alone.energy, rtol=1e-7)
        np.testing.assert_allclose(found.forces[replica], alone.forces, atol=2e-6)
        np.testing.assert_allclose(found.stress[replica], alone.stress, atol=1e-8)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators take the replicas side by side")
def test_memory_of_one_serves_all(potential: Potential, batch) -> None:
    arrays, structure = jax.tree.flatten((potential, *batch))

    def scratch(function) -> int:
        program = jax.jit(lambda *arrays: function(*jax.tree.unflatten(structure, arrays)))
        return program.lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    side_by_side = scratch(lambda potential, systems, neighbors: jax.vmap(potential.evaluate)(systems, neighbors))
    assert scratch(_one_after_another) < 2 * side_by_side / REPLICAS
