"""Derivatives in the parameters of a loss of energy, forces and stress, against differences, for every architecture."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import pytest
from model_cases import CASES

from converters.pickles import CheckpointError
from jaxpto import neighbors
from jaxpto.model_interface import DirectModel
from jaxpto.models.manifest import architectures
from jaxpto.system import from_ase

CONSERVATIVE = [name for name in CASES if not issubclass(architectures()[name].kind, DirectModel)]
QUICK = {"lennard_jones", "m3gnet", "nep", "perovskite", "sevennet"}  # the others take more than 20 s
AWAY, STEP, DIRECTIONS = 0.002, 1e-6, 2


def directions(params: Any, generator: np.random.Generator) -> Any:
    """A random change of all parameters, each array's by the usual size of its elements."""

    def one(leaf: jax.Array) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        size = np.sqrt(np.mean(np.square(leaf))) if leaf.size else 0.0
        return (size or 1.0) * generator.normal(size=leaf.shape)

    return jax.tree.map(one, params)


def moved(params: Any, change: Any, step: float) -> Any:
    """Parameters changed by a multiple of a direction, those that are integers as they are."""
    return jax.tree.map(
        lambda leaf, along: leaf + step * along if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, params, change
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CONSERVATIVE]
)
def test_gradient_of_a_loss(name: str, shared: pathlib.Path) -> None:
    try:
        potential = contract.cast(CASES[name].make(shared), np.float64)
    except CheckpointError as error:
        pytest.skip(f"no published weights: {error}")
    generator = np.random.default_rng(7)
    # not at the published parameters: GPTFF's embeddings of elements are as long as its layer lets them be
    potential = potential.replace(params=moved(potential.params, directions(potential.params, generator), AWAY))
    atoms = CASES[name].crystal()
    system = from_ase(atoms, np.float64)
    found = neighbors.build(system, potential.allocate([system], contract.SKIN))
    base = contract.predict(potential, atoms)
    labels = (
        base.energy + 0.1 * len(atoms),
        base.forces + 0.2 * generator.normal(size=base.forces.shape),
        base.stress + 0.01 * generator.normal(size=(3, 3)),
    )

    @jax.jit
    @jax.value_and_grad
    def energy_loss(params: Any) -> jax.Array:
        return ((potential.replace(params=params).energy(system, found) - labels[0]) / len(atoms) / 0.05) ** 2

    @jax.jit
    @jax.value_and_grad
    def loss(params: Any) -> jax.Array:
        prediction = potential.replace(params=params).evaluate(system, found)
        return (
            ((prediction.energy - labels[0]) / len(atoms) / 0.05) ** 2
            + jnp.mean(((prediction.forces - labels[1]) / 0.2) ** 2)
            + jnp.mean(((prediction.stress - labels[2]) / 0.01) ** 2)
        )

    for function in (energy_loss, loss):
        _, gradient = function(potential.params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        for _ in range(DIRECTIONS):
            change = directions(potential.params, generator)
            slope = sum(map(np.vdot, *map(jax.tree.leaves, (gradient, change))))
            values = [float(function(moved(potential.params, change, k * STEP))[0]) for k in (-2, -1, 1, 2)]
            expected = (values[0] - 8.0 * values[1] + 8.0 * values[2] - values[3]) / (12.0 * STEP)
            np.testing.assert_allclose(slope, expected, rtol=1e-6)
