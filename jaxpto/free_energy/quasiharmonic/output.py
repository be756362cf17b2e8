"""What the quasi-harmonic approximation says: table, free_energy.csv and .json, harmonic.png, report.html."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from jaxpto.free_energy.harmonic.output import Document, Subject, dulong_petit, write_document
from jaxpto.free_energy.quasiharmonic.minimum import Equilibrium, Lost
from jaxpto.reporting.figures import COLORS, STYLE
from jaxpto.units import GIGAPASCAL

SAME = 1e-5  # relative difference of lengths that count as one


@dataclasses.dataclass(frozen=True)
class QuasiharmonicResult:
    """Minima of the free energy.

    Attributes:
        equilibria: one for each temperature, ascending, of the primitive cell.
        lost: where they end, if they do.
        cells: [3, 3] of the unit cell as the structure has it, at each, Angstrom.
        start: [3, 3] unit cell at 0 K without vibrations.
        internal: how internal coordinates were treated.
        coordinates: number of coordinates minimised over.
    """

    equilibria: list[Equilibrium]
    lost: Lost | None
    cells: list[Float[np.ndarray, "3 3"]]
    start: Float[np.ndarray, "3 3"]
    internal: str
    coordinates: int


def write_quasiharmonic(
    result: QuasiharmonicResult, subject: Subject, out: Path, settings: Mapping[str, Any], console: Console
) -> None:
    """Write free_energy.csv, free_energy.json, harmonic.png and report.html into `out`, and print the table."""
    lines = [_line(minimum, cell, subject) for minimum, cell in zip(result.equilibria, result.cells, strict=True)]
    axes = [name for name, _ in lattice_names(result.cells)]
    columns = {"T (K)": ("temperature_K", "g")} | {f"{axis} (A)": (f"{axis}_A", ".4f") for axis in axes}
    columns |= {
        "dlnV/dT (1e-6/K)": ("expansion_volume_ppm_per_K", ".1f"),
        "G (eV)": ("free_energy_eV", ".4f"),
        "S (J/K/mol)": ("entropy_J_per_K_mol", ".2f"),
        "Cv (J/K/mol)": ("heat_capacity_v_J_per_K_mol", ".2f"),
        "Cp (J/K/mol)": ("heat_capacity_p_J_per_K_mol", ".2f"),
    }
    lost = None if result.lost is None else dataclasses.asdict(result.lost)
    about = {"internal": result.internal, "lost": lost, "static_lattice_A": np.linalg.norm(result.start, axis=1)}
    document = Document("qha", subject, lines, about, columns, _remarks(result, subject), _CAPTION)
    write_document(document, quasiharmonic_figure(result, lines, subject), out, settings, console)


_CAPTION = (
    "Lattice parameters (dotted: at 0 K without vibrations), Gibbs energy, entropy, and heat capacities at constant "
    "pressure and at constant volume, at the cell that minimises the free energy."
)


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


def quasiharmonic_figure(result: QuasiharmonicResult, lines: Sequence[Mapping[str, float]], subject: Subject) -> Figure:
    """Lattice parameters, Gibbs energy, entropy and heat capacities against temperature."""
    kelvin = [line["temperature_K"] for line in lines]
    style: Any = {"marker": "o", "ms": 3.5}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 6.0), layout="constrained")
        lattice, gibbs, entropy, capacity = figure.subplots(2, 2, sharex=True).ravel()
        for number, (axis, label) in enumerate(lattice_names(result.cells)):
            color = COLORS[number]
            lattice.plot(kelvin, [line[f"{axis}_A"] for line in lines], color=color, label=label, **style)
            static = float(np.linalg.norm(result.start["abc".index(axis)]))
            lattice.axhline(static, color=color, lw=0.9, ls=":", zorder=1)
        lattice.legend(loc="best")
        gibbs.plot(kelvin, [line["free_energy_eV"] for line in lines], color=COLORS[0], **style)
        entropy.plot(kelvin, [line["entropy_J_per_K_mol"] for line in lines], color=COLORS[0], **style)
        for name, label, color in (("p", "C$_\\mathrm{p}$", COLORS[0]), ("v", "C$_\\mathrm{v}$", COLORS[1])):
            values = [line[f"heat_capacity_{name}_J_per_K_mol"] for line in lines]
            capacity.plot(kelvin, values, color=color, label=label, **style)
        dulong_petit(capacity, subject)
        labels = ("lattice parameters ($\\mathrm{\\AA}$)", "G (eV per formula unit)")
        labels = (*labels, "S (J K$^{-1}$ mol$^{-1}$)", "heat capacity (J K$^{-1}$ mol$^{-1}$)")
        panels: tuple[Axes, ...] = (lattice, gibbs, entropy, capacity)
        for axes, text in zip(panels, labels, strict=True):
            axes.set_ylabel(text)
            axes.margins(x=0.03)
            axes.ticklabel_format(axis="y", useOffset=False)
        for axes in (entropy, capacity):
            axes.set_xlabel("temperature (K)")
    return figure


def _line(minimum: Equilibrium, cell: Float[np.ndarray, "3 3"], subject: Subject) -> dict[str, float]:
    point, units = minimum.point, subject.units
    lengths = np.linalg.norm(cell, axis=1)
    volume = float(np.linalg.det(point.cell))
    # rows of the cell are lattice vectors: d|a|/dT / |a| = e . rate . e along each of them
    unit = cell / lengths[:, None]
    expansion = np.einsum("ia,ab,ib->i", unit, minimum.strain_rate, unit)
    stress = point.thermal_stress / GIGAPASCAL
    helmholtz = point.static + point.vibrational
    line = {"temperature_K": minimum.temperature}
    line |= {f"{axis}_A": float(length) for axis, length in zip("abc", lengths, strict=True)}
    line |= {"volume_A3": volume / units}
    line |= {f"expansion_{axis}_ppm_per_K": 1e6 * float(e) for axis, e in zip("abc", expansion, strict=True)}
    line |= {
        "expansion_volume_ppm_per_K": 1e6 * float(np.trace(minimum.strain_rate)),
        "free_energy_eV": point.gibbs / units,
        "helmholtz_eV": helmholtz / units,
        "static_eV": point.static / units,
        "vibrational_meV": 1000.0 * point.vibrational / units,
        "entropy_J_per_K_mol": subject.molar * point.entropy,
        "heat_capacity_v_J_per_K_mol": subject.molar * point.heat_capacity,
        "heat_capacity_p_J_per_K_mol": subject.molar * minimum.heat_capacity,
    }
    return line | {f"thermal_stress_{name}_GPa": float(stress[i, i]) for i, name in enumerate(("xx", "yy", "zz"))}


def _remarks(result: QuasiharmonicResult, subject: Subject) -> list[str]:
    first, last = result.equilibria[0], result.equilibria[-1]
    cells = result.cells
    ends = np.linalg.norm([cells[0], cells[-1]], axis=2)
    lengths = [
        f"{label} {ends[0]['abc'.index(axis)]:.4f} to {ends[1]['abc'.index(axis)]:.4f}"
        for axis, label in lattice_names(cells)
    ]
    remarks = [
        f"{subject.formula} with {Path(subject.model).name}: {', '.join(lengths)} A from {first.temperature:g} to "
        f"{last.temperature:g} K at {subject.pressure:g} GPa."
    ]
    if result.lost is not None:
        lost = result.lost
        remarks.append(
            f"Stability is lost between {lost.last:g} and {lost.first:g} K: {lost.reason}; temperatures above have no "
            "quasi-harmonic free energy and are left out."
        )
    rough = [minimum.temperature for minimum in result.equilibria if minimum.jumps]
    if rough:
        remarks.append(
            f"Do not quote expansion and Cp at {', '.join(f'{kelvin:g}' for kelvin in rough)} K: third derivatives of "
            "the model jump beside the minimum, and there they depend on which side of a jump it lies. Lattice "
            "parameters, G, S and Cv are not affected."
        )
    how = {
        "zsisa": "relaxed in the static energy at each cell (zero static internal stress)",
        "full": "minimised together with the cell",
    }[result.internal]
    number = f"{result.coordinates} coordinate{'' if result.coordinates == 1 else 's'}"
    remarks.append(
        f"Minimum over {number} that keep the symmetry of the start; internal coordinates are {how}. " + subject.how()
    )
    return remarks
