"""Free energies from the works of switches there and back.

The energy U of the model is driven into that of an Einstein crystal and back (Frenkel and Ladd, J. Chem. Phys. 81,
3188, 1984; out of equilibrium as in Freitas, Asta and de Koning, Comput. Mater. Sci. 112, 333, 2016), or scaled down
and up again. Everything is a pure function of arrays in double precision.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from jaxpto.free_energy.estimators import mbar
from jaxpto.units import BOLTZMANN


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

    The half difference is exact where the response to the switching is linear. Bennett's acceptance ratio then gives
    the same; it holds beyond, but needs works there and back that overlap: a dissipation of a few kT.

    Args:
        forward, backward: [f], [b] work of every switch, eV.
        temperature: temperature of the thermostat, K.
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
    """Standard errors of `free_energy_change` from independent switches, both ways resampled with replacement, eV.

    The bootstrap of r samples underestimates the spread by the factor sqrt(1 - 1 / r), which is corrected.

    Args:
        key: PRNG key.
        forward, backward: [f], [b] work of every switch, two at least, eV.
        temperature: K.
        resamplings: number of bootstrap resamplings.
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
