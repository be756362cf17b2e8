"""The figure of `benchmarks.speed`: time of a step, and of a step and atom, against the number of atoms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jaxpto.reporting.style import COLORS, STYLE

MARKERS = {"jaxpto": ("o", "-"), "batch": ("s", "--"), "ase": ("^", ":"), "torchsim": ("D", "-.")}
NAMES = {"jaxpto": "jaxpto", "batch": "jaxpto, 8 temperatures", "ase": "original, ASE", "torchsim": "torch-sim"}


def apart(sizes: list[int]) -> set[int]:
    """Those of the ascending sizes whose labels do not overlap on a logarithmic axis, the largest among them."""
    chosen = [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if math.log(chosen[-1] / size) > 0.12 * math.log(sizes[-1] / sizes[0]):
            chosen.append(size)
    return set(chosen)


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Write the figure: one colour a model, one line style an engine."""
    models = list(dict.fromkeys(name.split()[0] for name in results))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, points in results.items():
            model, engine = name.split()
            found = [one for one in points if "ms" in one]
            marker, line = MARKERS[engine]
            style = {
                "marker": marker,
                "ls": line,
                "color": COLORS[models.index(model) % len(COLORS)],
                "ms": 4,
                "lw": 1.2,
            }
            atoms = [one["atoms"] for one in found]
            label = f"{model}, {NAMES[engine]}"
            left.plot(atoms, [one["ms"] / one["replicas"] for one in found], label=label, **style)
            right.plot(atoms, [one["us_per_atom"] for one in found], **style)
        for axes, text in ((left, "ms per step and replica"), (right, "us per atom and step")):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("atoms")
            axes.set_ylabel(text.replace("us", r"$\mu$s"))
            sizes = sorted({one["atoms"] for points in results.values() for one in points if "ms" in one})
            axes.set_xticks(sizes, [f"{size:,}" if size in apart(sizes) else "" for size in sizes])
            low, high = axes.get_ylim()
            subs = (1.0, 2.0, 5.0) if high > 10.0 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
            axes.yaxis.set_major_locator(LogLocator(subs=subs))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(NullLocator())
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(path, dpi=200)
