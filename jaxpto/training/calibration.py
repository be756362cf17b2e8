"""What the deviations of a trained committee mean: its forces on all labelled frames, beside the true errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxpto.models.committee import Calibration, Committee, ErrorScale, force_deviation
from jaxpto.training.batches import Frame, FrameBatch
from jaxpto.training.replay import PREFIX
from jaxpto.training.setup import Task
from jaxpto.training.steps import make_prediction

BINS = 5  # of the calibration, with at least so many frames in each:
FEWEST = 4


@dataclasses.dataclass(frozen=True)
class FrameDeviations:
    """Deviations and true errors of single frames; eV/Angstrom.

    Attributes:
        largest_deviation, rms_deviation: [f] `force_deviation`, over the atoms of a frame.
        largest_error, rms_error: [f] |F - F_label| of the first member, over the atoms of a frame.
    """

    largest_deviation: Float[np.ndarray, " f"]
    rms_deviation: Float[np.ndarray, " f"]
    largest_error: Float[np.ndarray, " f"]
    rms_error: Float[np.ndarray, " f"]


def deviations_of(forces: Float[np.ndarray, "f m n 3"], labels: Float[np.ndarray, "f n 3"]) -> Float[np.ndarray, "4 f"]:
    """Rows of `FrameDeviations`, from the forces of m members on f frames and their labels, eV/Angstrom."""
    spread = np.stack([np.asarray(force_deviation(jnp.asarray(one))) for one in forces])
    error = np.linalg.norm(forces[:, 0] - labels, axis=2)
    rms = lambda x: np.sqrt(np.square(x, dtype=np.float64).mean(axis=1))  # noqa: E731
    return np.stack([spread.max(axis=1), rms(spread), error.max(axis=1), rms(error)])


def calibrate(task: Task, committee: Committee, devices: list[jax.Device]) -> tuple[Calibration, FrameDeviations]:
    """Evaluate all members on every labelled frame but those for replay.

    Args:
        task: what was trained, on which data.
        committee: the trained members.
        devices: what to compute on.

    Returns:
        The calibration, and the held-out frames that its errors come from.
    """
    predict = make_prediction(task.model, members=committee.members)
    copies = [jax.device_put(committee.params, device) for device in devices]

    def of(parts: list[tuple[FrameBatch | None, tuple[str, ...]]]) -> Float[np.ndarray, "4 f"]:
        found = [np.zeros((4, 0))]
        for batch, names in parts:
            rows = [row for row, name in enumerate(names) if not name.startswith(PREFIX)]
            if batch is not None and rows:
                forces = np.stack(list(_forces(predict, copies, batch, rows, devices)))
                found.append(deviations_of(forces, np.asarray(batch.frames.labels.forces)[rows]))
        return np.concatenate(found, axis=1)

    trained = of([(one.train, one.train_names) for one in task.groups])
    held_out = of([(one.held_out, one.held_out_names) for one in task.groups])
    frames = FrameDeviations(*held_out)
    seen = np.concatenate([trained[0], held_out[0]])
    largest = scale_of(frames.largest_deviation, frames.largest_error)
    rms = scale_of(frames.rms_deviation, frames.rms_error)
    return Calibration(float(seen.max()), held_out.shape[1], largest, rms), frames


def scale_of(deviations: Float[np.ndarray, " f"], errors: Float[np.ndarray, " f"]) -> ErrorScale | None:
    """The scale from deviations [f] to errors [f], eV/Angstrom; None without frames, or where no member deviates."""
    rms = lambda x: float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))  # noqa: E731
    if not len(deviations) or not np.any(deviations):
        return None
    order = np.argsort(deviations, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(order) // FEWEST)))
    bins = tuple((rms(deviations[part]), rms(errors[part]), len(part)) for part in parts)
    return ErrorScale(rms(errors) / rms(deviations), bins)


def sentences(calibration: Calibration) -> list[str]:
    """What to know of a calibration, for people."""
    found = [
        f"committee: largest deviation of a force in the labelled frames "
        f"{calibration.largest_deviation_of_training:.3g} eV/A; beyond it a structure is outside of the training"
    ]
    if calibration.largest is not None and calibration.rms is not None:
        found.append(
            f"committee: on {calibration.frames} held-out frames the error is {calibration.largest.factor:.3g} times "
            f"the deviation (largest of an atom), {calibration.rms.factor:.3g} times (RMS over atoms)"
        )
    return found


def _forces(
    predict: Callable[[Any, Frame], Any], copies: list[Any], batch: FrameBatch, rows: list[int],
    devices: list[jax.Device],
) -> Iterator[Float[np.ndarray, "m n 3"]]:  # fmt: skip
    """Forces of all members on some frames, a few frames at a time on each device."""
    together = 8 * len(devices)
    for first in range(0, len(rows), together):
        found = []
        for k, row in enumerate(rows[first : first + together]):
            device = devices[k % len(devices)]
            found.append(predict(copies[k % len(devices)], jax.device_put(batch.frame(row), device))[0].forces)
        yield from jax.device_get(found)
