"""A potential: parameters plus an architecture, and what follows from its energy (forces, stress)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxpto.model_interface import AngularModel, DirectModel, LocalModel, Model, Prediction, SiteModel, caveat
from jaxpto.neighbors import Layout, Neighbors, allocate, edge_rows, edge_vectors
from jaxpto.system import System, volume


@struct.dataclass
class Potential:
    """A model with its parameters.

    Attributes:
        params: the model's parameter pytree.
        model: architecture and hyperparameters (static).
        name: what the user calls it.
    """

    params: Any
    model: Model = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)

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
    def conservative(self) -> bool | None:
        """Whether forces are derivatives of the energy; None where that is not known."""
        return self.model.conservative

    @property
    def caveat(self) -> str:
        """What is said wherever the potential is named; "" of a conservative one."""
        return caveat(self.conservative)

    @property
    def usual_skin(self) -> float:
        """Skin that suits the model, Angstrom."""
        return self.model.usual_skin

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
