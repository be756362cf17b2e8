"""Lennard-Jones pairs with a smooth cutoff: the simplest model, for noble gases, tests and teaching."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import ase.data
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxpto.errors import InputError
from jaxpto.neighbors import Neighbors
from jaxpto.potential import Potential
from jaxpto.system import System


@dataclasses.dataclass(frozen=True)
class LennardJones:
    """Hyperparameters of E = 1/2 sum_{i,j} 4 eps_ij [(sigma_ij/r)^12 - (sigma_ij/r)^6] s(r).

    s falls from 1 at `onset` to 0 at `cutoff` as 1 - 10 x^3 + 15 x^4 - 6 x^5 with x = (r - onset)/(cutoff - onset), so
    the energy has two continuous derivatives. Unlike pairs follow Lorentz (J. Ann. Phys. 248, 127 (1881)) and Berthelot
    (Compt. Rend. 126, 1703 (1898)): sigma_ij = (sigma_i + sigma_j)/2, eps_ij = sqrt(eps_i eps_j).

    Attributes:
        elements: atomic numbers, in the order of the parameters.
        cutoff: Angstrom.
        onset: where the cutoff function leaves 1, Angstrom.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3

    elements: tuple[int, ...]
    cutoff: float
    onset: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters; see `ShapedModel`."""
        return dict.fromkeys(("epsilon", "sigma"), (len(self.elements),))

    def energy(
        self, params: dict[str, Array], system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV from edge vectors [e, 3] Angstrom.

        params hold epsilon [elements] eV and sigma [elements] Angstrom, in the order of `elements`.
        """
        n = system.positions.shape[0]
        table = np.zeros(len(ase.data.chemical_symbols), np.int32)
        table[list(self.elements)] = np.arange(len(self.elements))
        species = jnp.asarray(table)[system.numbers]
        sender_species = species.at[neighbors.senders].get(mode="clip")
        receiver_species = species.at[neighbors.receivers].get(mode="clip")
        epsilon = jnp.sqrt(params["epsilon"][sender_species] * params["epsilon"][receiver_species])
        sigma = 0.5 * (params["sigma"][sender_species] + params["sigma"][receiver_species])
        squared = jnp.sum(vectors**2, axis=-1)  # empty slots lie beyond the cutoff, so no zero reaches the root
        x = jnp.clip((jnp.sqrt(squared) - self.onset) / (self.cutoff - self.onset), 0.0, 1.0)
        smooth = 1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x**2)
        sixth = (sigma**2 / squared) ** 3
        pairs = 4.0 * epsilon * (sixth**2 - sixth) * smooth
        return 0.5 * jnp.sum(jnp.where(neighbors.senders < n, pairs, 0.0))


def lennard_jones(
    elements: Sequence[str],
    epsilon: Sequence[float],
    sigma: Sequence[float],
    cutoff: float,
    onset: float,
    dtype: DTypeLike = np.float32,
) -> Potential:
    """A Lennard-Jones potential with given parameters.

    Args:
        elements: chemical symbols.
        epsilon: well depth of each element, eV.
        sigma: diameter of each element, Angstrom.
        cutoff, onset: outer and inner end of the cutoff function, Angstrom.
        dtype: floating-point type of the parameters.

    Raises:
        InputError: numbers of parameters that differ, or 0 < onset < cutoff violated.
    """
    if not len(elements) == len(epsilon) == len(sigma):
        raise InputError(
            f"{len(elements)} elements, {len(epsilon)} epsilon and {len(sigma)} sigma; give one of each per element"
        )
    if not 0 < onset < cutoff:
        raise InputError(f"onset {onset} A and cutoff {cutoff} A; choose 0 < onset < cutoff")
    numbers = tuple(ase.data.atomic_numbers[symbol] for symbol in elements)
    params = {"epsilon": jnp.asarray(epsilon, dtype), "sigma": jnp.asarray(sigma, dtype)}
    return Potential(params, LennardJones(numbers, float(cutoff), float(onset)), "lennard_jones")
