"""Time jaxpto's NPT dynamics of PbTiO3 in this process, trajectory included; prints one line of JSON.

`benchmarks.speed` calls it: the sweep's own chunks, one run or a batch of temperatures, frames written every 10 steps.
Fast models take more steps to a chunk than slow ones, so that neither the host nor patience counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVERY = 10  # steps between two frames
CHUNK_SECONDS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--cores", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--timestep", type=float, default=2.0, help="fs")
    parser.add_argument(
        "--skin", type=float, help="of the neighbour list, Angstrom; the model's usual one if not given"
    )
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, arguments.cores)
    print(json.dumps(measure(arguments)))


def begin(
    model: str, cells: int, replicas: int, cores: int, timestep: float, samples: int, skin: float | None = None
) -> tuple[Any, Iterator[Any]]:
    """A batch, and the chunks of so many samples of a run without end."""
    from jaxpto.console.command import configure_devices, set_up_jax
    from jaxpto.md import initial, loop, preparation
    from jaxpto.md.batch import Schedule
    from jaxpto.md.config import SweepConfig
    from jaxpto.perovskite.measurements import crystal_measurements

    set_up_jax("float32")
    configure_devices(cores)
    config = SweepConfig(
        model=model, supercell=(cells,) * 3, temperatures=tuple(300.0 + 100.0 * r for r in range(replicas)),
        steps=10_000_000, sample_every=EVERY, timestep=timestep, skin=skin,
    )  # fmt: skip
    batch = preparation.prepare(config, crystal_measurements).batch
    batch = dataclasses.replace(batch, schedule=Schedule(config.steps, EVERY, samples_per_chunk=samples))
    mesh = loop.replica_mesh(replicas)
    states, watch, _ = initial.begin(batch, initial.first_layout(batch))
    states, watch = loop.pad_replicas(states, watch, mesh)
    return batch, loop.run(batch, states, watch, 1, mesh)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    import jax
    import numpy as np

    from jaxpto.md import stored_run
    from jaxpto.storage.trajectory import create_trajectory, write_frames
    from jaxpto.system import from_ase

    replicas = arguments.replicas

    def start(samples: int) -> tuple[Any, Iterator[Any]]:
        given = (arguments.model, arguments.cells, replicas, len(arguments.cores), arguments.timestep)
        return begin(*given, samples, arguments.skin)

    def following(chunks: Iterator[Any]) -> Any:
        chunk = next(chunks)
        # a few lost ones are computed along: the time is that of the whole batch
        if (reasons := np.asarray(chunk.watch.reason)[:replicas]).all():
            raise SystemExit(f"lost: {[batch.limits.describe(int(reason)) for reason in reasons]}")
        return chunk

    batch, chunks = start(1)
    following(chunks)
    first = time.perf_counter() - began
    started = time.perf_counter()
    following(chunks)
    samples = max(1, int(CHUNK_SECONDS / (time.perf_counter() - started)))
    if samples > 1:
        chunks, length = start(samples)[1], 0
        while (found := len(following(chunks).samples.step)) > length:  # until they have grown to their full length
            length = found
    following(chunks)  # may still enlarge the lists
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{r}.h5md" for r in range(replicas)]
        for path in paths:
            frames = 100 + 2_000_000 // len(batch.atoms)  # more than are written, and no more than a disk holds
            create_trajectory(path, from_ase(batch.atoms), frames, stored_run.quantities(batch.observables))

        def advance(written: int) -> Any:
            chunk = following(chunks)
            for replica, path in enumerate(paths):
                own = jax.tree.map(lambda x, r=replica: np.asarray(x[:, r]), chunk.samples)
                frames = {
                    "step": own.step,
                    "time": arguments.timestep * own.step,
                    "position": own.positions,
                    "cell": own.cell,
                }
                write_frames(path, written, frames | own.values)
            return chunk

        times, steps, processor = [], [], time.process_time()
        while sum(times) < arguments.seconds or len(times) < 3:
            started = time.perf_counter()
            chunk = advance(sum(steps) // EVERY)
            times.append(time.perf_counter() - started)
            steps.append(EVERY * len(chunk.samples.step))
        processor = time.process_time() - processor
    senders = np.asarray(chunk.states.neighbors.senders)[:replicas]
    device = jax.local_devices()[0]
    on_device = device.memory_stats() or {}
    return {
        "device": device.device_kind,
        "atoms": len(batch.atoms),
        "replicas": replicas,
        "edges_in_list": int((senders < len(batch.atoms)).sum() / replicas),
        "first_steps_s": first,
        "ms_per_step": [1e3 * value / number for value, number in zip(times, steps, strict=True)],
        "processor_ms_per_step": 1e3 * processor / sum(steps),
        "steps_timed": sum(steps),
        "peak_memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_device_memory_MiB": on_device["peak_bytes_in_use"] / 2**20 if on_device else None,
    }


if __name__ == "__main__":
    main()
