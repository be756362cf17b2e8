"""Time of the neighbour list against the number of atoms: building, checking, edge vectors; a table and JSON.

    taskset -c 0 python benchmarks/neighbor_scaling.py

Times are CPU times of one thread (the least of several calls), so that other load on the machine counts little.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np

from jaxpto.neighbors import Neighbors, allocate, build, edge_vectors, needs_rebuild, refresh
from jaxpto.system import System, from_ase, stack

SIZES = ((2, 2, 2), (3, 3, 3), (5, 5, 5), (8, 8, 8), (10, 10, 10), (16, 16, 16))
RESULTS = Path(__file__).parent / "results" / "neighbor_scaling.json"


def perovskite(repeats: tuple[int, int, int], seed: int = 0) -> ase.Atoms:
    """Thermally displaced PbTiO3."""
    cell = ase.Atoms(
        "PbTiO3",
        scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.54], [0.5, 0.5, 0.11], [0.5, 0, 0.62], [0, 0.5, 0.62]],
        cell=[3.89, 3.89, 4.18],
        pbc=True,
    )
    atoms = cell.repeat(repeats)
    atoms.rattle(0.1, seed=seed)
    return atoms


def cpu_seconds(function: Callable, *arguments: object, repeats: int) -> float:
    """Least CPU time of a call, compilation apart."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(function(*arguments))
        times.append(time.process_time() - start)
    return min(times)


def measure(repeats: tuple[int, int, int], cutoff: float, skin: float) -> dict[str, float]:
    """One row of the table."""
    system = from_ase(perovskite(repeats))
    n = system.positions.shape[0]
    layout = allocate([system], cutoff, skin, by_species=True)
    neighbors = build(system, layout)
    if neighbors.overflow:
        raise RuntimeError(f"the list of {n} atoms overflowed")
    calls = 20 if n <= 5000 else 5
    seconds = {
        "build": cpu_seconds(build, system, layout, repeats=calls),
        "needs_rebuild": cpu_seconds(jax.jit(needs_rebuild), neighbors, system, repeats=calls),
        "edge_vectors": cpu_seconds(jax.jit(edge_vectors), system, neighbors, repeats=calls),
    }
    return {
        "atoms": n,
        "edges_per_atom": float(jnp.sum(neighbors.senders < n)) / n,
        "slots_per_atom": sum(layout.slots),
        "candidates_per_atom": sum(layout.candidates),
        **{f"{name}_ms": 1e3 * value for name, value in seconds.items()},
        **{f"{name}_us_per_atom": 1e6 * value / n for name, value in seconds.items()},
        "peak_memory_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def measure_refresh(cutoff: float, skin: float, replicas: int = 8, steps: int = 50) -> dict[str, float]:
    """Cost of `refresh` within a loop of steps when no replica needs it, and of one call when one or all need it."""
    system = from_ase(perovskite((5, 5, 5)))
    layout = allocate([system], cutoff, skin, by_species=True)
    systems = stack([system] * replicas)
    neighbors = jax.jit(jax.vmap(lambda s: build(s, layout)))(systems)
    active = jnp.ones(replicas, bool)

    @jax.jit
    def loop(systems: System, neighbors: Neighbors) -> Neighbors:
        return jax.lax.fori_loop(0, steps, lambda _, lists: refresh(systems, lists, active), neighbors)

    refresh_all = jax.jit(lambda systems: refresh(systems, neighbors, active))
    shifted = [
        dataclasses.replace(systems, positions=systems.positions.at[:count, 0, 0].add(1.0)) for count in (1, replicas)
    ]
    return {
        "replicas": replicas,
        "not_needed_ms_per_step": 1e3 * cpu_seconds(loop, systems, neighbors, repeats=5) / steps,
        "one_needed_ms": 1e3 * cpu_seconds(refresh_all, shifted[0], repeats=10),
        "all_needed_ms": 1e3 * cpu_seconds(refresh_all, shifted[1], repeats=10),
    }


def hardware() -> dict[str, object]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": models[0] if models else platform.processor(),
        "cores_used": affinity,
        "load_average": os.getloadavg(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cutoff", type=float, default=6.0, help="Angstrom")
    parser.add_argument("--skin", type=float, default=0.3, help="Angstrom")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    print(f"{'atoms':>7} {'edges':>6} {'slots':>6} {'build':>9} {'':>9} {'check':>9} {'vectors':>9} {'memory':>7}")
    print(f"{'':>7} {'/atom':>6} {'/atom':>6} {'ms':>9} {'us/atom':>9} {'us/atom':>9} {'us/atom':>9} {'GB':>7}")
    rows = []
    for repeats in SIZES:
        row = measure(repeats, options.cutoff, options.skin)
        rows.append(row)
        print(
            f"{row['atoms']:7d} {row['edges_per_atom']:6.1f} {row['slots_per_atom']:6d} {row['build_ms']:9.3f} "
            f"{row['build_us_per_atom']:9.3f} {row['needs_rebuild_us_per_atom']:9.3f} "
            f"{row['edge_vectors_us_per_atom']:9.3f} {row['peak_memory_GB']:7.2f}",
            flush=True,
        )
    batch = measure_refresh(options.cutoff, options.skin)
    print("refresh, 8 replicas of 625 atoms:", {name: round(value, 3) for name, value in batch.items()})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"cutoff": options.cutoff, "skin": options.skin, "hardware": hardware(), "rows": rows, "refresh": batch}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
