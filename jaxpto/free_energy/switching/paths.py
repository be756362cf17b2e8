"""Paths of the potential energy: from the model to the Einstein crystal, and along a scaled energy of the model."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Weights(NamedTuple):
    """Factors of both energies along a path: H = model U + springs U_E.

    Attributes:
        model: factor of the model's energy.
        springs: factor of the springs' energy.
    """

    model: Float[Array, "*batch"]
    springs: Float[Array, "*batch"]


def smooth_step(progress: Float[Array, "*batch"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Position s on a path and 1 - s at the fraction t of the time; four derivatives vanish at both ends.

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
    """From U (0) to U / ratio (1) such that the temperature it stands for rises linearly to `ratio` times the first.

    At temperature T0, U T0 / T has the Boltzmann factors of U at T: reversible scaling (de Koning, Antonelli and Yip,
    Phys. Rev. Lett. 83, 3973, 1999).
    """
    return Weights(1.0 / (1.0 + progress * (ratio - 1.0)), jnp.zeros_like(progress))
