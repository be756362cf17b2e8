"""How far averages of stored configurations are from their targets, and the gradient of that, in double precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto import units
from jaxpto.free_energy.estimators import reweighting
from jaxpto.free_energy.estimators.mbar import effective_samples
from jaxpto.neighbors import Layout
from jaxpto.potential import Potential
from jaxpto.system import System, from_ase
from jaxpto.training.ensembles import Frames, Plan
from jaxpto.training.targets import MeasuredAverage, observe

Params = Any  # what is trained, a pytree


@dataclasses.dataclass(frozen=True)
class Sampled:
    """One ensemble and the observables that are compared with targets.

    Attributes:
        ensemble: f frames in double precision.
        layout: sizes of neighbour lists that fit them.
        values: [f, k] the observables of its k targets in each frame.
        which: [k] indices of these targets among all.
    """

    ensemble: reweighting.Ensemble
    layout: Layout
    values: Float[Array, "f k"]
    which: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Look:
    """Averages of stored configurations for some weights, and their deviation from the targets.

    Attributes:
        values, errors: [t] average for each target and its standard error.
        deviation: sum of the squared deviations in units of the tolerance.
        effective: smallest effective fraction of the configurations of an ensemble.
        gradient: gradient of the weighted squared deviations.
    """

    values: Float[np.ndarray, " t"]
    errors: Float[np.ndarray, " t"]
    deviation: float
    effective: float
    gradient: Params


def sampled_ensembles(
    plan: Plan,
    targets: tuple[MeasuredAverage, ...],
    frames: Frames,
    potential: Callable[[Params], Potential],
    sampled_with: Params,
    before: list[Sampled],
) -> list[Sampled]:
    """The ensembles of a simulation, with the energies for the weights that sampled them.

    Args:
        plan: the simulation.
        targets: measured averages.
        frames: the frames it sampled.
        potential: makes the potential from weights.
        sampled_with: weights used in the simulation.
        before: result for the simulation before, whose layouts are tried first.
    """
    found = []
    with jax.enable_x64(True):
        reference = jax.jit(lambda raw: potential(double(raw)))(sampled_with)
        atoms = from_ase(plan.atoms, np.float64)
        spread = lambda leaf: jnp.tile(leaf[None], (plan.frames, *[1] * leaf.ndim))  # noqa: E731
        for s, (kelvin, gigapascal) in enumerate(plan.conditions):
            systems = System(
                jnp.asarray(frames.positions[s], np.float64),
                jnp.asarray(frames.cells[s], np.float64),
                spread(atoms.numbers),
                spread(atoms.masses),
            )
            layout = before[s].layout if before else None
            ensemble, layout = reweighting.record(
                reference, systems, kelvin, gigapascal * units.GIGAPASCAL, layout=layout
            )
            which = tuple(k for k, target in enumerate(targets) if target.condition == (kelvin, gigapascal))
            seen = observe(frames.cells[s], frames.polarizations[s], plan.unit)
            values = np.stack([seen[targets[k].observable] for k in which], axis=1)
            found.append(Sampled(ensemble, layout, jnp.asarray(values, np.float64), which))
    return found


def make_look(
    targets: tuple[MeasuredAverage, ...],
    potential: Callable[[Params], Potential],
    replicas: int,
    weight: float,
    tolerance: float,
) -> Callable[[Params, list[Sampled]], Look]:
    """Function (weights, ensembles) -> `Look`.

    Args:
        targets: measured averages.
        potential: makes the potential from weights.
        replicas: independent runs in each ensemble.
        weight: weight of the squared deviations.
        tolerance: relative deviation that counts as one.
    """

    def objective(
        raw: Params, ensemble: reweighting.Ensemble, values: Array, wanted: Array, layout: Layout
    ) -> tuple[Array, Any]:
        energies = reweighting.measure(potential(double(raw)), ensemble.systems, layout).energies
        weights = reweighting.weights(ensemble, energies, ensemble.temperature, ensemble.pressure)
        means = reweighting.average(weights, values)
        logs = reweighting.log_weights(ensemble, energies, ensemble.temperature, ensemble.pressure)
        errors = reweighting.replica_error(logs.reshape(replicas, -1), values.reshape(replicas, -1, values.shape[1]))
        loss = weight * jnp.sum(((means - wanted) / (tolerance * wanted)) ** 2)
        return loss, (means, errors, effective_samples(weights) / weights.shape[0])

    compiled = jax.jit(jax.grad(objective, has_aux=True), static_argnames="layout")

    def look(raw: Params, ensembles: list[Sampled]) -> Look:
        values, errors = np.zeros(len(targets)), np.zeros(len(targets))
        fractions, gradients = [], []
        with jax.enable_x64(True):
            for one in ensembles:
                wanted = jnp.asarray([targets[k].value for k in one.which])
                gradient, found = compiled(raw, one.ensemble, one.values, wanted, layout=one.layout)
                values[list(one.which)], errors[list(one.which)] = (np.asarray(part) for part in found[:2])
                fractions.append(float(found[2]))
                gradients.append(gradient)
        distances = [(value / target.value - 1.0) / tolerance for value, target in zip(values, targets, strict=True)]
        gradient = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *gradients)
        return Look(values, errors, float(np.sum(np.square(distances))), min(fractions), gradient)

    return look


def double(tree: Any) -> Any:
    """The tree in double precision."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float64), tree)
