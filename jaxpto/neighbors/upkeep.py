"""When a neighbour list is out of date, and how the lists of many replicas are rebuilt."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxpto.neighbors.lists import Neighbors, build
from jaxpto.neighbors.search import inverse, matmul
from jaxpto.neighbors.waves import outgrown
from jaxpto.system import System

_AHEAD = 0.9  # part of the skin by which a list is built ahead; less than all, as it must hold here as well
_STEPS_AHEAD = 4.0  # at most: atoms turn back, and a list that lasts longer costs nothing anyway


def needs_rebuild(neighbors: Neighbors, system: System) -> Bool[Array, ""]:
    """Whether some pair outside the list may have come within the cutoff.

    With F the deformation from the reference cell to the present one, x = F (x_ref + u), a pair now at distance r was
    at |F^-1 r - (u_j - u_i)| <= r |F^-1| + |u_j| + |u_i| with the spectral norm of F^-1; the list stays complete while
    that is below cutoff + skin. Where wave vectors are summed, true as well once the cell has some that have no place.
    False if something is not a number, since no list would help.
    """
    layout = neighbors.layout
    moved, back_strain = _moved(neighbors.reference_positions, neighbors.reference_cell, system)
    strain = back_strain - jnp.eye(3, dtype=back_strain.dtype)
    # |1 + E|^2 = 1 + largest eigenvalue of E + E^T + E E^T
    stretch = jnp.sqrt(1.0 + _largest_eigenvalue(strain + strain.T + matmul(strain, strain.T)))
    stale = layout.cutoff * stretch + _two_longest(moved) > layout.cutoff + layout.skin
    return stale | outgrown(system.cell, layout.wave_cutoff, layout.waves) if layout.wave_cutoff else stale


def refresh(
    systems: System, neighbors: Neighbors, active: Bool[Array, " r"], before: System | None = None
) -> Neighbors:
    """Rebuild the lists of the replicas that need it; use it outside any `vmap`.

    The list of a replica depends on its own trajectory only. Lists of inactive replicas are left as they are.

    Args:
        systems: [r] batched systems for which the lists must hold.
        neighbors: [r] batched lists; an overflow flag that is set stays set.
        active: [r] whether each replica runs.
        before: [r] batched systems one step ago. New lists are then built around the positions where the atoms are
            headed, so that the skin serves the way there and the way on: lists last half as long again.
    """
    needed = active & jax.vmap(needs_rebuild)(neighbors, systems)

    # A loop of mostly no turns: unlike a branch that is not taken (`lax.cond`) it does not copy the lists.
    def some(carry: tuple[Neighbors, Array]) -> Array:
        return jnp.any(carry[1])

    # A CPU builds one list after another, so that only those in need cost anything; others build all at once.
    rebuild = _rebuild_first if neighbors.layout.platform == "cpu" else _rebuild_all

    def turn(carry: tuple[Neighbors, Array]) -> tuple[Neighbors, Array]:
        # Tied to what a turn changes: XLA takes everything else out of the loop, where it runs though no turn does.
        lists, (paths, needed) = carry[0], jax.lax.optimization_barrier(((systems, before), carry[1]))
        return rebuild(paths, lists, needed)

    return jax.lax.while_loop(some, turn, (neighbors, needed))[0]


def _rebuild_first(
    paths: tuple[System, System | None], neighbors: Neighbors, needed: Bool[Array, " r"]
) -> tuple[Neighbors, Array]:
    first = jnp.argmax(needed)
    new = _rebuild(*jax.tree.map(lambda leaf: leaf[first], (paths, neighbors)))
    return jax.tree.map(lambda leaf, part: leaf.at[first].set(part), neighbors, new), needed.at[first].set(False)


def _rebuild_all(
    paths: tuple[System, System | None], neighbors: Neighbors, needed: Bool[Array, " r"]
) -> tuple[Neighbors, Array]:
    def pick(need: Array, path: tuple[System, System | None], old: Neighbors) -> Neighbors:
        return jax.tree.map(lambda a, b: jnp.where(need, a, b), _rebuild(path, old), old)

    return jax.vmap(pick)(needed, paths, neighbors), jnp.zeros_like(needed)


def _rebuild(path: tuple[System, System | None], old: Neighbors) -> Neighbors:
    system, before = path
    new = build(system if before is None else _ahead(system, before, old.layout.skin), old.layout)
    return dataclasses.replace(new, overflow=old.overflow | new.overflow)


def _ahead(system: System, before: System, skin: float) -> System:
    """Extrapolate the step from `before`, as far as a list built there still holds for the present positions."""
    back, _ = _moved(system.positions, system.cell, before)
    smallest = jnp.finfo(back.dtype).tiny
    steps = jnp.minimum(_STEPS_AHEAD, _AHEAD * skin / jnp.maximum(_two_longest(back), smallest))
    return dataclasses.replace(system, positions=system.positions - steps * back)


def _moved(
    positions: Float[Array, "n 3"], cell: Float[Array, "3 3"], system: System
) -> tuple[Float[Array, "n 3"], Float[Array, "3 3"]]:
    """Distances of the atoms from given positions after the strain to the given cell is applied, and that strain."""
    back_strain = matmul(inverse(system.cell), cell)
    moved = matmul(system.positions, back_strain) - positions
    return moved - moved.mean(0)[None, :], back_strain  # a common drift moves no pair


def _two_longest(moved: Float[Array, "n 3"]) -> Float[Array, ""]:
    """Sum of the two largest lengths: no pair can have come closer by more."""
    squares = jnp.sum(moved**2, axis=-1)
    second = jnp.max(jnp.where(jnp.arange(squares.shape[0]) == jnp.argmax(squares), 0.0, squares))
    return jnp.sqrt(jnp.max(squares)) + jnp.sqrt(second)


def _largest_eigenvalue(symmetric: Float[Array, "3 3"]) -> Float[Array, ""]:
    """Upper bound (exact for uniaxial and isotropic matrices, at most a third too large) q + 2 p of the closed form
    q + 2 p cos(phi), with q = tr(A) / 3 and 6 p^2 = |A - q|^2."""
    q = jnp.trace(symmetric) / 3.0
    return q + 2.0 * jnp.sqrt(jnp.sum((symmetric - q * jnp.eye(3, dtype=symmetric.dtype)) ** 2) / 6.0)
