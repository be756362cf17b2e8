"""What a harmonic free energy says: table, free_energy.csv and .json, harmonic.png, report.html."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from ase import units as ase_units
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from jaxpto.console.terminal import WholeTable
from jaxpto.free_energy.harmonic.vibrations import VibrationalThermodynamics
from jaxpto.reporting import page
from jaxpto.reporting.figures import COLORS, GREY, STYLE, png
from jaxpto.storage.files import replacing, write_json_atomic, write_text_atomic
from jaxpto.units import BOLTZMANN

FIGURE = "harmonic.png"
JOULE_PER_MOLE = ase_units._e * ase_units._Nav  # J/mol per eV
UNSETTLED = 1e-3  # eV/Angstrom, largest force from which it is told


@dataclasses.dataclass(frozen=True)
class Subject:
    """What was computed.

    Attributes:
        formula: of one formula unit.
        model: its name.
        units, atoms: formula units and atoms in the primitive cell.
        statistics: quantum or classical.
        pressure: GPa.
        supercell: repeats of the structure for the force constants.
        mesh: wave vectors.
    """

    formula: str
    model: str
    units: int
    atoms: int
    statistics: str
    pressure: float
    supercell: tuple[int, int, int]
    mesh: tuple[int, int, int]

    @property
    def molar(self) -> float:
        """J/mol of formula units per eV of the primitive cell."""
        return JOULE_PER_MOLE / self.units

    @property
    def dulong_petit(self) -> float:
        """3 R for each atom, J/K/mol of formula units."""
        return 3.0 * BOLTZMANN * self.atoms * self.molar

    def how(self) -> str:
        """Statistics, supercell and mesh, in words."""
        nuclei = (
            "Nuclei are quantum, with zero-point energy" if self.statistics == "quantum" else "Nuclei are classical"
        )
        supercell, mesh = (" x ".join(map(str, counts)) for counts in (self.supercell, self.mesh))
        return f"{nuclei}; supercell {supercell}, {mesh} wave vectors; per formula unit."


@dataclasses.dataclass(frozen=True)
class HarmonicResult:
    """Of one primitive cell.

    Attributes:
        temperatures: [t] K.
        static: potential energy, eV.
        volume: Angstrom^3.
        work: p V, eV.
        values: free energy [t] eV, entropy and heat capacity [t] eV/K of the vibrations.
        zero_point: eV.
        lowest: frequency on the mesh, without the translations, THz; negative where imaginary.
        imaginary: share of imaginary modes.
        treatment: what became of them.
        force: largest force on an atom, eV/Angstrom.
        lengths: of the lattice vectors of the structure, Angstrom.
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
    result: HarmonicResult, subject: Subject, out: Path, settings: Mapping[str, Any], console: Console
) -> None:
    """Write free_energy.csv, free_energy.json, harmonic.png and report.html into `out`, and print the table."""
    lines = harmonic_lines(result, subject)
    about = {
        "zero_point_energy_eV": result.zero_point / subject.units,
        "lowest_frequency_THz": result.lowest,
        "imaginary_share": result.imaginary,
        "largest_force_eV_per_A": result.force,
        "lattice_A": list(result.lengths),
    }
    columns = {
        "T (K)": ("temperature_K", "g"),
        f"{_symbol(subject)} (eV)": ("free_energy_eV", ".5f"),
        "F vib (meV)": ("vibrational_meV", ".2f"),
        "U vib (meV)": ("vibrational_energy_meV", ".2f"),
        "S (J/K/mol)": ("entropy_J_per_K_mol", ".3f"),
        "Cv (J/K/mol)": ("heat_capacity_J_per_K_mol", ".3f"),
    }
    document = Document("harmonic", subject, lines, about, columns, _remarks(result, subject), _CAPTION)
    write_document(document, harmonic_figure(lines, subject), out, settings, console)


@dataclasses.dataclass(frozen=True)
class Document:
    """What goes to an output folder, besides the figure.

    Attributes:
        method: that found it.
        subject: what was computed.
        lines: rows of the table, all with the same names.
        about: further values for free_energy.json.
        columns: name in a row and format for each column that is shown, by its heading.
        remarks: sentences; the first is the finding.
        caption: of the figure.
    """

    method: str
    subject: Subject
    lines: list[dict[str, float]]
    about: dict[str, Any]
    columns: dict[str, tuple[str, str]]
    remarks: list[str]
    caption: str


