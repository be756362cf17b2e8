"""What switching says: table, free_energy.csv and .json, switching.png, report.html."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from ase import units as ase_units
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from jaxpto.console.options import as_typed
from jaxpto.console.terminal import WholeTable
from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.free_energy.switching.analysis import Scaled, Switched, SwitchedCrystal, agreement, at_temperatures
from jaxpto.free_energy.switching.einstein_crystal import PLANCK
from jaxpto.reporting import page
from jaxpto.reporting.figures import COLORS, GREY, STYLE, png
from jaxpto.storage.files import replacing, write_json_atomic, write_text_atomic
from jaxpto.units import BOLTZMANN

FIGURE = "switching.png"
JOULE_PER_MOLE = ase_units._e * ase_units._Nav  # J/mol per eV
LARGE_DISSIPATION = 5.0  # kT, beyond which works there and back hardly overlap
FLAT = 1e-3  # slices of less of the path than this have no slope worth drawing
MOST_CURVES = 4


@dataclasses.dataclass(frozen=True)
class SwitchingSubject:
    """What was simulated.

    Attributes:
        formula: of one formula unit.
        model: its name.
        units: formula units in the simulated cell.
        crystal: the simulated cell.
    """

    formula: str
    model: str
    units: int
    crystal: SwitchedCrystal

    @property
    def atoms(self) -> int:
        """In the simulated cell."""
        return len(self.crystal.masses)


def write_switching(
    switched: list[Switched],
    scaled: Scaled | None,
    internal: list[tuple[float, float]],
    wanted: Float[np.ndarray, " t"],
    subject: SwitchingSubject,
    out: Path,
    settings: Mapping[str, Any],
    console: Console,
) -> None:
    """Write free_energy.csv, free_energy.json, switching.png and report.html into `out`, and print the table.

    Args:
        switched: by ascending temperature.
        scaled: over their range, or None.
        internal: internal energy and its standard error at each of `switched`, eV.
        wanted: [t] temperatures of the table, K.
        subject: what was simulated.
        out: folder.
        settings: for the record.
        console: for the table.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = _lines(switched, scaled, internal, wanted, subject)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write_text_atomic(out / "free_energy.csv", buffer.getvalue())
    document = {
        "formula": subject.formula,
        "formula_units": subject.units,
        "atoms": subject.atoms,
        "lattice_translations": subject.crystal.translations,
        "origin_eV": subject.crystal.origin,
        "rows": lines,
        "switches": [_switches(one, subject) for one in switched],
        "scaling": None if scaled is None else dataclasses.asdict(scaled),
    }
    write_json_atomic(out / "free_energy.json", document | {"settings": dict(settings)})
    image = png(switching_figure(switched, scaled, subject))
    with replacing(out / FIGURE) as temporary:
        Path(temporary).write_bytes(image)
    columns = _columns(scaled)
    shown = [column for column in columns if column.shown]  # what 80 characters have room for
    table = WholeTable(*(column.head for column in shown), box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for line in lines:
        table.add_row(*(_cell(line, column) for column in shown))
    console.print(table)
    remarks = _remarks(switched, scaled, subject)
    for text in [*remarks, f"report: {out / 'report.html'}"]:
        console.print(text)
    sections = [
        page.result(remarks[0], remarks[1:]),
        page.plain_table(
            [(column.head, column.unit) for column in columns],
            [[_cell(line, column) for column in columns] for line in lines],
        ),
        page.wide_figure(image, _CAPTION),
        page.settings_section(settings),
    ]
    title = f"Free energy of {subject.formula} with {Path(subject.model).name}"
    write_text_atomic(out / "report.html", page.page(title, sections))


_CAPTION = (
    "Works: every switch, less the free-energy change, in kT; where the works there and those back, negated, lie on "
    "both sides of zero without overlap, the switches are too fast. Slopes: mean of the derivative of the energy along "
    "the path from the model (0) to the Einstein crystal (1), there and back; their gap is the dissipation."
)


def switching_figure(switched: list[Switched], scaled: Scaled | None, subject: SwitchingSubject) -> Figure:
    """Works of all switches, slopes along the path, and F against temperature where there is more than one."""
    several = len(switched) > 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 6.0 if several else 3.3), layout="constrained")
        places = figure.subplot_mosaic("ws;ff" if several else "ws")
        _draw_works(places["w"], switched)
        _draw_slopes(places["s"], switched, subject)
        if several:
            _draw_free_energy(places["f"], switched, scaled, subject)
    return figure


