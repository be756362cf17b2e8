"""Free energies that are known in closed form, to compare sampled ones with."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.free_energy.switching.einstein_crystal import PLANCK
from jaxpto.units import BOLTZMANN


def harmonic_free_energy(
    frequencies_squared: Float[Array, " m"],
    masses: Float[Array, " n"],
    temperature: Float[Array, ""],
    volume: Float[Array, ""],
    translations: int,
) -> Float[Array, ""]:
    """Classical Helmholtz energy of a harmonic crystal whose centre of mass is free, over its minimum, eV.

    F = kT sum_v ln(h nu_v / kT) - kT ln[(V / N_t) / Lambda_M^3] over the 3 n - 3 vibrations, M the mass of all atoms:
    what switching gives for a harmonic crystal in the same periodic cell.

    Args:
        frequencies_squared: [m = 3 n - 3] eigenvalues (2 pi nu)^2 of the mass-weighted Hessian without those of the
            three translations, eV/Angstrom^2/amu.
        masses: [n] amu.
        temperature: K.
        volume: of the periodic cell, Angstrom^3.
        translations: lattice translations within it.
    """
    kT = BOLTZMANN * temperature
    vibrations = jnp.sum(jnp.log(PLANCK * jnp.sqrt(frequencies_squared) / (2.0 * jnp.pi * kT)))
    thermal = PLANCK / jnp.sqrt(2.0 * jnp.pi * jnp.sum(masses) * kT)
    return kT * (vibrations - jnp.log(volume / translations) + 3.0 * jnp.log(thermal))
