"""A batch: the replicas that one compiled program advances, where they start, and how often they are looked at."""

from __future__ import annotations

import dataclasses
from typing import Any

import ase
import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Float, UInt32

from jaxpto.integrators.state import Method
from jaxpto.md.health import Limits
from jaxpto.observables.observable import Observable
from jaxpto.platform import local_devices
from jaxpto.potential import Potential
from jaxpto.system import System

MOST_SAMPLES_PER_CHUNK = 100
MOST_POSITIONS_PER_CHUNK = 5_000_000  # 60 MB in single precision, so that samples never are what fills the memory


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run is and how often it is looked at.

    Attributes:
        steps: number of time steps in all.
        sample_every: steps between two samples.
        samples_per_chunk: samples that one call of the compiled program has room for, and takes at most.
    """

    steps: int
    sample_every: int
    samples_per_chunk: int

    @property
    def n_samples(self) -> int:
        """Samples in all, the initial state and the last step included."""
        return 1 + -(-self.steps // self.sample_every)


def schedule_of(steps: int, sample_every: int, atoms: int) -> Schedule:
    """The schedule whose chunks have as much room for samples as memory allows.

    Args:
        steps: number of time steps in all.
        sample_every: steps between two samples.
        atoms: those of all replicas together.
    """
    room = max(1, min(MOST_POSITIONS_PER_CHUNK // atoms, MOST_SAMPLES_PER_CHUNK))
    return Schedule(steps, sample_every, room)


@struct.dataclass
class Start:
    """Where the replicas of a batch start (a pytree; inside units: eV, Angstrom, amu).

    Attributes:
        systems: one for all replicas, or batched.
        kT: [r] target temperatures, eV.
        key: random key; each replica folds its own number in.
        nearest: nearest-neighbour distance of the crystal, Angstrom.
        stress: external stress in eV/Angstrom^3, [3, 3] for all replicas or batched; None at constant volume.
        parameters: batched, what a method with a `parametrised` integrator takes, or None.
        crystal: the structure from which displacements and strain count, where that is not the start itself.
    """

    systems: System
    kT: Float[Array, " r"]
    key: UInt32[Array, "2"]
    nearest: Float[Array, ""]
    stress: Float[Array, "*r 3 3"] | None = None
    parameters: Any = None
    crystal: System | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
    """Replicas that one compiled program advances, and how.

    Attributes:
        potential: the force field in the precision of the run.
        atoms: the crystal.
        temperatures: [r] target of each replica, K.
        start: where they start.
        method, schedule, limits: what the compiled program depends on.
        observables: what is measured at every sample, in the order of the trajectories.
        timestep: fs.
        skin: extra reach of the neighbour lists, Angstrom.
        devices: those of this process that may be used; 0 stands for all.
        devices_per_replica: devices that share the atoms of one replica.
    """

    potential: Potential
    atoms: ase.Atoms
    temperatures: Float[np.ndarray, " r"]
    start: Start
    method: Method
    schedule: Schedule
    limits: Limits
    observables: tuple[Observable, ...]
    timestep: float
    skin: float
    devices: int = 0
    devices_per_replica: int = 1

    def usable_devices(self) -> list[jax.Device]:
        """The devices of this process that the batch may use."""
        return local_devices()[: self.devices or None]