def _draw_works(axes: Axes, switched: list[Switched]) -> None:
    for place, one in enumerate(switched):
        kT = BOLTZMANN * one.temperature
        change = one.einstein - one.free_energy
        for values, shift, color, label in (
            (one.forward, -0.16, COLORS[0], "to the Einstein crystal"),
            (-one.backward, 0.16, COLORS[1], "back, negated"),
        ):
            spread = place + shift + np.linspace(-0.09, 0.09, len(values))
            axes.plot(spread, (values - change) / kT, "o", ms=3.5, color=color, label=label if place == 0 else None)
            axes.plot([place + shift - 0.13, place + shift + 0.13], 2 * [(values.mean() - change) / kT], color=color)
    axes.axhline(0.0, color=GREY, lw=0.8, ls=(0, (4, 3)), zorder=1)
    every = max(1, math.ceil(len(switched) / 6))
    axes.set_xticks(range(0, len(switched), every), [f"{one.temperature:g}" for one in switched[::every]])
    axes.set_xlim(-0.6, len(switched) - 0.4)
    axes.set_xlabel("temperature (K)")
    axes.set_ylabel(r"(work $-$ free-energy change) / kT")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)  # within, it would hide works


def _draw_slopes(axes: Axes, switched: list[Switched], subject: SwitchingSubject) -> None:
    chosen = switched[:: max(1, math.ceil(len(switched) / MOST_CURVES))]
    for color, one in zip(COLORS, chosen, strict=False):
        drawn = np.gradient(one.path) > FLAT
        scale = 1000.0 / subject.atoms
        axes.plot(one.path[drawn], scale * one.there[drawn], color=color, label=f"{one.temperature:g} K")
        axes.plot(one.path[drawn], scale * one.back[drawn], color=color, ls=(0, (2, 1.5)))
    axes.set_xlabel(r"$\lambda$ (0 model, 1 Einstein crystal)")
    axes.set_ylabel(r"$\langle U_\mathrm{E} - U + U_0 \rangle$ (meV per atom)")
    axes.legend(loc="best", title="line: there, dashed: back", title_fontsize=8.5)


def _draw_free_energy(axes: Axes, switched: list[Switched], scaled: Scaled | None, subject: SwitchingSubject) -> None:
    if scaled is not None:
        value, error = scaled.free_energy / subject.units, scaled.error / subject.units
        axes.fill_between(scaled.temperatures, value - 2 * error, value + 2 * error, color=COLORS[0], alpha=0.2, lw=0)
        axes.plot(scaled.temperatures, value, color=COLORS[0], label="reversible scaling")
    kelvin = [one.temperature for one in switched]
    value, error = np.array([(one.free_energy, one.error) for one in switched]).T / subject.units
    style: Any = {"fmt": "o", "ms": 4, "color": COLORS[1], "capsize": 2, "lw": 1, "zorder": 3}
    axes.errorbar(kelvin, value, error, **style, label="Einstein crystal")
    axes.set_xlabel("temperature (K)")
    axes.set_ylabel("F (eV per formula unit)")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.margins(x=0.03)
    axes.legend(loc="best")


def _lines(
    switched: list[Switched],
    scaled: Scaled | None,
    internal: list[tuple[float, float]],
    wanted: Float[np.ndarray, " t"],
    subject: SwitchingSubject,
) -> list[dict[str, float | None]]:
    """One row for every temperature of the table; what one road does not say is left empty."""
    found = {one.temperature: (one, *energy) for one, energy in zip(switched, internal, strict=True)}
    curve = None if scaled is None else at_temperatures(scaled, wanted)
    unit, atom = 1.0 / subject.units, 1.0 / subject.atoms
    lines: list[dict[str, float | None]] = []
    for place, kelvin in enumerate(wanted):
        line: dict[str, float | None] = {"temperature_K": float(kelvin)}
        one, energy, energy_error = found.get(float(kelvin), (None, math.nan, math.nan))
        value, error = (one.free_energy, one.error) if one is not None else (math.nan, math.nan)
        bar, bar_error = (one.bar, one.bar_error) if one is not None else (math.nan, math.nan)
        both: dict[str, tuple[float, float, float]] = {
            "free_energy_eV": (value, error, unit),
            "free_energy_eV_per_atom": (value, error, atom),
            "bar_eV": (bar, bar_error, unit),
        }
        if curve is not None:
            both["scaling_eV"] = (float(curve[0][place]), float(curve[1][place]), unit)
        both["work_there_meV_per_atom"] = (*_mean(None if one is None else one.forward), 1000.0 * atom)
        both["work_back_meV_per_atom"] = (*_mean(None if one is None else one.backward), 1000.0 * atom)
        lost = (math.nan, math.nan) if one is None else (one.dissipation, one.dissipation_error)
        both["dissipation_meV_per_atom"] = (*lost, 1000.0 * atom)
        both["internal_energy_eV"] = (energy, energy_error, unit)
        entropy_error = math.hypot(energy_error, error) / kelvin
        both["entropy_J_per_K_mol"] = ((energy - value) / kelvin, entropy_error, JOULE_PER_MOLE * unit)
        for name, (number, spread, factor) in both.items():
            line[name] = None if math.isnan(number) else float(factor * number)
            line[f"{name}_error"] = None if math.isnan(spread) else float(factor * spread)
        lines.append(line)
    return lines


