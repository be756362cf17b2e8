"""From the samples of all replicas to one row a temperature."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jaxpto.observables import phases
from jaxpto.observables.force_deviation import DomainRecord, DomainSummary, summarize_domain
from jaxpto.observables.further import FurtherAverage, FurtherSeries, further_averages
from jaxpto.observables.lattice import UnitCell, lattice_parameters, tetragonality
from jaxpto.observables.mean_structure import MeanStructure, symmetry_label
from jaxpto.observables.statistics import FEWEST_INDEPENDENT, LARGEST_DRIFT, Estimate, combine, estimate, settling_index
from jaxpto.observables.transition import Transition, find_transition
from jaxpto.units import spell_kelvin

Status = Literal["ok", "molten", "failed"]
SETTLED_WITHIN = 0.002  # of c/a: the cumulative mean counts as settled once it stays this close to its final value
AXIS_NAMES = ("a", "b", "c")
SHAPE = ("a", "b", "c", "c_over_a")  # whose convergence a flexible cell is judged by
TEMPERATURE_OFF = 2.5  # standard errors by which the measured temperature may miss its target
TEMPERATURE_NEAR = 0.02  # of the target: no miss that matters, however small its error
TEMPERATURE_UNSURE = 0.05  # of the target: a larger standard error says that the temperature is not known


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
        polarization: [frames, 3] C/m^2 in the axes of `cell`, or None.
        structure: time average of the production part, or None where the topology names the phase.
        rotation: [frames, 3, 3] turns row vectors of cell, stress and polarization into the laboratory; None: they are
            given there.
        further: samples of what else was measured, by name.
        domain: where it left what its model was trained on; None where the model has no calibrated committee.
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
    structure: MeanStructure | None = None
    rotation: Float[np.ndarray, "frames 3 3"] | None = None
    further: Mapping[str, FurtherSeries] = dataclasses.field(default_factory=dict)
    domain: DomainRecord | None = None


@dataclasses.dataclass(frozen=True)
class TemperatureSummary:
    """One row: averages over the production part of all replicas of a temperature that came through; NaN if none did.

    `_std` is the standard deviation of the thermal fluctuations, `_sem` the standard error of the mean.

    Attributes:
        temperature_K, pressure_GPa: targets.
        status: "ok", "partial" (some replicas failed), or "molten" or "failed" (all did).
        phase: for a perovskite the crystal system of the averaged strain and polarization, "undecided" where errors
            hide it ("polar", "nonpolar" or "undecided" where the shape of the cell is fixed); for other crystals the
            system and space group of the averaged structure; "molten" or "failed".
        replica_phases: label of every replica, as in "tetragonal 2, cubic 1".
        polarity: "polar", "nonpolar" or "undecided", by the significance of the averaged polarization; "" where there
            is none; of several replicas the commonest.
        polar_axis: longest axis, "a", "b" or "c"; "turns" if it changed during a run; "none" if cubic or rhombohedral;
            "mixed" if replicas differ; "" if all failed.
        n_replicas, n_ok: replicas run, and averaged over.
        measured_temperature_K: kinetic temperature.
        a, b, c: axes of the 5-atom cell of a perovskite (pseudo-cubic), or of the cell that was repeated, Angstrom.
        alpha, beta, gamma: degrees.
        c_over_a: c / ((a + b) / 2), c the third axis as in the paper.
        tetragonality: polar axis over the mean of the two others, of each replica's time averages.
        a_plane, c_polar: mean of the two axes across the polar axis, and the one along it (c if cubic), Angstrom.
        volume: per unit cell, Angstrom^3.
        Px, Py, Pz: polarization along a, b, c (in the crystal's own axes, however it lies or turns), C/m^2.
        P: length of the time-averaged polarization vector, averaged over replicas, C/m^2.
        conserved_drift: slope of the conserved energy, meV per unit cell and ps.
        independent_samples: the fewest of a, b, c and c/a, over all replicas.
        settling_time_ps: production time after which the cumulative mean of c/a stays within 0.002 of the final one.
        warnings: what is not converged, "" if nothing.
        further: averages of what else was measured, by name, vectors by component.
        domain: which replicas left what the model was trained on, those that were lost included; None where it has no
            calibrated committee.
    """

    temperature_K: float
    pressure_GPa: float
    status: str
    phase: str
    replica_phases: str
    polarity: str
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
    further: Mapping[str, FurtherAverage] = dataclasses.field(default_factory=dict)
    domain: DomainSummary | None = None


@dataclasses.dataclass(frozen=True)
class ReplicaAverages:
    """Time averages of one replica over its production part."""

    estimates: dict[str, Estimate]
    angles: np.ndarray
    phase: str
    polarity: str
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


def average_replica(record: ReplicaRecord, unit: UnitCell, equilibration: float) -> ReplicaAverages:
    """Time averages of one replica.

    Args:
        record: a replica that came through, with at least one frame.
        unit: the cell whose lattice parameters are wanted.
        equilibration: fraction of the run left out at its beginning.
    """
    kept = slice(production_start(record.time_ps, equilibration), None)
    time = np.asarray(record.time_ps[kept], np.float64)
    lattice = lattice_parameters(record.cell[kept], unit)
    polar = phases.polar_axis_in_time(time, lattice.lengths)
    turns = np.flatnonzero(np.diff(polar)) + 1
    vectors = None
    if record.polarization is not None:
        vectors = np.einsum("fkx,fx->fk", lattice.frame, np.asarray(record.polarization[kept], np.float64))
    strain, along = (lattice.strain, vectors) if not len(turns) else _following(polar, lattice.strain, vectors)
    components = None if along is None else [estimate(along[:, k]) for k in range(3)]
    if unit.perovskite:
        strains = [[estimate(strain[:, i, j]) for j in range(3)] for i in range(3)]
        # columns: the axes in cyclic order behind the polar one, then the polar one
        lengths = np.take_along_axis(lattice.lengths, _cyclic(polar), axis=1).mean(axis=0)
        phase = phases.perovskite_phase(strains, lengths, components)
    else:
        phase = "unlabelled" if record.structure is None else symmetry_label(record.structure)
    no_axis = phase in ("cubic", "rhombohedral")
    ordered = lattice.lengths if no_axis else np.take_along_axis(lattice.lengths, _cyclic(polar), axis=1)
    axis = "none" if no_axis else "turns" if len(turns) else AXIS_NAMES[int(polar[0])]

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
    if vectors is not None and along is not None:
        estimates |= {name: estimate(vectors[:, k]) for k, name in enumerate(("Px", "Py", "Pz"))}
        mean = along.mean(axis=0)
        length = float(np.linalg.norm(mean))
        along_mean = estimate(along @ (mean / length if length > 0.0 else np.eye(3)[2]))
        estimates["P"] = dataclasses.replace(along_mean, mean=length)

    settled = settling_index(lattice.c_over_a, SETTLED_WITHIN)
    conserved = np.asarray(record.conserved[kept], np.float64)
    drift = math.nan
    if len(time) >= 3 and np.isfinite(conserved).all():
        # polynomial of the offset: energies of thousands of eV would cost digits
        drift = float(np.polyfit(time - time[0], conserved - conserved[0], 1)[0]) * 1000.0 / unit.count
    return ReplicaAverages(
        estimates=estimates,
        angles=lattice.angles.mean(axis=0),
        phase=phase,
        polarity="" if components is None else phases.polarity(components),
        axis=axis,
        turns_ps=tuple(time[turns].tolist()),
        fixed_shape=len(time) > 1 and _keeps_shape(record.cell[kept]),
        conserved_drift=drift,
        settling_time_ps=float(time[min(settled, len(time) - 1)] - time[0]),
    )


def _cyclic(polar: Int[np.ndarray, " f"]) -> Int[np.ndarray, "f 3"]:
    """Indices of the axes in cyclic order behind the polar one of each frame, then the polar one."""
    return (polar[:, None] + np.array([1, 2, 3])[None, :]) % 3


def _following(
    polar: Int[np.ndarray, " f"], strain: Float[np.ndarray, "f 3 3"], vectors: Float[np.ndarray, "f 3"] | None
) -> tuple[Float[np.ndarray, "f 3 3"], Float[np.ndarray, "f 3"] | None]:
    """Strain and polarization along axes that turn with the polar one: it is the third, and P positive along it."""
    order, sign = _cyclic(polar), np.ones((len(polar), 3))
    turned = None
    if vectors is not None:
        turned = np.take_along_axis(vectors, order, axis=1)
        for stay in np.split(np.arange(len(polar)), np.flatnonzero(np.diff(polar)) + 1):
            sign[stay, 2] = -1.0 if turned[stay, 2].mean() < 0.0 else 1.0
        turned = turned * sign
    frames = np.arange(len(polar))[:, None, None]
    turned_strain = strain[frames, order[:, :, None], order[:, None, :]]
    return turned_strain * sign[:, :, None] * sign[:, None, :], turned


def _keeps_shape(cells: Float[np.ndarray, "frames 3 3"]) -> bool:
    """Whether cells differ in volume at most, as in nvt and with the isotropic mask; 1e-4 is rounding of long runs."""
    shape = cells / np.cbrt(np.abs(np.linalg.det(cells)))[:, None, None]
    return bool(np.ptp(shape, axis=0).max() < 1e-4 * np.abs(shape).max())


def summarize(records: list[ReplicaRecord], unit: UnitCell, equilibration_fraction: float) -> list[TemperatureSummary]:
    """One row for each temperature and pressure, in rising order, averaged over its replicas that came through.

    Args:
        records: all replicas, in any order.
        unit: the cell whose lattice parameters are wanted.
        equilibration_fraction: part of each run, from its beginning, that is left out of the averages.
    """
    groups: dict[tuple[float, float], list[ReplicaRecord]] = {}
    for record in records:
        groups.setdefault((record.pressure_GPa, record.temperature_K), []).append(record)
    rows = [_row(group, unit, equilibration_fraction) for _, group in sorted(groups.items(), key=lambda item: item[0])]
    # with a fixed shape the lattice says nothing: those rows were left unlabelled for the polarization to decide
    labels = phases.polar_labels([row.P for row in rows], [row.polarity for row in rows])
    for i in [i for i, row in enumerate(rows) if row.phase == ""]:
        label = labels[i] or "fixed shape"
        counts = ", ".join(filter(None, [f"{label} {rows[i].n_ok}", rows[i].replica_phases]))
        rows[i] = dataclasses.replace(rows[i], phase=label, replica_phases=counts)
    return rows


def transitions(rows: list[TemperatureSummary]) -> list[Transition]:
    """Where a perovskite's ladder becomes cubic (unless the shape is fixed) and where it loses its polarization."""
    found = []
    kelvin = [row.temperature_K for row in rows]
    if any(row.phase == "cubic" or row.phase in phases.ORDERED for row in rows):
        found.append(
            find_transition(
                kelvin,
                [row.phase for row in rows],
                [row.tetragonality for row in rows],
                [row.tetragonality_sem for row in rows],
                order_parameter="lattice",
                ordered_phases=phases.ORDERED,
                disordered_phase="cubic",
                threshold=1.0 + phases.EQUAL_LENGTHS,
            )
        )
    polarizations, polarities = [row.P for row in rows], [row.polarity for row in rows]
    if any(polarities):
        found.append(
            find_transition(
                kelvin,
                phases.polar_labels(polarizations, polarities),
                polarizations,
                [row.P_sem for row in rows],
                order_parameter="polarization",
                ordered_phases=("polar",),
                disordered_phase="nonpolar",
                threshold=phases.polar_threshold(polarizations, polarities),
            )
        )
    return found


def _row(group: list[ReplicaRecord], unit: UnitCell, equilibration: float) -> TemperatureSummary:
    usable = [record for record in group if record.status == "ok" and record.time_ps.shape[0] > 0]
    replicas = [average_replica(record, unit, equilibration) for record in usable]
    lost = Counter(record.status if record.status != "ok" else "failed" for record in group if record not in usable)
    status = "ok" if not lost else ("partial" if replicas else lost.most_common(1)[0][0])
    labels = Counter([replica.phase for replica in replicas])
    fixed_shape = unit.perovskite and any(replica.fixed_shape for replica in replicas)
    polarities = Counter([replica.polarity for replica in replicas])
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
        polarity=polarities.most_common(1)[0][0] if replicas else "",
        polar_axis=polar_axis,
        n_replicas=len(group),
        n_ok=len(replicas),
        alpha=float(angles[0]),
        beta=float(angles[1]),
        gamma=float(angles[2]),
        conserved_drift=float(np.mean([r.conserved_drift for r in replicas])) if replicas else math.nan,
        independent_samples=min(combined[name].independent for name in SHAPE),
        settling_time_ps=max((r.settling_time_ps for r in replicas), default=math.nan),
        warnings="; ".join(_warnings(replicas, combined, labels, fixed_shape, group[0].temperature_K)),
        further=further_averages(
            [record.further for record in usable],
            [slice(production_start(record.time_ps, equilibration), None) for record in usable],
        ),
        domain=summarize_domain([record.domain for record in group]),
        **columns,
    )


