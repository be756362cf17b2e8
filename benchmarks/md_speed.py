"""Speed of the main job: milliseconds a step on one core, split into its parts; ladder against single runs; cores.

    python -m benchmarks.md_speed [--supercell 5 5 5] [--rounds 3] [--out benchmarks/results/md_speed.json]

Each measurement runs in a process of its own, bound to the cores it is about; those compared take turns (A B A B ...),
so that a machine that drifts drifts for both. Medians over the rounds are printed and stored with all single values.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

    from jaxpto.integrators.state import MDState, Method
    from jaxpto.potential import Potential

REPLICAS = 8
TEMPERATURES = tuple(300.0 + 100.0 * r for r in range(REPLICAS))
CASES = {
    # name: (cores, replicas in the batch)
    "single, 1 core": (1, 1),
    "ladder of 8, 1 core": (1, REPLICAS),
    "ladder of 8, 2 cores": (2, REPLICAS),
}


def measure(cores: int, replicas: int, supercell: tuple[int, int, int], steps: int, model: str) -> dict:
    """Time one case in this process (already bound to its cores)."""
    import jax
    import numpy as np

    from jaxpto.console.command import configure_devices, set_up_jax
    from jaxpto.devices.compiled import WIDE
    from jaxpto.md import initial, loop, preparation
    from jaxpto.md.batch import Schedule
    from jaxpto.md.config import SweepConfig
    from jaxpto.neighbors import build, needs_rebuild
    from jaxpto.perovskite.measurements import crystal_measurements

    set_up_jax("float32")
    configure_devices(cores)
    config = SweepConfig(
        model=model, supercell=supercell, temperatures=TEMPERATURES[:replicas] if replicas > 1 else (600.0,),
        steps=10 * steps, sample_every=steps,
    )  # fmt: skip
    batch = preparation.prepare(config, crystal_measurements).batch
    batch = dataclasses.replace(batch, schedule=Schedule(10 * steps, sample_every=steps, samples_per_chunk=1))
    potential = batch.potential
    mesh = loop.replica_mesh(replicas)
    states, watch, _ = initial.begin(batch, initial.first_layout(batch))
    states, watch = loop.pad_replicas(states, watch, mesh)

    begin = time.perf_counter()
    chunks = loop.run(batch, states, watch, 1, mesh)
    chunk = next(chunks)  # compiles, and takes the atoms off their lattice sites
    compile_seconds = time.perf_counter() - begin
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        chunk = next(chunks)
        times.append(time.perf_counter() - begin)
    result = {
        "compile_and_first_chunk_seconds": compile_seconds,
        "ms_per_step": 1e3 * statistics.median(times) / steps,
        "ms_per_step_and_replica": 1e3 * statistics.median(times) / steps / replicas,
        "atoms": len(batch.atoms),
        "slots": sum(chunk.states.neighbors.layout.slots),
    }
    if cores == 1:
        result["steps_per_list"] = steps_per_list(potential, batch.method, chunk.states)
    if replicas == 1:
        state = jax.tree.map(lambda x: x[0], jax.device_get(chunk.states))

        def timed(function, *arguments):
            compiled = jax.jit(function, compiler_options=WIDE)
            jax.block_until_ready(compiled(*arguments))
            values = []
            for _ in range(20):
                begin = time.perf_counter()
                jax.block_until_ready(compiled(*arguments))
                values.append(time.perf_counter() - begin)
            return 1e3 * statistics.median(values)

        grown = chunk.states.neighbors.layout
        forward = timed(lambda p, s, n: p.energy(s, n), potential, state.system, state.neighbors)
        whole = timed(lambda p, s, n: p.evaluate(s, n), potential, state.system, state.neighbors)
        step = timed(lambda p, s: batch.method(p.evaluate).apply(s), potential, state)
        rebuild = timed(lambda s: build(s, grown), state.system)
        result |= {
            "forward_ms": forward,
            "backward_ms": whole - forward,
            "integrator_ms": step - whole,
            "rebuild_check_ms": timed(lambda s: needs_rebuild(s.neighbors, s.system), state),
            "rebuild_ms": rebuild,
        }
        result["edges"] = int(np.sum(np.asarray(state.neighbors.senders) < len(batch.atoms)))
    return result


def steps_per_list(potential: Potential, method: Method, states: MDState, steps: int = 300) -> list[float]:
    """Steps that a neighbour list of each replica lasts."""
    import jax
    import jax.numpy as jnp

    from jaxpto.devices.sequential import sequential_over_replicas
    from jaxpto.neighbors import needs_rebuild, refresh

    running = jnp.ones(len(states.step), bool)

    @jax.jit
    def lists_built(potential: Potential, states: MDState) -> jax.Array:
        integrator = method(sequential_over_replicas(potential.evaluate))

        def step(states: MDState, _: None) -> tuple[MDState, jax.Array]:
            moved = jax.vmap(integrator.move)(states)
            needed = jax.vmap(needs_rebuild)(moved.neighbors, moved.system)
            neighbors = refresh(moved.system, moved.neighbors, running, before=states.system)
            return jax.vmap(integrator.finish)(dataclasses.replace(moved, neighbors=neighbors)), needed

        return jax.lax.scan(step, states, length=steps)[1].sum(axis=0)

    return [steps / max(int(built), 1) for built in jax.device_get(lists_built(potential, states))]


def run_case(cores: int, replicas: int, arguments: argparse.Namespace) -> dict:
    """Time one case in a process of its own, bound to the first `cores` cores it may use."""
    command = [
        sys.executable, "-m", "benchmarks.md_speed", "--case", str(cores), str(replicas),
        "--supercell", *map(str, arguments.supercell), "--steps", str(arguments.steps), "--model", arguments.model,
    ]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(answer.stderr)
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--supercell", type=int, nargs=3, default=(5, 5, 5))
    parser.add_argument("--steps", type=int, default=100, help="steps of one timed chunk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="perovskite")
    parser.add_argument("--out", default="benchmarks/results/md_speed.json")
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        cores, replicas = arguments.case
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        print(json.dumps(measure(cores, replicas, tuple(arguments.supercell), arguments.steps, arguments.model)))
        return

    import numpy as np

    from jaxpto.reporting.provenance import provenance

    rounds = [{name: run_case(*case, arguments) for name, case in CASES.items()} for _ in range(arguments.rounds)]
    medians = {
        name: {key: np.median([one[name][key] for one in rounds], axis=0).tolist() for key in rounds[0][name]}
        for name in CASES
    }
    step = {name: [one[name]["ms_per_step_and_replica"] for one in rounds] for name in CASES}
    ratios = {
        "8 runs one after another / ladder of 8 (1 core)": [
            a / b for a, b in zip(step["single, 1 core"], step["ladder of 8, 1 core"], strict=True)
        ],
        "ladder of 8: 1 core / 2 cores": [
            a / b for a, b in zip(step["ladder of 8, 1 core"], step["ladder of 8, 2 cores"], strict=True)
        ],
    }
    document = provenance() | {"dtype": "float32", "medians": medians, "ratios": ratios, "rounds": rounds}
    document["command"] = "python -m benchmarks.md_speed " + " ".join(sys.argv[1:])
    Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n")
    for name, row in medians.items():
        print(f"{name:24s} {row['ms_per_step']:8.2f} ms/step {row['ms_per_step_and_replica']:8.2f} ms/step and replica")
    for name in ("forward_ms", "backward_ms", "integrator_ms", "rebuild_check_ms", "rebuild_ms"):
        print(f"  {name:22s} {medians['single, 1 core'][name]:8.3f}")
    lasts = ", ".join(f"{steps:.1f}" for steps in medians["ladder of 8, 1 core"]["steps_per_list"])
    print(f"steps a neighbour list lasts, {TEMPERATURES[0]:g} to {TEMPERATURES[-1]:g} K: {lasts}")
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.2f} (of {', '.join(f'{v:.2f}' for v in values)})")


if __name__ == "__main__":
    main()
