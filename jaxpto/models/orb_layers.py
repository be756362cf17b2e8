"""The network of ORB: features of atoms and edges, changed in turn by messages with attention, and read out.

Version 2 has softplus activations and layer norms, version 3 silu and root-mean-square norms; otherwise they agree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.models.equivariant import polynomial_envelope
from jaxpto.models.layers import Linear, layer_norm, linear, linear_term, row, sum_edges
from jaxpto.models.orb_graph import Graph
from jaxpto.models.passes import row_pass

Activation = Callable[[Array], Array]
Features = Callable[[dict[str, Any], Array, Array], Array]

ENVELOPE_POWER = 4


def shifted_softplus(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """log(1 + exp(x)) - log 2."""
    return jax.nn.softplus(x) - math.log(2.0)


def root_mean_square_norm(layer: Linear, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis, with the machine's epsilon."""
    mean = jnp.mean(x**2, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean + jnp.finfo(x.dtype).eps) * row(layer["weight"], x)


def perceptron(layers: dict[str, Linear], x: Float[Array, "*batch in"], activation: Activation) -> Array:
    """Linear layers "0", "1", ... with an activation between them, and none after the last."""
    return after_first(layers, linear(layers["0"], x), activation)


def after_first(layers: dict[str, Linear], x: Float[Array, "*batch d"], activation: Activation) -> Array:
    """What remains of `perceptron` after its first linear layer, whose result is x."""
    for number in range(1, len(layers)):
        x = linear(layers[str(number)], activation(x))
    return x


def normalized(norm: Linear, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Layer norm where the norm has a bias (version 2), root-mean-square norm where it has none (version 3)."""
    return layer_norm(norm, x) if "bias" in norm else root_mean_square_norm(norm, x)


@dataclasses.dataclass(frozen=True)
class EmbedEdges:
    """First features of edges from their vectors, a function for `row_pass`.

    Attributes:
        features: (params, distance [s], unit vectors [s, 3]) -> what the perceptron gets [s, k].
        activation: the perceptron's.
    """

    features: Features
    activation: Activation

    def __call__(self, params: dict[str, Any], rows: dict[str, Any], edge: dict[str, Array]) -> tuple[Array, None]:
        """Features [s, d]; params holds layers and norm, and what `features` needs."""
        distance = jnp.sqrt(jnp.sum(edge["vectors"] ** 2, axis=-1))
        x = self.features(params, distance, edge["vectors"] / distance[:, None])
        return normalized(params["norm"], perceptron(params["layers"], x, self.activation)), None


@dataclasses.dataclass(frozen=True)
class UpdateEdges:
    """New features of edges, and their messages to both ends, a function for `row_pass`.

    With g the features of an edge, m = norm(perceptron(g, h_sender, h_receiver)); its receiver gets
    sigmoid(A g + a) c m and its sender sigmoid(B g + b) c m, c being the envelope; the new features are g + m.

    Attributes:
        activation: the perceptron's.
    """

    activation: Activation

    def __call__(
        self, params: dict[str, Any], rows: dict[str, Array], edge: dict[str, Array]
    ) -> tuple[dict[str, Array], Array]:
        """New features and what is for the sender, [s, d] each; and what is for the receiver [s, d].

        Args:
            params: layers and norm; receive and send (linear [1, d]).
            rows: the terms of the sender and of the receiver in the first layer, [s, hidden].
            edge: edges, the features [s, d], and envelope [s, 1].
        """
        edges, envelope = edge["edges"], edge["envelope"]
        x = linear_term(params["layers"]["0"], edges, 0) + rows["senders"] + rows["receivers"]
        message = normalized(params["norm"], after_first(params["layers"], x, self.activation))
        receive = jax.nn.sigmoid(linear(params["receive"], edges)) * envelope
        send = jax.nn.sigmoid(linear(params["send"], edges)) * envelope
        return {"edges": edges + message, "sent": send * message}, receive * message


def atom_states(
    params: dict[str, Any],
    atoms: Float[Array, "n d"],
    graph: Graph,
    cutoff: float,
    features: Features,
    activation: Activation,
) -> Float[Array, "n d"]:
    """Features of the atoms after all steps of message passing (Neumann et al., arXiv:2410.22570).

    Args:
        params: nodes and edges (each with layers and norm), and steps (the layers of all steps, stacked).
        atoms: embeddings of the elements.
        graph: edges, in the precision of the network.
        cutoff: where the envelope ends, Angstrom.
        features: features of an edge; see `EmbedEdges`.
        activation: the same in all perceptrons.
    """
    n = atoms.shape[0]
    index = {"senders": graph.senders, "receivers": graph.receivers}
    distance = jnp.sqrt(jnp.sum(graph.vectors**2, axis=-1))
    envelope = polynomial_envelope(distance / cutoff, ENVELOPE_POWER)[:, None]
    embed, update = EmbedEdges(features, activation), UpdateEdges(activation)
    nodes = params["nodes"]
    atoms = normalized(nodes["norm"], perceptron(nodes["layers"], atoms, activation))
    edges, _ = row_pass(embed, "senders", n, params["edges"], {}, index, {"vectors": graph.vectors}, graph.count)

    def step(states: tuple[Array, Array], layer: dict[str, Any]) -> tuple[tuple[Array, Array], None]:
        atoms, edges = states
        first = layer["edge"]["layers"]["0"]
        tables = {"senders": linear_term(first, atoms, 1), "receivers": linear_term(first, atoms, 2)}
        streams = {"edges": edges, "envelope": envelope}
        kept, received = row_pass(update, "receivers", n, layer["edge"], tables, index, streams, graph.count)
        sent = sum_edges(kept["sent"], graph.senders, n, is_sorted=True)
        own = layer["node"]["layers"]["0"]
        x = linear_term(own, atoms, 0) + linear_term(own, received, 1) + linear_term(own, sent, 2)
        change = normalized(layer["node"]["norm"], after_first(layer["node"]["layers"], x, activation))
        return (atoms + change, kept["edges"]), None

    (atoms, _), _ = jax.lax.scan(step, (atoms, edges), params["steps"])
    return atoms


def head(params: dict[str, Any], x: Float[Array, "*batch d"], activation: Activation) -> Array:
    """Result of a head, not yet scaled."""
    return perceptron(params["layers"], x, activation)


def scaled(params: dict[str, Any], x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """x sqrt(variance) + mean, with the statistics of a head's training data."""
    return x * jnp.sqrt(params["variance"]) + params["mean"]
