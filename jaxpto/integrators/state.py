"""The state of one replica and the three verbs every integrator supplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import struct
from jaxtyping import Array, Float, Int, UInt32

from jaxpto.neighbors import Neighbors
from jaxpto.potential import Prediction
from jaxpto.system import Leaf, System

EvaluateFn = Callable[[System, Neighbors], Prediction]
"""Energy, forces and stress of one system; `Potential.evaluate` is one, any function with this signature will do."""


@struct.dataclass
class MDState:
    """Everything the next step depends on; a pytree without a batch axis (`jax.vmap` adds replicas).

    Attributes:
        system: positions (unwrapped) and cell.
        neighbors: the neighbour list handed to the evaluate function; rebuilt outside the step.
        momenta: [n, 3] amu Angstrom / internal time.
        prediction: energy, forces and stress at the present positions and cell.
        bath: thermostat and barostat variables, targets included (integrator-specific pytree).
        key: [2] uint32 PRNG key.
        step: [] steps done.
    """

    system: System
    neighbors: Neighbors
    momenta: Float[Leaf, "*batch n 3"]
    prediction: Prediction
    bath: Any
    key: UInt32[Leaf, "*batch 2"]
    step: Int[Leaf, "*batch"]


class Integrator(NamedTuple):
    """The three verbs of a method; all are pure, jit-able and vmappable.

    init(key, system, neighbors, kT, ...) -> MDState draws velocities; apply(state) -> MDState takes one step;
    invariant(state) -> [] eV is the conserved quantity (or the total energy where none exists).
    """

    init: Callable[..., MDState]
    apply: Callable[[MDState], MDState]
    invariant: Callable[[MDState], Array]
