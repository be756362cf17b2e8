"""What an accelerator does during a step: kernels by name, how much of the time it is busy, what the step waits for.

    python -m benchmarks.kernels [perovskite 7net-0 ...] [--cells 5] [--replicas 1]

A chunk of the sweep's own dynamics runs under JAX's profiler; kernels are those of the device's own time line. `busy`
is the part of the wall time in which at least one kernel runs.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro

from benchmarks.jaxpto_dynamics import EVERY, begin

SAMPLES = 10  # of the chunk that is profiled
MOST = 15  # kernels listed by name


@dataclasses.dataclass(frozen=True)
class Config:
    """Kernels of a step of NPT dynamics on an accelerator.

    Attributes:
        models: converted models, or perovskite.
        cells: S of the S x S x S supercell of PbTiO3.
        replicas: temperatures in the batch.
        out: JSON file; models already in it are kept.
    """

    models: tyro.conf.Positional[tuple[str, ...]] = ("perovskite",)
    cells: int = 5
    replicas: int = 1
    out: Path = Path("benchmarks/results/gpu/kernels.json")


def kernels_of(folder: Path) -> list[tuple[str, float, float]]:
    """Name, start and length (ns) of every kernel in a trace."""
    import jax

    (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                found += [(event.name, event.start_ns, event.duration_ns) for event in line.events]
    return found


def busy_ns(kernels: list[tuple[str, float, float]]) -> float:
    """Length of the union of the kernels' times."""
    total, reached = 0.0, 0.0
    for _, start, length in sorted(kernels, key=lambda kernel: kernel[1]):
        total += max(0.0, start + length - max(start, reached))
        reached = max(reached, start + length)
    return total


def measure(model: str, config: Config) -> dict[str, Any]:
    """Profile one chunk of one model."""
    import jax

    batch, chunks = begin(model, config.cells, config.replicas, 1, 2.0, SAMPLES)
    steps = EVERY * SAMPLES
    for _ in range(2):
        next(chunks)
    start = time.perf_counter()
    next(chunks)
    unprofiled = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            next(chunks)
            wall = time.perf_counter() - start
        kernels = kernels_of(Path(folder))
    by_name: dict[str, list[float]] = collections.defaultdict(list)
    for name, _, length in kernels:
        by_name[name].append(length)
    ranked = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    return {
        "device": jax.local_devices()[0].device_kind,
        "atoms": len(batch.atoms),
        "replicas": config.replicas,
        "ms_per_step": 1e3 * unprofiled / steps,
        "ms_per_step_profiled": 1e3 * wall / steps,
        "kernels_per_step": len(kernels) / steps,
        "kernel_ms_per_step": 1e-6 * sum(length for _, _, length in kernels) / steps,
        "busy": 1e-9 * busy_ns(kernels) / wall,
        "most": [
            {"name": name, "per_step": len(lengths) / steps, "us_per_step": 1e-3 * sum(lengths) / steps}
            for name, lengths in ranked[:MOST]
        ],
    }


def run(config: Config) -> None:
    """Measure, print and store."""
    from jaxpto.reporting.provenance import provenance

    document = json.loads(config.out.read_text()) if config.out.exists() else {}
    for model in config.models:
        one = measure(model, config)
        print(
            f"{model}, {one['atoms']} atoms, {one['replicas']} replicas: {one['ms_per_step']:.3f} ms/step,"
            f" {one['kernels_per_step']:.0f} kernels of {one['kernel_ms_per_step']:.3f} ms, busy {one['busy']:.0%}"
        )
        for kernel in one["most"]:
            print(f"  {kernel['us_per_step']:8.1f} us in {kernel['per_step']:6.2f}  {kernel['name'][:80]}")
        command = f"python -m benchmarks.kernels {model} --cells {config.cells} --replicas {config.replicas}"
        document[f"{model} x {config.replicas}"] = provenance() | {"command": command, "dtype": "float32"} | one
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    run(tyro.cli(Config))
