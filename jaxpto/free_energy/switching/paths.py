"""Absolute free energies by switching between a crystal and an Einstein crystal, and along a scaled potential energy.

The model's energy U(r) is driven into that of an Einstein crystal and back (Frenkel and Ladd, J. Chem. Phys. 81, 3188,
1984; out of equilibrium as in Freitas, Asta and de Koning, Comput. Mater. Sci. 112, 333, 2016). The springs hold the
atoms to their sites relative to the crystal as a whole,

    U_E = sum_i k_i |u_i - c|^2 / 2,    c = sum_i k_i u_i / K,    K = sum_i k_i,    u_i = r_i - site_i,

so that U_E, like U, does not change when all atoms move together. The centre c is then free everywhere along the path,
which is the same as holding it still (Polson, Trizac, Pronk and Frenkel, J. Chem. Phys. 112, 5339, 2000): no constraint
enters the dynamics, nothing diverges where the springs vanish, and the free energy of c is known in closed form.
Nuclei are classical throughout. Everything is a pure function of arrays in double precision.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ase import units as ase_units
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from jaxpto.free_energy.estimators import mbar
from jaxpto.units import BOLTZMANN

PLANCK: float = ase_units._hplanck * ase_units.J * ase_units.s  # eV times the internal unit of time


class Weights(NamedTuple):
    """Factors of the model's energy and of the springs' along a path: H = model U + springs U_E."""

    model: Float[Array, "*batch"]
    springs: Float[Array, "*batch"]


class FreeEnergyChange(NamedTuple):
    """Free energy of the end of a path less that of its beginning, eV.

    Attributes:
        change: half the difference of the mean works there and back.
        dissipation: half their sum, what one way costs beyond the change.
        bar: the same difference by Bennett's acceptance ratio.
    """

    change: Float[Array, "*batch"]
    dissipation: Float[Array, "*batch"]
    bar: Float[Array, "*batch"]


def smooth_step(progress: Float[Array, "*batch"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """The part s of a path that is done, and 1 - s, at the part t of the time: four derivatives vanish at both ends.

    s = t^5 (70 t^4 - 315 t^3 + 540 t^2 - 420 t + 126), of de Koning and Antonelli, Phys. Rev. E 53, 465 (1996); by its
    symmetry s(t) = 1 - s(1 - t), the smaller of the two parts is always computed without cancellation.
    """
    t = jnp.minimum(progress, 1.0 - progress)
    small = t**5 * (126.0 - t * (420.0 - t * (540.0 - t * (315.0 - 70.0 * t))))
    late = progress > 0.5
    return jnp.where(late, 1.0 - small, small), jnp.where(late, small, 1.0 - small)


def einstein_path(progress: Float[Array, "*batch"]) -> Weights:
    """From the model (0) to the Einstein crystal (1), along `smooth_step`."""
    done, left = smooth_step(progress)
    return Weights(left, done)


def scaling_path(progress: Float[Array, "*batch"], ratio: Float[Array, "*batch"]) -> Weights:
    """From U (0) to U / ratio (1) such that the temperature it stands for rises linearly, to `ratio` times the first.

    At temperature T0, U T0 / T has the Boltzmann factors of U at T: reversible scaling (de Koning, Antonelli and Yip,
    Phys. Rev. Lett. 83, 3973, 1999).
    """
    return Weights(1.0 / (1.0 + progress * (ratio - 1.0)), jnp.zeros_like(progress))


def spring_energy(
    displacements: Float[Array, "n 3"], springs: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, "n 3"]]:
    """U_E in eV and the forces -k_i (u_i - c), which add up to zero.

    Args:
        displacements: [n, 3] from the sites, Angstrom; moved along by all atoms together they give the same.
        springs: [n] k_i, eV/Angstrom^2.
    """
    centre = jnp.sum(springs[:, None] * displacements, axis=0) / jnp.sum(springs)
    away = displacements - centre[None, :]
    forces = -springs[:, None] * away
    return -0.5 * jnp.sum(forces * away), forces


def spring_constants(squares: Float[Array, " n"], temperature: Float[Array, ""]) -> Float[Array, " n"]:
    """k_i = 3 kT / <u_i^2>, eV/Angstrom^2: springs that give each atom the amplitude it has in the crystal.

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

    with Lambda_i = h / sqrt(2 pi m_i kT). The second term takes the fluctuations of c out of the product, the third
    puts in the volume that c has: V / N_t, because N_t translations of the crystal in the periodic cell only rename
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


