"""Speed of NPT dynamics against the number of atoms, jaxpto beside the original programs (Fig. 5 of the PTO-test).

    python -m benchmarks.speed [MODELS ...] [--cells 1 2 ... 10] [--engines jaxpto batch ase torchsim] [--quick]

S x S x S PbTiO3 at 300 K, 2 fs, a frame written every 10 steps. Engines: `jaxpto` (one run), `batch` (8 temperatures in
one program), `ase` (the original calculator under ASE's NPT, which the paper used), `torchsim` (SevenNet). The models
of `benchmarks.stand_ins` (`deepmd`, a compressed DeepPot-SE of about the size of `perovskite`, `mace-seeded`, ...)
have no physics and take steps of 0.02 fs, so that the crystal holds together. Every measurement is a process of its own
on the given cores, and all engines take turns at each size, so that a drift of the machine hits all. Original programs
run in environments made here; other models of jaxpto must have been converted (`python -m jaxpto` lists them).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.environments import FOLDER, ORIGINALS, TORCH_SIM, family, python_of
from benchmarks.speed_figure import draw
from benchmarks.stand_ins import STAND_INS, UNSTABLE_TIMESTEP, checkpoints_of
from jaxpto.reporting.provenance import provenance

HERE = Path(__file__).parent
BATCH = 8
EngineName = Literal["jaxpto", "batch", "ase", "torchsim"]
ENGINES: tuple[EngineName, ...] = ("jaxpto", "batch", "ase", "torchsim")


@dataclasses.dataclass(frozen=True)
class Config:
    """Speed of NPT dynamics against the number of atoms.

    Attributes:
        models: converted models, `perovskite`, or those of `benchmarks.stand_ins`.
        cells: S of the S x S x S supercells.
        engines: those a model does not have are passed over.
        cores: processor cores that every process is bound to.
        seconds: least time of one measurement, compilation apart.
        rounds: processes of each engine and size.
        longest: seconds a step may take; larger cells are left out then.
        memory: GiB that a process may take; larger cells are left out when it would be more.
        quick: cells 1 to 3 of the perovskite and 7net-0, within ten minutes on two cores (environments apart).
        environments: folder for the originals' environments.
        checkpoints: files for originals whose package holds none, as MODEL=PATH (m3gnet, gptff, mace, orb, unipero).
        gptff_source: checkout of the GPTFF repository, built in place.
        out: JSON file; the figure lies beside it.
    """

    models: tyro.conf.Positional[tuple[str, ...]] = ("perovskite", "deepmd")
    cells: tuple[int, ...] = tuple(range(1, 11))
    engines: tuple[EngineName, ...] = ENGINES
    cores: tuple[int, ...] = (0,)
    seconds: float = 5.0
    rounds: int = 1
    longest: float = 60.0
    memory: float = 12.0
    quick: bool = False
    environments: Path = FOLDER
    checkpoints: tuple[str, ...] = ()
    gptff_source: Path | None = None
    out: Path = Path("benchmarks/results/speed.json")


def command_of(model: str, engine: EngineName, checkpoint: str, config: Config) -> list[str] | None:
    """The process that measures a model with an engine, without its size; None where there is no such thing."""
    timestep = UNSTABLE_TIMESTEP if model in STAND_INS else 2.0
    common = ["--model", model, "--cores", *map(str, config.cores), "--seconds", str(config.seconds)]
    common += ["--timestep", str(timestep)]
    if engine in ("jaxpto", "batch"):
        replicas = ["--replicas", str(BATCH if engine == "batch" else 1)]
        return [sys.executable, "-m", "benchmarks.jaxpto_dynamics", *common, *replicas]
    if engine == "torchsim":
        if family(model) != "7net":
            return None
        return [str(python_of(TORCH_SIM, config.environments)), str(HERE / "torchsim_dynamics.py"), *common]
    if family(model) not in ORIGINALS:
        return None
    original = ORIGINALS[family(model)]
    command = [str(python_of(original, config.environments)), str(HERE / "ase_dynamics.py"), original.factory, *common]
    return [*command, "--checkpoint", checkpoint, "--source", str(config.gptff_source or "")]


def measure(command: list[str], cells: int) -> dict[str, Any]:
    """One process; its numbers, or why there are none."""
    answer = subprocess.run([*command, "--cells", str(cells)], capture_output=True, text=True)
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"ended with {answer.returncode}"]
        return {"atoms": 5 * cells**3, "failed": lines[-1][:300]}
    return json.loads(answer.stdout.strip().splitlines()[-1])


def too_large(before: list[dict[str, Any]], atoms: int, config: Config) -> str:
    """Why a size is not tried after the smaller ones, or ""."""
    if before and "left_out" in before[-1]:
        return before[-1]["left_out"]
    before = [one for one in before if "ms" in one]  # one that failed says nothing of larger ones
    if not before:
        return ""
    last = before[-1]
    times = atoms / last["atoms"]
    if (step := times * last["ms"] / 1e3) > config.longest:
        return f"about {step:.0f} s a step, --longest is {config.longest:g}"
    # by the two largest: that of small cells is the compiler's
    pairs = list(itertools.pairwise(before))[-1:]
    growth = [(b["peak_memory_MiB"] - a["peak_memory_MiB"]) / (b["atoms"] - a["atoms"]) for a, b in pairs]
    expected = last["peak_memory_MiB"] + max(growth, default=0.0) * (atoms - last["atoms"])
    if expected > 1024 * config.memory:
        return f"about {expected / 1024:.0f} GiB, --memory is {config.memory:g}"
    return ""


def summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all timed pieces, and what follows from them."""
    failed = [one for one in rounds if "failed" in one]
    if failed:
        return failed[0]
    first = rounds[0]
    milliseconds = statistics.median(value for one in rounds for value in one["ms_per_step"])
    day = 86_400_000 * 2e-6 / milliseconds  # ns of steps of 2 fs
    return first | {
        "ms": milliseconds,
        "us_per_atom": 1e3 * milliseconds / first["atoms"] / first["replicas"],
        "ns_per_day": day,
        "ns_per_day_aggregate": day * first["replicas"],
        "first_steps_s": statistics.median(one["first_steps_s"] for one in rounds),
        "peak_memory_MiB": max(one["peak_memory_MiB"] for one in rounds),
        "ms_per_step": [one["ms_per_step"] for one in rounds],
    }


