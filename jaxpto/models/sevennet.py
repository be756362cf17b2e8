"""SevenNet (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)), NequIP's network for many elements."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto.models.convolution import Convolution, arrange, convolve
from jaxpto.models.couplings import coupling_paths
from jaxpto.models.equivariant import normalized_silu, polynomial_envelope, spherical_harmonics
from jaxpto.models.initial_weights import Samples, generator_of, mean_neighbors
from jaxpto.models.layers import add_up, product, row, species_of
from jaxpto.models.sevennet_initial import initial_parameters
from jaxpto.neighbors import Neighbors
from jaxpto.system import System

Features = list[Float[Array, "n _ _"]]  # for each l: [n, 2 l + 1, channels]


@dataclasses.dataclass(frozen=True)
class SevenNet:
    """Hyperparameters of SevenNet with rotations as its symmetry (no parity) and linear self-connections.

    Attributes:
        elements: atomic numbers, in the order of the parameters.
        cutoff: Angstrom.
        channels: for the first features and for those after each layer, the number of channels of l = 0, 1, ...
        highest: largest l of the harmonics.
        envelope: "polynomial" or "xplor", see `polynomial_envelope` and `xplor_envelope`.
        envelope_parameter: power of the polynomial, or distance from which XPLOR falls, Angstrom.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3
    constants: ClassVar[tuple[str, ...]] = ("scale", "shift")

    elements: tuple[int, ...]
    cutoff: float
    channels: tuple[tuple[int, ...], ...]
    highest: int
    envelope: Literal["polynomial", "xplor"]
    envelope_parameter: float

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        return dict.fromkeys(("embedding", "scale", "shift"), (len(self.elements),))

    def initialize(self, key: Array, samples: Samples, force_scale: float) -> dict[str, Any]:
        """Random parameters to be trained; see `TrainableModel`."""
        if len(self.channels) < 2 or max(len(self.channels[0]), len(self.channels[-1])) > 1:
            raise ValueError("channels of the first features and of the last layer are scalars, and there is a layer")
        neighbors = mean_neighbors(samples, self.cutoff)
        return initial_parameters(
            generator_of(key), len(self.elements), self.cutoff, self.channels, self.highest, neighbors, force_scale
        )

    def energy(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom; `converters.sevennet.parameters` says what params hold."""
        species = species_of(self.elements, system.numbers)

        close = jnp.sum(vectors**2, axis=-1) <= self.cutoff**2  # leaves out the skin and the padding
        blocks = arrange(close, neighbors)
        vectors = vectors.at[blocks.edges].get(mode="fill", fill_value=self.cutoff)  # padding is beyond the cutoff
        distance = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        edge = {
            "radial": self.radial_functions(params["frequencies"], distance),
            "harmonics": spherical_harmonics(vectors / distance[..., None], self.highest),
        }
        features = [params["embedding"][species][:, None, :]]
        for index, channels in enumerate(self.channels[1:]):
            layer = params["layers"][str(index)]
            paths = coupling_paths(len(self.channels[index]) - 1, self.highest, len(channels) - 1, parity=False)
            convolution = Convolution(radial_weights, paths, self.channels[index], self.highest)
            mapped = map_channels(layer["before"], features)
            sums = convolve(convolution, layer["radial"], mapped, blocks, edge, neighbors.layout)
            received, connected = map_channels(layer["after"], sums), map_channels(layer["connection"], features)
            # the first features are scalars only, which no self-connection turns into vectors
            both = [x + y for x, y in zip(received, connected, strict=False)]
            features = gate(both + received[len(both) :], channels)
        readout = product(features[0][:, 0], params["readout"][None, :])[:, 0]
        return add_up(jnp.concatenate([params["scale"][species] * readout, params["shift"][species]]))

    def radial_functions(self, frequencies: Float[Array, " r"], distance: Float[Array, "*b"]) -> Float[Array, "*b r"]:
        """(2 / c) sin(b r) / r times the envelope, for trained frequencies b (1/Angstrom); zero beyond the cutoff c."""
        inside = distance < self.cutoff
        r = jnp.where(inside, distance, 0.5 * self.cutoff)
        if self.envelope == "polynomial":
            envelope = polynomial_envelope(r / self.cutoff, int(self.envelope_parameter))
        else:
            envelope = xplor_envelope(r, self.cutoff, self.envelope_parameter)
        height = jnp.where(inside, envelope / r, 0.0)
        return (2.0 / self.cutoff) * height[..., None] * jnp.sin(jnp.multiply.outer(r, frequencies))


def xplor_envelope(r: Float[Array, "*b"], cutoff: float, onset: float) -> Float[Array, "*b"]:
    """1 up to the onset a, then (c^2 - r^2)^2 (c^2 + 2 r^2 - 3 a^2) / (c^2 - a^2)^3 for the cutoff c."""
    c, a, square = cutoff**2, onset**2, r**2
    return jnp.where(r < onset, 1.0, (c - square) ** 2 * (c + 2.0 * square - 3.0 * a) / (c - a) ** 3)


def radial_weights(radial: dict[str, Any], edge: dict[str, Array]) -> Float[Array, "*batch c"]:
    """A network of the radial functions, linear layers "0", "1", ... [out, in], normalized silu in between."""
    x = product(edge["radial"], radial["0"])
    for index in range(1, len(radial)):
        x = product(normalized_silu(x), radial[str(index)])
    return x


def map_channels(layer: dict[str, Array], features: Any) -> Features:
    """Maps of each l's channels, weights [out, in] by l; without those l that the layer lacks.

    Models of several modalities (functionals) have a bias on the scalars, that of the modality that was converted.
    """
    mapped = [product(x, layer[str(order)]) for order, x in enumerate(features) if str(order) in layer]
    return [mapped[0] + row(layer["bias"], mapped[0]), *mapped[1:]] if "bias" in layer else mapped


def gate(features: Features, channels: tuple[int, ...]) -> Features:
    """e3nn's gate: normalized silu of the first scalars, and vectors times that of one of the other scalars each.

    Args:
        features: for l = 0, the scalars to be kept and then the gates of the channels of l = 1, 2, ...
        channels: how many channels of each l come out.
    """
    scalars = normalized_silu(features[0])
    parts = jnp.split(scalars, np.cumsum(channels)[:-1].tolist(), axis=-1)
    return [parts[0], *map(jnp.multiply, features[1:], parts[1:])]
