"""How figures look: matplotlib's object interface with a local style, so that nothing global changes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Generator
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOTS_PER_INCH = 200

# Okabe and Ito's palette: told apart with any colour vision, and in grey by the markers
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#8a8a8a"
SHADE = "#e4e4e4"
DASHED = (0, (4, 3))
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


@contextlib.contextmanager
def styled() -> Generator[None]:
    """The style, for the body of a `with` statement or, as a decorator, of a function that draws."""
    with matplotlib.rc_context(STYLE):
        yield


def png(figure: Figure) -> bytes:
    """The figure as PNG, 200 dots per inch."""
    buffer = io.BytesIO()
    with styled():
        FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=DOTS_PER_INCH, facecolor="white")
    return buffer.getvalue()
