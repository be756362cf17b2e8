"""Figures of the PTO-test in the paper's layout: a panel for each model, common axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jaxpto.observables.summary import TemperatureSummary
from jaxpto.perovskite.literature import Experiment
from jaxpto.pto.answers import Answer, Ladder
from jaxpto.pto.paper import REFERENCES, row_of
from jaxpto.pto.verdict import transition_of
from jaxpto.reporting.style import COLORS, GREY, MARKERS, styled

COLUMNS = 3  # panels beside each other
BARS: Any = {"capsize": 2.0, "elinewidth": 0.8, "ms": 4.0, "lw": 1.0}


@styled()
def cells_figure(answers: Sequence[Answer]) -> Figure:
    """c/a and the energy between the phases at 0 K by model, the paper's beside ours, DFT and experiment as lines."""
    known = [(answer, answer.cells) for answer in answers if answer.cells is not None]
    figure = Figure(figsize=(7.2, 1.3 + 0.32 * len(known)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(known))[::-1]
    for panel, name, label in zip(panels, ("c_over_a", "energy_difference"), ("c/a", "dE (eV/f.u.)"), strict=True):
        panel.plot([getattr(cells, name) for _, cells in known], places, "o", color=COLORS[0], label="jaxpto")
        theirs = [(row_of(answer.model), y) for (answer, _), y in zip(known, places, strict=True)]
        shown = [(getattr(row, name), y) for row, y in theirs if row is not None and getattr(row, name) is not None]
        if shown:
            x, y = zip(*shown, strict=True)
            panel.plot(x, y, "o", mfc="none", mec=COLORS[1], ms=9.0, mew=1.1, label="paper")
        for number, row in enumerate(row for row in REFERENCES if getattr(row, name) is not None):
            line = (GREY, ("-", "--", ":", "-.")[number % 4])
            panel.axvline(getattr(row, name), color=line[0], ls=line[1], lw=0.9, zorder=0, label=row.name)
        panel.set_xlabel(label)
        panel.set_yticks(places, [answer.model for answer, _ in known], parse_math=False)
        panel.set_ylim(-0.7, len(known) - 0.3)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", color="#ececec", lw=0.7)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6)
    return figure


@styled()
def npt_figure(answers: Sequence[Answer], experiment: Experiment | None) -> Figure:
    """a and c against temperature at constant pressure, a panel for each model; crosses where the crystal is lost."""
    known = [answer for answer in answers if answer.npt]
    figure, panels = _panels(len(known))
    several = any(len(answer.npt) > 1 for answer in known)
    for panel, answer in zip(panels, known, strict=False):
        for ladder, (color, marker) in zip(answer.npt, zip(COLORS, MARKERS, strict=True), strict=False):
            style = {"color": color, "marker": marker, **BARS}
            label = f", from {ladder.start}" if several else ""
            _errorbar(panel, ladder.rows, "c_polar", style | {"label": f"c{label}"})
            _errorbar(panel, ladder.rows, "a_plane", style | {"mfc": "white", "label": f"a{label}"})
            _mark_lost(panel, ladder, color if several else "black", 0.06 if ladder.start == "cubic" else 0.0)
            _shade_transition(panel, ladder, "lattice", color if several else GREY)
        if experiment is not None:
            panel.axvline(experiment.transition_K, color=GREY, ls="--", lw=0.9, zorder=0)
            for length, fill in ((experiment.c, GREY), (experiment.a, "white")):
                star: dict[str, Any] = {"mec": GREY, "mfc": fill, "ms": 8, "ls": "", "zorder": 1.2}
                panel.plot(experiment.temperature_K, length, "*", label="experiment", **star)
        panel.set_title(answer.model, parse_math=False)
    _finish(figure, panels, len(known), "lattice parameter (Å)")
    return figure


@styled()
def nvt_figure(answers: Sequence[Answer]) -> Figure:
    """P_z against temperature in the experimental lattice, a panel for each model."""
    known = [(answer, answer.nvt) for answer in answers if answer.nvt is not None and _polarized(answer.nvt)]
    figure, panels = _panels(len(known))
    for panel, (answer, ladder) in zip(panels, known, strict=False):
        _errorbar(panel, ladder.rows, "Pz", {"color": COLORS[0], "marker": "o", "label": "$P_z$", **BARS})
        _mark_lost(panel, ladder, "black", 0.0)
        _shade_transition(panel, ladder, "polarization", GREY)
        panel.axhline(0.0, color=GREY, lw=0.8, zorder=0)
        panel.set_title(answer.model, parse_math=False)
    _finish(figure, panels, len(known), "$P_z$ (C/m$^2$)")
    return figure


@styled()
def speed_figure(answers: Sequence[Answer]) -> Figure:
    """Time of a step against the number of atoms, all models in one frame."""
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes: set[int] = set()
    for number, answer in enumerate(answer for answer in answers if answer.speed):
        atoms = [point.atoms for point in answer.speed]
        sizes |= set(atoms)
        times = [1e3 * point.seconds_per_step for point in answer.speed]
        place = number % len(COLORS)
        line = "-" if number < len(COLORS) else "--"
        label = answer.model.replace("$", r"\$")
        axes.plot(atoms, times, color=COLORS[place], marker=MARKERS[place], ls=line, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted(sizes), [f"{size:,}" if size in _apart(sorted(sizes)) else "" for size in sorted(sizes)])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("atoms")
    axes.set_ylabel("ms per step")
    axes.grid(color="#ececec", lw=0.7)
    figure.legend(loc="outside right upper")
    return figure


def has_polarization(answers: Sequence[Answer]) -> bool:
    """Whether there is something to draw in `nvt_figure`."""
    return any(answer.nvt is not None and _polarized(answer.nvt) for answer in answers)


def _apart(sizes: list[int]) -> set[int]:
    """Those of rising sizes whose labels do not overlap on a logarithmic axis, the largest among them."""
    chosen = sizes[-1:]
    for size in reversed(sizes[:-1]):
        if math.log(chosen[-1] / size) > 0.12 * math.log(sizes[-1] / sizes[0]):
            chosen.append(size)
    return set(chosen)


def _polarized(ladder: Ladder) -> bool:
    return any(not math.isnan(row.Pz) for row in ladder.rows)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, max(1, count))
    rows = -(-count // columns) or 1
    figure = Figure(figsize=(3.0 * columns + 0.6, 2.5 * rows + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel())
    for panel in panels:
        panel.grid(axis="y", color="#ececec", lw=0.7)
        panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return figure, panels


def _errorbar(panel: Axes, rows: Sequence[TemperatureSummary], name: str, style: dict[str, Any]) -> None:
    kelvin = [row.temperature_K for row in rows]
    values = [getattr(row, name) for row in rows]
    panel.errorbar(kelvin, values, np.nan_to_num([getattr(row, f"{name}_std") for row in rows]), **style)


def _mark_lost(panel: Axes, ladder: Ladder, color: str, lift: float) -> None:
    """Crosses in a strip at the foot for temperatures at which no replica came through."""
    lost = [row.temperature_K for row in ladder.rows if row.n_ok == 0]
    if lost:
        height = np.full(len(lost), 0.05 + lift)
        panel.plot(lost, height, "x", color=color, ms=5.5, mew=1.5, transform=panel.get_xaxis_transform(), label="lost")


def _shade_transition(panel: Axes, ladder: Ladder, order_parameter: str, color: str) -> None:
    found = transition_of(ladder.rows, order_parameter)
    if found is not None and found.lower_K is not None and found.upper_K is not None:
        panel.axvspan(found.lower_K, found.upper_K, color=color, alpha=0.16, lw=0, zorder=0)


def _finish(figure: Figure, panels: list[Axes], used: int, label: str) -> None:
    columns = min(COLUMNS, max(1, used))
    for number, panel in enumerate(panels[:used]):
        if number % columns == 0:
            panel.set_ylabel(label)
        if number + columns >= used:
            panel.set_xlabel("temperature (K)")
            panel.tick_params(labelbottom=True)
    for panel in panels[used:]:
        panel.set_visible(False)
    named: dict[str, Any] = {}
    for panel in panels[:used]:
        for handle, text in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(text, handle)
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=min(5, max(1, len(named))))
