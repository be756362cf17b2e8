"""Table 2 and Fig. 2 of the PTO-test: their columns, their figure and their sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from jaxpto.lattice_dynamics.figures import decorate_bands, draw_bands
from jaxpto.lattice_dynamics.harmonic import Bands
from jaxpto.lattice_dynamics.modes import IMAGINARY
from jaxpto.model_interface import caveat
from jaxpto.pto import paper
from jaxpto.reporting.columns import Column, Row
from jaxpto.reporting.result import Result, write_result
from jaxpto.reporting.sections import ResultTable, picture
from jaxpto.reporting.style import COLORS, DASHED, styled

FIGURE = "bands.png"
PRINTED = ("a", "c", "c_over_a", "energy_difference")  # what the paper has
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


def _compared(name: str, heading: str, unit: str, digit: float) -> Column:
    """A column of our number beside the paper's in brackets."""
    return Column(name, heading, unit, spell=lambda row: beside(row.get(name), row[f"paper_{name}"], digit))


def beside(ours: float | None, theirs: float | None, digit: float) -> str:
    """Our number with the paper's in brackets, marked where they differ beyond the paper's last digit."""
    printed = "" if theirs is None else f"({theirs:.2f})"
    if ours is None:
        return printed
    mark = "*" if theirs is not None and abs(ours - theirs) > digit else ""
    return f"{ours:.3f}{mark} {printed}".strip()


COLUMNS = (
    Column("model", "model", words=True),
    _compared("a", "a", "A", paper.LENGTH_DIGIT),
    _compared("c", "c", "A", paper.LENGTH_DIGIT),
    _compared("c_over_a", "c/a", "", paper.RATIO_DIGIT),
    _compared("energy_difference", "dE", "eV", paper.ENERGY_DIGIT),
    Column("cubic_a", "cubic a", "A", spell=lambda row: f"{row['cubic_a']:.3f}" if "cubic_a" in row else ""),
    Column("imaginary", "imaginary at points", words=True),
    Column("between", "between", "THz", words=True),
)


def write_zero_kelvin(results: list[ZeroKelvin], out: Path, settings: Mapping[str, Any], console: Console) -> None:
    """Write table2.csv, table2.json, bands.png and report.html into `out`, and print the table."""
    document = Result(
        title="The PTO-test at 0 K",
        headline="PbTiO3 at 0 K with " + ", ".join(result.model for result in results) + ".",
        remarks=[NOTE, *(f"{result.model}: {remark}" for result in results for remark in _remarks(result))],
        table=ResultTable(
            COLUMNS,
            [*map(table_row, results), *(papers_row(row) | {"model": row.name} for row in paper.REFERENCES)],
            "Table 2",
            marked=lambda row: any("*" in column.cell(row) for column in COLUMNS[1:]),
        ),
        rows=[numbers(result) for result in results],
        stem="table2",
        pictures={FIGURE: picture(bands_by_model({result.model: result.bands for result in results}), CAPTION)},
        settings=settings,
    )
    write_result(out, document, console)


@styled()
def bands_by_model(named: Mapping[str, Bands], reference: Bands | None = None) -> Figure:
    """Phonon bands, a panel for each model, on common axes; a reference along the same path dashed behind them."""
    columns = min(3, len(named))
    rows = math.ceil(len(named) / columns)
    figure = Figure(figsize=(3.6 * columns + 0.5, 2.9 * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for number, (panel, (model, bands)) in enumerate(zip(axes, named.items(), strict=False)):
        if reference is not None:
            draw_bands(panel, reference, {"color": COLORS[1], "linewidth": 0.9, "linestyle": DASHED}, along=bands)
        draw_bands(panel, bands, {"color": COLORS[0], "linewidth": 1.0})
        decorate_bands(panel, bands, wavenumbers=False)
        panel.set_title(model, parse_math=False)
        if number % columns:
            panel.set_ylabel("")
    every = [frequencies for bands in named.values() for frequencies in bands.frequencies]
    lowest = min(0.0, *(float(f.min()) for f in every))
    highest = max(float(f.max()) for f in every)
    margin = 0.04 * (highest - lowest)
    bottom = lowest - 2.0 * margin if lowest < IMAGINARY else 0.0
    axes[0].set_ylim(bottom, highest + margin)
    for panel in axes[: len(named)] if bottom < 0.0 else ():
        panel.axhspan(bottom, 0.0, color="#f2f2f2", lw=0, zorder=0)
    for panel in axes[len(named) :]:
        panel.set_visible(False)
    return figure


def numbers(result: ZeroKelvin) -> dict[str, Any]:
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


def table_row(result: ZeroKelvin) -> Row:
    """A line of the table, with the paper's numbers for the same model where it has them."""
    imaginary = f"{len(result.imaginary)}, {result.imaginary[0]}" if result.imaginary else "none"
    ours = {name: getattr(result, name) for name in ("model", "cubic_a", "between", *PRINTED)}
    return papers_row(paper.row_of(result.model)) | ours | {"imaginary": imaginary}


def papers_row(row: paper.GroundState | None) -> dict[str, Any]:
    """The paper's entries of a line of the table, empty where it has none."""
    found = {f"paper_{name}": None if row is None else getattr(row, name) for name in PRINTED}
    return {"imaginary": "", "between": ""} | found


def _remarks(result: ZeroKelvin) -> list[str]:
    return [*filter(None, [caveat(result.conservative)]), *result.remarks]
