"""Where a ladder of temperatures leaves the ordered phase: the bracket of the labels and its statistical error."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxpto.units import spell_kelvin


@dataclasses.dataclass(frozen=True)
class Transition:
    """Where a ladder of temperatures leaves the ordered (ferroelectric, distorted) phase.

    Attributes:
        order_parameter: "lattice" or "polarization".
        lower_K: highest ordered temperature below the transition (a lower bound), or None.
        upper_K: lowest disordered temperature above it (an upper bound), or None.
        temperature_K: middle of the two, or None if the ladder does not bracket a transition.
        statistical_error_K: standard deviation of that middle when every order parameter is drawn anew within its
            error; None without a bracket. It says nothing of hysteresis, nor of the size of the cell.
        monotonic: False if some ordered temperature lies above a disordered one; the bracket then spans that region.
        message: the finding in one sentence.
    """

    order_parameter: str
    lower_K: float | None
    upper_K: float | None
    temperature_K: float | None
    statistical_error_K: float | None
    monotonic: bool
    message: str


def find_transition(
    temperatures: list[float],
    phases: list[str],
    values: list[float],
    errors: list[float],
    *,
    order_parameter: str,
    ordered_phases: tuple[str, ...],
    disordered_phase: str,
    threshold: float,
    resamples: int = 400,
) -> Transition:
    """Bracket between the last ordered and the first disordered temperature of a ladder.

    The statistical error is the spread of the bracket's middle when every value is redrawn from a normal distribution
    of its standard error and labelled anew (parametric bootstrap, fixed seed): ordered from midway between the values
    of both phases on, where these lie apart, but never below `threshold`. (The longest of three fluctuating axes is
    longer than the others by a per cent in a small cubic cell, which is no order.)

    Args:
        temperatures: K, in any order.
        phases: label of each temperature; others than those below place no transition.
        values: order parameter: c/a (longest over others), or |P| in C/m^2.
        errors: standard errors of the values; NaN counts as zero.
        order_parameter: what they are called.
        ordered_phases, disordered_phase: labels below and above the transition.
        threshold: least value that is ordered.
        resamples: bootstrap resamples.
    """
    order = np.argsort(temperatures, kind="stable")
    kelvin = np.asarray(temperatures, np.float64)[order]
    labels = [phases[i] for i in order]
    ordered = np.array([label in ordered_phases for label in labels], bool)
    disordered = np.array([label == disordered_phase for label in labels], bool)
    found = _bracket(kelvin, ordered, disordered)
    if found is None:
        return _without_transition(order_parameter, disordered_phase, kelvin, labels, ordered, disordered)
    lower, upper, monotonic = found

    used = ordered | disordered
    center = np.asarray(values, np.float64)[order][used]
    spread = np.nan_to_num(np.asarray(errors, np.float64)[order][used])
    weakest, strongest = center[ordered[used]].min(), center[disordered[used]].max()
    limit = max(threshold, 0.5 * (weakest + strongest)) if weakest > strongest else threshold
    random = np.random.default_rng(0)
    middles = []
    for _ in range(resamples):
        above = center + spread * random.standard_normal(center.shape) >= limit
        again = _bracket(kelvin[used], above, ~above)
        if again is not None:
            middles.append(0.5 * (again[0] + again[1]))
    scatter = float(np.std(middles)) if len(middles) > 1 else 0.0
    before = next(
        label for label, T in zip(labels, kelvin, strict=True) if label in ordered_phases and T in (lower, upper)
    )
    message = f"{before} to {disordered_phase} between {spell_kelvin(lower)} and {spell_kelvin(upper)} K"
    error = f"{scatter:.0f} K" if scatter >= 0.5 else "below 1 K"
    message += f" (a step of the ladder; statistical error of its middle {error})"
    if scatter > 0.5 * (upper - lower):
        message += ", less sharp than that step: run longer"
    if not monotonic:
        message += "; the order of phases along the ladder is not monotonic"
    return Transition(order_parameter, lower, upper, 0.5 * (lower + upper), scatter, monotonic, message)


def _bracket(temperatures: np.ndarray, ordered: np.ndarray, disordered: np.ndarray) -> tuple[float, float, bool] | None:
    """Bracket of the change from ordered to disordered, and whether it is monotonic; None without such a change."""
    if not ordered.any() or not disordered.any() or temperatures[ordered].min() > temperatures[disordered].max():
        return None
    last, first = float(temperatures[ordered].max()), float(temperatures[disordered].min())
    return min(last, first), max(last, first), last < first


def _without_transition(
    order_parameter: str, phase: str, kelvin: np.ndarray, labels: list[str], ordered: np.ndarray, disordered: np.ndarray
) -> Transition:
    lower = upper = None
    monotonic = True
    if ordered.any() and not disordered.any():
        lower = float(kelvin[ordered].max())
        message = f"no transition to {phase}: {labels[int(np.flatnonzero(ordered)[-1])]} up to {spell_kelvin(lower)} K"
    elif disordered.any() and not ordered.any():
        upper = float(kelvin[disordered].min())
        message = f"no transition: {phase} from {spell_kelvin(upper)} K, the lowest such temperature"
    elif ordered.any():
        monotonic = False
        message = f"no transition to {phase}: the ordered phase lies at higher temperatures than the {phase} one"
    else:
        message = f"no transition to {phase}: no temperature of the ladder is in either phase"
    return Transition(order_parameter, lower, upper, None, None, monotonic, message)


def sequence(temperatures: list[float], phases: list[str]) -> str:
    """The phases along a ladder in words, as in "rhombohedral at 50 to 150 K, orthorhombic at 200 K, cubic at 450 K".

    Args:
        temperatures: K, in rising order.
        phases: label of each; a change back makes another part.
    """
    parts: list[tuple[str, float, float]] = []
    for kelvin, phase in zip(temperatures, phases, strict=True):
        if parts and parts[-1][0] == phase:
            parts[-1] = (phase, parts[-1][1], kelvin)
        else:
            parts.append((phase, kelvin, kelvin))
    return ", ".join(
        f"{phase} at {spell_kelvin(first)} " + (f"to {spell_kelvin(last)} K" if last != first else "K")
        for phase, first, last in parts
    )
