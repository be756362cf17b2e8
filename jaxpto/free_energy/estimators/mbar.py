"""MBAR: free energies of several states from samples of all of them (Shirts & Chodera, JCP 129, 124105, 2008).

With reduced energies u_k(n) of every sample n (of whichever state) in state k, and N_k samples drawn from state k,

    f_k = -ln sum_n W(n) exp(-u_k(n)),    W(n) = 1 / sum_l N_l exp(f_l - u_l(n)).

The equations are the stationary point of a convex function of f, found by Newton steps. Derivatives of f with respect
to the energies follow from the implicit function theorem, not from the iterations: they say how the estimate changes
with the energies while the samples stay. To get the derivative of a free energy with respect to a parameter of its
state, <du/dp>, differentiate `free_energy` in the energies of the wanted state and hold the mixture fixed
(`jax.lax.stop_gradient`): a changed state is none of those that were sampled.
Everything is a pure function of arrays in double precision; energies are in units of kT throughout ("reduced").
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

TOLERANCE = 1e-13  # of the equations, as a fraction of the samples
MOST_ITERATIONS = 500


class Mixture(NamedTuple):
    """All samples as draws from the mixture of all states.

    Attributes:
        free_energies: [k] f of the sampled states, the first one zero.
        log_weights: [n] ln W(n) of each sample.
    """

    free_energies: Float[Array, " k"]
    log_weights: Float[Array, " n"]


def solve(energies: Float[Array, "k n"], counts: Float[Array, " k"]) -> Mixture:
    """Free energies of the states that were sampled; differentiable in `energies`.

    Args:
        energies: [k, n] reduced energy of every sample in every state, the samples of one state after another.
        counts: [k] samples drawn from each state, all above zero.
    """

    def residual(unknown: Float[Array, " u"]) -> Float[Array, " u"]:
        return _residual(_with_first(unknown), energies, counts)[1:]

    def newton(_: object, guess: Float[Array, " u"]) -> Float[Array, " u"]:
        return jax.lax.stop_gradient(_minimize(guess, energies, counts))

    def solve_tangent(linear, y: Float[Array, " u"]) -> Float[Array, " u"]:
        return jnp.linalg.solve(jax.jacobian(linear)(y), y)

    guess = jax.lax.stop_gradient(_neighbour_guess(energies, counts))[1:]
    free_energies = _with_first(jax.lax.custom_root(residual, guess, newton, solve_tangent))
    return Mixture(free_energies, _log_weights(free_energies, energies, counts))


def free_energy(mixture: Mixture, energies: Float[Array, " n"]) -> Float[Array, ""]:
    """f of any state, sampled or not, from the reduced energies [n] of all samples in it."""
    return -logsumexp(mixture.log_weights - energies)


def probabilities(mixture: Mixture, energies: Float[Array, " n"]) -> Float[Array, " n"]:
    """Weight of each sample in averages of the state with these reduced energies [n]; they add up to one."""
    return jax.nn.softmax(mixture.log_weights - energies)


def overlap(mixture: Mixture, energies: Float[Array, "k n"], counts: Float[Array, " k"]) -> Float[Array, "k k"]:
    """O_ij, how likely a sample of state i is to be found in state j; rows add up to one (Klimovich et al., 2015)."""
    weights = jnp.exp(mixture.log_weights[None, :] - energies + mixture.free_energies[:, None])
    return jnp.matmul(weights, weights.T, precision="highest") * counts[None, :]


def effective_samples(weights: Float[Array, " n"]) -> Float[Array, ""]:
    """Kish's number of equally weighted samples, (sum w)^2 / sum w^2, of weights [n]."""
    return jnp.sum(weights) ** 2 / jnp.sum(weights**2)


def _with_first(unknown: Float[Array, " u"]) -> Float[Array, " k"]:
    return jnp.concatenate([jnp.zeros(1, unknown.dtype), unknown])


def _log_weights(
    f: Float[Array, " k"], energies: Float[Array, "k n"], counts: Float[Array, " k"]
) -> Float[Array, " n"]:
    return -logsumexp((f + jnp.log(counts))[:, None] - energies, axis=0)


def _residual(f: Float[Array, " k"], energies: Float[Array, "k n"], counts: Float[Array, " k"]) -> Float[Array, " k"]:
    """Gradient of the convex function, over the number of samples: N_k (sum_n W_k(n) - 1) / N."""
    total = logsumexp(_log_weights(f, energies, counts)[None, :] - energies, axis=1)
    return counts / jnp.sum(counts) * jnp.expm1(f + total)


def _neighbour_guess(energies: Float[Array, "k n"], counts: Float[Array, " k"]) -> Float[Array, " k"]:
    """f from the mean energy differences of neighbouring states, sampled in both (the trapezium rule)."""
    ends = jnp.cumsum(counts)
    place = jnp.arange(energies.shape[1])[None, :]
    mine = (place < ends[:, None]) & (place >= (ends - counts)[:, None])
    means = jnp.matmul(mine / counts[:, None], energies.T, precision="highest")  # [sampled in, evaluated in]
    own = jnp.diagonal(means)
    steps = 0.5 * (jnp.diagonal(means, 1) - own[:-1] + own[1:] - jnp.diagonal(means, -1))
    return jnp.concatenate([jnp.zeros(1, energies.dtype), jnp.cumsum(steps)])


def _minimize(
    guess: Float[Array, " u"], energies: Float[Array, "k n"], counts: Float[Array, " k"]
) -> Float[Array, " u"]:
    """Newton's step or that of the fixed-point equations, whichever leaves the smaller residual."""
    share = counts / jnp.sum(counts)

    def size(f: Float[Array, " k"]) -> Float[Array, ""]:
        return jnp.max(jnp.abs(_residual(f, energies, counts)))

    def step(state):
        f, _, turn = state
        log_weights = _log_weights(f, energies, counts)
        fixed = -logsumexp(log_weights[None, :] - energies, axis=1)
        weights = jnp.exp(log_weights[None, :] - energies + f[:, None])
        sums = jnp.sum(weights, axis=1)
        products = jnp.matmul(weights, weights.T, precision="highest")
        hessian = jnp.diag(share * sums) - share[:, None] * counts[None, :] * products
        downhill = jnp.linalg.solve(hessian[1:, 1:], (share * (sums - 1.0))[1:])
        newton = f - jnp.concatenate([jnp.zeros(1, f.dtype), downhill])
        fixed = fixed - fixed[0]
        better = jnp.isfinite(newton).all() & (size(newton) <= size(fixed))
        chosen = jnp.where(better, newton, fixed)
        return chosen, size(chosen), turn + 1

    def unfinished(state):
        _, residual, turn = state
        return (residual > TOLERANCE) & (turn < MOST_ITERATIONS)

    start = _with_first(guess)
    return jax.lax.while_loop(unfinished, step, (start, size(start), 0))[0][1:]
