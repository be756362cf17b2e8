"""The stages of the PTO-test: each computes one part of one model's answer into a folder of its own.

A stage that has ended has left its result file; one that was killed goes on, or begins anew where it takes minutes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import ase.io
from rich.console import Console

from jaxpto import sweep
from jaxpto.calculator import JaxptoCalculator
from jaxpto.errors import InputError
from jaxpto.md.batch import Batch
from jaxpto.md.config import PRESETS, SweepConfig
from jaxpto.md.preparation import prepare
from jaxpto.md.timing import StepTime, time_steps
from jaxpto.perovskite.measurements import crystal_measurements
from jaxpto.phonons import PhononsConfig
from jaxpto.phonons import run as run_phonons
from jaxpto.pto.config import PtoTestConfig, StageName, ladder_config
from jaxpto.pto.ground_state import Cells, Vibrations, bands_from_json, bands_to_json, relax_cells, vibrations_of
from jaxpto.reporting.provenance import provenance
from jaxpto.storage.files import write_json_atomic, write_text_atomic
from jaxpto.storage.run_folder import OUTCOME_FILE
from jaxpto.structures import BUILT_IN, read_structure

EXPERIMENTAL = "PbTiO3-experimental"
EVERY = 10  # steps between two frames in the paper's speed test
SPEED_KELVIN = 300.0


@dataclasses.dataclass(frozen=True)
class SpeedPoint:
    """One size of the speed test.

    Attributes:
        atoms: how many.
        seconds_per_step: time of a step of one replica.
        compilation_s: seconds until the first step is done.
        memory_GiB: peak of the process meanwhile.
        steps: that were timed.
    """

    atoms: int
    seconds_per_step: float
    compilation_s: float
    memory_GiB: float
    steps: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a model's answer.

    Attributes:
        kind: what is done.
        folder: where; its name tells ladders of one kind apart.
        config: the settings of a ladder, or None.
    """

    kind: StageName
    folder: Path
    config: SweepConfig | None = None

    @property
    def name(self) -> str:
        """What results call it, as in npt-tetragonal."""
        return self.folder.name

    @property
    def result(self) -> Path:
        """The file that is there once it has ended."""
        return self.folder / ("result.json" if self.config is None else OUTCOME_FILE)

    @property
    def failure(self) -> Path:
        """The file that says why it failed."""
        return self.folder.parent / f"failed-{self.name}.json"


def folder_of(out: Path, model: str) -> Path:
    """The folder of a model's parts; of a model given as a folder, that of its last name."""
    return out / "models" / Path(model).name.replace(":", "_")


def stages_of(config: PtoTestConfig, model: str, experimental: str) -> list[Stage]:
    """The stages of a model in their order.

    Args:
        config: the settings.
        model: name or folder.
        experimental: structure that nvt holds, see `experimental_structure`.
    """
    folder, found = folder_of(Path(config.out), model), []
    starts = config.structures[: 2 if config.both_starts else 1]
    for kind in config.stages:
        if kind == "npt":
            names = [f"npt-{phase}" for phase in ("tetragonal", "cubic")]
            found += [_ladder(config, model, folder / name, start) for name, start in zip(names, starts, strict=False)]
        elif kind == "nvt":
            found.append(_ladder(config, model, folder / kind, experimental))
        else:
            found.append(Stage(kind, folder / kind))
    return found


def experimental_structure(config: PtoTestConfig, folder: Path) -> str:
    """The structure whose cell nvt holds; where `lattice` is given, a file that is written.

    Args:
        config: the settings.
        folder: for the file.

    Raises:
        InputError: `read_structure` refuses the polar one.
    """
    polar = config.structures[0]
    if config.lattice is None:
        return EXPERIMENTAL if polar in BUILT_IN else polar
    atoms, (a, c) = read_structure(polar, "dynamics"), config.lattice
    atoms.set_cell([a, a, c, *atoms.cell.angles()], scale_atoms=True)
    path = folder / "at-lattice.extxyz"
    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, text.getvalue())
    return str(path)


def run_stage(stage: Stage, model: str, config: PtoTestConfig, console: Console) -> None:
    """Do a stage, or go on with it.

    Args:
        stage: which.
        model: name or folder.
        config: the settings of the test.
        console: for one line where a stage says nothing itself.

    Raises:
        InputError: structure, model or folder are refused.
        Exception: whatever the model does.
    """
    if stage.config is not None:
        sweep.run(stage.config, brief=True)
        return
    shutil.rmtree(stage.folder, ignore_errors=True)  # what an interrupted one has left
    if stage.kind == "cells":
        result = dataclasses.asdict(relax_cells(JaxptoCalculator(model), config.structures))
    elif stage.kind == "phonons":
        (found,) = run_phonons(_phonons_config(stage, model, config), brief=True)
        vibrations = vibrations_of(found)
        result = dataclasses.asdict(vibrations) | {"bands": bands_to_json(vibrations.bands)}
    else:
        points = [_timed(config, model, cells, console) for cells in config.settled.cells]
        result = {"points": [dataclasses.asdict(point) for point in points]}
    stage.folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(stage.result, {"result": result} | provenance())


def batch_of(config: SweepConfig) -> Batch:
    """The replicas of a ladder."""
    return prepare(config, crystal_measurements).batch


def read_cells(stage: Stage) -> Cells:
    """What `cells` has found."""
    result = _read(stage)
    remarks = tuple(result.pop("remarks"))
    return Cells(**result, remarks=remarks)


def read_vibrations(stage: Stage) -> Vibrations:
    """What `phonons` has found."""
    result = _read(stage)
    bands = bands_from_json(result["bands"])
    return Vibrations(result["lowest_frequency"], tuple(result["imaginary"]), bands)


def read_speed(stage: Stage) -> list[SpeedPoint]:
    """What `speed` has found."""
    return [SpeedPoint(**point) for point in _read(stage)["points"]]


def _ladder(config: PtoTestConfig, model: str, folder: Path, structure: str) -> Stage:
    kind: StageName = "npt" if folder.name.startswith("npt") else "nvt"
    return Stage(kind, folder, dataclasses.replace(ladder_config(config, model, structure, kind), out=str(folder)))


def _phonons_config(stage: Stage, model: str, config: PtoTestConfig) -> PhononsConfig:
    path = "pto-test" if config.structures[0] in BUILT_IN else "auto"
    return PhononsConfig(
        config.structures[0], (model,), stage.folder, supercell=config.settled.phonons, path=path, symmetrize=True
    )


def _timed(config: PtoTestConfig, model: str, cells: int, console: Console) -> SpeedPoint:
    """One size of the speed test: NPT at 300 K, one replica, on one device."""
    one = dataclasses.replace(
        PRESETS["pto-test"], structure=config.structures[0], model=model, supercell=(cells,) * 3,
        temperatures=(SPEED_KELVIN,), sample_every=EVERY, devices=1, seed=config.seed,
    )  # fmt: skip
    batch = batch_of(one)
    found: StepTime = time_steps(batch, seconds=2.0)
    console.print(f"{len(batch.atoms)} atoms: {1e3 * found.seconds:.3g} ms a step")
    return SpeedPoint(len(batch.atoms), found.seconds, found.compilation, found.memory, found.steps)


def _read(stage: Stage) -> dict[str, Any]:
    """The result of a stage that has ended.

    Raises:
        InputError: its file is damaged.
    """
    try:
        return json.loads(stage.result.read_text(encoding="utf-8"))["result"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{stage.result} is damaged ({error!r}); remove it and it is computed again") from None
