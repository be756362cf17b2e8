"""jaxpto against the original trainers: training steps of one frame, one core, float32, in turns.

    python -m benchmarks.training_speed chgnet-0.3.0 7net-0 m3gnet-mp-2021.2.8 \\
        --checkpoints m3gnet-mp-2021.2.8=FOLDER [--rounds 3] [--steps 3]

A step is the loss of energy, forces and stress of 40 atoms of rattled PbTiO3, its gradient in all trained parameters
and an update by Adam. The originals take it as their own trainers do: chgnet's `Trainer`, sevenn's `Trainer`, mace's
`take_step`, and for matgl what its Lightning module does. Each measurement is a process of its own, bound to one core,
and the programs take turns. Ratios are of processor time, medians over all steps; peak memory is that of the whole
process, libraries and compilation included.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tyro

from benchmarks.environments import FOLDER
from benchmarks.stand_ins import checkpoints_of
from benchmarks.turns import compare
from jaxpto.reporting.provenance import provenance

TIMING = Path(__file__).with_name("training_step_timing.py")


@dataclasses.dataclass(frozen=True)
class Config:
    """jaxpto against the original trainers.

    Attributes:
        models: converted models, such as chgnet-0.3.0.
        rounds: processes of each program.
        steps: timed steps in each process.
        core: the processor core that all are bound to.
        environments: folder for the originals' environments.
        checkpoints: files for originals whose package holds none, as MODEL=PATH.
        out: JSON file; models already in it are kept.
    """

    models: tyro.conf.Positional[tuple[str, ...]]
    rounds: int = 3
    steps: int = 3
    core: int = 0
    environments: Path = FOLDER
    checkpoints: tuple[str, ...] = ()
    out: Path = Path("benchmarks/results/training_speed.json")


def run(config: Config) -> None:
    """Measure, print a table and store everything."""
    document = json.loads(config.out.read_text()) if config.out.exists() else {}
    origin = provenance()  # before results are written, which would count as changes
    checkpoints = checkpoints_of(config.models, config.checkpoints, config.environments)
    print(f"{'model':35s} atoms   original s   jaxpto s   faster   original MiB   jaxpto MiB")
    for model in config.models:
        arguments = ["--checkpoint", checkpoints.get(model, "")]
        arguments += ["--core", str(config.core), "--steps", str(config.steps)]
        one = compare(model, TIMING, arguments, config.rounds, config.environments)
        one["atoms"] = one["rounds"]["jaxpto"][0]["atoms"]
        theirs, ours = one["medians"]["original"], one["medians"]["jaxpto"]
        print(
            f"{model:35s} {one['atoms']:5d} {theirs['processor_s']:12.3f} {ours['processor_s']:10.3f}"
            f" {one['times_faster']:8.2f} {theirs['peak_memory_MiB']:14.0f} {ours['peak_memory_MiB']:12.0f}",
            flush=True,
        )
        # without the paths of this machine
        command = f"python -m benchmarks.training_speed {model} --rounds {config.rounds} --steps {config.steps}"
        document[model] = {"provenance": origin | {"command": command}, "dtype": "float32", "cores": 1} | one
        config.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    run(tyro.cli(Config))
