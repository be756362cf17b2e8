"""COMMAND python -m jaxpto.report: summary, figures and a web page from the stored results of one or several sweeps."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import ase
import numpy as np
import tyro
from rich.console import Console

from jaxpto.console import terminal
from jaxpto.console.command import leave, run_command
from jaxpto.console.options import as_typed
from jaxpto.console.terminal import WholeTable
from jaxpto.errors import InputError
from jaxpto.md.config import SweepConfig
from jaxpto.observables.lattice import UnitCell
from jaxpto.observables.mean_structure import mean_structure
from jaxpto.observables.summary import ReplicaRecord, TemperatureSummary, production_start, summarize, transitions
from jaxpto.observables.transition import sequence
from jaxpto.perovskite.unit_cell import unit_cell
from jaxpto.reporting import figures, page
from jaxpto.storage.files import replacing, write_json_atomic, write_text_atomic
from jaxpto.storage.output import check_output_folder
from jaxpto.storage.trajectory import Trajectory, read_trajectory, trajectory_origin
from jaxpto.structures import BUILT_IN
from jaxpto.units import spell_kelvin

CONFIG_FILE = "config.json"
OUTCOME_FILE = "outcome.json"
TRANSITION_FILE = "transition.json"
SUMMARY_FILE = "summary.json"
ONE_START = (
    "Runs from one start do not see hysteresis, and small cells and short runs move a transition: compare with a run "
    "from the other phase, a larger cell and a longer run."
)


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Regenerate summary.csv, summary.json, figures and report.html of a sweep, or compare several sweeps.

    `python -m jaxpto.report pto-0k --help` is about the paper's table and figure of PbTiO3 at 0 K.

    Attributes:
        folders: output folder of a sweep; several are compared in common figures.
        out: folder for the comparison of several sweeps.
    """

    folders: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    out: str | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a report tells about a sweep.

    Attributes:
        records: all replicas.
        unit: the cell whose lattice parameters are told.
        atoms: number of atoms of a replica.
        equilibration: fraction of each run left out of the averages.
        formula: reduced chemical formula, metals first, as in "PbTiO3".
        settings: content of config.json: the configuration, versions, device, git state.
        notes: remarks for the reader, such as why there is no polarization, or that forces are no derivatives.
    """

    records: list[ReplicaRecord]
    unit: UnitCell
    atoms: int
    equilibration: float
    formula: str
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()


def load_run(folder: str | Path) -> Run:
    """Read a finished sweep back from config.json, outcome.json and its trajectories.

    Raises:
        InputError: a file is missing or damaged.
    """
    folder = Path(folder)
    document = _read_object(folder / CONFIG_FILE, "config")
    if not (folder / OUTCOME_FILE).exists():
        raise InputError(f"{folder}: the sweep has not finished; continue it with python -m jaxpto.sweep ... --resume")
    outcome = _read_object(folder / OUTCOME_FILE, "replicas")
    try:
        config, entries = document["config"], outcome["replicas"]
        for name in ("model", "structure", "ensemble"):
            config[name]  # told by the report
        stress = config["stress"]
        pressure = config["pressure"] if stress is None else -sum(stress[:3]) / 3.0
        equilibration = float(config["equilibration"])
        earlier: Counter[float] = Counter()
        records: list[ReplicaRecord] = []
        first, unit = None, UnitCell(np.diag(1.0 / np.asarray(_three(config["supercell"]), float)), perovskite=False)
        for entry in entries:
            temperature = float(entry["temperature_K"])
            trajectory = _checked_trajectory(folder, entry, earlier[temperature], document.get("run"))
            if first is None and len(trajectory.step):
                first = _first_frame(trajectory)
                unit = unit_cell(first, _three(config["supercell"]))
            record = _record(entry, trajectory, float(pressure), earlier[temperature])
            if not unit.perovskite and len(trajectory.step):
                kept = slice(production_start(record.time_ps, equilibration), None)
                mean = mean_structure(trajectory.numbers, trajectory.positions[kept], trajectory.cells[kept])
                record = dataclasses.replace(record, structure=mean)
            records.append(record)
            earlier[temperature] += 1
        caveat = outcome.get("caveat", "")  # sweeps of earlier versions have none
        notes = [f"The model's {caveat}, which a simulation need not conserve."] if caveat else []
        notes += [outcome["polarization_note"]] if outcome["polarization_note"] else []
        if stress is not None:  # runs of earlier versions knew one measure only
            measure, six = config.get("stress_measure", "piola-kirchhoff"), " ".join(f"{value:g}" for value in stress)
            notes.append(
                f"External {measure} stress {six} GPa (xx yy zz yz xz xy); the pressure told is that of its mean."
            )
        return Run(
            records=records,
            unit=unit,
            atoms=0 if first is None else len(first),
            equilibration=equilibration,
            formula="" if first is None else first.symbols.formula.reduce()[0].format("metal"),
            settings=document | {"seconds": outcome["seconds"]},
            notes=tuple(notes),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: config.json or outcome.json is damaged ({error!r}); restore it") from None


def _checked_trajectory(folder: Path, entry: dict[str, Any], replica: int, run: str | None) -> Trajectory:
    """The trajectory of an entry in outcome.json, if it is the one and holds the frames that the run ended with.

    Raises:
        InputError: it does not; folders of earlier versions do not tell and are trusted.
    """
    path = folder / "trajectories" / entry["trajectory"]
    remedy = "restore it from a copy, or run the sweep anew in another folder"
    trajectory, origin = read_trajectory(path), trajectory_origin(path)
    for name, value in {"run": run, "temperature_K": float(entry["temperature_K"]), "replica": replica}.items():
        if name in origin and value is not None and origin[name] != value:
            raise InputError(f"{path} belongs elsewhere: its {name} is {origin[name]}, not {value}; {remedy}")
    if len(trajectory.step) != entry.get("frames", len(trajectory.step)):
        raise InputError(
            f"{path} holds {len(trajectory.step)} frames, {OUTCOME_FILE} counts {entry['frames']}; {remedy}"
        )
    return trajectory


def _record(entry: dict[str, Any], stored: Trajectory, pressure_GPa: float, replica: int) -> ReplicaRecord:
    """One replica from its entry in outcome.json and its trajectory."""
    observed = {name: np.asarray(values, np.float64) for name, values in stored.observables.items()}
    return ReplicaRecord(
        temperature_K=float(entry["temperature_K"]),
        pressure_GPa=pressure_GPa,
        replica=replica,
        status=entry["status"],
        reason=entry["reason"],
        step_failed=entry["step_failed"],
        time_ps=np.asarray(stored.time, np.float64) / 1000.0,
        cell=np.asarray(stored.cells, np.float64),
        rotation=stored.rotation,
        temperature=observed["temperature"],
        potential_energy=observed["potential_energy"],
        kinetic_energy=observed["kinetic_energy"],
        conserved=observed["conserved"],
        stress=observed["stress"],
        polarization=observed["polarization"] if np.isfinite(observed["polarization"]).any() else None,
    )


def _first_frame(stored: Trajectory) -> ase.Atoms:
    return ase.Atoms(stored.numbers, stored.positions[0], cell=stored.cells[0], pbc=True)


def write_outputs(folder: str | Path, console: Console) -> None:
    """Summary, figures and report of a finished sweep into its folder, and its result on the console.

    Raises:
        InputError: `folder` holds no finished sweep.
        StorageError: the disk refuses a file.
    """
    finished = load_run(folder)
    rows = write_all(folder, finished)
    table = WholeTable(box=None, pad_edge=False)
    for name in ("T (K)", "phase", "a (A)", "b (A)", "c (A)", "c/a", "P (C/m^2)"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    uncertain = page.uncertain
    for row in rows:
        lattice = [uncertain(row.a, row.a_sem), uncertain(row.b, row.b_sem), uncertain(row.c, row.c_sem)]
        ratio, polar = page.axis_ratio(row), uncertain(row.P, row.P_sem)
        table.add_row(spell_kelvin(row.temperature_K), page.phase_and_axis(row), *lattice, ratio, polar)
    console.print(table)
    for row in rows:
        if row.warnings:
            console.print(f"{spell_kelvin(row.temperature_K)} K: {row.warnings}")
    console.print(headline(rows, _subject(finished)))
    console.print(f"report: {Path(folder) / 'report.html'}")


def write_all(folder: str | Path, run: Run) -> list[TemperatureSummary]:
    """Summary, figures and report of a sweep into its folder; returns the rows of the summary."""
    rows = summarize(run.records, run.unit, run.equilibration)
    write_summary(folder, rows, run.formula)
    images = make_figures(run, rows)
    for name, image in images.items():
        _write_bytes(Path(folder) / name, image)
    write_report(folder, run, rows, images)
    return rows


def write_summary(folder: str | Path, rows: list[TemperatureSummary], formula: str) -> None:
    """Write summary.csv, summary.json (a list of rows, one a temperature) and transition.json (`Transition`).

    Units are those of `TemperatureSummary`; a value that does not exist is empty in CSV and null in JSON.
    """
    table = [dataclasses.asdict(row) for row in rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in dataclasses.fields(TemperatureSummary)])
    writer.writeheader()
    for line in table:
        missing = {key: "" for key, value in line.items() if isinstance(value, float) and math.isnan(value)}
        writer.writerow(line | missing)
    write_text_atomic(Path(folder) / "summary.csv", buffer.getvalue())
    write_json_atomic(Path(folder) / SUMMARY_FILE, table)
    found = [dataclasses.asdict(transition) for transition in transitions(rows)]
    write_json_atomic(Path(folder) / TRANSITION_FILE, {"formula": formula, "transitions": found})


def read_summary(folder: str | Path) -> list[TemperatureSummary]:
    """Rows of a summary.json.

    Raises:
        InputError: the file is missing or was written by another version.
    """
    path = Path(folder) / SUMMARY_FILE
    try:
        return [TemperatureSummary(**{key: _or_nan(value) for key, value in line.items()}) for line in _read_json(path)]
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path}: {error}; regenerate it with python -m jaxpto.report {folder}") from None


def _or_nan(value: Any) -> Any:
    return math.nan if value is None else value  # only numbers are ever null


def make_figures(run: Run, rows: list[TemperatureSummary]) -> dict[str, bytes]:
    """The figures of a sweep as PNG by file name; polarization.png only where there is a polarization."""
    sweep = [figures.Sweep(run.formula, rows)]
    images = {"lattice.png": figures.png(figures.lattice_figure(sweep, _experiment(run.formula, rows)))}
    polarization = figures.polarization_figure(sweep)
    if polarization is not None:
        images["polarization.png"] = figures.png(polarization)
    images["timeseries.png"] = figures.png(figures.timeseries_figure(run.records, run.unit, run.equilibration))
    return images


def headline(rows: list[TemperatureSummary], subject: str) -> str:
    """The result of a sweep in one sentence.

    Args:
        rows: one a temperature.
        subject: what was simulated with what, as in "PbTiO3 with perovskite, 625 atoms from PbTiO3-tetragonal".
    """
    found = transitions(rows)
    kelvin, phases = [row.temperature_K for row in rows], [row.phase for row in rows]
    text = f"{subject}: {found[0].message if found else sequence(kelvin, phases)}"
    if found and len(set(phases)) > 2:
        text += f"; {sequence(kelvin, phases)}"
    flagged = sum(bool(row.warnings) for row in rows if row.n_ok)
    if flagged:
        averaged = sum(row.n_ok > 0 for row in rows)
        text += f"; preliminary: {flagged} of {averaged} averages are flagged, see the warnings"
    lost = sum(row.n_replicas - row.n_ok for row in rows)
    if lost:
        lowest = min(row.temperature_K for row in rows if row.n_ok < row.n_replicas)
        every = sum(row.n_replicas for row in rows)
        text += f"; {lost} of {every} replicas melted or failed, from {spell_kelvin(lowest)} K on"
    return text + "."


def write_report(folder: str | Path, run: Run, rows: list[TemperatureSummary], images: dict[str, bytes]) -> None:
    """Write report.html: result, table, convergence, lost replicas, figures, how it was run; it needs no other file.

    Args:
        folder: output folder of the sweep.
        run: the sweep.
        rows: its summary.
        images: figures as PNG by file name.
    """
    subject = _subject(run)
    remarks = [f"From the {found.order_parameter}: {found.message}." for found in transitions(rows)[1:]]
    if any(found.temperature_K is not None for found in transitions(rows)):
        remarks.append(ONE_START)
    sections = [
        page.result(headline(rows, subject), [*remarks, *(as_typed(note, SweepConfig) for note in run.notes)]),
        page.summary_table(rows),
        page.warning_section(rows),
        page.failure_section(run.records),
        page.figure_section(images),
        page.settings_section(run.settings),
    ]
    write_text_atomic(Path(folder) / "report.html", page.page(f"Temperature sweep of {subject}", sections))


def compare(folders: list[str], out: str | Path) -> None:
    """Overlay finished sweeps (a tetragonal and a cubic start, or several models) in lattice.png and polarization.png.

    Args:
        folders: output folders with a summary.json.
        out: folder for the two figures and a report.html; created if missing.

    Raises:
        InputError: a folder holds no sweep, or `out` is one of the folders.
    """
    out = Path(out)
    if any(Path(folder).resolve() == out.resolve() for folder in folders):
        raise InputError(f"--out {out} is one of the compared sweeps and would be overwritten; give another folder")
    check_output_folder(out, resume=True)
    tables = [read_summary(folder) for folder in folders]
    settings = [_read_object(Path(folder) / CONFIG_FILE, "config") for folder in folders]
    formulas = [_read_object(Path(folder) / TRANSITION_FILE, "formula")["formula"] for folder in folders]
    names = _distinct_names(folders, settings)
    sweeps = [figures.Sweep(name, rows) for name, rows in zip(names, tables, strict=True)]
    experiment = _experiment(formulas[0], [row for rows in tables for row in rows]) if len(set(formulas)) == 1 else None
    images = {"lattice.png": figures.png(figures.lattice_figure(sweeps, experiment))}
    polarization = figures.polarization_figure(sweeps)
    if polarization is not None:
        images["polarization.png"] = figures.png(polarization)
    out.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        _write_bytes(out / name, image)
    findings = [headline(rows, name) for rows, name in zip(tables, names, strict=True)]
    tables_html = [
        f"{page.summary_table(rows).replace('<h2>Results</h2>', f'<h2>{html.escape(name)}</h2>', 1)}"
        for rows, name in zip(tables, names, strict=True)
    ]
    sections = [page.result(findings[0], []), *(page.result(text, []) for text in findings[1:])]
    sections += [page.figure_section(images), *tables_html]
    sections.append(page.settings_section(dict(zip(names, folders, strict=True)), "Compared folders"))
    write_text_atomic(out / "report.html", page.page("Comparison of temperature sweeps", sections))


def run(config: ReportConfig) -> None:
    """Regenerate the report of one sweep, or compare several.

    Raises:
        InputError: no folder, several without --out, or a folder that holds no sweep.
    """
    console = terminal.console(ReportConfig)
    if not config.folders:
        raise InputError("no folder given; name the output folder of a sweep")
    for folder in config.folders:
        if not Path(folder).is_dir():
            raise InputError(f"{folder}: no such folder; give the output folder of a sweep")
    if config.out is not None:
        compare(list(config.folders), config.out)
        console.print(f"report: {Path(config.out) / 'report.html'}")
        return
    if len(config.folders) > 1:
        raise InputError(f"{len(config.folders)} folders to compare but no --out; name a folder for the comparison")
    check_output_folder(config.folders[0], resume=True, called="folder")
    write_outputs(config.folders[0], console)


def main() -> int:
    """Entry point of `python -m jaxpto.report`."""
    if sys.argv[1:2] == ["pto-0k"]:
        from jaxpto.pto import zero_kelvin  # this needs the models, which reports of stored results do not

        return zero_kelvin.main(sys.argv[2:])
    return run_command("jaxpto.report", ReportConfig, run)


def _experiment(formula: str, rows: list[TemperatureSummary]) -> figures.Experiment | None:
    ambient = all(abs(row.pressure_GPa) < 0.1 for row in rows)
    return figures.LEAD_TITANATE if formula == "PbTiO3" and ambient else None


def _subject(run: Run) -> str:
    config = run.settings["config"]
    model = config["model"]
    start = config["structure"] if config["structure"] in BUILT_IN else Path(config["structure"]).name
    known = f"{run.formula} with {model if model.startswith('ase:') else Path(model).name}"
    return f"{known}, {run.atoms} atoms from {start}"


def _distinct_names(folders: list[str], settings: list[dict[str, Any]]) -> list[str]:
    """Short names that tell the sweeps apart: what differs of their settings, else the folders' names."""
    described = [
        (one["config"]["model"], Path(one["config"]["structure"]).stem, one["config"]["ensemble"]) for one in settings
    ]
    differing = [k for k in range(3) if len({parts[k] for parts in described}) > 1]
    names = [", ".join(parts[k] for k in differing) for parts in described]
    if len(set(names)) < len(names):
        names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else folders


def _three(values: list[int]) -> tuple[int, int, int]:
    first, second, third = values
    return int(first), int(second), int(third)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the output folder of a sweep") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); restore the file") from None


def _read_object(path: Path, entry: str) -> dict[str, Any]:
    """A JSON object that has `entry`."""
    document = _read_json(path)
    if not isinstance(document, dict) or entry not in document:
        raise InputError(f"{path} is damaged, without its entry '{entry}'; restore the file")
    return document


def _write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


if __name__ == "__main__":
    leave(main())
