"""Force constants by automatic differentiation: rows of the Hessian pulled back through the forces."""

from __future__ import annotations

from collections.abc import Callable

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.errors import InputError
from jaxpto.models.ase_calculator import HostCalculator
from jaxpto.models.energy_function import probe
from jaxpto.models.suitability import check_known
from jaxpto.neighbors import Neighbors, build
from jaxpto.potential import Potential
from jaxpto.system import System, from_ase

ACCELERATOR_BATCH = 12  # rows; a processor is fastest one by one


def force_constants(
    potential: Potential, system: System, neighbors: Neighbors, rows: Int[Array, " r"], batch: int
) -> Float[Array, "r n 3 3"]:
    """Force constants Phi_ij = d2E / dr_i dr_j = -dF_i / dr_j of the atoms i in `rows` with all atoms j, eV/Angstrom^2.

    Every row is one product of the Hessian with a unit vector, by reverse mode over the forces: the models'
    custom derivatives support reverse mode only. Pure and traceable: it can be compiled, and differentiated with
    respect to cell and parameters.

    Forces that a model predicts directly are no gradient: Phi is then not symmetric, and displacing atom i gives its
    transpose. Phonopy's dynamical matrix keeps the Hermitian part, which is the same for both.

    Args:
        potential: any that JAX can differentiate; with parameters in double precision for accurate digits.
        system: the structure at which the energy is expanded.
        neighbors: neighbour list of `system`; it needs no skin.
        rows: [r] indices of atoms.
        batch: rows (three for each atom) that are in memory together; the numbers do not depend on it.
    """

    def forces(positions: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
        return potential.evaluate(system.replace(positions=positions), neighbors).forces  # ty: ignore[missing-attribute]

    _, pull_back = jax.vjp(forces, system.positions)

    def row(place: tuple[Int[Array, ""], Int[Array, ""]]) -> Float[Array, "n 3"]:
        return pull_back(jnp.zeros_like(system.positions).at[place].set(-1.0))[0]

    places = jnp.repeat(rows, 3), jnp.tile(jnp.arange(3), rows.shape[0])
    found = jax.lax.map(row, places, batch_size=batch if batch > 1 else None)
    return found.reshape(rows.shape[0], 3, -1, 3).transpose(0, 2, 1, 3)


_force_constants = jax.jit(force_constants, static_argnames="batch")


def force_constants_of(
    atoms: ase.Atoms,
    potential: Potential,
    rows: list[int],
    batch: int | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "r n 3 3"]:
    """Force constants of some atoms of a structure with all of its atoms, eV/Angstrom^2, in double precision.

    Args:
        atoms: any periodic structure the potential knows.
        potential: with parameters in double precision, as in `JaxptoCalculator.potential`.
        rows: indices of atoms.
        batch: rows (three for each atom) that are in memory together; by default 1 on a processor, 12 elsewhere.
        on_row: called with the number of atoms done and their total.

    Raises:
        InputError: a potential around an ASE calculator, unknown elements, a structure that `check_atoms` refuses, or a
            batch below 1.
    """
    if isinstance(potential.model, HostCalculator):
        raise InputError(
            f"model {potential.name} runs in Python, where JAX has no derivatives; use method displacement"
        )
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch}: must be at least 1 row")
    check_known(potential, atoms)
    probe(potential, atoms)
    with jax.enable_x64(True):
        system = from_ase(atoms, np.float64)
        layout = potential.allocate([system], skin=0.0)
        neighbors = build(system, layout)
        batch = batch or (1 if layout.platform == "cpu" else ACCELERATOR_BATCH)
        together = min(len(rows), -(-batch // 3))  # atoms of one call, so that a long calculation can report
        found = []
        for first in range(0, len(rows), together):
            chunk = (rows[first : first + together] * together)[:together]  # the last one is filled up, to compile once
            block = _force_constants(potential, system, neighbors, jnp.asarray(chunk, jnp.int32), batch=batch)
            found.append(np.asarray(block)[: len(rows) - first])
            if on_row is not None:
                on_row(min(first + together, len(rows)), len(rows))
    return np.concatenate(found)