def run(config: Config) -> None:
    """Measure, print, store after every size, and draw."""
    if config.quick:
        config = dataclasses.replace(config, models=("perovskite", "7net-0"), cells=(1, 2, 3), seconds=2.0)
    checkpoints = checkpoints_of(config.models, config.checkpoints, config.environments)
    commands = {
        (model, engine): command
        for model in config.models
        for engine in config.engines
        if (command := command_of(model, engine, checkpoints.get(model, ""), config))
    }
    results: dict[str, list[dict[str, Any]]] = {f"{model} {engine}": [] for model, engine in commands}
    lists = {"cells": config.cells, "engines": config.engines, "cores": config.cores}
    options = " ".join([*config.models, *(f"--{name} {' '.join(map(str, values))}" for name, values in lists.items())])
    limits = f"--seconds {config.seconds:g} --rounds {config.rounds} --longest {config.longest:g}"
    header = provenance() | {"dtype": "float32", "cores": list(config.cores), "timestep_fs": 2.0, "frames_every": 10}
    header["command"] = f"python -m benchmarks.speed {options} {limits}"
    print(
        f"{'model':20s} {'engine':9s} {'atoms':>6s} {'ms/step':>10s} {'us/atom':>9s} {'ns/day':>9s} {'in all':>9s} MiB"
    )
    for cells in config.cells:
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in results}
        for _ in range(config.rounds):
            for (model, engine), command in commands.items():
                name = f"{model} {engine}"
                why = too_large(results[name], 5 * cells**3, config)
                rounds[name].append({"atoms": 5 * cells**3, "left_out": why} if why else measure(command, cells))
        for (model, engine), ones in zip(commands, rounds.values(), strict=True):
            one = ones[0] if "left_out" in ones[0] else summarize(ones)
            results[f"{model} {engine}"].append(one)
            print(_line(model, engine, one), flush=True)
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(header | {"results": results}, indent=1) + "\n")
    draw(results, config.out.with_suffix(".png"))
    print(f"written to {config.out} and {config.out.with_suffix('.png')}")


def _line(model: str, engine: str, one: dict[str, Any]) -> str:
    head = f"{model:20s} {engine:9s} {one['atoms']:6d} "
    if "ms" not in one:
        return head + (f"left out: {one['left_out']}" if "left_out" in one else f"failed: {one['failed']}")
    numbers = f"{one['ms']:10.2f} {one['us_per_atom']:9.1f} {one['ns_per_day']:9.2f} {one['ns_per_day_aggregate']:9.2f}"
    return f"{head}{numbers} {one['peak_memory_MiB']:.0f}"


if __name__ == "__main__":
    run(tyro.cli(Config))
