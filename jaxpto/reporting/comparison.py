"""Several sweeps in common figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpto.errors import InputError
from jaxpto.reporting.page import page
from jaxpto.reporting.result import PAGE_FILE, write_image
from jaxpto.reporting.sections import Finding, Section, Settings
from jaxpto.reporting.stored_sweep import CONFIG_FILE, TRANSITION_FILE, read_object, read_summary
from jaxpto.reporting.sweep_report import comparable_experiment, headline, summary_table, temperature_pictures
from jaxpto.reporting.temperature_figures import Sweep
from jaxpto.storage.files import write_text_atomic
from jaxpto.storage.output import check_output_folder


def compare(folders: Sequence[str], out: str | Path) -> None:
    """Overlay finished sweeps (a tetragonal and a cubic start, or several models) in lattice.png and polarization.png.

    Args:
        folders: output folders with a summary.json.
        out: folder for the two figures and a report.html; created if missing.

    Raises:
        InputError: a folder holds no sweep, or `out` is one of the folders.
    """
    out = Path(out)
    if any(Path(folder).resolve() == out.resolve() for folder in folders):
        raise InputError(f"`out={out}` is one of the compared sweeps and would be overwritten; give another folder")
    check_output_folder(out, resume=True)
    tables = [read_summary(folder) for folder in folders]
    settings = [read_object(Path(folder) / CONFIG_FILE, "config") for folder in folders]
    formulas = [read_object(Path(folder) / TRANSITION_FILE, "formula")["formula"] for folder in folders]
    names = _distinct_names(folders, settings)
    sweeps = [Sweep(name, rows) for name, rows in zip(names, tables, strict=True)]
    experiment = comparable_experiment(formulas, [row for rows in tables for row in rows])
    pictures = temperature_pictures(sweeps, experiment)
    out.mkdir(parents=True, exist_ok=True)
    for name, one in pictures.items():
        write_image(out / name, one.image)
    sections: list[Section] = [Finding(headline(sweep.rows, sweep.name)) for sweep in sweeps]
    sections += [*pictures.values(), *(summary_table(sweep.rows, sweep.name) for sweep in sweeps)]
    sections.append(Settings(dict(zip(names, folders, strict=True)), "Compared folders"))
    write_text_atomic(out / PAGE_FILE, page("Comparison of temperature sweeps", sections))


def _distinct_names(folders: Sequence[str], settings: list[dict[str, Any]]) -> Sequence[str]:
    """Short names that tell the sweeps apart: what differs of their settings, else the folders' names."""
    described = [
        (one["config"]["model"], Path(one["config"]["structure"]).stem, one["config"]["ensemble"]) for one in settings
    ]
    differing = [k for k in range(3) if len({parts[k] for parts in described}) > 1]
    names = [", ".join(parts[k] for k in differing) for parts in described]
    if len(set(names)) < len(names):
        names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else folders
