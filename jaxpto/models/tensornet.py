"""TensorNet (Simeon & De Fabritiis, NeurIPS 2023, arXiv:2306.06482) as in matgl's models for MatPES.

Every channel of an atom holds a 3 x 3 matrix X = I + A + S: a multiple of the identity, an antisymmetric and a
symmetric traceless part. They begin as sums over neighbours of 1, of the matrix of a cross product with the unit vector
to the atom and of its outer product with itself; messages scale the three parts by functions of the distance, and
matrix products mix them.

As published: norms are sums of squares without a root, and the first sum runs over vectors that end at the atom, the
later ones over neighbours that the atom sees; for an energy both are the same neighbours.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto.models.initial_weights import Samples, generator_of, require_sizes
from jaxpto.models.layers import add_up, layer_norm, linear, linear_term, product, species_of
from jaxpto.models.passes import row_pass, select_rows
from jaxpto.models.smooth_bessel import smooth_bessel
from jaxpto.models.tensornet_initial import RADIAL, initial_parameters
from jaxpto.neighbors import Neighbors
from jaxpto.system import System

PARTS = (1, 3, 5)  # components of I, A and S; S as xx, yy, xy, xz, yz
Tensor = Float[Array, "n 3 3 d"]
Components = Float[Array, "n 9 d"]


@dataclasses.dataclass(frozen=True)
class TensorNet:
    """Hyperparameters of TensorNet; the number of interactions is that in the parameters.

    Attributes:
        elements: atomic numbers, in the order of the parameters.
        cutoff: longest edge, Angstrom.
        features, blocks: number of channels and of interactions that `initialize` makes; 0 where the parameters decide.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3
    constants: ClassVar[tuple[str, ...]] = ("offset", "scale", "shift")

    elements: tuple[int, ...] = (*range(1, 84), *range(89, 95))
    cutoff: float = 5.0
    features: int = dataclasses.field(default=0, repr=False)  # changes no energy
    blocks: int = dataclasses.field(default=0, repr=False)

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        return dict.fromkeys(("atom_embedding", "offset"), (len(self.elements),))

    def initialize(self, key: Array, samples: Samples, force_scale: float) -> dict[str, Any]:
        """Random parameters to be trained; see `TrainableModel`."""
        require_sizes(self, "features", "blocks")
        return initial_parameters(generator_of(key), len(self.elements), self.features, self.blocks, force_scale)

    def energy(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom; `tensornet_initial` says what params hold."""
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
        inside = distance <= self.cutoff
        streams = {
            "radial": smooth_bessel(distance, self.cutoff, RADIAL),
            "fade": jnp.where(inside, 0.5 * (jnp.cos((math.pi / self.cutoff) * distance) + 1.0), 0.0)[:, None],
            "unit": -vectors / distance[:, None],
        }
        embedding, atoms = params["embedding"], params["atom_embedding"][species]
        ends = {name: linear_term(embedding["mix"], atoms, part) for part, name in enumerate(("senders", "receivers"))}
        _, first = row_pass(embed_edges, "receivers", n, embedding, ends, index, streams, count)
        tensor = embed_atoms(embedding, first)
        for block in params["blocks"].values():
            tensor = tensor / (squares(tensor) + 1.0)[:, None, None, :]
            sent = mapped(block["before"], components(tensor))
            tables = {"senders": sent}
            _, received = row_pass(messages, "receivers", n, block["radial"], tables, index, streams, count)
            tensor = update_atoms(block, tensor, matrix(sent), matrix(received))
        parts = jnp.concatenate([part_squares(components(tensor))[:, k] for k in range(3)], axis=-1)
        features = linear(params["readout"]["mix"], layer_norm(params["readout"]["norm"], parts))
        value, gate = (chain(params["readout"][name], features) for name in ("value", "gate"))
        network = params["scale"] * add_up((value * jax.nn.sigmoid(gate))[:, 0]) + params["shift"]
        return add_up(jnp.concatenate([network[None], params["offset"][species]]))


def embed_edges(
    embedding: dict[str, Any], rows: dict[str, Any], edge: dict[str, Array]
) -> tuple[None, Float[Array, "e 9 d"]]:
    """Terms of the sums that atoms begin with (a function for `row_pass`)."""
    x, y, z = (edge["unit"][:, axis] for axis in range(3))
    third = 1.0 / 3.0
    shapes = [jnp.ones_like(x), x, y, z, x * x - third, y * y - third, x * y, x * z, y * z]
    scales = linear(embedding["radial"], edge["radial"]) * edge["fade"]
    scales = jnp.stack(jnp.split(scales, 3, axis=-1), axis=1) * (rows["senders"] + rows["receivers"])[:, None, :]
    return None, spread(scales) * jnp.stack(shapes, axis=-1)[:, :, None]


def messages(
    radial: dict[str, Any], rows: dict[str, Any], edge: dict[str, Array]
) -> tuple[None, Float[Array, "e 9 d"]]:
    """The sender's I, A and S, each times a function of the distance (a function for `row_pass`)."""
    scales = edge["radial"]
    for number in range(len(radial)):
        scales = jax.nn.silu(linear(radial[str(number)], scales))
    return None, spread(jnp.stack(jnp.split(scales * edge["fade"], 3, axis=-1), axis=1)) * rows["senders"]


def embed_atoms(embedding: dict[str, Any], first: Components) -> Tensor:
    """X of each atom: its sums, mapped and scaled by functions of their squares."""
    scales = layer_norm(embedding["norm"], squares(matrix(first)))
    for number in ("0", "1"):
        scales = jax.nn.silu(linear(embedding["scales"][number], scales))
    return matrix(mapped(embedding["maps"], first) * spread(jnp.stack(jnp.split(scales, 3, axis=-1), axis=1)))


def update_atoms(block: dict[str, Any], tensor: Tensor, own: Tensor, received: Tensor) -> Tensor:
    """X + D + D^2, where D comes from the products Y M + M Y of what the atom sent and what it received."""
    both = matrix_product(received, own) + matrix_product(own, received)
    change = matrix(mapped(block["after"], components(both / (squares(both) + 1.0)[:, None, None, :])))
    return tensor + change + matrix_product(change, change)


def matrix_product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products of each atom and channel."""
    return sum((left[:, :, k, None, :] * right[:, None, k, :, :] for k in range(1, 3)),
               start=left[:, :, 0, None, :] * right[:, None, 0, :, :])  # fmt: skip


def components(tensor: Tensor) -> Components:
    """1/3 of the trace; the vector of the antisymmetric part; xx, yy, xy, xz, yz of the symmetric traceless part."""
    trace = (tensor[:, 0, 0] + tensor[:, 1, 1] + tensor[:, 2, 2]) / 3.0
    skew = [0.5 * (tensor[:, i, j] - tensor[:, j, i]) for i, j in ((2, 1), (0, 2), (1, 0))]
    symmetric = [0.5 * (tensor[:, i, j] + tensor[:, j, i]) for i, j in ((0, 1), (0, 2), (1, 2))]
    return jnp.stack([trace, *skew, tensor[:, 0, 0] - trace, tensor[:, 1, 1] - trace, *symmetric], axis=1)


def matrix(parts: Components) -> Tensor:
    """The matrix with these components."""
    scalar, x, y, z, xx, yy, xy, xz, yz = (parts[:, k] for k in range(9))
    rows = [
        [scalar + xx, xy - z, xz + y],
        [xy + z, scalar + yy, yz - x],
        [xz - y, yz + x, scalar - xx - yy],
    ]
    return jnp.stack([jnp.stack(row, axis=1) for row in rows], axis=1)


def squares(tensor: Tensor) -> Float[Array, "n d"]:
    """Sum of the squares of a matrix."""
    return jnp.sum(tensor**2, axis=(1, 2))


def part_squares(parts: Components) -> Float[Array, "n 3 d"]:
    """Sums of the squares of the matrices I, A and S."""
    scalar, xx, yy = parts[:, 0], parts[:, 4], parts[:, 5]
    skew = 2.0 * jnp.sum(parts[:, 1:4] ** 2, axis=1)
    symmetric = xx**2 + yy**2 + (xx + yy) ** 2 + 2.0 * jnp.sum(parts[:, 6:] ** 2, axis=1)
    return jnp.stack([3.0 * scalar**2, skew, symmetric], axis=1)


def mapped(maps: dict[str, Array], parts: Components) -> Components:
    """Linear maps of the channels, one for each of I, A and S."""
    pieces = jnp.split(parts, np.cumsum(PARTS)[:-1].tolist(), axis=1)
    return jnp.concatenate([product(piece, maps[name]) for piece, name in zip(pieces, "IAS", strict=True)], axis=1)


def spread(scales: Float[Array, "n 3 d"]) -> Components:
    """A number for each of I, A and S given to all their components."""
    return jnp.concatenate([jnp.repeat(scales[:, k, None], times, axis=1) for k, times in enumerate(PARTS)], axis=1)


def chain(layers: dict[str, Any], features: Float[Array, "n d"]) -> Float[Array, "n _"]:
    """Linear layers with silu in between."""
    for number in range(len(layers)):
        features = linear(layers[str(number)], features if number == 0 else jax.nn.silu(features))
    return features
