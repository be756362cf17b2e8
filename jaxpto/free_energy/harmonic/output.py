"""What a harmonic free energy says: its columns, its figure and its sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.console import Console

from jaxpto.free_energy.harmonic.vibrations import VibrationalThermodynamics
from jaxpto.reporting.columns import TEMPERATURE, Column, Row
from jaxpto.reporting.panels import dulong_petit, four_panels
from jaxpto.reporting.result import Result, write_result
from jaxpto.reporting.sections import ResultTable, picture
from jaxpto.reporting.style import COLORS, styled
from jaxpto.reporting.subject import Subject

FIGURE = "harmonic.png"
UNSETTLED = 1e-3  # eV/Angstrom; a structure with larger forces on its atoms is reported as not at rest
CAPTION = (
    "Free energy and energy of the vibrations (without the static energy), their entropy and heat capacity, per "
    "formula unit."
)


@dataclasses.dataclass(frozen=True)
class Treatment:
    """How vibrations are treated.

    Attributes:
        statistics: "quantum" or "classical".
        pressure: GPa.
        supercell: repeats of the structure for the force constants.
        mesh: wave vectors along the reciprocal vectors of the primitive cell.
    """

    statistics: str
    pressure: float
    supercell: tuple[int, int, int]
    mesh: tuple[int, int, int]

    def __str__(self) -> str:
        quantum = self.statistics == "quantum"
        nuclei = "Nuclei are quantum, with zero-point energy" if quantum else "Nuclei are classical"
        supercell, mesh = (" x ".join(map(str, counts)) for counts in (self.supercell, self.mesh))
        return f"{nuclei}; supercell {supercell}, {mesh} wave vectors; per formula unit."


@dataclasses.dataclass(frozen=True)
class HarmonicResult:
    """Vibrations of one primitive cell.

    Attributes:
        temperatures: [t] K.
        static: potential energy, eV.
        volume: Angstrom^3.
        work: p V, eV.
        values: free energy [t] eV, entropy and heat capacity [t] eV/K of the vibrations.
        zero_point: zero-point energy, eV.
        lowest: lowest frequency on the mesh, without the translations, THz; negative where imaginary.
        imaginary: share of imaginary modes.
        treatment: what became of them, "omit" or "absolute".
        force: largest force on an atom, eV/Angstrom.
        lengths: lattice parameters of the structure, Angstrom.
    """

    temperatures: Float[np.ndarray, " t"]
    static: float
    volume: float
    work: float
    values: VibrationalThermodynamics
    zero_point: float
    lowest: float
    imaginary: float
    treatment: str
    force: float
    lengths: tuple[float, ...]


def write_harmonic(
    result: HarmonicResult,
    subject: Subject,
    treatment: Treatment,
    out: Path,
    settings: Mapping[str, Any],
    console: Console,
) -> None:
    """Write free_energy.csv, free_energy.json, harmonic.png and report.html into `out`, and print the table."""
    symbol = "F" if treatment.pressure == 0.0 else "F + pV"
    columns = (
        TEMPERATURE,
        Column("free_energy_eV", symbol, "eV", ".5f"),
        Column("vibrational_meV", "F vib", "meV", ".2f"),
        Column("vibrational_energy_meV", "U vib", "meV", ".2f"),
        Column("entropy_J_per_K_mol", "S", "J/K/mol", ".3f"),
        Column("heat_capacity_J_per_K_mol", "Cv", "J/K/mol", ".3f"),
    )
    rows = harmonic_rows(result, subject)
    about = {
        "zero_point_energy_eV": result.zero_point / subject.units,
        "lowest_frequency_THz": result.lowest,
        "imaginary_share": result.imaginary,
        "largest_force_eV_per_A": result.force,
        "lattice_A": list(result.lengths),
    }
    a, b, c = result.lengths
    remarks = [
        f"{symbol} is absolute: the static energy of the model with the vibrations at a fixed cell. {treatment}",
    ]
    if result.imaginary:
        what = "left out of every sum" if result.treatment == "omit" else "taken by their absolute frequency"
        remarks.append(f"{100.0 * result.imaginary:.2g} % of the modes are imaginary and {what}: no stable crystal.")
    if result.force > UNSETTLED:
        remarks.append(f"The largest force is {result.force:.2g} eV/A: the structure is not at rest with this model.")
    document = Result(
        title=f"Harmonic free energy of {subject.name}",
        headline=f"{subject.name}: zero-point energy {1000.0 * result.zero_point / subject.units:.2f} meV, "
        f"lowest frequency {result.lowest:.3f} THz, at a b c {a:.4f} {b:.4f} {c:.4f} A.",
        remarks=remarks,
        table=ResultTable(columns, rows),
        about=about_vibrations("harmonic", subject, treatment) | about,
        pictures={FIGURE: picture(harmonic_figure(columns[2:], rows, subject), CAPTION)},
        settings=settings,
        caveat=subject.caveat,
    )
    write_result(out, document, console)


def about_vibrations(method: str, subject: Subject, treatment: Treatment) -> dict[str, Any]:
    """The first entries of free_energy.json, which name the method that wrote it."""
    return {
        "method": method,
        "formula": subject.formula,
        "formula_units": subject.units,
        "statistics": treatment.statistics,
        "mesh": list(treatment.mesh),
    }


@styled()
def harmonic_figure(columns: Sequence[Column], rows: Sequence[Row], subject: Subject) -> Figure:
    """Four columns against temperature, the last of them the heat capacity."""
    figure, panels = four_panels([column.label for column in columns])
    for axes, column in zip(panels, columns, strict=True):
        axes.plot(TEMPERATURE.values(rows), column.values(rows), marker="o", ms=3.5, color=COLORS[0])
    dulong_petit(panels[3], subject)
    return figure


def harmonic_rows(result: HarmonicResult, subject: Subject) -> list[dict[str, float]]:
    """One row for each temperature, per formula unit."""
    values, units = result.values, subject.units
    return [
        {
            "temperature_K": float(kelvin),
            "free_energy_eV": float(result.static + result.work + values.free_energy[k]) / units,
            "static_eV": (result.static + result.work) / units,
            "vibrational_meV": 1000.0 * float(values.free_energy[k]) / units,
            "vibrational_energy_meV": 1000.0 * float(values.free_energy[k] + kelvin * values.entropy[k]) / units,
            "entropy_J_per_K_mol": subject.molar * float(values.entropy[k]),
            "heat_capacity_J_per_K_mol": subject.molar * float(values.heat_capacity[k]),
        }
        for k, kelvin in enumerate(result.temperatures)
    ]
