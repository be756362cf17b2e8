"""Phase labels from time averages, and the transition temperature of a ladder (host side, pure functions)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from jaxpto.observables.lattice import tetragonality

CUBIC_BELOW = 1.01  # longest axis over the mean of the others
SUPERTETRAGONAL_FROM = 1.15  # between PbTiO3's 1.06 (experiment) and the 1.23 of the PBE functional's spurious phase
AXES_EQUAL_WITHIN = 1.01  # ratio of the two shorter axes
POLAR_FROM = 1.02  # stretch of a block's mean lattice that names its polar axis; noise of a cubic crystal stays below
BLOCK_PS = 1.0  # length of these blocks; shorter than the stay of a polar axis, longer than a period of the cell
UPRIGHT_WITHIN = 1.0  # degrees by which an averaged angle may miss 90
NONPOLAR_FRACTION = 0.25  # of the largest polarization of the ladder
NONPOLAR_BELOW = 0.05  # C/m^2, below this a ladder holds no polar phase at all

ORDERED = ("tetragonal", "supertetragonal", "polar")
DISORDERED = ("cubic", "nonpolar")


def lattice_phase(lengths: Float[np.ndarray, 3], angles: Float[np.ndarray, 3]) -> str:
    """Phase label of a time-averaged lattice a, b, c [3] Angstrom; alpha, beta, gamma [3] degrees.

    sheared: an angle misses 90 degrees by more than 1; otherwise, with t = longest axis / mean of the two others, and
    orthorhombic: the two shorter axes differ by 1 % or more; cubic: t < 1.01; supertetragonal: t >= 1.15; tetragonal.
    """
    if np.abs(angles - 90.0).max() > UPRIGHT_WITHIN:
        return "sheared"
    ordered = np.sort(lengths)
    if ordered[1] / ordered[0] >= AXES_EQUAL_WITHIN:
        return "orthorhombic"
    stretch = tetragonality(lengths)
    if stretch < CUBIC_BELOW:
        return "cubic"
    return "supertetragonal" if stretch >= SUPERTETRAGONAL_FROM else "tetragonal"


def polar_axis_in_time(time_ps: Float[np.ndarray, " t"], lengths: Float[np.ndarray, "t 3"]) -> Int[np.ndarray, " t"]:
    """Index of the polar axis at each time, all equal unless the polar axis turned during the run.

    Near the transition a small crystal turns its polar axis now and then, and the average over time looks cubic. The
    run is cut into blocks of 1 ps; one whose mean lattice has a stretch of 1.02 or more (see `lattice_phase`) is polar
    along its longest axis. If at least half of the blocks are polar, not all along one axis, each other block takes
    the axis of the polar one before it. Otherwise the longest axis of the whole run's mean holds throughout.

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


def polar_labels(polarizations: list[float]) -> list[str]:
    """Label each |mean polarization| (C/m^2) of a ladder "polar" or "nonpolar".

    Nonpolar is less than a quarter of the largest of the ladder, or than 0.05 C/m^2. NaN stays "".
    """
    finite = [p for p in polarizations if not math.isnan(p)]
    threshold = max(NONPOLAR_BELOW, NONPOLAR_FRACTION * max(finite, default=0.0))
    return ["" if math.isnan(p) else ("polar" if p >= threshold else "nonpolar") for p in polarizations]


@dataclasses.dataclass(frozen=True)
class Transition:
    """Where a ladder of temperatures leaves the ordered (tetragonal, polar) phase.

    Attributes:
        order_parameter: "c/a" or "polarization".
        temperature_K: midpoint of the bracket, or None if the ladder does not bracket a transition.
        uncertainty_K: half width of the bracket and the bootstrap error of its midpoint, added in quadrature.
        lower_K: highest ordered temperature below the transition (a lower bound), or None.
        upper_K: lowest disordered temperature above it (an upper bound), or None.
        monotonic: False if some ordered temperature lies above a disordered one; the bracket then spans that region.
        message: the finding in one sentence.
    """

    order_parameter: str
    temperature_K: float | None
    uncertainty_K: float | None
    lower_K: float | None
    upper_K: float | None
    monotonic: bool
    message: str


