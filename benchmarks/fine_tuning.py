"""Models trained on PBEsol data of PbTiO3: errors on held-out frames, Table 2 of the paper, what it cost.

    python -m benchmarks.fine_tuning 7net-0 m3gnet-mp-2021.2.8 [--data FOLDER ...] [--out runs/fine-tuning]
    python -m benchmarks.fine_tuning --architecture mace --hyperparameters channels=112 --steps 1000

Published models are fine-tuned, an architecture is trained from nothing. Each is trained by `python -m jaxpto.train` in
a process of its own, which goes on where it was interrupted. Then its errors before and after, on the same held-out
blocks, and the paper's row at 0 K go to results/fine_tuning.json.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.trainings import PBTIO3, Start, Training, cost_of, held_out_errors, parameters_of, train
from jaxpto.models.catalogue import load_potential
from jaxpto.reporting.provenance import provenance
from jaxpto.training.config import TrainConfig
from jaxpto.training.setup import set_up
from jaxpto.training.validation import make_validation

RESULT = Path(__file__).parent / "results" / "fine_tuning.json"
ROW = ("a_A", "c_A", "c_over_a", "dE_eV", "cubic_a_A", "lowest_frequency_THz", "imaginary_modes")


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Models trained on PBEsol data of PbTiO3."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of models to fine-tune."""
    architecture: str = ""
    """An architecture to train from nothing."""
    hyperparameters: tuple[str, ...] = ()
    """Its hyperparameters, as NAME=VALUE."""
    data: tuple[Path, ...] = PBTIO3
    """DeePMD folders."""
    shares: tuple[str, ...] = ()
    """How often trajectories are drawn, as GLOB=FRACTION."""
    on: str = ""
    """What the data are, in the names of rows and folders; PbTiO3 needs no word."""
    out: Path = Path("runs/fine-tuning")
    """Folder of the trained models."""
    steps: int = 800
    """Steps of the training of each."""
    batch: int = 4
    """Frames of a step."""
    rate: float = 1e-3
    """Peak learning rate."""
    validations: int = 4
    """How often held-out frames are looked at."""


def run(config: FineTuning) -> dict[str, Any]:
    """Train what is not trained yet, measure everything, and store it."""
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, start in starts_of(config).items():
        folder = config.out / name.replace(" ", "-")
        training = Training(
            start, folder, config.steps, config.rate, config.batch, data=config.data, shares=config.shares,
            validations=config.validations,
        )  # fmt: skip
        train(training)
        header, cost = json.loads((folder / "model.json").read_text()), cost_of(folder)
        stored[name] = {
            "command": training.spelled,
            "parameters": parameters_of(folder),
            "held_out_rmse_meV": {"before": _errors_before(start, config), "after": held_out_errors(folder)},
            "steps_of_the_best": header["training"]["steps_done"],
            "seconds_to_the_best": header["training"]["seconds"],
            "processor_seconds": cost["processor_s"],
            "zero_kelvin": _zero_kelvin(folder, config.out / "pto-0k"),
            "provenance": provenance(),
        }
        RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    _show(stored)
    return stored


def starts_of(config: FineTuning) -> dict[str, Start]:
    """What is trained, by the name of its row."""
    data = f" on {config.on}" if config.on else ""
    starts = {model + data: Start(model) for model in config.models}
    if config.architecture:
        fresh = Start(architecture=config.architecture, hyperparameters=config.hyperparameters)
        starts[f"{config.architecture} from nothing{data}"] = fresh
    if not starts:
        raise SystemExit("nothing to train; name models, or an --architecture")
    return starts


def _errors_before(start: Start, config: FineTuning) -> dict[str, dict[str, float | None]] | None:
    """Errors of the initial model on the held-out frames; None for a training from nothing."""
    if not start.initial:
        return None
    # the settings of a training do not matter: only its data are taken
    task = set_up(TrainConfig(data=config.data, out=config.out, initial=Path(start.initial)))
    return make_validation(task, jax.local_devices()[:1])(load_potential(start.initial).params).errors


def _zero_kelvin(model: Path, out: Path) -> dict[str, Any]:
    command = ["jaxpto.report", "pto-0k", "--models", str(model), "--out", str(out)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    with (out / "table2.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["model"] == model.name]
    return {name: row[name] if name == "imaginary_modes" else float(row[name]) for name in ROW}


def _show(stored: dict[str, Any]) -> None:
    table = Table("model", "trajectory", "forces before (meV/A)", "after", "c/a at 0 K", "dE (meV)", "minutes")
    for model, result in stored.items():
        row, minutes = result["zero_kelvin"], f"{result['seconds_to_the_best'] / 60:.0f}"
        for name, errors in result["held_out_rmse_meV"]["after"].items():
            before = result["held_out_rmse_meV"]["before"]
            first = f"{before[name]['forces']:.1f}" if before else "-"
            energy = f"{1e3 * row['dE_eV']:.0f}"
            table.add_row(model, name, first, f"{errors['forces']:.1f}", f"{row['c_over_a']:.3f}", energy, minutes)
            model, minutes = "", ""
    Console().print(table)


if __name__ == "__main__":
    run(tyro.cli(FineTuning))
