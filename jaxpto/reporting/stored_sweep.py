"""A finished sweep, read back from its output folder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np

from jaxpto.errors import InputError
from jaxpto.observables.force_deviation import FORCE_DEVIATION, DomainRecord, DomainSummary, domain_record
from jaxpto.observables.further import FurtherAverage, further_series
from jaxpto.observables.lattice import UnitCell
from jaxpto.observables.mean_structure import mean_structure
from jaxpto.observables.summary import ReplicaRecord, TemperatureSummary, production_start
from jaxpto.perovskite.unit_cell import unit_cell
from jaxpto.storage.trajectory import Trajectory, read_trajectory, trajectory_origin
from jaxpto.structures import BUILT_IN

CONFIG_FILE = "config.json"
OUTCOME_FILE = "outcome.json"
TRANSITION_FILE = "transition.json"
SUMMARY = "summary"  # stem of a CSV and a JSON file
# of `DomainSummary`, in a line of a table
DOMAIN_NAMES = ("left_domain", "left_domain_step", "left_domain_deviation_eV_per_A", "left_domain_error_eV_per_A")


@dataclasses.dataclass(frozen=True)
class StoredSweep:
    """Everything a report tells about a sweep.

    Attributes:
        records: all replicas.
        unit: the cell whose lattice parameters are reported.
        atoms: number of atoms of a replica.
        equilibration: fraction of each run left out of the averages.
        formula: reduced chemical formula, metals first, as in "PbTiO3".
        settings: content of config.json: the configuration, versions, device, git state.
        notes: remarks for the reader, such as why there is no polarization.
        caveat: what the model's forces are not, as in `Potential.caveat`; "" if there is nothing to say.
    """

    records: list[ReplicaRecord]
    unit: UnitCell
    atoms: int
    equilibration: float
    formula: str
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    caveat: str = ""

    @property
    def description(self) -> str:
        """What was simulated with what, as in "PbTiO3 with perovskite, 625 atoms from PbTiO3-tetragonal"."""
        model, start = self.settings["config"]["model"], self.settings["config"]["structure"]
        model = model if model.startswith("ase:") else Path(model).name
        return (
            f"{self.formula} with {model}, {self.atoms} atoms from {start if start in BUILT_IN else Path(start).name}"
        )


def load_sweep(folder: str | Path) -> StoredSweep:
    """Read a finished sweep back from config.json, outcome.json and its trajectories.

    Raises:
        InputError: a file is missing or damaged.
    """
    folder = Path(folder)
    document = read_object(folder / CONFIG_FILE, "config")
    if not (folder / OUTCOME_FILE).exists():
        raise InputError(
            f"{folder}: the sweep has not finished; continue it with python -m jaxpto.sweep (`resume=True`)"
        )
    outcome = read_object(folder / OUTCOME_FILE, "replicas")
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
            record = _record(entry, trajectory, float(pressure), earlier[temperature], outcome.get("committee", {}))
            if not unit.perovskite and len(trajectory.step):
                kept = slice(production_start(record.time_ps, equilibration), None)
                mean = mean_structure(trajectory.numbers, trajectory.positions[kept], trajectory.cells[kept])
                record = dataclasses.replace(record, structure=mean)
            records.append(record)
            earlier[temperature] += 1
        notes = [outcome["polarization_note"]] if outcome["polarization_note"] else []
        if stress is not None:  # runs of earlier versions knew one measure only
            measure, six = config.get("stress_measure", "piola-kirchhoff"), " ".join(f"{value:g}" for value in stress)
            notes.append(
                f"External {measure} stress {six} GPa (xx yy zz yz xz xy); the pressure told is that of its mean."
            )
        return StoredSweep(
            records=records,
            unit=unit,
            atoms=0 if first is None else len(first),
            equilibration=equilibration,
            formula="" if first is None else first.symbols.formula.reduce()[0].format("metal"),
            settings=document | {"seconds": outcome["seconds"]},
            notes=tuple(notes),
            caveat=outcome.get("caveat", ""),  # sweeps of earlier versions have none
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


def _record(
    entry: dict[str, Any], stored: Trajectory, pressure_GPa: float, replica: int, committee: dict[str, Any]
) -> ReplicaRecord:
    """One replica from its entry in outcome.json, its trajectory and what the model's committee says of itself."""
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
        further=further_series(stored),
        domain=_domain(stored, committee),
    )


def _domain(stored: Trajectory, committee: dict[str, Any]) -> DomainRecord | None:
    """Where a replica left what its model was trained on; None where nobody knows how far that reaches."""
    if "largest_deviation_of_training" not in committee:
        return None
    deviations = np.asarray(stored.observables[FORCE_DEVIATION], np.float64)
    limit, factor = committee["largest_deviation_of_training"], committee["error_per_deviation"]
    return domain_record(deviations, stored.step, np.asarray(stored.time, np.float64) / 1000.0, limit, factor)


def _first_frame(stored: Trajectory) -> ase.Atoms:
    return ase.Atoms(stored.numbers, stored.positions[0], cell=stored.cells[0], pbc=True)


def read_summary(folder: str | Path) -> list[TemperatureSummary]:
    """Rows of a summary.json.

    Raises:
        InputError: the file is missing or was written by another version.
    """
    path = Path(folder) / f"{SUMMARY}.json"
    try:
        return [_summary({key: _or_nan(value) for key, value in line.items()}) for line in _read_json(path)]
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path}: {error}; regenerate it with python -m jaxpto.report {folder}") from None


def as_rows(summaries: Sequence[TemperatureSummary]) -> list[dict[str, Any]]:
    """Lines of a table, all with the same names: what else was measured stands as NAME and NAME_error at their end.

    After that, where the model has a calibrated committee, comes which replicas left the domain of its training.
    """
    names = list(dict.fromkeys(name for one in summaries for name in one.further))
    unknown = FurtherAverage(math.nan, math.nan, "")
    rows = []
    for one in summaries:
        row = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
        del row["further"], row["domain"]
        for name in names:
            average = one.further.get(name, unknown)
            row |= {name: average.value, f"{name}_error": average.error}
        if any(other.domain is not None for other in summaries):
            row |= dict(zip(DOMAIN_NAMES, one.domain or [math.nan] * len(DOMAIN_NAMES), strict=True))
        rows.append(row)
    return rows


def _summary(row: dict[str, Any]) -> TemperatureSummary:
    """The summary that `as_rows` made a line of; units of what else was measured are not stored."""
    domain = None
    if DOMAIN_NAMES[0] in row:
        domain = DomainSummary(*(row.pop(name) for name in DOMAIN_NAMES))
    known = {field.name for field in dataclasses.fields(TemperatureSummary)}
    others = [name for name in row if name not in known and f"{name}_error" in row]
    further = {name: FurtherAverage(row.pop(name), row.pop(f"{name}_error"), "") for name in others}
    return TemperatureSummary(**row, further=further, domain=domain)


def _or_nan(value: Any) -> Any:
    return math.nan if value is None else value  # only numbers are ever null


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


def read_object(path: Path, entry: str) -> dict[str, Any]:
    """A JSON object that has `entry`.

    Raises:
        InputError: the file is missing, damaged, or without the entry.
    """
    document = _read_json(path)
    if not isinstance(document, dict) or entry not in document:
        raise InputError(f"{path} is damaged, without its entry '{entry}'; restore the file")
    return document
