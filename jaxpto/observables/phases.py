"""Phase labels of a perovskite from the time averages of its strain and polarization (host side, pure functions)."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from jaxpto.observables.crystal_class import crystal_system
from jaxpto.observables.lattice import tetragonality
from jaxpto.observables.statistics import Estimate

EQUAL_LENGTHS = 0.005  # relative difference of two axes that is told apart; the 1.1 % of tetragonal BaTiO3 is
EQUAL_ANGLES = 0.002  # of the cosine of an angle over two: 0.23 degrees
EQUAL_COMPONENTS = 0.15  # of the polarization's length
SUPERTETRAGONAL_FROM = 1.15  # between PbTiO3's 1.06 (experiment) and the 1.23 of the PBE functional's spurious phase
POLAR_FROM = 1.02  # stretch of a block's mean lattice that names its polar axis; noise of a cubic crystal stays below
BLOCK_PS = 1.0  # length of these blocks; shorter than the stay of a polar axis, longer than a period of the cell
SIGNIFICANCE = 0.999  # of a polarization that is called one, and of every difference in strain
LEAST_POLARIZATION = 0.02  # C/m^2; a tenth of BaTiO3's, whatever its error
NONPOLAR_FRACTION = 0.25  # of the largest polarization of the ladder
NONPOLAR_BELOW = 0.05  # C/m^2, below this a ladder holds no polar phase at all

ORDERED = ("tetragonal", "supertetragonal", "orthorhombic", "rhombohedral", "monoclinic", "triclinic")


def perovskite_phase(
    strain: list[list[Estimate]], lengths: Float[np.ndarray, 3], polarization: list[Estimate] | None
) -> str:
    """Crystal system of a perovskite's averages: cubic or one of `ORDERED`; "undecided" where the errors hide it.

    It is what the operations of the cube leave alone: strain components count as equal within 0.5 % (off the diagonal
    0.2 %) or their error, whichever is more, components of the polarization within 15 % of its length or their error;
    a polarization that is not significant counts as zero. Tetragonal from a ratio of 1.15 on is supertetragonal.

    Args:
        strain: [3][3] averages of `Lattice.strain`.
        lengths: [3] mean a, b, c, Angstrom.
        polarization: [3] averages of its components along a, b, c, C/m^2, or None where there is none.
    """
    floor = np.where(np.eye(3) > 0, EQUAL_LENGTHS, EQUAL_ANGLES)  # of a difference: both of its sides have 1/sqrt(2)
    errors = np.array([[_bound(component) for component in row] for row in strain])
    vector, bounds = np.zeros(3), np.zeros(3)
    if polarization is not None and polarity(polarization) == "polar":
        vector = np.array([component.mean for component in polarization])
        least = EQUAL_COMPONENTS * float(np.linalg.norm(vector))
        bounds = np.array([max(least / math.sqrt(2.0), _bound(component)) for component in polarization])
    means = np.array([[component.mean for component in row] for row in strain])
    system = crystal_system(means, np.maximum(floor / math.sqrt(2.0), errors), vector, bounds)
    if system == "tetragonal" and tetragonality(lengths) >= SUPERTETRAGONAL_FROM:
        return "supertetragonal"
    if system == "cubic" and tetragonality(lengths) >= POLAR_FROM:
        return "undecided"  # by far no cube, but the errors are larger still
    return system


def polarity(components: list[Estimate]) -> str:
    """Whether an averaged polarization vector [3] (C/m^2) is one: "polar", "nonpolar" or "undecided".

    Polar: it differs from zero with a significance of 99.9 % (Hotelling's T^2 with as many samples as are independent)
    and is at least 0.02 C/m^2 long. Nonpolar: two standard errors above its length are still below 0.05 C/m^2, or it
    is significant but shorter. Of a single frame, which has no error, the length alone decides.
    """
    means, errors = (np.array([getattr(c, name) for c in components]) for name in ("mean", "sem"))
    length = float(np.linalg.norm(means))
    if np.isnan(errors).any():
        return "polar" if length >= NONPOLAR_BELOW else "nonpolar"
    samples = min(component.independent for component in components)
    if not errors.any():
        significant = length > 0.0
    elif samples <= 4.0:
        significant = False
    else:
        squared = float(np.sum((means / np.maximum(errors, 1e-12)) ** 2))
        critical = 3.0 * (samples - 1.0) / (samples - 3.0) * special.fdtri(3.0, samples - 3.0, SIGNIFICANCE)
        significant = squared > critical
    if significant:
        return "polar" if length >= LEAST_POLARIZATION else "nonpolar"
    return "nonpolar" if length + 2.0 * float(np.linalg.norm(errors)) < NONPOLAR_BELOW else "undecided"


def _bound(component: Estimate) -> float:
    """What a component may differ by at random: its standard error times the two-sided quantile of Student's t."""
    if math.isnan(component.sem):
        return 0.0
    freedom = max(component.independent - 1.0, 1.0)
    return component.sem * float(special.stdtrit(freedom, 0.5 + 0.5 * SIGNIFICANCE))


def polar_axis_in_time(time_ps: Float[np.ndarray, " t"], lengths: Float[np.ndarray, "t 3"]) -> Int[np.ndarray, " t"]:
    """Index of the polar axis at each time, all equal unless the polar axis turned during the run.

    Near the transition a small crystal turns its polar axis now and then, and the average over time looks cubic. The
    run is cut into blocks of 1 ps; one whose mean lattice has a stretch of 1.02 or more (longest axis over the mean of
    the others) is polar along its longest axis. If at least half of the blocks are polar, not all along one axis, each
    other block takes the axis of the polar one before it. Otherwise the longest axis of the whole run's mean holds
    throughout.

    Args:
        time_ps: times of the samples, ps.
        lengths: a, b, c of each sample, Angstrom.
    """
    overall = np.full(len(time_ps), int(np.argmax(lengths.mean(axis=0))))
    block_of = ((time_ps - time_ps[0]) / BLOCK_PS).astype(int)
    block_of = np.minimum(block_of, max(0, block_of[-1] - 1))  # the last, shorter one joins the one before it
    axes = []
    for block in range(block_of[-1] + 1):
        mean = lengths[block_of == block].mean(axis=0) if (block_of == block).any() else np.ones(3)
        axes.append(int(np.argmax(mean)) if tetragonality(mean) >= POLAR_FROM else -1)
    polar = [axis for axis in axes if axis >= 0]
    if len(set(polar)) < 2 or 2 * len(polar) < len(axes):
        return overall
    present = polar[0]
    held = [present := axis if axis >= 0 else present for axis in axes]
    return np.asarray(held)[block_of]


def polar_labels(polarizations: list[float], polarities: list[str]) -> list[str]:
    """Label each |mean polarization| (C/m^2) of a ladder "polar", "nonpolar" or "undecided".

    Where it is significant (see `polarity`) it is still nonpolar below a quarter of the largest significant one of the
    ladder, or below 0.05 C/m^2: a cell of fixed tetragonal shape keeps a small one above the transition. NaN stays "".

    Args:
        polarizations: one a temperature, NaN where there is none.
        polarities: what `polarity` says of each.
    """
    threshold = polar_threshold(polarizations, polarities)
    labels = []
    for value, label in zip(polarizations, polarities, strict=True):
        if math.isnan(value):
            labels.append("")
        else:
            labels.append("nonpolar" if label == "polar" and value < threshold else label)
    return labels


def polar_threshold(polarizations: list[float], polarities: list[str]) -> float:
    """The polarization, C/m^2, from which on a temperature of a ladder is called polar (see `polar_labels`)."""
    pairs = zip(polarizations, polarities, strict=True)
    return max(NONPOLAR_BELOW, NONPOLAR_FRACTION * max((p for p, label in pairs if label == "polar"), default=0.0))
