"""The page of the PTO-test: verdict, tables and figures in the paper's layout, and CSV and JSON of everything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxpto.perovskite.literature import EXPERIMENTS
from jaxpto.pto import figures, paper
from jaxpto.pto.answers import Answer, Ladder, read_answer
from jaxpto.pto.config import TIMESTEP, PtoTestConfig
from jaxpto.pto.driver import COSTS_FILE
from jaxpto.pto.reference_bands import check_same_path, read_reference
from jaxpto.pto.stages import experimental_structure
from jaxpto.pto.verdict import Judgement, bracket, claims, loss_of, phases_of, polarization_at, transition_of
from jaxpto.pto.zero_kelvin_output import CAPTION, PRINTED, bands_by_model, papers_row
from jaxpto.pto.zero_kelvin_output import COLUMNS as TABLE_2
from jaxpto.pto.zero_kelvin_output import NOTE as TABLE_2_NOTE
from jaxpto.reporting.columns import TEMPERATURE, Column, Row
from jaxpto.reporting.result import Result, write_csv, write_result
from jaxpto.reporting.sections import Items, Picture, ResultTable, picture
from jaxpto.reporting.stored_sweep import as_rows, read_object
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.run_folder import CONFIG_FILE
from jaxpto.structures import BUILT_IN

ROOM_TEMPERATURE = 300.0
VERDICT_NOTE = (
    "Transition: middle of the step of the ladder (K), in brackets half its width or the statistical error, whichever "
    "is more. P in the experimental lattice, C/m², with its standard error. 'As the paper' counts the findings of the "
    "paper on this model that stand here, of those that were tested; 'flagged' the averages that rest on too few "
    "independent samples, drift or miss their temperature, of all averages (npt.csv and nvt.csv say why)."
)
NPT_CAPTION = (
    "Constant pressure. Filled: c, the polar axis; open: a, the mean of the two others; bars: standard deviation of "
    "the fluctuations. Crosses: temperatures at which no replica keeps its crystal. Grey: the step of the ladder in "
    "which it becomes cubic. Stars and dashed line: measured lattice and transition."
)
NVT_CAPTION = (
    "P_z in the measured lattice, which is held; bars: standard deviation of the fluctuations. It does not quite "
    "vanish above the transition, because the cell stays tetragonal."
)
SPEED_CAPTION = (
    "Time of a step at constant pressure, one replica on one device, without writing of frames; compilation apart."
)
CELLS_CAPTION = "Relaxed cells. Dots: jaxpto; rings: the paper; lines: density functionals and experiment (as printed)."

VERDICT = (
    Column("model", "model", words=True),
    Column("npt_transition", "becomes cubic", "K", words=True),
    Column("npt_phases", "phases at constant pressure", words=True, terminal=False),
    Column("npt_loss", "lost", words=True),
    Column("nvt_polarization", "P(300 K)", "C/m^2", words=True),
    Column("nvt_vanishing", "P vanishes", "K", words=True),
    Column("imaginary", "imaginary", words=True),
    Column("agreement", "as the paper", words=True),
    Column("flagged", "flagged", words=True),
    Column("remark", "remark", words=True, terminal=False),
)
TABLE_1 = (
    Column("model", "model", words=True),
    Column("source", "source", words=True),
    Column("parameters", "parameters", spell=lambda row: f"{row['parameters']:,}" if row["parameters"] else ""),
    Column("licence", "licence", words=True),
    Column("paper", "paper's row", words=True),
)
LOST = (
    Column("model", "model", words=True),
    Column("ladder", "ladder", words=True),
    TEMPERATURE,
    Column("status", "status", words=True),
    Column("step", "stopped at step", form=".0f"),
    Column("ps", "after", "ps", ".3g"),
    Column("reason", "reason", words=True),
)
SPEED = (
    Column("model", "model", words=True),
    Column("atoms", "atoms", form=".0f"),
    Column("ms_per_step", "step", "ms", ".3g"),
    Column("us_per_atom", "step and atom", "us", ".3g"),
    Column("ns_per_day", "speed", "ns/day", ".3g"),
    Column("compilation_s", "first step after", "s", ".3g"),
    Column("memory_GiB", "memory", "GiB", ".2f"),
)


def write_test(config: PtoTestConfig, console: Console) -> list[Answer]:
    """Read what all stages have left and write report.html, figures, CSV and JSON; print the verdict.

    Args:
        config: the settings.
        console: for the table.

    Raises:
        InputError: a stage's file is damaged, or the reference's path is another one.
    """
    out = Path(config.out)
    experimental = experimental_structure(config, out)
    answers = [read_answer(config, model, experimental) for model in config.models]
    for name, kind in (("npt.csv", "npt"), ("nvt.csv", "nvt")):
        if rows := _ladder_rows(answers, kind):
            write_csv(out / name, rows)
            write_json_atomic(out / name.replace(".csv", ".json"), rows)
    for name, rows in {"table2": _zero_kelvin_numbers(answers), "speed": _speed_rows(answers)}.items():
        if rows:
            write_csv(out / f"{name}.csv", rows)
    verdicts = [verdict_row(answer) for answer in answers]
    settings = read_object(out / CONFIG_FILE, "test")
    document = Result(
        title="The PTO-test",
        headline=headline(answers),
        table=ResultTable(
            VERDICT, verdicts, "Verdict", VERDICT_NOTE, marked=lambda row: row["npt_loss"] not in ("", "none")
        ),
        pictures=_pictures(answers, config),
        settings=settings | {"costs": _costs(out)},
        stem="verdict",
        rows=verdicts,
        sections=_sections(answers),
        options=PtoTestConfig,
    )
    write_result(out, document, console)
    return answers


def headline(answers: Sequence[Answer]) -> str:
    """The outcome in one sentence."""
    parts = []
    for answer in answers:
        ladder = _first(answer)
        if ladder is None:
            parts.append(f"{answer.model}: not run at constant pressure")
            continue
        found = transition_of(ladder.rows, "lattice")
        lost = [row for row in ladder.rows if row.n_ok == 0]
        text = f"becomes cubic at {bracket(found)} K" if found and found.temperature_K else phases_of(ladder)
        if lost and found and found.temperature_K:
            text += f" and is lost from {min(row.temperature_K for row in lost):g} K on"
        parts.append(f"{answer.model}: {text}")
    flagged = [answer.model for answer in answers if not _flagged(answer).startswith("0 ") and _flagged(answer)]
    caveat = f"; preliminary for {', '.join(flagged)}: averages are flagged" if flagged else ""
    return "; ".join(parts) + caveat + "."


def verdict_row(answer: Answer) -> dict[str, Any]:
    """A line of the verdict table, of verdict.csv and verdict.json."""
    ladder = _first(answer)
    starts = [(one, transition_of(one.rows, "lattice")) for one in answer.npt]
    several = len(starts) > 1
    found = [f"{bracket(one)} from {run.start}" if several else bracket(one) for run, one in starts]
    nvt = answer.nvt
    judged = judgements(answer)
    tested = [claim for claim in judged if claim.stands is not None]
    agreement = f"{sum(bool(claim.stands) for claim in tested)} of {len(tested)}" if tested else ""
    return {
        "model": answer.model,
        "npt_transition": "; ".join(found),
        "npt_phases": "; ".join(phases_of(one) + (f" (from {one.start})" if several else "") for one in answer.npt),
        "npt_loss": "" if ladder is None else loss_of(ladder, TIMESTEP),
        "nvt_polarization": polarization_at(nvt, ROOM_TEMPERATURE),
        "nvt_vanishing": "" if nvt is None else bracket(transition_of(nvt.rows, "polarization")),
        "nvt_loss": "" if nvt is None else loss_of(nvt, TIMESTEP),
        "imaginary": _imaginary(answer),
        "agreement": agreement,
        "flagged": _flagged(answer),
        "remark": "; ".join(_remarks(answer)),
    }


def judgements(answer: Answer) -> list[Judgement]:
    """The paper's findings on a model beside ours; [] where the paper does not have it."""
    dynamics = paper.dynamics_of(answer.model)
    return [] if dynamics is None else claims(dynamics, _first(answer), answer.nvt)


