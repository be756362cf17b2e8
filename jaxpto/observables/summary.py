"""From the samples of all replicas to one row a temperature."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Literal

import numpy as np
from jaxtyping import Float

from jaxpto.observables import phases
from jaxpto.observables.lattice import lattice_parameters, tetragonality
from jaxpto.observables.statistics import FEWEST_INDEPENDENT, LARGEST_DRIFT, Estimate, combine, estimate, settling_index

Status = Literal["ok", "molten", "failed"]
SETTLED_WITHIN = 0.002  # of c/a: the cumulative mean counts as settled once it stays this close to its final value
AXIS_NAMES = ("x", "y", "z")


@dataclasses.dataclass(frozen=True)
class ReplicaRecord:
    """Samples of one replica; of one that failed or melted, only those taken before that.

    Attributes:
        temperature_K, pressure_GPa: targets.
        replica: number among those of its temperature, from 0.
        status: "ok", "molten" or "failed".
        reason: why it is not ok, "" otherwise.
        step_failed: step at which it was stopped, or None.
        time_ps: [frames] ps.
        cell: [frames, 3, 3] Angstrom, rows are the supercell vectors.
        temperature: [frames] kinetic temperature, K.
        potential_energy, kinetic_energy, conserved: [frames] eV of the whole supercell.
        stress: [frames, 3, 3] eV/Angstrom^3, positive in tension.
        polarization: [frames, 3] C/m^2, or None.
        rotation: [frames, 3, 3] turns row vectors of cell, stress and polarization into the laboratory; None: they are
            given there.
    """

    temperature_K: float
    pressure_GPa: float
    replica: int
    status: Status
    reason: str
    step_failed: int | None
    time_ps: Float[np.ndarray, " frames"]
    cell: Float[np.ndarray, "frames 3 3"]
    temperature: Float[np.ndarray, " frames"]
    potential_energy: Float[np.ndarray, " frames"]
    kinetic_energy: Float[np.ndarray, " frames"]
    conserved: Float[np.ndarray, " frames"]
    stress: Float[np.ndarray, "frames 3 3"]
    polarization: Float[np.ndarray, "frames 3"] | None
    rotation: Float[np.ndarray, "frames 3 3"] | None = None


@dataclasses.dataclass(frozen=True)
class TemperatureSummary:
    """One row: averages over the production part of all replicas of a temperature that came through; NaN if none did.

    `_std` is the standard deviation of the thermal fluctuations, `_sem` the standard error of the mean.

    Attributes:
        temperature_K, pressure_GPa: targets.
        status: "ok", "partial" (some replicas failed), or "molten" or "failed" (all did).
        phase: label of the time-averaged lattice ("polar", "nonpolar" where its shape is fixed), "molten" or "failed".
        replica_phases: label of every replica, as in "tetragonal 2, cubic 1".
        polar_axis: longest axis, "x", "y" or "z"; "turns" if it changed during a run; "none" if cubic; "mixed" if
            replicas differ; "" if all failed.
        n_replicas, n_ok: replicas run, and averaged over.
        measured_temperature_K: kinetic temperature.
        a, b, c: along the supercell vectors x, y, z, per 5-atom cell, Angstrom.
        alpha, beta, gamma: degrees.
        c_over_a: c / ((a + b) / 2), c along z as in the paper.
        tetragonality: polar axis over the mean of the two others, of each replica's time averages.
        a_plane, c_polar: mean of the two axes across the polar axis, and the one along it (z if cubic), Angstrom.
        volume: per 5-atom cell, Angstrom^3.
        Px, Py, Pz: polarization, C/m^2.
        P: length of the time-averaged polarization vector, averaged over replicas, C/m^2.
        conserved_drift: slope of the conserved energy, meV per 5-atom cell and ps.
        independent_samples: of c/a, over all replicas.
        settling_time_ps: production time after which the cumulative mean of c/a stays within 0.002 of the final one.
        warnings: what is not converged, "" if nothing.
    """

    temperature_K: float
    pressure_GPa: float
    status: str
    phase: str
    replica_phases: str
    polar_axis: str
    n_replicas: int
    n_ok: int
    measured_temperature_K: float
    measured_temperature_K_std: float
    measured_temperature_K_sem: float
    a: float
    b: float
    c: float
    a_std: float
    b_std: float
    c_std: float
    a_sem: float
    b_sem: float
    c_sem: float
    alpha: float
    beta: float
    gamma: float
    c_over_a: float
    c_over_a_std: float
    c_over_a_sem: float
    tetragonality: float
    tetragonality_sem: float
    a_plane: float
    a_plane_std: float
    a_plane_sem: float
    c_polar: float
    c_polar_std: float
    c_polar_sem: float
    volume: float
    volume_std: float
    volume_sem: float
    Px: float
    Py: float
    Pz: float
    Px_std: float
    Py_std: float
    Pz_std: float
    Px_sem: float
    Py_sem: float
    Pz_sem: float
    P: float
    P_sem: float
    conserved_drift: float
    independent_samples: float
    settling_time_ps: float
    warnings: str


@dataclasses.dataclass(frozen=True)
class ReplicaAverages:
    """Time averages of one replica over its production part."""

    estimates: dict[str, Estimate]
    angles: np.ndarray
    phase: str
    axis: str  # polar axis, "turns" or "none"
    turns_ps: tuple[float, ...]  # when the polar axis turned, since the start of the run
    fixed_shape: bool  # only the volume changes, or nothing: nvt, or the isotropic mask
    conserved_drift: float
    settling_time_ps: float


def production_start(time_ps: Float[np.ndarray, " frames"], equilibration: float) -> int:
    """First frame of the production part: the first later than the fraction `equilibration` of the time span."""
    if time_ps.shape[0] == 0:
        return 0
    limit = time_ps[0] + equilibration * (time_ps[-1] - time_ps[0])
    slack = 1e-9 * max(1.0, abs(float(time_ps[-1])))
    return min(int(np.searchsorted(time_ps, limit + slack, side="right")), time_ps.shape[0] - 1)


def average_replica(record: ReplicaRecord, repeats: tuple[int, int, int], equilibration: float) -> ReplicaAverages:
    """Time averages of one replica.

    Args:
        record: a replica that came through, with at least one frame.
        repeats: 5-atom cells along each supercell vector.
        equilibration: fraction of the run left out at its beginning.
    """
    kept = slice(production_start(record.time_ps, equilibration), None)
    time = np.asarray(record.time_ps[kept], np.float64)
    lattice = lattice_parameters(record.cell[kept], repeats)
    polar = phases.polar_axis_in_time(time, lattice.lengths)
    # columns: the axes in cyclic order behind the polar one, then the polar one
    ordered = np.take_along_axis(lattice.lengths, (polar[:, None] + np.array([1, 2, 3])[None, :]) % 3, axis=1)
    angles = lattice.angles.mean(axis=0)
    phase = phases.lattice_phase(ordered.mean(axis=0), angles)
    turns = np.flatnonzero(np.diff(polar)) + 1
    axis = "none" if phase == "cubic" else "turns" if len(turns) else AXIS_NAMES[int(polar[0])]
    if phase == "cubic":
        ordered = lattice.lengths

    estimates = {name: estimate(lattice.lengths[:, k]) for k, name in enumerate("abc")}
    estimates["c_over_a"] = estimate(lattice.c_over_a)
    # fluctuations of this ratio with fixed numerator and denominator axes: unbiased, unlike the per-frame maximum
    polar_ratio = estimate(ordered[:, 2] / ordered[:, :2].mean(axis=1))
    estimates["tetragonality"] = dataclasses.replace(polar_ratio, mean=tetragonality(ordered.mean(axis=0)))
    # the error bar in the plane is that of a single axis, as in the paper, not of the mean of two
    plane = estimate(ordered[:, :2].mean(axis=1))
    estimates["a_plane"] = dataclasses.replace(plane, std=float(np.sqrt(0.5 * ordered[:, :2].var(axis=0).sum())))
    estimates["c_polar"] = estimate(ordered[:, 2])
    estimates["volume"] = estimate(lattice.volume)
    estimates["measured_temperature_K"] = estimate(record.temperature[kept])
    if record.polarization is not None:
        vectors = np.asarray(record.polarization[kept], np.float64)
        for k, name in enumerate(("Px", "Py", "Pz")):
            estimates[name] = estimate(vectors[:, k])
        if len(turns):  # along the same axes as the lattice, and positive along the polar one during each stay
            vectors = np.take_along_axis(vectors, (polar[:, None] + np.array([1, 2, 3])[None, :]) % 3, axis=1)
            for stay in np.split(np.arange(len(vectors)), turns):
                vectors[stay, 2] *= -1.0 if vectors[stay, 2].mean() < 0.0 else 1.0
        mean = vectors.mean(axis=0)
        length = float(np.linalg.norm(mean))
        along_mean = estimate(vectors @ (mean / length if length > 0.0 else np.eye(3)[2]))
        estimates["P"] = dataclasses.replace(along_mean, mean=length)

    settled = settling_index(lattice.c_over_a, SETTLED_WITHIN)
    conserved = np.asarray(record.conserved[kept], np.float64)
    drift = math.nan
    if len(time) >= 3 and np.isfinite(conserved).all():
        # polynomial of the offset: energies of thousands of eV would cost digits
        drift = float(np.polyfit(time - time[0], conserved - conserved[0], 1)[0]) * 1000.0 / float(np.prod(repeats))
    return ReplicaAverages(
        estimates=estimates,
        angles=angles,
        phase=phase,
        axis=axis,
        turns_ps=tuple(time[turns].tolist()),
        fixed_shape=len(time) > 1 and _keeps_shape(record.cell[kept]),
        conserved_drift=drift,
        settling_time_ps=float(time[min(settled, len(time) - 1)] - time[0]),
    )


def _keeps_shape(cells: Float[np.ndarray, "frames 3 3"]) -> bool:
    """Whether cells differ in volume at most, as in nvt and with the isotropic mask; 1e-4 is rounding of long runs."""
    shape = cells / np.cbrt(np.abs(np.linalg.det(cells)))[:, None, None]
    return bool(np.ptp(shape, axis=0).max() < 1e-4 * np.abs(shape).max())


def summarize(
    records: list[ReplicaRecord], repeats: tuple[int, int, int], equilibration_fraction: float
) -> list[TemperatureSummary]:
    """One row for each temperature and pressure, in rising order, averaged over its replicas that came through.

    Args:
        records: all replicas, in any order.
        repeats: 5-atom (pseudo-cubic) cells along each supercell vector.
        equilibration_fraction: part of each run, from its beginning, that is left out of the averages.
    """
    groups: dict[tuple[float, float], list[ReplicaRecord]] = {}
    for record in records:
        groups.setdefault((record.pressure_GPa, record.temperature_K), []).append(record)
    rows = [
        _row(group, repeats, equilibration_fraction) for _, group in sorted(groups.items(), key=lambda item: item[0])
    ]
    # with a fixed shape the lattice says nothing: those rows were left unlabelled for the polarization to decide
    open_rows = [i for i, row in enumerate(rows) if row.phase == ""]
    for i, label in zip(open_rows, phases.polar_labels([rows[i].P for i in open_rows]), strict=True):
        label = label or "fixed shape"
        counts = ", ".join(filter(None, [f"{label} {rows[i].n_ok}", rows[i].replica_phases]))
        rows[i] = dataclasses.replace(rows[i], phase=label, replica_phases=counts)
    return rows


def transitions(rows: list[TemperatureSummary]) -> list[phases.Transition]:
    """Transition temperature from the lattice (unless its shape is fixed) and from the polarization (where known)."""
    found = []
    kelvin = [row.temperature_K for row in rows]
    fixed_shape = any(row.phase in ("polar", "nonpolar", "fixed shape") for row in rows)
    if not fixed_shape:
        stretch, error = [r.tetragonality for r in rows], [r.tetragonality_sem for r in rows]
        found.append(phases.transition(kelvin, [r.phase for r in rows], stretch, error, "c/a", phases.CUBIC_BELOW))
    polarizations = [row.P for row in rows]
    if not all(map(math.isnan, polarizations)):
        labels = phases.polar_labels(polarizations)
        largest = max(p for p in polarizations if not math.isnan(p))
        threshold = max(phases.NONPOLAR_BELOW, phases.NONPOLAR_FRACTION * largest)
        errors = [row.P_sem for row in rows]
        found.append(phases.transition(kelvin, labels, polarizations, errors, "polarization", threshold))
    return found


def _row(group: list[ReplicaRecord], repeats: tuple[int, int, int], equilibration: float) -> TemperatureSummary:
    usable = [record for record in group if record.status == "ok" and record.time_ps.shape[0] > 0]
    replicas = [average_replica(record, repeats, equilibration) for record in usable]
    lost = Counter(record.status if record.status != "ok" else "failed" for record in group if record not in usable)
    status = "ok" if not lost else ("partial" if replicas else lost.most_common(1)[0][0])
    labels = Counter([replica.phase for replica in replicas])
    fixed_shape = any(replica.fixed_shape for replica in replicas)
    phase = status
    if replicas:
        most = max(labels.values())
        # of labels that tie, the one of the first replica in the file's order: no preference for either side
        phase = "" if fixed_shape else next(r.phase for r in replicas if labels[r.phase] == most)
    axes = {replica.axis for replica in replicas}
    polar_axis = "mixed" if len(axes) > 1 else "".join(axes)

    counts = ([] if fixed_shape else labels.most_common()) + lost.most_common()

    columns: dict[str, float] = {}
    combined: dict[str, Estimate] = {}
    names = ("measured_temperature_K", "a", "b", "c", "c_over_a", "a_plane", "c_polar", "volume", "Px", "Py", "Pz")
    for name in (*names, "tetragonality", "P"):
        total = combine([replica.estimates[name] for replica in replicas if name in replica.estimates])
        combined[name] = total
        columns |= {name: total.mean, f"{name}_sem": total.sem}
        if name in names:
            columns[f"{name}_std"] = total.std
    angles = np.mean([r.angles for r in replicas], axis=0) if replicas else np.full(3, math.nan)
    return TemperatureSummary(
        temperature_K=group[0].temperature_K,
        pressure_GPa=group[0].pressure_GPa,
        status=status,
        phase=phase,
        replica_phases=", ".join(f"{label} {count}" for label, count in counts),
        polar_axis=polar_axis,
        n_replicas=len(group),
        n_ok=len(replicas),
        alpha=float(angles[0]),
        beta=float(angles[1]),
        gamma=float(angles[2]),
        conserved_drift=float(np.mean([r.conserved_drift for r in replicas])) if replicas else math.nan,
        independent_samples=combined["c_over_a"].independent,
        settling_time_ps=max((r.settling_time_ps for r in replicas), default=math.nan),
        warnings="; ".join(_warnings(replicas, combined, labels, fixed_shape)),
        **columns,
    )


def _warnings(
    replicas: list[ReplicaAverages], combined: dict[str, Estimate], labels: Counter[str], fixed_shape: bool
) -> list[str]:
    """What the averages of a temperature do not support, in words with numbers."""
    found = []
    watched = [("Pz", "C/m^2")] if fixed_shape else [("c_over_a", "")]
    for name, unit in watched:
        total = combined[name]
        label = name.replace("_over_", "/")
        if not replicas or math.isnan(total.mean):
            continue
        if math.isnan(total.sem):
            found.append(f"{label}: a single production frame, no error estimate")
            continue
        if total.independent < FEWEST_INDEPENDENT:
            needed = f"{FEWEST_INDEPENDENT:.0f} are needed; run longer"
            found.append(f"{label}: only {total.independent:.1f} independent samples, {needed}")
        if abs(total.drift) > LARGEST_DRIFT * total.drift_sem:
            change = f"{total.drift:+.4f} {unit}".rstrip()
            found.append(f"{label}: drifts by {change} between the halves of the production part")
    turns = [f"{t:.1f}" for replica in replicas for t in replica.turns_ps]
    if turns and not fixed_shape:
        found.append(f"the polar axis turned after {', '.join(turns)} ps; a, b, c average over its directions")
    if len(labels) > 1 and not fixed_shape:
        found.append("replicas ended in different phases; the averages mix them")
    return found
