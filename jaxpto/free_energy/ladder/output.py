"""What a ladder says: table, free_energy.csv and .json, free_energy.png, report.html."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from ase import units as ase_units
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.console import Console

from jaxpto.console.terminal import WholeTable
from jaxpto.free_energy.ladder.analysis import LadderResult
from jaxpto.reporting import page
from jaxpto.reporting.figures import COLORS, GREY, STYLE, png
from jaxpto.storage.files import replacing, write_json_atomic, write_text_atomic
from jaxpto.units import BOLTZMANN

FIGURE = "free_energy.png"
JOULE_PER_MOLE = ase_units._e * ase_units._Nav  # J/mol per eV
FEW_SAMPLES = 50  # effective ones, below which a temperature is marked


@dataclasses.dataclass(frozen=True)
class Subject:
    """What was simulated.

    Attributes:
        formula: of one formula unit.
        model: its name.
        units: formula units in the simulated cell.
        atoms: in the simulated cell.
        flexible: whether the cell was (npt), so that G and Cp are meant and not F and Cv.
    """

    formula: str
    model: str
    units: int
    atoms: int
    flexible: bool

    @property
    def energy(self) -> str:
        """Symbol of the free energy."""
        return "G" if self.flexible else "F"

    @property
    def enthalpy(self) -> str:
        """Symbol of its enthalpy or internal energy."""
        return "H" if self.flexible else "U"

    @property
    def capacity(self) -> str:
        """Symbol of the heat capacity."""
        return "Cp" if self.flexible else "Cv"


def write_ladder(
    result: LadderResult, subject: Subject, out: Path, settings: Mapping[str, Any], console: Console
) -> None:
    """Write free_energy.csv, free_energy.json, free_energy.png and report.html into `out`, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    lines = _lines(result, subject)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write_text_atomic(out / "free_energy.csv", buffer.getvalue())
    document = {
        "reference_temperature_K": float(result.samples.temperatures[0]),
        "formula": subject.formula,
        "formula_units": subject.units,
        "rows": lines,
        "ladder": _ladder(result, subject),
        "overlap": np.round(result.overlap, 6).tolist(),
        "transition": _transition(result, subject),
    }
    write_json_atomic(out / "free_energy.json", document | {"settings": dict(settings)})
    image = png(ladder_figure(result, subject))
    with replacing(out / FIGURE) as temporary:
        Path(temporary).write_bytes(image)
    table = WholeTable(*_heads(subject), box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    rows = [_cells(line, subject) for line in lines if line["temperature_K"] in result.samples.temperatures]
    for cells in rows:
        table.add_row(*cells)
    console.print(table)
    remarks = _remarks(result, subject)
    for text in [*remarks, f"report: {out / 'report.html'}"]:
        console.print(text)
    title = f"Thermodynamics of {subject.formula} with {Path(subject.model).name}"
    sections = [
        page.result(remarks[0], remarks[1:]),
        page.plain_table(_heads(subject), rows),
        page.wide_figure(image, _CAPTION),
        page.settings_section(settings),
    ]
    write_text_atomic(out / "report.html", page.page(title, sections))


_CAPTION = (
    "Curves and shades: MBAR with twice its bootstrap standard error. Points: Gibbs-Helmholtz integration (free "
    "energy), averages (enthalpy) and fluctuations (heat capacity) at the temperatures of the ladder."
)


def ladder_figure(result: LadderResult, subject: Subject) -> Figure:
    """Free energy, enthalpy, entropy and heat capacity against temperature; MBAR as curves, other roads as points."""
    energy, molar = 1000.0 / subject.units, JOULE_PER_MOLE / subject.units
    kelvin = result.samples.temperatures
    means = np.array([values.mean() for values in result.samples.enthalpies])
    freedom = 3 * subject.atoms - (3 if subject.flexible else 0)
    kinetic = 0.5 * freedom * BOLTZMANN * (kelvin - kelvin[0])
    fields = (
        ("gibbs", energy, f"{subject.energy} (meV per formula unit)"),
        ("enthalpy", energy, f"{subject.enthalpy} (meV per formula unit)"),
        ("entropy", molar, "S (J K$^{-1}$ mol$^{-1}$)"),
        ("heat_capacity", molar, f"C$_\\mathrm{{{subject.capacity[1]}}}$ (J K$^{{-1}}$ mol$^{{-1}}$)"),
    )
    points: dict[str, tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"] | None, str]] = {
        "gibbs": (result.integrated, result.integrated_errors, "Gibbs-Helmholtz integration"),
        "enthalpy": (means - means[0] + kinetic, None, "averages"),
        "heat_capacity": (result.fluctuations, result.fluctuations_errors, "fluctuations"),
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 6.0), layout="constrained")
        for axes, (name, factor, text) in zip(figure.subplots(2, 2, sharex=True).ravel(), fields, strict=True):
            value, error = factor * getattr(result.values, name), factor * getattr(result.errors, name)
            axes.fill_between(result.wanted, value - 2 * error, value + 2 * error, color=COLORS[0], alpha=0.2, lw=0)
            axes.plot(result.wanted, value, color=COLORS[0], label="MBAR")
            if name in points:
                found, spread, road = points[name]
                bars = None if spread is None else factor * spread
                style = {"fmt": "o", "ms": 4, "color": COLORS[1], "capsize": 2, "lw": 1, "zorder": 3, "label": road}
                axes.errorbar(kelvin, factor * found, bars, **style)
            if name == "heat_capacity":
                classical = 3 * JOULE_PER_MOLE * BOLTZMANN * subject.atoms / subject.units
                axes.axhline(classical, color=GREY, lw=0.8, ls=(0, (4, 3)), zorder=1, label="3 R for each atom")
            axes.set_ylabel(text if name == "heat_capacity" else f"{text[0]} $-$ {text[0]}$_0${text[1:]}")
            if name in ("entropy", "heat_capacity"):
                axes.set_xlabel("temperature (K)")
            # room for a legend that hides no error bar
            axes.margins(x=0.03, y=0.25 if name == "heat_capacity" else 0.05)
            if name != "entropy":
                axes.legend(loc="best")
    return figure