def write_document(
    document: Document, figure: Figure, out: Path, settings: Mapping[str, Any], console: Console
) -> None:
    """Write free_energy.csv, free_energy.json, harmonic.png and report.html into `out`, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(document.lines[0]))
    writer.writeheader()
    writer.writerows(document.lines)
    write_text_atomic(out / "free_energy.csv", buffer.getvalue())
    subject = document.subject
    about: dict[str, Any] = {"method": document.method, "formula": subject.formula, "formula_units": subject.units}
    about |= {"statistics": subject.statistics, "mesh": list(subject.mesh)} | document.about
    write_json_atomic(out / "free_energy.json", about | {"rows": document.lines, "settings": dict(settings)})
    image = png(figure)
    with replacing(out / FIGURE) as temporary:
        Path(temporary).write_bytes(image)
    # units below the names, so that the table fits a narrow terminal
    table = WholeTable(*(head.replace(" (", "\n(") for head in document.columns), box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    rows = [[format(line[name], form) for name, form in document.columns.values()] for line in document.lines]
    for cells in rows:
        table.add_row(*cells)
    console.print(table)
    for text in [*document.remarks, f"report: {out / 'report.html'}"]:
        console.print(text)
    title = f"{document.method.capitalize()} free energy of {subject.formula} with {Path(subject.model).name}"
    if document.method == "qha":
        title = f"Quasi-harmonic thermodynamics of {subject.formula} with {Path(subject.model).name}"
    sections = [
        page.result(document.remarks[0], document.remarks[1:]),
        page.plain_table(document.columns, rows),
        page.wide_figure(image, document.caption),
        page.settings_section(settings),
    ]
    write_text_atomic(out / "report.html", page.page(title, sections))


_CAPTION = "Free energy and energy of the vibrations (without the static energy), their entropy and heat capacity."


def harmonic_figure(lines: Sequence[Mapping[str, float]], subject: Subject) -> Figure:
    """Free energy, energy, entropy and heat capacity of the vibrations against temperature."""
    panels = (
        ("vibrational_meV", "F$_\\mathrm{vib}$ (meV per formula unit)"),
        ("vibrational_energy_meV", "U$_\\mathrm{vib}$ (meV per formula unit)"),
        ("entropy_J_per_K_mol", "S (J K$^{-1}$ mol$^{-1}$)"),
        ("heat_capacity_J_per_K_mol", "C$_\\mathrm{v}$ (J K$^{-1}$ mol$^{-1}$)"),
    )
    kelvin = [line["temperature_K"] for line in lines]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 6.0), layout="constrained")
        for number, (axes, (name, text)) in enumerate(
            zip(figure.subplots(2, 2, sharex=True).ravel(), panels, strict=True)
        ):
            axes.plot(kelvin, [line[name] for line in lines], marker="o", ms=3.5, color=COLORS[0])
            axes.set_ylabel(text)
            axes.margins(x=0.03)
            if number >= 2:
                axes.set_xlabel("temperature (K)")
            if name == "heat_capacity_J_per_K_mol":
                dulong_petit(axes, subject)
    return figure


def dulong_petit(axes: Axes, subject: Subject) -> None:
    """The classical limit of the heat capacity, as a dashed line."""
    axes.axhline(subject.dulong_petit, color=GREY, lw=0.8, ls=(0, (4, 3)), zorder=1, label="3 R for each atom")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(loc="best")


def harmonic_lines(result: HarmonicResult, subject: Subject) -> list[dict[str, float]]:
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


def _symbol(subject: Subject) -> str:
    return "F" if subject.pressure == 0.0 else "F + pV"


def _remarks(result: HarmonicResult, subject: Subject) -> list[str]:
    a, b, c = result.lengths
    zero = 1000.0 * result.zero_point / subject.units
    remarks = [
        f"{subject.formula} with {Path(subject.model).name}: zero-point energy {zero:.2f} meV, lowest frequency "
        f"{result.lowest:.3f} THz, at a b c {a:.4f} {b:.4f} {c:.4f} A.",
        f"{_symbol(subject)} is absolute: the static energy of the model with the vibrations at a fixed cell. "
        + subject.how(),
    ]
    if result.imaginary:
        what = "left out of every sum" if result.treatment == "omit" else "taken by their absolute frequency"
        remarks.append(f"{100.0 * result.imaginary:.2g} % of the modes are imaginary and {what}: no stable crystal.")
    if result.force > UNSETTLED:
        remarks.append(f"The largest force is {result.force:.2g} eV/A: the structure is not at rest with this model.")
    return remarks
