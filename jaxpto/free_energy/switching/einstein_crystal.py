"""The Einstein crystal whose centre is free: energy, draws, and its Helmholtz energy in closed form.

Springs hold the atoms to their sites relative to the crystal as a whole,

    U_E = sum_i k_i |u_i - c|^2 / 2,    c = sum_i k_i u_i / K,    K = sum_i k_i,    u_i = r_i - site_i,

so that U_E, like the energy of a model, does not change when all atoms move together. The centre c is then free
everywhere along a path to the model, which is the same as holding it still (Polson, Trizac, Pronk and Frenkel, J. Chem.
Phys. 112, 5339, 2000): no constraint enters the dynamics, nothing diverges where the springs vanish, and the free
energy of c is known in closed form. Nuclei are classical.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ase import units as ase_units
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from jaxpto.units import BOLTZMANN

PLANCK: float = ase_units._hplanck * ase_units.J * ase_units.s  # eV times the internal unit of time


def spring_energy(
    displacements: Float[Array, "n 3"], springs: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, "n 3"]]:
    """U_E in eV and the forces -k_i (u_i - c), which add up to zero.

    Args:
        displacements: [n, 3] from the sites, Angstrom; a common shift changes nothing.
        springs: [n] k_i, eV/Angstrom^2.
    """
    centre = jnp.sum(springs[:, None] * displacements, axis=0) / jnp.sum(springs)
    away = displacements - centre[None, :]
    forces = -springs[:, None] * away
    return -0.5 * jnp.sum(forces * away), forces


def spring_constants(squares: Float[Array, " n"], temperature: Float[Array, ""]) -> Float[Array, " n"]:
    """k_i = 3 kT / <u_i^2>, eV/Angstrom^2: springs that give each atom its amplitude in the crystal.

    Args:
        squares: [n] mean squared displacements, Angstrom^2.
        temperature: K.
    """
    return 3.0 * BOLTZMANN * temperature / squares


def einstein_displacements(
    key: UInt32[Array, " 2"] | PRNGKeyArray, springs: Float[Array, " n"], temperature: Float[Array, ""]
) -> Float[Array, "n 3"]:
    """A draw from exp(-U_E / kT) with c = 0, Angstrom.

    Args:
        key: PRNG key.
        springs: [n] eV/Angstrom^2.
        temperature: K.
    """
    noise = jax.random.normal(key, (springs.shape[0], 3), springs.dtype)
    free = jnp.sqrt(BOLTZMANN * temperature / springs)[:, None] * noise
    return free - (jnp.sum(springs[:, None] * free, axis=0) / jnp.sum(springs))[None, :]


def einstein_free_energy(
    springs: Float[Array, " n"],
    masses: Float[Array, " n"],
    temperature: Float[Array, ""],
    volume: Float[Array, ""],
    translations: int,
) -> Float[Array, ""]:
    """Helmholtz energy of the Einstein crystal whose centre is free, eV.

    F_E = -kT ln[prod_i (2 pi kT / k_i)^(3/2) / Lambda_i^3] + (3/2) kT ln(2 pi kT / K) - kT ln(V / N_t),

    with Lambda_i = h / sqrt(2 pi m_i kT). The second term removes the fluctuations of c from the product, the third
    adds the volume that is open to c: V / N_t, because N_t translations of the crystal in the periodic cell only rename
    atoms. For equal springs and N_t = N these are the terms of Polson et al. and of Freitas et al. (see above).

    Args:
        springs: [n] k_i, eV/Angstrom^2.
        masses: [n] amu.
        temperature: K.
        volume: V of the periodic cell, Angstrom^3.
        translations: N_t, lattice translations of the crystal within the periodic cell, its primitive cells.
    """
    kT = BOLTZMANN * temperature
    thermal = PLANCK / jnp.sqrt(2.0 * jnp.pi * masses * kT)
    each = 0.5 * jnp.log(2.0 * jnp.pi * kT / springs) - jnp.log(thermal)
    centre = 1.5 * jnp.log(2.0 * jnp.pi * kT / jnp.sum(springs)) - jnp.log(volume / translations)
    return kT * (centre - 3.0 * jnp.sum(each))
