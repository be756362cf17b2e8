"""Figures of sweeps against temperature: lattice parameters and polarization."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxpto.observables.summary import TemperatureSummary, transitions
from jaxpto.observables.transition import Transition
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


@styled()
def lattice_figure(sweeps: list[Sweep], experiment: Experiment | None = None) -> Figure:
    """Lattice parameters against temperature, filled for c and open for a, error bars of one standard deviation.

    c is the polar (longest) axis and a the mean of the two others; in a cubic phase c is the third axis.

    Args:
        sweeps: ladders to draw in one figure.
        experiment: grey marks to compare with, or None.
    """

    def draw(axes: Axes, sweep: Sweep, index: int, kelvin: np.ndarray, label: str) -> None:
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        for name, fill, text in (("c_polar", color, "c"), ("a_plane", "white", "a")):
            _curve(axes, kelvin, _column(sweep, name), _column(sweep, f"{name}_std"), color, marker, fill, label % text)

    figure, axes = _against_temperature(sweeps, draw, lambda found: found.order_parameter == "lattice")
    axes.set_ylabel("lattice parameter (Å)")
    if experiment is not None:
        _draw_experiment(axes, experiment)
    _draw_failures(axes, sweeps)
    _legend(axes)
    return figure


@styled()
def polarization_figure(sweeps: list[Sweep]) -> Figure | None:
    """|Px|, |Py| and Pz against temperature, error bars of one standard deviation; None where no sweep knows them.

    Of several sweeps, only the length of the mean vector, |P|, with its standard error.
    """
    known = [sweep for sweep in sweeps if np.isfinite(_column(sweep, "P")).any()]
    if not known:
        return None
    # where the polar axis is not z everywhere, the length of the mean vector tells more than its components
    show_length = any(row.polar_axis in ("a", "b", "mixed") for sweep in known for row in sweep.rows) or any(
        abs(row.P - abs(row.Pz)) > 0.1 * row.P for sweep in known for row in sweep.rows if row.P > 0.2
    )

    def draw(axes: Axes, sweep: Sweep, index: int, kelvin: np.ndarray, label: str) -> None:
        if len(known) > 1:
            color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
            _curve(axes, kelvin, _column(sweep, "P"), _column(sweep, "P_sem"), color, marker, color, label % "|P|")
            return
        components = [("Pz", "$P_z$", lambda p: p), ("Px", "$|P_x|$", np.abs), ("Py", "$|P_y|$", np.abs)]
        for (name, text, transform), color, marker in zip(components, COLORS, MARKERS, strict=False):
            fill = color if name == "Pz" else "white"
            values, errors = transform(_column(sweep, name)), _column(sweep, f"{name}_std")
            _curve(axes, kelvin, values, errors, color, marker, fill, text)
        if show_length:
            axes.plot(kelvin, _column(sweep, "P"), color=GREY, ls=":", lw=2.2, zorder=1.5, label="|P|")

    figure, axes = _against_temperature(known, draw, lambda found: found.order_parameter == "polarization")
    axes.axhline(0.0, color=GREY, lw=0.8, zorder=0)
    axes.set_ylabel("polarization (C/m$^2$)")
    _draw_failures(axes, known)
    _legend(axes)
    return figure


def _column(sweep: Sweep, name: str) -> np.ndarray:
    return np.array([getattr(row, name) for row in sweep.rows], np.float64)


def _against_temperature(
    sweeps: list[Sweep],
    draw: Callable[[Axes, Sweep, int, np.ndarray, str], None],
    wanted: Callable[[Transition], bool],
) -> tuple[Figure, Axes]:
    """A frame with temperature on its x axis, the curves, the transitions' brackets, and a cross for what failed."""
    figure = Figure(figsize=(6.2, 4.4), layout="constrained")
    axes = figure.subplots()
    kelvin = [_column(sweep, "temperature_K") for sweep in sweeps]
    everything = np.concatenate(kelvin)
    low, high = float(everything.min()), float(everything.max())
    spacing = min((float(np.min(np.diff(np.unique(k)))) for k in kelvin if len(np.unique(k)) > 1), default=100.0)
    margin = max(0.05 * (high - low), 0.35 * spacing)
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("temperature (K)")
    axes.grid(axis="y", color="#ececec", lw=0.7)
    brackets = []
    for index, (sweep, temperatures) in enumerate(zip(sweeps, kelvin, strict=True)):
        # error bars of several sweeps side by side instead of on top of each other
        shift = 0.0 if len(sweeps) == 1 else 0.1 * spacing * (index - 0.5 * (len(sweeps) - 1))
        draw(axes, sweep, index, temperatures + shift, "%s" if len(sweeps) == 1 else f"%s, {_literal(sweep.name)}")
        color = GREY if len(sweeps) == 1 else COLORS[index % len(COLORS)]
        for found in filter(wanted, transitions(sweep.rows)):
            if found.temperature_K is not None and found.lower_K is not None and found.upper_K is not None:
                text = f"transition, {spell_kelvin(found.lower_K)} to {spell_kelvin(found.upper_K)} K"
                brackets.append((found.lower_K, found.upper_K, color, text))
    for lower, upper, color, text in brackets:
        axes.axvspan(lower, upper, color=color, alpha=0.13, lw=0, zorder=0, label=text)
    return figure, axes


def _curve(
    axes: Axes,
    kelvin: np.ndarray,
    values: np.ndarray,
    errors: np.ndarray,
    color: str,
    marker: str,
    fill: str,
    label: str,
) -> None:
    axes.errorbar(
        kelvin,
        values,
        yerr=np.nan_to_num(errors),
        color=color,
        marker=marker,
        markerfacecolor=fill,
        markeredgecolor=color,
        capsize=2.5,
        elinewidth=0.9,
        label=label,
    )


def _draw_failures(axes: Axes, sweeps: list[Sweep]) -> None:
    """A cross for every temperature that lost replicas, in a strip of its own below the data."""
    lost = [[row for row in sweep.rows if row.n_ok < row.n_replicas] for sweep in sweeps]
    strips = [index for index, rows in enumerate(lost) if rows]
    if not strips:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(low - (high - low) * (0.16 + 0.06 * len(strips)), high)
    for strip, index in enumerate(strips):
        color = COLORS[index % len(COLORS)] if len(sweeps) > 1 else "black"
        height = 0.05 + 0.055 * strip
        for row in lost[index]:
            axes.plot(
                row.temperature_K, height, "x", color=color, ms=6.5, mew=1.7, transform=axes.get_xaxis_transform()
            )
            if len(strips) == 1:
                what = _loss(row)
                axes.annotate(
                    what,
                    (row.temperature_K, height),
                    xycoords=axes.get_xaxis_transform(),
                    xytext=(0, 7),
                    textcoords="offset points",
                    rotation=90,
                    ha="center",
                    va="bottom",
                    fontsize=7.5,
                    color=color,
                )
    if len(strips) > 1:
        axes.plot([], [], "x", color="black", ms=6.5, mew=1.7, ls="", label="molten or failed")


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


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(handles)), key=lambda i: not isinstance(handles[i], ErrorbarContainer))  # curves first
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    if len(handles) <= 6:
        axes.legend(handles, labels, loc="best")
    else:
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.legend(handles, labels, loc="outside lower center", ncols=3)


def _literal(text: str) -> str:
    """Text that matplotlib shows as it is: dollar signs and percent signs in names are no markup."""
    return text.replace("$", r"\$").replace("%", "%%")