def _first(answer: Answer) -> Ladder | None:
    """The ladder at constant pressure from the tetragonal cell, or the one there is."""
    return answer.npt[0] if answer.npt else None


def _imaginary(answer: Answer) -> str:
    if answer.vibrations is None:
        return ""
    modes = answer.vibrations.imaginary
    return f"{len(modes)}, {modes[0]}" if modes else "none"


def _flagged(answer: Answer) -> str:
    """How many averages carry a warning, of how many."""
    rows = [row for ladder in (*answer.npt, *filter(None, [answer.nvt])) for row in ladder.rows if row.n_ok]
    return f"{sum(bool(row.warnings) for row in rows)} of {len(rows)}" if rows else ""


def _remarks(answer: Answer) -> list[str]:
    """What the reader must know of a model."""
    relaxations = () if answer.cells is None else answer.cells.remarks
    failures = [f"{stage} failed: {reason}" for stage, reason in answer.failures.items()]
    return [*filter(None, [answer.remark]), *relaxations, *failures]


def _sections(answers: Sequence[Answer]) -> list[ResultTable | Items]:
    found: list[ResultTable | Items] = []
    lines = [
        f"{answer.model}: {claim.paper}: {claim.ours}" + _stands(claim)
        for answer in answers
        for claim in judgements(answer)
    ]
    fallen = [answer.model for answer in answers if any(claim.stands is False for claim in judgements(answer))]
    lines += [f"{model}: {text}" for model in fallen if (text := paper.explanation_of(model))]
    if lines:
        found.append(Items("The paper's findings", "Each finding, and what is seen here:", lines))
    lost = [
        {"model": answer.model, "ladder": ladder.name, "ps": loss.step * TIMESTEP / 1000.0, **dataclasses.asdict(loss)}
        for answer in answers
        for ladder in (*answer.npt, *filter(None, [answer.nvt]))
        for loss in ladder.lost
    ]
    missing = [f"{answer.model}: {', '.join(answer.missing)}" for answer in answers if answer.missing]
    if missing:
        found.append(Items("Not done", "Stages that have not ended:", missing))
    sources = [answer.source | {"paper": _papers_source(answer.model)} for answer in answers]
    found.append(ResultTable(TABLE_1, sources, "Table 1"))
    if rows := [_zero_kelvin_row(answer) for answer in answers if answer.cells is not None]:
        theirs = [papers_row(row) | {"model": row.name} for row in paper.REFERENCES]
        found.append(ResultTable(TABLE_2, [*rows, *theirs], "Table 2", TABLE_2_NOTE))
    if rows := _speed_rows(answers):
        found.append(ResultTable(SPEED, rows, "Speed"))
    if lost:
        found.append(ResultTable(LOST, lost, "Lost replicas"))
    return found


