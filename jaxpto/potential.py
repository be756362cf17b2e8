"""A potential: parameters plus an architecture, and what follows from its energy (forces, stress)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxpto.neighbors import Layout, Neighbors, allocate, edge_rows, edge_vectors
from jaxpto.system import Leaf, System, volume


@struct.dataclass
class Prediction:
    """Energy [] eV, forces [n, 3] eV/Angstrom, stress [3, 3] eV/Angstrom^3 (positive in tension) of one system."""

    energy: Float[Leaf, "*batch"]
    forces: Float[Leaf, "*batch n 3"]
    stress: Float[Leaf, "*batch 3 3"]


EvaluateFn = Callable[[System, Neighbors], Prediction]
"""Energy, forces and stress of one system; `Potential.evaluate` is one, any function with this signature will do."""


@runtime_checkable
class Model(Protocol):
    """A conservative architecture: a hashable set of hyperparameters with a pure energy function."""

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers the model knows."""
        ...

    @property
    def cutoff(self) -> float:
        """Angstrom."""
        ...

    @property
    def by_species(self) -> bool:
        """Whether `energy` wants the dense, species-sorted neighbour layout; otherwise it gets a packed list."""
        ...

    def energy(
        self, params: Any, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV as a function of the edge vectors alone (positions and cell enter through nothing else)."""
        ...


@runtime_checkable
class AngularModel(Protocol):
    """A model that wants `Neighbors.angles`."""

    @property
    def angle_cutoff(self) -> float:
        """Longest bond that angles are made of, Angstrom; 0 for no angles."""
        ...


@runtime_checkable
class SiteModel(Protocol):
    """A model that says something about each atom besides its force."""

    @property
    def site_quantities(self) -> tuple[str, ...]:
        """Names, as ASE has them: "energies" (eV), "magmoms" (Bohr magnetons)."""
        ...

    def site_properties(
        self, params: Any, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> dict[str, Array]:
        """Values [n] of each of these quantities."""
        ...


@runtime_checkable
class SelectiveModel(Protocol):
    """A model that knows some of its elements only apart from each other."""

    @property
    def strangers(self) -> tuple[tuple[int, int], ...]:
        """Pairs of atomic numbers that it must not be asked about together."""
        ...


@runtime_checkable
class BoundedModel(Protocol):
    """A model that counts the nearest neighbours only, where there are many."""

    @property
    def neighbor_bounds(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Groups of atomic numbers, and how many neighbours of each group an atom can have."""
        ...


@runtime_checkable
class LocalModel(Protocol):
    """A model with dense lists whose energy is a sum over atoms, each of its own edges: some can go at a time."""

    def atoms_at_a_time(self, n: int) -> Int[Array, "i m"] | None:
        """Which of n atoms to evaluate at a time, where the edges of all would not fit the caches; None: all at once.

        Each atom once, in slices of one length; indices from n on are padding.
        """
        ...

    def local_energies(
        self, layout: Layout, params: Any, vectors: Float[Array, "m s 3"], numbers: Int[Array, " m"]
    ) -> Float[Array, " m"]:
        """Energies in eV of some atoms, from their edge vectors and atomic numbers."""
        ...


@runtime_checkable
class DirectModel(Protocol):
    """An architecture that gives forces and stress itself, in place of the derivatives of its energy."""

    def predict(self, params: Any, system: System, neighbors: Neighbors) -> Prediction:
        """Energy, forces and stress of one system."""
        ...


def caveat(conservative: bool | None) -> str:
    """What is said of a model whose forces are not, or not known to be, derivatives of its energy; "" of others."""
    if conservative:
        return ""
    return f"forces are not {'known to be ' if conservative is None else ''}derivatives of its energy"


@struct.dataclass
class Potential:
    """A model with its parameters.

    Attributes:
        params: the model's parameter pytree.
        model: architecture and hyperparameters (static).
        name: what the user calls it.
        conservative: whether forces are derivatives of the energy; None where that is not known.
    """

    params: Any
    model: Model = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)
    conservative: bool | None = struct.field(pytree_node=False, default=True)

    @property
    def cutoff(self) -> float:
        """Cutoff of the model, Angstrom."""
        return self.model.cutoff

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers the model knows."""
        return self.model.elements

    @property
    def dtype(self) -> jnp.dtype:
        """Precision of the arrays of parameters, in which the model is evaluated; JAX's own where there are none."""
        arrays = [leaf for leaf in jax.tree.leaves(self.params) if isinstance(leaf, jax.Array | np.ndarray)]
        floating = [array.dtype for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
        return jnp.result_type(*floating) if floating else jnp.result_type(float)

    @property
    def caveat(self) -> str:
        """What is said wherever the potential is named; "" of a conservative one."""
        return caveat(self.conservative)

    @property
    def usual_skin(self) -> float:
        """Skin that suits the model, Angstrom: angles of edges in the skin are dear, a new list is cheap."""
        return 0.1 if isinstance(self.model, AngularModel) else 0.3

    def astype(self, dtype: DTypeLike) -> Potential:
        """The same with its floating-point parameters in another precision."""

        def cast(leaf: Any) -> Array:
            array = np.asarray(leaf)
            return jnp.asarray(array, dtype if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype)

        return dataclasses.replace(self, params=jax.tree.map(cast, self.params))

    def allocate(self, systems: list[System], skin: float, headroom: float = 1.25) -> Layout:
        """The neighbour layout that the model wants, with room for the given systems; see `neighbors.allocate`.

        Args:
            systems: unbatched systems of the same composition.
            skin: Angstrom.
            headroom: factor on the largest counts found.
        """
        return allocate(
            systems,
            self.cutoff,
            skin,
            by_species=self.model.by_species,
            packed=not self.model.by_species,
            angle_cutoff=self.model.angle_cutoff if isinstance(self.model, AngularModel) else 0.0,
            headroom=headroom,
        )

    def energy(self, system: System, neighbors: Neighbors) -> Float[Array, ""]:
        """Energy of one system, eV; differentiable in positions, cell and params.

        Edge vectors are taken in the precision of the system and then rounded to that of the parameters.
        """
        return self.model.energy(self.params, system, neighbors, self._vectors(system, neighbors))

    def site_properties(self, system: System, neighbors: Neighbors) -> dict[str, Array]:
        """What a `SiteModel` says about each atom of one system; nothing for other models."""
        if not isinstance(self.model, SiteModel):
            return {}
        return self.model.site_properties(self.params, system, neighbors, self._vectors(system, neighbors))

    def evaluate(self, system: System, neighbors: Neighbors) -> Prediction:
        """Energy, forces and stress of one system from a single backward pass.

        With g_e = dE/dr_e of the edge vectors, F_i = sum_{e: receiver i} g_e - sum_{e: sender i} g_e and
        stress = (1/V) sum_e r_e (x) g_e (the symmetric strain derivative). A `DirectModel` predicts them itself.
        """
        if isinstance(self.model, DirectModel):
            return self.model.predict(self.params, system, neighbors)
        n = system.positions.shape[0]
        if isinstance(self.model, LocalModel) and jax.sharding.get_abstract_mesh().auto_axes:
            energy, forces, virial = self._over_devices(self.model, system, neighbors)
        elif isinstance(self.model, LocalModel) and (slices := self.model.atoms_at_a_time(n)) is not None:
            energy, forces, virial = self._in_slices(self.model, slices, system, neighbors)
        else:
            energy, forces, virial = self._at_once(system, neighbors)
        return Prediction(energy, forces, (virial + virial.T) / (2.0 * volume(system.cell)))

    def _at_once(self, system: System, neighbors: Neighbors) -> tuple[Array, Array, Array]:
        """Energy [] eV, forces [n, 3] eV/Angstrom and virial [3, 3] eV."""
        vectors = edge_vectors(system, neighbors)
        rounded = vectors.astype(self._narrowest(vectors.dtype))
        energy, gradient = jax.value_and_grad(self.model.energy, argnums=3)(self.params, system, neighbors, rounded)
        gradient = gradient.astype(vectors.dtype)
        forces = jnp.zeros_like(system.positions)
        if neighbors.layout.edges:
            forces = forces.at[neighbors.receivers].add(gradient, mode="drop")
        else:
            forces = forces + gradient.reshape(len(forces), -1, 3).sum(axis=1)
        forces = forces.at[neighbors.senders].add(-gradient, mode="drop")
        return energy, forces, virial_tensor(vectors, gradient)

    def _over_devices(self, model: LocalModel, system: System, neighbors: Neighbors) -> tuple[Array, Array, Array]:
        """The same, each device of the mesh with its rows of the list; they meet in the sums only."""
        mesh = jax.sharding.get_abstract_mesh()
        axes = mesh.auto_axes
        n_rows = system.positions.shape[0] // math.prod(mesh.shape[axis] for axis in axes)

        def own(potential: Potential, system: System, wraps: Array, senders: Array, images: Array) -> Any:
            held = dataclasses.replace(neighbors, senders=senders, images=images, wraps=wraps)
            slices = model.atoms_at_a_time(n_rows)
            slices = jnp.arange(n_rows, dtype=jnp.int32)[None, :] if slices is None else slices
            first = n_rows * jax.lax.axis_index(axes)
            return jax.lax.psum(potential._in_slices(model, slices, system, held, first), axes)

        same, dealt = PartitionSpec(), PartitionSpec(axes)
        over = jax.shard_map(
            own, in_specs=(same, same, same, dealt, dealt), out_specs=same, axis_names=set(axes), check_vma=False
        )
        return over(self, system, neighbors.wraps, neighbors.senders, neighbors.images)

    def _in_slices(
        self,
        model: LocalModel,
        slices: Int[Array, "i m"],
        system: System,
        neighbors: Neighbors,
        first: int | Int[Array, ""] = 0,
    ) -> tuple[Array, Array, Array]:
        """The same, of a few atoms at a time: no array of all edges but their list is read or written.

        The list may be consecutive rows of that of the system, from that of the `first` atom on.
        """
        n = neighbors.senders.shape[0] // sum(neighbors.layout.slots)
        rows = edge_rows(system, neighbors, first)

        def some(carry: tuple[Array, Array], atoms: Array) -> tuple[tuple[Array, Array], Array]:
            forces, virial = carry
            exist = atoms < n
            atoms = jnp.minimum(atoms, n - 1)
            senders, vectors = rows(atoms)
            atoms = first + atoms

            def total(rounded: Array) -> tuple[Array, Array]:
                energies = model.local_energies(neighbors.layout, self.params, rounded, system.numbers[atoms])
                energies = jnp.where(exist, energies, jnp.zeros_like(energies))
                return energies.sum(), energies

            rounded = vectors.astype(self._narrowest(vectors.dtype))
            gradient, energies = jax.grad(total, has_aux=True)(rounded)
            gradient = gradient.astype(vectors.dtype)
            forces = forces.at[atoms].add(gradient.sum(axis=1)).at[senders].add(-gradient, mode="drop")
            return (forces, virial + virial_tensor(vectors.reshape(-1, 3), gradient.reshape(-1, 3))), energies

        nothing = jnp.zeros_like(system.positions), jnp.zeros_like(system.cell)
        (forces, virial), energies = jax.lax.scan(some, nothing, slices)
        return energies.sum(), forces, virial

    def _vectors(self, system: System, neighbors: Neighbors) -> Float[Array, "e 3"]:
        vectors = edge_vectors(system, neighbors)
        return vectors.astype(self._narrowest(vectors.dtype))

    def _narrowest(self, dtype: jnp.dtype) -> jnp.dtype:
        """The less precise one of a type and that of the parameters."""
        return min(self.dtype, dtype, key=lambda one: one.itemsize)


def virial_tensor(vectors: Float[Array, "e 3"], gradient: Float[Array, "e 3"]) -> Float[Array, "3 3"]:
    """sum_e r_e (x) g_e, eV.

    Args:
        vectors: [e, 3] edge or other vectors r_e, Angstrom.
        gradient: [e, 3] derivatives g_e of the energy in them, eV/Angstrom.
    """
    # written out: as a matrix product it loses two digits, and on accelerators five
    return jnp.stack([(vectors[:, k, None] * gradient).sum(axis=0) for k in range(3)])
