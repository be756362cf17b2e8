"""Energies of atoms that depend on their own neighbours alone, computed for a few atoms at a time.

Such models need not keep the features of all edges at once: a slice of atoms goes through all of the network, and its
forces are there before the next one starts. What a slice needs fits the caches of a processor, whatever the system.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from jaxpto.neighbors import Layout


def slices_of(n: int, longest: int) -> Int32[Array, "i m"]:
    """Rows 0 to n - 1 in slices of equal length, at most `longest`; the last slice may run past the end."""
    slices = math.ceil(n / longest)
    # a multiple of 4, for the loops over a quarter of the rows that models have within
    length = min(longest, 4 * math.ceil(n / slices / 4))
    return jnp.arange(slices * length, dtype=jnp.int32).reshape(slices, length)


CROWD = 1024  # atoms whose energy alone goes in slices; of fewer it can be differentiated forwards too


def atoms_at_a_time(n: int, longest: int, layout: Layout) -> Int32[Array, "i m"] | None:
    """Slices of n atoms where a processor has more than fit its caches; None: all at once.

    Slices of atoms that are dealt out over devices would be gathered.
    """
    at_once = n <= longest or layout.platform != "cpu" or layout.devices > 1
    return None if at_once else slices_of(n, longest)


def total_energy(
    some: Callable[[Any, Array, Array], Array],
    longest: int,
    layout: Layout,
    params: Any,
    vectors: Float[Array, "e 3"],
    numbers: Int[Array, " n"],
) -> Float[Array, ""]:
    """Energy of all atoms, eV, as a sum over atoms that depend on their own rows alone.

    Args:
        some: (params, rows of vectors [m, s, 3], their atomic numbers) -> energies of these atoms [m], eV.
        longest: atoms that go through at once.
        layout: layout of the dense neighbour list.
        params: parameters.
        vectors: edge vectors of all atoms, Angstrom.
        numbers: atomic numbers.
    """
    n = numbers.shape[0]
    rows = vectors.reshape(n, -1, 3)
    if n <= CROWD or atoms_at_a_time(n, longest, layout) is None:
        return some(params, rows, numbers).sum()
    return local_energies(lambda p, v, others: some(p, v, *others), longest, params, rows, (numbers,)).sum()


def in_slices(function: Callable[..., Any], longest: int, *arrays: Array) -> Any:
    """Apply a function to a few rows at a time; its derivative recomputes them instead of storing what it needs.

    Args:
        function: takes slices of the arrays; a row's result depends on that row only.
        longest: rows that go through at once.
        arrays: [n, ...].
    """
    n = arrays[0].shape[0]
    # the last row again and again: zeros could be where a derivative is infinite
    index = jnp.minimum(slices_of(n, longest), n - 1)

    @jax.checkpoint
    def step(_: None, index: Array) -> tuple[None, Any]:
        # looked up: what a loop is handed XLA cuts out anew for every number that is made of it, element by element
        return None, function(*(x.at[index].get(mode="promise_in_bounds") for x in arrays))

    results = jax.lax.scan(step, None, index)[1]
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], results)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def local_energies(
    function: Callable[[Any, Array, tuple[Array, ...]], Array],
    longest: int,
    params: Any,
    vectors: Float[Array, "n s 3"],
    others: tuple[Array, ...],
) -> Float[Array, " n"]:
    """Energies of atoms that depend on their own rows alone, computed for a few atoms at a time.

    Where forces are wanted, each slice gives its derivative as soon as its energies are there, so that nothing is
    computed twice; where derivatives in the parameters are, the slices are done again. It can be differentiated
    backwards, also twice, but not forwards (`jax.jvp`).

    Args:
        function: (params, rows of vectors, rows of others) -> energies of these atoms.
        longest: atoms that go through at once.
        params: pytree that every slice sees.
        vectors: to the neighbours of each atom, Angstrom.
        others: arrays of integers [n, ...].
    """
    return _energies(function, longest, params, vectors, others)


def _energies(
    function: Callable[..., Array], longest: int, params: Any, vectors: Array, others: tuple[Array, ...]
) -> Array:
    return in_slices(lambda vectors, *others: function(params, vectors, others), longest, vectors, *others)


def _save(
    function: Callable[..., Array], longest: int, params: Any, vectors: Any, others: Any
) -> tuple[Array, tuple[Any, Array | None]]:
    values = jax.tree.map(lambda primal: primal.value, (params, vectors, others))
    if any(primal.perturbed for primal in jax.tree.leaves(params)):
        return _energies(function, longest, *values), (values, None)

    def both(vectors: Array, *others: Array) -> tuple[Array, Array]:
        energies, transpose = jax.vjp(lambda x: function(values[0], x, others), vectors)
        return energies, transpose(jnp.ones_like(energies))[0]

    energies, gradient = in_slices(both, longest, values[1], *values[2])
    return energies, (values, gradient)


def _spread(
    function: Callable[..., Array], longest: int, saved: tuple[Any, Array | None], cotangent: Array
) -> tuple[Any, Array, Any]:
    (params, vectors, others), gradient = saved
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        cotangent = jnp.zeros(cotangent.shape, cotangent.dtype)
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), others)
    if gradient is not None:
        return jax.tree.map(jnp.zeros_like, params), cotangent[:, None, None] * gradient, nothing

    _, transpose = jax.vjp(lambda p, v: _energies(function, longest, p, v, others), params, vectors)
    return *transpose(cotangent), nothing


local_energies.defvjp(_save, _spread, symbolic_zeros=True)
