"""Figures of sweeps against temperature: lattice parameters and polarization."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxpto.observables.summary import TemperatureSummary, transitions
from jaxpto.perovskite.literature import Experiment
from jaxpto.reporting.style import COLORS, GREY, MARKERS, styled
from jaxpto.units import spell_kelvin


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One ladder of temperatures to draw.

    Attributes:
        name: what to call it in a legend.
        rows: one summary a temperature.
    """

    name: str
    rows: list[TemperatureSummary]

    def values(self, name: str) -> Float[np.ndarray, " t"]:
        """[t] one field of all rows."""
        return np.array([getattr(row, name) for row in self.rows], np.float64)


class _Curve(NamedTuple):
    name: str  # field of `TemperatureSummary`
    error: str  # field that gives the error bars
    label: str
    color: int | None = None  # place in the palette; None: that of its sweep
    filled: bool = True
    size: bool = False  # whether the absolute value is drawn


BARS: Any = {"capsize": 2.5, "elinewidth": 0.9}
LATTICE = (_Curve("c_polar", "c_polar_std", "c"), _Curve("a_plane", "a_plane_std", "a", filled=False))
LENGTH = (_Curve("P", "P_sem", "|P|"),)
COMPONENTS = (
    _Curve("Pz", "Pz_std", "$P_z$", 0),
    _Curve("Px", "Px_std", "$|P_x|$", 1, filled=False, size=True),
    _Curve("Py", "Py_std", "$|P_y|$", 2, filled=False, size=True),
)


@styled()
def lattice_figure(sweeps: list[Sweep], experiment: Experiment | None = None) -> Figure:
    """Lattice parameters against temperature, filled for c and open for a, error bars of one standard deviation.

    c is the polar (longest) axis and a the mean of the two others; in a cubic phase c is the third axis.

    Args:
        sweeps: ladders to draw in one figure.
        experiment: grey marks to compare with, or None.
    """
    figure, axes = _against_temperature(sweeps, LATTICE, "lattice")
    axes.set_ylabel("lattice parameter (Å)")
    if experiment is not None:
        _draw_experiment(axes, experiment)
    _draw_failures(axes, sweeps)
    _legend(figure, axes)
    return figure


@styled()
def polarization_figure(sweeps: list[Sweep]) -> Figure | None:
    """|Px|, |Py| and Pz against temperature, error bars of one standard deviation; None where no sweep knows them.

    Of several sweeps, only the length of the mean vector, |P|, with its standard error.
    """
    known = [sweep for sweep in sweeps if np.isfinite(sweep.values("P")).any()]
    if not known:
        return None
    figure, axes = _against_temperature(known, COMPONENTS if len(known) == 1 else LENGTH, "polarization")
    # where the polar axis is not z everywhere, the length of the mean vector tells more than its components
    rows = known[0].rows
    turned = any(row.polar_axis in ("a", "b", "mixed") for row in rows)
    if len(known) == 1 and (turned or any(abs(row.P - abs(row.Pz)) > 0.1 * row.P for row in rows if row.P > 0.2)):
        length, kelvin = known[0].values("P"), known[0].values("temperature_K")
        axes.plot(kelvin, length, color=GREY, ls=":", lw=2.2, zorder=1.5, label="|P|")
    axes.axhline(0.0, color=GREY, lw=0.8, zorder=0)
    axes.set_ylabel("polarization (C/m$^2$)")
    _draw_failures(axes, known)
    _legend(figure, axes)
    return figure


