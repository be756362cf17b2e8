"""Errors on held-out frames, trajectory by trajectory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxpto.reporting.parity import Parity, of_one_composition
from jaxpto.training.frames import LabelledFrames
from jaxpto.training.loss import TERMS, LossWeights
from jaxpto.training.replay import PREFIX
from jaxpto.training.setup import Task
from jaxpto.training.steps import make_prediction


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Labels and predictions of the held-out frames of one trajectory.

    Attributes:
        frames: [f] index of each frame among the usable ones of the trajectory.
        labels: the frames; energies relative to the reference energies, eV.
        energies: [f] predicted energies, eV.
        forces: [f, n, 3] predicted forces, eV/Angstrom.
        virials: [f, 3, 3] predicted virials, eV.
        moments: [f, n] predicted magnetic moments, Bohr magnetons; NaN of models without.
    """

    frames: Int[np.ndarray, " f"]
    labels: LabelledFrames
    energies: Float[np.ndarray, " f"]
    forces: Float[np.ndarray, "f n 3"]
    virials: Float[np.ndarray, "f 3 3"]
    moments: Float[np.ndarray, "f n"]

    @property
    def parity(self) -> Parity:
        """For tables and figures; energies count from the reference energies."""
        labels, cells = self.labels, self.labels.cells
        known = (labels.energies, labels.forces, labels.virials, labels.moments)
        found = (self.energies, self.forces, self.virials, self.moments)
        return of_one_composition(labels.name, labels.numbers, cells, known, found, self.frames)

    @property
    def errors(self) -> dict[str, float | None]:
        """RMS errors: energy and virial meV/atom, forces meV/Angstrom, moments 1e-3 Bohr magnetons; None: no label."""
        atoms = self.forces.shape[1]

        def rms(name: str, scale: float) -> float | None:
            label = getattr(self.labels, name)
            errors = (getattr(self, name) - label)[np.isfinite(label)]
            return round(1e3 * scale * float(np.sqrt(np.mean(errors**2))), 3) if errors.size else None

        return {
            "energy": rms("energies", 1.0 / atoms),
            "forces": rms("forces", 1.0),
            "virial": rms("virials", 1.0 / atoms),
            "moments": rms("moments", 1.0) if np.isfinite(self.moments).any() else None,
        }


@dataclasses.dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        held_out: labels and predictions by trajectory.
        weight_of: how much each trajectory counts.
        weights: weights and scales of the loss.
    """

    held_out: dict[str, HeldOut]
    weight_of: dict[str, float]
    weights: LossWeights

    @property
    def errors(self) -> dict[str, dict[str, float | None]]:
        """RMS errors of each trajectory; see `HeldOut.errors`."""
        return {name: {k: v for k, v in one.errors.items() if k != "moments" or v is not None}
                for name, one in self.held_out.items()}  # fmt: skip

    @property
    def parities(self) -> tuple[Parity, ...]:
        """Labels and predictions, for tables and figures."""
        return tuple(one.parity for one in self.held_out.values())

    @property
    def score(self) -> float | None:
        """One number to compare models by; trajectories and errors weigh as in training. None without held-out frames.

        sum_t p_t sum_q w_q e_tq / s_q of the RMS errors e of trajectories t, with weights w and scales s of the loss.
        """
        if not self.held_out:
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
        width = max(map(len, self.held_out), default=0)
        return [
            f"step {step}  held out  {name:<{width}}  E {_spell(e['energy'])} meV/atom  F {_spell(e['forces'])} meV/A  "
            f"V {_spell(e['virial'])} meV/atom"
            + ("  (drift from the initial model)" if name.startswith(PREFIX) else "")
            for name, e in self.errors.items()
        ]


def make_validation(task: Task, devices: list[jax.Device]) -> Callable[[Any], Validation]:
    """Function of the model's parameters that evaluates all held-out frames, spread over devices."""
    predict = make_prediction(task.model)

    def validate(params: Any) -> Validation:
        copies = [jax.device_put(params, device) for device in devices]
        found: dict[str, HeldOut] = {}
        for group in task.groups:
            if group.held_out is None:
                continue
            batch, names = group.held_out, np.array(group.held_out_names)
            results = [
                predict(copies[f % len(devices)], jax.device_put(batch.frame(f), devices[f % len(devices)]))
                for f in range(len(batch))
            ]
            predictions, moments = zip(*jax.device_get(results), strict=True)
            columns = {
                "energies": np.stack([p.energy for p in predictions]),
                "forces": np.stack([p.forces for p in predictions]),
                "virials": np.stack([-p.stress for p in predictions])
                * np.linalg.det(np.asarray(batch.frames.system.cell))[:, None, None],
                "moments": np.stack(
                    [
                        np.full(len(p.forces), np.nan) if m is None else m
                        for p, m in zip(predictions, moments, strict=True)
                    ]
                ),
            }
            labels, system = batch.frames.labels, batch.frames.system
            for name in dict.fromkeys(group.held_out_names):
                own = np.flatnonzero(names == name)
                frames = LabelledFrames(
                    name, batch.numbers[own[0]], *(np.asarray(x)[own] for x in (
                        system.positions, system.cell, labels.energy, labels.forces, labels.virial, labels.moments
                    ))
                )  # fmt: skip
                predicted = {term: x[own].astype(np.float64) for term, x in columns.items()}
                found[name] = HeldOut(group.held_out_index[own], frames, **predicted)
        return Validation(found, task.weight_of, task.weights)

    return validate


def _spell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
