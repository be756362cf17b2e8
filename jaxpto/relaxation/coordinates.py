"""The coordinates in which positions and cell are relaxed together: those of ASE's FrechetCellFilter.

With the cell at the start h0, the deformation F = exp(U) and n atoms, the cell is h0 F^T and the positions are z F^T.
The coordinates are the rows of z [n, 3] followed by those of n U [3, 3], all in Angstrom. U is kept symmetric, so that
the crystal is strained and never rotated, and exp is taken of its eigenvalues.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.model_interface import Prediction
from jaxpto.neighbors.search import matmul
from jaxpto.system import System, volume


def rows_of(start: System) -> Float[Array, "k 3"]:
    """Coordinates [n + 3, 3] of the structure at the start, Angstrom."""
    return jnp.concatenate([start.positions, jnp.zeros_like(start.cell)])


def system_at(start: System, rows: Float[Array, "k 3"]) -> System:
    """The structure at coordinates [n + 3, 3]."""
    values, vectors = _log_strain(rows)
    deformation = _rotated(jnp.diag(jnp.exp(values)), vectors)
    return dataclasses.replace(start, positions=matmul(rows[:-3], deformation), cell=matmul(start.cell, deformation))


def enthalpy(system: System, prediction: Prediction, pressure: Float[Array, ""]) -> Float[Array, ""]:
    """H = E + p V in eV for a pressure in eV/Angstrom^3."""
    return prediction.energy.astype(system.cell.dtype) + pressure * volume(system.cell)


def gradient(
    rows: Float[Array, "k 3"],
    system: System,
    prediction: Prediction,
    pressure: Float[Array, ""],
    mask: Literal["iso", "diag", "full", "fixed"],
) -> Float[Array, "k 3"]:
    """Derivative of the enthalpy with respect to the coordinates [n + 3, 3], eV/Angstrom.

    dH/dz = -f F. With U = v diag(w) v^T and W = V (stress + p), masked first as in ASE (iso
    keeps a third of the trace), v^T (dH/dU) v has the elements (v^T W v)_ij phi(w_i - w_j), phi(d) = (e^d - 1) / d: the
    derivative of exp (Daleckii & Krein, AMS Transl. 47, 1 (1965)) applied to W F^-T. The nine components of U
    count as independent here, so that the norms of the rows are ASE's; `symmetric` turns it into a search direction.

    Args:
        rows: [n + 3, 3] Angstrom.
        system: `system_at` these rows.
        prediction: energy, forces and stress of `system`.
        pressure: eV/Angstrom^3.
        mask: strain components that are relaxed.
    """
    values, vectors = _log_strain(rows)
    unit = jnp.eye(3, dtype=rows.dtype)
    virial = volume(system.cell) * (prediction.stress.astype(rows.dtype) + pressure * unit)
    kept = {"iso": jnp.trace(virial) / 3.0 * unit, "diag": virial * unit, "full": virial, "fixed": 0.0 * unit}[mask]
    difference = values[:, None] - values[None, :]
    apart = difference != 0.0
    phi = jnp.where(apart, jnp.expm1(difference) / jnp.where(apart, difference, 1.0), 1.0)
    strain = _rotated(phi * _rotated(kept, vectors.T), vectors)
    deformation = _rotated(jnp.diag(jnp.exp(values)), vectors)
    return jnp.concatenate([-matmul(prediction.forces.astype(rows.dtype), deformation), strain / (len(rows) - 3)])


def symmetric(rows: Float[Array, "k 3"]) -> Float[Array, "k 3"]:
    """The same rows with the last three made a symmetric matrix."""
    return rows.at[-3:].set(0.5 * (rows[-3:] + rows[-3:].T))


def longest_row(rows: Float[Array, "k 3"]) -> Float[Array, ""]:
    """Largest norm of a row."""
    return jnp.sqrt(jnp.max(jnp.sum(rows**2, axis=1)))


def _log_strain(rows: Float[Array, "k 3"]) -> tuple[Float[Array, "3"], Float[Array, "3 3"]]:
    """Eigenvalues w and eigenvectors v (columns) of U."""
    values, vectors = jnp.linalg.eigh(rows[-3:] / (rows.shape[0] - 3))
    return values, vectors


def _rotated(matrix: Float[Array, "3 3"], vectors: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    return matmul(matmul(vectors, matrix), vectors.T)
