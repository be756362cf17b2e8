"""qNEP: NEP with charges that depend on the environment, as GPUMD and NEP_CPU have it ("charge NEP").

Z. Fan et al. (2026), the keyword `charge_mode` of GPUMD. The hidden layer of NEP (see `jaxpto.models.nep`) gives a
second number for each atom, and the mean over all atoms of the system is taken off:

    c_i = sum_h v_h tanh(sum_d w0_hd q_d - b0_h),    q_i = c_i - (1/n) sum_j c_j

The energy is the sum of the U_i of NEP, its repulsion of nuclei where there is one, and that of the charges, with the
screening a = pi / r_c, r_c the radial cutoff, and wave vectors up to k_c = 2 pi^2 / r_c. By the mode of the file it is

    1   Ewald's sum, in real space and over wave vectors (see `jaxpto.models.ewald`)
    2   the sum over wave vectors alone, that of charges smeared out to Gaussians with their own energy left in

Both sums end where their terms have fallen to 5e-5: in a cell that changes, the energy jumps slightly where a wave
vector passes k_c, in the original too. Forces and stress are derivatives of the energy, through the charges as well.
What GPUMD calls PPPM is a faster approximation of the same sum. Mode 3 of NEP_CPU, a shifted sum in real space alone,
is not here: GPUMD has no such mode, and NEP_CPU's forces in it are no derivatives of its energy.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpto.models.atom_slices import atoms_at_a_time, in_slices
from jaxpto.models.ewald import reciprocal_energy, screened_potentials
from jaxpto.models.nep import NEP, SLICE, Params
from jaxpto.models.nuclear_repulsion import COULOMB
from jaxpto.neighbors import Layout, Neighbors
from jaxpto.system import System


@dataclasses.dataclass(frozen=True)
class ChargedNEP:
    """Hyperparameters of the model.

    Attributes:
        elements, cutoff, angular_cutoff, radial, angular, radial_basis, angular_basis, highest, four_body, five_body,
            hidden, repulsion: those of `NEP`.
        mode: which sums the energy of the charges is, 1 or 2.
    """

    by_species: ClassVar[bool] = True
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3
    constants: ClassVar[tuple[str, ...]] = ("scaler", "root_dielectric")
    site_quantities: ClassVar[tuple[str, ...]] = ("charges", "born_effective_charges")

    elements: tuple[int, ...]
    cutoff: float
    angular_cutoff: float
    radial: int
    angular: int
    radial_basis: int
    angular_basis: int
    highest: int
    four_body: bool
    five_body: bool
    hidden: int
    mode: Literal[1, 2]
    repulsion: tuple[float, ...] = ()

    @property
    def local(self) -> NEP:
        """The NEP that it is without charges."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return NEP(**{name: value for name, value in given.items() if name != "mode"})

    @property
    def near_cutoff(self) -> float:
        """Reach of the angular descriptors, Angstrom; see `NearModel`."""
        return self.local.near_cutoff

    @property
    def screening(self) -> float:
        """Screening a of the charges, 1/Angstrom."""
        return math.pi / self.cutoff

    @property
    def wave_cutoff(self) -> float:
        """Longest wave vector that counts, 1/Angstrom; see `ReciprocalModel`."""
        return 2.0 * math.pi * self.screening

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters; see `ShapedModel`."""
        shapes = self.local.shapes
        return shapes | {"charge": shapes["weight1"], "root_dielectric": ()}

    def energy(
        self, params: Params, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV of the edge vectors, positions and cell; see `Model.energy` and `ReciprocalModel`."""
        energies, raw = self._of_atoms(params, system, neighbors.layout, vectors)
        charges = _neutral(raw)
        total = energies.sum() + reciprocal_energy(charges, system, neighbors.layout, self.screening)
        if self.mode == 2:
            return total
        n = charges.shape[0]
        distance = jnp.sqrt((vectors * vectors).sum(axis=1)).reshape(n, -1)  # empty slots lie beyond the cutoff
        of_senders = charges.at[neighbors.senders].get(mode="clip").reshape(n, -1)
        potentials = screened_potentials(distance, of_senders, self.cutoff, self.screening)
        own = (2.0 * self.screening / math.sqrt(math.pi)) * charges
        return total + 0.5 * COULOMB * (charges * (potentials - own)).sum()

    def site_properties(
        self, params: Params, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> dict[str, Array]:
        """Charges [n] and Born effective charges [n, 3, 3] of all atoms, e; see `SiteModel`.

        With the original's convention, for displacements u_b and the polarization along a,

            Z_i,ab = sqrt(epsilon) [q_i delta_ab + 1/2 sum_{e to i} r_e,a g_e,b - 1/2 sum_{e from i} r_e,a g_e,b],
            g_e = d c_i / d r_e of the edge vector r_e at the atom i that receives it, epsilon that of `dielectric`.

        That is V dP_a / du_b of the charges with the derivatives of the charges, where a charge that an edge brings to
        its receiver is counted as moved there from the middle of the edge. It does not depend on the origin, and the
        sum over all atoms is zero, but it is no derivative of a polarization in general, nor what the energy of a long
        wave holds: there the derivatives have the factor 1 at the sender and 0 at the receiver, in place of 1/2 and
        1/2. Fields of longitudinal modes in a simulation are those of the energy.
        """
        n = system.positions.shape[0]

        def total(vectors: Array) -> tuple[Array, Array]:
            raw = self._of_atoms(params, system, neighbors.layout, vectors)[1]
            return raw.sum(), raw

        gradient, raw = jax.grad(total, has_aux=True)(vectors)
        moved = 0.5 * vectors[:, :, None] * gradient[:, None, :]
        born = moved.reshape(n, -1, 3, 3).sum(axis=1).at[neighbors.senders].add(-moved, mode="drop")
        charges = _neutral(raw)
        born = born + charges[:, None, None] * jnp.eye(3, dtype=charges.dtype)[None, :, :]
        return {"charges": charges, "born_effective_charges": params["root_dielectric"] * born}

    def dielectric(self, params: Params) -> Float[Array, "3 3"]:
        """Dielectric tensor of the electrons, isotropic, from the file; see `PolarizableModel`."""
        return params["root_dielectric"] ** 2 * jnp.eye(3, dtype=params["root_dielectric"].dtype)

    def _of_atoms(
        self, params: Params, system: System, layout: Layout, vectors: Float[Array, "e 3"]
    ) -> list[Float[Array, " n"]]:
        """Energies U_i of the atoms, eV, and their charges c_i before these are made neutral, e."""
        n = system.positions.shape[0]
        model, rows = self.local, vectors.reshape(n, -1, 3)

        def some(rows: Float[Array, "m s 3"], numbers: Int[Array, " m"]) -> list[Array]:
            return model.outputs(layout, params, rows, numbers, ("charge",))

        if atoms_at_a_time(n, SLICE, layout) is None:
            return some(rows, system.numbers)
        return in_slices(some, SLICE, rows, system.numbers)


def charged(local: NEP, mode: int) -> ChargedNEP:
    """The model with charges of a mode on top of a NEP.

    Raises:
        ValueError: a NEP with one net for all elements, or another mode than 1 or 2.
    """
    if local.one_net or mode not in (1, 2):
        raise ValueError(f"charges of mode {mode} with {'one net' if local.one_net else 'nets'} for the elements")
    given = {field.name: getattr(local, field.name) for field in dataclasses.fields(local)}
    return ChargedNEP(**{name: value for name, value in given.items() if name != "one_net"}, mode=mode)


def _neutral(charges: Float[Array, " n"]) -> Float[Array, " n"]:
    return charges - charges.mean()[None]
