"""A distilled student kept for others: its model, its proof, and how much faster than its teacher it is.

    python -m benchmarks.students runs/student 7net-0 --name PbTiO3-of-7net-0

Steps of NPT dynamics of 625 atoms of PbTiO3 on one core, student and teacher in turns, each in a process of its own.
Model, proof and times go to results/students/NAME.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

from jaxpto.models.catalogue import load_potential
from jaxpto.reporting.provenance import fingerprint, provenance

RESULTS = Path(__file__).parent / "results" / "students"
KEPT = ("params-*", "model.json", "committee", "proof.json", "lattice.png")


@dataclasses.dataclass(frozen=True)
class Students:
    """Keep a student and time it against its teacher."""

    student: tyro.conf.Positional[Path]
    """Finished folder of `python -m jaxpto.distil`."""
    teacher: tyro.conf.Positional[str]
    """Its teacher."""
    name: str
    """Folder in results/students."""
    rounds: int = 2
    """Processes of each."""
    seconds: float = 5.0
    """Of dynamics that are timed in each, at least."""
    core: int = 0
    """The processor core that all are bound to."""


def run(config: Students) -> dict[str, Any]:
    """Time, copy and store.

    Raises:
        SystemExit: a name that is no folder of its own, or that of the student's own folder.
    """
    out = RESULTS / config.name
    if out.parent != RESULTS or out.resolve() == config.student.resolve():
        raise SystemExit(f"--name {config.name!r}: give the name of a new folder in {RESULTS}")
    origin = provenance()  # before results are written, which would count as changes
    models = {"student": str(config.student), "teacher": config.teacher}
    times: dict[str, list[float]] = {who: [] for who in models}
    for _ in range(config.rounds):
        for who, model in models.items():
            times[who].append(step_seconds(model, config))
            print(f"{who}: {1e3 * times[who][-1]:.1f} ms of processor time a step", flush=True)
    pairs = [slow / fast for slow, fast in zip(times["teacher"], times["student"], strict=True)]
    stored = {
        "teacher": config.teacher,
        "teacher_fingerprint": fingerprint(load_potential(config.teacher)),
        "atoms": 625,
        "processor_s_per_step": times,
        "times_faster": round(statistics.median(pairs), 1),
        "times_faster_of_each_pair": pairs,
        "provenance": origin,
    }
    shutil.rmtree(out, ignore_errors=True)  # an earlier student of this name
    out.mkdir(parents=True)
    (out / "speed.json").write_text(json.dumps(stored, indent=1) + "\n")
    for pattern in KEPT:
        for path in sorted(config.student.glob(pattern)):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, out / path.name)
    print(f"{stored['times_faster']} times as fast as {config.teacher}; {out}")
    return stored


def step_seconds(model: str, config: Students) -> float:
    """Processor time of a step, seconds."""
    words = ["--model", model, "--cells", "5", "--cores", str(config.core), "--seconds", str(config.seconds)]
    command = [sys.executable, "-m", "benchmarks.jaxpto_dynamics", *words]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])["processor_ms_per_step"] / 1e3


if __name__ == "__main__":
    run(tyro.cli(Students))
