"""The PTO-test from its settings to its last stage: checked, planned, claimed, computed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jaxpto.console.command import configure_devices
from jaxpto.devices.processes import Processes, connect
from jaxpto.errors import InputError, is_interrupt
from jaxpto.md.config import check as check_sweep
from jaxpto.md.loop import forget_programs
from jaxpto.models.catalogue import load_potential
from jaxpto.pto.config import PtoTestConfig, check, identity
from jaxpto.pto.plan import COLUMNS, Cost, check_hours, costs_of, total
from jaxpto.pto.stages import Stage, experimental_structure, folder_of, run_stage, stages_of
from jaxpto.reporting.columns import terminal_table
from jaxpto.reporting.provenance import provenance
from jaxpto.storage.files import StorageError, write_json_atomic
from jaxpto.storage.lock import one_run
from jaxpto.storage.output import check_output_folder
from jaxpto.storage.run_folder import CONFIG_FILE
from jaxpto.structures import read_structure

COSTS_FILE = "costs.json"
HEARTBEAT = 60  # seconds without a sign of life after which another process counts as lost


def run_test(config: PtoTestConfig, console: Console) -> list[str] | None:
    """Plan a test, claim its folder, and run every stage of every model that has not ended, one after the other.

    A stage that fails leaves a line, and the others go on.

    Args:
        config: the settings.
        console: for what is done.

    Returns:
        One line for every stage that failed; None where nothing is to be told here: only the plan was wanted, or
        another process of the run tells.

    Raises:
        InputError: settings, models, structures or folder are refused, or the test takes longer than it may; nothing
            is written then.
        StorageError: the disk fails; what was computed stays.
    """
    check(config)
    processes = connect(config.distributed, HEARTBEAT)
    out = Path(config.out)
    with processes.telling():
        configure_devices(config.devices or None)
        _check_subjects(config)
        costs: list[Cost] = []
        if processes.first:
            _check_folder(config)
            costs = _plan(config, console)
        if config.plan:
            return None
        with one_run(out) if processes.first else contextlib.nullcontext():
            if processes.first:
                _claim(config, costs)
            processes.any(False)  # the others find the folder claimed
            failed = _run_stages(config, console, processes)
            return failed if processes.first else None


def unfinished(config: PtoTestConfig, experimental: str) -> dict[str, list[Stage]]:
    """The stages of each model that have not ended; models whose stages all have are left out."""
    found = {
        model: [one for one in stages_of(config, model, experimental) if not one.result.exists()]
        for model in config.models
    }
    return {model: stages for model, stages in found.items() if stages}


def _check_subjects(config: PtoTestConfig) -> None:
    """Refuse models and structures that cannot be read, and ladders that a sweep refuses."""
    for model in config.models:
        load_potential(model)
    names = [folder_of(Path(config.out), model).name for model in config.models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two models are called {name}, and their results would share a folder; rename one")
    for structure in config.structures:
        read_structure(structure, "dynamics")
    for stage in stages_of(config, config.models[0], config.structures[0]):
        if stage.config is not None:
            check_sweep(stage.config)


def _check_folder(config: PtoTestConfig) -> None:
    """Refuse a folder that is in use without `resume`, or that holds another test."""
    out = Path(config.out)
    check_output_folder(out, resume=config.resume)
    path = out / CONFIG_FILE
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["test"]
        now = json.loads(json.dumps(identity(config)))
        changes = [
            f"{name} was {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value
        ]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"{path} is damaged or that of another command; name a new `out`") from None
    if changes:
        raise InputError(f"`out={out}` holds a test with other settings: {'; '.join(changes)}; name a new `out`")


def _plan(config: PtoTestConfig, console: Console) -> list[Cost]:
    """Time what is left to do and print it; refuse what takes longer than it may."""
    with tempfile.TemporaryDirectory() as folder:
        todo = unfinished(config, experimental_structure(config, Path(folder)))
        costs: list[Cost] = []
        for model, stages in todo.items():
            if costs:
                forget_programs()  # of the model before: each may take a gigabyte
            console.print(f"{model}: timing a few steps ...")
            costs += costs_of(model, stages)
    if not costs:
        console.print("everything is computed")
        return []
    console.print(terminal_table(COLUMNS, [dataclasses.asdict(cost) for cost in costs]))
    for cost in costs:
        if cost.problem:
            console.print(f"{cost.model}, {cost.stage}: {cost.problem}")
    console.print(f"expected: {total(costs):.2f} h in all, on this machine as busy as it is now")
    check_hours(costs, config.hours, config.settled.picoseconds)
    return costs


def _claim(config: PtoTestConfig, costs: Sequence[Cost]) -> None:
    """Write config.json, once, and what the plan has measured."""
    out = Path(config.out)
    if not (out / CONFIG_FILE).exists():
        write_json_atomic(out / CONFIG_FILE, {"test": identity(config), "scale": config.scale} | provenance())
    path = out / COSTS_FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    new = [dataclasses.asdict(cost) for cost in costs if cost.hours is not None]
    done = {(cost["model"], cost["stage"]) for cost in new}
    write_json_atomic(path, [cost for cost in before if (cost["model"], cost["stage"]) not in done] + new)


def _run_stages(config: PtoTestConfig, console: Console, processes: Processes) -> list[str]:
    experimental, failed = experimental_structure(config, Path(config.out)), []
    todo = [(model, stage) for model, stages in unfinished(config, experimental).items() for stage in stages]
    # what is left is what the first process sees
    names = json.loads(processes.gather(json.dumps([str(stage.folder) for _, stage in todo]).encode())[0])
    everything = [(model, stage) for model in config.models for stage in stages_of(config, model, experimental)]
    todo = [(model, stage) for model, stage in everything if str(stage.folder) in names]
    compiled = list(config.models)[-1]  # what the plan has timed last
    for number, (model, stage) in enumerate(todo, start=1):
        if model != compiled:
            forget_programs()
            compiled = model
        if stage.config is None and not processes.first:
            continue
        if processes.first:
            console.print(f"[{number} of {len(todo)}] {model}: {stage.name}")
        try:
            run_stage(stage, model, config, console)
        except StorageError:
            raise
        except Exception as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            if processes.count > 1:
                raise  # the others wait for this one
            if os.environ.get("JAXPTO_TRACEBACK") == "1":
                traceback.print_exc()
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            failed.append(f"{model}, {stage.name}: {reason}")
            console.print(f"failed, the others go on: {failed[-1]}")
            stage.failure.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(stage.failure, {"reason": reason} | provenance())
        else:
            if processes.first:
                stage.failure.unlink(missing_ok=True)
    return failed
