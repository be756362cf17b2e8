"""What umbrella windows say: their columns, their figure and their sentences; profiles.csv holds the landscapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.free_energy.landau.analysis import LandauResult, TemperatureResult
from jaxpto.free_energy.landau.figure import landau_figure
from jaxpto.perovskite.literature import LANDAU, LandauCoefficients
from jaxpto.reporting.columns import TEMPERATURE, Column, Row, measured, uncertain
from jaxpto.reporting.result import Result, write_csv, write_result
from jaxpto.reporting.sections import ResultTable, picture
from jaxpto.reporting.subject import Subject
from jaxpto.units import BOLTZMANN

FIGURE = "landau.png"
COLUMNS = (
    TEMPERATURE,
    Column("spontaneous_polarization_C_m-2", "P_s", "C/m^2"),
    Column("barrier_eV_per_formula_unit", "barrier", "meV", factor=1000.0),
    Column("a1_J_m_C-2", "a1", "1e8", factor=1e-8),
    Column("a11_J_m5_C-4", "a11", "1e8", factor=1e-8),
    Column("a111_J_m9_C-6", "a111", "1e8", factor=1e-8),
    Column("misfit_eV_per_formula_unit", "misfit", "meV", ".2g", factor=1000.0),
    Column("least_overlap", "overlap", form=".2f"),
)
CAPTION = (
    "First: free energy per formula unit against polarization, by MBAR (points with standard errors) and the Landau "
    "polynomial fitted to each. Others: what it says, with standard errors, against temperature; grey lines: the "
    "coefficients of the literature, where there are any for this crystal."
)


def write_landau(
    result: LandauResult, subject: Subject, out: Path, settings: Mapping[str, Any], console: Console
) -> None:
    """Write landau.csv, landau.json, profiles.csv, landau.png and report.html into `out`, and print the table."""
    known = LANDAU.get(subject.formula) if subject.flexible else None  # published ones are those of a free crystal
    rows = [_row(row, subject) for row in result.rows]
    law = None
    if result.curie_weiss is not None and result.curie_weiss_errors is not None:
        (slope, origin), (slope_error, origin_error) = result.curie_weiss, result.curie_weiss_errors
        law = {"a0_J_m_C-2_K-1": slope, "a0_error": slope_error, "T0_K": origin, "T0_error": origin_error}
    headline, *remarks = _sentences(result, subject, rows, known)
    document = Result(
        title=f"Free energy of {subject.formula} against polarization with {Path(subject.model).name}",
        headline=headline,
        remarks=remarks,
        table=ResultTable(COLUMNS, rows),
        stem="landau",
        about={
            "formula": subject.formula,
            "formula_units": subject.units,
            "symmetric": result.windows.symmetric,
            "centers_C_m-2": result.windows.centers,
            "strength_eV_C-2_m4": result.windows.strength,
            "curie_weiss": law,
            "literature": None if known is None else dataclasses.asdict(known),
            "windows": [_windows(row) for row in result.rows],
        },
        pictures={FIGURE: picture(landau_figure(result, subject, COLUMNS[1:6], rows, known), CAPTION)},
        settings=settings,
        caveat=subject.caveat,
        options=FreeEnergyConfig,
    )
    write_result(out, document, console)
    write_csv(out / "profiles.csv", [point for row in result.rows for point in _points(row, result, subject)])


def _row(row: TemperatureResult, subject: Subject) -> dict[str, float]:
    values, errors = row.values, row.errors
    line = {"temperature_K": float(row.samples.temperature)}
    line |= measured("spontaneous_polarization_C_m-2", values.spontaneous, errors.spontaneous)
    line |= measured("barrier_eV_per_formula_unit", values.barrier, errors.barrier, 1.0 / subject.units)
    line |= measured("barrier_eV_per_cell", values.barrier, errors.barrier)
    for k, name in enumerate(("a1_J_m_C-2", "a11_J_m5_C-4", "a111_J_m9_C-6")):
        line |= measured(name, values.landau[k], errors.landau[k])
    line |= measured("volume_A3_per_formula_unit", values.volume, errors.volume, 1.0 / subject.units)
    line["misfit_eV_per_formula_unit"] = float(values.misfit / subject.units)
    line["least_overlap"] = float(np.minimum(np.diagonal(row.overlap, 1), np.diagonal(row.overlap, -1)).min())
    return line


def _points(row: TemperatureResult, result: LandauResult, subject: Subject) -> list[dict[str, float]]:
    """The profile of one temperature, a line for each bin with samples."""
    edges = result.windows.edges
    middles = 0.5 * (edges[1:] + edges[:-1])
    energy = "free_energy_eV_per_formula_unit"
    integrated = np.interp(middles, edges, row.integrated)
    return [
        {
            "temperature_K": float(row.samples.temperature),
            "polarization_C_m-2": float(middles[b]),
            **measured(energy, row.values.profile[b] / subject.units, row.errors.profile[b] / subject.units),
            "umbrella_integration_eV_per_formula_unit": float(integrated[b] / subject.units),
            "samples": float(row.values.counts[b]),
        }
        for b in np.flatnonzero(np.isfinite(row.values.profile))
    ]


def _windows(row: TemperatureResult) -> dict[str, Any]:
    return {
        "temperature_K": row.samples.temperature,
        "samples": row.samples.counts,
        "frames_per_sample": row.samples.inefficiencies,
        "mean_polarization_C_m-2": [float(values.mean()) for values in row.samples.polarizations],
        "overlap": np.round(row.overlap, 6),
    }


def _sentences(
    result: LandauResult, subject: Subject, rows: Sequence[Row], known: LandauCoefficients | None
) -> list[str]:
    double, single = _split(rows, lambda row: row["barrier_eV_per_cell"] > 2.0 * row["barrier_eV_per_cell_error"])
    wells = [f"a double well at {double} K"] if double else []
    wells += [f"none beyond two standard errors at {single} K"] if single else []
    kind = "G at the external pressure" if subject.flexible else "F at fixed cell"
    how = "F(P) = F(-P) is used" if result.windows.symmetric else "both signs of P are sampled"
    gap = max(_difference(row, result) for row in result.rows)
    sentences = [
        f"{subject.name}: {'; '.join(wells)}.",
        *_law(result, rows, known),
        f"P_z of the whole cell of {subject.units} formula units, P_x and P_y restrained to 0 unless told otherwise; "
        f"{kind}; {how}. Energies per formula unit, coefficients in J m/C^2, J m^5/C^4, J m^9/C^6; standard errors in "
        "brackets. Misfit: rms of the profile less its Landau polynomial. Small cells round the transition off.",
        f"MBAR and umbrella integration differ by {1000.0 * gap / subject.units:.2g} meV (rms) at most; neighbouring "
        f"windows overlap by at least {min(row['least_overlap'] for row in rows):.2f}.",
    ]
    few, _ = _split(
        rows, lambda row: row["misfit_eV_per_formula_unit"] * subject.units > BOLTZMANN * row["temperature_K"]
    )
    if few:
        sentences.append(
            f"At {few} K the Landau polynomial misses the profile by more than kT of the "
            "cell: P_s and barrier come from a longer one and hold; the coefficients depend on `range`."
        )
    return sentences


def _split(rows: Sequence[Row], condition: Callable[[Row], bool]) -> tuple[str, str]:
    """The temperatures that fulfil a condition, and the others, in words."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for row in rows:
        found[bool(condition(row))].append(f"{row['temperature_K']:g}")
    return ", ".join(found[True]), ", ".join(found[False])


