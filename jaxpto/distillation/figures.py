"""Figures of a distillation: how the committee came to agree, and the lattice of student and teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jaxpto.distillation.exploration import Rung
from jaxpto.distillation.proof import Agreement
from jaxpto.distillation.rounds import Round
from jaxpto.reporting.style import COLORS, DASHED, GREY, MARKERS, styled

DISAGREEMENT_CAPTION = (
    "Disagreement of the committee along the ladders of each round: 95 % of the samples lie below it (largest "
    "deviation of the force on an atom). Dashed: what counts as agreement. Open symbols: a replica melted or failed."
)
LATTICE_CAPTION = (
    "Longest axis over the mean of the two others, and volume of the unit cell, against temperature: the student's "
    "ladder (filled), the teacher's own in the same cell (open) where it ran, and the student's volume reweighted to "
    "the teacher's ensemble (crosses) where enough structures carry it."
)


@styled()
def disagreement_figure(rounds: Sequence[Round], final: Sequence[Rung], agreement: float) -> Figure:
    """Disagreement against temperature, a panel for each structure and a curve for each round.

    Args:
        rounds: all rounds.
        final: the finished student's ladder.
        agreement: deviation that counts as agreement, eV/Angstrom.
    """
    names = list(dict.fromkeys(one.crystal for one in final))
    figure = Figure(figsize=(0.8 + 3.4 * len(names), 3.2), layout="constrained")
    curves = [(f"round {one.number}", one.rungs) for one in rounds] + [("final", list(final))]
    for k, (axes, name) in enumerate(
        zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True)
    ):
        for j, (label, rungs) in enumerate(curves):
            own = [one for one in rungs if one.crystal == name]
            shade = "black" if label == "final" else str(0.85 - 0.6 * (j + 1) / len(curves))
            _points(axes, own, [one.deviation for one in own], [math.nan] * len(own), shade, MARKERS[j % 7], label)
        axes.axhline(agreement, color=GREY, ls=DASHED, lw=0.8)
        axes.set_title(name)
        axes.set_xlabel("temperature (K)")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        if k == 0:
            axes.set_ylabel("95 % deviation (eV/Å)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(curves), 8))
    return figure


@styled()
def lattice_figure(student: Sequence[Rung], teacher: Sequence[Rung], agreements: Sequence[Agreement]) -> Figure:
    """c/a and volume against temperature of student, teacher, and student reweighted to the teacher.

    Args:
        student: the finished student's ladder.
        teacher: the teacher's own; may be empty.
        agreements: reweighted averages.
    """
    names = list(dict.fromkeys(one.crystal for one in student))
    figure = Figure(figsize=(7.4, 3.3), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, quantity, label in zip(panels, ("c/a", "volume"), ("c / a", "volume (Å$^3$)"), strict=True):
        for k, name in enumerate(names):
            for rungs, who, filled in ((student, "student", True), (teacher, "teacher", False)):
                own = [one for one in rungs if one.crystal == name and quantity in one.values]
                if own:
                    means, errors = ([one.values[quantity][j] for one in own] for j in (0, 1))
                    _points(
                        axes, own, means, errors, COLORS[k], MARKERS[k], f"{who} from {name}", filled=filled,
                        dashed=not filled,
                    )  # fmt: skip
            weighed = [one for one in agreements if one.crystal == name and math.isfinite(one.reweighted[quantity])]
            if weighed and quantity == "volume":
                axes.plot(
                    [one.temperature for one in weighed], [one.reweighted[quantity] for one in weighed], "x",
                    color=COLORS[k], label=f"reweighted from {name}",
                )  # fmt: skip
        axes.set_xlabel("temperature (K)")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylabel(label)
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _points(
    axes: Axes,
    rungs: Sequence[Rung],
    values: Sequence[float],
    errors: Sequence[float],
    color: str,
    marker: str,
    label: str,
    *,
    filled: bool = True,
    dashed: bool = False,
) -> None:
    """A curve with error bars; open symbols where a replica was lost."""
    kelvin = np.array([one.temperature for one in rungs])
    lost = np.array([one.status != "ok" for one in rungs], bool)
    mean, error = np.array(values, np.float64), np.nan_to_num(np.array(errors, np.float64))
    axes.errorbar(kelvin, mean, error, color=color, lw=1.0, ls=DASHED if dashed else "-", capsize=2, label=None)
    for part, face in ((~lost, color if filled else "white"), (lost, "white")):
        if part.any():
            axes.plot(kelvin[part], mean[part], marker, color=color, mfc=face, ms=4.5,
                      label=label if part is not lost or lost.all() else None)  # fmt: skip