def _warnings(
    replicas: list[ReplicaAverages],
    combined: dict[str, Estimate],
    labels: Counter[str],
    fixed_shape: bool,
    target_K: float,
) -> list[str]:
    """What the averages of a temperature do not support, in words with numbers."""
    found = []
    kelvin = combined["measured_temperature_K"]
    if abs(kelvin.mean - target_K) > max(TEMPERATURE_OFF * kelvin.sem, TEMPERATURE_NEAR * target_K):
        found.append(f"measured temperature {kelvin.mean:.0f} +/- {kelvin.sem:.0f} K, not {spell_kelvin(target_K)} K")
    elif kelvin.sem > TEMPERATURE_UNSURE * target_K:
        found.append(f"measured temperature {kelvin.mean:.0f} +/- {kelvin.sem:.0f} K: too uncertain; run longer")
    known = {name: combined[name] for name in (("P",) if fixed_shape else SHAPE) if not math.isnan(combined[name].mean)}
    if known and any(math.isnan(total.sem) for total in known.values()):
        found.append("a single production frame, no error estimate")
    elif known:
        name, fewest = min(known.items(), key=lambda item: item[1].independent)
        if fewest.independent < FEWEST_INDEPENDENT:
            seen = math.floor(10.0 * fewest.independent) / 10.0  # never rounded up to the number that is needed
            needed = f"{FEWEST_INDEPENDENT:.0f} are needed; run longer"
            found.append(f"{_spell(name)}: only {seen:.1f} independent samples, {needed}")
        name, drifting = max(known.items(), key=lambda item: abs(item[1].drift) / max(item[1].drift_sem, 1e-12))
        if abs(drifting.drift) > LARGEST_DRIFT * drifting.drift_sem:
            unit = {"P": " C/m^2", "c_over_a": ""}.get(name, " A")
            found.append(
                f"{_spell(name)}: drifts by {drifting.drift:+.4f}{unit} between the halves of the production part"
            )
    if fixed_shape and replicas and all(replica.polarity == "undecided" for replica in replicas):
        length, error = combined["P"].mean, combined["P"].sem
        found.append(f"P = {length:.3f} +/- {error:.3f} C/m^2 cannot be told from zero; run longer")
    turns = [f"{t:.1f}" for replica in replicas for t in replica.turns_ps]
    if turns and not fixed_shape:
        found.append(f"the polar axis turned after {', '.join(turns)} ps; a, b, c average over its directions")
    if len(labels) > 1 and not fixed_shape:
        found.append("replicas ended in different phases; the averages mix them")
    return found


def _spell(name: str) -> str:
    return name.replace("_over_", "/")
