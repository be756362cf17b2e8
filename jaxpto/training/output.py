"""What a training says about itself beside the model: report.html, learning_curve.png, .csv and .json, parity.png."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpto.console.terminal import console
from jaxpto.models.committee import Calibration
from jaxpto.reporting.columns import Column, Row
from jaxpto.reporting.deviation_figure import CAPTION as DEVIATION_CAPTION
from jaxpto.reporting.deviation_figure import DEVIATION_FIGURE, deviation_figure
from jaxpto.reporting.error_report import PARITY_FIGURE, error_sections, error_sentence
from jaxpto.reporting.parity import Parity, error_table, shown_columns
from jaxpto.reporting.provenance import provenance
from jaxpto.reporting.result import Result, write_result
from jaxpto.reporting.sections import ResultTable, picture
from jaxpto.training.calibration import FrameDeviations, sentences
from jaxpto.training.learning_curve import CAPTION, QUANTITIES, LearningRow, learning_curve

LEARNING_CURVE = "learning_curve"  # stem of its figure, CSV and JSON
RUNNING_COLUMNS = (
    Column("step", "step", form=".0f"),
    Column("loss", "loss", form=".4g"),
    Column("energy", "energy RMSE", "meV/atom", ".2f"),
    Column("forces", "forces RMSE", "meV/A", ".1f"),
    Column("virial", "virial RMSE", "meV/atom", ".2f"),
)
BIN_COLUMNS = (
    Column("measure", "of a frame", words=True),
    Column("deviation", "deviation", "meV/A", ".1f"),
    Column("error", "error", "meV/A", ".1f"),
    Column("frames", "frames", form=".0f"),
)
BIN_NOTE = (
    "Held-out frames in bins of equal number by the deviation of the committee, sqrt(mean |F - mean F|^2) over its "
    "members; deviation and error of the forces are root mean squares over the frames of a bin."
)


def write_training_report(
    out: Path,
    rows: Sequence[LearningRow],
    parities: Sequence[Parity],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    deviations: tuple[Calibration, FrameDeviations] | None = None,
) -> None:
    """Write the page of a training into its model folder, with its figures and numbers.

    Args:
        out: the model folder.
        rows: its validations, at least one.
        parities: labels and predictions of the held-out frames, by trajectory; empty if nothing is held out.
        settings: the configuration.
        facts: what else is known of the training: steps done, seconds, number of frames, ...
        deviations: what the deviations of a committee mean, and the frames that say so; None without one.

    Raises:
        StorageError: the disk refuses a file.
    """
    last, lines = rows[-1], _lines(rows)
    pictures = {f"{LEARNING_CURVE}.png": picture(learning_curve(rows), CAPTION)}
    headline = "No frames were held out, so the errors of the model are not measured."
    table = ResultTable(shown_columns(RUNNING_COLUMNS, lines[-1:]), lines[-1:], "Running errors of the training")
    worst: list[ResultTable] = []
    named_rows: list[Row] = []
    if parities:
        errors = error_table(parities)
        headline = f"Held-out frames: {error_sentence(errors[-1])}"
        table, named, pictures[PARITY_FIGURE] = error_sections(parities, errors)
        worst, named_rows = [named], list(named.rows)
    remarks = [f"{last['step']} steps in {_duration(last['seconds'])}; the last running loss is {last['loss']:.4g}."]
    about: dict[str, Any] = {}
    if deviations is not None:
        calibration, frames = deviations
        remarks += [f"{one[0].upper()}{one[1:]}." for one in sentences(calibration)]
        about["committee"] = dataclasses.asdict(calibration)
        if calibration.largest is not None and calibration.rms is not None:
            worst.append(ResultTable(BIN_COLUMNS, _bins(calibration), "What the committee's deviation means", BIN_NOTE))
            measures = (
                ("largest of an atom", frames.largest_deviation, frames.largest_error, calibration.largest),
                ("RMS over atoms", frames.rms_deviation, frames.rms_error, calibration.rms),
            )
            pictures[DEVIATION_FIGURE] = picture(deviation_figure(measures), DEVIATION_CAPTION, wide=False)
    result = Result(
        title=f"Training of {out.name}",
        headline=headline,
        remarks=remarks,
        table=table,
        sections=worst,
        pictures=pictures,
        settings={**facts, "settings": settings, **provenance()},
        stem=LEARNING_CURVE,
        rows=lines,
        about={"errors": table.rows if parities else [], "worst_frames": named_rows} | about,
    )
    write_result(out, result, console(quiet=True))


def _bins(calibration: Calibration) -> list[dict[str, Any]]:
    """Lines of the table of both measures, meV/Angstrom."""
    scales = (("largest of an atom", calibration.largest), ("RMS over atoms", calibration.rms))
    return [
        {"measure": name, "deviation": 1e3 * deviation, "error": 1e3 * error, "frames": count}
        for name, scale in scales
        if scale is not None
        for deviation, error, count in scale.bins
    ]


def _lines(rows: Sequence[LearningRow]) -> list[dict[str, Any]]:
    """The validations in lines without groups: "forces" of the training, "PT-300K forces" of a held-out trajectory."""
    names = dict.fromkeys(name for row in rows for name in row["validation"])
    lines = []
    for row in rows:
        line = {name: row[name] for name in ("step", "seconds", "loss", "learning_rate")}
        line |= {quantity: row.get(quantity) for quantity in QUANTITIES}
        for name in names:
            errors = row["validation"].get(name, {})
            line |= {f"{name} {quantity}": errors.get(quantity) for quantity in QUANTITIES}
        lines.append(line)
    return lines


def _duration(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"