def _law(result: LandauResult, rows: Sequence[Row], known: LandauCoefficients | None) -> list[str]:
    """What the line through a1 against temperature says, and how well it fits."""
    if result.curie_weiss is None or result.curie_weiss_errors is None:
        return []
    slope, origin = (
        uncertain(factor * float(value), factor * float(error))
        for factor, value, error in zip((1e-5, 1.0), result.curie_weiss, result.curie_weiss_errors, strict=True)
    )
    law = f"a1 = a0 (T - T0) with a0 = {slope} 1e5 J m/C^2/K and T0 = {origin} K"
    if known is not None:
        law += (
            f"; literature ({known.source}): {known.slope / 1e5:g} and {known.origin:g}, "
            f"a11 = {known.a11 / 1e8:g}e8, a111 = {known.a111 / 1e8:g}e8"
        )
    sentences = [law + "."]
    if len(rows) > 2:
        away = [
            (row["a1_J_m_C-2"] - result.curie_weiss[0] * (row["temperature_K"] - result.curie_weiss[1]))
            / row["a1_J_m_C-2_error"]
            for row in rows
        ]
        misses = math.sqrt(sum(x**2 for x in away) / (len(rows) - 2))
        if misses > 2.0:
            sentences.append(
                f"a1 is no straight line within its errors (off by {misses:.1f} of them, rms): a0 and T0 hold for "
                "this range of temperatures only, and their errors are too small by about that factor."
            )
    return sentences


def _difference(row: TemperatureResult, result: LandauResult) -> float:
    """Root mean square of MBAR's profile less that of umbrella integration, a constant apart, eV."""
    edges = result.windows.edges
    gap = row.values.profile - np.interp(0.5 * (edges[1:] + edges[:-1]), edges, row.integrated)
    gap = gap[np.isfinite(gap)]
    return math.sqrt(float(np.var(gap)))
