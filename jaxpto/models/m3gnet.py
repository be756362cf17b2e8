"""M3GNet (Chen & Ong, Nat. Comput. Sci. 2, 718 (2022)) as in the weights M3GNet-MP-2021.2.8-PES and M3GNet-MatPES.

These weights belong to the original layout of messages: they are summed at the end d of an edge s -> d, while the sum
over third atoms is around s, from where the edge is seen. In this program's lists d is an edge's receiver and s its
sender.

The original's sum over triplets, b_p = f(r_p) sum_{q != p} R_ln(r_q) Y_l(cos(p, q)) g(q) f(r_q), needs no list of
triplets here: by the addition theorem of spherical harmonics it is a product of the harmonics of p with moments summed
once over all q around s, less the term q = p. The cost is that of the edges. The released program numbers its triplets
by one list of edges and applies the numbers to another one, so that its sum depends on the order of atoms; this one is
the sum as published (differences up to 3e-5 eV/atom), which later versions of the original program also compute.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from jaxpto.models.equivariant import polynomial_envelope
from jaxpto.models.initial_weights import Samples, generator_of, require_sizes
from jaxpto.models.layers import add_up, linear, linear_term, species_of
from jaxpto.models.m3gnet_initial import initial_parameters
from jaxpto.models.passes import row_pass, select_rows
from jaxpto.models.smooth_bessel import smooth_bessel
from jaxpto.neighbors import Neighbors
from jaxpto.system import System

RADIAL, ANGULAR = 3, 3  # radial functions of each angular momentum, and angular momenta 0, 1, 2
BASIS = RADIAL * ANGULAR
ORDERS = (slice(0, 1), slice(1, 4), slice(4, 9))  # the harmonics of each angular momentum
# positive zeros of the spherical Bessel functions j_0, j_1, j_2
ZEROS = (
    (math.pi, 2.0 * math.pi, 3.0 * math.pi),
    (4.493409457909064, 7.725251836937707, 10.904121659428899),
    (5.763459196894550, 9.095011330476355, 12.322940970566582),
)
KNOTS = 512  # distances up to the cutoff about which the radial functions are expanded
TAYLOR_TERMS = {"float32": 4, "float64": 7}  # highest power, for which derivatives are exact to the last digit


@dataclasses.dataclass(frozen=True)
class M3GNet:
    """Hyperparameters of M3GNet; the number of blocks is that in the parameters.

    Attributes:
        elements: atomic numbers, in the order of the parameters.
        cutoff: longest edge, Angstrom.
        three_body_cutoff: longest edge that sees a third atom, Angstrom.
        smooth: whether radial functions are flat at the cutoff, and edges see the first three of them alone (MatPES).
        features, blocks: number of features and of blocks that `initialize` makes; 0 where the parameters decide.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.1
    constants: ClassVar[tuple[str, ...]] = ("offset", "scale", "shift")

    elements: tuple[int, ...] = (*range(1, 84), *range(89, 95))
    cutoff: float = 5.0
    three_body_cutoff: float = 4.0
    smooth: bool = False
    features: int = dataclasses.field(default=0, repr=False)  # changes no energy
    blocks: int = dataclasses.field(default=0, repr=False)

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        return dict.fromkeys(("atom_embedding", "offset"), (len(self.elements),))

    def initialize(self, key: Array, samples: Samples, force_scale: float) -> dict[str, Any]:
        """Random parameters to be trained; see `TrainableModel`."""
        require_sizes(self, "features", "blocks")
        generator, elements = generator_of(key), len(self.elements)
        radial = RADIAL if self.smooth else BASIS
        return initial_parameters(generator, elements, self.features, self.blocks, BASIS, radial, force_scale)

    def radial(self, distance: Float[Array, " e"]) -> Float[Array, "e 9"]:
        """Radial functions of distances up to the cutoff, Angstrom."""
        return smooth_bessel(distance, self.cutoff, BASIS) if self.smooth else radial_basis(distance, self.cutoff)

    def energy(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom; `m3gnet_initial` says what params hold."""
        n = system.positions.shape[0]
        species = species_of(self.elements, system.numbers)

        close = jnp.sum(vectors**2, axis=-1) <= self.cutoff**2  # leaves out the skin and the padding
        selected, count = select_rows(close, neighbors.layout.platform)
        index = {
            "senders": neighbors.senders.at[selected].get(mode="fill", fill_value=n),
            "receivers": neighbors.receivers.at[selected].get(mode="fill", fill_value=n),
        }
        vectors = vectors.at[selected].get(mode="fill", fill_value=2.0 * self.cutoff)
        distance = jnp.sqrt(jnp.sum(vectors**2, axis=-1))  # padding is long, so no zero reaches the root
        geometry = {
            "radial": self.radial(distance),
            "spherical": harmonics(vectors / distance[:, None]),
            "envelope": polynomial_envelope(distance / self.three_body_cutoff, 3)[:, None],
        }
        atoms = params["atom_embedding"][species]
        edges, _ = row_pass(embed_edges, "receivers", n, params["edge_embedding"], {}, index, geometry, count)

        def update(features: tuple[Array, Array], block: dict[str, Any]) -> tuple[tuple[Array, Array], None]:
            atoms, edges = features
            gates = jax.nn.sigmoid(linear(block["three_body"]["atom"], atoms))
            ends = {"receivers": {"gates": gates}}
            _, moments = row_pass(edge_moments, "senders", n, {}, ends, index, geometry, count)
            by_sender, by_receiver = project_atoms(block, atoms)
            tables = {
                "senders": {"atoms": by_sender, "moments": moments},
                "receivers": {"atoms": by_receiver, "gates": gates},
            }
            streams = geometry | {"edges": edges}
            edges, messages = row_pass(update_edges, "receivers", n, block, tables, index, streams, count)
            return (atoms + messages, edges), None

        # unrolled, as a loop would copy the features of all edges out for its derivative, and in again
        (atoms, _), _ = jax.lax.scan(update, (atoms, edges), params["blocks"], unroll=True)
        value, gate = params["readout"]["value"], params["readout"]["gate"]
        energies = chain(value, linear(value["0"], atoms)) * jax.nn.sigmoid(chain(gate, linear(gate["0"], atoms)))
        network = params["scale"] * jnp.sum(energies) + params["shift"]
        return add_up(jnp.concatenate([network[None], params["offset"][species]]))


def radial_basis(distance: Float[Array, " e"], cutoff: float) -> Float[Array, "e 9"]:
    """sqrt(2 / c^3) j_l(z_ln r / c) / |j_{l+1}(z_ln)| for r <= c, else 0; column 3 l + n, z_ln the zeros of j_l.

    Taylor polynomials about the nearest of many distances, which derivatives follow. The closed forms cancel at small
    distances; and in single precision their rounding, the same for all equal bonds of a crystal, would add up.
    """
    terms = TAYLOR_TERMS[distance.dtype.name]
    inside = distance <= cutoff
    r = jnp.where(inside, distance, 0.0)
    nearest = jnp.round(jax.lax.stop_gradient(r) * (KNOTS / cutoff)).astype(jnp.int32)
    spacing = cutoff / KNOTS  # a power of two times the cutoff's digits: for 5 Angstrom, r - knot is exact
    x = (r - nearest.astype(r.dtype) * spacing)[:, None]
    row = jnp.asarray(_taylor_table(cutoff, terms, r.dtype.name))[nearest]
    series = row[:, 0]
    for term in range(1, terms):
        series = series * x + row[:, term]
    return jnp.where(inside[:, None], series * x + row[:, terms] + row[:, terms + 1], 0.0)


@functools.cache
def _taylor_table(cutoff: float, terms: int, dtype: str) -> np.ndarray:
    """Taylor coefficients [knots, terms + 2, 9] from the highest power down; of the values what rounding left, too."""
    knots = np.arange(KNOTS + 1) / KNOTS
    coefficients = np.zeros((KNOTS + 1, terms + 1, BASIS))
    for order in range(ANGULAR):
        for index, zero in enumerate(ZEROS[order]):
            norm = math.sqrt(2.0 / cutoff**3) / abs(scipy.special.spherical_jn(order + 1, zero))
            bessel = [scipy.special.spherical_jn(k, zero * knots) for k in range(order + terms + 1)]
            weights = np.zeros(order + terms + 2)
            weights[order] = norm
            for power in range(terms + 1):
                value = sum(weight * function for weight, function in zip(weights, bessel, strict=False))
                coefficients[:, terms - power, RADIAL * order + index] = value
                # j_k' = (k j_{k-1} - (k + 1) j_{k+1}) / (2 k + 1)
                slope = np.zeros_like(weights)
                for k in range(len(bessel)):
                    slope[max(k - 1, 0)] += weights[k] * k / (2 * k + 1)
                    slope[k + 1] -= weights[k] * (k + 1) / (2 * k + 1)
                weights = slope * (zero / cutoff) / (power + 1)
    rounded = coefficients.astype(dtype)
    rest = (coefficients[:, -1:] - rounded[:, -1:]).astype(dtype)
    return np.concatenate([rounded[:, :-1], rest, rounded[:, -1:]], axis=1)


def harmonics(unit: Float[Array, "e 3"]) -> Float[Array, "e 9"]:
    """Real harmonics of l = 0, 1, 2 of unit vectors, normalized to sum_m y_lm(a) y_lm(b) = P_l(a . b)."""
    x, y, z = unit[:, 0], unit[:, 1], unit[:, 2]
    root = math.sqrt(3.0)
    tensor = [root * x * y, root * y * z, 1.5 * z**2 - 0.5, root * x * z, 0.5 * root * (x**2 - y**2)]
    return jnp.stack([jnp.ones_like(x), x, y, z, *tensor], axis=-1)


def embed_edges(
    layer: dict[str, Array], rows: dict[str, Any], edge: dict[str, Array]
) -> tuple[Float[Array, "e d"], None]:
    """First features of each edge, from its length (a function for `row_pass`)."""
    return jax.nn.silu(of_radial(layer, edge["radial"])), None


def edge_moments(params: Any, rows: dict[str, Any], edge: dict[str, Array]) -> tuple[None, Float[Array, "e 27"]]:
    """R_ln(r) f(r) g y_lm of each edge as seen from its sender (a function for `row_pass`)."""
    own = _own_terms(rows, edge)
    terms = [edge["spherical"][:, m, None] * own[:, order, None, :] for order, m in enumerate(ORDERS)]
    return None, jnp.concatenate(terms, axis=1).reshape(-1, 3 * BASIS)


def _own_terms(rows: dict[str, Any], edge: dict[str, Array]) -> Float[Array, "e 3 3"]:
    """R_ln(r) f(r) g [e, l, n] of each edge, with g the gates of the third atom, its receiver."""
    return (edge["radial"] * rows["receivers"]["gates"] * edge["envelope"]).reshape(-1, ANGULAR, RADIAL)


def received_sums(rows: dict[str, Any], edge: dict[str, Array]) -> Float[Array, "e 9"]:
    """Sum over the other edges of the sender of R_ln(r) f(r) g Y_l(cos of the angle with this edge).

    Args:
        rows: for the senders, moments [e, 27]: the sums of `edge_moments`; for the receivers, gates [e, 9].
        edge: radial, spherical [e, 9] and envelope [e, 1].
    """
    own = _own_terms(rows, edge)
    around = rows["senders"]["moments"].reshape(-1, BASIS, RADIAL)
    sums = []
    for order, m in enumerate(ORDERS):
        others = jnp.sum(edge["spherical"][:, m, None] * around[:, m], axis=1) - own[:, order]
        sums.append(math.sqrt((2 * order + 1) / (4.0 * math.pi)) * others)
    return jnp.concatenate(sums, axis=-1)


def project_atoms(block: dict[str, Any], atoms: Float[Array, "n d"]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Terms of the senders' and of the receivers' features in the first layer of each gated chain, [n, d] each."""

    def terms(part: int) -> dict[str, Any]:
        return {
            name: {kind: linear_term(block[name][kind]["0"], atoms, part) for kind in ("value", "gate")}
            for name in ("edge", "node")
        }

    return terms(0), terms(1)


def update_edges(
    block: dict[str, Any], rows: dict[str, Any], edge: dict[str, Array]
) -> tuple[Float[Array, "e d"], Float[Array, "e d"]]:
    """New features of each edge, and its message to its receiver (a function for `row_pass`).

    Args:
        block: parameters three_body (value and gate: linear [d, 9] without bias), edge and node (see `gated`).
        rows: for both ends, what `project_atoms` gives; for the senders, moments [e, 27]; for the receivers,
            gates [e, 9].
        edge: features edges [e, d], and radial, spherical [e, 9] and envelope [e, 1].
    """
    received = received_sums(rows, edge) * edge["envelope"]
    learned = block["three_body"]
    learned = jax.nn.silu(linear(learned["value"], received)) * jax.nn.sigmoid(linear(learned["gate"], received))
    edges = edge["edges"] + learned
    ends = (rows["senders"]["atoms"], rows["receivers"]["atoms"])
    from_atoms = jax.tree.map(jnp.add, *ends)
    edges = edges + gated(block["edge"], from_atoms["edge"], edges, edge["radial"])
    return edges, gated(block["node"], from_atoms["node"], edges, edge["radial"])


def gated(
    params: dict[str, Any],
    from_atoms: dict[str, Float[Array, "e h"]],
    edges: Float[Array, "e d"],
    radial: Float[Array, "e 9"],
) -> Float[Array, "e d"]:
    """`gated_chain` times a map of the radial functions.

    Args:
        params: value, gate, and weight (linear [d, 9], no bias).
        from_atoms, edges: as for `gated_chain`.
        radial: radial functions of each edge.
    """
    return gated_chain(params, from_atoms, edges) * of_radial(params["weight"], radial)


def gated_chain(
    params: dict[str, Any], from_atoms: dict[str, Float[Array, "e h"]], edges: Float[Array, "e d"]
) -> Float[Array, "e d"]:
    """silu(value chain) * sigmoid(gate chain) of (a_s, a_d, e).

    Args:
        params: value and gate (linear layers "0", "1", ... each, the first one [d, 3 d]).
        from_atoms: for value and gate, the terms of a_s, a_d and bias in the first layer.
        edges: features.
    """
    first = {kind: from_atoms[kind] + linear_term(params[kind]["0"], edges, 2) for kind in ("value", "gate")}
    value = jax.nn.silu(chain(params["value"], first["value"]))
    return value * jax.nn.sigmoid(chain(params["gate"], first["gate"]))


def of_radial(layer: dict[str, Array], radial: Float[Array, "e 9"]) -> Float[Array, "e d"]:
    """A linear map of as many radial functions as it has inputs: all of them, or the first three."""
    return linear(layer, radial[:, : layer["weight"].shape[1]])


def chain(layers: dict[str, Any], first: Float[Array, "*batch d"]) -> Float[Array, "*batch out"]:
    """All but the first of a chain of linear layers "0", "1", ..., whose first output is given; silu in between."""
    x = first
    for index in range(1, len(layers)):
        x = linear(layers[str(index)], jax.nn.silu(x))
    return x