def _against_temperature(sweeps: list[Sweep], curves: Sequence[_Curve], order_parameter: str) -> tuple[Figure, Axes]:
    """A frame with temperature on its x axis, the curves, and the brackets of the transitions."""
    figure = Figure(figsize=(6.2, 4.4), layout="constrained")
    axes = figure.subplots()
    kelvin = [sweep.values("temperature_K") for sweep in sweeps]
    everything = np.concatenate(kelvin)
    low, high = float(everything.min()), float(everything.max())
    spacing = min((float(np.min(np.diff(np.unique(k)))) for k in kelvin if len(np.unique(k)) > 1), default=100.0)
    margin = max(0.05 * (high - low), 0.35 * spacing)
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("temperature (K)")
    axes.grid(axis="y", color="#ececec", lw=0.7)
    several = len(sweeps) > 1
    for index, (sweep, temperatures) in enumerate(zip(sweeps, kelvin, strict=True)):
        # error bars of several sweeps side by side instead of on top of each other
        shift = 0.1 * spacing * (index - 0.5 * (len(sweeps) - 1))
        for curve in curves:
            place = (index if curve.color is None else curve.color) % len(COLORS)
            values = sweep.values(curve.name)
            label = f"{curve.label}, {_literal(sweep.name)}" if several else curve.label
            style: dict[str, Any] = {"color": COLORS[place], "marker": MARKERS[place], "label": label}
            style |= {"mec": COLORS[place], "mfc": COLORS[place] if curve.filled else "white"}
            errors = np.nan_to_num(sweep.values(curve.error))
            axes.errorbar(temperatures + shift, np.abs(values) if curve.size else values, errors, **BARS, **style)
    for index, sweep in enumerate(sweeps):
        color = COLORS[index % len(COLORS)] if several else GREY
        for found in transitions(sweep.rows):
            lower, upper = found.lower_K, found.upper_K
            bracketed = found.temperature_K is not None and found.order_parameter == order_parameter
            if bracketed and lower is not None and upper is not None:
                text = f"transition, {spell_kelvin(lower)} to {spell_kelvin(upper)} K"
                axes.axvspan(lower, upper, color=color, alpha=0.13, lw=0, zorder=0, label=text)
    return figure, axes


def _draw_failures(axes: Axes, sweeps: list[Sweep]) -> None:
    """A cross for every temperature that lost replicas, in a strip of its own below the data."""
    lost = {k: rows for k, sweep in enumerate(sweeps) if (rows := [r for r in sweep.rows if r.n_ok < r.n_replicas])}
    if not lost:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(low - (high - low) * (0.16 + 0.06 * len(lost)), high)
    place = axes.get_xaxis_transform()
    cross: dict[str, Any] = {"marker": "x", "ms": 6.5, "mew": 1.7, "ls": ""}
    words: dict[str, Any] = {"xytext": (0, 7), "textcoords": "offset points", "rotation": 90, "fontsize": 7.5}
    for strip, (index, rows) in enumerate(lost.items()):
        color = COLORS[index % len(COLORS)] if len(sweeps) > 1 else "black"
        height = 0.05 + 0.055 * strip
        for row in rows:
            axes.plot(row.temperature_K, height, color=color, transform=place, **cross)
            if len(lost) == 1:
                at = (row.temperature_K, height)
                axes.annotate(_loss(row), at, xycoords=place, ha="center", va="bottom", color=color, **words)
    if len(lost) > 1:
        axes.plot([], [], color="black", label="molten or failed", **cross)


def _loss(row: TemperatureSummary) -> str:
    """What happened to the lost replicas of a row, as short as a mark in a figure needs it."""
    if row.n_ok == 0:
        return row.status
    kinds = [part for part in row.replica_phases.split(", ") if part.split(" ")[0] in ("molten", "failed")]
    return ", ".join(f"{part.split(' ')[1]}/{row.n_replicas} {part.split(' ')[0]}" for part in kinds)


def _draw_experiment(axes: Axes, experiment: Experiment) -> None:
    left, right = axes.get_xlim()
    style: dict[str, Any] = {"marker": "*", "ms": 10, "mec": GREY, "ls": "", "zorder": 1.2}
    if left - 40.0 <= experiment.temperature_K <= right + 40.0:
        axes.set_xlim(min(left, experiment.temperature_K - 15.0), max(right, experiment.temperature_K + 15.0))
        axes.plot(experiment.temperature_K, experiment.c, mfc=GREY, label="experiment", **style)
        axes.plot(experiment.temperature_K, experiment.a, mfc="white", **style)
    if left <= experiment.transition_K <= right:
        text = f"experiment, $T_c$ = {experiment.transition_K:.0f} K"
        axes.axvline(experiment.transition_K, color=GREY, ls="--", lw=1.0, zorder=0.5, label=text)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(handles)), key=lambda i: not isinstance(handles[i], ErrorbarContainer))  # curves first
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    if len(handles) <= 6:
        axes.legend(handles, labels, loc="best")
    else:
        figure.legend(handles, labels, loc="outside lower center", ncols=3)


def _literal(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign in a name is no markup."""
    return text.replace("$", r"\$")
