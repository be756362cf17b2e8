"""A model of a package of its own: E = 1/2 sum_{i,j} [A exp(-r / rho) - C / r^6] (1 - (r / cutoff)^2)^3.

Installed beside jaxpto (`pip install .`), it is an architecture like the others: every command takes its models, and
`python -m jaxpto.train --architecture buckingham` trains one. `python -m jaxpto_buckingham NAME` makes one of a table.
"""

import dataclasses
import sys
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jaxpto import Potential, save_potential
from jaxpto.models.manifest import Architecture, Plugin

TABLES = {"argon": ((18,), [[5000.0]], [[0.30]], [[65.0]])}  # elements; A, eV; rho, Angstrom; C, eV Angstrom^6


@dataclasses.dataclass(frozen=True)
class Buckingham:
    """Hyperparameters: atomic numbers and cutoff (Angstrom)."""

    by_species: ClassVar[bool] = False  # a packed list of edges
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3

    elements: tuple[int, ...]
    cutoff: float = 8.0

    @property
    def shapes(self):
        """Shapes of the parameters, so that damaged files are refused."""
        return dict.fromkeys(("A", "rho", "C"), (len(self.elements),) * 2)

    def initialize(self, key, samples, force_scale):
        """Where a training from nothing begins."""
        ones = np.ones((len(self.elements),) * 2, np.float32)
        return {"A": 1000.0 * ones, "rho": 0.3 * ones, "C": 10.0 * ones}

    def energy(self, params, system, neighbors, vectors):
        """Energy in eV of edge vectors [e, 3] Angstrom, a function that JAX can differentiate."""
        n = system.positions.shape[0]
        index = np.zeros(119, np.int32)
        index[list(self.elements)] = np.arange(len(self.elements))
        species = jnp.append(jnp.asarray(index)[system.numbers], 0)  # one more for empty slots, whose sender is n
        pair = species[jnp.minimum(neighbors.senders, n)], species[jnp.minimum(neighbors.receivers, n)]
        a, rho, c = (params[name][pair] for name in ("A", "rho", "C"))
        square = jnp.sum(vectors**2, axis=-1)
        fade = jnp.maximum(1.0 - square / self.cutoff**2, 0.0) ** 3  # empty slots lie beyond the cutoff
        pairs = (a * jnp.exp(-jnp.sqrt(square) / rho) - c / square**3) * fade
        return 0.5 * jnp.sum(jnp.where(neighbors.senders < n, pairs, 0.0))


PLUGIN = Plugin(
    (Architecture("buckingham", "jaxpto_buckingham:Buckingham", {}, {"cutoff": 8.0}, {"cutoff": [2.0, 12.0]}),)
)

if __name__ == "__main__":
    from jaxpto_buckingham import Buckingham  # by the name that the entry point has, not __main__

    elements, *values = TABLES[sys.argv[1]]
    tables = {name: np.asarray(value, np.float32) for name, value in zip(("A", "rho", "C"), values, strict=True)}
    save_potential(Potential(tables, Buckingham(elements), sys.argv[1]), sys.argv[1])
