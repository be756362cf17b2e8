"""Umbrella windows on the polarization: a harmonic bias, its forces and stress, and where a window starts.

    U_bias = 1/2 sum_a K_a (P_a - P0_a)^2,    P the polarization of the whole cell in C/m^2, K in eV / (C/m^2)^2,

is an energy of the whole cell (not of a volume), so that a window has the width (kT / K_a)^(1/2) in P_a at any size.
Source: Torrie and Valleau, J. Comput. Phys. 23, 187 (1977).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxpto.model_interface import EvaluateFn, Prediction
from jaxpto.neighbors import Layout, Neighbors, build
from jaxpto.perovskite.polarization import PolarizationTopology, polarization
from jaxpto.system import Leaf, System, volume
from jaxpto.units import COULOMB_PER_SQUARE_METRE

DESCENT_STEPS = 40
DESCENT_RATE = 0.03  # Angstrom per eV/Angstrom; bonds of up to 60 eV/Angstrom^2 stay stable
LONGEST_MOVE = 0.05  # Angstrom


@struct.dataclass
class Umbrella:
    """Bias of one replica; a pytree without a batch axis.

    Attributes:
        center: [3] P0, C/m^2.
        strength: [3] K, eV / (C/m^2)^2 for the whole cell; 0 leaves a component free.
    """

    center: Float[Leaf, "*batch 3"]
    strength: Float[Leaf, "*batch 3"]


def bias_energy(umbrella: Umbrella, system: System, topology: PolarizationTopology) -> Float[Array, ""]:
    """Bias of one system with unwrapped positions, eV."""
    away = polarization(system, topology) - umbrella.center
    return 0.5 * jnp.sum(umbrella.strength * away**2)


def prediction_from_energy(energy: Callable[[System], Float[Array, ""]], system: System) -> Prediction:
    """Energy, forces and stress that follow from any energy function of positions and cell, by one backward pass.

    Forces are -dU/dr; the stress is the symmetric derivative (1/V) dU/de at e = 0, with r -> r (1 + e), h -> h (1 + e).

    Args:
        energy: traceable, eV; it may look at absolute positions.
        system: one system.
    """

    def strained(positions: Float[Array, "n 3"], strain: Float[Array, "3 3"]) -> Float[Array, ""]:
        moved = positions + jnp.matmul(positions, strain, precision="highest")
        cell = system.cell + jnp.matmul(system.cell, strain, precision="highest")
        return energy(replace(system, positions=moved, cell=cell))

    none = jnp.zeros_like(system.cell)
    value, (slope, virial) = jax.value_and_grad(strained, argnums=(0, 1))(system.positions, none)
    return Prediction(value, -slope, (virial + virial.T) / (2.0 * volume(system.cell)))


def biased(evaluate: EvaluateFn, topology: PolarizationTopology) -> Callable[[Umbrella, System, Neighbors], Prediction]:
    """The evaluate function with a bias on top, for `integrators.parametrised`: (umbrella, system, neighbors)."""

    def evaluate_biased(umbrella: Umbrella, system: System, neighbors: Neighbors) -> Prediction:
        bias = prediction_from_energy(lambda moved: bias_energy(umbrella, moved, topology), system)
        return jax.tree.map(jnp.add, evaluate(system, neighbors), bias)

    return evaluate_biased


def displaced(system: System, topology: PolarizationTopology, target: Float[Array, 3]) -> System:
    """The system with its atoms moved by the least squares that give it the target polarization at its cell.

    d_i = Z_i^T m with the vector m that gives the wanted change of the dipole, sum_i Z_i Z_i^T m = V (P0 - P).

    Args:
        system: one system with unwrapped positions.
        topology: Born charges.
        target: [3] C/m^2.
    """
    change = (target - polarization(system, topology)) * COULOMB_PER_SQUARE_METRE * volume(system.cell)
    return replace(system, positions=system.positions + _along(change, topology))


def settled(evaluate: EvaluateFn, system: System, topology: PolarizationTopology, layout: Layout) -> System:
    """The system after a short descent in energy at fixed cell and polarization.

    A start may lie some eV above the lowest energy at its polarization, and dynamics would turn that into heat. The
    steps follow the forces without their part along the charges, so that the dipole stays as it is.

    Args:
        evaluate: energy, forces and stress without the bias.
        system: one system with unwrapped positions.
        topology: Born charges.
        layout: sizes of the neighbour lists; edges without room are left out, which does no harm to a start.
    """

    def step(_: Array, moved: System) -> System:
        forces = evaluate(moved, build(moved, layout)).forces
        forces = forces - _along(jnp.einsum("nab,nb->a", topology.charges, forces, precision="highest"), topology)
        longest = jnp.sqrt(jnp.max(jnp.sum(forces**2, axis=1)))
        rate = jnp.minimum(DESCENT_RATE, LONGEST_MOVE / jnp.maximum(longest, 1e-6))
        return replace(moved, positions=moved.positions + rate * forces)

    return jax.lax.fori_loop(0, DESCENT_STEPS, step, system)


def _along(dipole: Float[Array, 3], topology: PolarizationTopology) -> Float[Array, "n 3"]:
    """Smallest displacements that make a dipole (e Angstrom)."""
    metric = jnp.einsum("nab,ncb->ac", topology.charges, topology.charges, precision="highest")
    return jnp.einsum("nab,a->nb", topology.charges, jnp.linalg.solve(metric, dipole), precision="highest")
