"""What a sweep says: its columns, its figures and its sentences."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jaxpto.observables.summary import ReplicaRecord, TemperatureSummary, summarize, transitions
from jaxpto.observables.transition import sequence
from jaxpto.perovskite.literature import EXPERIMENTS, Experiment
from jaxpto.reporting.columns import TEMPERATURE, Column, Row, uncertain
from jaxpto.reporting.result import Result, write_result
from jaxpto.reporting.sections import Items, Picture, ResultTable, picture
from jaxpto.reporting.stored_sweep import SUMMARY, TRANSITION_FILE, StoredSweep, as_rows
from jaxpto.reporting.temperature_figures import Sweep, lattice_figure, polarization_figure
from jaxpto.reporting.timeseries_figure import timeseries_figure
from jaxpto.storage.files import write_json_atomic
from jaxpto.units import spell_kelvin, spell_unit

AMBIENT = 0.1  # GPa, below which the experiment at no pressure is comparable
ONE_START = (
    "Runs from one start do not see hysteresis, and small cells and short runs move a transition: compare with a run "
    "from the other phase, a larger cell and a longer run."
)
NOTE = (
    "Time averages over the production part; in brackets the standard error of the mean in units of the last "
    "digits (from the autocorrelation time or blocking, whichever is larger). a, b, c are the pseudo-cubic axes of "
    "a perovskite (5-atom cell), those of the repeated cell in other crystals, and x, y, z lie along them; "
    "c/a = c/((a + b)/2); longest/others takes the longest of the averaged axes, whichever it is. The phase of a "
    "perovskite is the crystal system of its averaged strain (0.5 % or the error) and of its polarization where "
    "that is significant; supertetragonal from longest/others = 1.15."
)
LATTICE_CAPTION = (
    "Lattice parameters of the unit cell. Filled: c, the polar (longest) axis; open: a, the mean of "
    "the two others; in a cubic phase c is the third axis. Error bars: standard deviation of the thermal fluctuations."
)
POLARIZATION_CAPTION = "Polarization from Born charges. Error bars: standard deviation of the thermal fluctuations."
TIMESERIES_CAPTION = "Lattice parameters of every replica; the shaded part is left out of the averages."
LEFT_DOMAIN = Column("left_domain", "replicas beyond the training", form=".0f", terminal=False)
LOST_COLUMNS = (
    TEMPERATURE,
    Column("replica", "replica", form=".0f"),
    Column("status", "status", words=True),
    Column("step_failed", "stopped at step", form=".0f"),
    Column("last_ps", "last sample", "ps", ".3g"),
    Column("reason", "reason", words=True),
)


def write_sweep_report(
    folder: str | Path, sweep: StoredSweep, console: Console, options: type | None = None
) -> list[TemperatureSummary]:
    """Write summary, transition, figures and report of a sweep into its folder, and print its result.

    Units are those of `TemperatureSummary`; a value that does not exist is empty in CSV and null in JSON.

    Args:
        folder: output folder of the sweep.
        sweep: what it found.
        console: where the table goes.
        options: configuration of the command that ran it, for the spelling of its settings.

    Returns:
        The rows of the summary, one for each temperature.

    Raises:
        StorageError: the disk refuses a file.
    """
    rows = summarize(sweep.records, sweep.unit, sweep.equilibration)
    found = transitions(rows)
    remarks = [f"From the {one.order_parameter}: {one.message}." for one in found[1:]]
    remarks += [ONE_START] if any(one.temperature_K is not None for one in found) else []
    result = Result(
        title=f"Temperature sweep of {sweep.description}",
        headline=headline(rows, sweep.description),
        notes=[*remarks, *sweep.notes],
        caveat=sweep.caveat,
        table=summary_table(rows),
        stem=SUMMARY,
        sections=[*convergence(rows), *domain_of_training(sweep.records), *lost_replicas(sweep.records)],
        pictures=sweep_pictures(sweep, rows),
        settings=sweep.settings,
        options=options,
    )
    document = {"formula": sweep.formula, "transitions": [dataclasses.asdict(one) for one in found]}
    write_json_atomic(Path(folder) / TRANSITION_FILE, document)
    write_result(Path(folder), result, console)
    return rows


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
    outside = [row for row in rows if row.domain is not None and row.domain.replicas]
    if outside:
        left, every = sum(row.domain.replicas for row in outside if row.domain), sum(row.n_replicas for row in rows)
        lowest = spell_kelvin(min(row.temperature_K for row in outside))
        text += f"; {left} of {every} replicas left the domain of the model's training, from {lowest} K on"
    return text + "."


def summary_table(rows: Sequence[TemperatureSummary], heading: str = "Results") -> ResultTable:
    """One row a temperature; columns that say nothing are left out, and lost temperatures marked."""
    pressures = len({row.pressure_GPa for row in rows}) > 1 or any(row.pressure_GPa != 0.0 for row in rows)
    polar = any(not math.isnan(row.P) for row in rows)
    components = [Column(f"P{x}", f"P_{x}", "C/m^2", terminal=False) for x in "xyz"]
    further = {
        name: Column(name, name.replace("_", " "), spell_unit(average.unit), terminal=False)
        for row in rows
        for name, average in row.further.items()
    }
    domain = any(row.domain is not None for row in rows)
    replicas = Column("replica_phases", "replicas", words=True, terminal=False)
    columns = (
        TEMPERATURE,
        *([Column("pressure_GPa", "pressure", "GPa", "g", terminal=False)] if pressures else []),
        Column("phase", "phase", spell=phase_and_axis, words=True),
        Column("measured_temperature_K", "measured T", "K", terminal=False),
        *(Column(axis, axis, "A") for axis in "abc"),
        Column("c_over_a", "c/a", spell=axis_ratio, page=False),
        Column("c_over_a", "c/a", terminal=False),
        Column("tetragonality", "longest/others", terminal=False),
        Column("volume", "volume", "A^3", terminal=False),
        Column("P", "P", "C/m^2", page=False),
        *(components if polar else []),
        Column("independent_samples", "independent samples", "fewest of a, b, c", ".0f", terminal=False),
        Column("conserved_drift", "energy drift", "meV/cell/ps", ".2g", terminal=False),
        *further.values(),
        *([LEFT_DOMAIN] if domain else []),
        *([replicas] if any(row.n_replicas > 1 for row in rows) else []),
    )
    table = as_rows(rows)
    return ResultTable(columns, table, heading, NOTE, marked=lambda row: row["n_ok"] < row["n_replicas"])


def phase_and_axis(row: Row) -> str:
    """The phase of a row, with the polar axis where that is not c."""
    turned = "tetragonal" in row["phase"] and row["polar_axis"] in ("a", "b")
    return f"{row['phase']}, axis {row['polar_axis']}" if turned else row["phase"]


def axis_ratio(row: Row) -> str:
    """c/a of a row with its error: of a tetragonal phase the polar axis over the mean of the others, else c's."""
    name = "tetragonality" if row["phase"] in ("tetragonal", "supertetragonal") else "c_over_a"
    return uncertain(row[name], row[f"{name}_sem"])


