"""Enthalpy and entropy of a phase transition from thermodynamics on both of its sides.

A small crystal passes through a first-order transition without a jump. With H(T) of the ordered phase extrapolated from
below by a parabola, and that of the disordered phase from above by a straight line of slope C,

    enthalpy of transition = H_disordered(T_c) - H_ordered(T_c),    its entropy = enthalpy / T_c,

and the total entropy, which includes the loss of order below the transition, is the entropy of the disordered phase
extrapolated to the lowest temperature T_0, less the entropy there:

    total entropy = <S(T) - C ln(T / T_0)>_disordered - S(T_0).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

FEWEST = 3  # temperatures in each phase


@dataclasses.dataclass(frozen=True)
class PhaseBracket:
    """Which temperatures of a ladder belong to which phase.

    Attributes:
        temperature: T_c, K.
        ordered, disordered: [k] masks; temperatures within the bracket of T_c belong to neither.
    """

    temperature: float
    ordered: Bool[np.ndarray, " k"]
    disordered: Bool[np.ndarray, " k"]


class TransitionThermodynamics(NamedTuple):
    """Enthalpy and entropy of a transition, for the whole cell.

    Attributes:
        enthalpy: enthalpy of transition, eV.
        entropy: enthalpy over T_c, eV/K.
        total_entropy: with what the order loses below T_c, eV/K.
    """

    enthalpy: Float[Array, ""]
    entropy: Float[Array, ""]
    total_entropy: Float[Array, ""]


def phase_bracket(
    temperatures: Float[np.ndarray, " k"], lower: float | None, upper: float | None
) -> PhaseBracket | None:
    """Assign the temperatures of a ladder to the two phases of a transition between two of them.

    Args:
        temperatures: [k] ascending, K.
        lower, upper: highest ordered and lowest disordered temperature, K; None without a transition.

    Returns:
        The bracket, or None without a transition or with fewer than three temperatures on a side of it.
    """
    if lower is None or upper is None:
        return None
    ordered, disordered = temperatures <= lower + 1e-6, temperatures >= upper - 1e-6
    if min(ordered.sum(), disordered.sum()) < FEWEST:
        return None
    return PhaseBracket(0.5 * (lower + upper), ordered, disordered)


def transition_thermodynamics(
    temperatures: Float[Array, " k"], enthalpy: Float[Array, " k"], entropy: Float[Array, " k"], bracket: PhaseBracket
) -> TransitionThermodynamics:
    """Enthalpy and entropy of the transition; differentiable in all arrays.

    Args:
        temperatures: [k] ascending, K.
        enthalpy: [k] eV, relative to any reference.
        entropy: [k] eV/K, relative to any reference.
        bracket: the temperatures of each phase.
    """
    away = (temperatures - bracket.temperature) / 100.0  # of order one, for the normal equations
    ordered = _polynomial(away, enthalpy, bracket.ordered, 2 if bracket.ordered.sum() > FEWEST else 1)
    disordered = _polynomial(away, enthalpy, bracket.disordered, 1)
    heat = disordered[0] - ordered[0]
    carried_on = entropy - disordered[1] / 100.0 * jnp.log(temperatures / temperatures[0])
    weight = jnp.asarray(bracket.disordered, entropy.dtype)
    total = jnp.sum(weight * carried_on) / jnp.sum(weight) - entropy[0]
    return TransitionThermodynamics(heat, heat / bracket.temperature, total)


def _polynomial(
    x: Float[Array, " k"], y: Float[Array, " k"], mask: Bool[np.ndarray, " k"], degree: int
) -> Float[Array, " c"]:
    """Coefficients, ascending, of the least-squares polynomial through the masked points."""
    powers = jnp.stack([x[mask] ** power for power in range(degree + 1)], axis=1)
    gram = jnp.matmul(powers.T, powers, precision="highest")
    return jnp.linalg.solve(gram, jnp.matmul(powers.T, y[mask], precision="highest"))
