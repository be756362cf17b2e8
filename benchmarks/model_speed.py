"""Speed of one energy + forces + stress call on one CPU core, split into its parts, single and batched.

    taskset -c 0 python -m benchmarks.model_speed [--model perovskite] [--repeats 5 5 5] [--out FILE.json]

Float32, rattled PbTiO3. CPU time of this process, so that other work on the machine disturbs less; compilation apart.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import jax
import numpy as np
import tyro

from jaxpto import neighbors
from jaxpto.devices.compiled import WIDE
from jaxpto.models.catalogue import load_potential
from jaxpto.reporting import provenance
from jaxpto.system import from_ase, stack


@dataclasses.dataclass(frozen=True)
class Config:
    """Speed of a force call.

    Attributes:
        model: model name or folder.
        repeats: 5-atom cells along each axis.
        replicas: size of the batch.
        skin: of the neighbour list, Angstrom.
        calls: timed calls.
        out: JSON file to write, if any.
    """

    model: str = "perovskite"
    repeats: tuple[int, int, int] = (5, 5, 5)
    replicas: int = 8
    skin: float = 0.3
    calls: int = 20
    out: Path | None = None


def milliseconds(function: Callable, *arguments: Any, calls: int) -> tuple[float, float]:
    """CPU time of a call (median), and of its compilation in ms."""
    compiled = jax.jit(function, compiler_options=WIDE)
    began = time.process_time()
    jax.block_until_ready(compiled(*arguments))
    compilation = time.process_time() - began
    times = []
    for _ in range(calls):
        began = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.process_time() - began)
    return 1e3 * float(np.median(times)), 1e3 * compilation


def run(config: Config) -> dict[str, Any]:
    """Measure."""
    potential = load_potential(config.model)
    places = [[0, 0, 0], [0.5, 0.5, 0.54], [0.5, 0.5, 0.11], [0.5, 0, 0.62], [0, 0.5, 0.62]]
    crystal = ase.Atoms("PbTiO3", scaled_positions=places, cell=[3.89, 3.89, 4.16], pbc=True).repeat(config.repeats)
    systems = []
    for seed in range(config.replicas):
        image = crystal.copy()
        image.rattle(0.1, seed=seed)
        systems.append(from_ase(image))
    layout = potential.allocate(systems, config.skin)
    one = systems[0]
    found = neighbors.build(one, layout)
    batch = stack(systems)
    batch_found = jax.jit(jax.vmap(lambda s: neighbors.build(s, layout)))(batch)
    cases: dict[str, tuple[Callable, tuple]] = {
        "edge vectors": (neighbors.edge_vectors, (one, found)),
        "energy": (potential.energy, (one, found)),
        "energy, forces, stress": (potential.evaluate, (one, found)),
        "neighbour list": (lambda s: neighbors.build(s, layout), (one,)),
        f"energy, forces, stress of {config.replicas}": (jax.vmap(potential.evaluate), (batch, batch_found)),
    }
    result: dict[str, Any] = {
        "atoms": len(crystal),
        "slots": list(layout.slots),
        "skin": config.skin,
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "milliseconds": {},
        "compilation_ms": {},
    }
    for name, (function, arguments) in cases.items():
        call, compilation = milliseconds(function, *arguments, calls=config.calls)
        result["milliseconds"][name] = round(call, 3)
        result["compilation_ms"][name] = round(compilation)
        print(f"{name:32s} {call:9.2f} ms   (compiled in {compilation / 1e3:.1f} s)", flush=True)
    if config.out:
        config.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    run(tyro.cli(Config))
