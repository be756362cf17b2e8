"""L-BFGS (Nocedal, Math. Comput. 35, 773 (1980)) within a trust radius, for one structure; `jax.vmap` adds others.

There is no line search: each step costs one evaluation. A step after which the value has risen is taken back, the
radius becomes a quarter of its length and the history is forgotten; at a cusp the radius thus shrinks to nothing, which
distinguishes a stalled minimization from a converged one. Where atoms enter a cutoff, however, some published models
jump: a short step that raises the value although the gradient points downhill at both of its ends is still taken.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxpto.relaxation.coordinates import longest_row
from jaxpto.system import Leaf

MEMORY = 20  # pairs kept: nearly all there are for a cell of five atoms
CURVATURE = 70.0  # eV/Angstrom^2, of the first step, and ...
LARGEST = 0.2  # Angstrom, largest norm of a row of a step, as in ASE's BFGS
SHORT = 0.02  # Angstrom; a smooth energy has no barrier within such a step
COLLAPSED = 1e-8  # Angstrom; a radius below means that no step lowers the value


@struct.dataclass
class Descent:
    """State of a minimization (a pytree without a batch axis).

    Attributes:
        rows: [k, 3] accepted coordinates, Angstrom.
        gradient: [k, 3] gradient at `rows`, eV/Angstrom.
        value: value at `rows`, eV; infinite before the first evaluation.
        radius: bound of the next step, Angstrom.
        scale: initial inverse curvature of the next step, Angstrom^2/eV.
        moves, changes: [m, k, 3] differences of coordinates and gradients of accepted steps, the newest last.
        weights: [m] 1 / (move . change), 0 in an empty slot.
    """

    rows: Float[Leaf, "*batch k 3"]
    gradient: Float[Leaf, "*batch k 3"]
    value: Float[Leaf, "*batch"]
    radius: Float[Leaf, "*batch"]
    scale: Float[Leaf, "*batch"]
    moves: Float[Leaf, "*batch m k 3"]
    changes: Float[Leaf, "*batch m k 3"]
    weights: Float[Leaf, "*batch m"]


def init(rows: Float[Array, "k 3"]) -> Descent:
    """State before the first evaluation, which `propose` asks for at the given rows and `judge` accepts if finite."""
    nothing = jnp.zeros((MEMORY, *rows.shape), rows.dtype)
    return Descent(
        rows=rows,
        gradient=jnp.zeros_like(rows),
        value=jnp.asarray(jnp.inf, rows.dtype),
        radius=jnp.asarray(LARGEST, rows.dtype),
        scale=jnp.asarray(1.0 / CURVATURE, rows.dtype),
        moves=nothing,
        changes=nothing,
        weights=jnp.zeros(MEMORY, rows.dtype),
    )


def propose(descent: Descent) -> Float[Array, "k 3"]:
    """Coordinates [k, 3] to evaluate next."""
    step = _newton_step(descent)
    length = longest_row(step)
    return descent.rows + step * jnp.minimum(1.0, descent.radius / jnp.where(length > 0.0, length, 1.0))


def judge(
    descent: Descent,
    trial: Float[Array, "k 3"],
    value: Float[Array, ""],
    gradient: Float[Array, "k 3"],
    rise: Float[Array, ""],
) -> Descent:
    """Accept the proposed coordinates, or stay and shrink the radius if they are no better or not finite.

    Args:
        descent: state before the step.
        trial: [k, 3] coordinates from `propose`, Angstrom.
        value, gradient: value and gradient at `trial`, eV and eV/Angstrom.
        rise: allowed rise of the value, eV: rounding, or infinity where the forces are not its derivatives.
    """
    move, change = trial - descent.rows, gradient - descent.gradient
    jumped = (longest_row(move) < SHORT) & (jnp.sum(gradient * move) <= 0.0)
    better = (value <= descent.value + rise) | jumped
    accepted = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient)) & better
    curvature, moved, changed = jnp.sum(move * change), jnp.sum(move**2), jnp.sum(change**2)
    convex = curvature > 1e-10 * jnp.sqrt(moved * changed)
    weight = jnp.where(convex, 1.0 / jnp.where(convex, curvature, 1.0), 0.0)
    keep = accepted & convex
    measurable = (moved > 0.0) & (changed > 0.0)
    # Where the energy is concave the size of its curvature still tells the length of a step.
    inverse_curvature = jnp.where(convex, curvature, jnp.sqrt(moved * changed)) / jnp.where(measurable, changed, 1.0)
    scale = jnp.where(measurable, inverse_curvature, descent.scale)

    def push(kept: Array, newest: Array) -> Array:
        return jnp.where(keep, jnp.concatenate([kept[1:], newest[None]]), kept)

    weights = push(descent.weights, weight)
    return Descent(
        rows=jnp.where(accepted, trial, descent.rows),
        gradient=jnp.where(accepted, gradient, descent.gradient),
        value=jnp.where(accepted, value, descent.value),
        radius=jnp.where(accepted, jnp.minimum(LARGEST, 2.0 * descent.radius), 0.25 * longest_row(move)),
        scale=jnp.where(accepted, scale, 1.0 / CURVATURE),
        moves=push(descent.moves, move),
        changes=push(descent.changes, change),
        weights=jnp.where(accepted, weights, 0.0),
    )


def _newton_step(descent: Descent) -> Float[Array, "k 3"]:
    """-B g with the two loops over the pairs, B starting from the scale."""
    pairs = (descent.moves, descent.changes, descent.weights)

    def backward(vector: Array, pair: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        move, change, weight = pair
        along = weight * jnp.sum(move * vector)
        return vector - along * change, along

    def forward(vector: Array, pair: tuple[tuple[Array, Array, Array], Array]) -> tuple[Array, None]:
        (move, change, weight), along = pair
        return vector + move * (along - weight * jnp.sum(change * vector)), None

    vector, along = jax.lax.scan(backward, descent.gradient, pairs, reverse=True)
    step, _ = jax.lax.scan(forward, descent.scale * vector, (pairs, along))
    return -step
