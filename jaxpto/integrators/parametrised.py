"""Any integrator with an energy function whose parameters differ between replicas: a bias, a coupling, a field."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flax import struct
from jaxtyping import Array

from jaxpto.integrators.state import Integrator, MDState
from jaxpto.model_interface import EvaluateFn, Prediction
from jaxpto.neighbors import Neighbors
from jaxpto.system import System


@struct.dataclass
class ParametrisedBath:
    """A bath and the parameters beside it; `jax.vmap` gives every replica its own of both.

    Attributes:
        bath: the bath of the integrator within.
        parameters: any pytree; the integrator never changes it.
    """

    bath: Any
    parameters: Any

    @property
    def degrees_of_freedom(self) -> int:
        """N_f of the integrator within; see `Bath`."""
        return self.bath.degrees_of_freedom


def parametrised(
    build: Callable[[EvaluateFn], Integrator], evaluate: Callable[[Any, System, Neighbors], Prediction]
) -> Integrator:
    """The integrator that `build` makes, with `evaluate(parameters, system, neighbors)` and the replica's parameters.

    The parameters are part of the state: replicas with different ones run in one batch, and a checkpoint keeps them.
    `init` takes them after all other arguments. `prediction` and `invariant` are those of the whole energy evaluated.

    Args:
        build: makes an integrator from an evaluate function.
        evaluate: energy, forces and stress of (parameters, system, neighbors).
    """

    def within(parameters: Any) -> Integrator:
        return build(functools.partial(evaluate, parameters))

    def bare(state: MDState) -> MDState:
        return replace(state, bath=state.bath.bath)

    def init(*arguments: Any) -> MDState:
        """Arguments of the integrator's own `init`, then the parameters."""
        *own, parameters = arguments
        state = within(parameters).init(*own)
        return replace(state, bath=ParametrisedBath(state.bath, parameters))

    def move(state: MDState) -> MDState:
        """First half of a step of the integrator within."""
        parameters = state.bath.parameters
        after = within(parameters).move(bare(state))
        return replace(after, bath=ParametrisedBath(after.bath, parameters))

    def finish(state: MDState) -> MDState:
        """Second half of a step of the integrator within."""
        parameters = state.bath.parameters
        after = within(parameters).finish(bare(state))
        return replace(after, bath=ParametrisedBath(after.bath, parameters))

    def invariant(state: MDState) -> Array:
        """Conserved quantity of the integrator within, eV."""
        return within(state.bath.parameters).invariant(bare(state))

    return Integrator(init, move, finish, invariant)
