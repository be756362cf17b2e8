"""Constant energy and volume: velocity Verlet."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, UInt32

from jaxpto.integrators.common import check_positive, check_thermal, kinetic_energy, maxwell_boltzmann, remove_drift
from jaxpto.integrators.state import Integrator, MDState
from jaxpto.model_interface import EvaluateFn
from jaxpto.neighbors import Neighbors
from jaxpto.system import System
from jaxpto.units import FEMTOSECOND


@struct.dataclass
class NVEBath:
    """No bath: only the number of degrees of freedom, 3n - 3, because the total momentum is zero and conserved."""

    degrees_of_freedom: int = struct.field(pytree_node=False)


def nve(evaluate: EvaluateFn, timestep_fs: float) -> Integrator:
    """Microcanonical dynamics by velocity Verlet, one `evaluate` a step.

    Source: Swope, Andersen, Berens and Wilson, J. Chem. Phys. 76, 637 (1982). The invariant is the total energy, eV.

    Args:
        evaluate: energy, forces and stress of (system, neighbors).
        timestep_fs: fs.

    Raises:
        InputError: the time step is not positive, or (`init`) there is only one atom.
    """
    check_positive("timestep", timestep_fs, "fs")
    dt = timestep_fs * FEMTOSECOND

    def init(key: UInt32[Array, " 2"], system: System, neighbors: Neighbors, kT: float | Float[Array, ""]) -> MDState:
        """Draw momenta at kT (eV), remove the drift and evaluate the forces."""
        check_thermal(system.masses.shape[0], "nve")
        momenta = maxwell_boltzmann(key, system.masses, jnp.asarray(kT, system.masses.dtype))
        return MDState(
            system=system,
            neighbors=neighbors,
            momenta=remove_drift(momenta, system.masses),
            prediction=evaluate(system, neighbors),
            bath=NVEBath(degrees_of_freedom=3 * system.masses.shape[0] - 3),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def move(state: MDState) -> MDState:
        """Half a kick, and the drift."""
        momenta = state.momenta + 0.5 * dt * state.prediction.forces
        positions = state.system.positions + dt * momenta / state.system.masses[:, None]
        return replace(state, system=replace(state.system, positions=positions), momenta=momenta)

    def finish(state: MDState) -> MDState:
        """Half a kick by the new forces."""
        prediction = evaluate(state.system, state.neighbors)
        momenta = state.momenta + 0.5 * dt * prediction.forces
        return replace(state, momenta=momenta, prediction=prediction, step=state.step + 1)

    def invariant(state: MDState) -> Float[Array, ""]:
        """Total energy, eV."""
        return state.prediction.energy + kinetic_energy(state)

    return Integrator(init, move, finish, invariant)
