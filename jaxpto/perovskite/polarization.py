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

from typing import Literal

import ase
import ase.data
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxpto.perovskite.unit_cell import A_SITE_VALENCE, PerovskiteBonds, perovskite_bonds, pseudo_cubic_axes
from jaxpto.system import System, on_device, volume
from jaxpto.units import COULOMB_PER_SQUARE_METRE

ChargeSet = Literal["auto", "authors", "lda", "nominal"]

# charge of A; of O along the B-O bond; of O across it (the B charge follows from neutrality)
LEAD_TITANATE_CHARGES: dict[str, tuple[float, float, float]] = {
    "authors": (3.44, -2.873, -2.873),
    "lda": (3.90, -5.83, -2.56),
}

FORMAL = "polarization from formal charges (`charges=nominal`); Born charges are larger"


@struct.dataclass
class PolarizationTopology:
    """Constant coefficients of the dipole of one structure.

    Attributes:
        charges: [n, 3, 3] e, Born charge tensor of each atom (first index: dipole), zero in sum.
        lattice_charges: [3, 3, 3] e, dipole per component of lattice vector k (index 1), from neighbours' shifts.
    """

    charges: Float[Array, "n 3 3"]
    lattice_charges: Float[Array, "3 3 3"]


def build_topology(
    atoms: ase.Atoms, charges: ChargeSet | Float[np.ndarray, "n 3 3"] = "auto", dtype: DTypeLike = np.float32
) -> tuple[PolarizationTopology | None, str]:
    """Coefficients of the dipole of a perovskite, from its initial structure (on the host, once).

    Args:
        atoms: initial structure of the simulation; positions may lie in any image, and those of the simulation must be
            unwrapped continuations of them.
        charges: "authors": Pb 3.44, Ti 5.18, O -2.873 (the PTO-test's analysis); "lda": Pb 3.90, Ti 7.06, O -5.83 along
            and -2.56 across the bond; "nominal": formal charges, for any elements; "auto": "authors" for PbTiO3,
            "nominal" for all others. The B charge is always the one that makes the cell neutral; on a B site shared
            by ions of different valence that is their mean. Or Born charges of all atoms, e (first index: dipole), of
            which those of A and O are taken.
        dtype: floating-point type of the coefficients.

    Returns:
        The topology and what is to be said about it ("" if nothing), or None and the reason why this structure has no
        polarization of this kind.
    """
    symbols = atoms.get_chemical_symbols()
    lead_titanate = {"Pb", "Ti", "O"} >= set(symbols)
    if not isinstance(charges, np.ndarray) and charges in LEAD_TITANATE_CHARGES and not lead_titanate:
        return None, f"no polarization: the Born charges '{charges}' are those of PbTiO3; use `charges=nominal`"
    bonds = perovskite_bonds(atoms)
    found = None if bonds is None else pseudo_cubic_axes(bonds[0])
    if bonds is None or found is None:
        return None, "no polarization: the structure is not an ABO3 perovskite with six O and eight A around every B"
    note = ""
    if isinstance(charges, np.ndarray):
        tensors = [share * charges[pairs.neighbors] for share, pairs in zip((0.5, 0.125), bonds, strict=True)]
    else:
        if charges == "auto":
            charges = "authors" if lead_titanate else "nominal"
            note = "" if lead_titanate else FORMAL
        tensors = _tensors(symbols, charges, found, bonds)

    atom_charges = np.zeros((len(atoms), 3, 3))
    lattice_charges = np.zeros((3, 3, 3))
    for pairs, shares in zip(bonds, tensors, strict=True):
        np.add.at(atom_charges, pairs.neighbors, shares)
        np.add.at(atom_charges, pairs.centers, -shares)
        lattice_charges += np.einsum("pab,pk->akb", shares, pairs.shifts.astype(np.float64))
    return PolarizationTopology(on_device(atom_charges, dtype), on_device(lattice_charges, dtype)), note


def _tensors(
    symbols: list[str],
    charges: ChargeSet,
    found: tuple[Float[np.ndarray, "3 3"], Int[np.ndarray, " pairs"]],
    bonds: tuple[PerovskiteBonds, PerovskiteBonds],
) -> list[Float[np.ndarray, "_ 3 3"]]:
    """Share of the Born charge of O that each B-O bond has, and of that of A, from a table."""
    _, corners = bonds
    along, across = (-2.0, -2.0) if charges == "nominal" else LEAD_TITANATE_CHARGES[charges][1:]
    # the bond's direction in the ideal lattice: with that of the distorted bond, opposite bonds would not cancel
    axes, axis_of = found
    direction = (axes / np.linalg.norm(axes, axis=1)[:, None])[axis_of]
    projector = direction[:, :, None] * direction[:, None, :]
    identity = np.eye(3)
    if charges == "nominal":
        a_charges = np.array([A_SITE_VALENCE[symbols[i]] for i in corners.neighbors])
    else:
        a_charges = np.full(corners.neighbors.shape, LEAD_TITANATE_CHARGES[charges][0])
    return [
        0.5 * (across * identity[None, :, :] + (along - across) * projector),
        0.125 * a_charges[:, None, None] * identity[None, :, :],
    ]


def polarization(system: System, topology: PolarizationTopology) -> Float[Array, 3]:
    """Polarization vector [3] in C/m^2 of one system with unwrapped positions (traceable and vmappable over systems).

    P = e / V (sum_i Z_i x_i + sum_k S_k h_k); positions and cell in Angstrom.
    """
    # taken from the first atom, so that a drifting crystal does not lose digits in single precision
    relative = system.positions - system.positions[:1]
    dipole = jnp.einsum("nab,nb->a", topology.charges, relative, precision="highest")
    dipole += jnp.einsum("akb,kb->a", topology.lattice_charges, system.cell, precision="highest")
    return dipole / volume(system.cell) / COULOMB_PER_SQUARE_METRE
