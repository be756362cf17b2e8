"""The figure: profiles at all temperatures, and P_s, barrier and Landau coefficients against temperature."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpto.free_energy.landau.analysis import LandauResult, TemperatureResult
from jaxpto.free_energy.landau.literature import LEAD_TITANATE, Subject
from jaxpto.free_energy.landau.profile import JOULE_PER_CUBIC_METRE, landau_energy
from jaxpto.reporting.figures import COLORS, GREY, STYLE

LEGEND_ROWS = 8  # temperatures that are named; a colour bar would be needed for more


def landau_figure(result: LandauResult, subject: Subject) -> Figure:
    """Profiles with their Landau polynomials, P_s, barrier and the three coefficients; grey: the literature."""
    kelvin = np.array([row.samples.temperature for row in result.rows])
    span = float(np.ptp(kelvin)) or 100.0
    fine = np.linspace(max(kelvin.min() - 0.06 * span, 1.0), kelvin.max() + 0.06 * span, 300)
    fields = (
        ("P$_s$ (C m$^{-2}$)", lambda found: found.spontaneous, 1.0),
        ("barrier (meV per formula unit)", lambda found: found.barrier, 1000.0 / subject.units),
        ("a$_1$ (10$^8$ J m C$^{-2}$)", lambda found: found.landau[0], 1e-8),
        ("a$_{11}$ (10$^8$ J m$^5$ C$^{-4}$)", lambda found: found.landau[1], 1e-8),
        ("a$_{111}$ (10$^8$ J m$^9$ C$^{-6}$)", lambda found: found.landau[2], 1e-8),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.4, 6.6), layout="constrained")
        panels = figure.subplots(2, 3).ravel()
        _profiles(panels[0], result, subject)
        literature = _literature(result, fine, subject) if subject.known else [None] * len(fields)
        for axes, (label, pick, factor), known in zip(panels[1:], fields, literature, strict=True):
            values = factor * np.array([pick(row.values) for row in result.rows])
            errors = factor * np.array([pick(row.errors) for row in result.rows])
            if known is not None:
                axes.plot(fine, known, color=GREY, lw=1.4, zorder=1, label=LEAD_TITANATE.source)
            style = {"fmt": "o", "ms": 5, "color": COLORS[0], "capsize": 2.5, "lw": 1, "zorder": 3}
            axes.errorbar(kelvin, values, errors, label="umbrella windows", **style)
            if label.startswith("a$_1$") and result.curie_weiss is not None:
                slope, origin = result.curie_weiss
                axes.plot(fine, factor * slope * (fine - origin), color=COLORS[0], lw=1, label="a$_0$ (T $-$ T$_0$)")
            if label.startswith("a$"):
                axes.axhline(0.0, color=GREY, lw=0.6, ls=(0, (4, 3)), zorder=0)
            else:
                axes.set_ylim(bottom=0.0 if values.max() > 0.0 else None)
            axes.set_ylabel(label)
            axes.set_xlabel("temperature (K)")
            axes.set_xlim(fine[0], fine[-1])
            axes.legend(loc="best")
    return figure


def _profiles(axes: Axes, result: LandauResult, subject: Subject) -> None:
    edges = result.windows.edges
    middles, factor = 0.5 * (edges[1:] + edges[:-1]), 1000.0 / subject.units
    shades = matplotlib.colormaps["plasma"](np.linspace(0.0, 0.85, len(result.rows)))
    fine = np.linspace(edges[0], edges[-1], 300)
    named = np.unique(np.linspace(0, len(result.rows) - 1, LEGEND_ROWS).round().astype(int))
    for index, (row, shade) in enumerate(zip(result.rows, shades, strict=True)):
        label = f"{row.samples.temperature:g} K" if index in named else None
        style: dict[str, Any] = {"fmt": "o", "ms": 2.6, "color": shade, "lw": 0.7, "label": label}
        axes.errorbar(middles, factor * row.values.profile, factor * row.errors.profile, **style)
        axes.plot(fine, factor * _polynomial(row, fine), color=shade, lw=1)
    lowest = min(float(np.nanmin(factor * row.values.profile)) for row in result.rows)
    highest = max(float(np.nanmax(factor * row.values.profile)) for row in result.rows)
    # walls can be many times as high as the wells are deep
    axes.set_ylim(lowest - 0.08 * (highest - lowest), min(highest * 1.05, max(-4.0 * lowest, 10.0)))
    axes.axhline(0.0, color=GREY, lw=0.6, ls=(0, (4, 3)), zorder=0)
    axes.set_xlabel("P$_z$ (C m$^{-2}$)")
    axes.set_ylabel(f"{'G' if subject.flexible else 'F'} (meV per formula unit)")
    axes.legend(loc="best")


def _polynomial(row: TemperatureResult, polarization: np.ndarray) -> np.ndarray:
    """The Landau polynomial of the whole cell where it was fitted to the profile, eV."""
    energy = np.asarray(landau_energy(jnp.asarray(row.values.landau), jnp.asarray(polarization)))
    return energy * float(row.values.volume) / JOULE_PER_CUBIC_METRE + float(row.values.offset)


def _literature(result: LandauResult, kelvin: np.ndarray, subject: Subject) -> list[np.ndarray]:
    """The published curves for the five panels; the barrier with the simulated volume of a formula unit."""
    places, heights = LEAD_TITANATE.wells(kelvin)
    volume = np.mean([float(row.values.volume) for row in result.rows]) / subject.units
    coefficients = np.stack([LEAD_TITANATE.at(float(t)) for t in kelvin])
    return [places, 1000.0 * heights * volume / JOULE_PER_CUBIC_METRE, *(1e-8 * coefficients.T)]
