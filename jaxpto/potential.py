"""A potential: an architecture with its parameters, and the forces and stress that follow from its energy."""

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

from jaxpto.model_interface import (
    AngularModel,
    DirectModel,
    LocalModel,
    Model,
    NearModel,
    Prediction,
    ReciprocalModel,
    SiteModel,
    caveat,
)
from jaxpto.neighbors import Layout, Neighbors, allocate, edge_rows, edge_vectors
from jaxpto.platform import platform_of
from jaxpto.system import System, volume


@struct.dataclass
class Potential:
    """A model with its parameters.

    Attributes:
        params: the model's parameter pytree.
        model: architecture and hyperparameters (static).
        name: name that the user gave.
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
        """Precision of the parameters, in which the model is evaluated; JAX's default if there are no parameters."""
        arrays = [leaf for leaf in jax.tree.leaves(self.params) if isinstance(leaf, jax.Array | np.ndarray)]
        floating = [array.dtype for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
        return jnp.result_type(*floating) if floating else jnp.result_type(float)

    @property
    def conservative(self) -> bool | None:
        """Whether forces are derivatives of the energy; None where that is not known."""
        return self.model.conservative

    @property
    def caveat(self) -> str:
        """A warning to print with the name of a potential that may not be conservative; "" for others."""
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
        """The neighbour layout that the model needs, with room for the given systems; see `neighbors.allocate`.

        Args:
            systems: unbatched systems of the same composition.
            skin: Angstrom.
            headroom: factor on the largest counts found.
        """
        layout = allocate(
            systems,
            self.cutoff,
            skin,
            by_species=self.model.by_species,
            packed=not self.model.by_species,
            angle_cutoff=self.model.angle_cutoff if isinstance(self.model, AngularModel) else 0.0,
            near_cutoff=self.model.near_cutoff if isinstance(self.model, NearModel) else 0.0,
            wave_cutoff=self.model.wave_cutoff if isinstance(self.model, ReciprocalModel) else 0.0,
            headroom=headroom,
        )
        return dataclasses.replace(layout, platform=platform_of((self.params, systems)))

    def energy(self, system: System, neighbors: Neighbors) -> Float[Array, ""]:
        """Energy of one system, eV; differentiable in positions, cell and params.

        Edge vectors are computed in the precision of the system and then rounded to that of the parameters.
        """
        return self.model.energy(self.params, system, neighbors, self._vectors(system, neighbors))

    def site_properties(self, system: System, neighbors: Neighbors) -> dict[str, Array]:
        """The quantities that a `SiteModel` predicts for each atom of one system; {} for other models."""
        if not isinstance(self.model, SiteModel):
            return {}
        return self.model.site_properties(self.params, system, neighbors, self._vectors(system, neighbors))

    def evaluate(self, system: System, neighbors: Neighbors) -> Prediction:
        """Energy, forces and stress of one system from a single backward pass.

        With g_e = dE/dr_e of the edge vectors, F_i = sum_{e: receiver i} g_e - sum_{e: sender i} g_e and
        stress = (1/V) sum_e r_e (x) g_e (the symmetric strain derivative). The energy of a `ReciprocalModel` depends on
        positions x_i and lattice vectors a_k too, which adds -dE/dx_i to the forces and sum_i x_i (x) dE/dx_i +
        sum_k a_k (x) dE/da_k to the virial. A `DirectModel` predicts all itself.
        """
        if isinstance(self.model, DirectModel):
            return self.model.predict(self.params, system, neighbors)
        n = system.positions.shape[0]
        if isinstance(self.model, LocalModel) and neighbors.layout.devices > 1:
            energy, forces, virial = self._over_devices(self.model, system, neighbors)
        elif (
            isinstance(self.model, LocalModel)
            and (slices := self.model.atoms_at_a_time(n, neighbors.layout)) is not None
        ):
            energy, forces, virial = self._in_slices(self.model, slices, system, neighbors)
        else:
            energy, forces, virial = self._at_once(system, neighbors)
        return Prediction(energy, forces, (virial + virial.T) / (2.0 * volume(system.cell)))

    def _at_once(self, system: System, neighbors: Neighbors) -> tuple[Array, Array, Array]:
        """Energy [] eV, forces [n, 3] eV/Angstrom and virial [3, 3] eV."""
        vectors = edge_vectors(system, neighbors)
        rounded = vectors.astype(self._narrowest(vectors.dtype))
        as_well = (0, 1) if isinstance(self.model, ReciprocalModel) else ()

        def energy_of(positions: Array, cell: Array, rounded: Array) -> Array:
            moved = dataclasses.replace(system, positions=positions, cell=cell)
            return self.model.energy(self.params, moved, neighbors, rounded)

        derivatives = jax.value_and_grad(energy_of, argnums=(*as_well, 2))
        energy, (*further, gradient) = derivatives(system.positions, system.cell, rounded)
        gradient = gradient.astype(vectors.dtype)
        forces = jnp.zeros_like(system.positions)
        if neighbors.layout.edges:
            forces = forces.at[neighbors.receivers].add(gradient, mode="drop")
        else:
            forces = forces + gradient.reshape(len(forces), -1, 3).sum(axis=1)
        forces = forces.at[neighbors.senders].add(-gradient, mode="drop")
        virial = virial_tensor(vectors, gradient)
        for moved, by in zip((system.positions, system.cell), further, strict=False):
            virial = virial + virial_tensor(moved, by)
        return energy, forces - further[0] if further else forces, virial

    def _over_devices(self, model: LocalModel, system: System, neighbors: Neighbors) -> tuple[Array, Array, Array]:
        """The same on several devices, each with its rows of the list; only the results are summed over devices."""
        mesh = jax.sharding.get_abstract_mesh()
        axes = mesh.auto_axes
        n_rows = system.positions.shape[0] // math.prod(mesh.shape[axis] for axis in axes)

        def own(potential: Potential, system: System, wraps: Array, senders: Array, images: Array) -> Any:
            layout = dataclasses.replace(neighbors.layout, devices=1)
            held = dataclasses.replace(neighbors, senders=senders, images=images, wraps=wraps, layout=layout)
            slices = model.atoms_at_a_time(n_rows, layout)
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
        """The same, a few atoms at a time, so that no array over all edges is needed except the list itself.

        The list may hold only consecutive rows of the list of the system, beginning with the row of atom `first`.
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
        """The less precise of a type and the type of the parameters."""
        return min(self.dtype, dtype, key=lambda one: one.itemsize)


def virial_tensor(vectors: Float[Array, "e 3"], gradient: Float[Array, "e 3"]) -> Float[Array, "3 3"]:
    """sum_e r_e (x) g_e, eV.

    Args:
        vectors: [e, 3] edge or other vectors r_e, Angstrom.
        gradient: [e, 3] derivatives g_e of the energy in them, eV/Angstrom.
    """
    # written out: as a matrix product it loses two digits, and on accelerators five
    return jnp.stack([(vectors[:, k, None] * gradient).sum(axis=0) for k in range(3)])
