"""MACE (Batatia et al., NeurIPS 2022; arXiv:2401.00096): messages of many bodies, made from few neighbour sums.

A layer sums harmonics of the edges times features of the neighbours around each atom (one product with radial weights
for each coupling l1, l2 -> l3), and takes equivariant polynomials of the sums (`mace_product`). All normalizations of
the original are inside the parameters here: widths of layers, numbers of neighbours, the constant of its activation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.models import mace_gated
from jaxpto.models import mace_initial as initial
from jaxpto.models.convolution import Convolution, arrange, convolve
from jaxpto.models.couplings import CouplingPath, coupling_paths, path_name
from jaxpto.models.edge_blocks import Blocks
from jaxpto.models.equivariant import polynomial_envelope, spherical_harmonics
from jaxpto.models.initial_weights import Samples, generator_of, mean_neighbors, normal_map, require_sizes
from jaxpto.models.layers import add_up, product, species_of
from jaxpto.models.mace_product import symmetric_contraction
from jaxpto.neighbors import Layout, Neighbors
from jaxpto.system import System

Features = dict[str, Array]  # for each l: [n, 2 l + 1, channels]

SCREENING = (3.2, 0.9423, 0.4028, 0.2016)  # exponents of the universal repulsion
COULOMB, BOHR = 14.3996, 0.529  # eV Angstrom and Angstrom, as the original has them
ATOMS, ATOMS_ACCELERATOR = 16, 4096  # that go through a layer's products at once


@dataclasses.dataclass(frozen=True)
class MACE:
    """Hyperparameters of MACE; the numbers of channels and of radial functions are those in the parameters.

    Attributes:
        elements: atomic numbers, in the order of the parameters.
        radii: covalent radius of each element, Angstrom.
        cutoff: longest edge, Angstrom.
        cutoff_power: p of the envelope.
        frequencies: k in the radial functions sin(k x) / x, 1/Angstrom.
        agnesi: (a, q, p) of the transform of distances, or ().
        repulsion: (four weights, power and prefactor of the screening length, p of its envelope), or ().
        smooth_features: whether the envelope multiplies the radial functions, and not what is made from them.
        highest_edge: largest l of the edges' harmonics.
        hidden: for each layer, the largest l of what it gives to the next one.
        residual: for each layer, whether its input is added to its result; otherwise elements scale its messages.
        density: for each layer, whether messages are divided by a learned density of neighbours.
        orders: for each layer, the powers in its polynomials.
        readouts: the layers that add to the energy.
        channels: number of features for each l and m that `initialize` makes; 0 where the parameters decide.
        gated: whether the layers are those of `mace_gated`, residual and with a density.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3
    site_quantities: ClassVar[tuple[str, ...]] = ("energies",)
    constants: ClassVar[tuple[str, ...]] = ("scale", "shift", "references")

    elements: tuple[int, ...]
    radii: tuple[float, ...]
    cutoff: float
    cutoff_power: int
    frequencies: tuple[float, ...]
    agnesi: tuple[float, ...]
    repulsion: tuple[float, ...]
    smooth_features: bool
    highest_edge: int
    hidden: tuple[int, ...]
    residual: tuple[bool, ...]
    density: tuple[bool, ...]
    orders: tuple[tuple[int, ...], ...]
    readouts: tuple[int, ...]
    channels: int = dataclasses.field(default=0, repr=False)  # changes no energy
    gated: bool = False

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        own = ("layers/*/radial/*ers", "layers/*/density/*ers") if self.gated else ("layers/*/skip/*",)
        rows = dict.fromkeys(("embedding", "references", *own), (len(self.elements),))
        return rows | {"layers/*/polynomials/*": (-len(self.elements),)}

    def initialize(self, key: Array, samples: Samples, force_scale: float) -> dict[str, Any]:
        """Random parameters to be trained; see `TrainableModel`."""
        require_sizes(self, "channels")
        if len(self.orders) != len(self.hidden):
            raise ValueError(f"orders are those of {len(self.orders)} layers, hidden of {len(self.hidden)}")
        generator, elements, channels = generator_of(key), len(self.elements), self.channels
        neighbors, edge = mean_neighbors(samples, self.cutoff), self.highest_edge
        layers = {}
        for number, (hidden, residual, density, orders) in enumerate(
            zip(self.hidden, self.residual, self.density, self.orders, strict=True)
        ):
            skipped = min(self.hidden[number - 1] if number else 0, hidden) if residual else edge
            layers[str(number)] = {
                **initial.interaction(
                    generator, self.paths(number), channels, len(self.frequencies), self.cutoff, neighbors, density
                ),
                **initial.products(generator, elements, channels, edge, orders, hidden),
                "skip": initial.skips(generator, elements, channels, skipped),
            }
            if number in self.readouts:
                last = number == len(self.hidden) - 1
                layers[str(number)]["readout"] = initial.readout(generator, channels, last)
        return {
            "embedding": normal_map(generator, channels, elements).T,
            "layers": layers,
            "scale": np.asarray(force_scale, np.float32),
            "shift": np.zeros((), np.float32),
            "references": np.zeros(elements, np.float32),
        }

    def energy(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom; `converters.mace.parameters` says what params hold."""
        return add_up(jnp.concatenate(self._energies(params, system, neighbors, vectors)))

    def site_properties(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> dict[str, Array]:
        """Energy of each atom, eV, references included."""
        network, references = self._energies(params, system, neighbors, vectors)
        return {"energies": network + references}

    def _energies(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """Energies of interaction and reference energies of the atoms."""
        n = system.positions.shape[0]
        species = species_of(self.elements, system.numbers)

        close = jnp.sum(vectors**2, axis=-1) < self.cutoff**2  # leaves out the skin and the padding
        blocks = arrange(close, neighbors)
        # the original's vectors run from sender to receiver
        vectors = -vectors.at[blocks.edges].get(mode="fill", fill_value=2.0 * self.cutoff)
        distance = jnp.sqrt(jnp.sum(vectors**2, axis=-1))  # padding is long, so no zero reaches the root
        ends = (
            species.at[blocks.senders].get(mode="clip"),
            jnp.broadcast_to(species.at[blocks.receivers].get(mode="clip")[:, None], blocks.senders.shape),
        )
        streams = self._radial_streams(distance, ends)
        streams["harmonics"] = spherical_harmonics(vectors / distance[..., None], self.highest_edge)

        features = {"0": params["embedding"][species][:, None, :]}
        energies = jnp.zeros_like(vectors, shape=(n,))
        if self.repulsion:
            pairs = jnp.sum(screened_repulsion(distance, ends, self.elements, self.radii, self.repulsion), axis=1)
            energies = energies.at[blocks.receivers].add(pairs, mode="drop")
        for number in range(len(self.hidden)):
            layer = params["layers"][str(number)]
            own = mace_gated.element_streams(layer, ends) if self.gated else {}
            sums = self._messages(number, layer, features, blocks, streams | own, neighbors.layout)
            features, readout = self._update(number, layer, species, features, sums, neighbors.layout.platform)
            energies = energies + readout
        return params["scale"] * energies + params["shift"], params["references"][species]

    def _radial_streams(
        self, distance: Float[Array, "b w"], ends: tuple[Int[Array, "b w"], Int[Array, "b w"]]
    ) -> dict[str, Array]:
        """Radial functions [b, w, k] of each edge, and its envelope [b, w, 1] where it acts on what is made of them."""
        smooth = polynomial_envelope(distance / self.cutoff, self.cutoff_power)[..., None]
        x = agnesi_transform(distance, ends, self.radii, self.agnesi) if self.agnesi else distance
        k = jnp.asarray(self.frequencies, distance.dtype).reshape(1, 1, -1)
        radial = jnp.sin(k * x[..., None]) / x[..., None]
        return {"radial": radial * smooth} if self.smooth_features else {"radial": radial, "envelope": smooth}

    def _messages(
        self,
        number: int,
        layer: dict[str, Any],
        features: Features,
        blocks: Blocks,
        streams: dict[str, Array],
        layout: Layout,
    ) -> Features:
        """Sums over the neighbours of each atom: [n, 2 l + 1, channels of all paths], and the density [n, 1]."""
        paths = self.paths(number)
        senders = [product(x, layer["up"][key]) for key, x in features.items()]
        weights = mace_gated.radial_weights if self.gated else radial_weights
        convolution = Convolution(weights, paths, tuple(x.shape[2] for x in senders), self.highest_edge)
        params = {
            name: jnp.concatenate([layer[key][path_name(path)] for path in paths])
            for name, key in (("last", "couplings"), ("offset", "offsets"))
            if key in layer
        }
        sums = convolve(convolution, {"radial": layer["radial"]} | params, senders, blocks, streams, layout)
        result = {str(degree): x for degree, x in enumerate(sums)}
        if self.density[number]:
            density = jnp.sum(self._density_of_edges(layer["density"], streams), axis=1)
            n = senders[0].shape[0]
            result["density"] = jnp.zeros_like(density, shape=(n, 1)).at[blocks.receivers].add(density, mode="drop")
        return result

    def _density_of_edges(self, params: Any, streams: dict[str, Array]) -> Float[Array, "b w 1"]:
        """What each edge adds to the density of its receiver."""
        if self.gated:
            return mace_gated.density_of_edges(params, streams)
        density = jnp.tanh(product(streams["radial"], params) ** 2)
        return density * streams["envelope"] if "envelope" in streams else density

    def paths(self, number: int) -> tuple[CouplingPath, ...]:
        """The couplings of a layer, in the order of its radial weights."""
        highest = self.hidden[number - 1] if number else 0
        return coupling_paths(highest, self.highest_edge, self.highest_edge, parity=True)

    def _update(
        self,
        number: int,
        layer: dict[str, Any],
        species: Int[Array, " n"],
        features: Features,
        sums: Features,
        platform: str,
    ) -> tuple[Features, Float[Array, " n"]]:
        """New features and energies of the atoms, for a few atoms at a time."""
        n = species.shape[0]
        longest = ATOMS if platform == "cpu" else ATOMS_ACCELERATOR
        slices = math.ceil(n / longest)
        length = math.ceil(n / slices)

        def sliced(x: Array) -> Array:
            padding = [(0, slices * length - n)] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(x, padding).reshape(slices, length, *x.shape[1:])

        mix = {
            str(degree): jnp.concatenate(
                [layer["mix"][path_name(path)] for path in self.paths(number) if path.result == degree], axis=1
            )
            for degree in range(self.highest_edge + 1)
        }

        @jax.checkpoint
        def update(_: None, atoms: Any) -> tuple[None, Any]:
            return None, self._update_atoms(number, layer, mix, *atoms)

        _, results = jax.lax.scan(update, None, jax.tree.map(sliced, (species, features, sums)))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], results)

    def _update_atoms(
        self,
        number: int,
        layer: dict[str, Any],
        mix: dict[str, Array],
        species: Int[Array, " n"],
        features: Features,
        sums: Features,
    ) -> tuple[Features, Float[Array, " n"]]:
        mixed = {key: product(sums[key], weights) for key, weights in mix.items()}
        if self.gated:
            mixed = mace_gated.gated(layer, mixed, features, sums["density"])
        elif self.density[number]:
            mixed = {key: x / (sums["density"] + 1.0)[:, :, None] for key, x in mixed.items()}
        if not self.residual[number]:
            mixed = {key: by_element(layer["skip"][key], species, x) for key, x in mixed.items()}
        channels_last = jnp.concatenate([x.transpose(1, 0, 2) for x in mixed.values()])
        result = {}
        for degree in range(self.hidden[number] + 1):
            weights = layer["polynomials"][str(degree)]
            weights = weights[species if len(weights) > 1 else jnp.zeros_like(species)]
            x = symmetric_contraction(channels_last, weights, self.highest_edge, self.orders[number], degree)
            x = product(x, layer["product"][str(degree)]).transpose(1, 0, 2)
            if self.residual[number] and str(degree) in layer["skip"]:
                skip, own = layer["skip"][str(degree)], features[str(degree)]
                x = x + (product(own, skip) if self.gated else by_element(skip, species, own))
            result[str(degree)] = x
        if number not in self.readouts:
            return result, jnp.zeros_like(x, shape=species.shape)
        y = product(result["0"][:, 0], layer["readout"]["0"])
        if "1" in layer["readout"]:
            y = product(jax.nn.silu(y), layer["readout"]["1"])
        return result, y[:, 0]


def radial_weights(params: dict[str, Any], edge: dict[str, Array]) -> Float[Array, "*batch c"]:
    """Weights of all paths' channels by a network of the radial functions; silu before its last layer.

    Args:
        params: radial (weights "0", "1", ... [out, in]) and the last layer [channels of all paths, in].
        edge: radial [..., k], and envelope [..., 1] if it is not in radial.
    """
    x = edge["radial"]
    for number in range(len(params["radial"])):
        x = jax.nn.silu(product(x, params["radial"][str(number)]))
    return product(x * edge["envelope"] if "envelope" in edge else x, params["last"])


def by_element(
    weights: Float[Array, "elements d c"], species: Int[Array, " n"], features: Float[Array, "n m c"]
) -> Float[Array, "n m d"]:
    """A linear map for each element, of features [n, m, c]."""
    return jnp.einsum("ndc,nmc->nmd", weights[species], features, precision=jax.lax.Precision.HIGHEST)


def agnesi_transform(
    distance: Float[Array, "b w"],
    ends: tuple[Int[Array, "b w"], Int[Array, "b w"]],
    radii: tuple[float, ...],
    constants: tuple[float, ...],
) -> Float[Array, "b w"]:
    """1 / (1 + a x^q / (1 + x^(q - p))), with x the distance in units of half the sum of both covalent radii.

    Args:
        distance: Angstrom.
        ends: species of both atoms.
        radii: covalent radius of each species, Angstrom.
        constants: a, q, p.
    """
    a, q, p = constants
    radius = jnp.asarray(radii, distance.dtype)
    x = distance / (0.5 * (radius[ends[0]] + radius[ends[1]]))
    return 1.0 / (1.0 + a * x**q / (1.0 + x ** (q - p)))


def screened_repulsion(
    distance: Float[Array, "b w"],
    ends: tuple[Int[Array, "b w"], Int[Array, "b w"]],
    elements: tuple[int, ...],
    radii: tuple[float, ...],
    constants: tuple[float, ...],
) -> Float[Array, "b w"]:
    """Half of the repulsion of nuclei screened after Ziegler, Biersack and Littmark, eV; 0 beyond touching radii.

    Args:
        distance: Angstrom.
        ends: species of both atoms.
        elements: atomic number of each species.
        radii: covalent radius of each species, Angstrom.
        constants: as `MACE.repulsion`.
    """
    *weights, power, prefactor, envelope_power = constants
    charge = jnp.asarray(elements, distance.dtype)
    charges = [charge[end] for end in ends]
    powers = jnp.asarray(np.asarray(elements, np.float64) ** power, distance.dtype)
    radius = jnp.asarray(radii, distance.dtype)
    x = distance * (powers[ends[0]] + powers[ends[1]]) / (prefactor * BOHR)
    screening = sum(weight * jnp.exp(-rate * x) for weight, rate in zip(weights, SCREENING, strict=True))
    smooth = polynomial_envelope(distance / (radius[ends[0]] + radius[ends[1]]), int(envelope_power))
    return 0.5 * COULOMB * charges[0] * charges[1] / distance * screening * smooth
