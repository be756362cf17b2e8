"""jaxpto against the original programs: energy, forces and stress through ASE, one core, float32, in turns.

    python -m benchmarks.originals chgnet-0.3.0 [m3gnet-mp-2021.2.8 gptff-v2 ...] [--sizes 135 625] [--rounds 3]

Each original runs in an environment of its own, made here under --environments (PyTorch and the original's package,
from the package index). Each measurement is a process of its own, bound to one core; jaxpto and the original take turns
(A B A B ...), so that a machine that drifts drifts for both. The structure is rattled PbTiO3, moved before each call,
so that each builds its neighbour lists or graphs as in molecular dynamics. Ratios are of processor time (both programs
are single-threaded here, and it is the time on the clock of a quiet machine), medians over all calls; peak memory is
that of the whole process, libraries included. Models of jaxpto must have been converted (`python -m jaxpto` lists
them); those of `benchmarks.stand_ins`, such as `mace-seeded` or `unipero-seeded`, are made and converted here.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro

from benchmarks.environments import FOLDER
from benchmarks.stand_ins import checkpoints_of
from benchmarks.turns import compare
from jaxpto.reporting.provenance import provenance

REPEATS = {5: (1, 1, 1), 40: (2, 2, 2), 135: (3, 3, 3), 625: (5, 5, 5)}
TIMING = Path(__file__).with_name("calculator_timing.py")


@dataclasses.dataclass(frozen=True)
class Config:
    """jaxpto against the original programs.

    Attributes:
        models: converted models, such as chgnet-0.3.0.
        sizes: numbers of atoms: 5, 40, 135 or 625.
        rounds: processes of each program and size.
        calls: timed calls in each process.
        core: the processor core that all are bound to.
        environments: folder for the originals' environments.
        checkpoints: files for originals whose package holds none, as MODEL=PATH (m3gnet, gptff, mace, orb, unipero).
        gptff_source: checkout of the GPTFF repository, built in place with its setup.py (it is in no package).
        out: JSON file; models already in it are kept.
    """

    models: tyro.conf.Positional[tuple[str, ...]]
    sizes: tuple[int, ...] = (135, 625)
    rounds: int = 3
    calls: int = 3
    core: int = 0
    environments: Path = FOLDER
    checkpoints: tuple[str, ...] = ()
    gptff_source: Path | None = None
    out: Path = Path("benchmarks/results/originals.json")


def run(config: Config) -> None:
    """Measure, print a table and store everything."""
    document = json.loads(config.out.read_text()) if config.out.exists() else {}
    origin = provenance()  # before results are written, which would count as changes
    checkpoints = checkpoints_of(config.models, config.checkpoints, config.environments)
    print(f"{'model':35s} atoms   original s   jaxpto s   faster   original MiB   jaxpto MiB")
    for model in config.models:
        options = f"--sizes {' '.join(map(str, config.sizes))} --rounds {config.rounds} --calls {config.calls}"
        command = {"command": f"python -m benchmarks.originals {model} {options}"}  # without the paths of this machine
        entry: dict[str, Any] = {"provenance": origin | command, "dtype": "float32", "cores": 1, "sizes": []}
        for size in config.sizes:
            arguments = ["--calls", str(config.calls), "--core", str(config.core)]
            arguments += ["--repeats", *map(str, REPEATS[size]), "--checkpoint", checkpoints.get(model, "")]
            arguments += ["--source", str(config.gptff_source or "")]
            one = {"atoms": size} | compare(model, TIMING, arguments, config.rounds, config.environments)
            entry["sizes"].append(one)
            theirs, ours = one["medians"]["original"], one["medians"]["jaxpto"]
            print(
                f"{model:35s} {size:5d} {theirs['processor_s']:12.3f} {ours['processor_s']:10.3f}"
                f" {one['times_faster']:8.2f} {theirs['peak_memory_MiB']:14.0f} {ours['peak_memory_MiB']:12.0f}",
                flush=True,
            )
        document[model] = entry
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    run(tyro.cli(Config))
