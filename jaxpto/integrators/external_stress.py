"""What a constant external stress does to a flexible cell, as a Cauchy or a second Piola-Kirchhoff stress."""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.errors import InputError
from jaxpto.integrators.common import matmul
from jaxpto.system import volume

StressMeasure = Literal["cauchy", "piola-kirchhoff"]
"""The true stress, force per present area; or the second Piola-Kirchhoff stress on the cell at the start."""


def check_measure(measure: str) -> None:
    """Refuse an unknown stress measure.

    Raises:
        InputError: `measure` is none of `StressMeasure`.
    """
    if measure not in get_args(StressMeasure):
        raise InputError(f"stress measure is {measure!r}; choose one of {', '.join(get_args(StressMeasure))}")


def hydrostatic_stress(pressure: float | Float[Array, ""]) -> Float[Array, "3 3"]:
    """External stress -P I (eV/Angstrom^3, positive in tension) of a pressure P (eV/Angstrom^3)."""
    return -jnp.asarray(pressure) * jnp.eye(3)


def external_force(
    stress: Float[Array, "3 3"],
    inverse_reference_cell: Float[Array, "3 3"],
    cell: Float[Array, "3 3"],
    measure: StressMeasure,
) -> Float[Array, "3 3"]:
    """External force on the strain rate of a cell, [3, 3] eV.

    With the pressure P = -Tr(stress)/3 and the deviatoric rest S it is -P V I + V S for the Cauchy stress and
    -P V I + V0 E S E^T for the second Piola-Kirchhoff stress (E the deformation since the reference cell, r = E r0).

    Args:
        stress: [3, 3] eV/Angstrom^3, positive in tension.
        inverse_reference_cell: [3, 3] 1/Angstrom, of the cell where the Piola-Kirchhoff stress is defined.
        cell: [3, 3] Angstrom, rows are the lattice vectors.
        measure: what the deviatoric part of `stress` is.
    """
    pressure, deviatoric = _split(stress)
    hydrostatic = -pressure * volume(cell) * jnp.eye(3, dtype=cell.dtype)
    if measure == "cauchy":
        return hydrostatic + volume(cell) * deviatoric
    stretched, deformation = _referred(deviatoric, inverse_reference_cell, cell)
    return hydrostatic + matmul(matmul(deformation.T, stretched), deformation)


def potential_work(
    stress: Float[Array, "3 3"],
    inverse_reference_cell: Float[Array, "3 3"],
    cell: Float[Array, "3 3"],
    measure: StressMeasure,
) -> Float[Array, ""]:
    """Part of the external work that is a function of the cell, [] eV; arguments as for `external_force`.

    P V for the Cauchy stress, whose deviatoric part has no potential (`deviatoric_work`); P V - V0 Tr(S (E^T E - 1)/2)
    for the second Piola-Kirchhoff stress: Parrinello and Rahman, J. Appl. Phys. 52, 7182 (1981).
    """
    pressure, deviatoric = _split(stress)
    if measure == "cauchy":
        return pressure * volume(cell)
    stretched, deformation = _referred(deviatoric, inverse_reference_cell, cell)
    strain = 0.5 * (matmul(deformation, deformation.T) - jnp.eye(3, dtype=cell.dtype))
    return pressure * volume(cell) - jnp.sum(stretched * strain)


def deviatoric_work(
    stress: Float[Array, "3 3"],
    strain: Float[Array, "3 3"],
    before: Float[Array, "3 3"],
    after: Float[Array, "3 3"],
) -> Float[Array, ""]:
    """Work against the deviatoric Cauchy stress S in one step of the cell, -integral of V Tr(S A) dt, [] eV.

    It depends on the path: V Tr(S d(strain)) is no differential of a function of the cell. The mean of both volumes is
    right to the square of the strain of a step (1e-10 of the work), and changes sign when the step is taken back.

    Args:
        stress: [3, 3] eV/Angstrom^3, positive in tension.
        strain: [3, 3] strain of the step, dt A.
        before, after: [3, 3] Angstrom, the cell at both ends of the step.
    """
    _, deviatoric = _split(stress)
    return -0.5 * (volume(before) + volume(after)) * jnp.sum(deviatoric * strain)


def _split(stress: Float[Array, "3 3"]) -> tuple[Float[Array, ""], Float[Array, "3 3"]]:
    """Pressure and deviatoric stress."""
    pressure = -jnp.trace(stress) / 3.0
    return pressure, stress + pressure * jnp.eye(3, dtype=stress.dtype)


def _referred(
    deviatoric: Float[Array, "3 3"], inverse_reference_cell: Float[Array, "3 3"], cell: Float[Array, "3 3"]
) -> tuple[Float[Array, "3 3"], Float[Array, "3 3"]]:
    """V0 times the deviatoric stress, and the transposed deformation E^T = h0^-1 h."""
    return deviatoric / volume(inverse_reference_cell), matmul(inverse_reference_cell, cell)
