"""The loss of one frame: robust errors of energy, forces, virial and magnetic moments."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.model_interface import Prediction
from jaxpto.system import volume
from jaxpto.training.batches import Frame, Labels

TERMS = ("energy", "forces", "virial", "moments")


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the loss, and the scales of its errors.

    Attributes:
        energy, forces, virial, moments: weights of the four terms.
        energy_scale: energy error that counts as one, eV / atom.
        forces_scale: force error that counts as one, eV / Angstrom.
        virial_scale: virial error that counts as one, eV / atom.
        moments_scale: error of a magnetic moment that counts as one, Bohr magnetons.
        robust: errors beyond this many scales count linearly instead of quadratically.
    """

    energy: float = 1.0
    forces: float = 1.0
    virial: float = 0.5
    moments: float = 0.1
    energy_scale: float = 0.003
    forces_scale: float = 0.1
    virial_scale: float = 0.006
    moments_scale: float = 0.1
    robust: float = 3.0


def robust_square(x: Array, limit: float) -> Array:
    """Pseudo-Huber function: x**2 for |x| << limit, 2 limit |x| beyond."""
    return 2.0 * limit**2 * (jnp.sqrt(1.0 + (x / limit) ** 2) - 1.0)


def deviations(prediction: Prediction, moments: Float[Array, " n"] | None, frame: Frame) -> dict[str, Array]:
    """Errors of one frame by term: energy and virial per atom (eV), forces (eV/Angstrom), moments (Bohr magnetons).

    Args:
        prediction: what the model gives.
        moments: [n] predicted magnetic moments; None of models without, which then have no such errors.
        frame: its labels; errors are NaN where they are.
    """
    labels, atoms = frame.labels, frame.labels.forces.shape[0]
    virial = -prediction.stress * volume(frame.system.cell)
    errors = {
        "energy": (prediction.energy - labels.energy) / atoms,
        "forces": prediction.forces - labels.forces,
        "virial": (virial - labels.virial) / atoms,
    }
    return errors if moments is None else errors | {"moments": moments - labels.moments}


def loss(errors: dict[str, Array], labels: Labels, weights: LossWeights) -> Float[Array, ""]:
    """Weighted mean robust errors of one frame; where there is no label nothing counts, also in the derivative."""
    total = jnp.zeros_like(errors["energy"])
    for term, error in errors.items():
        scaled = jnp.where(jnp.isfinite(getattr(labels, term)), error, 0.0) / getattr(weights, f"{term}_scale")
        total += getattr(weights, term) * robust_square(scaled, weights.robust).mean()
    return total


def squares(errors: dict[str, Array], labels: Labels) -> Float[Array, "4"]:
    """Mean squared errors of energy, forces, virial and moments over the labels there are; NaN without any."""

    def mean(term: str) -> Array:
        if term not in errors:
            return jnp.full_like(errors["energy"], jnp.nan)
        known = jnp.isfinite(getattr(labels, term))
        return jnp.where(known, errors[term] ** 2, 0.0).sum() / known.sum()

    return jnp.stack([mean(term) for term in TERMS])
