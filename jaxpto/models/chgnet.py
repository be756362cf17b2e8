"""CHGNet (Deng et al., Nat. Mach. Intell. 5, 1031 (2023)) as the published weights 0.2.0, 0.3.0 and r2scan use it.

Features of atoms, edges (6 Angstrom), bonds (edges below 3 Angstrom) and angles (pairs of bonds at one atom) are
updated in turn by gated networks, g(x) = silu(norm(core(x))) sigmoid(norm(gate(x))):

    atom_i  += out sum_j   g(atom_i, edge_ij, atom_j) w(r_ij)
    bond_ij += out sum_k   g(bond_ij, bond_ik, angle_jik, atom_i) w'(r_ij) w'(r_ik) + the same from the end j
    angle   += g(bond_ij, bond_ik, angle_jik, atom_i)

Compared with the original program, which repeats the features of atoms and bonds for every edge and angle:

- each gated network's first linear map is applied to atoms, bonds and angles before they are gathered;
- only bonds carry features that change. A longer edge keeps those that follow from its length, so that its share of the
  first map is a product with the radial functions;
- the angle is computed from 1 + cos in a form without cancellation. The original's acos((1 - 1e-6) cos), whose forces
  have a cusp at straight bonds, loses half of the digits there.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpto.models.equivariant import polynomial_envelope
from jaxpto.models.layers import add_up, gather, layer_norm, linear, product, row, sum_edges
from jaxpto.neighbors import Neighbors
from jaxpto.system import System

Params = dict[str, Any]
_STRAIGHT = 1e-6  # the original multiplies cosines by 1 - 1e-6


@dataclasses.dataclass(frozen=True)
class CHGNet:
    """Hyperparameters of CHGNet; numbers of layers and functions, norms and biases are those of the parameters.

    Attributes:
        elements: atomic numbers it was trained on.
        cutoff: of the edges, Angstrom.
        angle_cutoff: of the bonds that angles are made of, Angstrom.
        envelope: exponent p of the cutoff function.
        by_species: whether the neighbour layout is in blocks by species (not needed here).
    """

    elements: tuple[int, ...]
    cutoff: float
    angle_cutoff: float
    envelope: int
    by_species: bool = False

    def energy(
        self, params: Params, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom."""
        network, _, references = self._sites(params, system, neighbors, vectors)
        return add_up(jnp.concatenate([network, references]))

    @property
    def site_quantities(self) -> tuple[str, ...]:
        """What `site_properties` gives."""
        return ("energies", "magmoms")

    def site_properties(
        self, params: Params, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> dict[str, Float[Array, " n"]]:
        """Energies [n] eV (their sum is the energy) and magnetic moments [n] (magnitudes, Bohr magnetons) of the atoms.

        Args:
            params: what `converters.chgnet` writes; any floating-point type, the computation runs in that of `vectors`.
            system: numbers are read.
            neighbors: packed, with angles.
            vectors: [e, 3] from receiver to sender, Angstrom.
        """
        network, magmoms, references = self._sites(params, system, neighbors, vectors)
        return {"energies": network + references, "magmoms": magmoms}

    def _sites(
        self, params: Params, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
        """Energies of the network, magnetic moments, and reference energies of the atoms."""
        params = jax.tree.map(lambda leaf: leaf.astype(vectors.dtype), params)
        graph = _featurize(self, params, neighbors, vectors)
        atoms = params["atom_embedding"][system.numbers - 1]
        change, shift, angles = jnp.zeros_like(graph.bonds), jnp.zeros_like(atoms[0]), graph.angles
        *convolutions, last = _in_order(params["atom_convolutions"])
        for step, convolution in enumerate(convolutions):
            atoms = _convolve_atoms(convolution, graph, atoms, change, shift)
            update, bias = _convolve_bonds(
                params["bond_convolutions"][str(step)], graph, atoms, graph.bonds + change + row(shift, change), angles
            )
            change, shift = change + update, shift + bias
            if step + 1 < len(convolutions):  # nothing reads the angles of the last update
                bonds = graph.bonds + change + row(shift, change)
                angles = _update_angles(params["angle_updates"][str(step)], graph, atoms, bonds, angles)
        moments = jnp.abs(linear(params["moments"], atoms)[:, 0])
        atoms = _convolve_atoms(last, graph, atoms, change, shift)
        if "readout_norm" in params:
            atoms = layer_norm(params["readout_norm"], atoms)
        *hidden, final = _in_order(params["readout"])
        for layer in hidden:
            atoms = jax.nn.silu(linear(layer, atoms))
        return linear(final, atoms)[:, 0], moments, params["references"][system.numbers - 1]


@dataclasses.dataclass(frozen=True)
class _Graph:
    """What stays the same in all layers; f radial, a angular functions, d features.

    Attributes:
        senders, receivers: [e] ends of the edges, n where there is none.
        edge_basis: [e, f] radial functions.
        edge_weights: [e, d] factors of the messages to atoms; zero beyond the cutoff.
        edge_embedding: linear map of the radial functions to features.
        edge_of_bond: [b] edge of each bond, e where there is none.
        bond_receivers: [b] atom that a bond belongs to.
        reverse: [b] the same bond from its other end.
        bonds: [b, d] features at the start, which follow from their length.
        bond_weights: [b, d] factors of the messages to bonds; zero beyond the angle cutoff.
        first, second: [a] bonds of each angle.
        angles: [a, d] features at the start.
        any_angle: [] 1 if there is any angle, else 0.
    """

    senders: Int[Array, " e"]
    receivers: Int[Array, " e"]
    edge_basis: Float[Array, "e f"]
    edge_weights: Float[Array, "e d"]
    edge_embedding: dict[str, Array]
    edge_of_bond: Int[Array, " b"]
    bond_receivers: Int[Array, " b"]
    reverse: Int[Array, " b"]
    bonds: Float[Array, "b d"]
    bond_weights: Float[Array, "b d"]
    first: Int[Array, " a"]
    second: Int[Array, " a"]
    angles: Float[Array, "a d"]
    any_angle: Float[Array, ""]


def radial_basis(
    distance: Float[Array, " e"], frequencies: Float[Array, " f"], cutoff: float, exponent: int
) -> Float[Array, "e f"]:
    """sqrt(2/c) sin(f r/c) / r times 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), x = r/c; 0 for r >= c.

    With learned frequencies f [f]; the envelope is that of Gasteiger et al., ICLR (2020), arXiv:2003.03123.

    Args:
        distance: [e] r, Angstrom, positive.
        frequencies: [f] without unit.
        cutoff: c, Angstrom.
        exponent: p.
    """
    x = distance / cutoff
    factor = math.sqrt(2.0 / cutoff) * polynomial_envelope(x, exponent) / distance
    return jnp.sin(x[:, None] * frequencies[None, :]) * factor[:, None]


def angular_basis(
    first: Float[Array, "a 3"], second: Float[Array, "a 3"], frequencies: Float[Array, " k"]
) -> Float[Array, "a f"]:
    """[1/sqrt(2), sin(f theta), cos(f theta)] / sqrt(pi) with theta = acos((1 - 1e-6) cos) of the angle between bonds.

    1 + cos = |u + v|^2 / 2 and 1 - cos = |u - v|^2 / 2 of unit vectors keep all digits near straight bonds, where the
    derivative of acos reaches 700.

    Args:
        first, second: [a, 3] unit vectors.
        frequencies: [k] learned, without unit.
    """
    shrink = 1.0 - _STRAIGHT
    above = _STRAIGHT + shrink * 0.5 * jnp.sum((first + second) ** 2, axis=-1)  # 1 + (1 - 1e-6) cos
    below = _STRAIGHT + shrink * 0.5 * jnp.sum((first - second) ** 2, axis=-1)  # 1 - (1 - 1e-6) cos
    theta = 2.0 * jnp.arctan2(jnp.sqrt(below), jnp.sqrt(above))
    phase = theta[:, None] * frequencies[None, :]
    constant = jnp.full_like(phase[:, :1], 1.0 / math.sqrt(2.0))
    return jnp.concatenate([constant, jnp.sin(phase), jnp.cos(phase)], axis=1) / math.sqrt(math.pi)


def _featurize(model: CHGNet, params: Params, neighbors: Neighbors, vectors: Float[Array, "e 3"]) -> _Graph:
    frequencies, lists = params["frequencies"], neighbors.angles
    if lists is None:
        raise ValueError("CHGNet needs a neighbour list with angles; let Potential.allocate choose the layout")
    distance = jnp.sqrt(jnp.sum(vectors**2, axis=-1))  # empty slots are long, so no zero reaches the root
    edge_basis = radial_basis(distance, frequencies["edges"], model.cutoff, model.envelope)
    bond_distance = distance.at[lists.bonds].get(mode="fill", fill_value=2.0 * model.angle_cutoff)
    bond_basis = radial_basis(bond_distance, frequencies["bonds"], model.angle_cutoff, model.envelope)
    directions = gather(vectors, lists.bonds) / bond_distance[:, None]
    is_bond = (bond_distance < model.angle_cutoff).astype(vectors.dtype)
    is_angle = gather(is_bond, lists.first) * gather(is_bond, lists.second)
    angle_basis = angular_basis(
        gather(directions, lists.first), gather(directions, lists.second), frequencies["angles"]
    )
    return _Graph(
        senders=neighbors.senders,
        receivers=neighbors.receivers,
        edge_basis=edge_basis,
        edge_weights=linear(params["edge_weights"], edge_basis),
        edge_embedding=params["edge_embedding"],
        edge_of_bond=lists.bonds,
        bond_receivers=neighbors.receivers.at[lists.bonds].get(mode="fill", fill_value=neighbors.wraps.shape[0]),
        reverse=lists.reverse,
        bonds=linear(params["edge_embedding"], gather(edge_basis, lists.bonds)),
        bond_weights=linear(params["bond_weights"], bond_basis),
        first=lists.first,
        second=lists.second,
        angles=linear(params["angle_embedding"], angle_basis),
        any_angle=jnp.max(is_angle, initial=0.0),
    )


def _convolve_atoms(
    layer: Params, graph: _Graph, atoms: Float[Array, "n d"], change: Float[Array, "b d"], shift: Float[Array, " d"]
) -> Float[Array, "n d"]:
    """Messages along all edges, whose features follow from their length, plus `shift`, plus `change` for bonds."""

    def first_map(part: Params) -> Float[Array, "e h"]:
        of_atoms, of_edges, of_senders = jnp.split(part["first"]["weight"], 3, axis=1)
        edges = product(graph.edge_basis, product(of_edges, graph.edge_embedding["weight"].T))
        edges = edges.at[graph.edge_of_bond].add(product(change, of_edges), mode="drop")
        constant = part["first"]["bias"] + product(shift[None, :], of_edges)[0]
        own = product(atoms, of_atoms) + row(constant, atoms)
        return edges + gather(own, graph.receivers) + gather(product(atoms, of_senders), graph.senders)

    messages = _gate(layer, first_map(layer["core"]), first_map(layer["gate"]), graph.edge_weights)
    return atoms + linear(layer["out"], sum_edges(messages, graph.receivers, atoms.shape[0], is_sorted=True))


def _convolve_bonds(
    layer: Params,
    graph: _Graph,
    atoms: Float[Array, "n d"],
    bonds: Float[Array, "b d"],
    angles: Float[Array, "a d"],
) -> tuple[Float[Array, "b d"], Float[Array, " d"]]:
    """Sums of messages to bonds, and what the bias of version 0.2.0 adds to the features of every edge."""
    core, gate = (_angle_map(layer[part]["first"], graph, atoms, bonds, angles) for part in ("core", "gate"))
    weights = gather(graph.bond_weights, graph.first) * gather(graph.bond_weights, graph.second)
    messages = _gate(layer, core, gate, weights)
    total = sum_edges(messages, graph.first, bonds.shape[0], is_sorted=True)
    update = product(total + gather(total, graph.reverse), layer["out"]["weight"])
    return update, layer["out"].get("bias", jnp.zeros_like(atoms[0])) * graph.any_angle


def _update_angles(
    layer: Params, graph: _Graph, atoms: Float[Array, "n d"], bonds: Float[Array, "b d"], angles: Float[Array, "a d"]
) -> Float[Array, "a d"]:
    core, gate = (_angle_map(_centred(layer[part], "first"), graph, atoms, bonds, angles) for part in ("core", "gate"))
    return angles + _gate(layer, core, gate)


def _angle_map(
    layer: dict[str, Array],
    graph: _Graph,
    atoms: Float[Array, "n d"],
    bonds: Float[Array, "b d"],
    angles: Float[Array, "a d"],
) -> Float[Array, "a h"]:
    """First map of a gated network of angles: bond, other bond, angle, atom in the middle."""
    own, other, of_angles, of_atoms = jnp.split(layer["weight"], 4, axis=1)
    of_middle = product(atoms, of_atoms)
    own_terms = product(bonds, own) + gather(of_middle + row(layer["bias"], of_middle), graph.bond_receivers)
    return product(angles, of_angles) + gather(own_terms, graph.first) + gather(product(bonds, other), graph.second)


def _gate(
    layer: Params, core: Float[Array, "e h"], gate: Float[Array, "e h"], weights: Float[Array, "e d"] | None = None
) -> Float[Array, "e d"]:
    """silu(norm(core)) sigmoid(norm(gate)), after a second map of both where the network has one, times weights."""
    if "second" in layer["core"]:
        core = linear(_centred(layer["core"], "second"), _silu(core))
        gate = linear(_centred(layer["gate"], "second"), _silu(gate))
    return _finish(layer["core"].get("norm"), layer["gate"].get("norm"), core, gate, weights)


def _centred(part: Params, name: str) -> dict[str, Array]:
    """A map whose outputs have mean zero, if a norm follows it: the norm then need not subtract the mean."""
    layer = part[name]
    if "norm" not in part:
        return layer
    return jax.tree.map(lambda leaf: leaf - jnp.mean(leaf, axis=0, keepdims=True), layer)


# Both keep only their inputs for the backward pass and compute the rest again: two thirds of the memory, and faster.
@jax.checkpoint
def _silu(x: Float[Array, "e h"]) -> Float[Array, "e h"]:
    return x * jax.nn.sigmoid(x)


@jax.checkpoint
def _finish(
    core_norm: Params | None,
    gate_norm: Params | None,
    core: Float[Array, "e d"],
    gate: Float[Array, "e d"],
    weights: Float[Array, "e d"] | None,
) -> Float[Array, "e d"]:
    def norm(layer: Params | None, centred: Float[Array, "e d"]) -> Float[Array, "e d"]:
        if layer is None:
            return centred
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-5) * row(layer["weight"], centred) + row(layer["bias"], centred)

    core, gate = norm(core_norm, core), norm(gate_norm, gate)
    result = core * jax.nn.sigmoid(core) * jax.nn.sigmoid(gate)
    return result if weights is None else result * weights


def _in_order(layers: dict[str, Any]) -> list[Any]:
    return [layers[str(index)] for index in range(len(layers))]
