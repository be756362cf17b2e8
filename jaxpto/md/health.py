"""When a replica counts as lost, and the watch that notices it on the device, at every sample."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxpto import units
from jaxpto.integrators.common import temperature
from jaxpto.integrators.state import MDState
from jaxpto.system import Leaf, System

REASONS = (
    "running",
    "energy, positions or cell not finite",
    "exploded: kinetic temperature above {hot:g} times the target",
    "cell strained beyond {strain:g}",
    "molten: rms displacement above {lindemann:g} of the nearest-neighbour distance",
    "neighbour list still overflowing after {regrows} enlargements",
)
MOLTEN = 4
OVERFLOWED = 5


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a replica counts as lost.

    Attributes:
        lindemann: molten once the rms displacement from the initial lattice sites (unwrapped, in the present cell,
            drift removed) exceeds this fraction of the initial nearest-neighbour distance.
        strain: lost once a principal stretch of the cell from its initial shape leaves [1 - strain, 1 + strain].
        hot: exploded once the kinetic temperature exceeds this multiple of the target temperature.
        regrows: enlargements of the neighbour list tried for one sample.
    """

    lindemann: float = 0.5
    strain: float = 0.5
    hot: float = 5.0
    regrows: int = 5

    def describe(self, reason: int) -> str:
        """The sentence for a reason code of `Watch`."""
        return REASONS[reason].format(**dataclasses.asdict(self))


@struct.dataclass
class Watch:
    """What the failure watch knows about one replica (a pytree without a batch axis).

    Attributes:
        alive: whether the replica still runs.
        reason: index into `REASONS`.
        failed_step: step of the sample at which it failed, -1 while it runs.
        sites: [n, 3] fractional coordinates that displacements count from.
        initial_cell: [3, 3] Angstrom.
        nearest: nearest-neighbour distance of the initial structure, Angstrom.
        kT: target temperature, eV.
    """

    alive: Bool[Leaf, "*batch"]
    reason: Int[Leaf, "*batch"]
    failed_step: Int[Leaf, "*batch"]
    sites: Float[Leaf, "*batch n 3"]
    initial_cell: Float[Leaf, "*batch 3 3"]
    nearest: Float[Leaf, "*batch"]
    kT: Float[Leaf, "*batch"]


def begin_watch(sites: System, kT: Float[Array, ""], nearest: Float[Array, ""]) -> Watch:
    """Start watching one replica.

    Args:
        sites: the structure that displacements and strain count from.
        kT: target temperature, eV.
        nearest: nearest-neighbour distance of that structure, Angstrom.
    """
    return Watch(
        alive=jnp.asarray(True),
        reason=jnp.asarray(0, jnp.int32),
        failed_step=jnp.asarray(-1, jnp.int32),
        sites=sites.positions @ jnp.linalg.inv(sites.cell),
        initial_cell=sites.cell,
        nearest=nearest,
        kT=kT,
    )


def diagnose(state: MDState, watch: Watch, limits: Limits) -> Int[Array, ""]:
    """Reason code of one replica: 0 where nothing is wrong."""
    system = state.system
    finite = (
        jnp.isfinite(state.prediction.energy)
        & jnp.all(jnp.isfinite(system.positions))
        & jnp.all(jnp.isfinite(system.cell))
        & jnp.all(jnp.isfinite(state.momenta))
    )
    away = system.positions @ jnp.linalg.inv(system.cell) - watch.sites
    displacement = (away - away.mean(0)[None, :]) @ system.cell
    rms = jnp.sqrt(jnp.mean(jnp.sum(displacement**2, axis=1)))
    deformation = jnp.linalg.inv(watch.initial_cell) @ system.cell
    stretch = jnp.sqrt(jnp.abs(jnp.linalg.eigvalsh(deformation.T @ deformation)))
    strained = jnp.any(jnp.abs(stretch - 1.0) > limits.strain)
    hot = temperature(state) * units.BOLTZMANN > limits.hot * watch.kT
    molten = rms > limits.lindemann * watch.nearest
    reason = jnp.where(~finite, 1, jnp.where(hot, 2, jnp.where(strained, 3, jnp.where(molten, MOLTEN, 0))))
    return reason.astype(jnp.int32)


def mark_lost(watch: Watch, lost: Bool[Array, " r"], reason: Int[Array, " r"] | int, step: Int[Array, " r"]) -> Watch:
    """The watch of a batch after some of its replicas were lost.

    Args:
        watch: batched, before.
        lost: [r] which replicas are lost now.
        reason: [r] index into `REASONS`, or one for all.
        step: [r] time steps that each replica has done.
    """
    return dataclasses.replace(
        watch,
        alive=watch.alive & ~lost,
        reason=jnp.where(lost, reason, watch.reason).astype(jnp.int32),
        failed_step=jnp.where(lost, step, watch.failed_step).astype(jnp.int32),
    )
