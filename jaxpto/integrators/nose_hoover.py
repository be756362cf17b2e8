"""Nose-Hoover chains: the half step of Martyna et al. on a few numbers, whatever the number of atoms.

jax-md's `nose_hoover_chain` is not used: its Suzuki-Yoshida weights for 3 and 5 substeps hold 2^(-1/3) and 4^(-1/3)
where Yoshida has 2^(1/3) and 4^(1/3), so they are not of fourth order; its scans cost more than the arithmetic; and
importing jax-md runs JAX operations, which takes seconds and fixes the devices before a command can choose them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxpto.system import Leaf

_OUTER = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
WEIGHTS = (_OUTER, 1.0 - 2.0 * _OUTER, _OUTER)
"""Suzuki-Yoshida weights of fourth order: H. Yoshida, Phys. Lett. A 150, 262 (1990)."""


@struct.dataclass
class Chain:
    """A Nose-Hoover chain of c thermostats.

    Attributes:
        position: [c] thermostat coordinates xi, dimensionless.
        momentum: [c] eV * internal time.
        mass: [c] eV * internal time^2: N_f kT tau^2 for the first thermostat, kT tau^2 for the others.
    """

    position: Float[Leaf, "*batch c"]
    momentum: Float[Leaf, "*batch c"]
    mass: Float[Leaf, "*batch c"]


def chain_at_rest(length: int, time: float, degrees_of_freedom: int, kT: Float[Array, ""]) -> Chain:
    """Chain without momentum, its masses set for the relaxation time `time` (internal units) at kT (eV)."""
    mass = kT * time**2 * jnp.ones(length, kT.dtype)
    zero = jnp.zeros(length, kT.dtype)
    return Chain(position=zero, momentum=zero, mass=mass.at[0].multiply(degrees_of_freedom))


def chain_half_step(
    timestep: float, degrees_of_freedom: Sequence[int], length: int
) -> Callable[[Sequence[Chain], Sequence[Array], Float[Array, ""]], tuple[Float[Array, " k"], list[Chain]]]:
    """Half step of k chains side by side: (chains, kinetic energies, kT) -> (factors on the velocities, chains).

    Source: Martyna, Tuckerman, Tobias and Klein, Mol. Phys. 87, 1117 (1996), eq. 22 and its appendix. The operator only
    scales the velocities, so it returns the scale and leaves them alone.

    Args:
        timestep: the whole step, internal units.
        degrees_of_freedom: N_f of the velocities that each chain thermostats.
        length: number of thermostats of a chain, at least 2.
    """
    last = length - 1

    def half_step(
        chains: Sequence[Chain], kinetic_energies: Sequence[Array], kT: Float[Array, ""]
    ) -> tuple[Float[Array, " k"], list[Chain]]:
        beside = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=-1), *chains)
        mass, momentum, position = list(beside.mass), list(beside.momentum), beside.position
        twice_kinetic = 2.0 * jnp.stack(kinetic_energies)
        twice_target = jnp.asarray(degrees_of_freedom, kT.dtype) * kT
        factor = jnp.ones_like(twice_kinetic)

        def force(k: int) -> Float[Array, " k"]:
            """What drives thermostats k: the excess of the kinetic energy that they control."""
            if k == 0:
                return twice_kinetic * factor**2 - twice_target
            return momentum[k - 1] ** 2 / mass[k - 1] - kT

        def kick(k: int, quarter: float) -> None:
            """A quarter step of momenta k under their forces and the drag of thermostats k + 1."""
            drag = 1.0 if k == last else jnp.exp(-0.5 * quarter * momentum[k + 1] / mass[k + 1])
            momentum[k] = drag * (drag * momentum[k] + quarter * force(k))

        for weight in WEIGHTS:
            half = 0.5 * weight * timestep
            for k in range(last, -1, -1):
                kick(k, 0.5 * half)
            factor = factor * jnp.exp(-half * momentum[0] / mass[0])
            position = position + half * jnp.stack(momentum) / beside.mass
            for k in range(length):
                kick(k, 0.5 * half)
        beside = replace(beside, position=position, momentum=jnp.stack(momentum))
        return factor, [jax.tree.map(lambda leaf, k=k: leaf[..., k], beside) for k in range(len(chains))]

    return half_step


def chain_energy(chain: Chain, degrees_of_freedom: int, kT: Float[Array, ""]) -> Float[Array, ""]:
    """Share of a chain in the conserved quantity: sum Q^-1 p^2 / 2 + N_f kT xi_1 + kT (xi_2 + xi_3 + ...), eV."""
    kinetic = 0.5 * jnp.sum(chain.momentum**2 / chain.mass)
    return kinetic + kT * (degrees_of_freedom * chain.position[0] + jnp.sum(chain.position[1:]))
