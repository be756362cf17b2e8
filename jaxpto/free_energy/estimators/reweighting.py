"""Averages at parameters, temperatures and pressures other than the sampled ones, and their derivatives.

Of configurations drawn with the potential U0 at T0 and P0, the average with U at T and P is (Zwanzig, J. Chem. Phys.
22, 1420 (1954))

    <O> = sum_n w_n O_n,    w_n ~ exp(-[beta (U_n + P V_n) - beta0 (U0_n + P0 V_n)]),    beta = 1 / kT,

an ordinary function of the parameters p of U, of T and of P. Automatic differentiation of it gives

    d<O>/dp = <dO/dp> - beta cov(O, dU/dp),    d<O>/dT = cov(O, U + P V) / (k T^2),    d<O>/dP = -beta cov(O, V)

without going through a trajectory (Thaler and Zavadlav, Nat. Commun. 12, 6884 (2021)). The backward pass computes
each frame anew and adds up c_n dU_n/dp, so that its memory does not grow with the number of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxpto.errors import InputError
from jaxpto.neighbors import Layout, NeighborOverflowError, Neighbors, build, grow, grow_until_it_fits
from jaxpto.potential import Potential
from jaxpto.system import Leaf, System, volume
from jaxpto.units import BOLTZMANN

BATCH = 8  # frames evaluated at a time
REGROWS = 5  # enlargements of the neighbour list
NEWTON_STEPS = 50

Scalar = float | Float[Array, ""]

Observe = Callable[[Potential, System, Neighbors], Any]
"""Arrays of one frame, such as its stress; whatever depends on the parameters is differentiated too."""


@struct.dataclass
class Ensemble:
    """Configurations of one system, sampled at constant temperature and pressure (or at fixed cell).

    Attributes:
        systems: batched, f frames.
        energies: [f] U0 of the potential that sampled them, eV.
        temperature: K.
        pressure: eV/Angstrom^3.
    """

    systems: System
    energies: Float[Leaf, "*batch f"]
    temperature: Float[Leaf, "*batch"]
    pressure: Float[Leaf, "*batch"]


class Measured(NamedTuple):
    """Energies [f] eV and what was observed of every frame; whether a neighbour list was too small for one of them."""

    energies: Float[Array, " f"]
    values: Any
    overflow: Bool[Array, ""]


def nothing(potential: Potential, system: System, neighbors: Neighbors) -> tuple[()]:
    """Observe nothing but the energy."""
    return ()


def measure(
    potential: Potential, systems: System, layout: Layout, observe: Observe = nothing, *, batch: int = BATCH
) -> Measured:
    """Energy of every frame and what `observe` says about it; differentiable in the parameters.

    Args:
        potential: its parameters need not be those that sampled the frames.
        systems: batched, f frames.
        layout: sizes of the neighbour lists, which are built for each frame; read `Measured.overflow`.
        observe: called with the potential, one frame and its neighbours.
        batch: frames evaluated at a time; memory grows with it.
    """

    @jax.checkpoint
    def one(system: System) -> tuple[Array, Any, Array]:
        neighbors = build(system, layout)
        return potential.energy(system, neighbors), observe(potential, system, neighbors), neighbors.overflow

    energies, values, overflow = jax.lax.map(one, systems, batch_size=batch)
    return Measured(energies, values, overflow.any())


def record(
    potential: Potential,
    systems: System,
    temperature: float,
    pressure: float = 0.0,
    *,
    layout: Layout | None = None,
    batch: int = BATCH,
) -> tuple[Ensemble, Layout]:
    """The ensemble of sampled frames with their energies in the potential that sampled them, and a layout that fits.

    The energies are computed as `measure` will compute them under other parameters, so that rounding cancels.

    Args:
        potential: the potential that sampled the frames.
        systems: batched, f frames.
        temperature: K.
        pressure: eV/Angstrom^3.
        layout: sizes of neighbour lists to begin with; enlarged where they are too small.
        batch: frames evaluated at a time.

    Raises:
        InputError: a frame or its energy is not finite, or the lists keep overflowing.
    """
    cells = np.asarray(systems.cell)
    # an atom whose position is not a number has no neighbours, so that the energy alone would not show it
    _check_finite(np.concatenate([np.asarray(systems.positions), cells], axis=1))
    if layout is None:
        smallest = int(np.argmin(np.abs(np.linalg.det(cells))))
        layout = potential.allocate([jax.tree.map(lambda leaf: leaf[smallest], systems)], skin=0.0)
    try:
        found = grow_until_it_fits(
            lambda layout: _measure(potential, systems, layout, batch=batch),
            layout,
            overflowed=lambda measured: bool(measured.overflow),
            enlarge=lambda layout, _: grow(layout, cells),
            enlargements=REGROWS,
        )
    except NeighborOverflowError:
        raise InputError("a frame has ever more neighbours; leave out frames of a crystal that collapsed") from None
    energies = found.result.energies
    _check_finite(np.asarray(energies))
    at = (jnp.asarray(value, energies.dtype) for value in (temperature, pressure))
    return Ensemble(systems, energies, *at), found.layout


def _check_finite(values: np.ndarray) -> None:
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not finite.all():
        raise InputError(f"frame {int(np.argmin(finite))} is not finite; leave it out")


_measure = jax.jit(measure, static_argnames=("layout", "observe", "batch"))


def log_weights(
    ensemble: Ensemble, energies: Float[Array, " f"], temperature: Scalar, pressure: Scalar
) -> Float[Array, " f"]:
    """-[beta (U_n + P V_n) - beta0 (U0_n + P0 V_n)] of every frame, up to a constant.

    Args:
        ensemble: the frames and how they were sampled.
        energies: [f] U of every frame, eV, as `measure` gives it.
        temperature: T, K.
        pressure: P, eV/Angstrom^3.
    """
    return -_exponent(ensemble, energies, temperature, pressure)[0]


def weights(
    ensemble: Ensemble, energies: Float[Array, " f"], temperature: Scalar, pressure: Scalar
) -> Float[Array, " f"]:
    """Weight w_n of every frame in averages, one in sum; the arguments are those of `log_weights`."""
    return jax.nn.softmax(log_weights(ensemble, energies, temperature, pressure))


def average(weights: Float[Array, " f"], values: Float[Array, "f *k"]) -> Float[Array, "*k"]:
    """<O> of values [f, ...] with weights [f]."""
    return jnp.tensordot(weights, values.astype(weights.dtype), axes=1, precision="highest")


def replica_error(log_weights: Float[Array, "r s"], values: Float[Array, "r s *k"]) -> Float[Array, "*k"]:
    """Standard error of a reweighted average from its scatter when one of r independent replicas is left out.

    Args:
        log_weights: [r, s] log weights of the frames, one row for each replica.
        values: [r, s, ...] observed.
    """
    replicas = log_weights.shape[0]

    def without(left_out: Array) -> Array:
        kept = jnp.where((jnp.arange(replicas) == left_out)[:, None], -jnp.inf, log_weights)
        return average(jax.nn.softmax(kept.ravel()), values.reshape(-1, *values.shape[2:]))

    return jackknife(jax.vmap(without)(jnp.arange(replicas)))


def jackknife(left_out: Float[Array, "r *k"]) -> Float[Array, "*k"]:
    """Standard error of an estimate from its values [r, ...] with one of r independent parts left out."""
    replicas = left_out.shape[0]
    return jnp.sqrt((replicas - 1.0) * jnp.var(left_out, axis=0))


def reduced_gibbs(
    ensemble: Ensemble, energies: Float[Array, " f"], temperature: Scalar, pressure: Scalar
) -> Float[Array, ""]:
    """G / kT - G0 / kT0 = -ln <exp(-[beta (U + P V) - beta0 (U0 + P0 V)])>_0, without the momenta.

    Its derivative with respect to a parameter is <dU/dp> / kT. The arguments are those of `log_weights`.
    """
    exponent, constant = _exponent(ensemble, energies, temperature, pressure)
    frames = exponent.shape[0]
    return constant - jax.scipy.special.logsumexp(-exponent) + jnp.log(jnp.asarray(frames, exponent.dtype))


def transition_temperature(
    first: Ensemble,
    second: Ensemble,
    energies: tuple[Float[Array, " f"], Float[Array, " g"]],
    pressure: Scalar,
    offset: Scalar = 0.0,
) -> Float[Array, ""]:
    """Tc, K, where two phases have the same Gibbs energy, each sampled at one temperature near Tc (the same for both).

    Differentiable: with dG = G2 - G1 and dS = S2 - S1, dTc/dp = (d dG/dp) / dS for a parameter of the energies, where
    d dG/dp = <dU/dp>_2 - <dU/dp>_1 and dS = (<U + P V>_2 - <U + P V>_1) / Tc; for the pressure it is Clausius and
    Clapeyron's dV / dS. Both phases must hold the same atoms, whose kinetic parts then cancel.

    Args:
        first, second: the two phases.
        energies: [f], [g] U of the frames of both, eV.
        pressure: P, eV/Angstrom^3.
        offset: (G2 - G1) / kT where they were sampled: 0 for phases in coexistence there, ln(f / g) for f and g frames
            of one run, told apart by an order parameter.
    """
    start = jax.lax.stop_gradient(first.temperature)

    def residual(temperature: Array) -> Array:
        one = reduced_gibbs(first, energies[0], temperature, pressure)
        two = reduced_gibbs(second, energies[1], temperature, pressure)
        return two - one + offset

    def newton(function: Callable[[Array], Array], guess: Array) -> Array:
        def step(_: Array, temperature: Array) -> Array:
            value, slope = jax.value_and_grad(function)(temperature)
            # bounded: far from the sampled temperature a few frames carry all the weight
            return temperature - jnp.clip(value / slope, -0.02 * start, 0.02 * start)

        return jax.lax.fori_loop(0, NEWTON_STEPS, step, guess)

    return jax.lax.custom_root(residual, start, newton, lambda linear, y: y / linear(jnp.ones_like(y)))


def _exponent(
    ensemble: Ensemble, energies: Float[Array, " f"], temperature: Scalar, pressure: Scalar
) -> tuple[Float[Array, " f"], Float[Array, ""]]:
    """beta (U + P V) - beta0 (U0 + P0 V) of every frame, split into a part near zero and a constant.

    Differences are taken before anything is multiplied: thousands of eV over kT would lose digits.
    """
    wide = lambda leaf: jnp.asarray(leaf).astype(float)  # noqa: E731  # float64 where JAX has it
    beta, beta0 = 1.0 / (BOLTZMANN * wide(temperature)), 1.0 / (BOLTZMANN * wide(ensemble.temperature))
    before, volumes = wide(ensemble.energies), jax.vmap(volume)(wide(ensemble.systems.cell))
    change = wide(energies) - before
    energy0, volume0 = (jax.lax.stop_gradient(jnp.mean(x)) for x in (before, volumes))
    hotter, squeezed = beta - beta0, beta * wide(pressure) - beta0 * wide(ensemble.pressure)
    near = beta * change + hotter * (before - energy0) + squeezed * (volumes - volume0)
    return near, hotter * energy0 + squeezed * volume0
