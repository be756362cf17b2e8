"""The figure: profiles at all temperatures, and P_s, barrier and Landau coefficients against temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpto.free_energy.landau.analysis import LandauResult, TemperatureResult
from jaxpto.free_energy.landau.profile import JOULE_PER_CUBIC_METRE, landau_energy, landau_well
from jaxpto.perovskite.literature import LandauCoefficients
from jaxpto.reporting.columns import TEMPERATURE, Column, Row
from jaxpto.reporting.panels import bars
from jaxpto.reporting.style import COLORS, DASHED, GREY, styled
from jaxpto.reporting.subject import Subject

LABELS = (
    "P$_s$ (C m$^{-2}$)",
    "barrier (meV per formula unit)",
    "a$_1$ (10$^8$ J m C$^{-2}$)",
    "a$_{11}$ (10$^8$ J m$^5$ C$^{-4}$)",
    "a$_{111}$ (10$^8$ J m$^9$ C$^{-6}$)",
)
LEGEND_ROWS = 8  # temperatures that are named; a colour bar would be needed for more


@styled()
def landau_figure(
    result: LandauResult,
    subject: Subject,
    columns: Sequence[Column],
    rows: Sequence[Row],
    known: LandauCoefficients | None,
) -> Figure:
    """Profiles with their Landau polynomials, P_s, barrier and the three coefficients; grey: the literature.

    Args:
        result: the landscapes.
        subject: crystal and model.
        columns: P_s, barrier and coefficients.
        rows: their values at each temperature.
        known: published coefficients, if there are any.
    """
    kelvin = TEMPERATURE.values(rows)
    span = float(np.ptp(kelvin)) or 100.0
    fine = np.linspace(max(kelvin.min() - 0.06 * span, 1.0), kelvin.max() + 0.06 * span, 300)
    figure = Figure(figsize=(11.4, 6.6), layout="constrained")
    first, *panels = figure.subplots(2, 3).ravel()
    _profiles(first, result, subject)
    for axes, column, label in zip(panels, columns, LABELS, strict=True):
        bars(axes, rows, column, "umbrella windows")
        if column.name.startswith("a"):
            axes.axhline(0.0, color=GREY, lw=0.6, ls=DASHED, zorder=0)
        else:
            axes.set_ylim(bottom=0.0 if column.values(rows).max() > 0.0 else None)
        axes.set(xlabel="temperature (K)", ylabel=label, xlim=(fine[0], fine[-1]))
    if result.curie_weiss is not None:
        slope, origin = result.curie_weiss
        panels[2].plot(fine, 1e-8 * slope * (fine - origin), color=COLORS[0], lw=1, label="a$_0$ (T $-$ T$_0$)")
    if known is not None:
        volume = np.mean([float(row.values.volume) for row in result.rows]) / subject.units
        for axes, curve in zip(panels, _literature(known, fine, volume), strict=True):
            axes.plot(fine, curve, color=GREY, lw=1.4, zorder=1, label=known.source)
    for axes in panels:
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
    axes.axhline(0.0, color=GREY, lw=0.6, ls=DASHED, zorder=0)
    axes.set_xlabel("P$_z$ (C m$^{-2}$)")
    axes.set_ylabel(f"{subject.free_energy} (meV per formula unit)")
    axes.legend(loc="best")


def _polynomial(row: TemperatureResult, polarization: np.ndarray) -> np.ndarray:
    """The Landau polynomial of the whole cell where it was fitted to the profile, eV."""
    energy = np.asarray(landau_energy(jnp.asarray(row.values.landau), jnp.asarray(polarization)))
    return energy * float(row.values.volume) / JOULE_PER_CUBIC_METRE + float(row.values.offset)


def _literature(known: LandauCoefficients, kelvin: np.ndarray, volume: float) -> list[np.ndarray]:
    """The published curves for the five panels; the barrier is that of a formula unit of this volume, Angstrom^3."""
    coefficients = np.stack([known.at(float(t)) for t in kelvin])
    with jax.enable_x64(True):
        places, heights = jax.device_get(jax.vmap(landau_well)(jnp.asarray(coefficients)))
    return [places, 1000.0 * heights * volume / JOULE_PER_CUBIC_METRE, *(1e-8 * coefficients.T)]