def _lines(result: LadderResult, subject: Subject) -> list[dict[str, float]]:
    energy, molar = 1.0 / subject.units, JOULE_PER_MOLE / subject.units
    lines = []
    for k, kelvin in enumerate(result.wanted):
        line = {"temperature_K": float(kelvin)}
        for name, label, factor in (
            ("gibbs", "free_energy_eV", energy),
            ("enthalpy", "enthalpy_eV", energy),
            ("entropy", "entropy_J_per_K_mol", molar),
            ("heat_capacity", "heat_capacity_J_per_K_mol", molar),
        ):
            line[label] = float(factor * getattr(result.values, name)[k])
            line[f"{label}_error"] = float(factor * getattr(result.errors, name)[k])
        line["effective_samples"] = float(result.values.samples[k])
        lines.append(line)
    return lines


def _ladder(result: LadderResult, subject: Subject) -> list[dict[str, float]]:
    """What the ladder's own temperatures say, without MBAR."""
    molar = JOULE_PER_MOLE / subject.units
    return [
        {
            "temperature_K": float(result.samples.temperatures[k]),
            "samples": float(result.samples.counts[k]),
            "frames_per_sample": float(result.samples.inefficiencies[k]),
            "effective_samples": float(result.effective[k]),
            "free_energy_integrated_eV": float(result.integrated[k] / subject.units),
            "free_energy_integrated_eV_error": float(result.integrated_errors[k] / subject.units),
            "heat_capacity_fluctuations_J_per_K_mol": float(molar * result.fluctuations[k]),
            "heat_capacity_fluctuations_J_per_K_mol_error": float(molar * result.fluctuations_errors[k]),
        }
        for k in range(len(result.samples.temperatures))
    ]


def _transition(result: LadderResult, subject: Subject) -> dict[str, float] | None:
    """What the transition takes, for one formula unit."""
    if result.bracket is None or result.transition is None or result.transition_errors is None:
        return None
    numbers = {"temperature_K": result.bracket.temperature}
    for name, label, factor in (
        ("enthalpy", "enthalpy_J_per_mol", JOULE_PER_MOLE),
        ("entropy", "entropy_J_per_K_mol", JOULE_PER_MOLE),
        ("total_entropy", "total_entropy_J_per_K_mol", JOULE_PER_MOLE),
    ):
        numbers[label] = float(factor / subject.units * getattr(result.transition, name))
        numbers[f"{label}_error"] = float(factor / subject.units * getattr(result.transition_errors, name))
    return numbers


def _heads(subject: Subject) -> tuple[str, ...]:
    return (
        "T (K)",
        f"{subject.energy} - {subject.energy}0 (meV)",
        f"{subject.enthalpy} - {subject.enthalpy}0 (meV)",
        "S - S0 (J/K/mol)",
        f"{subject.capacity} (J/K/mol)",
        "samples",
    )


def _cells(line: Mapping[str, float], subject: Subject) -> list[str]:
    pairs = [(1000.0, "free_energy_eV"), (1000.0, "enthalpy_eV"), (1.0, "entropy_J_per_K_mol")]
    pairs.append((1.0, "heat_capacity_J_per_K_mol"))
    numbers = [page.uncertain(f * line[name], f * line[f"{name}_error"]) for f, name in pairs]
    few = " (few)" if line["effective_samples"] < FEW_SAMPLES else ""
    return [f"{line['temperature_K']:g}", *numbers, f"{line['effective_samples']:.0f}{few}"]


def _remarks(result: LadderResult, subject: Subject) -> list[str]:
    first, last = result.samples.temperatures[0], result.samples.temperatures[-1]
    free, enthalpy, molar = subject.energy, subject.enthalpy, JOULE_PER_MOLE / subject.units
    rise, error = float(molar * result.values.entropy[-1]), float(molar * result.errors.entropy[-1])
    change = f"entropy + {page.uncertain(rise, error)} J/K/mol from {first:g} to {last:g} K"
    worst = np.abs(result.integrated - result.values.gibbs[::4])
    overlap = np.minimum(np.diagonal(result.overlap, 1), np.diagonal(result.overlap, -1)).min()
    taken = []
    if (numbers := _transition(result, subject)) is not None:
        heat, once, total = (
            page.uncertain(numbers[label], numbers[f"{label}_error"])
            for label in ("enthalpy_J_per_mol", "entropy_J_per_K_mol", "total_entropy_J_per_K_mol")
        )
        taken.append(
            f"The transition near {numbers['temperature_K']:g} K takes {heat} J/mol, {once} J/K/mol, by extrapolation "
            f"from both sides; with what order is lost before it, {total} J/K/mol above {first:g} K."
        )
    return [
        f"{subject.formula} with {Path(subject.model).name}: {change}.",
        f"{free}0, {enthalpy}0 and S0 are the values at {first:g} K: {free} here is {free}(T) - {enthalpy}0 + T S0. "
        "Nuclei are classical; per formula unit, standard errors in brackets.",
        f"MBAR and Gibbs-Helmholtz integration differ by {1000 * worst.max() / subject.units:.2g} meV at most; "
        f"neighbouring temperatures overlap by at least {overlap:.2f}.",
        *taken,
    ]