def convergence(rows: list[TemperatureSummary]) -> list[Items]:
    """What has not converged, by temperature; says so if everything has."""
    found = [f"{spell_kelvin(row.temperature_K)} K: {row.warnings}" for row in rows if row.warnings]
    if found:
        return [Items("Convergence", "Treat these averages with care:", found)]
    fine = "Every average rests on at least 10 independent samples and shows no drift."
    return [Items("Convergence", fine)] if any(row.n_ok for row in rows) else []


def domain_of_training(records: list[ReplicaRecord]) -> list[Items]:
    """Which replicas left what the model was trained on, when, and how wrong forces are there; says so if none did.

    Nothing where the model has no committee that could tell.
    """
    known = [(record, record.domain) for record in records if record.domain is not None]
    if not known:
        return []
    several = Counter(record.temperature_K for record, _ in known)
    found = []
    for record, domain in known:
        if domain.step is None:
            continue
        name = f"{spell_kelvin(record.temperature_K)} K" + (
            f", replica {record.replica}" if several[record.temperature_K] > 1 else ""
        )
        error = "" if math.isnan(domain.error) else f", where an error of about {domain.error:.2g} eV/A is expected"
        found.append(
            f"{name}: left the domain of the model's training at step {domain.step} ({domain.time_ps:.3g} ps): force "
            f"deviation {domain.deviation:.2g} eV/A{error}; {domain.beyond} of {domain.frames} samples are beyond"
        )
    limit = f"{known[0][1].limit:.2g} eV/A, the largest deviation of a force in the frames of the training"
    if found:
        return [Items("Domain of the model", f"Replicas in which the committee disagrees by more than {limit}:", found)]
    return [Items("Domain of the model", f"In no replica does the committee disagree by more than {limit}.")]


def lost_replicas(records: list[ReplicaRecord]) -> list[ResultTable]:
    """Replicas that melted or failed, with step, time and reason; nothing if all came through."""
    lost = [record for record in records if record.status != "ok"]
    rows = [
        {name: getattr(record, name) for name in ("temperature_K", "replica", "status", "step_failed", "reason")}
        | {"last_ps": float(record.time_ps[-1]) if record.time_ps.shape[0] else math.nan}
        for record in sorted(lost, key=lambda r: (r.pressure_GPa, r.temperature_K, r.replica))
    ]
    return [ResultTable(LOST_COLUMNS, rows, "Lost replicas")] if rows else []


def sweep_pictures(sweep: StoredSweep, rows: list[TemperatureSummary]) -> dict[str, Picture]:
    """The figures of a sweep by file name."""
    drawn = temperature_pictures([Sweep(sweep.formula, rows)], comparable_experiment([sweep.formula], rows))
    figure = timeseries_figure(sweep.records, sweep.unit, sweep.equilibration)
    return drawn | {"timeseries.png": picture(figure, TIMESERIES_CAPTION)}


def temperature_pictures(sweeps: list[Sweep], experiment: Experiment | None) -> dict[str, Picture]:
    """Figures against temperature by file name; polarization.png only where there is a polarization."""
    drawn = {"lattice.png": picture(lattice_figure(sweeps, experiment), LATTICE_CAPTION, wide=False)}
    polarization = polarization_figure(sweeps)
    if polarization is not None:
        drawn["polarization.png"] = picture(polarization, POLARIZATION_CAPTION, wide=False)
    return drawn


def comparable_experiment(formulas: Sequence[str], rows: Sequence[TemperatureSummary]) -> Experiment | None:
    """The experiment on the one crystal of all rows, if there is one and none is under pressure."""
    ambient = all(abs(row.pressure_GPa) < AMBIENT for row in rows)
    return EXPERIMENTS.get(formulas[0]) if ambient and len(set(formulas)) == 1 else None
