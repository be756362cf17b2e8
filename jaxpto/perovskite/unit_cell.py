"""The cells of an ABO3 perovskite in any orientation and setting: bonds of the B atoms, pseudo-cubic axes."""

from __future__ import annotations

import dataclasses
import itertools

import ase
import numpy as np
from jaxtyping import Float, Int

from jaxpto.observables.lattice import UnitCell

# formal charges of the elements that take the 12-fold A site
A_SITE_VALENCE: dict[str, float] = {
    "Li": 1.0, "Na": 1.0, "K": 1.0, "Rb": 1.0, "Cs": 1.0, "Ag": 1.0,
    "Ca": 2.0, "Sr": 2.0, "Ba": 2.0, "Cd": 2.0, "Pb": 2.0,
    "Bi": 3.0, "Y": 3.0, "La": 3.0, "Nd": 3.0, "Sm": 3.0, "Gd": 3.0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PerovskiteBonds:
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


def perovskite_bonds(atoms: ase.Atoms) -> tuple[PerovskiteBonds, PerovskiteBonds] | None:
    """Six oxygens and eight A atoms of every B atom of an ABO3 structure, or None if it is no perovskite.

    A is any element of `A_SITE_VALENCE`, B any other but oxygen. The neighbours are the nearest ones in the given
    structure; every oxygen must turn out to be shared by two B atoms, every A atom by eight.
    """
    from ase.neighborlist import neighbor_list  # half a second to import, so only where it is used

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
        pairs.append(PerovskiteBonds(first[chosen], second[chosen], shift[chosen], vector[chosen]))
    return pairs[0], pairs[1]


def pseudo_cubic_axes(oxygens: PerovskiteBonds) -> tuple[Float[np.ndarray, "3 3"], Int[np.ndarray, " pairs"]] | None:
    """Mean lattice vectors [3, 3] of the 5-atom cell (rows, Angstrom), and to which of them each B-O bond belongs.

    The two oxygens on opposite sides of a B atom are one such vector apart; summed over all B atoms, displacements and
    tilts of the octahedra cancel. Order and sign of the vectors are those of the first B atom's bonds. None where the
    bonds are no octahedra.
    """
    vectors = oxygens.vectors.reshape(-1, 6, 3)
    directions = vectors / np.linalg.norm(vectors, axis=2)[:, :, None]
    opposite = np.argmin(np.einsum("bid,bjd->bij", directions, directions), axis=2)
    if (np.take_along_axis(opposite, opposite, axis=1) != np.arange(6)[None, :]).any():
        return None
    across = (vectors - np.take_along_axis(vectors, opposite[:, :, None], axis=1)).reshape(-1, 3)
    axes = across[[k for k in range(6) if k < opposite[0, k]]]
    axis_of = np.zeros(len(across), int)
    for _ in range(2):
        overlap = across @ (axes / np.linalg.norm(axes, axis=1)[:, None]).T
        axis_of = np.argmax(np.abs(overlap), axis=1)
        sign = np.sign(np.take_along_axis(overlap, axis_of[:, None], axis=1))
        if (np.bincount(axis_of, minlength=3) != len(across) // 3).any():
            return None
        axes = np.stack([(sign * across)[axis_of == k].mean(axis=0) for k in range(3)])
    return axes, axis_of


def unit_cell(atoms: ase.Atoms, supercell: tuple[int, int, int]) -> UnitCell:
    """The cell whose lattice parameters describe a structure and, as fractions of its own, every later frame of it.

    Of a perovskite it is the 5-atom cell, whatever orientation, setting or supercell it is given in: a, b, c are the
    pseudo-cubic axes nearest to the first, second and third lattice vector, right-handed like those. Of anything else
    it is the cell that was repeated.

    Args:
        atoms: initial structure of a simulation.
        supercell: repeats of the structure that was given, of which `atoms` consists.
    """
    of_file = UnitCell(np.diag(1.0 / np.asarray(supercell, np.float64)), perovskite=False)
    bonds = perovskite_bonds(atoms)
    found = None if bonds is None else pseudo_cubic_axes(bonds[0])
    if bonds is None or found is None:
        return of_file
    cell = atoms.cell.array
    axes = _nearest(found[0], cell)
    repeats = np.rint(cell @ np.linalg.inv(axes))
    if round(np.linalg.det(repeats)) != len(bonds[0].centers) // 6:
        return of_file
    return UnitCell(np.linalg.inv(repeats), perovskite=True)


def _nearest(axes: Float[np.ndarray, "3 3"], cell: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """The axes in the order and with the signs that bring them nearest to three lattice vectors."""
    directions = axes / np.linalg.norm(axes, axis=1)[:, None]
    wanted = cell / np.linalg.norm(cell, axis=1)[:, None]
    hand = np.sign(np.linalg.det(axes))

    def nearness(choice: tuple[tuple[int, ...], tuple[float, ...]]) -> float:
        order, signs = choice
        return float(np.sum(directions[list(order)] * wanted * np.array(signs)[:, None]))

    choices = [
        (order, signs)
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
        if hand * np.linalg.det(np.eye(3)[list(order)]) * np.prod(signs) > 0.0
    ]
    order, signs = max(choices, key=nearness)
    return axes[list(order)] * np.array(signs)[:, None]
