"""The figure of `benchmarks.scaling_law`: force error against the number of frames, and against cost of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jaxpto.reporting.style import COLORS, MARKERS, png, styled

SPACE = 0.055  # between labels, in heights of the axes


def spread(heights: list[float], space: float) -> list[float]:
    """The heights moved apart, as little as their order allows, so that neighbours keep a distance."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    found = [heights[place] for place in order]
    for _ in range(200):
        for k in range(len(found) - 1):
            lack = space - (found[k + 1] - found[k])
            if lack > 1e-6:
                found[k] -= 0.5 * lack
                found[k + 1] += 0.5 * lack
    back = dict(zip(order, found, strict=True))
    return [back[place] for place in range(len(heights))]


@styled()
def draw(stored: dict[str, Any], path: Path) -> None:
    """Write the figure: one colour a variant, a label at the end of its line."""
    variants: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(stored["rows"].values(), key=lambda row: row["frames"]):
        variants.setdefault(row["variant"], []).append(row)
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1.0))
    for number, (variant, rows) in enumerate(variants.items()):
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
        if number >= len(COLORS):
            style["markerfacecolor"] = "white"
        errors = [row["forces_meV_per_A"] for row in rows]
        left.plot([row["frames"] for row in rows], errors, **style, label=variant)
        right.plot([row["processor_hours"] for row in rows], errors, **style | {"linestyle": "none"})
        course = rows[-1]["course"]
        hours = [rows[-1]["processor_hours"] * one["step"] / rows[-1]["steps"] for one in course]
        right.plot(hours, [one["forces"] for one in course], color=style["color"], lw=0.8)
    every = sorted({row["frames"] for rows in variants.values() for row in rows})
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.set_xlim(0.75 * min(every), 12.0 * max(every))  # room for the labels
    left.set_xticks(every, [str(count) for count in every])
    low, high = left.get_ylim()
    few, many = (1.0, 2.0, 5.0), (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    left.yaxis.set_major_locator(LogLocator(subs=few if high > 20.0 * low else many))
    right.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.set_xlabel("DFT frames trained on")
    left.set_ylabel("force error on held-out blocks (meV/$\\mathrm{\\AA}$, rms)")
    right.set_xlabel("processor hours of the training")
    _label(left, variants)
    path.write_bytes(png(figure))


def _label(axes: Axes, variants: dict[str, list[dict[str, Any]]]) -> None:
    """The name of each variant right of its last point."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((rows[-1]["frames"], rows[-1]["forces_meV_per_A"])) for rows in variants.values()]
    heights = spread([float(end[1]) for end in ends], SPACE)
    right = max(float(end[0]) for end in ends)
    for number, (variant, end, height) in enumerate(zip(variants, ends, heights, strict=True)):
        color = COLORS[number % len(COLORS)]
        axes.annotate(
            variant, xy=end, xytext=(right + 0.035, height), xycoords="axes fraction", textcoords="axes fraction",
            color=color, fontsize=8.5, va="center", arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5},
        )  # fmt: skip
