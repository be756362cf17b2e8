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
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.models.angle_graph import AngleGraph, angle_graph
from jaxpto.models.chgnet_initial import initial_parameters
from jaxpto.models.equivariant import polynomial_envelope
from jaxpto.models.initial_weights import Samples, generator_of, require_sizes
from jaxpto.models.layers import add_up, gather, layer_norm, linear, linear_term, product, row
from jaxpto.models.passes import row_pass
from jaxpto.neighbors import Neighbors
from jaxpto.system import System

Params = dict[str, Any]
_STRAIGHT = 1e-6  # the original multiplies cosines by 1 - 1e-6


@dataclasses.dataclass(frozen=True)
class CHGNet:
    """Hyperparameters of CHGNet; numbers of layers and functions, norms and biases are those of the parameters.

    Attributes:
        elements: atomic numbers it was trained on.
        cutoff: longest edge, Angstrom.
        angle_cutoff: longest bond that angles are made of, Angstrom.
        envelope: exponent p of the cutoff function.
        features, layers: number of features and of convolutions of atoms (at least 2) that `initialize` makes; 0 where
            the parameters decide.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.1
    site_quantities: ClassVar[tuple[str, ...]] = ("energies", "magmoms")
    constants: ClassVar[tuple[str, ...]] = ("references",)

    elements: tuple[int, ...]
    cutoff: float
    angle_cutoff: float
    envelope: int
    features: int = dataclasses.field(default=0, repr=False)  # changes no energy
    layers: int = dataclasses.field(default=0, repr=False)

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        return dict.fromkeys(("atom_embedding", "references"), (max(self.elements),))

    def initialize(self, key: Array, samples: Samples, force_scale: float) -> dict[str, Any]:
        """Random parameters to be trained; see `TrainableModel`."""
        require_sizes(self, "features", "layers")
        return initial_parameters(generator_of(key), max(self.elements), self.features, self.layers)

    def energy(
        self, params: Params, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom."""
        network, _, references = self._sites(params, system, neighbors, vectors)
        return add_up(jnp.concatenate([network, references]))

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
        inputs = _featurize(self, params, neighbors, vectors)
        atoms = params["atom_embedding"][system.numbers - 1]
        before, angles = atoms, inputs.angles
        change, shift = jnp.zeros_like(inputs.bonds), jnp.zeros_like(atoms[0])
        *convolutions, last = [prepare(layer) for layer in _in_order(params["atom_convolutions"])]
        for step, convolution in enumerate(convolutions):
            before, atoms = atoms, _convolve_atoms(convolution, inputs, atoms, change, shift)
            layers = {"messages": prepare(params["bond_convolutions"][str(step)])}
            if step:
                layers["update"] = prepare(params["angle_updates"][str(step - 1)])
            bonds = inputs.bonds + change + row(shift, change)
            ends = {"messages": atoms, "update": before}
            keep = 0 < step < len(convolutions) - 1  # nothing reads the angles of the last update
            angles, update, bias = _convolve_bonds(layers, inputs, ends, bonds, angles, keep)
            change, shift = change + update, shift + bias
        moments = jnp.abs(linear(params["moments"], atoms)[:, 0])
        atoms = _convolve_atoms(last, inputs, atoms, change, shift)
        if "readout_norm" in params:
            atoms = layer_norm(params["readout_norm"], atoms)
        *hidden, final = _in_order(params["readout"])
        for layer in hidden:
            atoms = jax.nn.silu(linear(layer, atoms))
        return linear(final, atoms)[:, 0], moments, params["references"][system.numbers - 1]


class _Inputs(NamedTuple):
    """What stays the same in all layers; f radial functions, d features.

    Attributes:
        graph: edges within the cutoff, and the bonds and angles among them.
        edge_basis: [s, f] radial functions.
        edge_embedding, edge_weights: linear maps of the radial functions: features, and factors of the messages.
        bonds: [b, d] features at the start, which follow from their length.
        bond_weights: [b, d] factors of the messages to bonds; zero beyond the angle cutoff.
        angles: [a, d] features at the start.
    """

    graph: AngleGraph
    edge_basis: Float[Array, "s f"]
    edge_embedding: dict[str, Array]
    edge_weights: dict[str, Array]
    bonds: Float[Array, "b d"]
    bond_weights: Float[Array, "b d"]
    angles: Float[Array, "a d"]


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


