"""Time jaxpto's NPT dynamics of PbTiO3 in this process, trajectory included; prints one line of JSON.

`benchmarks.speed` calls it: the sweep's own chunks, one run or a batch of temperatures, frames written every 10 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

EVERY = 10  # steps between two frames
ATOM_STEPS = 50_000  # of a chunk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--cores", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--timestep", type=float, default=2.0, help="fs")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, arguments.cores)
    print(json.dumps(measure(arguments)))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    begin = time.perf_counter()
    import jax
    import numpy as np

    from jaxpto import dynamics, simulation
    from jaxpto.command import configure_devices, set_up_jax
    from jaxpto.config import SweepConfig
    from jaxpto.storage.trajectory import create_trajectory, write_frames
    from jaxpto.system import from_ase

    set_up_jax("float32")
    configure_devices(len(arguments.cores))
    replicas = arguments.replicas
    temperatures = tuple(300.0 + 100.0 * r for r in range(replicas))
    config = SweepConfig(
        model=arguments.model, supercell=(arguments.cells,) * 3, temperatures=temperatures, steps=10_000_000,
        sample_every=EVERY, timestep=arguments.timestep,
    )  # fmt: skip
    setup = simulation.prepare(config)
    samples = max(1, round(ATOM_STEPS / (EVERY * replicas * len(setup.atoms))))
    schedule = dynamics.Schedule(steps=config.steps, sample_every=EVERY, samples_per_chunk=samples)
    system = from_ase(setup.atoms)
    layout = setup.potential.allocate([system], setup.potential.usual_skin)
    mesh = dynamics.replica_mesh(replicas)
    states, watch = dynamics.pad_replicas(*jax.jit(lambda: simulation.start(setup, layout))(), mesh)
    chunks = dynamics.run(setup.potential, setup.method, states, watch, schedule, setup.limits, setup.topology, 1, mesh)

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{r}.h5md" for r in range(replicas)]
        for path in paths:
            create_trajectory(path, system, 100_000, simulation.OBSERVABLES)

        def advance() -> Any:
            chunk = next(chunks)
            for replica, path in enumerate(paths):
                own = jax.tree.map(lambda x, r=replica: np.asarray(x[:, r]), chunk.samples)
                frames = {
                    "step": own.step,
                    "time": arguments.timestep * own.step,
                    "position": own.positions,
                    "cell": own.cell,
                }
                frames |= {name: getattr(own, name) for name in simulation.OBSERVABLES}
                write_frames(path, chunk.first_sample - 1, frames)
            return chunk

        advance()
        first = time.perf_counter() - begin
        advance()  # may still enlarge the lists
        times, processor = [], time.process_time()
        while sum(times) < arguments.seconds or len(times) < 3:
            began = time.perf_counter()
            chunk = advance()
            times.append(time.perf_counter() - began)
        processor = time.process_time() - processor
    steps = EVERY * samples
    assert np.asarray(chunk.watch.alive)[:replicas].all()
    senders = np.asarray(chunk.states.neighbors.senders)[:replicas]
    return {
        "atoms": len(setup.atoms),
        "replicas": replicas,
        "edges_in_list": int((senders < len(setup.atoms)).sum() / replicas),
        "first_steps_s": first,
        "ms_per_step": [1e3 * value / steps for value in times],
        "processor_ms_per_step": 1e3 * processor / (steps * len(times)),
        "steps_timed": steps * len(times),
        "peak_memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
