"""Trainings on PBEsol data of PbTiO3 that benchmarks compare: run by the command, each in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from jaxpto.models.catalogue import load_potential
from jaxpto.storage.arrays import read_arrays
from jaxpto.training.trainer import checkpoint_of

SHARED = Path(__file__).parents[2] / "shared" / "data" / "unipero"
PBTIO3 = (SHARED / "PT-300K", SHARED / "PT-450K", SHARED / "PT-900K")


@dataclasses.dataclass(frozen=True)
class Start:
    """What a training begins with: a model, or an architecture with hyperparameters."""

    initial: str = ""
    architecture: str = ""
    hyperparameters: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Options of the command."""
        if self.initial:
            return ["--initial", self.initial]
        own = ["--hyperparameters", *self.hyperparameters] if self.hyperparameters else []
        return ["--architecture", self.architecture, *own]


@dataclasses.dataclass(frozen=True)
class Training:
    """One training; the settings are those of `python -m jaxpto.train`, 0 for what it does by itself."""

    start: Start
    out: Path
    steps: int
    rate: float = 0.0
    batch: int = 0
    lora: int = 0
    frames: int = 0
    data: tuple[Path, ...] = PBTIO3
    shares: tuple[str, ...] = ()
    validations: int = 4

    @property
    def command(self) -> list[str]:
        """Module and options."""
        given = {name: getattr(self, name) for name in ("rate", "batch", "lora", "frames") if getattr(self, name)}
        shares = ("--shares", *self.shares) if self.shares else ()
        return [
            "jaxpto.train", "--data", *map(str, self.data), *self.start.words, "--out", str(self.out),
            "--steps", str(self.steps), *(word for name, value in given.items() for word in (f"--{name}", str(value))),
            *shares, "--validate-every", str(max(1, self.steps // self.validations)), "--resume",
        ]  # fmt: skip

    @property
    def spelled(self) -> str:
        """The command for people, without the places of this machine."""
        return f"python -m {' '.join(self.command)}".replace(str(SHARED), "UNIPERO")


def train(training: Training) -> None:
    """Train, going on where an earlier call was interrupted; what is finished is not done again."""
    if progress_of(training.out).get("step") == training.steps and cost_file(training.out).exists():
        return
    began = time.time(), processor_seconds()
    try:
        subprocess.run([sys.executable, "-m", *training.command], check=True)
    finally:
        _add_cost(training.out, time.time() - began[0], processor_seconds() - began[1])


def progress_of(folder: Path) -> dict[str, Any]:
    """Steps done and the history of the validations of a training; nothing where it has not begun."""
    path = checkpoint_of(folder)
    return read_arrays(path)[1] if path.exists() else {}


def cost_of(folder: Path) -> dict[str, float]:
    """Wall and processor seconds of all processes of a training, compilation and validations included."""
    return json.loads(cost_file(folder).read_text())


def cost_file(folder: Path) -> Path:
    """Where the cost of a training is kept: beside its folder, which belongs to the command."""
    return folder.with_name(f"{folder.name}.cost.json")


def held_out_errors(folder: Path) -> dict[str, dict[str, float]]:
    """RMS errors on held-out frames of each trajectory (meV/atom, meV/A), of the validation that was best."""
    return json.loads((folder / "model.json").read_text())["training"]["validation_rmse_meV"]


def parameters_of(folder: Path) -> int:
    """Numbers in a model, constants included."""
    return sum(leaf.size for leaf in jax.tree.leaves(load_potential(str(folder)).params))


def processor_seconds() -> float:
    """User and system time of the finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _add_cost(folder: Path, wall: float, processor: float) -> None:
    before = cost_of(folder) if cost_file(folder).exists() else {"wall_s": 0.0, "processor_s": 0.0}
    now = {"wall_s": round(before["wall_s"] + wall, 1), "processor_s": round(before["processor_s"] + processor, 1)}
    cost_file(folder).parent.mkdir(parents=True, exist_ok=True)
    cost_file(folder).write_text(json.dumps(now) + "\n")
