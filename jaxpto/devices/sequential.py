"""How the replicas of a batch share one device."""

from __future__ import annotations

import functools

import jax
from jax.custom_batching import sequential_vmap

from jaxpto.model_interface import EvaluateFn, Prediction
from jaxpto.neighbors import Neighbors
from jaxpto.system import System


def in_turn(evaluate: EvaluateFn) -> EvaluateFn:
    """An evaluate function that the replicas of a batch (`jax.vmap`) go through one after another on a CPU.

    Side by side they would crowd each other out of the caches: twice the time at 625 atoms, and the memory of all of
    them at once. An accelerator takes them side by side, so that each of its kernels has enough to do.

    Not for a loop inside of the `vmap`: JAX cannot carry traced parameters that `evaluate` closes over into it.

    Args:
        evaluate: of one system, such as `potential.evaluate`.
    """
    if jax.default_backend() != "cpu":
        return evaluate

    def one_after_another(system: System, neighbors: Neighbors) -> Prediction:
        arrays, structure = jax.tree.flatten((system, neighbors))

        # of bare arrays: JAX would put its marks of what is batched into a System, which takes arrays only
        @sequential_vmap
        @functools.partial(jax.jit, inline=True)
        def of_arrays(*arrays: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            found = evaluate(*jax.tree.unflatten(structure, arrays))
            return found.energy, found.forces, found.stress

        return Prediction(*of_arrays(*arrays))

    return one_after_another
