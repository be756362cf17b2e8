"""Time ASE's NPT dynamics of PbTiO3 with one calculator in this process, trajectory included; prints a line of JSON.

Runs in the environment of the calculator, so that it needs nothing but ASE and numpy besides. `benchmarks.speed` calls
it: the protocol of the PTO-test (Nose-Hoover and Parrinello-Rahman, 2 fs, diagonal strain), a frame every 10 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import units
from ase.io.trajectory import Trajectory
from ase.md.npt import NPT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from calculator_timing import FACTORIES, lead_titanate

EVERY = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("factory", choices=FACTORIES)
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--source", default="", help="folder of the program, where it is in no package")
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--cores", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--timestep", type=float, default=2.0, help="fs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, arguments.cores)
    atoms = lead_titanate((arguments.cells,) * 3)
    atoms.calc = FACTORIES[arguments.factory](arguments)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(len(arguments.cores))
    MaxwellBoltzmannDistribution(atoms, temperature_K=300.0, rng=np.random.default_rng(0))
    Stationary(atoms)
    pfactor = 75.0**2 * units.fs  # as in the scripts of the PTO-test
    driver = NPT(
        atoms, arguments.timestep * units.fs, temperature_K=300.0, externalstress=0.0, ttime=25.0 * units.fs,
        pfactor=pfactor, mask=np.eye(3),
    )  # fmt: skip
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Trajectory(Path(folder) / "md.traj", "w", atoms) as trajectory:
        driver.attach(trajectory.write, interval=EVERY)
        driver.run(1)
        first, processor = time.perf_counter() - begin, time.process_time()
        while sum(times) < arguments.seconds or len(times) < 3:
            began = time.perf_counter()
            driver.run(1)
            times.append(time.perf_counter() - began)
        processor = time.process_time() - processor
    assert np.isfinite(atoms.get_positions()).all()
    result = {
        "atoms": len(atoms),
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
