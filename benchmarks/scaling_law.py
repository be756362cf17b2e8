"""How many DFT frames a fine-tuned model needs, how many one from nothing, and what each costs.

    python -m benchmarks.scaling_law [--only perovskite ...] [--frames 16 64 256 672] [--kelvin-300-steps 2000]

Every variant is trained on nested random subsets of the PbTiO3 frames and validated on the same held-out blocks. What
is finished is kept (trainings in `out`, numbers in results/scaling_law.json) and not done again; an interrupted
training goes on. Cheap variants come first. The settings of each variant are stored with its rows: few steps, so that
two cores do all in hours; a longer training of any of them gives smaller errors.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.scaling_law_figure import draw
from benchmarks.trainings import (
    Start,
    Training,
    cost_of,
    held_out_errors,
    parameters_of,
    progress_of,
    train,
)
from jaxpto.console.terminal import WholeTable, console
from jaxpto.reporting.provenance import provenance

RESULTS = Path(__file__).parent / "results"
ALL = 672  # PbTiO3 frames that are not held out
SECONDS = 3.0  # of dynamics that are timed
NOT_CONVERGED = 1  # exit code of a relaxation, whose result says so too


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to a model: where it starts and how long it is trained; `batch` frames a step, `lora` is a rank or 0."""

    start: Start
    steps: int
    batch: int
    rate: float = 0.0
    lora: int = 0

    def training(self, out: Path, frames: int) -> Training:
        """The training on so many frames."""
        limit = 0 if frames == ALL else frames
        return Training(self.start, out, self.steps, self.rate, self.batch, self.lora, limit)


SMALL_SEVENNET = ("channels=32/32,16/32",)
VARIANTS = {
    "perovskite from nothing": Variant(Start(architecture="perovskite"), 20_000, 1),
    "m3gnet fine-tuned": Variant(Start("m3gnet-mp-2021.2.8"), 200, 2, 1e-3),
    "m3gnet low-rank": Variant(Start("m3gnet-mp-2021.2.8"), 200, 2, 1e-3, lora=4),
    "sevennet from nothing": Variant(Start(architecture="sevennet", hyperparameters=SMALL_SEVENNET), 1500, 2),
    "7net-0 fine-tuned": Variant(Start("7net-0"), 300, 2, 1e-3),
    "7net-0 low-rank": Variant(Start("7net-0"), 300, 2, 1e-3, lora=4),
    "chgnet fine-tuned": Variant(Start("chgnet-0.3.0"), 200, 2, 1e-3),
    "chgnet low-rank": Variant(Start("chgnet-0.3.0"), 200, 2, 1e-3, lora=4),
}


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """Error against the number of DFT frames and against cost, fine-tuned and from nothing."""

    only: tuple[str, ...] = tuple(VARIANTS)
    """Variants, in the order in which they are done."""
    frames: tuple[int, ...] = (ALL, 16, 64, 256)
    """Frames to train on."""
    kelvin_300_steps: int = 0
    """Steps of 2 fs of a run at 300 K in 3x3x3, for c/a; 0 for none."""
    out: Path = Path("runs/scaling-law")
    """Folder of the trained models."""
    result: Path = RESULTS / "scaling_law.json"
    """Where the numbers go; the figure lies beside it."""


def run(config: ScalingLaw) -> dict[str, Any]:
    """Train and measure what is missing, store it, and draw."""
    stored = json.loads(config.result.read_text()) if config.result.exists() else {"rows": {}, "step_625_atoms_ms": {}}

    def store() -> None:
        config.result.write_text(json.dumps(stored, indent=1) + "\n")
        draw(stored, config.result.with_suffix(".png"))

    for variant, frames in wanted(config.only, config.frames):
        folder = config.out / f"{variant}-{frames}".replace(" ", "-")
        key, training = f"{variant}, {frames} frames", VARIANTS[variant].training(folder, frames)
        if stored["rows"].get(key, {}).get("command") != training.spelled:
            train(training)
            row = {"variant": variant, "frames": frames, "command": training.spelled} | _measured(training)
            stored["rows"][key] = row | {"provenance": provenance()}
            store()
        row = stored["rows"][key]
        if "zero_kelvin" not in row:
            row["zero_kelvin"] = _zero_kelvin(folder)
            store()
        if config.kelvin_300_steps and row.get("at_300_K", {}).get("steps") != config.kelvin_300_steps:
            row["at_300_K"] = _at_300_kelvin(folder, config.kelvin_300_steps)
            store()
        if variant not in stored["step_625_atoms_ms"]:
            stored["step_625_atoms_ms"][variant] = _step_milliseconds(folder)
            store()
    _show(stored)
    return stored


