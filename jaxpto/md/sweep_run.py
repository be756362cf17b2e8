"""A sweep from its settings to its finished folder: claimed, simulated, reported."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxpto import bounds
from jaxpto.console import terminal
from jaxpto.console.command import configure_devices, usable_cores
from jaxpto.devices.processes import Processes, connect
from jaxpto.errors import InputError
from jaxpto.integrators.ensembles import ENSEMBLES
from jaxpto.md.batch import Batch
from jaxpto.md.claim import claim_of
from jaxpto.md.config import SweepConfig, check
from jaxpto.md.health import MOLTEN
from jaxpto.md.preparation import Measure, Setup, prepare
from jaxpto.md.progress import ProgressLine
from jaxpto.md.stored_run import Finished, StoredRun, advance, quantities, trajectory_paths
from jaxpto.models.ase_calculator import PREFIX as HOST_PREFIX
from jaxpto.models.suitability import neighbor_bound_warning
from jaxpto.observables.force_deviation import describe_committee
from jaxpto.observables.observable import Observable
from jaxpto.platform import local_devices
from jaxpto.potential import Potential
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.lock import one_run
from jaxpto.storage.run_folder import OUTCOME_FILE
from jaxpto.storage.space import require_space
from jaxpto.storage.thermo import BYTES_OF_A_NUMBER, write_thermo
from jaxpto.storage.trajectory import trajectory_bytes, valid_frames
from jaxpto.system import from_ase
from jaxpto.units import spell_kelvin

CHECKPOINTS_AT_ONCE = 3  # the two that stay and the one being written
BYTES_OF_AN_EDGE = 8  # sender and image
BYTES_OF_AN_ATOM = 80  # positions, velocities, forces, wraps and what the neighbour list was built for


def run_sweep(
    config: SweepConfig,
    measure: Measure,
    potential: Potential | None = None,
    further: tuple[Observable, ...] = (),
    *,
    brief: bool = False,
) -> Path:
    """Run a sweep, or continue it, and write its output folder.

    Args:
        config: the settings.
        measure: gives what is measured in a crystal beside what every run measures.
        potential: takes the place of the model that the settings name.
        further: observables of the caller, measured after those.
        brief: leave the results to the report and print the progress alone.

    Returns:
        The output folder: config.json, summary.csv and .json, thermo.csv, trajectories/, checkpoints/, figures and
        report.html.

    Raises:
        InputError: settings, structure, model or output folder that cannot be used; nothing is written then.
        StorageError: the disk fails in mid-run; what was computed up to the last checkpoint stays.
        OtherProcessError: another process of the run has ended.
    """
    if potential is not None:
        config = dataclasses.replace(config, model=potential.name)
    check(config)
    processes = connect(config.distributed, config.distributed_timeout)
    console = terminal.console(SweepConfig, quiet=not processes.first)
    folder = Path(config.out)
    with processes.telling():
        _check_devices(config)
        setup = prepare(config, measure, potential, further, with_committee=True)
        if processes.count > len(setup.batch.temperatures):
            raise InputError(f"{processes.count} processes for {len(setup.batch.temperatures)} replica(s); start fewer")
        crowded = neighbor_bound_warning(setup.batch.potential, [setup.batch.atoms])
        announced = (headline(setup, processes), *setup.notes, setup.measurements.note, crowded, _few_samples(config))
        simulate(setup, folder, console, processes, announced)
        if processes.first:
            # not before the run: matplotlib takes a second to import
            from jaxpto.reporting.stored_sweep import load_sweep
            from jaxpto.reporting.sweep_report import write_sweep_report

            printed = terminal.console(SweepConfig, quiet=True) if brief else console
            write_sweep_report(folder, load_sweep(folder), printed, SweepConfig)
    return folder


def simulate(
    setup: Setup,
    folder: Path,
    console: Console,
    processes: Processes = Processes(),  # noqa: B008
    announced: Sequence[str] = (),
    marks: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Claim a folder, or find that this very run has it, and run the set-up there to its end: outcome and thermo.csv.

    Args:
        setup: what is simulated.
        folder: its output folder.
        console: for the progress line.
        processes: that share the run.
        announced: lines for the console once the folder is claimed.
        marks: what else makes a run this one, as in `Claim`.

    Raises:
        InputError: the folder cannot be used, holds another run, or has no room; nothing is written then.
        StorageError: the disk fails; what was computed up to the last checkpoint stays.
    """
    claim = claim_of(setup, folder, marks or {})
    if processes.first:
        claim.held(resume=setup.config.resume)  # what is refused leaves no trace
        check_space(setup.batch, folder)
    with one_run(folder) if processes.first else contextlib.nullcontext():
        run = StoredRun(setup.batch, folder, claim.enter(processes), True, setup.config.checkpoint_every)
        for line in filter(None, announced):
            console.print(line)

        def display(first_step: int) -> ProgressLine:
            labels = [spell_kelvin(kelvin) for kelvin in setup.batch.temperatures]
            return ProgressLine(
                console, setup.config.steps, first_step, setup.config.timestep, labels, setup.measurements
            )

        finished = advance(run, display, console, processes)
        if processes.first:
            _write_outcome(setup, run, finished)
            write_thermo(folder)


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """How each replica of a finished run ended, as `simulate` wrote it; None where there is nothing."""
    path = folder / OUTCOME_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def check_space(batch: Batch, folder: Path) -> None:
    """Refuse a run whose trajectories and checkpoints the disk cannot hold; what is there already counts.

    Raises:
        InputError: with the figures.
    """
    n_replicas, n_samples, n_atoms = len(batch.temperatures), batch.schedule.n_samples, len(batch.atoms)
    system = from_ase(batch.atoms, np.dtype(batch.start.systems.positions.dtype))
    stored = quantities(batch.observables)
    frames = n_replicas * trajectory_bytes(system, n_samples, stored)
    columns = 4 + sum(math.prod(one.shape) for one in stored.values())
    table = n_replicas * n_samples * columns * BYTES_OF_A_NUMBER
    # Neighbours as the mean density gives them, and as much again: capacities are those of the densest atom.
    reach = batch.potential.cutoff + batch.skin
    edges = 2 * n_atoms**2 / batch.atoms.get_volume() * 4 / 3 * np.pi * reach**3
    state = n_replicas * (edges * BYTES_OF_AN_EDGE + n_atoms * BYTES_OF_AN_ATOM)
    paths = trajectory_paths(folder, batch.temperatures.tolist())
    saved = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    require_space(
        folder,
        int(frames + table + CHECKPOINTS_AT_ONCE * state),
        f"{frames / 1e6:.0f} MB for {n_samples} frames of {n_replicas} replicas of {n_atoms} atoms, "
        f"{table / 1e6:.0f} MB for time series, {CHECKPOINTS_AT_ONCE * state / 1e6:.0f} MB for checkpoints",
        [*paths, *saved],
    )


