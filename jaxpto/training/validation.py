"""Errors on held-out frames, trajectory by trajectory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpto.models.committee import force_deviation
from jaxpto.reporting.parity import Parity, of_one_composition
from jaxpto.training.committee import member_of
from jaxpto.training.loss import TERMS, LossWeights
from jaxpto.training.replay import PREFIX
from jaxpto.training.setup import Task
from jaxpto.training.steps import make_prediction


def rms_errors(parity: Parity) -> dict[str, float | None]:
    """RMS errors: energy and virial meV/atom, forces meV/Angstrom, moments 1e-3 Bohr magnetons; None without a label.

    A prediction that is not a number makes the error NaN, so that a diverged training shows.
    """

    def rms(errors: np.ndarray, labels: np.ndarray) -> float | None:
        known = errors[np.isfinite(labels)]
        return round(1e3 * float(np.sqrt(np.mean(known**2))), 3) if known.size else None

    labels = parity.labels
    found = {
        "energy": rms(parity.energy_errors, labels.energies),
        "forces": rms(parity.force_errors, labels.forces),
        "virial": rms(parity.virial_errors, labels.virials),
    }
    moments = rms(parity.moment_errors, labels.moments) if np.isfinite(parity.predictions.moments).any() else None
    return found if moments is None else found | {"moments": moments}


@dataclasses.dataclass(frozen=True)
class CommitteeErrors:
    """A committee on all held-out frames.

    Attributes:
        members: how many they are.
        mean_forces: RMS error of the members' mean force, components, meV/Angstrom.
        deviation: RMS over atoms of `force_deviation`, meV/Angstrom.
    """

    members: int
    mean_forces: float
    deviation: float


@dataclasses.dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        parities: labels and predictions of each trajectory; energies count from the reference energies. Of a committee
            those of the first member, which is the model.
        weight_of: how much each trajectory counts.
        weights: weights and scales of the loss.
        committee: the members together, or None.
    """

    parities: tuple[Parity, ...]
    weight_of: dict[str, float]
    weights: LossWeights
    committee: CommitteeErrors | None = None

    @property
    def diverged(self) -> bool:
        """Whether a member's forces are no numbers."""
        return self.committee is not None and not np.isfinite(self.committee.deviation)

    @property
    def errors(self) -> dict[str, dict[str, float | None]]:
        """RMS errors of each trajectory; see `rms_errors`."""
        return {one.name: rms_errors(one) for one in self.parities}

    @property
    def score(self) -> float | None:
        """One number to compare models by; trajectories and errors weigh as in training. None without held-out frames.

        sum_t p_t sum_q w_q e_tq / s_q of the RMS errors e of trajectories t, with weights w and scales s of the loss.
        """
        if not self.parities:
            return None
        return sum(
            self.weight_of[name]
            * sum(
                getattr(self.weights, term) * 1e-3 * (errors.get(term) or 0.0) / getattr(self.weights, f"{term}_scale")
                for term in TERMS
            )
            for name, errors in self.errors.items()
        )

    def lines(self, step: int) -> list[str]:
        """A line for each trajectory."""
        width = max((len(one.name) for one in self.parities), default=0)
        found = [
            f"step {step}  held out  {name:<{width}}  E {_spell(e['energy'])} meV/atom  F {_spell(e['forces'])} meV/A  "
            f"V {_spell(e['virial'])} meV/atom"
            + ("  (drift from the initial model)" if name.startswith(PREFIX) else "")
            for name, e in self.errors.items()
        ]
        if (all_of := self.committee) is not None:
            found.append(
                f"step {step}  committee of {all_of.members}: mean forces {all_of.mean_forces:.2f} meV/A, "
                f"deviation {all_of.deviation:.2f} meV/A"
            )
        return found


def make_validation(task: Task, devices: list[jax.Device]) -> Callable[[Any], Validation]:
    """Function of the model's parameters (of all members) that evaluates all held-out frames, spread over devices."""
    predict = make_prediction(task.model, members=task.members)

    def validate(params: Any) -> Validation:
        copies = [jax.device_put(params, device) for device in devices]
        found: list[Parity] = []
        spread: list[tuple[np.ndarray, np.ndarray]] = []
        for group in task.groups:
            if group.held_out is None:
                continue
            batch, names = group.held_out, np.array(group.held_out_names)
            results = [
                predict(copies[f % len(devices)], jax.device_put(batch.frame(f), devices[f % len(devices)]))
                for f in range(len(batch))
            ]
            results = jax.device_get(results)
            if task.members > 1:
                spread += [
                    (p.forces, np.asarray(label))
                    for (p, _), label in zip(results, batch.frames.labels.forces, strict=True)
                ]
                results = [member_of(one, 0) for one in results]
            predictions, moments = zip(*results, strict=True)
            labels, cells = batch.frames.labels, np.asarray(batch.frames.system.cell, np.float64)
            predicted = (
                np.stack([p.energy for p in predictions]),
                np.stack([p.forces for p in predictions]),
                -np.stack([p.stress for p in predictions]) * np.linalg.det(cells)[:, None, None],
                np.full(labels.moments.shape, np.nan) if moments[0] is None else np.stack(moments),
            )
            known = labels.energy, labels.forces, labels.virial, labels.moments
            for name in dict.fromkeys(group.held_out_names):
                own = np.flatnonzero(names == name)
                labelled, modelled = (tuple(np.asarray(x)[own] for x in part) for part in (known, predicted))
                numbers, index = batch.numbers[own[0]], group.held_out_index[own]
                found.append(of_one_composition(name, numbers, cells[own], labelled, modelled, index))
        return Validation(tuple(found), task.weight_of, task.weights, _together(spread) if spread else None)

    return validate


def _together(spread: list[tuple[np.ndarray, np.ndarray]]) -> CommitteeErrors:
    """The committee's errors from forces [m, n, 3] and labels [n, 3] of each frame."""
    errors = np.concatenate([(forces.mean(axis=0) - label).ravel() for forces, label in spread])
    deviation = np.concatenate([np.asarray(force_deviation(jnp.asarray(forces))) for forces, _ in spread])
    rms = [1e3 * float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for x in (errors, deviation)]
    return CommitteeErrors(len(spread[0][0]), *rms)


def _spell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
