"""What a ladder says: its columns, its figure and its sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from jaxpto.free_energy.ladder.analysis import LadderResult
from jaxpto.reporting.columns import TEMPERATURE, Column, Row, measured, uncertain
from jaxpto.reporting.panels import band, bars, dulong_petit, four_panels
from jaxpto.reporting.result import Result, write_result
from jaxpto.reporting.sections import ResultTable, picture
from jaxpto.reporting.style import COLORS, styled
from jaxpto.reporting.subject import Subject
from jaxpto.units import BOLTZMANN

FIGURE = "free_energy.png"
FEW_SAMPLES = 50  # effective ones; a temperature with fewer is marked
CAPTION = (
    "Curves and shades: MBAR with twice its bootstrap standard error. Points: Gibbs-Helmholtz integration (free "
    "energy), averages (enthalpy) and fluctuations (heat capacity) at the temperatures of the ladder. Per formula unit."
)


def write_ladder(
    result: LadderResult, subject: Subject, out: Path, settings: Mapping[str, Any], console: Console
) -> None:
    """Write free_energy.csv, free_energy.json, free_energy.png and report.html into `out`, and print the table."""
    free, enthalpy = subject.free_energy, subject.enthalpy
    columns = (
        TEMPERATURE,
        Column("free_energy_eV", f"{free} - {free}0", "meV", factor=1000.0),
        Column("enthalpy_eV", f"{enthalpy} - {enthalpy}0", "meV", factor=1000.0),
        Column("entropy_J_per_K_mol", "S - S0", "J/K/mol"),
        Column("heat_capacity_J_per_K_mol", subject.heat_capacity, "J/K/mol"),
        Column("effective_samples", "samples", spell=_samples),
    )
    rows = _rows(result, subject)
    ladder, taken = _ladder(result, subject), _transition(result, subject)
    headline, *remarks = _sentences(result, subject, taken)
    document = Result(
        title=f"Thermodynamics of {subject.name}",
        headline=headline,
        remarks=remarks,
        table=ResultTable(columns, [row for row in rows if row["temperature_K"] in result.samples.temperatures]),
        rows=rows,
        about={
            "reference_temperature_K": float(result.samples.temperatures[0]),
            "formula": subject.formula,
            "formula_units": subject.units,
            "ladder": ladder,
            "overlap": np.round(result.overlap, 6).tolist(),
            "transition": taken,
        },
        pictures={FIGURE: picture(ladder_figure(result, subject, columns[1:5], rows, ladder), CAPTION)},
        settings=settings,
        caveat=subject.caveat,
    )
    write_result(out, document, console)


@styled()
def ladder_figure(
    result: LadderResult, subject: Subject, columns: Sequence[Column], rows: Sequence[Row], ladder: Sequence[Row]
) -> Figure:
    """Free energy, enthalpy, entropy and heat capacity against temperature; MBAR as curves, other roads as points.

    Args:
        result: samples and averages.
        subject: crystal and model.
        columns: the four quantities.
        rows: MBAR's values.
        ladder: what the ladder's own temperatures say.
    """
    kelvin = result.samples.temperatures
    means = np.array([values.mean() for values in result.samples.enthalpies])
    freedom = 3 * subject.atoms - (3 if subject.flexible else 0)
    averages = means - means[0] + 0.5 * freedom * BOLTZMANN * (kelvin - kelvin[0])
    figure, panels = four_panels([column.label for column in columns])
    for axes, column in zip(panels, columns, strict=True):
        band(axes, rows, column, "MBAR")
    integrated = dataclasses.replace(columns[0], name="free_energy_integrated_eV")
    bars(panels[0], ladder, integrated, "Gibbs-Helmholtz integration", COLORS[1])
    panels[1].plot(kelvin, 1000.0 * averages / subject.units, "o", ms=4.5, color=COLORS[1], label="averages")
    fluctuations = dataclasses.replace(columns[3], name="heat_capacity_fluctuations_J_per_K_mol")
    bars(panels[3], ladder, fluctuations, "fluctuations", COLORS[1])
    for axes in panels[:2]:
        axes.legend(loc="best")
    panels[3].margins(x=0.03, y=0.25)  # room for a legend that hides no error bar
    dulong_petit(panels[3], subject)
    return figure


def _rows(result: LadderResult, subject: Subject) -> list[dict[str, float]]:
    """A row for each wanted temperature, per formula unit."""
    energy = 1.0 / subject.units
    fields = {
        "gibbs": ("free_energy_eV", energy),
        "enthalpy": ("enthalpy_eV", energy),
        "entropy": ("entropy_J_per_K_mol", subject.molar),
        "heat_capacity": ("heat_capacity_J_per_K_mol", subject.molar),
    }
    rows = []
    for k, kelvin in enumerate(result.wanted):
        row = {"temperature_K": float(kelvin)}
        for name, (label, factor) in fields.items():
            row |= measured(label, getattr(result.values, name)[k], getattr(result.errors, name)[k], factor)
        rows.append(row | {"effective_samples": float(result.values.samples[k])})
    return rows


def _samples(row: Row) -> str:
    return f"{row['effective_samples']:.0f}{' (few)' if row['effective_samples'] < FEW_SAMPLES else ''}"


def _ladder(result: LadderResult, subject: Subject) -> list[dict[str, float]]:
    """What the ladder's own temperatures say, without MBAR."""
    free, capacity = "free_energy_integrated_eV", "heat_capacity_fluctuations_J_per_K_mol"
    return [
        {
            "temperature_K": float(result.samples.temperatures[k]),
            "samples": float(result.samples.counts[k]),
            "frames_per_sample": float(result.samples.inefficiencies[k]),
            "effective_samples": float(result.effective[k]),
        }
        | measured(free, result.integrated[k] / subject.units, result.integrated_errors[k] / subject.units)
        | measured(capacity, result.fluctuations[k], result.fluctuations_errors[k], subject.molar)
        for k in range(len(result.samples.temperatures))
    ]


