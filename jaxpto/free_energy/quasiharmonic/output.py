"""What the quasi-harmonic approximation says: its columns, its figure and its sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.console import Console

from jaxpto.free_energy.harmonic.output import FIGURE, Treatment, about_vibrations
from jaxpto.free_energy.quasiharmonic.minimum import Equilibrium, Lost
from jaxpto.reporting.columns import TEMPERATURE, Column, Row
from jaxpto.reporting.panels import dulong_petit, four_panels
from jaxpto.reporting.result import Result, write_result
from jaxpto.reporting.sections import ResultTable, picture
from jaxpto.reporting.style import COLORS, styled
from jaxpto.reporting.subject import Subject
from jaxpto.units import GIGAPASCAL

SAME = 1e-5  # relative difference of lengths that count as one
GIBBS = Column("free_energy_eV", "G", "eV", ".4f")
ENTROPY = Column("entropy_J_per_K_mol", "S", "J/K/mol", ".2f")
HEAT_CAPACITIES = tuple(Column(f"heat_capacity_{x}_J_per_K_mol", f"C{x}", "J/K/mol", ".2f") for x in "vp")
CAPTION = (
    "Lattice parameters (dotted: at 0 K without vibrations), Gibbs energy, entropy, and heat capacities at constant "
    "pressure and at constant volume, per formula unit, at the cell that minimises the free energy."
)


@dataclasses.dataclass(frozen=True)
class QuasiharmonicResult:
    """Minima of the free energy.

    Attributes:
        equilibria: one for each temperature, ascending; energies belong to the primitive cell.
        lost: where they end, if they do.
        cells: [3, 3] unit cell as the structure has it, at each temperature, Angstrom.
        start: [3, 3] unit cell at 0 K without vibrations, Angstrom.
        internal: how internal coordinates were treated, "zsisa" or "full".
        coordinates: number of coordinates minimised over.
    """

    equilibria: list[Equilibrium]
    lost: Lost | None
    cells: list[Float[np.ndarray, "3 3"]]
    start: Float[np.ndarray, "3 3"]
    internal: str
    coordinates: int


def write_quasiharmonic(
    result: QuasiharmonicResult,
    subject: Subject,
    treatment: Treatment,
    out: Path,
    settings: Mapping[str, Any],
    console: Console,
) -> None:
    """Write free_energy.csv, free_energy.json, harmonic.png and report.html into `out`, and print the table."""
    rows = [_row(minimum, cell, subject) for minimum, cell in zip(result.equilibria, result.cells, strict=True)]
    columns = (
        TEMPERATURE,
        *(Column(f"{axis}_A", axis, "A", ".4f") for axis, _ in lattice_names(result.cells)),
        Column("expansion_volume_ppm_per_K", "dlnV/dT", "1e-6/K", ".1f"),
        *(GIBBS, ENTROPY, *HEAT_CAPACITIES),
    )
    lost = None if result.lost is None else dataclasses.asdict(result.lost)
    about = {"internal": result.internal, "lost": lost, "static_lattice_A": np.linalg.norm(result.start, axis=1)}
    headline, *remarks = _sentences(result, subject, treatment)
    document = Result(
        title=f"Quasi-harmonic thermodynamics of {subject.name}",
        headline=headline,
        remarks=remarks,
        table=ResultTable(columns, rows),
        about=about_vibrations("qha", subject, treatment) | about,
        pictures={FIGURE: picture(quasiharmonic_figure(result, rows, subject), CAPTION)},
        settings=settings,
    )
    write_result(out, document, console)


def lattice_names(cells: Sequence[Float[np.ndarray, "3 3"]]) -> list[tuple[str, str]]:
    """Axes of different length, each with the label of all that share it: [("a", "a = b"), ("c", "c")]."""
    lengths = np.array([np.linalg.norm(cell, axis=1) for cell in cells])
    labels: dict[str, list[str]] = {}
    for index, axis in enumerate("abc"):
        for other in labels:
            if np.allclose(lengths[:, index], lengths[:, "abc".index(other)], rtol=SAME, atol=0.0):
                labels[other].append(axis)
                break
        else:
            labels[axis] = [axis]
    return [(axis, " = ".join(shared)) for axis, shared in labels.items()]


@styled()
def quasiharmonic_figure(result: QuasiharmonicResult, rows: Sequence[Row], subject: Subject) -> Figure:
    """Lattice parameters, Gibbs energy, entropy and heat capacities against temperature."""
    named = lattice_names(result.cells)
    lattice = [Column(f"{axis}_A", label, "A") for axis, label in named]
    curves = (lattice, [GIBBS], [ENTROPY], HEAT_CAPACITIES)
    figure, panels = four_panels(["lattice parameters (Å)", GIBBS.label, ENTROPY.label, "heat capacity (J/K/mol)"])
    for axes, columns in zip(panels, curves, strict=True):
        for column, color in zip(columns, COLORS, strict=False):
            kelvin, values = TEMPERATURE.values(rows), column.values(rows)
            axes.plot(kelvin, values, color=color, label=column.heading, marker="o", ms=3.5)
        axes.ticklabel_format(axis="y", useOffset=False)
    for (axis, _), color in zip(named, COLORS, strict=False):
        static = float(np.linalg.norm(result.start["abc".index(axis)]))
        panels[0].axhline(static, color=color, lw=0.9, ls=":", zorder=1)
    panels[0].legend(loc="best")
    dulong_petit(panels[3], subject)
    return figure


def _row(minimum: Equilibrium, cell: Float[np.ndarray, "3 3"], subject: Subject) -> dict[str, float]:
    point, units = minimum.point, subject.units
    lengths = np.linalg.norm(cell, axis=1)
    volume = float(np.linalg.det(point.cell))
    # rows of the cell are lattice vectors: d|a|/dT / |a| = e . rate . e along each of them
    unit = cell / lengths[:, None]
    expansion = np.einsum("ia,ab,ib->i", unit, minimum.strain_rate, unit)
    stress = point.thermal_stress / GIGAPASCAL
    helmholtz = point.static + point.vibrational
    row = {"temperature_K": minimum.temperature}
    row |= {f"{axis}_A": float(length) for axis, length in zip("abc", lengths, strict=True)}
    row |= {"volume_A3": volume / units}
    row |= {f"expansion_{axis}_ppm_per_K": 1e6 * float(e) for axis, e in zip("abc", expansion, strict=True)}
    row |= {
        "expansion_volume_ppm_per_K": 1e6 * float(np.trace(minimum.strain_rate)),
        "free_energy_eV": point.gibbs / units,
        "helmholtz_eV": helmholtz / units,
        "static_eV": point.static / units,
        "vibrational_meV": 1000.0 * point.vibrational / units,
        "entropy_J_per_K_mol": subject.molar * point.entropy,
        "heat_capacity_v_J_per_K_mol": subject.molar * point.heat_capacity,
        "heat_capacity_p_J_per_K_mol": subject.molar * minimum.heat_capacity,
    }
    return row | {f"thermal_stress_{name}_GPa": float(stress[i, i]) for i, name in enumerate(("xx", "yy", "zz"))}


def _sentences(result: QuasiharmonicResult, subject: Subject, treatment: Treatment) -> list[str]:
    first, last = result.equilibria[0], result.equilibria[-1]
    cells = result.cells
    ends = np.linalg.norm([cells[0], cells[-1]], axis=2)
    lengths = [
        f"{label} {ends[0]['abc'.index(axis)]:.4f} to {ends[1]['abc'.index(axis)]:.4f}"
        for axis, label in lattice_names(cells)
    ]
    sentences = [
        f"{subject.name}: {', '.join(lengths)} A from {first.temperature:g} to "
        f"{last.temperature:g} K at {treatment.pressure:g} GPa."
    ]
    if result.lost is not None:
        lost = result.lost
        sentences.append(
            f"Stability is lost between {lost.last:g} and {lost.first:g} K: {lost.reason}; temperatures above have no "
            "quasi-harmonic free energy and are left out."
        )
    rough = [minimum.temperature for minimum in result.equilibria if minimum.jumps]
    if rough:
        sentences.append(
            f"Do not quote expansion and Cp at {', '.join(f'{kelvin:g}' for kelvin in rough)} K: third derivatives of "
            "the model jump beside the minimum, and there they depend on which side of a jump it lies. Lattice "
            "parameters, G, S and Cv are not affected."
        )
    how = {
        "zsisa": "relaxed in the static energy at each cell (zero static internal stress)",
        "full": "minimised together with the cell",
    }[result.internal]
    number = f"{result.coordinates} coordinate{'' if result.coordinates == 1 else 's'}"
    sentences.append(
        f"Minimum over {number} that keep the symmetry of the start; internal coordinates are {how}. {treatment}"
    )
    return sentences
