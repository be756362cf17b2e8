"""The symmetric contraction of MACE: equivariant polynomials of an atom's features, up to the third power.

Published files hold their own spanning sets of polynomials (23 and 51 cubic ones for l = 0 and 1) with many linear
relations between them. Here is one fixed basis (8 and 12), made from 3j symbols; a converter expresses a file's weights
in it, which changes no energy. Only the few monomials that symmetry allows are formed.
"""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.models.equivariant import wigner_3j

_NEGLIGIBLE = 1e-9  # coefficients of normalized tensors that are zero but for rounding


def width(highest: int) -> int:
    """Number of harmonics up to an l."""
    return (highest + 1) ** 2


@functools.cache
def symmetric_tensors(highest: int, order: int, l_out: int) -> Float[np.ndarray, "r k *m"]:
    """Basis of the equivariant symmetric tensors: orthonormal T[r, component, a, b, ...], one a index per power.

    Every chain of couplings l1, l2 -> l12, l3 -> l_out of harmonics with l <= highest and parity (-1)^l, symmetrized;
    those that depend on earlier ones are left out.

    Args:
        highest: largest l of the features.
        order: 1, 2 or 3, the power.
        l_out: l of the result, whose parity is (-1)^l_out.
    """
    found: list[np.ndarray] = []
    for ls in itertools.combinations_with_replacement(range(highest + 1), order):
        if (sum(ls) + l_out) % 2:
            continue
        for chain in _chains(ls, l_out):
            tensor = np.zeros((2 * l_out + 1, *(width(highest),) * order))
            tensor[:, *(slice(degree**2, (degree + 1) ** 2) for degree in ls)] = chain
            axes = itertools.permutations(range(1, order + 1))
            tensor = np.mean([tensor.transpose(0, *axis) for axis in axes], axis=0)
            size = np.linalg.norm(tensor)
            for _ in range(2):  # the second time for rounding
                tensor = tensor - sum(np.sum(other * tensor) * other for other in found)
            if np.linalg.norm(tensor) > 1e-6 * max(size, 1e-3):
                found.append(tensor / np.linalg.norm(tensor))
    return np.stack(found) if found else np.zeros((0, 2 * l_out + 1, *(width(highest),) * order))


def _chains(ls: tuple[int, ...], l_out: int) -> list[Float[np.ndarray, "k *m"]]:
    """Tensors [2 l_out + 1, 2 l1 + 1, ...] that couple harmonics of the given l to l_out."""
    if len(ls) == 1:
        return [np.eye(2 * l_out + 1)] if ls[0] == l_out else []
    first, second = ls[:2]
    between = range(abs(first - second), first + second + 1)
    if len(ls) == 2:
        return [np.moveaxis(wigner_3j(first, second, l_out), 2, 0)] if l_out in between else []
    third = ls[2]
    return [
        np.einsum("abx,xck->kabc", wigner_3j(first, second, middle), wigner_3j(middle, third, l_out))
        for middle in between
        if abs(middle - third) <= l_out <= middle + third
    ]


@functools.cache
def polynomials(
    highest: int, orders: tuple[int, ...], l_out: int
) -> tuple[tuple[Int[np.ndarray, "m 3"], Float[np.ndarray, "r m"]], ...]:
    """For each component of l_out, monomials and the coefficients in them of all basis polynomials of the orders.

    A monomial is three indices of harmonics, the index after the last standing for 1.
    """
    sets = [symmetric_tensors(highest, order, l_out) for order in orders]
    rows = sum(len(tensors) for tensors in sets)
    one = width(highest)
    result = []
    for component in range(2 * l_out + 1):
        monomials: list[tuple[int, ...]] = []
        columns: list[np.ndarray] = []
        above = 0
        for order, tensors in zip(orders, sets, strict=True):
            for places in itertools.combinations_with_replacement(range(one), order):
                values = tensors[:, component][:, *places]
                if np.abs(values).max(initial=0.0) > _NEGLIGIBLE:
                    column = np.zeros(rows)
                    repeats = math.prod(math.factorial(places.count(place)) for place in set(places))
                    column[above : above + len(tensors)] = values * (math.factorial(order) / repeats)
                    monomials.append((*places, *(one,) * (3 - order)))
                    columns.append(column)
            above += len(tensors)
        result.append((np.asarray(monomials, np.int32).reshape(-1, 3), np.stack(columns, axis=1)))
    return tuple(result)


def symmetric_contraction(
    features: Float[Array, "m n c"],
    weights: Float[Array, "n r c"],
    highest: int,
    orders: tuple[int, ...],
    l_out: int,
) -> Float[Array, "k n c"]:
    """Sum over basis polynomials of weight times polynomial (Batatia et al., NeurIPS 2022, eqs. 10 and 11).

    Args:
        features: features of n atoms, all harmonics up to l = highest, for each channel.
        weights: one for each atom (by its element), polynomial and channel.
        highest: largest l of the features.
        orders: powers, in the order of the polynomials.
        l_out: l of the result.
    """
    _, n, channels = features.shape
    flat = features.reshape(features.shape[0], n * channels)
    flat = jnp.concatenate([flat, jnp.ones_like(flat[:1])])
    weights = weights.transpose(1, 0, 2)
    results = []
    for monomials, coefficients in polynomials(highest, orders, l_out):
        first, second, third = (flat[monomials[:, power]] for power in range(3))
        basis = jnp.matmul(
            jnp.asarray(coefficients, flat.dtype), first * second * third, precision=jax.lax.Precision.HIGHEST
        )
        results.append(jnp.sum(weights * basis.reshape(-1, n, channels), axis=0))
    return jnp.stack(results)


def in_this_basis(
    tensors: Float[np.ndarray, "k *m p"], weights: Float[np.ndarray, "e p c"], highest: int, l_out: int
) -> Float[np.ndarray, "e r c"]:
    """Weights of the basis polynomials of one order from a file's tensors (U matrices) and their weights.

    Args:
        tensors: component of the result, one index per power, and number of the tensor.
        weights: one for each element, tensor and channel.
        highest: largest l of the features.
        l_out: l of the result.

    Raises:
        ValueError: the tensors are no equivariant ones of this basis.
    """
    order = tensors.ndim - 2
    axes = itertools.permutations(range(1, order + 1))
    symmetric = np.mean([tensors.transpose(0, *axis, order + 1) for axis in axes], axis=0)
    basis = symmetric_tensors(highest, order, l_out)
    rows = basis.reshape(len(basis), -1)
    columns = symmetric.reshape(-1, symmetric.shape[-1])
    overlap = rows @ columns
    scale = max(float(np.abs(columns).max()), 1e-300)
    rest = float(np.abs(columns - rows.T @ overlap).max()) / scale
    if rest > (1e-5 if tensors.dtype == np.float32 else 1e-10):
        raise ValueError(f"U matrices of power {order} for l = {l_out} are not equivariant (off by {rest:.1e})")
    return np.einsum("rp,epc->erc", overlap, np.asarray(weights, np.float64))