def _featurize(model: CHGNet, params: Params, neighbors: Neighbors, vectors: Float[Array, "e 3"]) -> _Inputs:
    distance = jnp.sqrt(jnp.sum(vectors**2, axis=-1))  # empty slots are long, so no zero reaches the root
    graph = angle_graph(neighbors, vectors, distance, distance < model.cutoff, distance < model.angle_cutoff)
    frequencies, power = params["frequencies"], model.envelope
    layers = {"frequencies": frequencies["angles"], "embedding": params["angle_embedding"]}
    ends = {"first": graph.units, "second": graph.units}
    angles, _ = row_pass(embed_angles, "first", graph.units.shape[0], layers, ends, graph.angles, {}, graph.angle_count)
    of_bonds = radial_basis(graph.bond_lengths, frequencies["edges"], model.cutoff, power)
    near = radial_basis(graph.bond_lengths, frequencies["bonds"], model.angle_cutoff, power)
    return _Inputs(
        graph=graph,
        edge_basis=radial_basis(graph.lengths, frequencies["edges"], model.cutoff, power),
        edge_embedding=params["edge_embedding"],
        edge_weights=params["edge_weights"],
        bonds=linear(params["edge_embedding"], of_bonds),
        bond_weights=linear(params["bond_weights"], near),
        angles=angles,
    )


def embed_angles(params: Params, rows: dict[str, Any], streams: dict[str, Array]) -> tuple[Float[Array, "a d"], None]:
    """First features of each angle, from the directions of its bonds (a function for `row_pass`)."""
    basis = angular_basis(rows["first"], rows["second"], params["frequencies"])
    return linear(params["embedding"], basis), None


def _convolve_atoms(
    layer: Params, inputs: _Inputs, atoms: Float[Array, "n d"], change: Float[Array, "b d"], shift: Float[Array, " d"]
) -> Float[Array, "n d"]:
    """Messages along all edges, whose features follow from their length, plus `shift`, plus `change` for bonds."""
    graph, first = inputs.graph, layer["first"]
    of_change = linear_term(first, change, 1)
    own = linear_term(first, atoms, 0)
    tables = {
        "receivers": own + row(linear_term(first, shift[None, :], 1)[0], own),
        "senders": linear_term(first, atoms, 2),
        "bonds": jnp.concatenate([of_change, jnp.zeros_like(of_change[:1])]),  # the last row serves other edges
    }
    # features that follow from the length, mapped: a map of the radial functions
    params = layer | {
        "weights": inputs.edge_weights,
        "edges": linear_term(first, inputs.edge_embedding["weight"].T, 1).T,
    }
    streams = {"basis": inputs.edge_basis}
    _, sums = row_pass(
        edge_messages, "receivers", atoms.shape[0], params, tables, graph.edges, streams, graph.edge_count
    )
    return atoms + linear(layer["out"], sums)


def edge_messages(params: Params, rows: dict[str, Any], edge: dict[str, Array]) -> tuple[None, Float[Array, "s d"]]:
    """g(atom_i, edge_ij, atom_j) w(r_ij) of each edge (a function for `row_pass`).

    Args:
        params: a layer as `prepare` gives it; maps of the radial functions: edges [2 h, f] and weights (linear [d, f]).
        rows: terms [s, 2 h] of the first map: of receivers, senders and bonds.
        edge: basis [s, f].
    """
    mapped = product(edge["basis"], params["edges"]) + rows["receivers"] + rows["senders"] + rows["bonds"]
    return None, gated(params, mapped) * linear(params["weights"], edge["basis"])


