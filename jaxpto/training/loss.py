"""Predictions for stored frames, and the loss of their errors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.models.perovskite import Params, Perovskite
from jaxpto.neighbors import Layout


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the loss, and the scales of its errors.

    Attributes:
        energy, forces, virial: weights of the three terms.
        energy_scale: energy error that counts as one, eV / atom.
        forces_scale: force error that counts as one, eV / Angstrom.
        virial_scale: virial error that counts as one, eV / atom.
        robust: errors beyond this many scales count linearly instead of quadratically.
    """

    energy: float = 1.0
    forces: float = 1.0
    virial: float = 0.5
    energy_scale: float = 0.003
    forces_scale: float = 0.1
    virial_scale: float = 0.006
    robust: float = 3.0


def predict_frame(
    model: Perovskite,
    params: Params,
    own: Float[Array, "n t"],
    vectors: Float[Array, "n 3 s"],
    senders: Int[Array, " e"],
    layout: Layout,
) -> tuple[Float[Array, ""], Float[Array, "n 3"], Float[Array, "3 3"]]:
    """Energy (eV), forces (eV / Angstrom) and virial -dE/dstrain (eV) of one frame.

    Args:
        model: architecture.
        params: its parameters for the species present.
        own: [n, t] one-hot species of each atom.
        vectors: [n, 3, s] vectors to the neighbours, Angstrom.
        senders: [n * s] neighbour of each edge; n marks an empty slot.
        slots: sizes of the species' blocks of slots.
    """
    energy, slope = jax.value_and_grad(lambda v: model.atomic_energies(params, own, v, layout).sum())(vectors)
    forces = slope.sum(axis=2).at[senders].add(-jnp.swapaxes(slope, 1, 2).reshape(-1, 3), mode="drop")
    virial = -jnp.einsum("nas,nbs->ab", vectors, slope, precision="highest")
    return energy, forces, 0.5 * (virial + virial.T)


def robust_square(x: Array, limit: float) -> Array:
    """Pseudo-Huber function: x**2 for |x| << limit, 2 limit |x| beyond."""
    return 2.0 * limit**2 * (jnp.sqrt(1.0 + (x / limit) ** 2) - 1.0)


def loss(
    prediction: tuple[Array, Array, Array], target: tuple[Array, Array, Array], atoms: int, weights: LossWeights
) -> Float[Array, ""]:
    """Weighted robust error of energy, forces and virial of one frame; a virial label of NaN is left out."""
    (energy, forces, virial), (energy0, forces0, virial0) = prediction, target
    labelled = jnp.isfinite(virial0).all()
    virial_error = jnp.where(labelled, virial - jnp.where(labelled, virial0, 0.0), 0.0)
    terms = (
        (weights.energy, (energy - energy0) / (atoms * weights.energy_scale)),
        (weights.forces, (forces - forces0) / weights.forces_scale),
        (weights.virial, virial_error / (atoms * weights.virial_scale)),
    )
    return jnp.stack([w * robust_square(x, weights.robust).mean() for w, x in terms]).sum()


def one_hot(numbers: np.ndarray, species: tuple[int, ...], dtype: jax.typing.DTypeLike) -> np.ndarray:
    """One-hot species [n, t] of atomic numbers [n]."""
    return (numbers[:, None] == np.array(species)[None, :]).astype(dtype)
