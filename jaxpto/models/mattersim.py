"""MatterSim-v1 (Yang et al., arXiv:2405.04967): M3GNet with other ends, gates and radial functions.

Against `m3gnet`: messages are summed where the triplets are, at the centre of the edges; the gates of the three-body
term are the centre's and so can be taken out of its sum,

    e_ij += phi(g_i f(r_ij) sum_{k != j} f(r_ik) R_ln(r_ik) Y_l(cos(ij, ik))),

which is the same in every block and computed once, by moments as in `m3gnet`; l goes up to 3; the map of the radial
functions in the update of atoms passes silu; every element has a scale of its own. Here the centre of an edge is the
receiver of the neighbour list. The original keeps the cosine 1e-7 away from 1 and -1, which changes energies by far
less than 1e-8 eV/atom where three atoms are in line.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.models.equivariant import polynomial_envelope, spherical_harmonics
from jaxpto.models.layers import add_up, linear, product, species_of
from jaxpto.models.m3gnet import chain, gated_chain, project_atoms
from jaxpto.models.passes import row_pass, select_rows
from jaxpto.neighbors import Neighbors
from jaxpto.system import System

HIGHEST, RADIAL = 3, 4  # largest l of the three-body term, and radial functions of each l
ORDERS = tuple(slice(degree**2, (degree + 1) ** 2) for degree in range(HIGHEST + 1))


@dataclasses.dataclass(frozen=True)
class MatterSim:
    """Hyperparameters of MatterSim-v1; all sizes are those of the parameters.

    Attributes:
        elements: atomic numbers, in the order of the parameters.
        cutoff: longest edge, Angstrom.
        three_body_cutoff: longest edge that sees a third atom, Angstrom.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.1
    constants: ClassVar[tuple[str, ...]] = ("offset", "scale", "smooth/*", "bessel/*")

    elements: tuple[int, ...]
    cutoff: float
    three_body_cutoff: float

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        return dict.fromkeys(("atom_embedding", "scale", "offset"), (len(self.elements),))

    def energy(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom; `converters.mattersim.parameters` says what params hold."""
        n = system.positions.shape[0]
        species = species_of(self.elements, system.numbers)

        close = jnp.sum(vectors**2, axis=-1) <= self.cutoff**2  # leaves out the skin and the padding
        selected, count = select_rows(close, neighbors.layout.platform)
        index = {
            "centres": neighbors.receivers.at[selected].get(mode="fill", fill_value=n),
            "others": neighbors.senders.at[selected].get(mode="fill", fill_value=n),
        }
        vectors = vectors.at[selected].get(mode="fill", fill_value=2.0 * self.cutoff)
        distance = jnp.sqrt(jnp.sum(vectors**2, axis=-1))  # padding is long, so no zero reaches the root
        envelope = polynomial_envelope(distance / self.three_body_cutoff, 3)[:, None]
        geometry = {
            "angular": spherical_bessel(params["bessel"], distance / self.cutoff) * envelope,
            "harmonics": spherical_harmonics(vectors / distance[:, None], HIGHEST),
            "envelope": envelope,
        }
        _, moments = row_pass(edge_moments, "centres", n, {}, {}, index, geometry, count)
        tables = {"centres": {"moments": moments}}
        angles, _ = row_pass(other_sums, "centres", n, {}, tables, index, geometry, count)

        radial = smooth_bessel(params["smooth"], distance)
        atoms = params["atom_embedding"][species]
        edges = jax.nn.silu(linear(params["edge_embedding"], radial))

        def update(features: tuple[Array, Array], block: dict[str, Any]) -> tuple[tuple[Array, Array], None]:
            atoms, edges = features
            gates = jax.nn.sigmoid(linear(block["three_body"]["atom"], atoms))
            of_centre, of_other = project_atoms(block, atoms)
            tables = {"centres": {"atoms": of_centre, "gates": gates}, "others": {"atoms": of_other}}
            streams = {"radial": radial, "angles": angles, "edges": edges}
            edges, messages = row_pass(update_edges, "centres", n, block, tables, index, streams, count)
            return (atoms + messages, edges), None

        # unrolled, as a loop would copy the features of all edges out for its derivative, and in again
        (atoms, _), _ = jax.lax.scan(update, (atoms, edges), params["blocks"], unroll=True)
        value, gate = params["readout"]["value"], params["readout"]["gate"]
        energies = chain(value, linear(value["0"], atoms)) * jax.nn.sigmoid(chain(gate, linear(gate["0"], atoms)))
        return add_up(jnp.concatenate([params["scale"][species] * energies[:, 0], params["offset"][species]]))


def smooth_bessel(params: dict[str, Array], distance: Float[Array, " e"]) -> Float[Array, "e k"]:
    """sum_k c_nk sin(w_k r) / (w_k r): the functions of `smooth_bessel.smooth_bessel`, as a file has them rounded.

    Args:
        params: waves w [k], 1/Angstrom, and sines c [n, k].
        distance: Angstrom.
    """
    x = distance[:, None] * params["waves"][None, :]
    return product(jnp.sin(x) / x, params["sines"])


def spherical_bessel(params: dict[str, Array], x: Float[Array, " e"]) -> Float[Array, "e 16"]:
    """Spherical Bessel functions of l = 0 to 3, four of each: sum_q x^-q (S_q sin(z x) + C_q cos(z x)).

    Args:
        params: zeros z [16], and sines S and cosines C [16, 4], one for each inverse power.
        x: distances in units of the cutoff.
    """
    inverse = 1.0 / x[:, None]
    powers = jnp.concatenate([inverse, inverse**2, inverse**3, inverse**4], axis=1)
    phase = x[:, None] * params["zeros"][None, :]
    return product(powers, params["sines"]) * jnp.sin(phase) + product(powers, params["cosines"]) * jnp.cos(phase)


def edge_moments(params: Any, rows: dict[str, Any], edge: dict[str, Array]) -> tuple[None, Float[Array, "e 64"]]:
    """R_ln(r) f(r) y_lm of each edge (a function for `row_pass`); edge holds angular and harmonics [e, 16]."""
    own = edge["angular"].reshape(-1, HIGHEST + 1, RADIAL)
    terms = [edge["harmonics"][:, m, None] * own[:, degree, None, :] for degree, m in enumerate(ORDERS)]
    return None, jnp.concatenate(terms, axis=1).reshape(own.shape[0], -1)


def other_sums(params: Any, rows: dict[str, Any], edge: dict[str, Array]) -> tuple[Float[Array, "e 16"], None]:
    """Envelope times the sum over the other edges of the centre of R_ln(r) f(r) Y_l(cos of the angle with this edge).

    Args:
        params: none.
        rows: for the centres, moments [e, 64]: the sums of `edge_moments`.
        edge: angular and harmonics [e, 16], and envelope [e, 1].
    """
    own = edge["angular"].reshape(-1, HIGHEST + 1, RADIAL)
    around = rows["centres"]["moments"].reshape(own.shape[0], -1, RADIAL)
    sums = []
    for degree, m in enumerate(ORDERS):
        norm = 2 * degree + 1  # sum_m y_lm(a) y_lm(b) = (2 l + 1) P_l(a . b)
        others = jnp.sum(edge["harmonics"][:, m, None] * around[:, m], axis=1) - norm * own[:, degree]
        sums.append(others / math.sqrt(4.0 * math.pi * norm))
    return jnp.concatenate(sums, axis=-1) * edge["envelope"], None


def update_edges(
    block: dict[str, Any], rows: dict[str, Any], edge: dict[str, Array]
) -> tuple[Float[Array, "e d"], Float[Array, "e d"]]:
    """New features of each edge, and its message to its centre (a function for `row_pass`).

    Args:
        block: parameters three_body (value and gate: linear [d, 16] without bias), edge and node (value, gate and
            weight; see `m3gnet.gated_chain`).
        rows: for both ends, what `project_atoms` gives; for the centres, gates [e, 16].
        edge: features edges [e, d], radial [e, 4] and angles [e, 16].
    """
    learned, received = block["three_body"], edge["angles"] * rows["centres"]["gates"]
    learned = jax.nn.silu(linear(learned["value"], received)) * jax.nn.sigmoid(linear(learned["gate"], received))
    edges = edge["edges"] + learned
    from_atoms = jax.tree.map(jnp.add, rows["centres"]["atoms"], rows["others"]["atoms"])
    change = gated_chain(block["edge"], from_atoms["edge"], edges)
    edges = edges + change * linear(block["edge"]["weight"], edge["radial"])
    message = gated_chain(block["node"], from_atoms["node"], edges)
    return edges, message * jax.nn.silu(linear(block["node"]["weight"], edge["radial"]))
