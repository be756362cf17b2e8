"""Constant volume and temperature: Langevin dynamics."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, UInt32

from jaxpto.integrators.common import check_positive, kinetic_energy, maxwell_boltzmann
from jaxpto.integrators.state import Integrator, MDState
from jaxpto.model_interface import EvaluateFn
from jaxpto.neighbors import Neighbors
from jaxpto.system import Leaf, System
from jaxpto.units import FEMTOSECOND


@struct.dataclass
class LangevinBath:
    """Target and balance of the stochastic bath.

    Attributes:
        kT: [] target temperature, eV.
        heat: [] energy the bath has given to the atoms so far, eV.
        degrees_of_freedom: 3n, because the noise does not conserve the total momentum.
    """

    kT: Float[Leaf, "*batch"]
    heat: Float[Leaf, "*batch"]
    degrees_of_freedom: int = struct.field(pytree_node=False)


def nvt_langevin(evaluate: EvaluateFn, timestep_fs: float, *, friction_per_fs: float) -> Integrator:
    """Langevin dynamics dp = F dt - gamma p dt + sqrt(2 gamma m kT) dW, by BAOAB, one `evaluate` a step.

    Half a kick (B), half a drift (A), the bath (O), half a drift, half a kick: Leimkuhler and Matthews, Appl. Math.
    Res. Express 2013, 34 (2013). Every operation is in the order of `jax_md.simulate.nvt_langevin`, so that
    trajectories are the same; jax-md itself is not imported, because that takes seconds and fixes the devices.

    All 3n degrees of freedom are thermal: the centre of mass diffuses like a free Brownian particle, which moves no
    pair of atoms. (ASE's Langevin subtracts the drift by default and then samples the canonical ensemble only nearly.)

    The invariant is the effective energy E_pot + E_kin - heat, with the heat that the stochastic operator has put in:
    Bussi and Parrinello, Phys. Rev. E 75, 056707 (2007). Its drift measures the error of the time step.

    Args:
        evaluate: energy, forces and stress of (system, neighbors).
        timestep_fs: fs.
        friction_per_fs: gamma, 1/fs.

    Raises:
        InputError: the time step or the friction is not positive.
    """
    check_positive("timestep", timestep_fs, "fs")
    check_positive("friction", friction_per_fs, "1/fs")
    dt = timestep_fs * FEMTOSECOND
    friction = friction_per_fs / FEMTOSECOND

    def init(key: UInt32[Array, " 2"], system: System, neighbors: Neighbors, kT: float | Float[Array, ""]) -> MDState:
        """Draw momenta at kT (eV), drift included, and evaluate the forces."""
        key, draw = jax.random.split(key)
        target = jnp.asarray(kT, system.masses.dtype)
        return MDState(
            system=system,
            neighbors=neighbors,
            momenta=maxwell_boltzmann(draw, system.masses, target),
            prediction=evaluate(system, neighbors),
            bath=LangevinBath(kT=target, heat=jnp.zeros_like(target), degrees_of_freedom=3 * system.masses.shape[0]),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def move(state: MDState) -> MDState:
        """Half a kick, half a drift, the bath, half a drift."""
        masses = state.system.masses[:, None]
        momenta = state.momenta + 0.5 * dt * state.prediction.forces
        positions = state.system.positions + 0.5 * dt * momenta / masses
        key, draw = jax.random.split(state.key)
        thermal = _partly_redrawn(draw, momenta, masses, dt * friction, state.bath.kT)
        # (p'^2 - p^2) / 2m as a product of small factors: no cancellation of two large kinetic energies
        heat = 0.5 * jnp.sum((thermal - momenta) * (thermal + momenta) / masses)
        positions = positions + 0.5 * dt * thermal / masses
        return replace(
            state,
            system=replace(state.system, positions=positions),
            momenta=thermal,
            bath=replace(state.bath, heat=state.bath.heat + heat),
            key=key,
        )

    def finish(state: MDState) -> MDState:
        """Half a kick by the new forces."""
        prediction = evaluate(state.system, state.neighbors)
        momenta = state.momenta + 0.5 * dt * prediction.forces
        return replace(state, momenta=momenta, prediction=prediction, step=state.step + 1)

    def invariant(state: MDState) -> Float[Array, ""]:
        """Effective energy: total energy less the heat from the bath, eV."""
        return state.prediction.energy + kinetic_energy(state) - state.bath.heat

    return Integrator(init, move, finish, invariant)


def _partly_redrawn(
    key: UInt32[Array, " 2"],
    momenta: Float[Array, "n 3"],
    masses: Float[Array, "n 1"],
    friction: float,
    kT: Float[Array, ""],
) -> Float[Array, "n 3"]:
    """Momenta after a step in the bath alone: c p + sqrt((1 - c^2) m kT) N(0, 1) with c = exp(-friction).

    Args:
        key: PRNG key of the noise.
        momenta: [n, 3] amu Angstrom / internal time.
        masses: [n, 1] amu.
        friction: gamma times the time step.
        kT: eV.
    """
    kept = jnp.exp(-friction)
    noise = jnp.sqrt(kT * (1 - kept**2))
    mean = kept * momenta
    return mean + jnp.sqrt(noise**2 * masses) * jax.random.normal(key, mean.shape, mean.dtype)
