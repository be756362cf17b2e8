"""Gibbs energy, enthalpy, entropy and heat capacity along a ladder of temperatures, from its sampled enthalpies.

With h = U + p V of a configuration, beta = 1 / kT, and f(beta) the reduced configurational free energy from MBAR,

    G(T) / kT = f(beta) + (d / 2) ln beta + constant,    d momentum degrees of freedom,

    S = -dG/dT,    H = G + T S,    Cp = -T d2G/dT2,

all by automatic differentiation in T. Samples do not hold the constant (absolute energy and entropy): G, S and H are
relative to the reference temperature T0, G(T) - H(T0) + T S(T0), S(T) - S(T0) and H(T) - H(T0).
At fixed cell, with p V = 0, the same expressions are the Helmholtz energy, the internal energy and Cv.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.free_energy.estimators import mbar
from jaxpto.units import BOLTZMANN


class Thermodynamics(NamedTuple):
    """Thermodynamics of the whole cell at t temperatures.

    Attributes:
        gibbs, enthalpy: [t] relative to the reference temperature, eV.
        entropy: [t] relative to the reference temperature, eV/K.
        heat_capacity: [t] eV/K.
        samples: [t] effective number of samples.
    """

    gibbs: Float[Array, " t"]
    enthalpy: Float[Array, " t"]
    entropy: Float[Array, " t"]
    heat_capacity: Float[Array, " t"]
    samples: Float[Array, " t"]


def reduced(enthalpies: Float[Array, " n"], temperatures: Float[Array, " k"]) -> Float[Array, "k n"]:
    """h / kT of all samples [n] (eV) at all temperatures [k] (K)."""
    return enthalpies[None, :] / (BOLTZMANN * temperatures[:, None])


def thermodynamics(
    enthalpies: Float[Array, " n"],
    counts: Float[Array, " k"],
    temperatures: Float[Array, " k"],
    wanted: Float[Array, " t"],
    reference: Float[Array, ""],
    degrees_of_freedom: int,
) -> Thermodynamics:
    """Thermodynamics at any temperatures from samples at those of the ladder, by MBAR.

    Its derivatives with respect to the enthalpies are those of reweighting: dG/dp = <dh/dp> for a parameter p of h.

    Args:
        enthalpies: [n] U + p V of every sample, those of one temperature after another, eV.
        counts: [k] how many belong to each temperature.
        temperatures: [k] temperatures of the ladder, K.
        wanted: [t] K; `Thermodynamics.samples` says how far the results can be trusted.
        reference: T0, K.
        degrees_of_freedom: d, 3 N - 3 where the centre of mass is at rest.
    """
    # only differences count, and energies of thousands of eV over kT would lose digits
    origin = jax.lax.stop_gradient(jnp.mean(enthalpies))
    shifted = enthalpies - origin
    mixture = jax.lax.stop_gradient(mbar.solve(reduced(shifted, temperatures), counts))
    h0 = jnp.sum(mbar.probabilities(mixture, shifted / (BOLTZMANN * reference)) * shifted)
    h0 += 0.5 * degrees_of_freedom * BOLTZMANN * reference
    phi0 = mbar.free_energy(mixture, shifted / (BOLTZMANN * reference))

    def gibbs(temperature: Float[Array, ""]) -> Float[Array, ""]:
        phi = mbar.free_energy(mixture, shifted / (BOLTZMANN * temperature)) - phi0
        phi += 0.5 * degrees_of_freedom * jnp.log(reference / temperature)
        return BOLTZMANN * temperature * phi + (temperature / reference - 1.0) * h0

    def one(temperature: Float[Array, ""]) -> Thermodynamics:
        g, slope = jax.value_and_grad(gibbs)(temperature)
        curvature = jax.grad(jax.grad(gibbs))(temperature)
        weights = mbar.probabilities(mixture, shifted / (BOLTZMANN * temperature))
        entropy, count = -slope, mbar.effective_samples(weights)
        return Thermodynamics(g, g + temperature * entropy, entropy, -temperature * curvature, count)

    return jax.lax.map(one, wanted)


def gibbs_helmholtz(
    means: Float[Array, " k"], variances: Float[Array, " k"], temperatures: Float[Array, " k"], degrees_of_freedom: int
) -> Float[Array, " k"]:
    """G(T) - H(T0) + T S(T0), eV, by integrating d(G / kT) / d beta = H over the ladder, T0 its first temperature.

    The cubic through H and dH/dbeta = -var(h) - d / (2 beta^2) at both ends of each interval is integrated.

    Args:
        means: [k] mean of h = U + p V at each temperature, eV.
        variances: [k] its variance, eV^2.
        temperatures: [k] ascending, K.
        degrees_of_freedom: d.
    """
    beta = 1.0 / (BOLTZMANN * temperatures)
    # relative to the first mean, which the kinetic part must not shift
    kinetic = 0.5 * degrees_of_freedom * jnp.log(beta / beta[0])
    h, slope, width = means - means[0], -variances, jnp.diff(beta)
    parts = 0.5 * width * (h[1:] + h[:-1]) + width**2 / 12.0 * (slope[:-1] - slope[1:])
    phi = jnp.concatenate([jnp.zeros(1, h.dtype), jnp.cumsum(parts)]) + kinetic
    # with h measured from its value at T0, H(T0) is the kinetic energy there
    h0 = 0.5 * degrees_of_freedom * BOLTZMANN * temperatures[0]
    return BOLTZMANN * temperatures * phi + (temperatures / temperatures[0] - 1.0) * h0


def fluctuation_heat_capacity(
    variances: Float[Array, " k"], temperatures: Float[Array, " k"], degrees_of_freedom: int
) -> Float[Array, " k"]:
    """Heat capacity var(h) / (k T^2) + d k / 2 at each temperature, eV/K."""
    return variances / (BOLTZMANN * temperatures**2) + 0.5 * degrees_of_freedom * BOLTZMANN
