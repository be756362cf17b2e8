"""Energies of the elements that labels are relative to: fitted to the data, or to what a model lacks of them.

float32 could not hold both 1e5 eV of core energies and a phonon; and two functionals differ by energies of the elements
first of all, which need not be learned by gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxpto.potential import Potential
from jaxpto.training.element_energies import composition_counts, fit_element_energies
from jaxpto.training.frames import LabelledFrames
from jaxpto.training.groups import FrameGroup
from jaxpto.training.steps import make_prediction

SAMPLES = 8  # frames of each trajectory that a model is compared on


def reference_energies(trajectories: Sequence[LabelledFrames], elements: tuple[int, ...]) -> np.ndarray:
    """Energies [element] in eV whose sums fit the mean energy of each trajectory (least squares, minimum norm)."""
    counts = composition_counts([t.numbers for t in trajectories], elements)
    return fit_element_energies(counts, np.array([np.mean(t.energies) for t in trajectories]))[0]


def missing_energies(
    potential: Potential, groups: Sequence[FrameGroup], names: Sequence[str], elements: tuple[int, ...]
) -> np.ndarray:
    """Energies [element] in eV whose sums fit what the labels of trajectories have beyond a model's energies.

    Args:
        potential: the model.
        groups: the data.
        names: trajectories that take part.
        elements: atomic numbers.
    """
    predict = make_prediction(potential.model)
    numbers, means = [], []
    for name in names:
        for group in groups:
            rows = np.flatnonzero(np.array(group.train_names) == name)
            if not len(rows):
                continue
            rows = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLES).astype(int))]
            differences = [
                group.train.totals[row] - float(predict(potential.params, group.train.frame(row))[0].energy)
                for row in rows.tolist()
            ]
            numbers.append(group.train.numbers[rows[0]])
            means.append(np.mean(differences))
    return fit_element_energies(composition_counts(numbers, elements), np.array(means))[0]
