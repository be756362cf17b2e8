"""Strains and internal displacements that keep the space group of a crystal: the coordinates it is minimised over."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from phonopy.structure.cells import Primitive
from phonopy.structure.symmetry import Symmetry

Mask = Literal["iso", "diag", "full"]


def strain_basis(primitive: Primitive, symmetry: Symmetry, mask: Mask) -> Float[np.ndarray, "k 3 3"]:
    """Orthonormal symmetric strains within the mask that every rotation of the crystal leaves unchanged.

    Args:
        primitive: phonopy's primitive cell.
        symmetry: its space group, from phonopy.
        mask: iso (volume), diag (xx, yy, zz) or full (all six components).
    """
    axes = np.eye(3)
    diagonal = [np.outer(axis, axis) for axis in axes]
    shears = [
        (np.outer(axes[a], axes[b]) + np.outer(axes[b], axes[a])) / np.sqrt(2.0) for a, b in ((1, 2), (0, 2), (0, 1))
    ]
    allowed = {"iso": [np.eye(3) / np.sqrt(3.0)], "diag": diagonal, "full": [*diagonal, *shears]}[mask]
    basis = np.array(allowed).reshape(len(allowed), 9)
    to_cartesian, to_fractional = primitive.cell.T, np.linalg.inv(primitive.cell.T)
    turns = [to_cartesian @ turn @ to_fractional for turn in symmetry.symmetry_operations["rotations"]]
    mean = np.mean([np.kron(turn, turn) for turn in turns], axis=0)
    return _invariant(basis @ mean @ basis.T, basis).reshape(-1, 3, 3)


def internal_basis(primitive: Primitive, symmetry: Symmetry) -> Float[np.ndarray, "m p 3"]:
    """Orthonormal displacements, in fractional coordinates, that the space group leaves unchanged.

    The crystal as a whole does not move.

    Args:
        primitive: phonopy's primitive cell.
        symmetry: its space group, from phonopy.
    """
    places, atoms = primitive.scaled_positions, len(primitive)
    operations = symmetry.symmetry_operations
    mean = np.zeros((3 * atoms, 3 * atoms))
    for turn, shift in zip(operations["rotations"], operations["translations"], strict=True):
        swap = np.zeros((atoms, atoms))
        swap[_images(places @ turn.T + shift, places), np.arange(atoms)] = 1.0
        mean += np.kron(swap, turn) / len(operations["rotations"])
    still = np.kron(np.eye(atoms) - 1.0 / atoms, np.eye(3))
    # fractional displacements are no orthogonal representation, so the invariant ones are those of a mean projector
    return _invariant(still @ mean @ still, np.eye(3 * atoms)).reshape(-1, atoms, 3)


def _images(moved: Float[np.ndarray, "p 3"], places: Float[np.ndarray, "p 3"]) -> Int[np.ndarray, " p"]:
    apart = moved[:, None] - places[None]
    return np.linalg.norm(apart - np.rint(apart), axis=2).argmin(axis=1)


def _invariant(projector: Float[np.ndarray, "k k"], basis: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "i n"]:
    """Orthonormal basis of the range of a projector, orthogonal or not; the largest component of each is positive."""
    left, values, _ = np.linalg.svd(projector)
    found = left[:, values > 0.5].T @ basis
    signs = np.sign(found[np.arange(len(found)), np.abs(found).argmax(axis=1)])
    return found * signs[:, None]
