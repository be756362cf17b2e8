"""Figures of phonons: bands, density of states and thermal properties, several models over each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxpto.lattice_dynamics.harmonic import Bands, DensityOfStates, Harmonic, ThermalProperties
from jaxpto.lattice_dynamics.modes import IMAGINARY
from jaxpto.reporting.style import COLORS, GREY, styled

WAVENUMBER = 33.3564095198152  # 1/cm per THz
GAS_CONSTANT = 8.314462618  # J/K/mol


@dataclasses.dataclass(frozen=True)
class Curve:
    """One set of phonons to draw.

    Attributes:
        label: in the legend.
        harmonic: what to draw.
        line: color, style, width and opacity, as matplotlib calls them.
    """

    label: str
    harmonic: Harmonic
    line: dict[str, Any]


def curves(named: list[tuple[str, str, Harmonic]]) -> list[Curve]:
    """Curves of (model, method, phonons), a colour for each model; of two methods, the second is dashed on the first.

    Args:
        named: one after the other, model by model.
    """
    models = list(dict.fromkeys(model for model, _, _ in named))
    methods = list(dict.fromkeys(method for _, method, _ in named))
    styles: list[dict[str, Any]] = [{"linestyle": "-", "linewidth": 1.1}]
    if len(methods) > 1:
        styles = [
            {"linestyle": "-", "linewidth": 3.0, "alpha": 0.35, "solid_capstyle": "butt"},
            {"linestyle": "--", "linewidth": 0.9},
        ]
    return [
        Curve(
            f"{model}, {method}" if len(methods) > 1 else model,
            harmonic,
            {"color": COLORS[models.index(model) % len(COLORS)], **styles[methods.index(method)]},
        )
        for model, method, harmonic in named
    ]


def draw_bands(axes: Axes, bands: Bands, line: dict[str, Any], label: str = "", along: Bands | None = None) -> None:
    """Draw the bands of one model on given axes; call `decorate_bands` once for each axes.

    Args:
        axes: any.
        bands: frequencies in THz.
        line: color, linestyle, linewidth, ... of matplotlib.
        label: for a legend of the axes.
        along: bands whose segments give the horizontal axis its lengths, so that the points of models with other
            lattice parameters coincide; by default these bands themselves.
    """
    stretches = _stretches(along or bands)
    for number, ((start, end), frequencies) in enumerate(zip(stretches, bands.frequencies, strict=True)):
        lines = axes.plot(np.linspace(start, end, len(frequencies)), frequencies, **line)
        if number == 0:
            lines[0].set_label(label)


def decorate_bands(axes: Axes, bands: Bands, *, wavenumbers: bool = True) -> None:
    """Names of the points, lines at them, at zero and where imaginary begins, and a second axis in 1/cm.

    Where bands reach below `IMAGINARY` the space below zero is shaded, and the threshold named.

    Args:
        axes: with all bands drawn.
        bands: those that gave the horizontal axis its lengths.
        wavenumbers: whether to draw the axis in 1/cm.
    """
    ticks: list[tuple[float, str]] = []
    for segment, (start, end) in zip(bands.path.segments, _stretches(bands), strict=True):
        if not ticks:
            ticks.append((start, segment.start))
        elif ticks[-1][1] != segment.start:  # the path jumps: both names at one place
            ticks[-1] = (start, f"{ticks[-1][1]}|{segment.start}")
        ticks.append((end, segment.end))
    places = [x for x, _ in ticks]
    for x in places[1:-1]:
        axes.axvline(x, color=GREY, lw=0.6, zorder=1)
    axes.axhline(0.0, color="black", lw=0.7, ls=(0, (4, 2)), zorder=1)
    axes.set_xticks(places, [name for _, name in ticks])
    axes.set_xlim(places[0], places[-1])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("frequency (THz)")
    low, high = axes.dataLim.intervaly
    margin = 0.04 * (high - min(low, 0.0))
    bottom = low - 1.5 * margin if low < IMAGINARY else 0.0  # with room for the label
    axes.set_ylim(bottom, high + margin)
    if bottom < 0.0:
        axes.axhspan(bottom, 0.0, color="#f2f2f2", lw=0, zorder=0)
        axes.axhline(IMAGINARY, color="#b00020", lw=0.5, ls=(0, (4, 2)), zorder=1)
        axes.annotate(
            f"imaginary: below {IMAGINARY:g} THz".replace("-", "\N{MINUS SIGN}"),
            (0.99, 0.01), xycoords="axes fraction", ha="right", va="bottom", color="#b00020", fontsize="x-small",
        )  # fmt: skip
    if wavenumbers:
        axes.tick_params(axis="y", right=False)
        second = axes.secondary_yaxis("right", functions=(_to_wavenumber, _from_wavenumber))
        second.set_ylabel("wavenumber (cm$^{-1}$)")


@styled()
def bands_figure(drawn: list[Curve]) -> Figure:
    """Bands of all models over each other, imaginary frequencies below zero; a panel for each path."""
    panels: dict[tuple, list[Curve]] = {}
    for curve in drawn:
        names = tuple((segment.start, segment.end) for segment in curve.harmonic.bands.path.segments)
        panels.setdefault(names, []).append(curve)
    figure = Figure(figsize=(6.6 * len(panels), 4.4), layout="constrained")
    for number, members in enumerate(panels.values(), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        along = members[0].harmonic.bands
        for curve in members:
            draw_bands(axes, curve.harmonic.bands, curve.line, curve.label, along)
        decorate_bands(axes, along)
    _legend(figure, drawn)
    return figure


@styled()
def dos_figure(drawn: list[Curve]) -> Figure:
    """Densities of states of all models in one figure."""
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for curve in drawn:
        density: DensityOfStates = curve.harmonic.density
        axes.plot(density.frequencies, density.densities, **curve.line)
        if len(drawn) == 1:
            color = curve.line["color"]
            axes.fill_between(density.frequencies, density.densities, color=color, alpha=0.15, lw=0)
    frequencies = np.concatenate([curve.harmonic.density.frequencies for curve in drawn])
    axes.set_xlim(frequencies.min() if frequencies.min() < IMAGINARY else 0.0, frequencies.max())
    axes.set_ylim(bottom=0.0)
    if frequencies.min() < IMAGINARY:
        axes.axvline(0.0, color="black", lw=0.7, ls=(0, (4, 2)), zorder=1)
    axes.set_xlabel("frequency (THz)")
    axes.set_ylabel("modes per THz and formula unit")
    _legend(figure, drawn)
    return figure


@styled()
def thermal_figure(drawn: list[Curve], atoms_per_formula: int) -> Figure:
    """Free energy, entropy and heat capacity of all models against temperature.

    Args:
        drawn: phonons.
        atoms_per_formula: for the classical limit of the heat capacity, 3 R for each atom.
    """
    names = (
        ("free_energy", "vibrational free energy\n(eV per formula unit)"),
        ("entropy", "entropy (J K$^{-1}$ mol$^{-1}$)"),
        ("heat_capacity", "heat capacity at constant\nvolume (J K$^{-1}$ mol$^{-1}$)"),
    )
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    for number, (name, text) in enumerate(names, start=1):
        axes = figure.add_subplot(1, 3, number)
        for curve in drawn:
            thermal: ThermalProperties = curve.harmonic.thermal
            marker = "o" if len(thermal.temperatures) < 3 else ""
            values = getattr(thermal, name)
            axes.plot(thermal.temperatures, values, marker=marker, **curve.line)
        if name == "heat_capacity":
            limit = 3.0 * GAS_CONSTANT * atoms_per_formula
            axes.axhline(limit, color=GREY, ls=":", zorder=1)
            axes.annotate("3$nR$", (0.02, limit), xycoords=("axes fraction", "data"), va="bottom", color=GREY)
            axes.set_ylim(top=1.1 * limit)
        if name != "free_energy":
            axes.set_ylim(bottom=0.0)
        axes.set_xlabel("temperature (K)")
        axes.set_ylabel(text)
    _legend(figure, drawn)
    return figure


def _to_wavenumber(frequency: Any) -> Any:
    return frequency * WAVENUMBER


def _from_wavenumber(wavenumber: Any) -> Any:
    return wavenumber / WAVENUMBER


def _stretches(bands: Bands) -> list[tuple[float, float]]:
    """Where each segment begins and ends on the horizontal axis, 1/Angstrom."""
    return [(float(distances[0]), float(distances[-1])) for distances in bands.distances]


def _legend(figure: Figure, drawn: list[Curve]) -> None:
    handles = [Line2D([], [], label=curve.label, **curve.line) for curve in drawn]
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=4 if len(drawn) > 4 else len(drawn))
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a model's name is one
