"""Figures of a sweep: lattice and polarization against temperature, and the lattice of every replica against time.

Figures are built on matplotlib's object interface with a local style: nothing global changes and no display is needed.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from jaxpto.observables.lattice import UnitCell, lattice_parameters
from jaxpto.observables.summary import ReplicaRecord, TemperatureSummary, production_start, transitions
from jaxpto.observables.transition import Transition
from jaxpto.units import spell_kelvin

DOTS_PER_INCH = 200
MOST_PANELS = 32  # replicas shown in the time series; more would be unreadable and slow
MOST_POINTS = 1500  # per curve of a time series

# Okabe and Ito's palette: told apart with any colour vision, and in grey by the markers
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#8a8a8a"
SHADE = "#e4e4e4"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.labelsize": 10.5,
    "axes.titlesize": 9.5,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.minor.visible": False,
    "legend.fontsize": 8.5,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
    "lines.linewidth": 1.2,
    "lines.markersize": 5.5,
    "mathtext.fontset": "dejavusans",
}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One ladder of temperatures to draw.

    Attributes:
        name: what to call it in a legend.
        rows: one summary a temperature.
    """

    name: str
    rows: list[TemperatureSummary]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Measured values to compare with.

    Attributes:
        temperature_K: at which the lattice was measured.
        a, c: Angstrom.
        transition_K: tetragonal to cubic.
    """

    temperature_K: float
    a: float
    c: float
    transition_K: float


# room-temperature lattice and Curie point that the PTO-test compares with
LEAD_TITANATE = Experiment(temperature_K=298.0, a=3.904, c=4.152, transition_K=763.0)


def png(figure: Figure) -> bytes:
    """The figure as PNG, 200 dots per inch."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=DOTS_PER_INCH, facecolor="white")
    return buffer.getvalue()


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

    with matplotlib.rc_context(STYLE):
        figure, axes = _against_temperature(sweeps, draw, lambda found: found.order_parameter == "lattice")
        axes.set_ylabel("lattice parameter (Å)")
        if experiment is not None:
            _draw_experiment(axes, experiment)
        _draw_failures(axes, sweeps)
        _legend(axes)
    return figure


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

    with matplotlib.rc_context(STYLE):
        figure, axes = _against_temperature(known, draw, lambda found: found.order_parameter == "polarization")
        axes.axhline(0.0, color=GREY, lw=0.8, zorder=0)
        axes.set_ylabel("polarization (C/m$^2$)")
        _draw_failures(axes, known)
        _legend(axes)
    return figure


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
    with matplotlib.rc_context(STYLE):
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
