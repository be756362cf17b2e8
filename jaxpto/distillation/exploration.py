"""The students' own ladders: what they visit, where they disagree, and what they say about the lattice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np

from jaxpto.distillation.config import DistilConfig, ladder_of
from jaxpto.distillation.seeds import Crystal
from jaxpto.distillation.selection import Candidate, until_it_leaves
from jaxpto.md.config import SweepConfig
from jaxpto.observables.force_deviation import FORCE_DEVIATION
from jaxpto.observables.summary import TemperatureSummary, production_start
from jaxpto.reporting.stored_sweep import read_summary
from jaxpto.storage.trajectory import read_trajectory, trajectory_origin

SAMPLES = 100  # of a ladder
HIGHEST = 3.0  # times the agreement wanted: beyond it a student is lost, and what follows is no crystal's way
QUANTILE = 0.95
SIGNIFICANT = 2.0  # standard errors that two rounds may differ by


@dataclasses.dataclass(frozen=True)
class Rung:
    """What a ladder said about one structure at one temperature.

    Attributes:
        crystal: name of the structure.
        temperature: K.
        status: "ok", "molten" or "failed".
        deviation: 95 % quantile of the largest deviation of the committee's forces, eV/Angstrom; of the whole run
            where nothing is left after its equilibration.
        values: lattice constants and volume by name, with standard errors; empty unless the status is "ok".
    """

    crystal: str
    temperature: float
    status: str
    deviation: float
    values: dict[str, tuple[float, float]]


def ladder_settings(
    config: DistilConfig, crystal: Crystal, model: str, out: Path, *, steps: int, seed: int
) -> SweepConfig:
    """The sweep that a ladder is.

    Args:
        config: the settings.
        crystal: the structure.
        model: whoever runs.
        out: folder of the sweep.
        steps: time steps.
        seed: seed of the velocities.
    """
    return SweepConfig(
        structure=crystal.source,
        model=model,
        supercell=crystal.repeats,
        temperatures=ladder_of(config),
        steps=steps,
        timestep=config.timestep,
        pressure=config.pressure,
        mask="full",
        seed=seed,
        sample_every=max(1, steps // SAMPLES),
        checkpoint_every=config.checkpoint_every,
        out=str(out),
        resume=True,
    )


def candidates_of(folder: Path, agreement: float) -> list[Candidate]:
    """Every structure that the replicas of a ladder came to, as long as they were no more than lost.

    Args:
        folder: output folder of the sweep.
        agreement: deviation that counts as agreement, eV/Angstrom.
    """
    found = []
    for path in sorted((folder / "trajectories").glob("*.h5md")):
        stored = read_trajectory(path)
        kelvin = float(trajectory_origin(path)["temperature_K"])
        deviations = np.asarray(stored.observables[FORCE_DEVIATION], np.float64)
        for k in until_it_leaves(deviations, HIGHEST * agreement).tolist():
            atoms = ase.Atoms(stored.numbers, stored.positions[k], cell=stored.cells[k], pbc=True)
            if np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all():
                found.append(Candidate(atoms, kelvin, float(deviations[k])))
    return found


def rungs_of(folder: Path, crystal: str, equilibration: float) -> list[Rung]:
    """What a finished ladder says.

    Args:
        folder: output folder of the sweep.
        crystal: name of the structure.
        equilibration: fraction of each run that is left out.
    """
    deviations: dict[float, list[np.ndarray]] = {}
    for path in sorted((folder / "trajectories").glob("*.h5md")):
        stored = read_trajectory(path)
        if FORCE_DEVIATION not in stored.observables or not len(stored.step):
            continue
        kept = stored.observables[FORCE_DEVIATION][production_start(stored.time, equilibration) :]
        some = kept if len(kept) else stored.observables[FORCE_DEVIATION]
        deviations.setdefault(float(trajectory_origin(path)["temperature_K"]), []).append(some)
    found = []
    for row in read_summary(folder):
        seen = deviations.get(row.temperature_K, [])
        quantile = float(np.quantile(np.concatenate(seen), QUANTILE)) if seen else math.nan
        values = _lattice(row) if row.status == "ok" else {}
        found.append(Rung(crystal, row.temperature_K, row.status, quantile, values))
    return found


def _lattice(row: TemperatureSummary) -> dict[str, tuple[float, float]]:
    values = {
        "a": (row.a_plane, row.a_plane_sem),
        "c": (row.c_polar, row.c_polar_sem),
        "c/a": (row.tetragonality, row.tetragonality_sem),
        "volume": (row.volume, row.volume_sem),
    }
    return {name: (float(mean), float(error)) for name, (mean, error) in values.items() if math.isfinite(mean)}


def agree(rungs: Sequence[Rung], wanted: Sequence[float], bound: float) -> bool:
    """Whether the committee agrees at every temperature that is wanted."""
    return all(one.deviation <= bound for one in rungs if one.temperature in wanted)


def moved(before: Sequence[Rung], now: Sequence[Rung], wanted: Sequence[float]) -> list[str]:
    """What changed between two rounds by more than its error, in words; at temperatures that are wanted.

    Args:
        before, now: rungs of two rounds.
        wanted: temperatures, K.
    """
    earlier = {(one.crystal, one.temperature): one for one in before}
    found = []
    for one in now:
        old = earlier.get((one.crystal, one.temperature))
        if one.temperature not in wanted or old is None:
            continue
        where = f"{one.crystal} at {one.temperature:g} K"
        if one.status != old.status:
            found.append(f"{where}: {old.status}, now {one.status}")
            continue
        for name, (mean, error) in one.values.items():
            mean0, error0 = old.values.get(name, (math.nan, math.nan))
            allowed = SIGNIFICANT * math.hypot(error, error0)
            if not abs(mean - mean0) <= allowed:
                found.append(f"{where}: {name} from {mean0:.4g} to {mean:.4g} (errors allow {allowed:.2g})")
    return found


def to_json(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """Rungs as JSON values."""
    return [dataclasses.asdict(one) for one in rungs]


def from_json(rows: Sequence[dict[str, Any]]) -> list[Rung]:
    """Rungs from JSON values."""

    def one(row: dict[str, Any]) -> Rung:
        values = {name: (float(mean), float(error)) for name, (mean, error) in row["values"].items()}
        deviation = math.nan if row["deviation"] is None else float(row["deviation"])  # JSON files have no NaN
        return Rung(row["crystal"], float(row["temperature"]), row["status"], deviation, values)

    return [one(row) for row in rows]
