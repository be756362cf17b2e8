"""Table 2 and Fig. 2 of the PTO-test: on the console, as CSV, JSON, PNG and a web page."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console

from jaxpto.console.terminal import WholeTable
from jaxpto.lattice_dynamics.figures import decorate_bands, draw_bands
from jaxpto.lattice_dynamics.harmonic import Bands
from jaxpto.lattice_dynamics.modes import IMAGINARY
from jaxpto.model_interface import caveat
from jaxpto.pto import paper
from jaxpto.reporting import page
from jaxpto.reporting.figures import COLORS, STYLE, png
from jaxpto.storage.files import replacing, write_json_atomic, write_text_atomic

FIGURE = "bands.png"
CAPTION = (
    "Phonons of tetragonal PbTiO3, each in the cell that its model relaxes to: finite displacements of 0.01 Å, made "
    "to obey the acoustic sum rule, without the splitting of longitudinal and transverse modes at Γ. Imaginary "
    f"frequencies are drawn below zero, those that count as imaginary below the red line at {IMAGINARY:g} THz."
)
NOTE = (
    "Lengths in Å, energies in eV per formula unit, dE = E(cubic) - E(tetragonal). In brackets: the paper; * marks a "
    f"difference beyond its last digit ({paper.LENGTH_DIGIT:g} Å, {paper.ENERGY_DIGIT:g} eV). Imaginary (i) means "
    f"below {IMAGINARY:g} THz, translations left out: weaker ones are within the errors of the force constants. 'At "
    "points' counts modes at the named points and all other wave vectors of which the supercell holds whole periods. "
    "'Between' is the lowest imaginary frequency on the rest of the path; there frequencies are interpolated from "
    "force constants that end with the supercell, and acoustic branches may dip below zero beside Γ without an "
    "instability."
)
COLUMNS = ("model", "a (Å)", "c (Å)", "c/a", "dE (eV)", "cubic a", "imaginary at points", "between (THz)")


@dataclasses.dataclass(frozen=True)
class ZeroKelvin:
    """PbTiO3 at 0 K with one model.

    Attributes:
        model: its name.
        a, c: relaxed tetragonal cell, Angstrom.
        cubic_a: relaxed cubic cell, Angstrom.
        energy_difference: cubic minus tetragonal, eV per formula unit.
        lowest_frequency: along the path, THz, negative if imaginary.
        imaginary: imaginary modes (THz) at the named points and the wave vectors that fit the supercell.
        conservative: whether its forces are derivatives of its energy; None where that is not known.
        remarks: what the reader must know, such as a relaxation that did not converge.
        bands: phonon bands of the tetragonal cell.
    """

    model: str
    a: float
    c: float
    cubic_a: float
    energy_difference: float
    lowest_frequency: float
    imaginary: tuple[str, ...]
    conservative: bool | None
    remarks: tuple[str, ...]
    bands: Bands

    @property
    def between(self) -> str:
        """The lowest imaginary frequency between the named points, as "0.72i, Γ-X", or "none"."""
        dips = self.bands.dips()
        return f"{-dips[0].frequency:.2f}i, {dips[0].stretch}" if dips else "none"

    @property
    def c_over_a(self) -> float:
        """Tetragonality."""
        return self.c / self.a


def write_outputs(results: list[ZeroKelvin], out: Path, settings: Mapping[str, Any], console: Console) -> None:
    """Write table2.csv, table2.json, bands.png and report.html into `out`, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [_numbers(result) for result in results]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write_text_atomic(out / "table2.csv", buffer.getvalue())
    write_json_atomic(out / "table2.json", lines)
    image = png(bands_figure(results))
    with replacing(out / FIGURE) as temporary:
        Path(temporary).write_bytes(image)
    table = WholeTable(*COLUMNS, box=None, pad_edge=False)
    rows, references = [_cells(result) for result in results], [_reference_cells(row) for row in paper.REFERENCES]
    for cells in rows + references:
        table.add_row(*cells)
    console.print(table)
    remarks = [f"{result.model}: {remark}" for result in results for remark in _remarks(result)]
    for line in [NOTE, *remarks, f"report: {out / 'report.html'}"]:
        console.print(line)
    figure = page.wide_figure(image, CAPTION)
    sections = [
        page.result("PbTiO3 at 0 K with " + ", ".join(result.model for result in results) + ".", remarks),
        _html_table(rows, references),
        figure,
        page.settings_section(settings),
    ]
    write_text_atomic(out / "report.html", page.page("The PTO-test at 0 K", sections))


