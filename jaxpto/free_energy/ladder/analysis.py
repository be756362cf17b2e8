"""Thermodynamics with error bars from a ladder of sampled temperatures, and the check that its neighbours overlap."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.errors import InputError
from jaxpto.free_energy.estimators import mbar
from jaxpto.free_energy.estimators.samples import EnthalpySamples
from jaxpto.free_energy.estimators.transition import PhaseBracket, TransitionThermodynamics, transition_thermodynamics
from jaxpto.free_energy.ladder.thermodynamics import (
    Thermodynamics,
    fluctuation_heat_capacity,
    gibbs_helmholtz,
    reduced,
    thermodynamics,
)
from jaxpto.units import BOLTZMANN

LEAST_OVERLAP = 0.03  # of neighbours (Klimovich, Shirts, Mobley, J. Comput.-Aided Mol. Des. 29, 397, 2015)
GOOD_SPACING = 2.0  # change of 1 / kT times the standard deviation of h; two such Gaussians overlap by 0.22


@dataclasses.dataclass(frozen=True)
class LadderResult:
    """Thermodynamics of the whole cell relative to the lowest temperature, and how far to trust it.

    Attributes:
        wanted: [t] K.
        values, errors: by MBAR at `wanted`, with bootstrap standard errors.
        integrated, integrated_errors: [k] G at the ladder's temperatures by Gibbs-Helmholtz integration, eV.
        fluctuations, fluctuations_errors: [k] heat capacity from the variance of h, eV/K.
        overlap: [k, k] overlap matrix.
        effective: [k] effective number of samples at the ladder's temperatures.
        samples: the samples behind all of it.
        bracket: which temperatures lie on which side of a transition, or None.
        transition, transition_errors: its enthalpy and entropy, with bootstrap standard errors; None without one.
    """

    wanted: Float[np.ndarray, " t"]
    values: Thermodynamics
    errors: Thermodynamics
    integrated: Float[np.ndarray, " k"]
    integrated_errors: Float[np.ndarray, " k"]
    fluctuations: Float[np.ndarray, " k"]
    fluctuations_errors: Float[np.ndarray, " k"]
    overlap: Float[np.ndarray, "k k"]
    effective: Float[np.ndarray, " k"]
    samples: EnthalpySamples
    bracket: PhaseBracket | None
    transition: TransitionThermodynamics | None
    transition_errors: TransitionThermodynamics | None


def analyse_ladder(
    samples: EnthalpySamples,
    wanted: Float[np.ndarray, " t"],
    degrees_of_freedom: int,
    *,
    bracket: PhaseBracket | None = None,
    resamplings: int = 100,
    seed: int = 0,
) -> LadderResult:
    """Thermodynamics at `wanted` from the samples of a ladder, the lowest temperature being the reference.

    Args:
        samples: independent samples at each temperature.
        wanted: [t] K, within the ladder.
        degrees_of_freedom: number of momentum degrees of freedom, 3 N - 3 in npt.
        bracket: the phases, if the ladder leads through a transition.
        resamplings: number of bootstrap resamplings.
        seed: seed of the bootstrap.

    Raises:
        InputError: neighbouring temperatures do not overlap, or `wanted` lies outside of the ladder.
    """
    low, high = samples.temperatures[0], samples.temperatures[-1]
    if wanted.min() < low - 1e-9 or wanted.max() > high + 1e-9:
        raise InputError(f"{wanted.min():g} to {wanted.max():g} K: the ladder goes from {low:g} to {high:g} K only")
    with jax.enable_x64(True):
        counts, temperatures = jnp.asarray(samples.counts), jnp.asarray(samples.temperatures)
        pooled = np.concatenate(samples.enthalpies)
        origin = pooled.mean()
        overlap, effective = map(np.asarray, _trust(jnp.asarray(pooled - origin), counts, temperatures))
        check_ladder_overlap(samples, overlap)
        one = functools.partial(
            _one,
            counts=counts,
            temperatures=temperatures,
            owner=jnp.asarray(np.repeat(np.arange(len(samples.counts)), samples.counts.astype(int))),
            wanted=jnp.asarray(wanted),
            freedom=degrees_of_freedom,
            bracket=bracket,
        )
        generator = np.random.default_rng(seed)
        rows = [np.concatenate([generator.choice(h, len(h)) for h in samples.enthalpies]) for _ in range(resamplings)]
        values = jax.device_get(jax.jit(one)(jnp.asarray(pooled - origin)))
        spread = jax.device_get(jax.jit(lambda many: jax.lax.map(one, many))(jnp.asarray(np.stack(rows) - origin)))
        errors = jax.tree.map(lambda leaf: np.std(leaf, axis=0, ddof=1), spread)
        # at the reference only rounding is left
        values, errors = (
            jax.tree.map(lambda x: np.where(np.abs(x) < 1e-12, 0.0, x), part) for part in (values, errors)
        )
    return LadderResult(
        wanted=wanted,
        values=values[0],
        errors=errors[0],
        integrated=values[1],
        integrated_errors=errors[1],
        fluctuations=values[2],
        fluctuations_errors=errors[2],
        overlap=overlap,
        effective=effective,
        samples=samples,
        bracket=bracket,
        transition=values[3],
        transition_errors=errors[3],
    )


def check_ladder_overlap(samples: EnthalpySamples, overlap: Float[np.ndarray, "k k"]) -> None:
    """Refuse a ladder whose neighbours hardly share configurations.

    Raises:
        InputError: the message names the spacing that would do.
    """
    shared = np.minimum(np.diagonal(overlap, 1), np.diagonal(overlap, -1))
    worst = int(np.argmin(shared))
    if shared[worst] >= LEAST_OVERLAP:
        return
    first, second = samples.temperatures[worst : worst + 2]
    deviation = max(float(np.std(samples.enthalpies[k])) for k in (worst, worst + 1))
    spacing = GOOD_SPACING * BOLTZMANN * first * second / deviation
    raise InputError(
        f"{first:g} and {second:g} K overlap by {shared[worst]:.2g}, at least {LEAST_OVERLAP:g} is needed; "
        f"give a ladder with steps of {spacing:.2g} K there, or a smaller `supercell`"
    )


def _one(
    enthalpies: Float[Array, " n"],
    *,
    counts: Float[Array, " k"],
    temperatures: Float[Array, " k"],
    owner: Int[Array, " n"],
    wanted: Float[Array, " t"],
    freedom: int,
    bracket: PhaseBracket | None,
) -> tuple[Thermodynamics, Float[Array, " k"], Float[Array, " k"], TransitionThermodynamics | None]:
    """MBAR, Gibbs-Helmholtz, fluctuations and the transition from one set of samples."""
    found = thermodynamics(enthalpies, counts, temperatures, wanted, temperatures[0], freedom)
    means = jax.ops.segment_sum(enthalpies, owner, counts.shape[0]) / counts
    variances = jax.ops.segment_sum((enthalpies - means[owner]) ** 2, owner, counts.shape[0]) / (counts - 1.0)
    integrated = gibbs_helmholtz(means, variances, temperatures, freedom)
    fluctuations = fluctuation_heat_capacity(variances, temperatures, freedom)
    if bracket is None:
        return found, integrated, fluctuations, None
    there = thermodynamics(enthalpies, counts, temperatures, temperatures, temperatures[0], freedom)
    return (
        found,
        integrated,
        fluctuations,
        transition_thermodynamics(temperatures, there.enthalpy, there.entropy, bracket),
    )


@jax.jit
def _trust(
    enthalpies: Float[Array, " n"], counts: Float[Array, " k"], temperatures: Float[Array, " k"]
) -> tuple[Float[Array, "k k"], Float[Array, " k"]]:
    """Overlap matrix and effective samples at the temperatures of the ladder."""
    energies = reduced(enthalpies, temperatures)
    mixture = mbar.solve(energies, counts)
    effective = jax.vmap(lambda row: mbar.effective_samples(mbar.probabilities(mixture, row)))(energies)
    return mbar.overlap(mixture, energies, counts), effective
