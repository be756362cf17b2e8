"""COMMAND: a whole ladder of temperatures as one compiled, batched molecular dynamics program."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from jaxpto import terminal
from jaxpto.ase_potential import PREFIX as HOST_PREFIX
from jaxpto.command import configure_devices, run_command
from jaxpto.config import PRESETS, SweepConfig, changed_fields, check, to_json
from jaxpto.crowding import crowding
from jaxpto.dynamics import Limits
from jaxpto.errors import InputError
from jaxpto.preparation import Setup, prepare, usable_devices
from jaxpto.processes import Processes, connect
from jaxpto.provenance import fingerprint, provenance
from jaxpto.simulation import simulate
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.output import check_output_folder
from jaxpto.system import defining_arrays


def run(config: SweepConfig) -> Path:
    """Run a sweep, or continue it, and write its output folder.

    Returns:
        The output folder: config.json, summary.csv and .json, trajectories/, checkpoints/, figures and report.html.

    Raises:
        InputError: settings, structure, model or output folder that cannot be used; nothing is written then.
        StorageError: the disk fails in mid-run; what was computed up to the last checkpoint stays.
        OtherProcessError: of several processes, another one has ended.
    """
    check(config)
    processes = connect(config.distributed, config.distributed_timeout)
    console = terminal.console(quiet=not processes.first)
    folder = Path(config.out)
    with processes.telling():
        configure_devices(1 if config.model.startswith(HOST_PREFIX) else config.devices or None)
        setup = prepare(config)
        if processes.count > len(setup.temperatures):
            raise InputError(f"{processes.count} processes for {len(setup.temperatures)} replica(s); start fewer")
        _enter(folder, setup, processes)
        console.print(_headline(setup, processes), highlight=False, soft_wrap=True)
        for note in (*setup.notes, setup.note, crowding(setup.potential, [setup.atoms])):
            if note:
                console.print(note, highlight=False, soft_wrap=True, markup=False)
        simulate(setup, folder, console, processes)
        if processes.first:
            from jaxpto.report import write_outputs  # not before the run: matplotlib takes a second to import

            write_outputs(folder, console)
    return folder


def _enter(folder: Path, setup: Setup, processes: Processes) -> None:
    """Take the folder for this run: the first process claims it, the others check that they see the same run there."""
    identity = _identity(setup)
    if processes.first and not _claim(folder, setup.config, identity):
        _write_config(folder, setup.config, identity)
    processes.any(False)
    if not processes.first and not _claim(folder, dataclasses.replace(setup.config, resume=True), identity):
        raise InputError(
            f"--out {folder}: process {processes.index} does not see what process 0 has written there; "
            "name a folder on a disk that all processes share"
        )


def _identity(setup: Setup) -> dict[str, Any]:
    """Digests of what the settings only name: the structure and the model's parameters."""
    structure = hashlib.sha256()
    for array in defining_arrays(setup.atoms):
        structure.update(array.tobytes())
    return {"structure": structure.hexdigest()[:16], "model": fingerprint(setup.potential)}


def _claim(folder: Path, config: SweepConfig, identity: dict[str, Any]) -> bool:
    """Whether the folder holds this very run to be continued.

    Raises:
        InputError: the folder is in use, or holds a run with other settings, structure or model.
    """
    stored = folder / "config.json"
    check_output_folder(folder, resume=config.resume or os.path.exists(stored))
    if not stored.exists():
        return False
    if not config.resume:
        raise InputError(f"--out {folder} already holds a sweep; add --resume to continue it or name a new folder")
    try:
        document = json.loads(stored.read_text())
        changes = changed_fields(config, document["config"])
        before = document["identity"]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise InputError(f"{stored} is damaged; restore it or start in a new folder") from None
    changes += [f"the {name} is another one" for name, digest in identity.items() if before.get(name) != digest]
    if changes:
        raise InputError(
            f"--resume with changed settings: {'; '.join(changes)}; "
            f"resume with the settings in {stored} or name a new --out"
        )
    return True


def _write_config(folder: Path, config: SweepConfig, identity: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {"config": to_json(config), "identity": identity, "limits": dataclasses.asdict(Limits())}
    write_json_atomic(folder / "config.json", document | provenance())


def _headline(setup: Setup, processes: Processes) -> str:
    config = setup.config
    ladder = f"{min(config.temperatures):g}-{max(config.temperatures):g} K"
    if len(config.temperatures) == 1:
        ladder = f"{config.temperatures[0]:g} K"
    ensemble = f"npt {config.mask}" if config.ensemble == "npt" else config.ensemble
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
    """Entry point of `python -m jaxpto.sweep`."""
    return run_command("jaxpto.sweep", SweepConfig, run, defaults=_preset(sys.argv[1:]))


def _preset(argv: list[str]) -> SweepConfig:
    """The defaults that a `--preset` on the command line stands for."""
    for word, value in zip(argv, [*argv[1:], ""], strict=False):
        name = value if word == "--preset" else word.removeprefix("--preset=")
        if (word == "--preset" or word.startswith("--preset=")) and name in PRESETS:
            return PRESETS[name]
    return PRESETS[None]


if __name__ == "__main__":
    sys.exit(main())
