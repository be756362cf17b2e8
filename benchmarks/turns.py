"""jaxpto and an original program in turns, each measurement a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environments import ORIGINALS, family, python_of


def compare(model: str, script: Path, options: Sequence[str], rounds: int, environments: Path) -> dict[str, Any]:
    """jaxpto and the original in turns; ratios above 1 say that jaxpto is faster, or smaller.

    Medians are over all rounds and, of what a process measures several times, over all its values.

    Args:
        model: says which program is the original.
        script: times one program; prints one line of JSON with its times (names that end in _s) and memory (_MiB).
        options: of the script, beside the name of the program and the model.
        rounds: processes of each program.
        environments: folder of the originals' environments.

    Raises:
        SystemExit: a process failed.
    """
    original = ORIGINALS[family(model)]
    programs = {
        "jaxpto": (Path(sys.executable), "jaxpto"),
        "original": (python_of(original, environments), original.factory),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (python, factory) in programs.items():
            found[name].append(_time_once([str(python), str(script), factory, "--model", model, *options]))
    medians = {
        name: {key: _median([one[key] for one in ones]) for key in ones[0] if key.endswith(("_s", "_MiB"))}
        for name, ones in found.items()
    }
    pairs = [
        statistics.median(theirs["processor_s"]) / statistics.median(ours["processor_s"])
        for ours, theirs in zip(*found.values(), strict=True)
    ]
    return {
        "medians": medians,
        "times_faster": statistics.median(pairs),
        "times_faster_of_each_pair": pairs,
        "times_less_memory": medians["original"]["peak_memory_MiB"] / medians["jaxpto"]["peak_memory_MiB"],
        "rounds": found,
    }


def _time_once(command: list[str]) -> dict[str, Any]:
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(f"{command[2]} with {command[4]} failed:\n{answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def _median(values: list[Any]) -> float:
    return statistics.median(x for value in values for x in (value if isinstance(value, list) else [value]))
