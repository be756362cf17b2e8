"""Training data by programs: frames that share a compiled program, how often each is drawn, what is held out."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence

import numpy as np

from jaxpto.errors import InputError
from jaxpto.potential import Potential
from jaxpto.training.batches import FrameBatch, make_batch
from jaxpto.training.frames import LabelledFrames, held_out_rows


@dataclasses.dataclass(frozen=True)
class FrameGroup:
    """Training and validation frames of all trajectories that can share a program.

    Attributes:
        probability: [f] probability of drawing each training frame.
        train: training frames.
        held_out: validation frames, or None.
        train_names, held_out_names: [f] name of the trajectory of each frame.
        held_out_index: [f] index of each validation frame among the frames of its trajectory.
    """

    probability: np.ndarray
    train: FrameBatch
    held_out: FrameBatch | None
    train_names: tuple[str, ...]
    held_out_names: tuple[str, ...]
    held_out_index: np.ndarray

    @property
    def batches(self) -> list[FrameBatch]:
        """All frames."""
        return [self.train] if self.held_out is None else [self.train, self.held_out]

    def relative_to(self, references: dict[str, dict[int, float]]) -> FrameGroup:
        """The same with labels relative to the reference energies of each trajectory, eV by atomic number."""

        def one(batch: FrameBatch, names: tuple[str, ...]) -> FrameBatch:
            sums = [
                sum(references[name][z] for z in row) for name, row in zip(names, batch.numbers.tolist(), strict=True)
            ]
            return batch.relative_to(np.array(sums))

        held_out = None if self.held_out is None else one(self.held_out, self.held_out_names)
        return dataclasses.replace(self, train=one(self.train, self.train_names), held_out=held_out)


def group(
    trajectories: Sequence[LabelledFrames],
    training: Sequence[np.ndarray],
    probability: np.ndarray,
    potential: Potential,
) -> list[FrameGroup]:
    """Hold out blocks of every trajectory, and put together what can share a program.

    Args:
        trajectories: labelled frames.
        training: rows of each trajectory that are trained on; see `training_rows`.
        probability: [t] probability of drawing from each trajectory.
        potential: the model whose neighbour lists are built; its parameters are not used.

    Raises:
        InputError: ever more neighbours within the cutoff.
    """
    gathered: dict[tuple[int, ...], list[int]] = {}
    for index, frames in enumerate(trajectories):
        # a list by species has the elements of its atoms in the program; in others they are data
        key = tuple(frames.numbers.tolist()) if potential.model.by_species else (len(frames.numbers),)
        gathered.setdefault(key, []).append(index)
    groups = []
    for indices in gathered.values():
        members = [trajectories[i] for i in indices]
        rows = [(training[i], held_out_rows(len(trajectories[i]))[1]) for i in indices]
        both = [frames[row[part]] for part in (0, 1) for frames, row in zip(members, rows, strict=True)]
        batch = make_batch([frames for frames in both if len(frames)], potential)
        counts = [len(kept) for kept, _ in rows]
        train = np.arange(sum(counts))
        held_out = np.arange(len(train), len(batch))
        names = np.array([frames.name for frames in members])
        groups.append(
            FrameGroup(
                np.concatenate([np.full(c, probability[i] / c) for i, c in zip(indices, counts, strict=True)]),
                batch[train],
                batch[held_out] if len(held_out) else None,
                tuple(np.repeat(names, counts).tolist()),
                tuple(np.repeat(names, [len(out) for _, out in rows]).tolist()),
                np.concatenate([out for _, out in rows]),
            )
        )
    return groups


def share_of(trajectories: Sequence[LabelledFrames], shares: tuple[str, ...]) -> np.ndarray:
    """Probability of each trajectory [t]; every GLOB's fraction is spread evenly over what it matches.

    Raises:
        InputError: a share that cannot be read or matches nothing, or fractions that add up to more than one.
    """
    probability, free = np.zeros(len(trajectories)), np.ones(len(trajectories), bool)
    for share in shares:
        pattern, _, fraction = share.rpartition("=")
        try:
            value = float(fraction)
        except ValueError:
            value = -1.0
        hits = np.array([fnmatch.fnmatch(t.name, pattern) for t in trajectories]) & free
        if not 0 < value <= 1 or not hits.any():
            raise InputError(
                f"share {share!r}: write GLOB=FRACTION with a fraction in (0, 1] and a GLOB that fits data"
            )
        probability[hits] = value / hits.sum()
        free &= ~hits
    rest = 1.0 - probability.sum()
    if rest < -1e-9:
        raise InputError(f"the shares add up to {probability.sum():.3f}; the limit is 1")
    if free.any():
        probability[free] = max(rest, 0.0) / free.sum()
    return probability / probability.sum()