def bar(forward: Float[Array, " f"], backward: Float[Array, " b"], temperature: Float[Array, ""]) -> Float[Array, ""]:
    """Free energy of the end less that of the beginning from works there and back, eV; differentiable in the works.

    Bennett's acceptance ratio (J. Comput. Phys. 22, 245, 1976) for works (Crooks, Phys. Rev. E 61, 2361, 2000): MBAR of
    two states that differ by W on the way there and by -W on the way back.

    Args:
        forward, backward: [f], [b] work of every switch, eV.
        temperature: K.
    """
    difference = jnp.concatenate([forward, -backward]) / (BOLTZMANN * temperature)
    origin = jax.lax.stop_gradient(jnp.mean(difference))
    counts = jnp.asarray([forward.shape[0], backward.shape[0]], difference.dtype)
    shifted = difference - origin
    mixture = mbar.solve(jnp.stack([jnp.zeros_like(shifted), shifted]), counts)
    return BOLTZMANN * temperature * (mixture.free_energies[1] + origin)


def free_energy_change(
    forward: Float[Array, " f"], backward: Float[Array, " b"], temperature: Float[Array, ""]
) -> FreeEnergyChange:
    """Free-energy change of a path from works there and back.

    The half difference is exact as long as the response to the switching is linear; then it equals what Bennett's
    acceptance ratio gives, which holds beyond, but needs works there and back that overlap: a dissipation of a few kT.

    Args:
        forward, backward: [f], [b] work of every switch, eV.
        temperature: of the thermostat, K.
    """
    there, back = jnp.mean(forward), jnp.mean(backward)
    return FreeEnergyChange(0.5 * (there - back), 0.5 * (there + back), bar(forward, backward, temperature))


def bootstrap(
    key: UInt32[Array, " 2"] | PRNGKeyArray,
    forward: Float[Array, " f"],
    backward: Float[Array, " b"],
    temperature: Float[Array, ""],
    resamplings: int = 200,
) -> FreeEnergyChange:
    """Standard errors of `free_energy_change` from independent switches, both ways drawn anew with replacement, eV.

    The spread of the means of r draws is short of that of the mean of r samples by sqrt(1 - 1 / r), put right here.

    Args:
        key: PRNG key.
        forward, backward: [f], [b] work of every switch, two at least, eV.
        temperature: K.
        resamplings: how often.
    """

    def one(key: Array) -> FreeEnergyChange:
        first, second = jax.random.split(key)
        return free_energy_change(
            jax.random.choice(first, forward, forward.shape),
            jax.random.choice(second, backward, backward.shape),
            temperature,
        )

    found = jax.lax.map(one, jax.random.split(key, resamplings), batch_size=50)
    fewest = min(forward.shape[0], backward.shape[0])
    return jax.tree.map(lambda values: jnp.std(values, ddof=1) * (fewest / (fewest - 1.0)) ** 0.5, found)


def scaled_free_energy(
    first: Float[Array, ""],
    work: Float[Array, "*s"],
    temperatures: Float[Array, "*s"],
    reference: Float[Array, ""],
    atoms: int,
) -> Float[Array, "*s"]:
    """F at temperatures T from reversible scaling at T0: F(T) = (T / T0) [F(T0) + w(T)] + (3/2) N kT ln(T0 / T), eV.

    w(T) is the reversible work at temperature T0 from U to U T0 / T (see `scaling_path`); the last term is what the
    momenta add. Source: de Koning, Antonelli and Yip, Phys. Rev. Lett. 83, 3973 (1999).

    Args:
        first: F(T0), eV, with the same zero of energy as U in the work.
        work: [s] w(T), eV.
        temperatures: [s] T, K.
        reference: T0, K.
        atoms: N.
    """
    momenta = 1.5 * atoms * BOLTZMANN * temperatures * jnp.log(reference / temperatures)
    return temperatures / reference * (first + work) + momenta