def _bracket(temperatures: np.ndarray, ordered: np.ndarray, disordered: np.ndarray) -> tuple[float, float, bool] | None:
    """Bracket of the change from ordered to disordered, and whether it is monotonic; None without such a change."""
    if not ordered.any() or not disordered.any() or temperatures[ordered].min() > temperatures[disordered].max():
        return None
    last, first = float(temperatures[ordered].max()), float(temperatures[disordered].min())
    return min(last, first), max(last, first), last < first


def transition(
    temperatures: list[float],
    phases: list[str],
    values: list[float],
    sems: list[float],
    order_parameter: str,
    threshold: float,
    *,
    resamples: int = 400,
) -> Transition:
    """Transition temperature of a ladder: midpoint between the last ordered and the first disordered temperature.

    The uncertainty is the bracket's half width, plus in quadrature the spread of the midpoint when every value is
    redrawn from a normal distribution of its standard error and labelled anew by `threshold` (parametric bootstrap,
    fixed seed).

    Args:
        temperatures: K, in any order.
        phases: label of each temperature; only tetragonal, supertetragonal, polar (ordered) and cubic, nonpolar
            (disordered) place the transition.
        values: order parameter: c/a (longest over others), or |P| in C/m^2.
        sems: standard errors of the values; NaN counts as zero.
        order_parameter: "c/a" or "polarization".
        threshold: values from here on are ordered.
        resamples: bootstrap resamples.
    """
    order = np.argsort(temperatures, kind="stable")
    kelvin = np.asarray(temperatures, np.float64)[order]
    labels = [phases[i] for i in order]
    ordered = np.array([label in ORDERED for label in labels], bool)
    disordered = np.array([label in DISORDERED for label in labels], bool)
    change = "tetragonal to cubic" if order_parameter == "c/a" else "polar to nonpolar"
    found = _bracket(kelvin, ordered, disordered)
    if found is None:
        return _without_transition(order_parameter, change, kelvin, ordered, disordered)
    lower, upper, monotonic = found

    used = ordered | disordered
    center = np.asarray(values, np.float64)[order][used]
    spread = np.nan_to_num(np.asarray(sems, np.float64)[order][used])
    random = np.random.default_rng(0)
    midpoints = []
    for _ in range(resamples):
        above = center + spread * random.standard_normal(center.shape) >= threshold
        again = _bracket(kelvin[used], above, ~above)
        if again is not None:
            midpoints.append(0.5 * (again[0] + again[1]))
    scatter = float(np.std(midpoints)) if len(midpoints) > 1 else 0.0
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    uncertainty = math.hypot(half, scatter)
    message = f"{change} at {middle:.0f} +/- {uncertainty:.0f} K (between {lower:g} and {upper:g} K)"
    if not monotonic:
        message += "; the order of phases along the ladder is not monotonic"
    return Transition(order_parameter, middle, uncertainty, lower, upper, monotonic, message)


def _without_transition(
    order_parameter: str, change: str, kelvin: np.ndarray, ordered: np.ndarray, disordered: np.ndarray
) -> Transition:
    if ordered.any() and not disordered.any():
        lower = float(kelvin[ordered].max())
        message = f"no {change} transition up to {lower:g} K"
        return Transition(order_parameter, None, None, lower, None, True, message)
    if disordered.any() and not ordered.any():
        upper = float(kelvin[disordered].min())
        message = f"no {change} transition: {change.split()[2]} from {upper:g} K, the lowest such temperature"
        return Transition(order_parameter, None, None, None, upper, True, message)
    if ordered.any():
        message = f"no {change} transition: the ordered phase lies at higher temperatures than the disordered one"
        return Transition(order_parameter, None, None, None, None, False, message)
    message = f"no {change} transition: no temperature of the ladder is in either phase"
    return Transition(order_parameter, None, None, None, None, True, message)
