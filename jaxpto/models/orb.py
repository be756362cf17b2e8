"""ORB: a graph network on nearest neighbours, versions 2 and 3, with direct or conservative forces.

Version 2 (Neumann et al., arXiv:2410.22570) and version 3 direct (Rhodes et al., arXiv:2504.06231) compute forces and
stress from the features of the atoms, not as derivatives of their energy; version 3 conservative differentiates its
energy. Two laws hold for none of them:

- Directions enter as plain numbers, which training alone has made to rotate: turning a structure changes its energy a
  little, and its forces and stress turn only about as much.
- Energy and forces jump where another neighbour takes an atom's last place: often with 20 places, only in structures
  denser than most with 120.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.model_interface import Prediction
from jaxpto.models.equivariant import polynomial_envelope, spherical_harmonics
from jaxpto.models.layers import add_up, product, sum_edges
from jaxpto.models.mace import screened_repulsion
from jaxpto.models.orb_graph import Graph, nearest_edges
from jaxpto.models.orb_layers import ENVELOPE_POWER, Activation, atom_states, head, scaled, shifted_softplus
from jaxpto.neighbors import Neighbors, edge_vectors
from jaxpto.system import System, volume

GAUSSIANS, SPACING = 20, 0.5  # number and distance (Angstrom) of the centres of version 2's radial functions
HARMONICS = 3  # largest l of version 3
CUTOFF = 6.0  # Angstrom; of version 2, whose files do not hold it


def _single(values: Sequence[float]) -> tuple[float, ...]:
    """Numbers rounded to single precision, in which the original has them."""
    return tuple(np.asarray(values, np.float32).astype(float).tolist())


# of the universal repulsion: weights, power and prefactor of the screening length, power of its envelope
REPULSION = (*_single([0.1818, 0.5099, 0.2802, 0.02817, 0.300, 0.4543]), 6.0)
RADII = _single(ase.data.covalent_radii.tolist())  # Angstrom, by atomic number


@dataclasses.dataclass(frozen=True)
class OrbDirect:
    """Hyperparameters of ORB versions 2 and 3 direct; all others are shapes of the parameters.

    The net force is the original's: the mean over the atoms is taken off before the forces are scaled, so that each
    atom keeps the mean of the training data. Version 3 adds the repulsion of the nuclei, which is conservative, and
    takes each nucleus for the next element's.

    Attributes:
        elements: atomic numbers; parameters have a row for each atomic number.
        nearest: edges from an atom.
        cutoff: longest edge, Angstrom.
        version: 2 or 3.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = False
    usual_skin: ClassVar[float] = 0.3

    elements: tuple[int, ...]
    nearest: int
    cutoff: float
    version: int = 2

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        return dict.fromkeys(("embedding", "references"), (max(self.elements) + 1,))

    def energy(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom; `converters.orb.parameters` says what params hold."""
        graph = rounded(nearest_edges(neighbors, vectors, self.cutoff, self.nearest), params)
        energy = energy_of(params, system, self._states(params, system, graph), self._activation)
        return energy if self.version == 2 else energy + repulsion(system.numbers, graph)

    def predict(self, params: dict[str, Any], system: System, neighbors: Neighbors) -> Prediction:
        """Energy, forces and stress of one system from three heads; the network is not differentiated."""
        vectors = edge_vectors(system, neighbors)
        graph = rounded(nearest_edges(neighbors, vectors, self.cutoff, self.nearest), params)
        atoms, activation = self._states(params, system, graph), self._activation
        forces = head(params["forces"], atoms, activation)
        forces = scaled(params["forces"], forces - jnp.mean(forces, axis=0)[None, :])
        stress = scaled(params["stress"], head(params["stress"], jnp.mean(atoms, axis=0), activation))
        xx, yy, zz, yz, xz, xy = stress
        matrix = jnp.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz]).reshape(3, 3)
        energy = energy_of(params, system, atoms, activation)
        if self.version == 3:
            pairs, slopes = jax.value_and_grad(lambda x: repulsion(system.numbers, graph._replace(vectors=x)))(
                graph.vectors
            )
            n, contracted = len(atoms), product(graph.vectors.T, slopes.T)
            pulls = sum_edges(slopes, graph.senders, n, is_sorted=True) - sum_edges(slopes, graph.receivers, n)
            energy, forces = energy + pairs, forces + pulls
            matrix = matrix + (contracted + contracted.T) / (2.0 * volume(system.cell).astype(matrix.dtype))
        dtype = system.positions.dtype
        return Prediction(energy, forces.astype(dtype), matrix.astype(dtype))

    @property
    def _activation(self) -> Activation:
        return shifted_softplus if self.version == 2 else jax.nn.silu

    def _states(self, params: dict[str, Any], system: System, graph: Graph) -> Float[Array, "n d"]:
        features = gaussian_features if self.version == 2 else BesselFeatures(self.cutoff)
        atoms = params["embedding"][system.numbers]
        return atom_states(params, atoms, graph, self.cutoff, features, self._activation)


@dataclasses.dataclass(frozen=True)
class OrbConservative:
    """Hyperparameters of ORB version 3 conservative; all others are shapes of the parameters.

    Two habits of the original belong to the weights: the repulsion of the nuclei is averaged over the atoms, not
    summed, so that a supercell has less than its share of it; and it takes each nucleus for the next element's.

    Attributes:
        elements: atomic numbers; parameters have a row for each atomic number.
        nearest: edges from an atom.
        cutoff: longest edge, Angstrom.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3
    constants: ClassVar[tuple[str, ...]] = ("references", "energy/mean", "energy/variance")

    elements: tuple[int, ...]
    nearest: int
    cutoff: float

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        return dict.fromkeys(("embedding", "references"), (max(self.elements) + 1,))

    def energy(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom; `converters.orb.parameters` says what params hold."""
        graph = nearest_edges(neighbors, vectors, self.cutoff, self.nearest)
        features = BesselFeatures(self.cutoff)
        atoms = params["embedding"][system.numbers]
        atoms = atom_states(params, atoms, graph, self.cutoff, features, jax.nn.silu)
        pairs = repulsion(system.numbers, graph) / len(atoms)
        return energy_of(params, system, atoms, jax.nn.silu) + pairs


def rounded(graph: Graph, params: dict[str, Any]) -> Graph:
    """The graph with vectors in the precision of the network, after the choice of the nearest."""
    return graph._replace(vectors=graph.vectors.astype(params["embedding"].dtype))


def energy_of(
    params: dict[str, Any], system: System, atoms: Float[Array, "n d"], activation: Activation
) -> Float[Array, ""]:
    """n (x sqrt(variance) + mean) + reference energies, eV, with x the energy head of the mean over atoms."""
    x = scaled(params["energy"], head(params["energy"], jnp.mean(atoms, axis=0), activation))[0]
    return len(atoms) * x + add_up(params["references"][system.numbers])


def gaussian_features(
    params: dict[str, Any], distance: Float[Array, " s"], unit: Float[Array, "s 3"]
) -> Float[Array, "s 23"]:
    """exp(-(d - mu)^2), mu = 0, 0.5, ..., 9.5 Angstrom, and the direction as it is (a function for `EmbedEdges`)."""
    centres = SPACING * jnp.arange(GAUSSIANS, dtype=distance.dtype)
    return jnp.concatenate([jnp.exp(-((distance[:, None] - centres[None, :]) ** 2)), unit], axis=1)


@dataclasses.dataclass(frozen=True)
class BesselFeatures:
    """c(d) b_n(d) Y_m(direction), n slow and m fast, with b_n = prefactor sin(k_n d) / d (a function for `EmbedEdges`).

    Attributes:
        cutoff: c, where the envelope ends, Angstrom.
    """

    cutoff: float

    def __call__(
        self, params: dict[str, Any], distance: Float[Array, " s"], unit: Float[Array, "s 3"]
    ) -> Float[Array, "s k"]:
        """Features of edges; params holds prefactor [] and frequencies [b], 1/Angstrom."""
        d = distance[:, None]
        radial = params["prefactor"] * jnp.sin(params["frequencies"][None, :] * d) / d
        radial = radial * polynomial_envelope(d / self.cutoff, ENVELOPE_POWER)
        harmonics = spherical_harmonics(unit, HARMONICS)
        return (radial[:, :, None] * harmonics[:, None, :]).reshape(len(distance), -1)


def repulsion(numbers: Int[Array, " n"], graph: Graph) -> Float[Array, ""]:
    """Repulsion of the nuclei, eV; as in the original, each has one proton too many.

    Args:
        numbers: atomic numbers, up to 117.
        graph: its edges are the pairs, each of which counts half.
    """
    highest = len(RADII) - 1
    nuclei = tuple(range(1, highest + 1))
    species = [numbers.at[end].get(mode="clip")[:, None] for end in (graph.senders, graph.receivers)]
    distance = jnp.sqrt(jnp.sum(graph.vectors**2, axis=-1))[:, None]
    pairs = screened_repulsion(distance, (species[0], species[1]), nuclei, RADII[1:], REPULSION)
    return jnp.sum(pairs)