def _convolve_bonds(
    layers: dict[str, Params],
    inputs: _Inputs,
    atoms: dict[str, Float[Array, "n d"]],
    bonds: Float[Array, "b d"],
    angles: Float[Array, "a d"],
    keep: bool,
) -> tuple[Float[Array, "a d"], Float[Array, "b d"], Float[Array, " d"]]:
    """Update the angles, and let them send messages to their bonds.

    Args:
        layers: messages, and update unless the angles are still those of the start.
        inputs: graph and basis functions of the system.
        atoms: features of the atoms in the middle that each of the layers reads.
        bonds, angles: features.
        keep: whether the updated angles are wanted.

    Returns:
        Angles; sums of messages to bonds; what the bias of version 0.2.0 adds to the features of every edge.
    """
    graph, weights = inputs.graph, inputs.bond_weights
    tables = {"first": {"weights": weights}, "second": {"weights": weights}}
    for name, layer in layers.items():
        first = layer["first"]
        middle = gather(linear_term(first, atoms[name], 3), graph.bond_receivers)
        tables["first"][name] = linear_term(first, bonds, 0) + middle
        tables["second"][name] = linear_term(first, bonds, 1)
    updated, total = row_pass(
        update_angles if keep else angle_messages,
        "first", bonds.shape[0], layers, tables, graph.angles, {"angles": angles}, graph.angle_count,
    )  # fmt: skip
    out = layers["messages"]["out"]
    update = product(total + gather(total, graph.reverse), out["weight"])
    any_angle = (graph.angle_count.used > 0).astype(bonds.dtype)
    bias = out.get("bias", jnp.zeros_like(bonds[0])) * any_angle
    return updated if keep else angles, update, bias


def update_angles(
    params: dict[str, Params], rows: dict[str, Any], streams: dict[str, Array]
) -> tuple[Float[Array, "a d"], Float[Array, "a d"]]:
    """New features of each angle, and its message to its first bond (a function for `row_pass`).

    Args:
        params: messages, and update where the angles change, each as `prepare` gives it.
        rows: for the first and the second bonds, terms of both layers' first maps [a, 2 h], and weights [a, d].
        streams: angles [a, d], features.
    """
    angles = streams["angles"]

    def gate(name: str) -> Float[Array, "a d"]:
        mapped = linear_term(params[name]["first"], angles, 2)
        return gated(params[name], mapped + rows["first"][name] + rows["second"][name])

    if "update" in params:
        angles = angles + gate("update")
    return angles, gate("messages") * rows["first"]["weights"] * rows["second"]["weights"]


def angle_messages(
    params: dict[str, Params], rows: dict[str, Any], streams: dict[str, Array]
) -> tuple[None, Float[Array, "a d"]]:
    """The messages of `update_angles` alone (a function for `row_pass`)."""
    return None, update_angles(params, rows, streams)[1]


def prepare(layer: Params) -> Params:
    """A gated network's layers for use: both first maps as one, and maps centred that a norm follows.

    The outputs of a centred map have mean zero, so that the norm need not subtract it.
    """
    parts = {}
    for name in ("core", "gate"):
        parts[name] = dict(layer[name])
        if "norm" in layer[name]:
            before = "second" if "second" in layer[name] else "first"
            centre = lambda leaf: leaf - jnp.mean(leaf, axis=0, keepdims=True)  # noqa: E731
            parts[name][before] = jax.tree.map(centre, layer[name][before])
    firsts = [parts[name].pop("first") for name in ("core", "gate")]
    return layer | parts | {"first": jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *firsts)}


def gated(layer: Params, mapped: Float[Array, "e m"]) -> Float[Array, "e d"]:
    """silu(norm(core)) sigmoid(norm(gate)) from the outputs of the first maps, of core and gate side by side.

    Args:
        layer: as `prepare` gives it; a second map, and norms, where the network has them.
        mapped: [e, m], m = 2 h.
    """
    core, gate = (
        _second(layer[name], x) for name, x in zip(("core", "gate"), jnp.split(mapped, 2, axis=-1), strict=True)
    )
    return jax.nn.silu(core) * jax.nn.sigmoid(gate)


def _second(part: Params, x: Float[Array, "e h"]) -> Float[Array, "e d"]:
    if "second" in part:
        x = linear(part["second"], jax.nn.silu(x))
    if "norm" not in part:
        return x
    variance = jnp.mean(x**2, axis=-1, keepdims=True)  # of centred outputs
    return x * jax.lax.rsqrt(variance + 1e-5) * row(part["norm"]["weight"], x) + row(part["norm"]["bias"], x)


def _in_order(layers: dict[str, Any]) -> list[Any]:
    return [layers[str(index)] for index in range(len(layers))]