def _stands(claim: Judgement) -> str:
    return "" if claim.stands is None else " (stands)" if claim.stands else " (does not stand)"


def _papers_source(model: str) -> str:
    row = paper.row_of(model)
    source = next((one for one in paper.SOURCES if row is not None and one.name == row.name), None)
    if source is None:
        return ""
    errors = "" if source.energy_error is None else f"; {source.energy_error:g} meV/atom, {source.force_error:g} meV/Å"
    return f"{source.name} {source.version}, {source.training_set}, {source.parameters}{errors}"


def _zero_kelvin_row(answer: Answer) -> Row:
    assert answer.cells is not None
    ours = {name: getattr(answer.cells, name) for name in ("cubic_a", *PRINTED)} | {"model": answer.model}
    vibrations = answer.vibrations
    if vibrations is not None:
        dips = vibrations.bands.dips()
        ours["between"] = f"{-dips[0].frequency:.2f}i, {dips[0].stretch}" if dips else "none"
    return papers_row(paper.row_of(answer.model)) | ours | {"imaginary": _imaginary(answer)}


def _zero_kelvin_numbers(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    return [
        {
            "model": answer.model,
            **{name: getattr(answer.cells, name) for name in ("a", "c", "c_over_a", "cubic_a", "energy_difference")},
            "lowest_frequency_THz": answer.vibrations.lowest_frequency if answer.vibrations else None,
            "imaginary": "; ".join(answer.vibrations.imaginary) if answer.vibrations else None,
        }
        for answer in answers
        if answer.cells is not None
    ]


def _ladder_rows(answers: Sequence[Answer], kind: str) -> list[dict[str, Any]]:
    """Rows of all ladders of a kind with the same names, model and start first."""
    found = [
        {"model": answer.model, "start": ladder.start, **row}
        for answer in answers
        for ladder in (answer.npt if kind == "npt" else filter(None, [answer.nvt]))
        for row in as_rows([dataclasses.replace(one, further={}, domain=None) for one in ladder.rows])
    ]
    return found


def _speed_rows(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    return [
        {
            "model": answer.model,
            "atoms": point.atoms,
            "ms_per_step": 1e3 * point.seconds_per_step,
            "us_per_atom": 1e6 * point.seconds_per_step / point.atoms,
            "ns_per_day": 86_400.0 / point.seconds_per_step * TIMESTEP * 1e-6,
            "compilation_s": point.compilation_s,
            "memory_GiB": point.memory_GiB,
        }
        for answer in answers
        for point in answer.speed
    ]


def _pictures(answers: Sequence[Answer], config: PtoTestConfig) -> dict[str, Picture]:
    drawn: dict[str, Picture] = {}
    lead_titanate = config.structures[0] in BUILT_IN
    if any(answer.cells is not None for answer in answers):
        drawn["fig1-cells.png"] = picture(figures.cells_figure(answers), f"0 K. {CELLS_CAPTION}", wide=False)
    bands = {answer.model: answer.vibrations.bands for answer in answers if answer.vibrations is not None}
    if bands:
        reference = None
        if config.reference is not None:
            reference = read_reference(config.reference)
            for one in bands.values():
                check_same_path(reference, one, str(config.reference))
        dashed = "" if reference is None else f" Dashed: {config.reference}."
        drawn["fig2-phonons.png"] = picture(bands_by_model(bands, reference), f"Fig. 2. {CAPTION}{dashed}")
    if any(answer.npt for answer in answers):
        experiment = EXPERIMENTS["PbTiO3"] if lead_titanate else None
        drawn["fig3-npt.png"] = picture(figures.npt_figure(answers, experiment), f"Fig. 3. {NPT_CAPTION}")
    if figures.has_polarization(answers):
        drawn["fig4-nvt.png"] = picture(figures.nvt_figure(answers), f"Fig. 4. {NVT_CAPTION}")
    if any(answer.speed for answer in answers):
        drawn["fig5-speed.png"] = picture(figures.speed_figure(answers), f"Fig. 5. {SPEED_CAPTION}", wide=False)
    return drawn


def _costs(out: Path) -> dict[str, str]:
    """Expected hours of each stage, as the plan had them."""
    path = out / COSTS_FILE
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {f"{cost['model']}, {cost['stage']}": f"{cost['hours']:.2f} h" for cost in stored}
