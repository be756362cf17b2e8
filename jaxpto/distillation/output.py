"""What a distillation found: tables, figures and a page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxpto.distillation.config import DistilConfig
from jaxpto.distillation.distillation import Distilled
from jaxpto.distillation.figures import DISAGREEMENT_CAPTION, LATTICE_CAPTION, disagreement_figure, lattice_figure
from jaxpto.distillation.proof import FEWEST
from jaxpto.errors import InputError
from jaxpto.reporting.columns import TEMPERATURE, Column, Row
from jaxpto.reporting.provenance import provenance
from jaxpto.reporting.result import Result, write_result
from jaxpto.reporting.sections import ResultTable, picture

STEM = "proof"
COLUMNS = (
    Column("structure", "from", words=True),
    TEMPERATURE,
    Column("frames", "frames", form=".0f"),
    Column("energy_meV_per_atom", "energy RMSE", "meV/atom", ".2f"),
    Column("forces_meV_per_A", "forces RMSE", "meV/A", ".0f"),
    Column("stress_GPa", "stress RMSE", "GPa", ".2f"),
    Column("deviation_eV_per_A", "deviation", "eV/A", ".3f"),
    Column("effective", "effective", form=".1f"),
    Column("student_c_over_a", "c/a student", form=".4f"),
    Column("reweighted_c_over_a", "c/a reweighted", form=".4f"),
    Column("student_volume", "V student", "A^3", ".2f"),
    Column("reweighted_volume", "V reweighted", "A^3", ".2f"),
)
ROUND_COLUMNS = (
    Column("round", "round", form=".0f"),
    Column("labels", "labels", form=".0f"),
    Column("energy", "energy RMSE", "meV/atom", ".2f"),
    Column("forces", "forces RMSE", "meV/A", ".1f"),
    Column("virial", "virial RMSE", "meV/atom", ".2f"),
    Column("deviation", "deviation", "eV/A", ".3f"),
    Column("lost", "lost", form=".0f"),
    Column("minutes", "minutes", form=".1f"),
)
LADDER_COLUMNS = (
    Column("structure", "from", words=True),
    TEMPERATURE,
    Column("student", "student", words=True),
    Column("teacher", "teacher", words=True),
    Column("c_over_a", "c/a student"),
    Column("teacher_c_over_a", "c/a teacher"),
    Column("volume", "V student", "A^3"),
    Column("teacher_volume", "V teacher", "A^3"),
)


def write_distillation(config: DistilConfig, found: Distilled, console: Console) -> None:
    """Write proof.csv, proof.json, the figures and report.html into the student's folder, and print the table.

    Raises:
        StorageError: the disk refuses a file.
    """
    rows = proof_rows(found)
    if not rows:
        raise InputError(
            f"nothing is left of the student's ladder in {Path(config.out) / 'proof'} after its equilibration; its "
            "report says why: lower `temperatures`, or give more `labels` and `steps`"
        )
    force = math.sqrt(float(np.mean([row["forces_meV_per_A"] ** 2 for row in rows])))
    energy = math.sqrt(float(np.mean([row["energy_meV_per_atom"] ** 2 for row in rows])))
    headline = (
        f"On {sum(row['frames'] for row in rows)} independent structures the student differs from {config.teacher} by "
        f"{energy:.2f} meV/atom and {force:.0f} meV/A (RMS)."
    )
    trained = sum(count for name, count in found.labels.items() if not name.startswith("independent"))
    remarks = [
        f"{trained} labels in training, {len(found.rounds)} round{'s' if len(found.rounds) > 1 else ''}, "
        f"{found.seconds / 60.0:.0f} min in all. No further round: {found.reason}.",
        f"Reweighted averages are those of the teacher's ensemble, where at least {FEWEST:g} effective structures "
        "carry them; a dash where they do not.",
    ]
    sections = [ResultTable(ROUND_COLUMNS, round_rows(found, config.temperatures), "Rounds", note=(
        "Errors are those on held-out labels of the round; 95 % of the samples deviate less at each temperature than "
        "the deviation, that of the worst temperature wanted; lost: replicas that melted or failed."
    ))]  # fmt: skip
    ladders = ladder_rows(found)
    if found.teacher_rungs:
        sections.append(ResultTable(LADDER_COLUMNS, ladders, "Ladders of student and teacher in the same cell"))
    pictures = {
        "disagreement.png": picture(
            disagreement_figure(found.rounds, found.rungs, config.disagreement), DISAGREEMENT_CAPTION
        ),
        "lattice.png": picture(lattice_figure(found.rungs, found.teacher_rungs, found.agreements), LATTICE_CAPTION),
    }
    result = Result(
        title=f"Student of {config.teacher}",
        headline=headline,
        remarks=remarks,
        table=ResultTable(COLUMNS, rows, "Student against teacher"),
        sections=sections,
        pictures=pictures,
        settings={"settings": dataclasses.asdict(config), **provenance()},
        stem=STEM,
        about={
            "rounds": round_rows(found, config.temperatures),
            "ladders": ladders,
            "labels": found.labels,
            "seconds": found.seconds,
        },
        options=DistilConfig,
    )
    write_result(Path(config.out), result, console)


def proof_rows(found: Distilled) -> list[Row]:
    """A line for each structure and temperature of the proof."""
    return [
        {
            "structure": one.crystal,
            "temperature_K": one.temperature,
            "frames": one.frames,
            "energy_meV_per_atom": one.energy,
            "forces_meV_per_A": one.forces,
            "stress_GPa": one.stress,
            "deviation_eV_per_A": float(np.median(some.deviation)),
            "effective": one.effective,
            "student_c_over_a": one.student["c/a"],
            "reweighted_c_over_a": one.reweighted["c/a"],
            "student_volume": one.student["volume"],
            "reweighted_volume": one.reweighted["volume"],
        }
        for one, some in zip(found.agreements, found.independent, strict=True)
    ]


def round_rows(found: Distilled, wanted: Sequence[float]) -> list[Row]:
    """A line for each round; deviations are those at the temperatures that are wanted."""
    return [
        {
            "round": one.number,
            "labels": one.labels,
            **{name: math.nan if value is None else value for name, value in one.errors.items()},
            "deviation": max(rung.deviation for rung in one.rungs if rung.temperature in wanted),
            "lost": sum(rung.status != "ok" for rung in one.rungs),
            "minutes": one.seconds / 60.0,
        }
        for one in found.rounds
    ]


def ladder_rows(found: Distilled) -> list[Row]:
    """A line for each structure and temperature of the finished student's ladder, beside the teacher's own."""
    own = {(one.crystal, one.temperature): one for one in found.teacher_rungs}
    rows = []
    for one in found.rungs:
        other = own.get((one.crystal, one.temperature))
        row: dict[str, Any] = {
            "structure": one.crystal,
            "temperature_K": one.temperature,
            "student": one.status,
            "teacher": "" if other is None else other.status,
        }
        for name, rung in (("", one), ("teacher_", other)):
            for key, quantity in (("c_over_a", "c/a"), ("volume", "volume")):
                mean, error = (math.nan, math.nan) if rung is None else rung.values.get(quantity, (math.nan, math.nan))
                row |= {f"{name}{key}": mean, f"{name}{key}_error": error}
        rows.append(row)
    return rows
