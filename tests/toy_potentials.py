"""Potentials with known statistics, small systems to put them in, and a sampler, for the tests of the integrators."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxpto import neighbors as neighbor_list
from jaxpto.integrators import Integrator, MDState, kinetic_energy
from jaxpto.model_interface import Prediction
from jaxpto.neighbors import Neighbors
from jaxpto.potential import Potential
from jaxpto.system import System, volume
from jaxpto.units import BOLTZMANN

ARGON_MASS = 39.948
ARGON = (0.0104, 3.40)
"""Lennard-Jones epsilon (eV) and sigma (Angstrom) of argon."""


@dataclasses.dataclass(frozen=True)
class LennardJones:
    """Pairs 4 eps ((s/r)^12 - (s/r)^6), switched off between onset and cutoff as ASE's `LennardJones(smooth=True)`."""

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3

    cutoff: float = 6.5
    onset: float = 4.5
    elements: tuple[int, ...] = (18,)

    def energy(self, params: Any, system: System, neighbors: Neighbors, vectors: Array) -> Array:
        epsilon, sigma = params
        square = jnp.sum(vectors**2, axis=-1)
        sixth = (sigma**2 / square) ** 3
        rc2, ro2 = self.cutoff**2, self.onset**2
        switch = (rc2 - square) ** 2 * (rc2 + 2.0 * square - 3.0 * ro2) / (rc2 - ro2) ** 3
        switch = jnp.where(square < ro2, 1.0, jnp.where(square < rc2, switch, 0.0))
        return 0.5 * jnp.sum(switch * 4.0 * epsilon * (sixth**2 - sixth))


@dataclasses.dataclass(frozen=True)
class VectorSprings:
    """U = k/2 sum over bonds |r - r0|^2, every listed edge a bond and r0 (params) its vector in the perfect crystal."""

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3

    stiffness: float
    cutoff: float
    elements: tuple[int, ...] = (18,)

    def energy(self, params: Any, system: System, neighbors: Neighbors, vectors: Array) -> Array:
        return 0.25 * self.stiffness * jnp.sum((vectors - params) ** 2)


def lennard_jones() -> Potential:
    return Potential(params=ARGON, model=LennardJones(), name="argon")


def ideal_gas(system: System, neighbors: Neighbors) -> Prediction:
    """No interaction at all."""
    zero = jnp.zeros((), system.positions.dtype)
    return Prediction(zero, jnp.zeros_like(system.positions), jnp.zeros_like(system.cell))


def argon_crystal(*, lattice: float = 5.30, sheared: bool = False, dtype: Any = float) -> System:
    """Face-centred cubic argon, 32 atoms; `sheared` makes the cell triclinic without a symmetry left."""
    atoms = ase.build.bulk("Ar", "fcc", a=lattice, cubic=True).repeat(2)
    if sheared:
        deformation = np.array([[1.01, 0.02, -0.01], [0.0, 0.99, 0.03], [0.02, 0.0, 1.0]])
        atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    n = len(atoms)
    return System(
        positions=jnp.asarray(atoms.positions, dtype),
        cell=jnp.asarray(atoms.cell.array, dtype),
        numbers=jnp.full(n, 18, jnp.int32),
        masses=jnp.full(n, ARGON_MASS, dtype),
    )


def gas(n: int, cell: Array) -> System:
    """n argon atoms at fixed places in any cell."""
    places = jnp.asarray(np.random.default_rng(0).random((n, 3)), cell.dtype)
    return System(places @ cell, cell, jnp.full(n, 18, jnp.int32), jnp.full(n, ARGON_MASS, cell.dtype))


@functools.cache
def no_neighbors() -> Neighbors:
    """A list for potentials that look at none; call it outside of any traced function."""
    return listed(argon_crystal(), 1.0, 0.0)


def listed(system: System, cutoff: float, skin: float) -> Neighbors:
    """Neighbour list that a crystal keeps for the whole of a short test."""
    found = neighbor_list.build(system, neighbor_list.allocate([system], cutoff, skin))
    assert not bool(found.overflow)
    return found


def replicate(state: Any, replicas: int) -> Any:
    """The same pytree `replicas` times along a new leading axis."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * replicas), state)


def thermal_bath(state: MDState, key: Array, mask: str) -> MDState:
    """Draw the strain rate and the chain momenta of a constant-pressure state from their equilibrium distributions."""
    bath = state.bath
    keys = jax.random.split(key, 3)
    width = jnp.sqrt(bath.kT / bath.cell_mass)
    noise = jax.random.normal(keys[0], (3, 3))
    allowed = {
        "iso": noise[0, 0] / jnp.sqrt(3.0) * jnp.eye(3),
        "diag": noise * jnp.eye(3),
        # sum of squares over all nine elements: an off-diagonal pair shares one kT
        "full": noise * jnp.eye(3) + (jnp.triu(noise, 1) + jnp.triu(noise, 1).T) / jnp.sqrt(2.0),
    }[mask]

    def warmed(chain: Any, draw: Array) -> Any:
        return chain.replace(momentum=jnp.sqrt(chain.mass * bath.kT) * jax.random.normal(draw, chain.mass.shape))

    return state.replace(
        bath=bath.replace(
            strain_rate=width * allowed,
            particle_chain=warmed(bath.particle_chain, keys[1]),
            cell_chain=warmed(bath.cell_chain, keys[2]),
        )
    )


def observables(state: MDState) -> dict[str, Array]:
    """What the ensemble checks look at."""
    return {
        "kinetic": kinetic_energy(state),
        "potential": state.prediction.energy,
        "volume": volume(state.system.cell),
        "cell": state.system.cell,
        "stress": state.prediction.stress,
    }


def sample(
    integrator: Integrator,
    states: MDState,
    *,
    samples: int,
    every: int,
    observe: Callable[[MDState], Any] = observables,
) -> tuple[MDState, Any]:
    """Run batched states; returns the last states and the observables with leading axes [samples, replicas]."""
    step = jax.vmap(integrator.apply)

    def one_sample(states: MDState, _: None) -> tuple[MDState, Any]:
        states, _ = jax.lax.scan(lambda s, _: (step(s), None), states, None, length=every)
        return states, jax.vmap(observe)(states)

    states, seen = jax.jit(lambda s: jax.lax.scan(one_sample, s, None, length=samples))(states)
    return states, jax.device_get(seen)


def standard_error(series: np.ndarray) -> float:
    """Standard error of the mean of [samples, replicas] from the independent replicas: no correlation time needed."""
    means = series.mean(axis=0)
    return float(means.std(ddof=1) / np.sqrt(len(means)))


def kT_of(kelvin: float) -> float:
    """k_B T in eV."""
    return kelvin * BOLTZMANN


def pressure_tensor(state: MDState) -> jax.Array:
    """Instantaneous pressure tensor (sum p p^T / m) / V - stress of one replica, [3, 3] eV/Angstrom^3."""
    kinetic = state.momenta.T @ (state.momenta / state.system.masses[:, None])
    return kinetic / volume(state.system.cell) - state.prediction.stress
