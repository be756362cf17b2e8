"""What a test will cost: a few steps of every ladder are timed before anything runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jaxpto.errors import InputError
from jaxpto.md.timing import time_steps
from jaxpto.pto.stages import Stage, batch_of
from jaxpto.reporting.columns import Column, Row

PROGRAMS = {"cells": 2, "phonons": 2}  # that a stage without a ladder compiles, which is most of its time


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a stage is expected to cost.

    Attributes:
        model: name or folder.
        stage: its name.
        atoms: how many a replica has; 0 where no ladder is run.
        replicas: how many the ladder has.
        steps: how many each takes.
        hours: expected; None where nothing like it was timed.
        memory: peak of the process, GiB; None where nothing was timed.
        problem: why it cannot run, or "".
    """

    model: str
    stage: str
    atoms: int = 0
    replicas: int = 0
    steps: int = 0
    hours: float | None = None
    memory: float | None = None
    problem: str = ""


COLUMNS = (
    Column("model", "model", words=True),
    Column("stage", "stage", words=True),
    Column("atoms", "atoms", spell=lambda row: str(row["atoms"] or "")),
    Column("replicas", "replicas", spell=lambda row: str(row["replicas"] or "")),
    Column("steps", "steps", spell=lambda row: str(row["steps"] or "")),
    Column("hours", "expected", spell=lambda row: _spell_hours(row)),
    Column("memory", "memory", "GiB", spell=lambda row: "" if row["memory"] is None else f"{row['memory']:.1f}"),
)


def costs_of(model: str, stages: Sequence[Stage]) -> list[Cost]:
    """Time the ladders of a model's stages and estimate the others from what they compile.

    Args:
        model: name or folder.
        stages: those that have not ended.
    """
    found, compilation = [], None
    for stage in stages:
        if stage.config is None:
            continue
        try:
            batch = batch_of(stage.config)
            time = time_steps(batch)
        except Exception as error:  # the others can be run
            found.append(Cost(model, stage.name, problem=f"{type(error).__name__}: {error}"))
            continue
        compilation = time.compilation
        hours = (time.seconds * stage.config.steps + time.compilation) / 3600.0
        found.append(
            Cost(
                model, stage.name, len(batch.atoms), len(batch.temperatures), stage.config.steps, hours, time.memory
            )
        )  # fmt: skip
    for stage in stages:
        if stage.config is None:
            known = compilation is not None and stage.kind in PROGRAMS
            hours = PROGRAMS[stage.kind] * compilation / 3600.0 if known else None
            found.append(Cost(model, stage.name, hours=hours))
    return found


def total(costs: Sequence[Cost]) -> float:
    """Hours of all stages of which something is known."""
    return math.fsum(cost.hours for cost in costs if cost.hours is not None)


def check_hours(costs: Sequence[Cost], hours: float | None, picoseconds: float) -> None:
    """Refuse a test that takes longer than it may.

    Args:
        costs: what every stage is expected to cost.
        hours: that it may take, or None.
        picoseconds: length of the run at each temperature.

    Raises:
        InputError: with what would fit.
    """
    needed = total(costs)
    if hours is None or needed <= hours:
        return
    ladders = math.fsum(cost.hours for cost in costs if cost.hours is not None and cost.steps)
    remedies = []
    if ladders > 0.0 and (fits := picoseconds * (hours - needed + ladders) / ladders) > 0.0:
        remedies.append(f"`picoseconds={fits:.2g}` fits")
    models = list(dict.fromkeys(cost.model for cost in costs))
    each = {model: total([cost for cost in costs if cost.model == model]) for model in models}
    fewer, left = [], hours
    for model in sorted(models, key=lambda one: each[one]):
        if each[model] <= left:
            fewer.append(model)
            left -= each[model]
    if fewer:
        remedies.append(f"so do the models {' '.join(fewer)} alone")
    remedies.append(f"or give `hours={needed:.2g}`")
    raise InputError(f"`hours={hours:g}`: the test is expected to take {needed:.3g} h; {', '.join(remedies)}")


def _spell_hours(row: Row) -> str:
    hours = row["hours"]
    if row["problem"]:
        return "cannot run"
    if hours is None:
        return "minutes"
    return f"{hours:.2f} h" if hours >= 0.1 else f"{60.0 * hours:.0f} min"
