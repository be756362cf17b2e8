"""Panels against temperature that the figures of several methods share."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpto.reporting.style import DASHED, GREY
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


def dulong_petit(axes: Axes, subject: Subject) -> None:
    """The classical limit of the heat capacity, as a dashed line."""
    axes.axhline(subject.dulong_petit, color=GREY, lw=0.8, ls=DASHED, zorder=1, label="3 R for each atom")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(loc="best")
