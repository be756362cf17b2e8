"""COMMAND: a whole ladder of temperatures as one compiled, batched molecular dynamics program."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

import jax

from jaxpto import bounds
from jaxpto.console import terminal
from jaxpto.console.command import FAILED, configure_devices, leave, run_command, usable_cores
from jaxpto.devices.processes import Processes, connect
from jaxpto.errors import InputError
from jaxpto.md.config import PRESETS, SweepConfig, changed_fields, check, to_json
from jaxpto.md.loop import Limits
from jaxpto.md.preparation import Setup, prepare, usable_devices
from jaxpto.md.stored_run import check_space, read_outcome, simulate
from jaxpto.models.ase_calculator import PREFIX as HOST_PREFIX
from jaxpto.models.suitability import neighbor_bound_warning
from jaxpto.potential import Potential
from jaxpto.reporting.provenance import fingerprint, provenance
from jaxpto.reporting.stored_sweep import load_sweep
from jaxpto.storage.lock import one_run
from jaxpto.storage.run_folder import CONFIG_FILE, check_unclaimed, read_config, run_name, write_config
from jaxpto.system import defining_arrays
from jaxpto.units import spell_kelvin


def run(config: SweepConfig, potential: Potential | None = None) -> Path:
    """Run a sweep, or continue it, and write its output folder.

    Args:
        config: the settings.
        potential: takes the place of the model that the settings name.

    Returns:
        The output folder: config.json, summary.csv and .json, trajectories/, checkpoints/, figures and report.html.

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
        setup = prepare(config, potential)
        if processes.count > len(setup.temperatures):
            raise InputError(f"{processes.count} processes for {len(setup.temperatures)} replica(s); start fewer")
        if processes.first:
            _claim(folder, setup.config, _identity(setup))  # what is refused leaves no trace
            check_space(setup, folder)
        with one_run(folder) if processes.first else contextlib.nullcontext():
            run = _enter(folder, setup, processes)
            console.print(_headline(setup, processes))
            for note in (
                *setup.notes,
                setup.note,
                neighbor_bound_warning(setup.potential, [setup.atoms]),
                _few_samples(setup.config),
            ):
                if note:
                    console.print(note)
            simulate(setup, folder, console, processes, run)
            if processes.first:
                # not before the run: matplotlib takes a second to import
                from jaxpto.reporting.sweep_report import write_sweep_report

                write_sweep_report(folder, load_sweep(folder), console, SweepConfig)
    return folder


def _check_devices(config: SweepConfig) -> None:
    """Set up the devices of this process.

    Raises:
        InputError: fewer than --devices asks for.
    """
    most = bounds.MOST_CPU_DEVICES_PER_CORE * usable_cores()
    wanted = 1 if config.model.startswith(HOST_PREFIX) else config.devices or None
    found = configure_devices(None if wanted is None else min(wanted, most))
    if config.devices > found and not config.model.startswith(HOST_PREFIX):
        kind = jax.local_devices()[0].platform.upper()
        raise InputError(
            f"--devices {config.devices}: there are {found} {kind} devices"
            + (f", {bounds.MOST_CPU_DEVICES_PER_CORE} for each core at most" if kind == "CPU" else "")
            + f"; give at most {found}, or 0 for the usual number"
        )


def _few_samples(config: SweepConfig) -> str:
    """A word where only the first and the last step are recorded, or ""."""
    if config.sample_every <= config.steps:
        return ""
    return (
        f"--sample-every {config.sample_every} is beyond --steps {config.steps}: only the first and the last step are "
        "recorded; averages need more samples"
    )


def _enter(folder: Path, setup: Setup, processes: Processes) -> str:
    """Take the folder for this run: the first process claims it, the others check that they see the same run there.

    Returns:
        The name of the run in the folder.
    """
    identity = _identity(setup)
    run = _claim(folder, setup.config, identity) if processes.first else None
    if processes.first and run is None:
        document = {"config": to_json(setup.config), "identity": identity, "limits": dataclasses.asdict(Limits())}
        run = write_config(folder, document | provenance())
    processes.any(False)
    if not processes.first:
        run = _claim(folder, dataclasses.replace(setup.config, resume=True), identity)
    if run is None:
        raise InputError(
            f"--out {folder}: process {processes.index} does not see what process 0 has written there; "
            "name a folder on a disk that all processes share"
        )
    return run


