"""What switching says: its columns, its figure and its sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.free_energy.switching.analysis import Scaled, Switched, SwitchedCrystal, agreement, at_temperatures
from jaxpto.free_energy.switching.einstein_crystal import PLANCK
from jaxpto.reporting.columns import TEMPERATURE, Column, measured, uncertain
from jaxpto.reporting.result import Result, write_result
from jaxpto.reporting.sections import ResultTable, picture
from jaxpto.reporting.style import COLORS, DASHED, GREY, styled
from jaxpto.reporting.subject import JOULE_PER_MOLE, Subject
from jaxpto.units import BOLTZMANN

FIGURE = "switching.png"
LARGE_DISSIPATION = 5.0  # kT, beyond which works there and back hardly overlap
FLAT = 1e-3  # slices of less of the path than this have no slope worth drawing
MOST_CURVES = 4
CAPTION = (
    "Works: every switch, less the free-energy change, in kT; where the works there and those back, negated, lie on "
    "both sides of zero without overlap, the switches are too fast. Slopes: mean of the derivative of the energy along "
    "the path from the model (0) to the Einstein crystal (1), there and back; their gap is the dissipation."
)


@dataclasses.dataclass(frozen=True)
class SwitchingResult:
    """What the method found.

    Attributes:
        switched: by switching to the Einstein crystal, by ascending temperature.
        scaled: by reversible scaling over their range, or None.
        internal: [t] internal energy at the temperatures of `switched` and its standard error, eV.
    """

    switched: list[Switched]
    scaled: Scaled | None
    internal: list[tuple[float, float]]


def write_switching(
    result: SwitchingResult,
    wanted: Float[np.ndarray, " t"],
    subject: Subject,
    crystal: SwitchedCrystal,
    out: Path,
    settings: Mapping[str, Any],
    console: Console,
) -> None:
    """Write free_energy.csv, free_energy.json, switching.png and report.html into `out`, and print the table.

    Args:
        result: free energies of the simulated cell.
        wanted: [t] temperatures of the table, K.
        subject: crystal and model.
        crystal: the simulated cell.
        out: folder.
        settings: configuration and provenance, for the record.
        console: where the table goes.
    """
    scaled = result.scaled
    headline, *remarks = _sentences(result, subject, crystal)
    document = Result(
        title=f"Free energy of {subject.name}",
        headline=headline,
        remarks=remarks,
        table=ResultTable(_columns(scaled), _rows(result, wanted, subject)),
        about={
            "formula": subject.formula,
            "formula_units": subject.units,
            "atoms": subject.atoms,
            "lattice_translations": crystal.translations,
            "origin_eV": crystal.origin,
            "switches": [_switches(one, crystal) for one in result.switched],
            "scaling": None if scaled is None else dataclasses.asdict(scaled),
        },
        pictures={FIGURE: picture(switching_figure(result.switched, scaled, subject), CAPTION)},
        settings=settings,
        caveat=subject.caveat,
        options=FreeEnergyConfig,
    )
    write_result(out, document, console)


@styled()
def switching_figure(switched: list[Switched], scaled: Scaled | None, subject: Subject) -> Figure:
    """Works of all switches, slopes along the path, and F against temperature where there is more than one."""
    several = len(switched) > 1
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
    axes.axhline(0.0, color=GREY, lw=0.8, ls=DASHED, zorder=1)
    every = max(1, math.ceil(len(switched) / 6))
    axes.set_xticks(range(0, len(switched), every), [f"{one.temperature:g}" for one in switched[::every]])
    axes.set_xlim(-0.6, len(switched) - 0.4)
    axes.set_xlabel("temperature (K)")
    axes.set_ylabel(r"(work $-$ free-energy change) / kT")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)  # within, it would hide works


def _draw_slopes(axes: Axes, switched: list[Switched], subject: Subject) -> None:
    chosen = switched[:: max(1, math.ceil(len(switched) / MOST_CURVES))]
    for color, one in zip(COLORS, chosen, strict=False):
        drawn = np.gradient(one.path) > FLAT
        scale = 1000.0 / subject.atoms
        axes.plot(one.path[drawn], scale * one.there[drawn], color=color, label=f"{one.temperature:g} K")
        axes.plot(one.path[drawn], scale * one.back[drawn], color=color, ls=(0, (2, 1.5)))
    axes.set_xlabel(r"$\lambda$ (0 model, 1 Einstein crystal)")
    axes.set_ylabel(r"$\langle U_\mathrm{E} - U + U_0 \rangle$ (meV per atom)")
    axes.legend(loc="best", title="line: there, dashed: back", title_fontsize=8.5)


def _draw_free_energy(axes: Axes, switched: list[Switched], scaled: Scaled | None, subject: Subject) -> None:
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


def _rows(result: SwitchingResult, wanted: Float[np.ndarray, " t"], subject: Subject) -> list[dict[str, float]]:
    """One row for every temperature of the table; NaN where one road says nothing."""
    found = {one.temperature: (one, *energy) for one, energy in zip(result.switched, result.internal, strict=True)}
    curve = None if result.scaled is None else at_temperatures(result.scaled, wanted)
    unit, atom, nothing = 1.0 / subject.units, 1.0 / subject.atoms, (math.nan, math.nan)
    rows = []
    for place, kelvin in enumerate(map(float, wanted)):
        one, energy, energy_error = found.get(kelvin, (None, *nothing))
        value, error = nothing if one is None else (one.free_energy, one.error)
        row = {"temperature_K": kelvin}
        row |= measured("free_energy_eV", value, error, unit)
        row |= measured("free_energy_eV_per_atom", value, error, atom)
        row |= measured("bar_eV", *(nothing if one is None else (one.bar, one.bar_error)), unit)
        if curve is not None:
            row |= measured("scaling_eV", curve[0][place], curve[1][place], unit)
        row |= measured("work_there_meV_per_atom", *_mean(None if one is None else one.forward), 1000.0 * atom)
        row |= measured("work_back_meV_per_atom", *_mean(None if one is None else one.backward), 1000.0 * atom)
        lost = nothing if one is None else (one.dissipation, one.dissipation_error)
        row |= measured("dissipation_meV_per_atom", *lost, 1000.0 * atom)
        row |= measured("internal_energy_eV", energy, energy_error, unit)
        entropy_error = math.hypot(energy_error, error) / kelvin
        row |= measured("entropy_J_per_K_mol", (energy - value) / kelvin, entropy_error, JOULE_PER_MOLE * unit)
        rows.append(row)
    return rows


def _mean(works: Float[np.ndarray, " r"] | None) -> tuple[float, float]:
    """Mean of independent works and its standard error."""
    if works is None:
        return math.nan, math.nan
    return float(works.mean()), float(works.std(ddof=1) / math.sqrt(len(works)))


def _switches(one: Switched, crystal: SwitchedCrystal) -> dict[str, Any]:
    """Everything about the switches at one temperature, of the whole cell in eV."""
    kT = BOLTZMANN * one.temperature
    thermal = PLANCK / math.sqrt(2.0 * math.pi * float(crystal.masses.sum()) * kT)
    room = crystal.volume / crystal.translations
    centre = {"centre_of_mass": -kT * math.log(room / thermal**3), "dissipation_kT": one.dissipation / kT}
    return dataclasses.asdict(one) | centre


def _columns(scaled: Scaled | None) -> tuple[Column, ...]:
    """Columns; the terminal shows those that 80 characters have room for."""
    scaling = [Column("scaling_eV", "by scaling", "eV/f.u.")] if scaled is not None else []
    return (
        TEMPERATURE,
        Column("free_energy_eV", "F", "eV/f.u."),
        Column("bar_eV", "by BAR", "eV/f.u.", terminal=scaled is None),
        *scaling,
        Column("free_energy_eV_per_atom", "F", "eV/atom", terminal=False),
        Column("work_there_meV_per_atom", "work there", "meV/atom"),
        Column("work_back_meV_per_atom", "back", "meV/atom"),
        Column("dissipation_meV_per_atom", "dissipated", "meV/atom"),
        Column("internal_energy_eV", "U", "eV/f.u.", terminal=False),
        Column("entropy_J_per_K_mol", "S", "J/K/mol", terminal=False),
    )


def _sentences(result: SwitchingResult, subject: Subject, crystal: SwitchedCrystal) -> list[str]:
    switched, scaled, first = result.switched, result.scaled, result.switched[0]
    value = uncertain(first.free_energy / subject.units, first.error / subject.units)
    dissipations = [one.dissipation / (BOLTZMANN * one.temperature) for one in switched]
    gaps = [abs(one.bar - one.free_energy) for one in switched]
    centre = 1000.0 * _switches(first, crystal)["centre_of_mass"] / subject.atoms
    fast = "; take more `steps`" if max(dissipations) > LARGE_DISSIPATION else ""
    sentences = [
        f"{subject.name}: F = {value} eV per formula unit at {first.temperature:g} K, absolute.",
        f"One way dissipates {max(dissipations):.2g} kT of the whole cell at most{fast}; half the difference of the "
        f"works and Bennett's acceptance ratio differ by {1000.0 * max(gaps) / subject.atoms:.2g} meV/atom at most.",
        "F is that of a formula unit, works are in meV/atom; standard errors in brackets. Cell fixed, nuclei classical "
        "with their momenta.",
        f"Springs of "
        f"{first.springs.min():.3g} to {first.springs.max():.3g} eV/A^2 from mean squared displacements. "
        f"The centre of mass, free in the volume of one of {crystal.translations} primitive cells, has "
        f"{centre:.2f} meV/atom of F at {first.temperature:g} K, which vanish in a large cell.",
    ]
    if scaled is not None:
        last = switched[-1]
        apart = agreement(last, float(scaled.free_energy[-1]), float(scaled.error[-1]))
        gap = 1000.0 * (float(scaled.free_energy[-1]) - last.free_energy) / subject.atoms
        lost = float(scaled.dissipation[-1]) / (BOLTZMANN * first.temperature)
        sentences.append(
            f"Reversible scaling from {first.temperature:g} K, which dissipates {lost:.2g} kT, arrives at "
            f"{last.temperature:g} K {gap:+.2g} meV/atom off the Einstein crystal there ({apart:.1f} standard errors)."
        )
    return sentences
