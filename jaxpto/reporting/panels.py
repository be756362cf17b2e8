"""Panels against temperature that the figures of several methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpto.reporting.columns import TEMPERATURE, Column, Row
from jaxpto.reporting.style import COLORS, DASHED, GREY
from jaxpto.reporting.subject import Subject


def four_panels(labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Two by two panels with their vertical labels above a common axis of temperature; call it within `styled`."""
    figure = Figure(figsize=(8.4, 6.0), layout="constrained")
    panels = list(figure.subplots(2, 2, sharex=True).ravel())
    for axes, label in zip(panels, labels, strict=True):
        axes.set_ylabel(label)
        axes.margins(x=0.03)
    for axes in panels[2:]:
        axes.set_xlabel("temperature (K)")
    return figure, panels


def band(axes: Axes, rows: Sequence[Row], column: Column, label: str) -> None:
    """A curve with a shade of two standard errors."""
    kelvin, value, error = TEMPERATURE.values(rows), column.values(rows), column.errors(rows)
    axes.fill_between(kelvin, value - 2 * error, value + 2 * error, color=COLORS[0], alpha=0.2, lw=0)
    axes.plot(kelvin, value, color=COLORS[0], label=label)


def bars(axes: Axes, rows: Sequence[Row], column: Column, label: str, color: str = COLORS[0]) -> None:
    """Points with bars of one standard error."""
    style: dict[str, Any] = {"fmt": "o", "ms": 4.5, "capsize": 2, "lw": 1, "zorder": 3}
    axes.errorbar(TEMPERATURE.values(rows), column.values(rows), column.errors(rows), color=color, label=label, **style)


def dulong_petit(axes: Axes, subject: Subject) -> None:
    """The classical limit of the heat capacity, as a dashed line."""
    axes.axhline(subject.dulong_petit, color=GREY, lw=0.8, ls=DASHED, zorder=1, label="3 R for each atom")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(loc="best")
