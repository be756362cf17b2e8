"""How near energy, forces and stress come to what one core can do: operations, bytes, roofline time, time taken.

    python -m benchmarks.roofline [perovskite chgnet-0.3.0 ...] [--cells 5] [--core 0] [--rounds 5]

Floating-point operations, transcendental functions and bytes are XLA's own count of the compiled program: bytes are
operands and results of every fused kernel. The core's speed is measured in the same process: a large matrix product,
and a sum of two arrays that together take as much memory as the temporary arrays of the program, hence come from the
same level of cache or memory. The roofline time is the larger of operations / speed and bytes / bandwidth. Beside it
stands a bound that no other order of these kernels could beat either, for which the bandwidth is that of arrays within
the second-level cache. XLA counts what is in a loop once, so `perovskite` is counted with all atoms at once, as it
would run without its slices. Of models that pass their edges in slices the matrix products alone are counted, in the
traced program with the turns of its loops, for a list without skin and headroom; bytes are not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import tyro

CACHED = 400_000  # bytes of three arrays that second-level caches hold
MOVED = 800_000_000  # bytes to move for one measurement of a bandwidth
COLUMNS = {
    "atoms": ("atoms", 1.0),
    "Gflop": ("flops", 1e-9),
    "10^6 exp..": ("transcendentals", 1e-6),
    "GB": ("bytes", 1e-9),
    "Gflop/s": ("flops_per_s", 1e-9),
    "MB held": ("working_set", 1e-6),
    "GB/s": ("bytes_per_s", 1e-9),
    "cache GB/s": ("cached_bytes_per_s", 1e-9),
    "flops, ms": ("arithmetic_s", 1e3),
    "bytes, ms": ("traffic_s", 1e3),
    "ms": ("s", 1e3),
    "x roofline": ("times_roofline", 1.0),
    "x bound": ("times_bound", 1.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How near the force call comes to what one core can do.

    Attributes:
        models: converted models, or perovskite.
        cells: S of the S x S x S supercell of PbTiO3.
        core: processor core the process is bound to.
        rounds: measurements, each after one of the core's speed; medians count.
        out: JSON file; models already in it are kept.
    """

    models: tyro.conf.Positional[tuple[str, ...]] = ("perovskite",)
    cells: int = 5
    core: int = 0
    rounds: int = 5
    out: Path = Path("benchmarks/results/roofline.json")


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """Least processor time of several calls (the least disturbed one)."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


def core_speed(working_set: int) -> dict[str, float]:
    """Operations per second of this core, and bytes: of arrays of so many bytes, and of the second-level cache."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    n = 1024
    matrix = jax.random.normal(jax.random.PRNGKey(0), (n, n), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    found = {"flops_per_s": 2 * n**3 / seconds_of(lambda: product(matrix).block_until_ready(), 10)}
    for name, size in (("cached_bytes_per_s", CACHED), ("bytes_per_s", working_set)):
        length = max(size // 12, 1)
        times = max(1, MOVED // size)
        first, second, total = (np.ones(length, np.float32) for _ in range(3))

        def add(times: int = times, arrays: tuple[np.ndarray, ...] = (first, second, total)) -> None:
            for _ in range(times):
                np.add(arrays[0], arrays[1], out=arrays[2])

        found[name] = 3 * 4 * length * times / seconds_of(add, 5)
    return found


def product_operations(jaxpr: Any) -> int:
    """Floating-point operations of the matrix products of a traced program, the turns of its loops counted.

    Raises:
        SystemExit: a product in a loop of which nobody knows how often it turns.
    """
    total = 0
    for equation in jaxpr.eqns:
        inner = [
            product_operations(getattr(part, "jaxpr", part))
            for value in equation.params.values()
            for part in (value if isinstance(value, tuple | list) else (value,))
            if hasattr(getattr(part, "jaxpr", part), "eqns")
        ]
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                shape = equation.invars[0].aval.shape
                total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
            case "scan":
                total += equation.params["length"] * sum(inner)
            case "cond":
                total += max(inner)
            case "while" if any(inner):
                raise SystemExit("a matrix product in a loop without end; its operations cannot be counted")
            case _:
                total += sum(inner)
    return total


def measure(model: str, config: Config) -> dict[str, Any]:
    """Counts and times of one model."""
    import jax
    import numpy as np

    from jaxpto.devices.compiled import WIDE
    from jaxpto.models import perovskite
    from jaxpto.models.catalogue import load_potential
    from jaxpto.neighbors import build, in_whole_vectors
    from jaxpto.structures import builtin_structure
    from jaxpto.system import from_ase

    atoms = builtin_structure("PbTiO3-tetragonal").repeat(config.cells)
    atoms.rattle(0.05, seed=0)
    potential = load_potential(model, np.dtype("float32"))
    system = from_ase(atoms, np.float32)
    # for perovskite as in a sweep
    layout = in_whole_vectors(potential.allocate([system], potential.usual_skin, headroom=1.05))
    neighbors = build(system, layout)

    def compile_evaluate() -> Any:
        evaluate = jax.jit(lambda p, s, n: p.evaluate(s, n), compiler_options=WIDE)
        return evaluate.lower(potential, system, neighbors).compile()

    compiled = compile_evaluate()
    with mock.patch.object(perovskite, "SLICE", len(atoms)):
        counted = compile_evaluate()
    if " while(" in counted.as_text():
        exact = build(system, potential.allocate([system], skin=0.0, headroom=1.0))
        traced = jax.make_jaxpr(lambda p, s, n: p.evaluate(s, n))(potential, system, exact)
        counts = {"flops": float(product_operations(traced.jaxpr)), "transcendentals": None, "bytes": None}
    else:
        costs = counted.cost_analysis()
        counts = {
            "flops": costs["flops"],
            "transcendentals": costs.get("transcendentals", 0.0),
            "bytes": costs["bytes accessed"],
        }

    def call() -> None:
        jax.block_until_ready(compiled(potential, system, neighbors))

    call()
    working_set = compiled.memory_analysis().temp_size_in_bytes
    rounds = [core_speed(working_set) | {"s": seconds_of(call, 5)} for _ in range(config.rounds)]
    core = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    moved = counts["bytes"]
    arithmetic = counts["flops"] / core["flops_per_s"]
    traffic, cached = (None if moved is None else moved / core[key] for key in ("bytes_per_s", "cached_bytes_per_s"))
    times = {
        "arithmetic_s": arithmetic,
        "traffic_s": traffic,
        "times_roofline": core["s"] / max(arithmetic, traffic or 0.0),
        "times_bound": core["s"] / max(arithmetic, cached or 0.0),
    }
    return {"atoms": len(atoms), "working_set": working_set} | counts | core | times | {"rounds": rounds}


def run(config: Config) -> None:
    """Measure, print and store."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {config.core})
    from jaxpto.console.command import set_up_jax
    from jaxpto.reporting.provenance import provenance

    set_up_jax("float32")
    document = json.loads(config.out.read_text()) if config.out.exists() else {}
    print(f"{'model':20s}" + "".join(f"{head:>12s}" for head in COLUMNS))
    for model in config.models:
        one = measure(model, config)
        numbers = [None if one[key] is None else one[key] * factor for key, factor in COLUMNS.values()]
        cells = ["-" if number is None else f"{number:.3g}" for number in numbers]
        print(f"{model:20s}" + "".join(f"{cell:>12s}" for cell in cells), flush=True)
        options = f"--cells {config.cells} --rounds {config.rounds}"
        command = {"command": f"python -m benchmarks.roofline {model} {options}"}
        document[model] = provenance() | command | {"dtype": "float32", "cores": 1} | one
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    run(tyro.cli(Config))
