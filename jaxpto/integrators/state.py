"""The state of one replica and the verbs every integrator supplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from flax import struct
from jaxtyping import Array, Float, Int, UInt32

from jaxpto.model_interface import EvaluateFn, Prediction
from jaxpto.neighbors import Neighbors
from jaxpto.system import Leaf, System


class Bath(Protocol):
    """What every integrator's `MDState.bath` has; the rest of it is the integrator's own.

    Attributes:
        degrees_of_freedom: N_f, how many momenta are thermal: 3n, or 3n - 3 where the total momentum is zero and stays
            so. Static. By it `temperature` turns a kinetic energy K into 2 K / (N_f k_B).
    """

    degrees_of_freedom: int


@struct.dataclass
class MDState:
    """Everything the next step depends on; a pytree without a batch axis (`jax.vmap` adds replicas).

    Attributes:
        system: positions (unwrapped) and cell.
        neighbors: the neighbour list handed to the evaluate function; rebuilt between the halves of a step.
        momenta: [n, 3] amu Angstrom / internal time.
        prediction: energy, forces and stress at the present positions and cell.
        bath: thermostat and barostat variables, targets included: the integrator's own pytree, a `Bath`.
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
    """The verbs of a method; all are pure, jit-able and vmappable.

    A step has two halves, between which the neighbour list can be renewed: only there is known whether it still holds.

    Attributes:
        init: (key, system, neighbors, kT, ...) -> state; draws velocities.
        move: the first half: everything up to the new positions and cell. The prediction is still of the old ones.
        finish: the second half: energy and forces there, and all that follows from them.
        invariant: conserved quantity of a state between steps (or the total energy where none exists), [] eV.
    """

    init: Callable[..., MDState]
    move: Callable[[MDState], MDState]
    finish: Callable[[MDState], MDState]
    invariant: Callable[[MDState], Array]

    def apply(self, state: MDState) -> MDState:
        """Take one step with the neighbour list as it is."""
        return self.finish(self.move(state))


Method = Callable[[EvaluateFn], Integrator]
"""An integrator with its settings, still without forces: static, a compiled program depends on it."""
