"""The learning curve of a training: its errors, and those on held-out frames, against the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jaxpto.reporting.parity_figure import LINE, PANEL, legend_below, legend_columns, trajectory_colors
from jaxpto.reporting.style import DASHED, GREY, styled

QUANTITIES = {
    "energy": "energy RMSE (meV/atom)",
    "forces": "force RMSE (meV/Å)",
    "virial": "virial RMSE (meV/atom)",
    "moments": "moments RMSE (10$^{-3}$ μB)",
}
TRAINING, RATE = "training (running)", "learning rate"
CAPTION = (
    "Root-mean-square errors against the steps of the training: of the frames just trained on (black) and of the "
    "held-out frames of each trajectory. Grey, on a scale of its own from zero: the learning rate."
)

LearningRow = Mapping[str, Any]
"""One validation of a training.

"step"; "seconds" so far; "loss", "energy" (meV/atom), "forces" (meV/A), "virial" (meV/atom): running averages of the
training; "learning_rate"; "validation": the same errors of each held-out trajectory, by its name; and of magnetic
"moments" (1e-3 Bohr magnetons), where a model has them. An error is None where there is no label.
"""


@styled()
def learning_curve(rows: Sequence[LearningRow]) -> Figure:
    """Errors of energy, forces, virial and (if there are any) magnetic moments in panels with logarithmic axes.

    Args:
        rows: one for each validation, at least one.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["validation"]))
    colors = dict(zip(names, trajectory_colors(len(names)), strict=True))
    shown = [TRAINING, *names, RATE]
    columns = legend_columns(shown)
    moments = any(one.get("moments") is not None for row in rows for one in (row, *row["validation"].values()))
    count = 4 if moments else 3
    figure = Figure(figsize=(count * PANEL, 3.0 + LINE * -(-len(shown) // columns)), layout="constrained")
    steps = np.array([row["step"] for row in rows])
    panels = figure.subplots(1, count)
    for axes, (quantity, label) in zip(panels, list(QUANTITIES.items())[:count], strict=True):
        errors = {TRAINING: [row.get(quantity) for row in rows]}
        errors |= {name: [row["validation"].get(name, {}).get(quantity) for row in rows] for name in names}
        for name, values in errors.items():
            size = np.array([np.nan if one is None else one for one in values], np.float64)
            size[size <= 0.0] = np.nan  # no logarithm
            axes.plot(steps, size, color=colors.get(name, "black"), marker="o", ms=2.5, lw=1.0, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.margins(x=0.03)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.get_lines()):
            axes.text(0.5, 0.5, "no labels", transform=axes.transAxes, ha="center", va="center", color=GREY)
            axes.set_xticks([])
            axes.set_yticks([])
            continue
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        rate = axes.twinx()
        rate.plot(steps, [row["learning_rate"] for row in rows], color=GREY, lw=0.8, ls=DASHED, alpha=0.6, label=RATE)
        rate.set_ylim(bottom=0.0)
        rate.set_yticks([])
        axes.set_zorder(rate.get_zorder() + 1)  # the errors before the rate
        axes.patch.set_visible(False)
    curves = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    legend_below(figure, list(curves.values()), columns)
    return figure
