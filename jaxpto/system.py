"""The periodic system that is simulated, its conversion from and to ASE, and checks of its structure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ase
import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.calculator import all_properties
from flax import struct
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from jaxpto.errors import InputError

LABELS = frozenset({*all_properties, "force", "virial", "virials"})  # names of results, in ASE and in training data
SAME_MASS = 4  # decimals of a mass in amu

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
        positions: [n, 3] Cartesian, Angstrom, unwrapped (never folded back into the cell).
        cell: [3, 3] lattice vectors in rows, Angstrom.
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
    """The systems of a batch as a list."""
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
    """Host numbers as a JAX array of a given type, rounded on the host, where that needs no compiled program."""
    return jnp.asarray(np.asarray(values, dtype))


def to_ase(system: System) -> ase.Atoms:
    """Convert one unbatched system to ASE atoms, periodic in three directions, with unwrapped positions."""
    return ase.Atoms(
        numbers=np.asarray(system.numbers),
        positions=np.asarray(system.positions, np.float64),
        cell=np.asarray(system.cell, np.float64),
        masses=np.asarray(system.masses, np.float64),
        pbc=True,
    )


def made_anew(atoms: ase.Atoms) -> ase.Atoms:
    """A copy of a structure, periodic in three directions, without calculator, constraints and earlier results.

    Masses, magnetic moments, charges, tags, other arrays and `info` are copied; results of an earlier calculation
    (forces, virial, ...) in arrays or `info` are not.
    """
    new = atoms.copy()
    new.set_constraint()
    new.pbc = True
    for name in LABELS & new.arrays.keys():
        del new.arrays[name]
    for name in LABELS & new.info.keys():
        del new.info[name]
    return new


def defining_arrays(atoms: ase.Atoms) -> list[np.ndarray]:
    """The arrays that define a structure in a simulation: elements, positions, cell, and masses unless standard."""
    own = [atoms.get_masses()] if has_own_masses(atoms.numbers, atoms.get_masses()) else []
    return [np.ascontiguousarray(array) for array in (atoms.numbers, atoms.positions, atoms.cell.array, *own)]


def has_own_masses(numbers: Int[np.ndarray, " n"], masses: Float[np.ndarray, " n"]) -> bool:
    """Whether masses [n] differ by 1e-4 amu or more from the standard ones of the elements with atomic numbers [n]."""
    return bool((np.abs(masses - ase.data.atomic_masses[numbers]) >= 10.0**-SAME_MASS).any())


def site_kinds(atoms: ase.Atoms) -> Int[np.ndarray, " n"]:
    """Kind of each atom [n], counted from 0: atoms of one kind have the same element and (to 1e-4 amu) the same mass.

    Isotopes move differently, so the symmetry of vibrations and trajectories is that of kinds, not of elements.
    """
    pairs = list(zip(atoms.numbers.tolist(), atoms.get_masses().round(SAME_MASS).tolist(), strict=True))
    kinds = {pair: kind for kind, pair in enumerate(dict.fromkeys(pairs))}
    return np.array([kinds[pair] for pair in pairs])


def check_atoms(atoms: ase.Atoms, where: str = "structure") -> None:
    """Refuse structures that no simulation can start from.

    Args:
        atoms: any ASE atoms.
        where: what to call the structure in the message (a file and frame, say).

    Raises:
        InputError: what `check_cell` refuses, a cell far too small or large, partly occupied sites, or atoms on top of
            each other.
    """
    check_cell(atoms, where)
    _check_extent(atoms, where)
    _check_occupancies(atoms, where)
    _check_overlap(atoms, where)


def _check_extent(atoms: ase.Atoms, where: str) -> None:
    """Refuse cells in other units than Angstrom; searching their images could take forever."""
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
    """The part of `check_atoms` that is cheap enough for every step.

    Raises:
        InputError: no atoms, numbers that are not finite, no periodic cell, zero volume, or a left-handed cell.
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


def _check_occupancies(atoms: ase.Atoms, where: str) -> None:
    """Refuse partly occupied sites: readers put one whole atom on a site that is shared or partly empty in the file."""
    mixed: dict[frozenset, list[str]] = {}
    for site, shares in _site_occupancies(atoms).items():
        if list(shares.values()) != [1.0]:
            mixed.setdefault(frozenset(shares.items()), []).append(site)
    if not mixed:
        return
    named = []
    for shares, sites in list(mixed.items())[:3]:
        content = " + ".join(f"{share:g} {symbol}" for symbol, share in sorted(shares, key=lambda pair: -pair[1]))
        more = ", ..." if len(sites) > 4 else ""
        named.append(f"{content} on site{'s' if len(sites) > 1 else ''} {', '.join(sites[:4])}{more}")
    more = f"; and {len(mixed) - 3} more" if len(mixed) > 3 else ""
    raise InputError(
        f"{where}: partial occupancies ({'; '.join(named)}{more}; sites count from 0), but a simulation has one whole "
        "atom on every site; give an ordered structure, or a supercell of whole atoms with this composition"
    )


def _site_occupancies(atoms: ase.Atoms) -> dict[str, dict[str, float]]:
    """The elements that share each site, and their shares, as CIF files (by site) and PDB files (by atom) give them."""
    found = {}
    described = atoms.info.get("occupancy")
    if isinstance(described, dict):
        for site, shares in described.items():
            if isinstance(shares, dict):
                found[str(site)] = {str(symbol): _share(share) for symbol, share in shares.items()}
    for name in ("occupancy", "occupancies"):
        for atom, share in enumerate(atoms.arrays.get(name, ())):
            found[str(atom)] = {atoms.symbols[atom]: _share(share)}
    return found


def _share(value: object) -> float:
    """An occupancy as a number; 1 if the file leaves it open ("?" or "." in CIF)."""
    try:
        share = float(value)  # ty: ignore[invalid-argument-type]
    except (TypeError, ValueError):
        return 1.0
    return 1.0 if np.isnan(share) or abs(share - 1.0) < 1e-3 else share


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
