"""What the Deep Potential models share: environment rows, residual networks, attention over neighbours, tables."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.models.layers import Linear, layer_norm, linear, row
from jaxpto.neighbors import Layout

Layers = dict[str, Linear]  # "0", "1", ...: weight [out, in], bias [out], and step [out] where the layer has one
MASKED = -(2.0**33)  # added to the logarithm of a weight that must vanish
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,  # in its tanh form, as in the original
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


def residual_net(
    layers: Layers, copies: tuple[int, ...], activation: str, x: Float[Array, "*batch in"]
) -> Float[Array, "*batch out"]:
    """y = [x, x, ...] + step f(W x + b) of one layer after another.

    Args:
        layers: their parameters.
        copies: how many copies of its input each layer adds to its result.
        activation: name of f, in `ACTIVATIONS`.
        x: input of the first layer.
    """
    for number, count in enumerate(copies):
        layer = layers[str(number)]
        y = ACTIVATIONS[activation](linear(layer, x))
        if "step" in layer:
            y = y * row(layer["step"], y)
        x = y + jnp.concatenate([x] * count, axis=-1) if count else y
    return x


def environment(vectors: Float[Array, "*batch 3"], start: float, cutoff: float) -> Float[Array, "*batch 4"]:
    """Rows s, s x/r, s y/r, s z/r with s = w / r and w = 10 v^3 - 15 v^4 + 6 v^5, v = (cutoff - r)/(cutoff - start).

    w is 1 below `start` and 0 beyond the cutoff (Zhang et al., NeurIPS 2018). DeePMD-kit writes the same quintic in
    1 - v, which in single precision has no digits left near the cutoff.

    Args:
        vectors: from the atom to its neighbours, Angstrom; of any length but zero.
        start, cutoff: Angstrom.
    """
    distance = jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True))
    v = jnp.clip((cutoff - distance) / (cutoff - start), 0.0, 1.0)
    s = v**3 * (10.0 - 15.0 * v + 6.0 * v**2) / distance
    return jnp.concatenate([s, s * (vectors / distance)], axis=-1)


def by_type(layout: Layout, elements: tuple[int, ...]) -> list[tuple[int, slice]]:
    """The type of each block of slots of a layout, and where the block is."""
    ends = np.cumsum(layout.slots).tolist()
    return [
        (elements.index(number), slice(end - size, end))
        for number, end, size in zip(layout.species, ends, layout.slots, strict=True)
    ]


def nearest(vectors: Float[Array, "n s 3"], most: int) -> Int[Array, "n k"]:
    """Indices of the nearest slots of each atom, sorted by distance; of slots equally far, the first."""
    squares = jax.lax.stop_gradient(jnp.sum(vectors**2, axis=-1))
    return jax.lax.top_k(-squares, min(most, vectors.shape[1]))[1]


def pick(values: Float[Array, "n s d"], index: Int[Array, "n k"]) -> Float[Array, "n k d"]:
    """Some slots of each atom."""
    return jnp.take_along_axis(values, index[:, :, None], axis=1)


def unit_rows(x: Float[Array, "*batch d"], floor: float) -> Float[Array, "*batch d"]:
    """x / max(|x|, floor), whose derivative is finite at x = 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), floor**2))


def attention(
    layer: dict[str, Linear],
    features: Float[Array, "n s m"],
    real: Float[Array, "n s"],
    gate: Float[Array, "n s s"] | None,
    scale: float,
    floor: float,
    epsilon: float,
) -> Float[Array, "n s m"]:
    """One layer of gated attention of each atom's neighbours to each other (Zhang et al., npj Comput. Mater. 10, 94).

    LN(G + (softmax(scale q k^T) * gate) v W + b), with rows q, k, v of G W + b of length 1.

    Args:
        layer: parameters query, key, value, out and norm.
        features: G of the neighbours.
        real: 1 for neighbours, 0 for empty slots, which nobody attends to.
        gate: factors of the weights, if there are any.
        scale: factor on the logarithms of the weights.
        floor: least length by which a row is divided.
        epsilon: what the normalization adds to the variance.
    """
    query, key, value = (unit_rows(linear(layer[name], features), floor) for name in ("query", "key", "value"))
    exact = jax.lax.Precision.HIGHEST
    logits = scale * jnp.einsum("nid,njd->nij", query, key, precision=exact) + MASKED * (1.0 - real)[:, None, :]
    weights = jax.nn.softmax(logits, axis=-1)
    weights = weights if gate is None else weights * gate
    attended = jnp.einsum("nij,njd->nid", weights, value, precision=exact)
    return layer_norm(layer["norm"], features + linear(layer["out"], attended), epsilon)


def invariants(density: Float[Array, "n 4 m"], axis: int) -> Float[Array, "n d"]:
    """X^T X[:, :axis] of each atom, flattened."""
    products = jnp.einsum("nam,nak->nmk", density, density[:, :, :axis], precision=jax.lax.Precision.HIGHEST)
    return products.reshape(density.shape[0], -1)


