"""Relaxation of many structures: batched on the device against ASE's BFGS on the calculator of the same model.

    python -m benchmarks.batched_relaxation [--structures 64] [--rounds 3] [--cores 1]

Strained, rattled five-atom cells of PbTiO3 are relaxed to the same bound by both, in one process bound to its cores,
taking turns (A B A B ...). The first turn of each is left out of the medians: it holds the compilation, which is stored
apart. ASE's linear algebra runs on one thread, because more of them slow these small matrices down.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path


def structures(number: int, strain: float, rattle: float) -> list:
    """Tetragonal PbTiO3 with random strains and displacements of the given size (Angstrom)."""
    import numpy as np

    from jaxpto.structures import builtin_structure

    generator = np.random.default_rng(0)
    cells = []
    for _ in range(number):
        atoms = builtin_structure("PbTiO3-tetragonal")
        random = generator.normal(size=(3, 3)) * strain
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (random + random.T) / 2), scale_atoms=True)
        atoms.positions += generator.normal(size=(5, 3)) * rattle
        cells.append(atoms)
    return cells


def measure(arguments: argparse.Namespace) -> dict:
    """Seconds of each turn, and what both reached."""
    import jax
    import numpy as np

    from jaxpto.calculator import JaxptoCalculator
    from jaxpto.console.command import configure_devices, set_up_jax
    from jaxpto.relaxation.batched import relax_batched
    from jaxpto.relaxation.target import Relaxed, Target
    from jaxpto.relaxation.with_ase import relax_with_ase

    set_up_jax(arguments.dtype)
    jax.config.update("jax_enable_compilation_cache", False)  # so that the first turn really compiles
    configure_devices(arguments.cores)
    cells = structures(arguments.structures, arguments.strain, arguments.rattle)
    target = Target(arguments.fmax)
    calculator = JaxptoCalculator(arguments.model, arguments.dtype)

    def one_by_one() -> list[Relaxed]:
        return [relax_with_ase(atoms, calculator, target) for atoms in cells]

    def together() -> list[Relaxed]:
        return relax_batched(cells, calculator.potential, target)

    seconds: dict[str, list[float]] = {"batched": [], "ase": []}
    outcomes: dict[str, list[Relaxed]] = {}
    for _ in range(arguments.rounds + 1):
        for name, relax in (("batched", together), ("ase", one_by_one)):
            begin = time.perf_counter()
            outcomes[name] = relax()
            seconds[name].append(time.perf_counter() - begin)
    energies = {name: np.array([relaxed.energy for relaxed in found]) for name, found in outcomes.items()}
    steps = {name: [relaxed.steps for relaxed in found] for name, found in outcomes.items()}
    turns = {name: values[1:] for name, values in seconds.items()}
    return {
        "first_turn_seconds": {name: values[0] for name, values in seconds.items()},
        "turns_seconds": turns,
        "structures_per_second": {
            name: arguments.structures / statistics.median(values) for name, values in turns.items()
        },
        "ratios": [ase / batched for ase, batched in zip(turns["ase"], turns["batched"], strict=True)],
        "evaluations_per_structure": {name: 1 + statistics.mean(values) for name, values in steps.items()},
        "most_evaluations": {name: 1 + max(values) for name, values in steps.items()},
        "not_converged": {name: sum(not relaxed.converged for relaxed in found) for name, found in outcomes.items()},
        "largest_energy_difference_eV": float(np.abs(energies["ase"] - energies["batched"]).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--model", default="perovskite")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--fmax", type=float, default=1e-3, help="eV/Angstrom")
    parser.add_argument("--strain", type=float, default=0.02)
    parser.add_argument("--rattle", type=float, default=0.1, help="Angstrom")
    parser.add_argument("--out", default="benchmarks/results/batched_relaxation.json")
    arguments = parser.parse_args()
    os.environ.update({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})  # before numpy is imported
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    result = measure(arguments)

    from jaxpto.reporting.provenance import provenance

    document = provenance() | {"settings": vars(arguments)} | result
    document["command"] = "python -m benchmarks.batched_relaxation " + " ".join(sys.argv[1:])
    Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n")
    for name, values in result["turns_seconds"].items():
        print(
            f"{name:8s} {statistics.median(values):8.2f} s for {arguments.structures} structures, "
            f"{result['evaluations_per_structure'][name]:.1f} evaluations each, at most "
            f"{result['most_evaluations'][name]}, {result['not_converged'][name]} not converged "
            f"(first turn {result['first_turn_seconds'][name]:.1f} s)"
        )
    ratios = result["ratios"]
    print(f"ase / batched: {statistics.median(ratios):.2f} (of {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    print(f"largest difference of the energies reached: {result['largest_energy_difference_eV']:.1e} eV")


if __name__ == "__main__":
    main()
