"""The periodic system that is simulated, and its way in from ASE and out to ASE."""

from __future__ import annotations

import ase
import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpto.errors import InputError


@struct.dataclass
class System:
    """Atoms in a periodic cell; a pytree without a batch axis (`jax.vmap` adds replicas).

    Attributes:
        positions: [n, 3] Angstrom, unwrapped (they are never folded back into the cell).
        cell: [3, 3] Angstrom, rows are the lattice vectors.
        numbers: [n] atomic numbers.
        masses: [n] amu.
    """

    positions: Float[Array, "*batch n 3"]
    cell: Float[Array, "*batch 3 3"]
    numbers: Int[Array, "*batch n"]
    masses: Float[Array, "*batch n"]


def volume(cell: Float[Array, "3 3"]) -> Float[Array, ""]:
    """Volume of a right-handed cell [3, 3] Angstrom, in Angstrom^3."""
    return jnp.dot(cell[0], jnp.cross(cell[1], cell[2]))


def stack(systems: list[System]) -> System:
    """Stack systems of equal size along a new leading replica axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *systems)


def from_ase(atoms: ase.Atoms, dtype: np.typing.DTypeLike = np.float32) -> System:
    """Convert checked ASE atoms to a `System` of floating-point type `dtype`.

    Raises:
        InputError: what `check_atoms` refuses.
    """
    check_atoms(atoms)
    return System(
        positions=jnp.asarray(atoms.positions, dtype),
        cell=jnp.asarray(atoms.cell.array, dtype),
        numbers=jnp.asarray(atoms.numbers, jnp.int32),
        masses=jnp.asarray(atoms.get_masses(), dtype),
    )


def to_ase(system: System) -> ase.Atoms:
    """Convert one (unbatched) system to ASE atoms, periodic in three directions, positions unwrapped."""
    return ase.Atoms(
        numbers=np.asarray(system.numbers),
        positions=np.asarray(system.positions, np.float64),
        cell=np.asarray(system.cell, np.float64),
        masses=np.asarray(system.masses, np.float64),
        pbc=True,
    )


def check_atoms(atoms: ase.Atoms, where: str = "structure") -> None:
    """Refuse atoms that no simulation can start from.

    Args:
        atoms: any ASE atoms.
        where: what to call the structure in the message (a file and frame, say).

    Raises:
        InputError: no atoms, not finite, no periodic cell, zero volume, left-handed cell, or atoms on top of each other.
    """
    if len(atoms) == 0:
        raise InputError(f"{where}: it has no atoms; give a structure with at least one")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        bad = int(np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))[0]) if len(atoms) else -1
        what = f"position of atom {bad}" if not np.isfinite(atoms.positions).all() else "cell"
        raise InputError(f"{where}: the {what} is not a finite number; repair the file")
    if not atoms.pbc.all():
        raise InputError(
            f"{where}: periodic in {int(atoms.pbc.sum())} of 3 directions; set pbc=True and a cell (with vacuum for a molecule)"
        )
    signed_volume = float(np.linalg.det(atoms.cell.array))
    if abs(signed_volume) < 1e-3:
        raise InputError(f"{where}: cell volume {signed_volume:.3g} A^3 is zero; give three independent lattice vectors")
    if signed_volume < 0:
        raise InputError(
            f"{where}: left-handed cell (determinant {signed_volume:.4g} A^3); swap two lattice vectors and their coordinates"
        )
    _check_overlap(atoms, where)


def _check_overlap(atoms: ase.Atoms, where: str, closest: float = 0.4) -> None:
    from ase.neighborlist import neighbor_list

    first, second, distance = neighbor_list("ijd", atoms, closest)
    if len(distance):
        worst = int(np.argmin(distance))
        raise InputError(
            f"{where}: atoms {first[worst]} and {second[worst]} are {distance[worst]:.3f} A apart (limit {closest} A); "
            "remove the duplicate or separate them"
        )


def symbols(numbers: np.typing.ArrayLike) -> list[str]:
    """Distinct chemical symbols of atomic numbers [n], in order of first appearance."""
    return [ase.data.chemical_symbols[z] for z in dict.fromkeys(np.asarray(numbers).tolist())]
