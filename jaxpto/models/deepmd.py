"""Deep Potential models of DeePMD-kit: DeepPot-SE (`se_e2_a`) and DPA-1 (`se_atten`), the architecture of UniPero.

Rows R_j = (s, s x/r, s y/r, s z/r) of the nearest neighbours of an atom, normalized by statistics of its type, are
weighed by an embedding network: X = R^T G / sel, and the invariants X^T X[:, :axis] go into a fitting network. In
DeepPot-SE G_j = net(s_j) of the pair of types (Zhang et al., NeurIPS 2018); in DPA-1 the network sees embeddings of the
types besides s, and layers of attention between the neighbours follow (Zhang et al., npj Comput. Mater. 10, 94 (2024)).

`sel` is the largest number of neighbours that count; the nearest do, as in the original, so that the energy jumps where
more are within the cutoff.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.models.atom_slices import local_energies
from jaxpto.models.deepmd_initial import initial_networks, row_statistics
from jaxpto.models.deepmd_layers import (
    attention,
    by_type,
    environment,
    fitted,
    fitting_network,
    invariants,
    make_groups,
    nearest,
    pick,
    residual_net,
    table_values,
    unit_rows,
)
from jaxpto.models.initial_weights import Samples, generator_of, require_sizes
from jaxpto.models.layers import add_up, species_of
from jaxpto.neighbors import Neighbors, edge_vectors
from jaxpto.system import System

ATOMS, ATOMS_ACCELERATOR = 8, 1024  # that go through the networks of edges at once


@dataclasses.dataclass(frozen=True)
class DeepPotSE:
    """Hyperparameters of DeepPot-SE; widths of layers are those of the parameters.

    Attributes:
        elements: atomic numbers, in the order of the parameters.
        cutoff: Angstrom.
        smooth_start: distance from which the rows are smoothed, Angstrom.
        sel: for each type of neighbours, how many count.
        nearest_first: whether the nearest sum(sel) of all types are chosen before those of each type.
        axis: columns of the second factor of the invariants.
        embedding: for each layer of the embedding networks, how many copies of its input it adds.
        embedding_activation: its activation.
        fitting, fitting_activation: those of the hidden layers of the fitting networks.
        table: start and width of the intervals of the tables that stand in for the embedding networks, or ().
        embedding_widths, fitting_widths: widths of the hidden layers that `initialize` makes; () where the parameters
            decide.
    """

    by_species: ClassVar[bool] = True
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3
    site_quantities: ClassVar[tuple[str, ...]] = ("energies",)
    constants: ClassVar[tuple[str, ...]] = ("mean", "std", "scale", "shift", "embedding/table")

    elements: tuple[int, ...]
    cutoff: float
    smooth_start: float
    sel: tuple[int, ...]
    nearest_first: bool
    axis: int
    embedding: tuple[int, ...]
    embedding_activation: str
    fitting: tuple[int, ...]
    fitting_activation: str
    table: tuple[float, ...] = ()
    embedding_widths: tuple[int, ...] = dataclasses.field(default=(), repr=False)  # changes no energy
    fitting_widths: tuple[int, ...] = dataclasses.field(default=(), repr=False)

    @property
    def neighbor_bounds(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """`sel` of each type, and of all together where the nearest are chosen first."""
        each = tuple(((number,), most) for number, most in zip(self.elements, self.sel, strict=True))
        return (*each, (self.elements, sum(self.sel))) if self.nearest_first else each

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        n = len(self.elements)
        networks = {"embedding/*": (-n, n), "fitting/*": (-n,)}
        return dict.fromkeys(("scale", "shift", "mean", "std"), (n,)) | networks

    def initialize(self, key: Array, samples: Samples, force_scale: float) -> dict[str, Any]:
        """Random parameters to be trained; see `TrainableModel`."""
        require_sizes(self, "embedding_widths", "fitting_widths")
        n = len(self.elements)
        networks = initial_networks(generator_of(key), n, self.embedding_widths, self.fitting_widths, self.axis)
        return networks | row_statistics(map(self.sample_rows, samples), n, sum(self.sel), self.cutoff)

    def sample_rows(self, sample: tuple[System, Neighbors]) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n s 4"]]:
        """Types of the atoms of a system and the rows of their neighbours that count, neither shifted nor scaled."""
        system, neighbors = sample
        vectors = edge_vectors(system, neighbors).reshape(system.positions.shape[0], -1, 3)
        kept = self._nearest(vectors, by_type(neighbors.layout, self.elements))
        rows = environment(jnp.concatenate(kept, axis=1), self.smooth_start, self.cutoff)
        return np.asarray(species_of(self.elements, system.numbers)), np.asarray(rows)

    def energy(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom; `converters.deepmd.parameters` says what params hold."""
        return add_up(jnp.concatenate(self._energies(params, system, neighbors, vectors)))

    def site_properties(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> dict[str, Array]:
        """Energy of each atom, eV."""
        network, shift = self._energies(params, system, neighbors, vectors)
        return {"energies": network + shift}

    def _energies(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """What the network gives for each atom, and the shift of its type."""
        n = system.positions.shape[0]
        types = species_of(self.elements, system.numbers)
        blocks = by_type(neighbors.layout, self.elements)
        kept = self._nearest(vectors.reshape(n, -1, 3), blocks)
        ends = np.cumsum([part.shape[1] for part in kept])[:-1].tolist()
        present = [kind for kind, _ in blocks]

        def network(params: Any, vectors: Array, others: tuple[Array]) -> Array:
            parts = dict(zip(present, jnp.split(vectors, ends, axis=1), strict=True))
            return self._network(params, others[0][0], parts)

        # of one type each, so that a slice needs one set of networks
        groups = make_groups(types, present, atoms_at_once(neighbors.layout.platform))
        order = groups.atoms.reshape(-1)
        near = jnp.concatenate(kept, axis=1).at[order].get(mode="clip")
        owners = jnp.repeat(groups.types, groups.atoms.shape[1])
        found = local_energies(network, groups.atoms.shape[1], params, near, (owners,))
        result = jnp.zeros_like(found, shape=n).at[order].set(found, mode="drop")
        return result * params["scale"][types], params["shift"][types]

    def _nearest(self, vectors: Float[Array, "n s 3"], blocks: list[tuple[int, slice]]) -> list[Float[Array, "n _ 3"]]:
        """The neighbours of each block that count, [n, at most sel, 3]."""
        most = sum(self.sel)
        if self.nearest_first and vectors.shape[1] > most:
            atoms = jnp.arange(vectors.shape[0])[:, None]
            chosen = jnp.zeros(vectors.shape[:2], bool).at[atoms, nearest(vectors, most)].set(True)
            filler = jnp.asarray([2.0 * self.cutoff, 0.0, 0.0], vectors.dtype)
            vectors = jnp.where(chosen[:, :, None], vectors, filler[None, None, :])
        found = [vectors[:, block] for _, block in blocks]
        return [
            pick(part, nearest(part, self.sel[kind])) if part.shape[1] > self.sel[kind] else part
            for part, (kind, _) in zip(found, blocks, strict=True)
        ]

    def _network(
        self, params: dict[str, Any], kind: Int[Array, ""], neighbors: dict[int, Float[Array, "w _ 3"]]
    ) -> Float[Array, " w"]:
        """What the network gives for atoms of one type, from the vectors to each type of neighbours."""
        x = invariants(self._density(params, kind, neighbors), self.axis)
        return fitting_network(params["fitting"], self.fitting, self.fitting_activation, kind, x)

    def _density(
        self, params: dict[str, Any], kind: Int[Array, ""], neighbors: dict[int, Float[Array, "w _ 3"]]
    ) -> Float[Array, "w 4 m"]:
        """X of atoms of one type; empty slots count as well.

        An empty slot has s = 0, hence the row -mean / std: what DeePMD-kit's padding does to its sums.
        """
        mean, std = params["mean"][kind], params["std"][kind]
        empty = -mean / std
        total = jnp.zeros((), empty.dtype)
        for number, most in enumerate(self.sel):
            blank = empty[:, None] * self._embed(params, kind, number, empty[None, :1])
            if number not in neighbors:
                total = total + most * blank[None]
                continue
            vectors = neighbors[number]
            real = (jnp.sum(vectors**2, axis=-1) < self.cutoff**2).astype(vectors.dtype)
            rows = (environment(vectors, self.smooth_start, self.cutoff) - mean[None, None, :]) / std[None, None, :]
            features = self._embed(params, kind, number, rows[:, :, :1])
            weighted = rows * real[:, :, None]
            sums = jnp.einsum("wsa,wsm->wam", weighted, features, precision=jax.lax.Precision.HIGHEST)
            total = total + sums + (most - jnp.sum(real, axis=1))[:, None, None] * blank[None]
        return total / sum(self.sel)

    def _embed(
        self, params: dict[str, Any], kind: Int[Array, ""], number: int, s: Float[Array, "*batch 1"]
    ) -> Float[Array, "*batch m"]:
        """G of neighbours of type `number` of atoms of type `kind`."""
        # one network for all types of the atom where the first axis has length 1
        own = jax.tree.map(lambda leaf: leaf[kind if leaf.shape[0] > 1 else 0, number], params["embedding"])
        if self.table:
            return table_values(own["table"], self.table, s[..., 0])
        return residual_net(own, self.embedding, self.embedding_activation, s)


@dataclasses.dataclass(frozen=True)
class DPA1:
    """Hyperparameters of DPA-1; widths of layers are those of the parameters.

    Attributes:
        elements: atomic numbers, in the order of the parameters.
        cutoff: Angstrom.
        smooth_start: distance from which the rows are smoothed, Angstrom.
        sel: how many neighbours count.
        axis: columns of the second factor of the invariants.
        one_sided: whether the embedding network sees the type of the neighbour only.
        appended: whether the type's embedding is appended to the invariants.
        gated: whether attention is multiplied by the cosine of the angle between both neighbours.
        masked: whether no neighbour attends to itself.
        scale: factor on the logarithms of the attention's weights; 1 for TensorFlow, (width)^-1/2 for the other back
            ends.
        floor: least length by which vectors are divided; 1e-6 for TensorFlow, 1e-12 for the other back ends.
        epsilon: what the normalizations add to the variance.
        embedding: for each layer of the embedding network, how many copies of its input it adds.
        embedding_activation: its activation.
        fitting, fitting_activation: those of the hidden layers of the fitting network.
    """

    by_species: ClassVar[bool] = True
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3
    constants: ClassVar[tuple[str, ...]] = ("std", "scale", "shift")
    site_quantities: ClassVar[tuple[str, ...]] = ("energies",)

    elements: tuple[int, ...]
    cutoff: float
    smooth_start: float
    sel: int
    axis: int
    one_sided: bool
    appended: bool
    gated: bool
    masked: bool
    scale: float
    floor: float
    epsilon: float
    embedding: tuple[int, ...]
    embedding_activation: str
    fitting: tuple[int, ...]
    fitting_activation: str

    @property
    def neighbor_bounds(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """`sel`, of all types together."""
        return ((self.elements, self.sel),)

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Parameters with a row for each element; see `TableModel`."""
        n = len(self.elements)
        return dict.fromkeys(("scale", "shift", "std", "types"), (n,)) | {"fitting/*": (-n,)}

    def energy(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom; `converters.deepmd.parameters` says what params hold."""
        return add_up(jnp.concatenate(self._energies(params, system, neighbors, vectors)))

    def site_properties(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> dict[str, Array]:
        """Energy of each atom, eV."""
        network, shift = self._energies(params, system, neighbors, vectors)
        return {"energies": network + shift}

    def _energies(
        self, params: dict[str, Any], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """What the network gives for each atom, and the shift of its type."""
        n = system.positions.shape[0]
        types = species_of(self.elements, system.numbers)
        blocks = by_type(neighbors.layout, self.elements)
        kind_of_slot = np.zeros(sum(neighbors.layout.slots), np.int32)
        for kind, block in blocks:
            kind_of_slot[block] = kind
        dense = vectors.reshape(n, -1, 3)
        chosen = nearest(dense, self.sel)
        near = pick(dense, chosen)
        kinds = jnp.asarray(kind_of_slot)[chosen]

        network = functools.partial(self._network, [kind for kind, _ in blocks])
        result = local_energies(network, atoms_at_once(neighbors.layout.platform), params, near, (types, kinds))
        return result * params["scale"][types], params["shift"][types]

    def _network(
        self, present: list[int], params: dict[str, Any], vectors: Float[Array, "w s 3"], others: tuple[Array, Array]
    ) -> Float[Array, " w"]:
        """What the network gives for a few atoms, of whom `others` has the types, and those of the neighbours."""
        types, kinds = others
        x = invariants(self._density(params, types, kinds, vectors), self.axis)
        if self.appended:
            x = jnp.concatenate([x, params["types"][types]], axis=1)
        return fitted(params["fitting"], self.fitting, self.fitting_activation, present, types, x)

    def _density(
        self, params: dict[str, Any], types: Int[Array, " w"], kinds: Int[Array, "w s"], vectors: Float[Array, "w s 3"]
    ) -> Float[Array, "w 4 m"]:
        """X of a few atoms of these types, from the types of their neighbours and the vectors to them."""
        real = (jnp.sum(vectors**2, axis=-1) < self.cutoff**2).astype(vectors.dtype)
        rows = environment(vectors, self.smooth_start, self.cutoff) / params["std"][types][:, None, :]
        embedded = [rows[:, :, :1], params["types"][kinds]]
        if not self.one_sided:
            own = params["types"][types][:, None, :]
            embedded.append(jnp.broadcast_to(own, (*kinds.shape, own.shape[-1])))
        features = jnp.concatenate(embedded, axis=-1)
        features = residual_net(params["embedding"], self.embedding, self.embedding_activation, features)
        gate = self._gate(rows[:, :, 1:])
        for number in range(len(params["attention"])):
            layer = params["attention"][str(number)]
            features = attention(layer, features, real, gate, self.scale, self.floor, self.epsilon)
        # rows of empty slots are zero
        return jnp.einsum("wsa,wsm->wam", rows, features, precision=jax.lax.Precision.HIGHEST) / self.sel

    def _gate(self, rows: Float[Array, "w s 3"]) -> Float[Array, "w s s"] | None:
        """Factors of the attention's weights."""
        gate = None
        if self.gated:
            unit = unit_rows(rows, self.floor)
            gate = jnp.einsum("wia,wja->wij", unit, unit, precision=jax.lax.Precision.HIGHEST)
        if self.masked:
            others = 1.0 - jnp.eye(rows.shape[1], dtype=rows.dtype)[None]
            gate = others if gate is None else gate * others
        return gate


def atoms_at_once(platform: str) -> int:
    """Number of atoms whose edges go through the networks at once, on a kind of device."""
    return ATOMS if platform == "cpu" else ATOMS_ACCELERATOR
