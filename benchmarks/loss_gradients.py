"""What training is measured against: parameter gradients of a loss by the original programs' own autograd, in float64.

    python -m benchmarks.loss_gradients --mace-checkpoint ../shared/weights/fixtures/mace_mp0b_reduced.model

One frame of strained, rattled PbTiO3 for each of chgnet-0.3.0, 7net-0 and a MACE file, each in the environment of its
program (made here under --environments). The loss is

    ((E - E0) / n / 0.05 eV)^2 + mean(((F - F0) / 0.2 eV/A)^2) + mean(((S - S0) / 0.01 eV/A^3)^2)

with energy, forces, the nine components of stress (positive in tension) and labels E0, F0, S0 that stand in the JSON.
Of the gradient in each parameter tensor of the original it holds the norm, and the inner product with cos(0.7 k + 0.3),
k the index of an element, the last axis running fastest. `tests/test_loss_gradients.py` compares jaxpto with them.

What the programs do in single precision by themselves is done in float64 here: CHGNet's graph and composition, and the
graph and 3j symbols of SevenNet, which its checkpoint holds in single precision.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import tyro

from benchmarks.environments import FOLDER, ORIGINALS, family, python_of
from jaxpto.reporting.provenance import provenance

SCRIPT = Path(__file__).with_name("loss_gradients_original.py")
PACKAGES = {"chgnet": ("chgnet", "torch"), "7net": ("sevenn", "e3nn", "torch"), "mace": ("mace-torch", "e3nn", "torch")}


@dataclasses.dataclass(frozen=True)
class Config:
    """Parameter gradients of a loss by the original programs.

    Attributes:
        mace_checkpoint: model file of mace-torch.
        environments: folder for the originals' environments.
        out: JSON file.
    """

    mace_checkpoint: Path
    environments: Path = FOLDER
    out: Path = Path("benchmarks/results/loss_gradients.json")


def gradients(model: str, checkpoint: str, config: Config) -> dict[str, Any]:
    """The loss of one frame and its gradients, from a process of the original."""
    original, packages = ORIGINALS[family(model)], PACKAGES[family(model)]
    python = python_of(original, config.environments)
    command = [str(python), str(SCRIPT), original.factory, "--model", model, "--checkpoint", checkpoint]
    answer = subprocess.run([*command, "--packages", *packages], capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(f"{model} failed:\n{answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def run(config: Config) -> None:
    """Ask every program and store the answers."""
    origin = provenance() | {"command": "python -m benchmarks.loss_gradients --mace-checkpoint FILE"}
    file = config.mace_checkpoint
    checkpoints = {"chgnet-0.3.0": "", "7net-0": "", f"mace:{file.name}": str(file)}
    models = {}
    for model, checkpoint in checkpoints.items():
        models[model] = gradients(model.split(":")[0], checkpoint, config)
        print(f"{model:32s} loss {models[model]['loss']:.6f}, {len(models[model]['tensors'])} tensors", flush=True)
    models[f"mace:{file.name}"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    direction = "cos(0.7 k + 0.3), k the index of an element, the last axis running fastest"
    config.out.write_text(json.dumps({"provenance": origin, "direction": direction, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    run(tyro.cli(Config))
