"""The answer of one model: what its stages have left, read back from the output folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxpto.model_interface import caveat
from jaxpto.models.ase_calculator import PREFIX as HOST_PREFIX
from jaxpto.models.catalogue import find_model
from jaxpto.models.folder import read_header
from jaxpto.models.manifest import published_models
from jaxpto.models.variants import split_variant
from jaxpto.observables.summary import TemperatureSummary
from jaxpto.pto.config import PtoTestConfig
from jaxpto.pto.ground_state import Cells, Vibrations
from jaxpto.pto.stages import SpeedPoint, Stage, read_cells, read_speed, read_vibrations, stages_of
from jaxpto.reporting.stored_sweep import read_object, read_summary
from jaxpto.storage.run_folder import OUTCOME_FILE


@dataclasses.dataclass(frozen=True)
class Loss:
    """A replica that melted or failed.

    Attributes:
        temperature_K: target.
        status: "molten" or "failed".
        step: where it was stopped.
        reason: why.
    """

    temperature_K: float
    status: str
    step: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Ladder:
    """A ladder of temperatures that has ended.

    Attributes:
        name: what its stage is called: npt-tetragonal, npt-cubic or nvt.
        rows: one a temperature, rising.
        lost: replicas that did not come through.
    """

    name: str
    rows: list[TemperatureSummary]
    lost: list[Loss]

    @property
    def start(self) -> str:
        """The phase it starts from."""
        return self.name.removeprefix("npt-")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is known of one model.

    Attributes:
        model: name.
        source: line of the table of sources.
        remark: how it differs from the model of that name, and what its forces are not; "" where neither applies.
        cells, vibrations: at 0 K, or None.
        npt: ladders at constant pressure.
        nvt: the one at the experimental lattice, or None.
        speed: time of a step by atoms; empty where it was not measured.
        failures: stages that failed, with their reasons.
        missing: stages that have not been done.
    """

    model: str
    source: dict[str, Any]
    remark: str
    cells: Cells | None
    vibrations: Vibrations | None
    npt: list[Ladder]
    nvt: Ladder | None
    speed: list[SpeedPoint]
    failures: dict[str, str]
    missing: list[str]


def read_answer(config: PtoTestConfig, model: str, experimental: str) -> Answer:
    """What the stages of a model have left.

    Args:
        config: the settings; stages that they leave out are read where they exist.
        model: name or folder.
        experimental: the structure that nvt holds.

    Raises:
        InputError: a file is damaged.
    """
    every = dataclasses.replace(config, stages=("cells", "phonons", "npt", "nvt", "speed"), both_starts=True)
    wanted = {stage.name for stage in stages_of(config, model, experimental)}
    stages = {stage.name: stage for stage in stages_of(every, model, experimental)}
    done = {name: stage for name, stage in stages.items() if stage.result.exists()}
    ladders = {name: _ladder(stage) for name, stage in done.items() if stage.config is not None}
    failures = {
        name: read_object(stage.failure, "reason")["reason"]
        for name, stage in stages.items()
        if name not in done and stage.failure.exists()
    }
    _, variant = split_variant(model)
    return Answer(
        model=Path(model).name,
        source=_source(model),
        remark="; ".join(filter(None, ["" if variant is None else variant.label, _caveat(model)])),
        cells=read_cells(done["cells"]) if "cells" in done else None,
        vibrations=read_vibrations(done["phonons"]) if "phonons" in done else None,
        npt=[ladder for name, ladder in ladders.items() if name.startswith("npt")],
        nvt=ladders.get("nvt"),
        speed=read_speed(done["speed"]) if "speed" in done else [],
        failures=failures,
        missing=[name for name in stages if name in wanted and name not in done and name not in failures],
    )


def _ladder(stage: Stage) -> Ladder:
    outcome = json.loads((stage.folder / OUTCOME_FILE).read_text(encoding="utf-8"))
    lost = [
        Loss(float(one["temperature_K"]), one["status"], int(one["step_failed"] or 0), one["reason"])
        for one in outcome["replicas"]
        if one["status"] != "ok"
    ]
    return Ladder(stage.name, sorted(read_summary(stage.folder), key=lambda row: row.temperature_K), lost)


def _caveat(model: str) -> str:
    if model.startswith(HOST_PREFIX):
        return ""
    return caveat(read_header(find_model(model))["conservative"])


def _source(model: str) -> dict[str, Any]:
    """Origin, training data and size of a model, as far as they are known."""
    if model.startswith(HOST_PREFIX):
        return {"model": model, "source": "calculator of ASE", "parameters": None, "licence": ""}
    name, _ = split_variant(model)
    published, header = published_models().get(Path(name).name), read_header(find_model(model))
    return {
        "model": Path(model).name,
        "source": published.source if published else header.get("source", ""),
        "parameters": header["n_parameters"],
        "licence": published.licence if published else header.get("licence", ""),
    }
