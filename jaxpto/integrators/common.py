"""What every integrator shares: thermal momenta and the kinetic quantities of a state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from jaxpto.errors import InputError
from jaxpto.integrators.state import MDState
from jaxpto.system import volume
from jaxpto.units import BOLTZMANN


def check_positive(name: str, value: float, unit: str) -> None:
    """Refuse a parameter of an integrator that is not a positive finite number.

    Raises:
        InputError: `value` is zero, negative, infinite or not a number.
    """
    if not 0.0 < value < float("inf"):
        raise InputError(f"{name} is {value:g} {unit}; give a positive finite number")


def check_thermal(n: int, ensemble: str) -> None:
    """Refuse a system that has no motion left once its total momentum is zero.

    Raises:
        InputError: fewer than two atoms, 3n - 3 = 0 degrees of freedom.
    """
    if n < 2:
        raise InputError(
            f"{ensemble} of {n} atom: its momentum is zero, so it does not move (3N - 3 = 0 degrees of freedom); "
            "take a larger supercell, or nvt"
        )


def matmul(left: Float[Array, "m 3"], right: Float[Array, "3 3"]) -> Float[Array, "m 3"]:
    """Product with a 3 x 3 matrix, written out: it fuses, and accelerators cannot round its factors to 10 bits."""
    return (left[:, :, None] * right[None, :, :]).sum(axis=1)


def maxwell_boltzmann(
    key: UInt32[Array, " 2"], masses: Float[Array, " n"], kT: Float[Array, ""]
) -> Float[Array, "n 3"]:
    """Draw momenta [n, 3] (amu Angstrom / internal time), each component normal with variance m kT.

    Args:
        key: PRNG key.
        masses: [n] amu.
        kT: eV.
    """
    noise = jax.random.normal(key, (masses.shape[0], 3), masses.dtype)
    return jnp.sqrt(masses * kT)[:, None] * noise


def remove_drift(momenta: Float[Array, "n 3"], masses: Float[Array, " n"]) -> Float[Array, "n 3"]:
    """Subtract the centre-of-mass velocity from every atom.

    Of Maxwell-Boltzmann momenta this leaves exactly the canonical distribution at zero total momentum, 3n - 3 degrees
    of freedom, so no rescaling follows (it would freeze the fluctuation of the kinetic energy).

    Args:
        momenta: [n, 3] amu Angstrom / internal time.
        masses: [n] amu.
    """
    drift = momenta.sum(axis=0) / masses.sum()
    return momenta - masses[:, None] * drift[None, :]


def kinetic_tensor(momenta: Float[Array, "n 3"], masses: Float[Array, " n"]) -> Float[Array, "3 3"]:
    """Sum over atoms of p p^T / m, [3, 3] eV; its trace is twice the kinetic energy."""
    velocities = momenta / masses[:, None]
    return jnp.stack([(momenta[:, k, None] * velocities).sum(axis=0) for k in range(3)])


def kinetic_energy(state: MDState) -> Float[Array, ""]:
    """Kinetic energy of the atoms of one replica, eV."""
    return 0.5 * jnp.sum(state.momenta**2 / state.system.masses[:, None])


def temperature(state: MDState) -> Float[Array, ""]:
    """Instantaneous temperature 2 K / (N_f k_B) of one replica, K, with the integrator's own degrees of freedom N_f."""
    return 2.0 * kinetic_energy(state) / (state.bath.degrees_of_freedom * BOLTZMANN)


def total_stress(state: MDState) -> Float[Array, "3 3"]:
    """Stress of one replica, kinetic part included, [3, 3] eV/Angstrom^3: static stress - (sum p p^T / m) / V."""
    system = state.system
    return state.prediction.stress - kinetic_tensor(state.momenta, system.masses) / volume(system.cell)
