"""The deviations of a committee against the true errors of its model, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxpto.models.committee import ErrorScale
from jaxpto.reporting.style import COLORS, DASHED, MARKERS, styled

DEVIATION_FIGURE = "force_deviation.png"
CAPTION = (
    "Error of the model's forces against the deviation of its committee, one mark a held-out frame: the largest of an "
    "atom, and the root mean square over its atoms. Dashed: error = factor times deviation. Black-edged: root mean "
    "squares of bins with equally many frames."
)

Measure = tuple[str, Float[np.ndarray, " f"], Float[np.ndarray, " f"], ErrorScale]
"""Its name, deviations [f] and errors [f] of frames in eV/Angstrom, and the scale between them."""


@styled()
def deviation_figure(measures: Sequence[Measure]) -> Figure:
    """Errors against deviations, both logarithmic."""
    figure = Figure(figsize=(4.2, 4.1), layout="constrained")
    axes = figure.subplots()
    for (name, deviations, errors, scale), color, marker in zip(measures, COLORS, MARKERS, strict=False):
        x, y = 1e3 * np.asarray(deviations), 1e3 * np.asarray(errors)
        axes.plot(x, y, ls="", marker=marker, ms=3, color=color, alpha=0.45, mec="none")
        ends = np.array([x[x > 0].min(), x.max()])
        label = f"{name}: error = {scale.factor:.3g} x deviation"
        axes.plot(ends, scale.factor * ends, ls=DASHED, color=color, marker=marker, ms=0, label=label)
        bins = 1e3 * np.array([one[:2] for one in scale.bins])
        axes.plot(bins[:, 0], bins[:, 1], ls="", marker=marker, ms=6, mfc=color, mec="black", mew=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("deviation of the committee (meV/Å)")
    axes.set_ylabel("error of the forces (meV/Å)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=1)
    return figure
