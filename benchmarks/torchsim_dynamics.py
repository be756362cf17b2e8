"""Time torch-sim's NPT dynamics of PbTiO3 with SevenNet in this process; prints one line of JSON.

Runs in an environment with torch-sim and sevenn; `benchmarks.speed` calls it. torch-sim has no Parrinello-Rahman
barostat: this is its Nose-Hoover one, of the volume alone, 2 fs, a frame every 10 steps.
Its Langevin one loses the cell.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import torch
import torch_sim as ts
from calculator_timing import lead_titanate
from sevenn.util import model_from_checkpoint, pretrained_name_to_path
from torch_sim.integrators.npt import npt_nose_hoover
from torch_sim.models.sevennet import SevenNetModel
from torch_sim.units import UnitSystem

EVERY = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--cores", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--timestep", type=float, default=2.0, help="fs")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, arguments.cores)
    torch.set_num_threads(len(arguments.cores))
    network, _ = model_from_checkpoint(pretrained_name_to_path(arguments.model))
    model = SevenNetModel(model=network, device="cpu", dtype=torch.float32)
    state = ts.initialize_state(lead_titanate((arguments.cells,) * 3), model.device, model.dtype)
    metal = UnitSystem.metal
    kT = torch.tensor(300.0 * metal.temperature)
    start, update = npt_nose_hoover(
        model=model,
        dt=torch.tensor(1e-3 * arguments.timestep * metal.time),
        kT=kT,
        external_pressure=torch.tensor(0.0),
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        reporter = ts.TrajectoryReporter([str(Path(folder) / "md.h5")], state_frequency=EVERY)
        state, step = start(state), 0

        def advance() -> None:
            nonlocal state, step
            step += 1
            state = update(state, kT=kT)
            reporter.report(state, step, model=model)

        advance()
        first, processor = time.perf_counter() - begin, time.process_time()
        while sum(times) < arguments.seconds or len(times) < 3:
            began = time.perf_counter()
            advance()
            times.append(time.perf_counter() - began)
        processor = time.process_time() - processor
        reporter.finish()
    assert torch.isfinite(state.positions).all()
    result = {
        "atoms": len(state.positions),
        "replicas": 1,
        "first_steps_s": first,
        "ms_per_step": [1e3 * value for value in times],
        "processor_ms_per_step": 1e3 * processor / len(times),
        "steps_timed": len(times),
        "peak_memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