def _identity(setup: Setup) -> dict[str, Any]:
    """Digests of what the settings only name: the structure and the model's parameters."""
    structure = hashlib.sha256()
    for array in defining_arrays(setup.atoms):
        structure.update(array.tobytes())
    return {"structure": structure.hexdigest()[:16], "model": fingerprint(setup.potential)}


def _claim(folder: Path, config: SweepConfig, identity: dict[str, Any]) -> str | None:
    """The name of this very run, which the folder holds to be continued; None where the folder is free.

    Raises:
        InputError: the folder is in use, or holds a run with other settings, structure or model.
    """
    document = read_config(folder)
    if document is None:
        check_unclaimed(folder, resume=config.resume)
        return None
    if not config.resume:
        raise InputError(f"--out {folder} already holds a sweep; add --resume to continue it or name a new folder")
    changes, before = changed_fields(config, document["config"]), document["identity"]
    changes += [f"the {name} is another one" for name, digest in identity.items() if before.get(name) != digest]
    if changes:
        raise InputError(
            f"--resume with changed settings: {'; '.join(changes)}; "
            f"resume with the settings in {folder / CONFIG_FILE} or name a new --out"
        )
    return run_name(document)


def _headline(setup: Setup, processes: Processes) -> str:
    config = setup.config
    ladder = f"{spell_kelvin(min(config.temperatures))}-{spell_kelvin(max(config.temperatures))} K"
    if len(config.temperatures) == 1:
        ladder = f"{spell_kelvin(config.temperatures[0])} K"
    ensemble = f"npt {config.mask}" if config.ensemble == "npt" else config.ensemble
    if config.stress is not None:
        ensemble += f" at a {config.stress_measure} stress of {' '.join(f'{value:g}' for value in config.stress)} GPa"
    elif config.pressure:
        ensemble += f" at {config.pressure:g} GPa"
    caveat = f", {setup.potential.caveat}" if setup.potential.caveat else ""
    devices = usable_devices(config)
    hardware = f"{len(devices)} {devices[0].platform.upper()} device(s)"
    hardware += f" in each of {processes.count} processes" if processes.count > 1 else ""
    hardware += f", {config.devices_per_replica} a replica" if config.devices_per_replica > 1 else ""
    return (
        f"{setup.atoms.symbols.formula.reduce()[0].format('metal')}, {len(setup.atoms)} atoms, "
        f"{len(setup.temperatures)} replicas, {ladder}, {ensemble}, {config.steps} steps of {config.timestep:g} fs "
        f"= {config.steps * config.timestep / 1000:g} ps, model {setup.potential.name} ({config.dtype}{caveat}), "
        f"{hardware}"
    )


def main() -> int:
    """Entry point of `python -m jaxpto.sweep`; returns its exit code, 1 if no replica came through."""
    folders: list[Path] = []
    preset = _preset(sys.argv[1:])
    code = run_command("jaxpto.sweep", SweepConfig, lambda config: folders.append(run(config)), defaults=preset)
    if code or not folders:
        return code
    outcome = read_outcome(folders[0])  # of several processes, the first one writes it
    lost = outcome["replicas"] if outcome else []
    if not lost or any(replica["status"] == "ok" for replica in lost):
        return code
    print(f"jaxpto.sweep: all {len(lost)} replicas melted or failed; {folders[0]} says why", file=sys.stderr)
    return FAILED


def _preset(argv: list[str]) -> SweepConfig:
    """The defaults that a `--preset` on the command line stands for."""
    for word, value in zip(argv, [*argv[1:], ""], strict=False):
        name = value if word == "--preset" else word.removeprefix("--preset=")
        if (word == "--preset" or word.startswith("--preset=")) and name in PRESETS:
            return PRESETS[name]
    return PRESETS[None]


if __name__ == "__main__":
    leave(main())
