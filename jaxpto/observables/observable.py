"""What a run measures: observables of a replica's state, recorded in samples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxpto.integrators.common import kinetic_energy, temperature, total_stress
from jaxpto.integrators.state import MDState, Method
from jaxpto.model_interface import Prediction
from jaxpto.system import Leaf, System, volume


@struct.dataclass
class Observable:
    """A quantity measured with every sample and stored with every frame (a pytree; only `parameters` are leaves).

    Attributes:
        name: as it is called in trajectories and tables.
        shape: that of one measurement; [3] makes it a vector and [3, 3] a tensor, which trajectories turn with the
            cell.
        unit: in H5MD spelling, as in "eV Angstrom-3".
        compute: (state, *parameters) -> value in `unit`, traceable. Programs are kept across processes if it is a
            function at the top level of a module of jaxpto.
        parameters: arrays, or pytrees of arrays, that `compute` needs; a change of their values compiles nothing anew.
    """

    name: str = struct.field(pytree_node=False)
    shape: tuple[int, ...] = struct.field(pytree_node=False)
    unit: str = struct.field(pytree_node=False)
    compute: Callable[..., Array] = struct.field(pytree_node=False)
    parameters: tuple[Any, ...] = ()


@struct.dataclass
class Sample:
    """What is recorded of one replica at one moment (a pytree without a batch axis).

    Attributes:
        step: time steps done.
        cell: [3, 3] Angstrom, rows are the lattice vectors.
        positions: [n, 3] Angstrom, unwrapped.
        valid: whether the replica still runs.
        values: name of an observable -> its value.
    """

    step: Int[Leaf, "*batch"]
    cell: Float[Leaf, "*batch 3 3"]
    positions: Float[Leaf, "*batch n 3"]
    valid: Bool[Leaf, "*batch"]
    values: dict[str, Shaped[Leaf, "..."]]


@dataclasses.dataclass(frozen=True)
class Measurements:
    """What is measured in one structure beside what is measured in all.

    Attributes:
        observables: in the order of the trajectory.
        note: what is to be said about them, or "".
        label: name of the number that the progress line shows of each replica.
        shown: that number [r] of a batch of samples.
    """

    observables: tuple[Observable, ...]
    note: str
    label: str
    shown: Callable[[Sample], Float[np.ndarray, " r"]]


def measure(state: MDState, valid: Bool[Array, ""], observables: tuple[Observable, ...]) -> Sample:
    """Record one replica as it stands.

    Args:
        state: the replica.
        valid: whether it still runs.
        observables: what is measured, each under its own name.
    """
    values = {one.name: one.compute(state, *one.parameters) for one in observables}
    return Sample(state.step, state.system.cell, state.system.positions, valid, values)


def general_observables(method: Method) -> tuple[Observable, ...]:
    """Temperature, energies, stress and volume: what every run measures.

    Args:
        method: the integrator, whose invariant is the conserved energy.
    """
    return (
        Observable("temperature", (), "K", _temperature),
        Observable("potential_energy", (), "eV", _potential_energy),
        Observable("kinetic_energy", (), "eV", kinetic_energy),
        Observable("conserved", (), "eV", functools.partial(_conserved, method)),
        Observable("stress", (3, 3), "eV Angstrom-3", total_stress),
        Observable("static_stress", (3, 3), "eV Angstrom-3", _static_stress),
        Observable("volume", (), "Angstrom3", _volume),
    )


def _temperature(state: MDState) -> Float[Array, ""]:
    return temperature(state).astype(state.system.positions.dtype)


def _potential_energy(state: MDState) -> Float[Array, ""]:
    return state.prediction.energy


def _conserved(method: Method, state: MDState) -> Float[Array, ""]:
    return method(_no_forces).invariant(state)


def _no_forces(system: System, neighbors: Any) -> Prediction:
    """In the place of the evaluate function: an invariant needs nothing beyond the state."""
    raise NotImplementedError


def _static_stress(state: MDState) -> Float[Array, "3 3"]:
    return state.prediction.stress


def _volume(state: MDState) -> Float[Array, ""]:
    return volume(state.system.cell)
