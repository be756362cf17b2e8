"""GPTFF (Xie, Lu, Meng & Wang, Sci. Bull. 69, 3525 (2024)): a graph network with bond angles, and attention over atoms.

Three properties of the published model are worth knowing, all reproduced here:

- It is not size-extensive: the readout is a nonlinear function of the sum of all atoms' features, and in version 2
  every atom attends to every other one at any distance.
- It is discontinuous: where a pair crosses 5 A or a bond of an angle 3.5 A, its term jumps, because the maps of the
  radial functions, which vanish there, have a bias.
- The weights were trained without edges between an atom and its own periodic images; the released program has counted
  them since June 2026. `self_images` chooses. They exist only where a lattice translation is shorter than 5 A.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.models.angle_graph import AngleGraph, angle_graph
from jaxpto.models.gptff_initial import initial_parameters
from jaxpto.models.initial_weights import Samples, generator_of, require_sizes
from jaxpto.models.layers import add_up, gather, layer_norm, linear, linear_term, product
from jaxpto.models.passes import row_pass
from jaxpto.neighbors import Neighbors
from jaxpto.system import System

RADIAL = 16  # the first function, a sine of frequency zero, vanishes
HEADS = 2


@dataclasses.dataclass(frozen=True)
class GPTFF:
    """Hyperparameters of GPTFF; the number of blocks, and whether they have attention, is that in the parameters.

    Attributes:
        elements: atomic numbers; parameters have a row for each atomic number up to the largest.
        cutoff: longest edge, Angstrom.
        angle_cutoff: longest bond of an angle, Angstrom.
        self_images: whether an atom and its own periodic images share edges.
        features, blocks: number of features and of blocks that `initialize` makes; 0 where the parameters decide.
        attention: whether it makes blocks with attention (version 2); of given parameters these decide.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.1
    constants: ClassVar[tuple[str, ...]] = ("reference",)

    elements: tuple[int, ...] = tuple(range(1, 95))
    cutoff: float = 5.0
    angle_cutoff: float = 3.5
    self_images: bool = True
    features: int = dataclasses.field(default=0, repr=False)  # changes no energy
    blocks: int = dataclasses.field(default=0, repr=False)
    attention: bool = dataclasses.field(default=False, repr=False)

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        return dict.fromkeys(("atom_embedding", "reference"), (max(self.elements) + 1,))

    def initialize(self, key: Array, samples: Samples, force_scale: float) -> dict[str, Any]:
        """Random parameters to be trained; see `TrainableModel`."""
        require_sizes(self, "features", "blocks")
        rows = max(self.elements) + 1
        return initial_parameters(generator_of(key), rows, self.features, self.blocks, RADIAL, attention=self.attention)

    def energy(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom; the parameters are those that converters/gptff.py makes."""
        n = system.positions.shape[0]
        bonds = _bonds(self, neighbors, vectors)
        index, count = bonds.graph.edges, bonds.graph.edge_count
        radial = radial_basis(bonds.graph.lengths, self.cutoff)
        rows = params["atom_embedding"][system.numbers]
        length = jnp.sqrt(jnp.sum(rows**2, axis=-1, keepdims=True))
        atoms = jnp.where(length > 1.0, rows / (length + 1e-7), rows)

        start = _with_radial_weights(params["edge_embedding"])
        ends = {name: linear_term(start["mix"], atoms, part) for part, name in enumerate(("receivers", "senders"))}
        edges, _ = row_pass(embed_edges, "receivers", n, start, ends, index, {"radial": radial}, count)

        def update(features: tuple[Array, Array], block: dict[str, Any]) -> tuple[tuple[Array, Array], None]:
            atoms, edges = features
            tables = {
                "receivers": project_atoms(block, atoms, 0),
                "senders": project_atoms(block, atoms, 1),
                "bonds": three_body(_with_radial_weights(block["three_body"]), atoms, edges, bonds),
            }
            streams = {"edges": edges, "radial": radial}
            pair = {name: _with_radial_weights(block[name]) for name in ("edge", "node")}
            edges, messages = row_pass(update_edges, "receivers", n, pair, tables, index, streams, count)
            atoms = atoms + messages
            return (attention(block["attention"], atoms) if "attention" in block else atoms, edges), None

        # unrolled, as a loop would copy the features of all edges out for its derivative, and in again
        (atoms, _), _ = jax.lax.scan(update, (atoms, edges), params["blocks"], unroll=True)
        total = jnp.sum(atoms, axis=0)
        for name in ("0", "1"):
            total = jax.nn.silu(linear(params["readout"][name], total))
        return add_up(jnp.concatenate([linear(params["readout"]["2"], total), params["reference"][system.numbers]]))


class Bonds(NamedTuple):
    """What stays the same of bonds [b] and angles [a] in all blocks.

    Attributes:
        graph: edges, bonds and angles.
        radial: [b, 16] radial functions; all zero for padding, and for a bond that is too long by now.
        cosines: [a, 1] cosine of each angle, times 1 - 1e-6.
    """

    graph: AngleGraph
    radial: Float[Array, "b 16"]
    cosines: Float[Array, "a 1"]


def _bonds(model: GPTFF, neighbors: Neighbors, vectors: Float[Array, "e 3"]) -> Bonds:
    distance = jnp.sqrt(jnp.sum(vectors**2, axis=-1))  # empty slots are long, so no zero reaches the root
    counts = distance <= model.cutoff
    if not model.self_images:
        counts = counts & (neighbors.senders != neighbors.receivers)
    graph = angle_graph(neighbors, vectors, distance, counts, distance <= model.angle_cutoff)
    ends = {"first": graph.units, "second": graph.units}
    size, count = graph.units.shape[0], graph.angle_count
    cosines, _ = row_pass(angle_cosines, "first", size, {}, ends, graph.angles, {}, count)
    return Bonds(graph, radial_basis(graph.bond_lengths, model.angle_cutoff), cosines)


def angle_cosines(
    params: dict[str, Any], rows: dict[str, Any], streams: dict[str, Any]
) -> tuple[Float[Array, "s 1"], None]:
    """(1 - 1e-6) cos of the angle between two unit vectors (a function for `row_pass`).

    The original clips the cosine first. The factor keeps it within bounds here: the slope of a clip is arbitrary at
    straight angles, where second derivatives would be wrong.
    """
    cosines = jnp.sum(rows["first"] * rows["second"], axis=-1, keepdims=True)
    return cosines * (1.0 - 1e-6), None


def radial_basis(distance: Float[Array, " e"], cutoff: float) -> Float[Array, "e 16"]:
    """sqrt(2 / c) sin(n pi r / c) / r for n = 1 to 15, behind a column of ones; all zero where r > c.

    The original's function n = 0 is zero. The column in its place carries the bias of the maps (see
    `_with_radial_weights`), so that a map of the functions is exactly zero for an edge that does not count.
    """
    inside = distance <= cutoff
    r = jnp.where(inside, distance, cutoff)
    multiples = jnp.arange(1, RADIAL, dtype=r.dtype) * (math.pi / cutoff)
    functions = jnp.sin(r[:, None] * multiples[None, :]) * (math.sqrt(2.0 / cutoff) / r)[:, None]
    return jnp.where(inside[:, None], jnp.concatenate([jnp.ones_like(r)[:, None], functions], axis=1), 0.0)


def _with_radial_weights(layers: dict[str, Any]) -> dict[str, Any]:
    """The same layers, those of radial functions as one matrix [d, 16] whose first column is the bias."""
    fold = lambda layer: jnp.concatenate([layer["bias"][:, None], layer["weight"][:, 1:]], axis=1)  # noqa: E731
    return {name: fold(layer) if name.startswith("radial") else layer for name, layer in layers.items()}


def embed_edges(
    params: dict[str, Any], rows: dict[str, Any], edge: dict[str, Array]
) -> tuple[Float[Array, "e d"], None]:
    """W (a_i, a_j, W_b B + b_b) + b, times a map of the radial functions (a function for `row_pass`).

    Args:
        params: mix (linear [d, 3 d]), radial_features and radial_weight [d, 16].
        rows: the terms of a_i (with the bias) and of a_j, [e, d].
        edge: radial functions.
    """
    mixed = linear_term(params["mix"], product(edge["radial"], params["radial_features"]), 2)
    return (mixed + rows["receivers"] + rows["senders"]) * product(edge["radial"], params["radial_weight"]), None


def three_body(
    params: dict[str, Any], atoms: Float[Array, "n d"], edges: Float[Array, "e d"], bonds: Bonds
) -> Float[Array, "b1 d"]:
    """What each bond p learns from the other bonds q of the same atom i, with k at the end of q.

    It is a sum over q, zero in one more row at the end:
    sum_q sigmoid(W_1 h) silu(W_2 h) (W_j B(p)) (W_k B(q)) (W_a cos + b_a), h = silu(W (a_i, a_j, a_k, e_p, e_q) + b).

    Args:
        params: features [d, 5 d], gate and value [d, d] and angle [d, 1], all linear; radial_first, radial_second
            [d, 16].
        atoms, edges: features.
        bonds: graph and basis functions of the system.
    """
    graph, features = bonds.graph, params["features"]
    own = gather(edges, graph.edge_of_bond)
    first = linear_term(features, own, 3) + gather(linear_term(features, atoms, 0), graph.bond_receivers)
    first = first + gather(linear_term(features, atoms, 1), graph.bond_senders)
    second = linear_term(features, own, 4) + gather(linear_term(features, atoms, 2), graph.bond_senders)
    tables = {
        "first": first,
        "second": {"features": second, "radial": product(bonds.radial, params["radial_second"])},
    }
    layers = {name: params[name] for name in ("gate", "value", "angle")}
    streams = {"cosines": bonds.cosines}
    size, count = own.shape[0], graph.angle_count
    _, sums = row_pass(angle_terms, "first", size, layers, tables, graph.angles, streams, count)
    learned = sums * product(bonds.radial, params["radial_first"])
    return jnp.concatenate([learned, jnp.zeros_like(learned[:1])])  # the last row serves edges that are no bonds


def angle_terms(
    params: dict[str, Any], rows: dict[str, Any], streams: dict[str, Array]
) -> tuple[None, Float[Array, "s d"]]:
    """The terms of the sum in `three_body`, without the factor common to all of them (a function for `row_pass`)."""
    hidden = jax.nn.silu(rows["first"] + rows["second"]["features"])
    terms = jax.nn.sigmoid(linear(params["gate"], hidden)) * jax.nn.silu(linear(params["value"], hidden))
    return None, terms * rows["second"]["radial"] * linear(params["angle"], streams["cosines"])


def project_atoms(block: dict[str, Any], atoms: Float[Array, "n d"], part: int) -> dict[str, Array]:
    """The terms of the atoms' features in the first layers of the edge update and of the messages.

    Args:
        block: parameters of a block.
        atoms: features.
        part: 0 for receivers, with the bias; 1 for senders.
    """
    layers = {name: block["edge"][name] for name in ("value", "gate")} | {"message": block["node"]["features"]}
    return {name: linear_term(layer, atoms, part) for name, layer in layers.items()}


def update_edges(
    params: dict[str, Any], rows: dict[str, Any], edge: dict[str, Array]
) -> tuple[Float[Array, "e d"], Float[Array, "e d"]]:
    """New features of each edge, and its message to its receiver (a function for `row_pass`).

    With x = (a_i, a_j, e), where e holds what the edge learnt from its angles:
    e += silu(W_3 (silu(W_1 x) * sigmoid(W_2 x))) * W_r B, and with the new e and y = silu(W x) the message is
    silu(W_1' y) * sigmoid(W_2' y) * W_r' B.

    Args:
        params: edge with value and gate [d, 3 d] and out [d, d], node with features [2 d, 3 d], value and gate
            [d, 2 d], all linear; both with radial [d, 16].
        rows: for receivers and senders, what `project_atoms` gives; for the bonds, the result of `three_body`.
        edge: features edges [e, d], and the radial functions.
    """
    pair, node = params["edge"], params["node"]
    terms = {name: rows["receivers"][name] + rows["senders"][name] for name in ("value", "gate", "message")}
    edges = edge["edges"] + rows["bonds"]
    value = jax.nn.silu(linear_term(pair["value"], edges, 2) + terms["value"])
    gate = jax.nn.sigmoid(linear_term(pair["gate"], edges, 2) + terms["gate"])
    edges = edges + jax.nn.silu(linear(pair["out"], value * gate)) * product(edge["radial"], pair["radial"])
    y = jax.nn.silu(linear_term(node["features"], edges, 2) + terms["message"])
    message = jax.nn.silu(linear(node["value"], y)) * jax.nn.sigmoid(linear(node["gate"], y))
    return edges, message * product(edge["radial"], node["radial"])


def attention(params: dict[str, Any], atoms: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """One post-norm transformer layer over all atoms, without positions or distances, between two more norms.

    u = norm(a); y = norm(u + softmax(q k / sqrt(32)) v); z = norm(y + W_2 gelu(W_1 y)); result u + norm(z).

    Args:
        params: norms before, after_heads, after_feed, after; linear layers project [3 d, d] (rows of queries, keys,
            values), heads [d, d], feed [4 d, d] and out [d, 4 d].
        atoms: features.
    """
    n, width = atoms.shape
    u = layer_norm(params["before"], atoms)
    projected = linear(params["project"], u).reshape(n, 3, HEADS, width // HEADS)
    queries, keys, values = projected[:, 0], projected[:, 1], projected[:, 2]
    highest = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("nhc,mhc->hnm", queries, keys, precision=highest) / math.sqrt(width // HEADS)
    mixed = jnp.einsum("hnm,mhc->nhc", jax.nn.softmax(scores, axis=-1), values, precision=highest)
    y = layer_norm(params["after_heads"], u + linear(params["heads"], mixed.reshape(n, width)))
    fed = linear(params["out"], jax.nn.gelu(linear(params["feed"], y), approximate=False))
    return u + layer_norm(params["after"], layer_norm(params["after_feed"], y + fed))
