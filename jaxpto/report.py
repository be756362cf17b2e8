"""COMMAND python -m jaxpto.report: summary, figures and a web page from the stored results of one or several sweeps."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxpto.console import terminal
from jaxpto.console.command import leave, run_command
from jaxpto.errors import InputError
from jaxpto.md.config import SweepConfig
from jaxpto.reporting.comparison import compare
from jaxpto.reporting.result import PAGE_FILE
from jaxpto.reporting.stored_sweep import load_sweep
from jaxpto.reporting.sweep_report import write_sweep_report
from jaxpto.storage.output import check_output_folder
from jaxpto.storage.thermo import write_thermo


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Regenerate summary.csv, summary.json, figures and report.html of a sweep, or compare several sweeps.

    `python -m jaxpto.report pto-0k --help` is about the paper's table and figure of PbTiO3 at 0 K.

    Attributes:
        folders: output folder of a sweep; several are compared in common figures.
        out: folder for the comparison of several sweeps.
    """

    folders: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    out: str | None = None


def run(config: ReportConfig) -> None:
    """Regenerate the report of one sweep, or compare several.

    Raises:
        InputError: no folder, several without --out, or a folder that holds no sweep.
    """
    console = terminal.console(ReportConfig)
    if not config.folders:
        raise InputError("no folder given; name the output folder of a sweep")
    for folder in config.folders:
        if not Path(folder).is_dir():
            raise InputError(f"{folder}: no such folder; give the output folder of a sweep")
    if config.out is not None:
        compare(config.folders, config.out)
        console.print(f"report: {Path(config.out) / PAGE_FILE}")
        return
    if len(config.folders) > 1:
        raise InputError(f"{len(config.folders)} folders to compare but no --out; name a folder for the comparison")
    (folder,) = config.folders
    check_output_folder(folder, resume=True, called="folder")
    sweep = load_sweep(folder)
    write_thermo(Path(folder))
    write_sweep_report(folder, sweep, console, SweepConfig)


def main() -> int:
    """Entry point of `python -m jaxpto.report`."""
    if sys.argv[1:2] == ["pto-0k"]:
        from jaxpto.pto import zero_kelvin  # this needs the models, which reports of stored results do not

        return zero_kelvin.main(sys.argv[2:])
    return run_command("jaxpto.report", ReportConfig, run)


if __name__ == "__main__":
    leave(main())
