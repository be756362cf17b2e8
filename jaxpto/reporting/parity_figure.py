"""The parity plot: predicted energies, forces and stresses against their labels, coloured by trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxpto.reporting.parity import MEV, Parity, Quantities, stress_of
from jaxpto.reporting.style import COLORS, GREY, styled

DRAWN = 20_000  # points of a panel at most; more are a blot
OUTLIERS = 200  # of them, the points farthest from the diagonal
PANEL = 3.0  # inches
LINE = 0.22  # inches of a line of the legend
LETTERS = 110  # in one
CAPTION = (
    "Predictions against labels, coloured by trajectory: energies per atom relative to those of the elements, "
    "components of forces and of the stress (positive in tension). RMSE and MAE are those of all points; of more than "
    f"{DRAWN} points of a panel a random choice is drawn, the {OUTLIERS} farthest from the diagonal among them."
)


@styled()
def parity_figure(parities: Sequence[Parity]) -> Figure:
    """Panels of predictions against labels: energy per atom, components of forces and of stress, any magnetic moments.

    Args:
        parities: labels and predictions of at least one trajectory.
    """
    colors = trajectory_colors(len(parities))
    columns = legend_columns([parity.name for parity in parities])
    lines = -(-len(parities) // columns) if len(parities) > 1 else 0
    quantities: tuple[tuple[str, str, Callable[[Parity, Quantities], np.ndarray]], ...] = (
        ("energy per atom", "meV/atom", lambda parity, one: MEV * one.energies / parity.counts),
        ("force components", "eV/Å", lambda parity, one: one.forces.ravel()),
        ("stress components", "GPa", lambda parity, one: stress_of(one, parity.volumes).ravel()),
        ("magnetic moments", "μB", lambda parity, one: one.moments),
    )
    moments = any(np.isfinite(parity.moment_errors).any() for parity in parities)
    count = 4 if moments else 3
    figure = Figure(figsize=(PANEL * count, 3.15 + LINE * lines), layout="constrained")
    panels = figure.subplots(1, count)
    for axes, (title, unit, values) in zip(panels, quantities[:count], strict=True):
        labels = [values(parity, parity.labels) for parity in parities]
        predictions = [values(parity, parity.predictions) for parity in parities]
        axes.set_title(title)
        axes.set_xlabel(f"label ({unit})")
        axes.set_ylabel(f"prediction ({unit})")
        _draw(axes, labels, predictions, colors, ("meV/Å", MEV) if unit == "eV/Å" else (unit, 1.0))
    if len(parities) > 1:
        marks = [
            Line2D([], [], marker="o", ls="", ms=4.5, color=color, label=parity.name)
            for parity, color in zip(parities, colors, strict=True)
        ]
        legend_below(figure, marks, columns)
    return figure


def legend_below(figure: Figure, marks: Sequence[Line2D], columns: int) -> None:
    """A legend below the panels, whose names are no formulas."""
    legend = figure.legend(handles=marks, loc="outside lower center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)


def legend_columns(names: Sequence[str]) -> int:
    """Number of columns in which a legend below the panels holds these names."""
    return min(len(names), max(1, LETTERS // (6 + max(map(len, names)))))


def trajectory_colors(count: int) -> list[str]:
    """A colour for each of `count` trajectories, none black: the palette of all figures, or a map where it is short."""
    if count < len(COLORS):
        return list(COLORS[:count])
    chosen = matplotlib.colormaps["turbo"](np.linspace(0.04, 0.96, count))
    return [matplotlib.colors.to_hex(color) for color in chosen]


def _draw(
    axes: Axes,
    labels: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    colors: Sequence[str],
    error: tuple[str, float],
) -> None:
    """Points of all trajectories in random order, so that none covers the others, and their errors."""
    which = np.concatenate([np.full(len(values), index) for index, values in enumerate(labels)])
    x, y = np.concatenate(labels), np.concatenate(predictions)
    known = np.isfinite(x) & np.isfinite(y)
    which, x, y = which[known], x[known], y[known]
    axes.set_box_aspect(1.0)
    if not len(x):
        axes.text(0.5, 0.5, "not compared", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    unit, factor = error
    rmse, mae = factor * np.sqrt(np.square(y - x).mean()), factor * np.abs(y - x).mean()
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    room = 0.06 * (high - low) or 0.5
    ends = (low - room, high + room)
    axes.plot(ends, ends, color=GREY, lw=0.8, zorder=1)
    drawn = _thinned(np.abs(y - x))
    few = len(drawn) < 500
    axes.scatter(
        x[drawn],
        y[drawn],
        s=9.0 if few else 3.0,
        c=np.array(colors)[which[drawn]],
        alpha=0.8 if few else 0.5,
        linewidths=0,
        zorder=2,
    )
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.locator_params(nbins=5)
    text = f"RMSE {_short(rmse)} {unit}\nMAE {_short(mae)} {unit}\n{len(x)} points"
    behind = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=8.5, bbox=behind, zorder=3)


def _thinned(distance: np.ndarray) -> np.ndarray:
    """Indices of the points to draw, in random order: all of few, else the outliers and a choice of the others."""
    order = np.random.default_rng(0).permutation(len(distance))
    if len(order) <= DRAWN:
        return order
    far = np.argpartition(-distance, OUTLIERS)[:OUTLIERS]
    some = order[: DRAWN - OUTLIERS]
    return np.concatenate([some[~np.isin(some, far)], far])


def _short(value: float) -> str:
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"
