"""Tables, figure and sentence on the errors of a model, for the pages of an evaluation and of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxpto.reporting.columns import Row
from jaxpto.reporting.parity import ERROR_COLUMNS, WORST_COLUMNS, Parity, shown_columns, worst_frames
from jaxpto.reporting.parity_figure import CAPTION, parity_figure
from jaxpto.reporting.sections import Picture, ResultTable, picture

ERRORS, PARITY_FIGURE = "errors", "parity.png"  # stem of CSV and JSON, and the figure beside them
WORST = 10  # frames that are named
HOW = (
    "MAE and RMSE over all frames that have the label: energies per atom, components of forces, the nine components of "
    "stress and of the virial (-stress * volume) per atom."
)


def error_sections(parities: Sequence[Parity], rows: Sequence[Row]) -> tuple[ResultTable, ResultTable, Picture]:
    """The table of errors, the frames with the largest ones, and the parity plot.

    Args:
        parities: labels and predictions of at least one trajectory.
        rows: their `error_table`.
    """
    worst = worst_frames(parities, WORST)
    return (
        ResultTable(shown_columns(ERROR_COLUMNS, rows), rows, "Errors", HOW),
        ResultTable(
            shown_columns(WORST_COLUMNS, worst) or WORST_COLUMNS,
            worst,
            "Frames with the largest errors",
            "Ordered by the largest of three errors, each in units of its root mean square over frames: energy, the "
            "force on one atom (length of the vector), stress (largest component). Atoms and frames count from 0.",
        ),
        picture(parity_figure(parities), CAPTION),
    )


def error_sentence(row: dict[str, Any]) -> str:
    """The RMSE of what is compared, in words; `row` is one of `error_table`."""
    parts = [
        f"{words} {row[name]:{form}} {unit}"
        for words, name, form, unit in (
            ("force components", "forces_rmse_meV_per_A", ".1f", "meV/A"),
            ("energy", "energy_rmse_meV_per_atom", ".2f", "meV/atom"),
            ("stress", "stress_rmse_GPa", ".3f", "GPa"),
            ("magnetic moments", "moments_rmse_mu_B", ".3f", "mu_B"),
        )
        if not math.isnan(row[name])
    ]
    if not parts:
        return "There is nothing to compare."
    return f"RMSE of {', '.join(parts)} over {row['frames']} frames."
