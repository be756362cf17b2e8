"""One energy for each element, fitted by least squares: what a change of the zero of energy amounts to."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def composition_counts(frames: list[np.ndarray], elements: tuple[int, ...]) -> Float[np.ndarray, "f e"]:
    """Number of atoms [f, e] of each element in frames with the given atomic numbers."""
    return np.array([[np.sum(numbers == z) for z in elements] for numbers in frames], np.float64)


def fit_element_energies(
    counts: Float[np.ndarray, "f e"], energies: Float[np.ndarray, " f"]
) -> tuple[Float[np.ndarray, " e"], Bool[np.ndarray, " f"]]:
    """Energies of the elements whose sums fit the energies of frames best, and the frames that the fit leaves no error.

    Least squares of the energies per atom; of many solutions the one of least norm. A frame is met exactly, whatever
    its energy, if no other has its elements in independent amounts (a leverage of 1).

    Args:
        counts: [f, e] number of atoms of each element.
        energies: [f] eV; NaN is left out.

    Returns:
        [e] eV, and [f] whether the fit meets a frame by construction.
    """
    known = np.isfinite(energies)
    atoms = counts.sum(axis=1)
    fractions = counts[known] / atoms[known, None]
    fitted = np.linalg.lstsq(fractions, energies[known] / atoms[known], rcond=1e-8)[0]
    left, size, _ = np.linalg.svd(fractions, full_matrices=False)
    left = left[:, size > 1e-8 * size.max(initial=0.0)]
    exact = np.zeros(len(energies), bool)
    exact[known] = np.square(left).sum(axis=1) > 1.0 - 1e-9
    return fitted, exact
