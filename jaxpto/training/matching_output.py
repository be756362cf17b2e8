"""What a run of `--match` leaves beside the model: match.csv, match.json and match.png."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console

from jaxpto.reporting.columns import Column, terminal_table, uncertain
from jaxpto.reporting.result import write_csv, write_image
from jaxpto.reporting.style import COLORS, DASHED, GREY, png, styled
from jaxpto.storage.files import write_json_atomic
from jaxpto.training.targets import UNITS, MeasuredAverage

Rows = tuple[dict[str, Any], ...]
COLUMNS = (Column("quantity", "", words=True), *(Column(name, name) for name in ("target", "before", "after")))
LABELS = {"c_over_a": "c/a", "a": "a (Å)", "c": "c (Å)", "volume": "volume (Å$^3$)", "polarization": "P (C/m$^2$)"}


def write_history(out: Path, targets: tuple[MeasuredAverage, ...], rows: Rows, settings: Mapping[str, Any]) -> None:
    """Write match.csv (one row an iteration) and match.json (the same, with targets and settings) into `out`."""
    write_csv(out / "match.csv", rows)
    wanted = [{"name": t.name, "value": t.value, "unit": UNITS[t.observable]} for t in targets]
    write_json_atomic(out / "match.json", {"targets": wanted, "rows": list(rows), "settings": dict(settings)})


def write_figure(out: Path, targets: tuple[MeasuredAverage, ...], rows: Rows) -> None:
    """Write match.png into `out`."""
    write_image(out / "match.png", png(match_figure(targets, rows)))


@styled()
def match_figure(targets: tuple[MeasuredAverage, ...], rows: Rows) -> Figure:
    """Every target's average, and the force error on DFT data, against the iteration."""
    turn = np.array([row["iteration"] for row in rows])
    fresh = np.array([row["fresh"] for row in rows])
    figure = Figure(figsize=(5.6, 1.4 + 1.9 * (len(targets) + 1)), layout="constrained")
    panels = figure.subplots(len(targets) + 1, 1, sharex=True, squeeze=False)[:, 0]
    for axes, target in zip(panels, targets, strict=False):
        value = np.array([row[target.name] for row in rows])
        error = np.array([row[f"{target.name}_error"] for row in rows])
        axes.axhline(target.value, color=COLORS[1], lw=1.0, ls=DASHED, label=f"target {target.value:g}")
        axes.fill_between(turn, value - error, value + error, color=COLORS[0], alpha=0.2, lw=0)
        axes.plot(turn, value, color=COLORS[0], marker="o", ms=3, mfc="white", label="by reweighting")
        style = {"fmt": "o", "ms": 4.5, "color": COLORS[0], "capsize": 2, "lw": 1, "zorder": 3}
        axes.errorbar(turn[fresh], value[fresh], error[fresh], label="sampled anew", **style)
        pressure = f", {target.pressure:g} GPa" if target.pressure else ""
        axes.set_ylabel(f"{LABELS[target.observable]}\n{target.temperature:g} K{pressure}")
        axes.legend(loc="best")
        axes.margins(y=0.12)
    forces = 1e3 * np.array([row["force_rmse"] for row in rows])
    panels[-1].plot(turn, forces, color=COLORS[2], marker="s", ms=3)
    panels[-1].axhline(1.1 * forces[0], color=GREY, lw=0.8, ls=DASHED, label="10 % above the start")
    panels[-1].set_ylabel("force error\non DFT data (meV/Å)")
    panels[-1].set_xlabel("iteration")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_ylim(bottom=0.0 if np.isnan(forces).all() else 0.9 * np.nanmin(forces))
    panels[-1].legend(loc="best")
    return figure


def print_matching(targets: tuple[MeasuredAverage, ...], rows: Rows, met: bool, out: Path, console: Console) -> None:
    """Print the first and last averages of the targets, and what became of the force error."""
    first, last = rows[0], rows[-1]
    table = []
    for target in targets:
        name = target.name
        before, after = (uncertain(row[name], row[f"{name}_error"]) for row in (first, last))
        named = f"{name} {UNITS[target.observable]}".strip()
        table.append({"quantity": named, "target": f"{target.value:g}", "before": before, "after": after})
    before, after = first["force_rmse"], last["force_rmse"]
    if np.isfinite(before):
        named = "force error on held-out DFT data, meV/A"
        table.append({"quantity": named, "target": "", "before": f"{1e3 * before:.1f}", "after": f"{1e3 * after:.1f}"})
    console.print(terminal_table(COLUMNS, table))
    verdict = "all targets are met" if met else "not all targets are met: give more `iterations` and `resume=True`"
    change = f", force errors changed by {100 * (after / before - 1):+.1f} %" if np.isfinite(before) else ""
    console.print(f"after {last['iteration']} iterations {verdict}{change}")
    console.print(f"model, match.csv, match.json, match.png: {out}")
