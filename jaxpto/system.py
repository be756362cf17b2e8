"""The periodic system that is simulated, and its way in from ASE and out to ASE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ase
import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from jaxpto.errors import InputError

if TYPE_CHECKING:
    Leaf = Array
else:  # the same pytrees carry numpy arrays on the host and shapes under jax.eval_shape
    Leaf = Array | np.ndarray | jax.ShapeDtypeStruct

LEAST_VOLUME, MOST_VOLUME = 1.0, 1e7  # Angstrom^3 an atom: hydrogen in Jupiter has 1.5; one atom in a box of 215 A
LONGEST_VECTOR = 1e5  # Angstrom; single precision resolves 0.01 of them there
LEAST_HEIGHT = 0.5  # Angstrom between two faces of a cell; the shortest bond, that of H2, has 0.74


@struct.dataclass
class System:
    """Atoms in a periodic cell; a pytree without a batch axis (`jax.vmap` adds replicas).

    Attributes:
        positions: [n, 3] Angstrom, unwrapped (they are never folded back into the cell).
        cell: [3, 3] Angstrom, rows are the lattice vectors.
        numbers: [n] atomic numbers.
        masses: [n] amu.
    """

    positions: Float[Leaf, "*batch n 3"]
    cell: Float[Leaf, "*batch 3 3"]
    numbers: Int[Leaf, "*batch n"]
    masses: Float[Leaf, "*batch n"]


def volume(cell: Float[Array, "3 3"]) -> Float[Array, ""]:
    """Volume of a right-handed cell [3, 3] Angstrom, in Angstrom^3."""
    return jnp.dot(cell[0], jnp.cross(cell[1], cell[2]))


def stack(systems: list[System]) -> System:
    """Stack systems of equal size along a new leading replica axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *systems)


def unstack(systems: System) -> list[System]:
    """The systems of a batch, one by one."""
    return [jax.tree.map(lambda leaf, r=r: leaf[r], systems) for r in range(systems.masses.shape[0])]


def from_ase(atoms: ase.Atoms, dtype: DTypeLike = np.float32) -> System:
    """Convert checked ASE atoms to a `System` of floating-point type `dtype`.

    Raises:
        InputError: what `check_atoms` refuses.
    """
    check_atoms(atoms)
    return System(
        positions=on_device(atoms.positions, dtype),
        cell=on_device(atoms.cell.array, dtype),
        numbers=on_device(atoms.numbers, np.int32),
        masses=on_device(atoms.get_masses(), dtype),
    )


def on_device(values: ArrayLike, dtype: DTypeLike) -> Array:
    """Numbers of the host as an array of that type; rounded there, where it takes no program."""
    return jnp.asarray(np.asarray(values, dtype))


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
        InputError: what `check_cell` refuses, a cell far too small or large, or atoms on top of each other.
    """
    check_cell(atoms, where)
    _check_extent(atoms, where)
    _check_overlap(atoms, where)


def _check_extent(atoms: ase.Atoms, where: str) -> None:
    """Refuse cells in other units than Angstrom, before their images are counted."""
    volume = atoms.cell.volume
    height = volume / max(float(np.linalg.norm(np.cross(*atoms.cell.array[[i, i - 1]]))) for i in range(3))
    if volume / len(atoms) < LEAST_VOLUME or height < LEAST_HEIGHT:
        raise InputError(
            f"{where}: the cell has {volume / len(atoms):.3g} A^3 for each atom and is {height:.3g} A wide, less than "
            f"{LEAST_VOLUME:g} A^3 or {LEAST_HEIGHT:g} A; give it in Angstrom"
        )
    longest = float(atoms.cell.lengths().max())
    if volume / len(atoms) > MOST_VOLUME or longest > LONGEST_VECTOR:
        raise InputError(
            f"{where}: the cell has {volume / len(atoms):.3g} A^3 for each atom and is {longest:.3g} A long, more than "
            f"{MOST_VOLUME:g} A^3 or {LONGEST_VECTOR:g} A; give it in Angstrom, vacuum no wider than the cutoff needs"
        )


def check_cell(atoms: ase.Atoms, where: str = "structure") -> None:
    """The part of `check_atoms` that is cheap enough for every step: everything but distances between atoms.

    Raises:
        InputError: no atoms, not finite, no periodic cell, zero volume, or left-handed cell.
    """
    if len(atoms) == 0:
        raise InputError(f"{where}: it has no atoms; give a structure with at least one")
    finite = np.isfinite(atoms.positions).all(axis=1)
    if not finite.all():
        raise InputError(f"{where}: the position of atom {np.argmin(finite)} is not a finite number; repair it")
    if not np.isfinite(atoms.cell.array).all():
        raise InputError(f"{where}: the cell is not finite; repair it")
    if (atoms.numbers < 1).any():
        raise InputError(f"{where}: atom {np.argmax(atoms.numbers < 1)} has no element; name it")
    if not atoms.pbc.all():
        raise InputError(
            f"{where}: periodic in {int(atoms.pbc.sum())} of 3 directions; "
            "set pbc=True and a cell (with vacuum wider than the cutoff around a molecule)"
        )
    signed_volume = float(np.linalg.det(atoms.cell.array))
    if abs(signed_volume) < 1e-3:
        raise InputError(
            f"{where}: cell volume {signed_volume:.3g} A^3 is zero; give three independent lattice vectors"
        )
    if signed_volume < 0:
        raise InputError(
            f"{where}: left-handed cell (determinant {signed_volume:.4g} A^3); "
            "swap two lattice vectors and their coordinates"
        )


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
