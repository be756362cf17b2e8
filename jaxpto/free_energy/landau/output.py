"""What umbrella windows say: table, landau.csv and .json, profiles.csv, landau.png, report.html."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxpto.console.options import as_typed
from jaxpto.console.terminal import WholeTable
from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.free_energy.landau.analysis import LandauResult, TemperatureResult
from jaxpto.free_energy.landau.figure import landau_figure
from jaxpto.free_energy.landau.literature import LEAD_TITANATE, Subject
from jaxpto.reporting import page
from jaxpto.reporting.figures import png
from jaxpto.storage.files import replacing, write_json_atomic, write_text_atomic
from jaxpto.units import BOLTZMANN

FIGURE = "landau.png"
HEADS = ("T (K)", "P_s (C/m^2)", "barrier (meV)", "a1 (1e8)", "a11 (1e8)", "a111 (1e8)", "misfit (meV)", "overlap")
_CAPTION = (
    "First: free energy per formula unit against polarization, by MBAR (points with standard errors) and the Landau "
    "polynomial fitted to each. Others: what it says, with standard errors, against temperature; grey lines: the "
    "coefficients of the literature, where there are any for this crystal."
)


def write_landau(
    result: LandauResult, subject: Subject, out: Path, settings: Mapping[str, Any], console: Console
) -> None:
    """Write landau.csv, landau.json, profiles.csv, landau.png and report.html into `out`, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [_line(row, subject) for row in result.rows]
    _write_csv(out / "landau.csv", lines)
    _write_csv(out / "profiles.csv", [point for row in result.rows for point in _points(row, result, subject)])
    law = None
    if result.curie_weiss is not None and result.curie_weiss_errors is not None:
        (slope, origin), (slope_error, origin_error) = result.curie_weiss, result.curie_weiss_errors
        law = {"a0_J_m_C-2_K-1": slope, "a0_error": slope_error, "T0_K": origin, "T0_error": origin_error}
    document = {
        "formula": subject.formula,
        "formula_units": subject.units,
        "symmetric": result.windows.symmetric,
        "centers_C_m-2": result.windows.centers,
        "strength_eV_C-2_m4": result.windows.strength,
        "rows": lines,
        "curie_weiss": law,
        "literature": dataclasses.asdict(LEAD_TITANATE) if subject.known else None,
        "windows": [_windows(row) for row in result.rows],
    }
    write_json_atomic(out / "landau.json", document | {"settings": dict(settings)})
    image = png(landau_figure(result, subject))
    with replacing(out / FIGURE) as temporary:
        Path(temporary).write_bytes(image)
    table = WholeTable(*HEADS, box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    rows = [_cells(line) for line in lines]
    for cells in rows:
        table.add_row(*cells)
    console.print(table)
    remarks = _remarks(result, subject, lines)
    for text in [*remarks, f"report: {out / 'report.html'}"]:
        console.print(text)
    sections = [
        page.result(remarks[0], remarks[1:]),
        page.plain_table(HEADS, rows),
        page.wide_figure(image, _CAPTION),
        page.settings_section(settings),
    ]
    title = f"Free energy of {subject.formula} against polarization with {Path(subject.model).name}"
    write_text_atomic(out / "report.html", page.page(title, sections))


def _write_csv(path: Path, lines: list[dict[str, float]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write_text_atomic(path, buffer.getvalue())


def _line(row: TemperatureResult, subject: Subject) -> dict[str, float]:
    line = {"temperature_K": float(row.samples.temperature)}
    for name, pick, factor in (
        ("spontaneous_polarization_C_m-2", lambda found: found.spontaneous, 1.0),
        ("barrier_eV_per_formula_unit", lambda found: found.barrier, 1.0 / subject.units),
        ("barrier_eV_per_cell", lambda found: found.barrier, 1.0),
        ("a1_J_m_C-2", lambda found: found.landau[0], 1.0),
        ("a11_J_m5_C-4", lambda found: found.landau[1], 1.0),
        ("a111_J_m9_C-6", lambda found: found.landau[2], 1.0),
        ("volume_A3_per_formula_unit", lambda found: found.volume, 1.0 / subject.units),
    ):
        line[name] = float(factor * pick(row.values))
        line[f"{name}_error"] = float(factor * pick(row.errors))
    line["misfit_eV_per_formula_unit"] = float(row.values.misfit / subject.units)
    line["least_overlap"] = float(np.minimum(np.diagonal(row.overlap, 1), np.diagonal(row.overlap, -1)).min())
    return line


def _points(row: TemperatureResult, result: LandauResult, subject: Subject) -> list[dict[str, float]]:
    """The profile of one temperature, a line for each bin with samples."""
    edges = result.windows.edges
    middles = 0.5 * (edges[1:] + edges[:-1])
    integrated = np.interp(middles, edges, row.integrated)
    return [
        {
            "temperature_K": float(row.samples.temperature),
            "polarization_C_m-2": float(middles[b]),
            "free_energy_eV_per_formula_unit": float(row.values.profile[b] / subject.units),
            "free_energy_eV_per_formula_unit_error": float(row.errors.profile[b] / subject.units),
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


def _cells(line: Mapping[str, float]) -> list[str]:
    def number(name: str, factor: float = 1.0) -> str:
        return page.uncertain(factor * line[name], factor * line[f"{name}_error"])

    return [
        f"{line['temperature_K']:g}",
        number("spontaneous_polarization_C_m-2"),
        number("barrier_eV_per_formula_unit", 1000.0),
        number("a1_J_m_C-2", 1e-8),
        number("a11_J_m5_C-4", 1e-8),
        number("a111_J_m9_C-6", 1e-8),
        f"{1000.0 * line['misfit_eV_per_formula_unit']:.2g}",
        f"{line['least_overlap']:.2f}",
    ]


def _remarks(result: LandauResult, subject: Subject, lines: list[dict[str, float]]) -> list[str]:
    kelvin = [line["temperature_K"] for line in lines]
    double = [
        t
        for t, line in zip(kelvin, lines, strict=True)
        if line["barrier_eV_per_cell"] > 2.0 * line["barrier_eV_per_cell_error"]
    ]
    head = f"{subject.formula} with {Path(subject.model).name}: "
    if double:
        head += f"a double well at {', '.join(f'{t:g}' for t in double)} K"
    single = [t for t in kelvin if t not in double]
    if single:
        head += f"{'; ' if double else ''}none beyond two standard errors at {', '.join(f'{t:g}' for t in single)} K"
    remarks = [head + "."]
    if result.curie_weiss is not None and result.curie_weiss_errors is not None:
        slope, origin = (
            page.uncertain(factor * float(value), factor * float(error))
            for factor, value, error in zip((1e-5, 1.0), result.curie_weiss, result.curie_weiss_errors, strict=True)
        )
        law = f"a1 = a0 (T - T0) with a0 = {slope} 1e5 J m/C^2/K and T0 = {origin} K"
        if subject.known:
            known = LEAD_TITANATE
            law += (
                f"; literature ({known.source}): {known.slope / 1e5:g} and {known.origin:g}, "
                f"a11 = {known.a11 / 1e8:g}e8, a111 = {known.a111 / 1e8:g}e8"
            )
        remarks.append(law + ".")
        if len(lines) > 2:
            away = [
                (line["a1_J_m_C-2"] - result.curie_weiss[0] * (line["temperature_K"] - result.curie_weiss[1]))
                / line["a1_J_m_C-2_error"]
                for line in lines
            ]
            misses = math.sqrt(sum(x**2 for x in away) / (len(lines) - 2))
            if misses > 2.0:
                remarks.append(
                    f"a1 is no straight line within its errors (off by {misses:.1f} of them, rms): a0 and T0 hold for "
                    "this range of temperatures only, and their errors are too small by about that factor."
                )
    kind = "G at the external pressure" if subject.flexible else "F at fixed cell"
    how = "F(P) = F(-P) is used" if result.windows.symmetric else "both signs of P are sampled"
    remarks.append(
        f"P_z of the whole cell of {subject.units} formula units, P_x and P_y restrained to 0 unless told otherwise; "
        f"{kind}; {how}. Energies per formula unit, coefficients in J m/C^2, J m^5/C^4, J m^9/C^6; standard errors in "
        "brackets. Misfit: rms of the profile less its Landau polynomial. Small cells round the transition off."
    )
    gap = max(_difference(row, result) for row in result.rows)
    remarks.append(
        f"MBAR and umbrella integration differ by {1000.0 * gap / subject.units:.2g} meV (rms) at most; neighbouring "
        f"windows overlap by at least {min(line['least_overlap'] for line in lines):.2f}."
    )
    few = [line["temperature_K"] for line in lines if line["misfit_eV_per_formula_unit"] * subject.units > _kT(line)]
    if few:
        remarks.append(
            f"At {', '.join(f'{t:g}' for t in few)} K the Landau polynomial misses the profile by more than kT of the "
            "cell: P_s and barrier come from a longer one and hold; the coefficients depend on `range`."
        )
    return [as_typed(remark, FreeEnergyConfig) for remark in remarks]


def _kT(line: Mapping[str, float]) -> float:
    return BOLTZMANN * line["temperature_K"]


def _difference(row: TemperatureResult, result: LandauResult) -> float:
    """Root mean square of MBAR's profile less that of umbrella integration, a constant apart, eV."""
    edges = result.windows.edges
    gap = row.values.profile - np.interp(0.5 * (edges[1:] + edges[:-1]), edges, row.integrated)
    gap = gap[np.isfinite(gap)]
    return math.sqrt(float(np.var(gap)))
