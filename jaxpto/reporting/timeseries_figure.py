"""The lattice of every replica of a sweep against time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from jaxpto.observables.lattice import UnitCell, lattice_parameters
from jaxpto.observables.summary import ReplicaRecord, production_start
from jaxpto.reporting.style import COLORS, SHADE, STYLE, styled
from jaxpto.units import spell_kelvin

MOST_PANELS = 32  # replicas shown; more would be unreadable and slow
MOST_POINTS = 1500  # of a curve


@styled()
def timeseries_figure(records: list[ReplicaRecord], unit: UnitCell, equilibration: float) -> Figure:
    """a, b and c of every replica against time, one panel each, the equilibration shaded.

    Args:
        records: all replicas; the first 32 by temperature are shown.
        unit: the cell whose axes are drawn.
        equilibration: fraction of a run left out of the averages.
    """
    ordered = sorted(records, key=lambda r: (r.pressure_GPa, r.temperature_K))[:MOST_PANELS]
    columns = max(1, math.ceil(math.sqrt(len(ordered))))
    if columns >= 3:  # of three and four columns, the one that leaves fewer panels empty
        columns = min((4, 3), key=lambda n: -len(ordered) % n)
    lines = max(1, math.ceil(len(ordered) / columns))
    several = len({(r.temperature_K, r.pressure_GPa) for r in ordered}) < len(ordered)
    size = (max(5.0, 2.5 * columns + 0.6), max(3.0, 1.7 * lines + 0.95))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for panel in grid.flat[len(ordered) :]:
        panel.set_visible(False)
    for number, (panel, record) in enumerate(zip(grid.flat, ordered, strict=False)):
        _timeseries_panel(panel, record, unit, equilibration, several)
        panel.tick_params(labelbottom=number + columns >= len(ordered))
    start, end = _time_span(ordered)
    grid[0, 0].set_xlim(start, end)
    grid[0, 0].set_ylim(_common_limits(ordered, unit))
    note = f" - first {len(ordered)} of {len(records)} replicas" if len(records) > len(ordered) else ""
    figure.supxlabel(f"time (ps){note}", fontsize=STYLE["axes.labelsize"])
    figure.supylabel("lattice parameter (Å)", fontsize=STYLE["axes.labelsize"])
    curves = zip("abc", (COLORS[0], COLORS[2], COLORS[1]), strict=True)
    handles: list[Any] = [Line2D([], [], color=color, label=name) for name, color in curves]
    handles.append(Patch(facecolor=SHADE, label="equilibration"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def _timeseries_panel(panel: Axes, record: ReplicaRecord, unit: UnitCell, equilibration: float, several: bool) -> None:
    title = f"{spell_kelvin(record.temperature_K)} K"
    if record.pressure_GPa != 0.0:
        title += f", {record.pressure_GPa:g} GPa"
    panel.set_title(f"{title}, replica {record.replica}" if several else title, pad=3.5)
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_locator(MaxNLocator(4))
    frames = record.time_ps.shape[0]
    if frames:
        every = max(1, frames // MOST_POINTS)
        time = record.time_ps[::every]
        lengths = lattice_parameters(record.cell[::every], unit).lengths
        for axis, color in ((2, COLORS[1]), (1, COLORS[2]), (0, COLORS[0])):
            panel.plot(time, lengths[:, axis], color=color, lw=0.8, marker="." if frames == 1 else "")
        if record.status == "ok":
            start = record.time_ps[production_start(record.time_ps, equilibration)]
            panel.axvspan(float(record.time_ps[0]), float(start), color=SHADE, lw=0, zorder=0)
    if record.status != "ok":
        where = record.status if record.step_failed is None else f"{record.status} at step {record.step_failed}"
        panel.plot(0.965, 0.09, "x", color="black", ms=7, mew=1.8, transform=panel.transAxes, clip_on=False, zorder=5)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
        panel.text(
            0.91, 0.09, where, transform=panel.transAxes, ha="right", va="center", fontsize=8, bbox=box, zorder=5
        )


def _time_span(records: list[ReplicaRecord]) -> tuple[float, float]:
    starts = [float(r.time_ps[0]) for r in records if len(r.time_ps)]
    ends = [float(r.time_ps[-1]) for r in records if len(r.time_ps)]
    start, end = min(starts, default=0.0), max(ends, default=1.0)
    return (start, end) if end > start else (start - 0.5, start + 0.5)


def _common_limits(records: list[ReplicaRecord], unit: UnitCell) -> tuple[float, float] | None:
    """Range that holds nearly all lengths of the replicas that came through (of all, if none did)."""
    chosen = [r for r in records if r.status == "ok" and len(r.time_ps)] or [r for r in records if len(r.time_ps)]
    if not chosen:
        return None
    every = [lattice_parameters(r.cell, unit).lengths.reshape(-1) for r in chosen]
    low, high = np.nanpercentile(np.concatenate(every), [0.1, 99.9])
    margin = max(0.02, 0.12 * (high - low))
    return float(low - margin), float(high + margin)