def _transition(result: LadderResult, subject: Subject) -> dict[str, float] | None:
    """What the transition takes, for one formula unit."""
    if result.bracket is None or result.transition is None or result.transition_errors is None:
        return None
    numbers = {"temperature_K": result.bracket.temperature}
    for name, unit in (("enthalpy", "J_per_mol"), ("entropy", "J_per_K_mol"), ("total_entropy", "J_per_K_mol")):
        value, error = getattr(result.transition, name), getattr(result.transition_errors, name)
        numbers |= measured(f"{name}_{unit}", value, error, subject.molar)
    return numbers


def _sentences(result: LadderResult, subject: Subject, taken: dict[str, float] | None) -> list[str]:
    first, last = result.samples.temperatures[0], result.samples.temperatures[-1]
    free, enthalpy, molar = subject.free_energy, subject.enthalpy, subject.molar
    rise, error = float(molar * result.values.entropy[-1]), float(molar * result.errors.entropy[-1])
    worst = np.abs(result.integrated - result.values.gibbs[::4])
    overlap = np.minimum(np.diagonal(result.overlap, 1), np.diagonal(result.overlap, -1)).min()
    sentences = [
        f"{subject.name}: entropy + {uncertain(rise, error)} J/K/mol from {first:g} to {last:g} K.",
        f"{free}0, {enthalpy}0 and S0 are the values at {first:g} K: {free} here is {free}(T) - {enthalpy}0 + T S0. "
        "Nuclei are classical; per formula unit, standard errors in brackets.",
        f"MBAR and Gibbs-Helmholtz integration differ by {1000 * worst.max() / subject.units:.2g} meV at most; "
        f"neighbouring temperatures overlap by at least {overlap:.2f}.",
    ]
    if taken is not None:
        heat, once, total = (
            uncertain(taken[name], taken[f"{name}_error"])
            for name in ("enthalpy_J_per_mol", "entropy_J_per_K_mol", "total_entropy_J_per_K_mol")
        )
        sentences.append(
            f"The transition near {taken['temperature_K']:g} K takes {heat} J/mol, {once} J/K/mol, by extrapolation "
            f"from both sides; with what order is lost before it, {total} J/K/mol above {first:g} K."
        )
    return sentences
