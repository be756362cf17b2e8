"""The gated layers of MACE-MH (Batatia et al., arXiv:2510.25380): their radial networks, and what follows the sums.

The networks of the distance know the elements of both ends, which saves a weight for each element everywhere else:

    w_ij = W_n silu(norm(... silu(norm(R b(r_ij) + s_{z_j} + t_{z_i})) ...)) + w_0

with the radial functions b. The sums over the neighbours are divided by alpha + beta times a density, go through linear
maps, and features of the atom itself are added; scalars then pass silu, and each other l is multiplied by a sigmoid of
scalars of its own. A converter puts the maps of the elements into the tables s and t, and norms of activations into the
map after the gates.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpto.models.layers import layer_norm, linear, product, row

Features = dict[str, Array]  # for each l: [n, 2 l + 1, channels]


def element_streams(
    layer: dict[str, Any], ends: tuple[Int[Array, "b w"], Int[Array, "b w"]]
) -> dict[str, Float[Array, "b w _"]]:
    """What the elements of both ends give to the networks of the radial weights and of the density.

    Args:
        layer: parameters of the layer; radial and density with the tables senders and receivers [elements, h].
        ends: species of senders and receivers.
    """
    return {
        name: layer[part]["senders"][ends[0]] + layer[part]["receivers"][ends[1]]
        for name, part in (("elements", "radial"), ("density", "density"))
    }


def network(
    params: dict[str, Any], radial: Float[Array, "*batch k"], elements: Float[Array, "*batch h"]
) -> Float[Array, "*batch d"]:
    """Hidden layers of a network of the distance, each normalized and activated.

    Args:
        params: first [h, k] of the radial functions, norms ("0", "1", ...), and the further layers hidden ("1", ...
            with weight and bias) if there are any.
        radial: radial functions.
        elements: what the elements give to the first layer.
    """
    x = product(radial, params["first"]) + elements
    for number in range(len(params["norms"])):
        x = linear(params["hidden"][str(number)], x) if number else x
        x = jax.nn.silu(layer_norm(params["norms"][str(number)], x))
    return x


def radial_weights(params: dict[str, Any], edge: dict[str, Array]) -> Float[Array, "*batch c"]:
    """Weights of all paths' channels; they vanish with the envelope.

    Args:
        params: radial (for `network`), last [channels of all paths, in] and offset [channels of all paths].
        edge: radial [..., k], elements [..., h] and envelope [..., 1].
    """
    x = product(network(params["radial"], edge["radial"], edge["elements"]), params["last"])
    return (x + row(params["offset"], x)) * edge["envelope"]


def density_of_edges(params: dict[str, Any], edge: dict[str, Array]) -> Float[Array, "b w 1"]:
    """tanh(x^2) times the envelope, with x from a network of the distance.

    Args:
        params: for `network`, and last with weight and bias.
        edge: radial [b, w, k], density [b, w, h] and envelope [b, w, 1].
    """
    x = linear(params["last"], network(params, edge["radial"], edge["density"]))
    return jnp.tanh(x**2) * edge["envelope"]


def gated(
    layer: dict[str, Any], mixed: Features, features: Features, density: Float[Array, "n 1"]
) -> dict[str, Float[Array, "n _ c"]]:
    """What the polynomials are made of, for each l.

    Args:
        layer: parameters of the layer: alpha, beta, up, own and after.
        mixed: mapped sums over the neighbours; those of l = 0 have the gates of the other l behind the scalars.
        features: features of the atoms.
        density: sum of `density_of_edges` over the neighbours.
    """
    divisor = (density * layer["beta"] + layer["alpha"])[:, :, None]
    mixed = {key: x / divisor for key, x in mixed.items()}
    for key, weights in layer["own"].items():
        mixed[key] = mixed[key] + product(product(features[key], layer["up"][key]), weights)
    scalars, *gates = jnp.split(mixed["0"], len(mixed), axis=-1)
    opened = {"0": jax.nn.silu(scalars)}
    for degree, gate in enumerate(gates, start=1):
        opened[str(degree)] = mixed[str(degree)] * jax.nn.sigmoid(gate)
    return {key: product(x, layer["after"][key]) for key, x in opened.items()}