def headline(setup: Setup, processes: Processes) -> str:
    """What is simulated, with what and on what, in one sentence."""
    config, batch = setup.config, setup.batch
    ladder = f"{spell_kelvin(min(config.temperatures))}-{spell_kelvin(max(config.temperatures))} K"
    if len(config.temperatures) == 1:
        ladder = f"{spell_kelvin(config.temperatures[0])} K"
    flexible = ENSEMBLES[config.ensemble].flexible_cell
    ensemble = f"{config.ensemble} {config.mask}" if flexible else config.ensemble
    if config.stress is not None:
        ensemble += f" at a {config.stress_measure} stress of {' '.join(f'{value:g}' for value in config.stress)} GPa"
    elif config.pressure:
        ensemble += f" at {config.pressure:g} GPa"
    caveat = f", {batch.potential.caveat}" if batch.potential.caveat else ""
    committee = "" if setup.committee is None else f", committee of {setup.committee.members}"
    devices = batch.usable_devices()
    hardware = f"{len(devices)} {devices[0].platform.upper()} device(s)"
    hardware += f" in each of {processes.count} processes" if processes.count > 1 else ""
    hardware += f", {config.devices_per_replica} a replica" if config.devices_per_replica > 1 else ""
    return (
        f"{batch.atoms.symbols.formula.reduce()[0].format('metal')}, {len(batch.atoms)} atoms, "
        f"{len(batch.temperatures)} replicas, {ladder}, {ensemble}, {config.steps} steps of {config.timestep:g} fs "
        f"= {config.steps * config.timestep / 1000:g} ps, model {batch.potential.name} ({config.dtype}{caveat}"
        f"{committee}), {hardware}"
    )


def _check_devices(config: SweepConfig) -> None:
    """Set up the devices of this process.

    Raises:
        InputError: fewer than `devices` asks for.
    """
    most = bounds.MOST_CPU_DEVICES_PER_CORE * usable_cores()
    wanted = 1 if config.model.startswith(HOST_PREFIX) else config.devices or None
    found = configure_devices(None if wanted is None else min(wanted, most))
    if config.devices > found and not config.model.startswith(HOST_PREFIX):
        kind = local_devices()[0].platform.upper()
        raise InputError(
            f"`devices={config.devices}`: there are {found} {kind} devices"
            + (f", {bounds.MOST_CPU_DEVICES_PER_CORE} for each core at most" if kind == "CPU" else "")
            + f"; give at most {found}, or 0 for the usual number"
        )


def _few_samples(config: SweepConfig) -> str:
    """A word where only the first and the last step are recorded, or ""."""
    if config.sample_every <= config.steps:
        return ""
    return (
        f"`sample_every={config.sample_every}` is beyond `steps={config.steps}`: only the first and the last step are "
        "recorded; averages need more samples"
    )


def _write_outcome(setup: Setup, run: StoredRun, finished: Finished) -> None:
    """How each replica ended, for the report."""
    replicas = [
        {
            "temperature_K": float(kelvin),
            "trajectory": path.name,
            "frames": valid_frames(path),
            "status": "molten" if reason == MOLTEN else "failed" if reason else "ok",
            "reason": words,
            "step_failed": int(step) if reason else None,
        }
        for kelvin, path, reason, step, words in zip(
            run.batch.temperatures,
            run.trajectories,
            *finished.ended,
            finished.ended.describe(run.batch.limits),
            strict=True,
        )
    ]
    notes: dict[str, Any] = {"polarization_note": setup.measurements.note, "caveat": run.batch.potential.caveat}
    if setup.committee is not None:
        notes["committee"] = describe_committee(setup.committee)
    write_json_atomic(run.folder / OUTCOME_FILE, {"replicas": replicas, **notes, "seconds": finished.seconds})