def _mean(works: Float[np.ndarray, " r"] | None) -> tuple[float, float]:
    """Mean of independent works and its standard error."""
    if works is None:
        return math.nan, math.nan
    return float(works.mean()), float(works.std(ddof=1) / math.sqrt(len(works)))


def _switches(one: Switched, subject: SwitchingSubject) -> dict[str, Any]:
    """Everything about the switches at one temperature, of the whole cell in eV."""
    kT = BOLTZMANN * one.temperature
    thermal = PLANCK / math.sqrt(2.0 * math.pi * float(subject.crystal.masses.sum()) * kT)
    room = subject.crystal.volume / subject.crystal.translations
    centre = {"centre_of_mass": -kT * math.log(room / thermal**3), "dissipation_kT": one.dissipation / kT}
    return dataclasses.asdict(one) | centre


class _Column(NamedTuple):
    """A column of the table: its name in the rows, and whether the console shows it."""

    name: str
    head: str
    unit: str
    shown: bool = True


def _columns(scaled: Scaled | None) -> list[_Column]:
    scaling = [_Column("scaling_eV", "by scaling", "eV per formula unit")] if scaled is not None else []
    return [
        _Column("temperature_K", "T (K)", ""),
        _Column("free_energy_eV", "F (eV)", "per formula unit"),
        _Column("bar_eV", "by BAR", "eV per formula unit", shown=scaled is None),
        *scaling,
        _Column("free_energy_eV_per_atom", "F (eV)", "per atom", shown=False),
        _Column("work_there_meV_per_atom", "work there", "meV per atom"),
        _Column("work_back_meV_per_atom", "back", "meV per atom"),
        _Column("dissipation_meV_per_atom", "dissipated", "meV per atom"),
        _Column("internal_energy_eV", "U (eV)", "per formula unit", shown=False),
        _Column("entropy_J_per_K_mol", "S", "J/K/mol", shown=False),
    ]


def _cell(line: Mapping[str, float | None], column: _Column) -> str:
    value, error = line[column.name], line.get(f"{column.name}_error")
    return page.uncertain(math.nan if value is None else value, math.nan if error is None else error)


def _remarks(switched: list[Switched], scaled: Scaled | None, subject: SwitchingSubject) -> list[str]:
    first = switched[0]
    value = page.uncertain(first.free_energy / subject.units, first.error / subject.units)
    dissipations = [one.dissipation / (BOLTZMANN * one.temperature) for one in switched]
    gaps = [abs(one.bar - one.free_energy) for one in switched]
    centre = 1000.0 * _switches(first, subject)["centre_of_mass"] / subject.atoms
    fast = "; take more `steps`" if max(dissipations) > LARGE_DISSIPATION else ""
    remarks = [
        f"{subject.formula} with {Path(subject.model).name}: F = {value} eV per formula unit at {first.temperature:g} "
        "K, absolute.",
        f"One way dissipates {max(dissipations):.2g} kT of the whole cell at most{fast}; half the difference of the "
        f"works and Bennett's acceptance ratio differ by {1000.0 * max(gaps) / subject.atoms:.2g} meV/atom at most.",
        "F is that of a formula unit, works are in meV/atom; standard errors in brackets. Cell fixed, nuclei classical "
        "with their momenta.",
        f"Springs of "
        f"{first.springs.min():.3g} to {first.springs.max():.3g} eV/A^2 from mean squared displacements. "
        f"The centre of mass, free in the volume of one of {subject.crystal.translations} primitive cells, has "
        f"{centre:.2f} meV/atom of F at {first.temperature:g} K, which vanish in a large cell.",
    ]
    if scaled is not None:
        last = switched[-1]
        apart = agreement(last, float(scaled.free_energy[-1]), float(scaled.error[-1]))
        gap = 1000.0 * (float(scaled.free_energy[-1]) - last.free_energy) / subject.atoms
        lost = float(scaled.dissipation[-1]) / (BOLTZMANN * first.temperature)
        remarks.append(
            f"Reversible scaling from {first.temperature:g} K, which dissipates {lost:.2g} kT, arrives at "
            f"{last.temperature:g} K {gap:+.2g} meV/atom off the Einstein crystal there ({apart:.1f} standard errors)."
        )
    return [as_typed(remark, FreeEnergyConfig) for remark in remarks]