def wanted(variants: tuple[str, ...], frames: tuple[int, ...]) -> list[tuple[str, int]]:
    """What is done, in this order.

    Raises:
        SystemExit: a variant that does not exist, or more frames than there are.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise SystemExit(f"unknown variant '{unknown[0]}'; there are {', '.join(VARIANTS)}")
    if any(not 0 < number <= ALL for number in frames):
        raise SystemExit(f"frames must lie between 1 and {ALL}")
    return [(variant, number) for variant in variants for number in frames]


def rms(errors: dict[str, dict[str, float]], quantity: str) -> float:
    """Root of the mean square over trajectories, which hold about equally many frames."""
    return round(float(np.sqrt(np.mean([of_one[quantity] ** 2 for of_one in errors.values()]))), 3)


def _measured(training: Training) -> dict[str, Any]:
    errors, cost, progress = held_out_errors(training.out), cost_of(training.out), progress_of(training.out)
    header = json.loads((training.out / "model.json").read_text())["training"]
    return {
        "parameters": parameters_of(training.out),
        "steps": training.steps,
        "best_step": header["steps_done"],
        "held_out_rmse_meV": errors,
        "forces_meV_per_A": rms(errors, "forces"),
        "energy_meV_per_atom": rms(errors, "energy"),
        "virial_meV_per_atom": rms(errors, "virial"),
        "processor_hours": round(cost["processor_s"] / 3600, 4),
        "wall_hours": round(cost["wall_s"] / 3600, 4),
        # errors along the training, for what more steps would give
        "course": [{"step": one["step"], "forces": rms(one["validation"], "forces")} for one in progress["history"]],
    }


def _zero_kelvin(folder: Path) -> dict[str, Any]:
    """Relaxed tetragonal cell and energy of the cubic phase, eV a formula unit."""
    out = folder.with_name(f"{folder.name}.relaxed")
    phases = ("PbTiO3-tetragonal", "PbTiO3-cubic")
    words = ["jaxpto.relax", *phases, "--model", str(folder), "--mask", "diag", "--out", str(out), "--resume"]
    ran = subprocess.run([sys.executable, "-m", *words])
    if ran.returncode not in (0, NOT_CONVERGED):
        raise SystemExit(ran.returncode)
    tetragonal, cubic = json.loads((out / "relaxation.json").read_text())["structures"]
    edges = sorted(tetragonal[axis] for axis in "abc")
    return {
        "a_A": round(0.5 * (edges[0] + edges[1]), 5),
        "c_A": round(edges[2], 5),
        "c_over_a": round(2 * edges[2] / (edges[0] + edges[1]), 5),
        "dE_eV": round(5 * (cubic["energy_eV_per_atom"] - tetragonal["energy_eV_per_atom"]), 5),
        "converged": tetragonal["converged"] and cubic["converged"],
    }


def _at_300_kelvin(folder: Path, steps: int) -> dict[str, Any]:
    """c/a of a short run at constant pressure."""
    out = folder.with_name(f"{folder.name}.300K-{steps}")
    _run(
        "jaxpto.sweep", "--model", str(folder), "--supercell", "3", "3", "3", "--temperatures", "300",
        "--steps", str(steps), "--sample-every", "25", "--out", str(out), "--resume",
    )  # fmt: skip
    with (out / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    found = {name: row[name] and float(row[name]) for name in ("c_over_a", "c_over_a_sem", "tetragonality")}
    return {"steps": steps, "status": row["status"], "phase": row["phase"]} | found


def _step_milliseconds(folder: Path) -> dict[str, float]:
    """Wall and processor time of a step of NPT dynamics, 625 atoms on one core."""
    words = ["--model", str(folder), "--cells", "5", "--cores", "0", "--seconds", str(SECONDS)]
    command = [sys.executable, "-m", "benchmarks.jaxpto_dynamics", *words]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(answer.stdout.splitlines()[-1])
    return {
        "wall": round(float(np.median(found["ms_per_step"])), 2),
        "processor": round(found["processor_ms_per_step"], 2),
    }


def _run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", *words], check=True)


def _show(stored: dict[str, Any]) -> None:
    table = WholeTable("variant", "frames", "F, meV/A", "c/a, 0 K", "dE, meV", "c/a, 300 K", "hours", "ms/step")
    for row in sorted(stored["rows"].values(), key=lambda row: (list(VARIANTS).index(row["variant"]), row["frames"])):
        warm, crystal = row.get("at_300_K", {}), row.get("zero_kelvin", {})
        energy, step = crystal.get("dE_eV"), stored["step_625_atoms_ms"].get(row["variant"], {})
        table.add_row(
            row["variant"], str(row["frames"]), f"{row['forces_meV_per_A']:.1f}", _spell(crystal.get("c_over_a"), 3),
            _spell(energy and 1e3 * energy, 0), _spell(warm.get("c_over_a"), 3), f"{row['processor_hours']:.3f}",
            _spell(step.get("processor"), 1),
        )  # fmt: skip
    console().print(table)


def _spell(value: float | str | None, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else "-"


if __name__ == "__main__":
    run(tyro.cli(ScalingLaw))