def fitting_network(
    fitting: Layers, copies: tuple[int, ...], activation: str, kind: Int[Array, ""] | int, x: Float[Array, "n d"]
) -> Float[Array, " n"]:
    """Result of the fitting network of one type of atoms.

    Args:
        fitting: layers of all networks, stacked [networks, ...]; one network serves all types.
        copies, activation: as in `residual_net`; the layer after these is linear.
        kind: the type.
        x: descriptors.
    """
    last = str(len(copies))
    number = kind if fitting[last]["weight"].shape[0] > 1 else 0
    layers = jax.tree.map(lambda leaf: leaf[number], fitting)
    return linear(layers[last], residual_net(layers, copies, activation, x))[:, 0]


def fitted(
    fitting: Layers,
    copies: tuple[int, ...],
    activation: str,
    kinds: list[int],
    types: Int[Array, " n"],
    x: Float[Array, "n d"],
) -> Float[Array, " n"]:
    """Result of the fitting network of each atom's type.

    Args:
        fitting, copies, activation: as in `fitting_network`.
        kinds: types that are there.
        types: types of the atoms.
        x: descriptors.
    """

    def network(kind: int) -> Array:
        return fitting_network(fitting, copies, activation, kind, x)

    if fitting[str(len(copies))]["weight"].shape[0] == 1:
        return network(0)
    # All networks for all atoms: a product with the weights of one type for many atoms beats a copy of them for each.
    return functools.reduce(jnp.add, [jnp.where(types == kind, network(kind), 0.0) for kind in kinds])


class Groups(NamedTuple):
    """Atoms in groups of one type each.

    Attributes:
        atoms: [g, w] index of each atom; n (their number) marks an empty place.
        types: [g] type of each group.
    """

    atoms: Int[Array, "g w"]
    types: Int[Array, " g"]


def make_groups(types: Int[Array, " n"], kinds: list[int], longest: int) -> Groups:
    """Put the atoms of each type into groups of equal width (at most `longest`, few places of which are empty).

    Args:
        types: types of the atoms.
        kinds: types that are there.
        longest: largest width.
    """
    n, number = types.shape[0], len(kinds)
    width = max(1, min(longest, n // (8 * number)))
    count = (n + number * (width - 1)) // width
    is_kind = types[None, :] == jnp.asarray(kinds, jnp.int32)[:, None]
    rank = jnp.sum(jnp.where(is_kind, jnp.cumsum(is_kind, axis=1, dtype=jnp.int32) - 1, 0), axis=0)
    full = -(-jnp.sum(is_kind, axis=1, dtype=jnp.int32) // width)
    first = jnp.cumsum(full, dtype=jnp.int32) - full
    place = jnp.sum(jnp.where(is_kind, first[:, None] * width, 0), axis=0) + rank
    atoms = jnp.full(count * width, n, jnp.int32).at[place].set(jnp.arange(n, dtype=jnp.int32))
    owners = jnp.repeat(jnp.asarray(kinds, jnp.int32), full, total_repeat_length=count)
    return Groups(atoms.reshape(count, width), owners)


def table_values(
    table: Float[Array, "intervals 6 m"], place: tuple[float, ...], s: Float[Array, "*batch"]
) -> Float[Array, "*batch m"]:
    """Piecewise quintic polynomials of s, constant beyond both ends; no derivative with respect to the table.

    Args:
        table: coefficients of t^0 ... t^5 in each interval, t from 0 to 1 in it.
        place: where the first interval begins, and the width of all.
        s: where to evaluate.
    """
    return _table_derivatives(table, place, s, 0)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 3))
def _table_derivatives(
    table: Float[Array, "intervals 6 m"], place: tuple[float, ...], s: Float[Array, "*batch"], order: int
) -> tuple[Float[Array, "*batch m"], Float[Array, "*batch m"]]:
    """The derivatives of an order and of the next one: the look-up takes the time, and forces need both."""
    start, step = place
    x = (s - start) / step
    inside = jnp.clip(x, 0.0, table.shape[0])
    interval = jnp.minimum(inside.astype(jnp.int32), table.shape[0] - 1)
    t = (inside - interval.astype(x.dtype))[..., None]
    coefficients = table.at[interval].get(mode="promise_in_bounds")

    def derivative(order: int) -> Array:
        value = jnp.zeros_like(coefficients[..., 0, :])
        for power in range(5, order - 1, -1):
            value = value * t + math.perm(power, order) * coefficients[..., power, :]
        return jnp.where((x == inside)[..., None], value / step**order, 0.0) if order else value

    return derivative(order), derivative(order + 1)


@_table_derivatives.defjvp
def _table_derivatives_rule(
    place: tuple[float, ...], order: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    table, s = primals
    moved = tangents[1][..., None]
    found = _table_derivatives(table, place, s, order)
    return found, (found[1] * moved, _table_derivatives(table, place, s, order + 1)[1] * moved)
