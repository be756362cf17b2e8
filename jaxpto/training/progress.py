"""Lines about a training: its data, and how it goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxpto.md.progress import duration
from jaxpto.training.frames import LabelledFrames, hold_out_blocks
from jaxpto.training.steps import TrainState


def describe_data(trajectories: Sequence[LabelledFrames]) -> list[str]:
    """Lines: how many frames, which of them are held out for validation, and which have no virial."""
    total = sum(map(len, trajectories))
    held = {frames.name: len(hold_out_blocks(frames)[1]) for frames in trajectories}
    compositions = len({tuple(sorted(frames.numbers.tolist())) for frames in trajectories})
    elements = len({z for frames in trajectories for z in frames.numbers.tolist()})
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


def progress_line(done: int, total: int, state: TrainState, seconds: float, left: float, *, virials: bool) -> str:
    """One line: where the training is, running errors of the frames just seen, speed and time left.

    Args:
        done, total: number of steps.
        state: state of the training.
        seconds: time per step, s.
        left: time to the end, s.
        virials: whether any frame has a virial.
    """
    value, *squares = np.asarray(state.errors).tolist()
    energy, forces, virial, _ = (1e3 * s**0.5 for s in squares)
    strain = f"{virial:.2f} meV/atom" if virials else "-"
    return (
        f"step {done}/{total}  loss {value:.3f}  E {energy:.2f} meV/atom  F {forces:.1f} meV/A  "
        f"V {strain}  {1e3 * seconds:.3g} ms/step  {duration(left)} left"
    )