def bands_figure(results: list[ZeroKelvin]) -> Figure:
    """Phonon bands, a panel for each model, on common axes."""
    columns = min(3, len(results))
    rows = math.ceil(len(results) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns + 0.5, 2.9 * rows + 0.2), layout="constrained")
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for number, (panel, result) in enumerate(zip(axes, results, strict=False)):
            draw_bands(panel, result.bands, {"color": COLORS[0], "linewidth": 1.0})
            decorate_bands(panel, result.bands, wavenumbers=False)
            panel.set_title(result.model, parse_math=False)
            if number % columns:
                panel.set_ylabel("")
        lowest = min(0.0, *(float(f.min()) for result in results for f in result.bands.frequencies))
        highest = max(float(f.max()) for result in results for f in result.bands.frequencies)
        margin = 0.04 * (highest - lowest)
        bottom = lowest - 2.0 * margin if lowest < IMAGINARY else 0.0
        axes[0].set_ylim(bottom, highest + margin)
        for panel in axes[: len(results)] if bottom < 0.0 else ():
            panel.axhspan(bottom, 0.0, color="#f2f2f2", lw=0, zorder=0)
        for panel in axes[len(results) :]:
            panel.set_visible(False)
    return figure


def _numbers(result: ZeroKelvin) -> dict[str, Any]:
    """A line of table2.csv; empty where the paper has no such model."""
    row = paper.row_of(result.model)
    return {
        "model": result.model,
        "a_A": round(result.a, 5),
        "c_A": round(result.c, 5),
        "c_over_a": round(result.c_over_a, 5),
        "dE_eV": round(result.energy_difference, 5),
        "cubic_a_A": round(result.cubic_a, 5),
        "lowest_frequency_THz": round(result.lowest_frequency, 4),
        "imaginary_modes": "; ".join(result.imaginary),
        "imaginary_between": "; ".join(f"{dip.stretch} {-dip.frequency:.2f}i" for dip in result.bands.dips()),
        "conservative": result.conservative,
        "paper_a_A": row.a if row else "",
        "paper_c_A": row.c if row else "",
        "paper_dE_eV": row.energy_difference if row else "",
        "remarks": "; ".join(_remarks(result)),
    }


def _cells(result: ZeroKelvin) -> list[str]:
    row = paper.row_of(result.model)
    theirs = (row.a, row.c, row.c_over_a, row.energy_difference) if row else (None,) * 4
    ours = (result.a, result.c, result.c_over_a, result.energy_difference)
    digits = (paper.LENGTH_DIGIT, paper.LENGTH_DIGIT, paper.RATIO_DIGIT, paper.ENERGY_DIGIT)
    compared = [_compared(*values) for values in zip(ours, theirs, digits, strict=True)]
    imaginary = f"{len(result.imaginary)}, {result.imaginary[0]}" if result.imaginary else "none"
    return [result.model, *compared, f"{result.cubic_a:.3f}", imaginary, result.between]


def _compared(ours: float, theirs: float | None, digit: float) -> str:
    if theirs is None:
        return f"{ours:.3f}"
    mark = "*" if abs(ours - theirs) > digit else ""
    return f"{ours:.3f}{mark} ({theirs:.2f})"


def _reference_cells(row: paper.GroundState) -> list[str]:
    difference = "" if row.energy_difference is None else f"({row.energy_difference:.2f})"
    return [row.name, f"({row.a:.2f})", f"({row.c:.2f})", f"({row.c_over_a:.2f})", difference, "", "", ""]


def _remarks(result: ZeroKelvin) -> list[str]:
    return [*filter(None, [caveat(result.conservative)]), *result.remarks]


def _html_table(rows: list[list[str]], references: list[list[str]]) -> str:
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    lines = []
    for cells in rows + references:
        lost = ' class="lost"' if any("*" in cell for cell in cells) else ""
        first, *others = (html.escape(cell.strip()) for cell in cells)
        lines.append(f'<tr{lost}><td class="text">{first}</td>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>')
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<h2>Table 2</h2><div class="scroll">{table}</div><p class="note">{html.escape(NOTE)}</p>'
