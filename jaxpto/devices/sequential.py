"""How the replicas of a batch share one device: one after another on a CPU, side by side on an accelerator."""

from __future__ import annotations

import functools

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
