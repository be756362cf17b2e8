"""Published models fine-tuned on PBEsol data of PbTiO3: errors on held-out frames, Table 2 of the paper, what it cost.

    python -m benchmarks.fine_tuning 7net-0 m3gnet-mp-2021.2.8 [--data FOLDER ...] [--out runs/fine-tuning]

Each model is trained by `python -m jaxpto.train` in a process of its own, which goes on where it was interrupted. Then
its errors before and after, on the same held-out blocks, and the paper's row at 0 K go to results/fine_tuning.json.
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

from jaxpto.models.catalogue import load_potential
from jaxpto.reporting.provenance import provenance
from jaxpto.training.config import TrainConfig
from jaxpto.training.setup import set_up
from jaxpto.training.validation import make_validation

SHARED = Path(__file__).parents[2] / "shared" / "data" / "unipero"
RESULT = Path(__file__).parent / "results" / "fine_tuning.json"
ROW = ("a_A", "c_A", "c_over_a", "dE_eV", "cubic_a_A", "lowest_frequency_THz", "imaginary_modes")


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Published models fine-tuned on PBEsol data of PbTiO3."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Names of models."""
    data: tuple[Path, ...] = (SHARED / "PT-300K", SHARED / "PT-450K", SHARED / "PT-900K")
    """DeePMD folders."""
    out: Path = Path("runs/fine-tuning")
    """Folder of the trained models."""
    steps: int = 800
    """Steps of the training of each."""
    rate: float = 1e-3
    """Peak learning rate."""


def run(config: FineTuning) -> dict[str, Any]:
    """Train what is not trained yet, measure everything, and store it."""
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for model in config.models:
        folder = config.out / model
        command = [
            "jaxpto.train", "--data", *map(str, config.data), "--initial", model, "--out", str(folder), "--steps",
            str(config.steps), "--rate", str(config.rate), "--validate-every", str(config.steps // 4), "--resume",
        ]  # fmt: skip
        subprocess.run([sys.executable, "-m", *command], check=True)
        header = json.loads((folder / "model.json").read_text())
        # the settings of the initial model do not matter: only its errors are taken
        task = set_up(TrainConfig(data=config.data, out=folder, initial=Path(model)))
        before = make_validation(task, jax.local_devices()[:1])(load_potential(model).params)
        stored[model] = {
            "command": f"python -m {' '.join(command)}".replace(str(SHARED), "UNIPERO"),
            "held_out_rmse_meV": {"before": before.errors, "after": header["training"]["validation_rmse_meV"]},
            "steps_of_the_best": header["training"]["steps_done"],
            "seconds_to_the_best": header["training"]["seconds"],
            "zero_kelvin": _zero_kelvin(folder, config.out / "pto-0k"),
            "provenance": provenance(),
        }
        RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    _show(stored)
    return stored


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
            before = result["held_out_rmse_meV"]["before"][name]["forces"]
            energy = f"{1e3 * row['dE_eV']:.0f}"
            table.add_row(
                model, name, f"{before:.1f}", f"{errors['forces']:.1f}", f"{row['c_over_a']:.3f}", energy, minutes
            )
            model, minutes = "", ""
    Console().print(table)


if __name__ == "__main__":
    run(tyro.cli(FineTuning))
