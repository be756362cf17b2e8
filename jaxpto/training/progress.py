"""Reports of a training: its data, running errors, and errors on held-out frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxpto.models.perovskite import Params
from jaxpto.training.batches import Composition
from jaxpto.training.frames import LabelledFrames, hold_out_blocks
from jaxpto.training.optimizer import TrainState


def describe_data(trajectories: Sequence[LabelledFrames], elements: int, compositions: int) -> list[str]:
    """Lines: how many frames, which of them are held out for validation, and which have no virial."""
    total = sum(map(len, trajectories))
    held = {frames.name: len(hold_out_blocks(frames)[1]) for frames in trajectories}
    lines = [
        f"{total} frames, {compositions} compositions, {elements} elements; {sum(held.values())} frames held out for "
        "validation (the 7th and 14th of 20 blocks of each trajectory)"
    ]
    without = [f"{frames.name} ({len(frames)} frames)" for frames in trajectories if not held[frames.name]]
    if without:
        consequence = (
            "" if any(held.values()) else "; the errors of the model are not measured, and the last one is kept"
        )
        lines.append(f"nothing is held out of {', '.join(without)}, too short for blocks{consequence}")
    unlabelled = {frames.name: int((~frames.with_virial).sum()) for frames in trajectories}
    if sum(unlabelled.values()) == total:
        lines.append("no frame has a virial or stress: trained on energies and forces alone")
    else:
        some = [f"{count} of {len(frames)} frames of {frames.name}"
                for frames in trajectories if (count := unlabelled[frames.name])]  # fmt: skip
        if some:
            lines.append(f"no virial or stress in {', '.join(some)}")
    return lines


def progress_line(done: int, total: int, state: TrainState, seconds: float, *, virials: bool) -> str:
    """One line: where the training is, running errors of the frames just seen, speed and time left.

    Args:
        done, total: number of steps.
        state: state of the training.
        seconds: time per step, s.
        virials: whether any frame has a virial.
    """
    value, *squares = np.asarray(state.errors).tolist()
    energy, forces, virial = (1e3 * s**0.5 for s in squares)
    strain = f"{virial:.2f} meV/atom" if virials else "-"
    return (
        f"step {done}/{total}  loss {value:.3f}  E {energy:.2f} meV/atom  F {forces:.1f} meV/A  "
        f"V {strain}  {1e3 * seconds:.2f} ms/step  ETA {(total - done) * seconds / 60:.1f} min"
    )


def validate(
    compositions: list[Composition], checks: list[Callable | None], raw: Params
) -> tuple[dict[str, dict[str, float | None]], float | None]:
    """RMS errors of each held-out trajectory (meV/atom, meV/Angstrom, meV/atom), and one score to compare models by.

    The error of the virial is None where no frame has one. The score weighs trajectories as the training does; it is
    None without held-out frames.
    """
    errors: dict[str, dict[str, float | None]] = {}
    score: float | None = None
    for composition, check_errors in zip(compositions, checks, strict=True):
        if check_errors is None or composition.held_out is None:
            continue
        squares = np.asarray(check_errors(raw, composition.held_out.arrays))
        labelled = np.isfinite(np.asarray(composition.held_out.virials)).all(axis=(1, 2))
        names = np.array(composition.held_out_names)
        for name in dict.fromkeys(composition.held_out_names):
            own = names == name
            e, f = (1e3 * np.sqrt(squares[own, :2].mean(0))).tolist()
            v = 1e3 * float(np.sqrt(squares[own & labelled, 2].mean())) if (own & labelled).any() else None
            errors[name] = {
                "energy": round(e, 3),
                "forces": round(f, 2),
                "virial": None if v is None else round(v, 2),
            }
            parts = e / 3.0 + f / 100.0 + (0.0 if v is None else v / 6.0)
            score = (score or 0.0) + composition.weight_of[name] * parts
    return errors, score
