"""Polarization of an ABO3 perovskite from Born effective charges, continuous in time.

Each 5-atom cell is a B atom with half of its six oxygens and an eighth of its eight A atoms, and

    P = e / V  sum_B sum_j w_j Z_j (r_j - r_B),    w = 1/2 (oxygen), 1/8 (A).

Which image of which neighbour belongs to a cell is decided once, in the initial structure. On unwrapped positions the
sum is then linear, P = e / V (sum_i Z_i x_i + sum_k S_k h_k) with lattice vectors h_k and constant coefficients: no
folding, no jumps by polarization quanta, and a few thousand floating-point operations a sample.

Only differences r_j - r_B enter, so the result does not depend on the origin, whatever the charges sum to. Equivalently
the B atom carries minus the charge of its neighbours' shares (neutralised: 5.179, not 5.18, with the authors' charges).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import ase
import ase.data
import jax.numpy as jnp
import numpy as np
from ase.neighborlist import neighbor_list
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxpto.system import System, on_device, volume
from jaxpto.units import COULOMB_PER_SQUARE_METRE

ChargeSet = Literal["authors", "lda", "nominal"]

# formal charges of the elements that take the 12-fold A site
A_SITE_VALENCE: dict[str, float] = {
    "Li": 1.0, "Na": 1.0, "K": 1.0, "Rb": 1.0, "Cs": 1.0, "Ag": 1.0,
    "Ca": 2.0, "Sr": 2.0, "Ba": 2.0, "Cd": 2.0, "Pb": 2.0,
    "Bi": 3.0, "Y": 3.0, "La": 3.0, "Nd": 3.0, "Sm": 3.0, "Gd": 3.0,
}  # fmt: skip
# charge of A; of O along the B-O bond; of O across it (the B charge follows from neutrality)
LEAD_TITANATE_CHARGES: dict[str, tuple[float, float, float]] = {
    "authors": (3.44, -2.873, -2.873),
    "lda": (3.90, -5.83, -2.56),
}


@struct.dataclass
class PolarizationTopology:
    """Constant coefficients of the dipole of one structure.

    Attributes:
        charges: [n, 3, 3] e, Born charge tensor of each atom (first index: dipole), zero in sum.
        lattice_charges: [3, 3, 3] e, dipole per component of lattice vector k (index 1), from neighbours' shifts.
    """

    charges: Float[Array, "n 3 3"]
    lattice_charges: Float[Array, "3 3 3"]


@dataclasses.dataclass(frozen=True)
class Bonds:
    """Cells of a perovskite: directed pairs B -> neighbour, r = x[neighbor] + shift @ cell - x[center].

    Attributes:
        centers, neighbors: [pairs] atom indices.
        shifts: [pairs, 3] lattice translations of the neighbour.
        vectors: [pairs, 3] Angstrom.
    """

    centers: Int[np.ndarray, " pairs"]
    neighbors: Int[np.ndarray, " pairs"]
    shifts: Int[np.ndarray, "pairs 3"]
    vectors: Float[np.ndarray, "pairs 3"]


def perovskite_bonds(atoms: ase.Atoms) -> tuple[Bonds, Bonds] | None:
    """Six oxygens and eight A atoms of every B atom of an ABO3 structure, or None if it is no perovskite.

    A is any element of `A_SITE_VALENCE`, B any other but oxygen. The neighbours are the nearest ones in the given
    structure; every oxygen must turn out to be shared by two B atoms, every A atom by eight.
    """
    symbols = np.array(atoms.get_chemical_symbols())
    oxygen = symbols == "O"
    a_site = np.isin(symbols, list(A_SITE_VALENCE))
    b_site = ~oxygen & ~a_site
    cells = int(b_site.sum())
    if cells == 0 or int(a_site.sum()) != cells or int(oxygen.sum()) != 3 * cells or not atoms.pbc.all():
        return None
    # c/a up to 1.35 at constant volume puts the corners of a cell up to 0.95 of its cube root away
    reach = 1.25 * (atoms.get_volume() / cells) ** (1.0 / 3.0)
    first, second, shift, distance, vector = neighbor_list("ijSdD", atoms, reach)
    of_b = b_site[first]
    pairs = []
    for mask, count, shared in ((oxygen, 6, 2), (a_site, 8, 8)):
        chosen = np.flatnonzero(of_b & mask[second])
        chosen = chosen[np.lexsort((distance[chosen], first[chosen]))]
        starts = np.searchsorted(first[chosen], np.flatnonzero(b_site))
        ends = np.searchsorted(first[chosen], np.flatnonzero(b_site), side="right")
        if (ends - starts < count).any():
            return None
        chosen = chosen[(starts[:, None] + np.arange(count)[None, :]).reshape(-1)]
        if (np.bincount(second[chosen], minlength=len(atoms))[mask] != shared).any():
            return None
        pairs.append(Bonds(first[chosen], second[chosen], shift[chosen], vector[chosen]))
    return pairs[0], pairs[1]


def pseudo_cubic_axes(oxygens: Bonds) -> tuple[Float[np.ndarray, "3 3"], Int[np.ndarray, " pairs"]]:
    """Mean lattice vectors [3, 3] of the 5-atom cell (rows, Angstrom), and to which of them each B-O bond belongs.

    The two oxygens on opposite sides of a B atom are one such vector apart.
    """
    vectors = oxygens.vectors.reshape(-1, 6, 3)
    directions = vectors / np.linalg.norm(vectors, axis=2)[:, :, None]
    opposite = np.argmin(np.einsum("bid,bjd->bij", directions, directions), axis=2)
    across = (vectors - np.take_along_axis(vectors, opposite[:, :, None], axis=1)).reshape(-1, 3)
    # the first cell's three vectors, ordered and oriented as x, y, z as far as that has a meaning
    axes = across[:6]
    axes = axes[[int(np.argmax(axes[:, k])) for k in range(3)]]
    for _ in range(2):
        overlap = across @ (axes / np.linalg.norm(axes, axis=1)[:, None]).T
        axis_of = np.argmax(np.abs(overlap), axis=1)
        sign = np.sign(np.take_along_axis(overlap, axis_of[:, None], axis=1))
        axes = np.stack([(sign * across)[axis_of == k].mean(axis=0) for k in range(3)])
    return axes, axis_of


def perovskite_repeats(atoms: ase.Atoms) -> tuple[int, int, int] | None:
    """5-atom cells along each lattice vector, or None if it is no perovskite or its axes are not pseudo-cubic ones."""
    bonds = perovskite_bonds(atoms)
    if bonds is None:
        return None
    axes, _ = pseudo_cubic_axes(bonds[0])
    repeats = np.rint(atoms.cell.array @ np.linalg.inv(axes)).astype(int)
    diagonal = np.diag(repeats)
    if (repeats != np.diag(diagonal)).any() or int(np.prod(diagonal)) != bonds[0].centers.shape[0] // 6:
        return None
    return int(diagonal[0]), int(diagonal[1]), int(diagonal[2])


def build_topology(
    atoms: ase.Atoms, charges: ChargeSet = "authors", dtype: DTypeLike = np.float32
) -> tuple[PolarizationTopology | None, str]:
    """Coefficients of the dipole of a perovskite, from its initial structure (on the host, once).

    Args:
        atoms: initial structure of the simulation; positions may lie in any image, and those of the simulation must be
            unwrapped continuations of them.
        charges: "authors": Pb 3.44, Ti 5.18, O -2.873 (the PTO-test's analysis); "lda": Pb 3.90, Ti 7.06, O -5.83 along
            and -2.56 across the bond; "nominal": formal charges, for any elements. The B charge is always the one
            that makes the cell neutral; on a B site shared by ions of different valence that is their mean.
        dtype: floating-point type of the coefficients.

    Returns:
        The topology and "", or None and the reason why this structure has no polarization of this kind.
    """
    symbols = atoms.get_chemical_symbols()
    if charges != "nominal" and not {"Pb", "Ti", "O"} >= set(symbols):
        return None, f"no polarization: the {charges!r} Born charges are those of PbTiO3; use the 'nominal' charges"
    bonds = perovskite_bonds(atoms)
    if bonds is None:
        return None, "no polarization: the structure is not an ABO3 perovskite with six O and eight A around every B"
    oxygens, corners = bonds

    along, across = (-2.0, -2.0) if charges == "nominal" else LEAD_TITANATE_CHARGES[charges][1:]
    # the bond's direction in the ideal lattice: with that of the distorted bond, opposite bonds would not cancel
    axes, axis_of = pseudo_cubic_axes(oxygens)
    direction = (axes / np.linalg.norm(axes, axis=1)[:, None])[axis_of]
    projector = direction[:, :, None] * direction[:, None, :]
    identity = np.eye(3)
    oxygen_tensors = 0.5 * (across * identity[None, :, :] + (along - across) * projector)
    if charges == "nominal":
        a_charges = np.array([A_SITE_VALENCE[symbols[i]] for i in corners.neighbors])
    else:
        a_charges = np.full(corners.neighbors.shape, LEAD_TITANATE_CHARGES[charges][0])
    corner_tensors = 0.125 * a_charges[:, None, None] * identity[None, :, :]

    atom_charges = np.zeros((len(atoms), 3, 3))
    lattice_charges = np.zeros((3, 3, 3))
    for pairs, tensors in ((oxygens, oxygen_tensors), (corners, corner_tensors)):
        np.add.at(atom_charges, pairs.neighbors, tensors)
        np.add.at(atom_charges, pairs.centers, -tensors)
        lattice_charges += np.einsum("pab,pk->akb", tensors, pairs.shifts.astype(np.float64))
    return PolarizationTopology(on_device(atom_charges, dtype), on_device(lattice_charges, dtype)), ""


def polarization(system: System, topology: PolarizationTopology) -> Float[Array, 3]:
    """Polarization vector [3] in C/m^2 of one system with unwrapped positions (traceable and vmappable over systems).

    P = e / V (sum_i Z_i x_i + sum_k S_k h_k); positions and cell in Angstrom.
    """
    # taken from the first atom, so that a drifting crystal does not lose digits in single precision
    relative = system.positions - system.positions[:1]
    dipole = jnp.einsum("nab,nb->a", topology.charges, relative, precision="highest")
    dipole += jnp.einsum("akb,kb->a", topology.lattice_charges, system.cell, precision="highest")
    return dipole / volume(system.cell) / COULOMB_PER_SQUARE_METRE
