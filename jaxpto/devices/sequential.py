"""How replicas, or members of a committee, share one device: one after another on a CPU, else side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import sequential_vmap

from jaxpto.model_interface import EvaluateFn, Prediction
from jaxpto.neighbors import Neighbors
from jaxpto.system import System


def sequential_over_replicas(evaluate: EvaluateFn) -> EvaluateFn:
    """An evaluate function that a CPU runs for one replica of a batch (`jax.vmap`) after another.

    Side by side, replicas compete for the caches: at 625 atoms a step takes twice as long, and the memory of all
    replicas is needed at once. An accelerator evaluates them side by side, which keeps it busy.

    Do not use it in a loop inside the `vmap`: JAX cannot carry the traced parameters that `evaluate` closes over into
    that loop.

    Args:
        evaluate: energy, forces and stress of one system, such as `potential.evaluate`.
    """

    def one_after_another(system: System, neighbors: Neighbors) -> Prediction:
        if neighbors.layout.platform != "cpu":
            return evaluate(system, neighbors)
        arrays, structure = jax.tree.flatten((system, neighbors))

        # takes bare arrays: JAX would put its markers for batched leaves into a System, which admits arrays only
        @sequential_vmap
        @functools.partial(jax.jit, inline=True)
        def of_arrays(*arrays: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            found = evaluate(*jax.tree.unflatten(structure, arrays))
            return found.energy, found.forces, found.stress

        return Prediction(*of_arrays(*arrays))

    return one_after_another


def over_members(function: Callable[..., Any], platform: str) -> Callable[..., Any]:
    """A function of one member of a committee as one of all members: arguments and results have a leading axis.

    Within one program a CPU takes one member after the other, whose arrays then fit its caches; an accelerator takes
    all at once (`jax.vmap`).

    Args:
        function: takes and returns pytrees of arrays.
        platform: where they are, as in `Layout.platform`.
    """
    if platform != "cpu":
        return jax.vmap(function)
    return lambda *trees: jax.lax.map(lambda one: function(*one), trees)
