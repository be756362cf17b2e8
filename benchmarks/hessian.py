"""Force constants by automatic differentiation against phonopy's finite displacements: seconds and agreement.

    python -m benchmarks.hessian [--supercells 2 4] [--rounds 3] [--model perovskite] [--out FILE.json]

PbTiO3 as relaxed by the model, double precision, one core, the same forces. The displacements are timed as often as the
tetragonal symmetry asks for (and as often as a crystal without symmetry would need, in proportion); the Hessian has a
row for each coordinate of the primitive cell and takes no symmetry. Compilation is apart, both methods take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def measure(size: int, model: str, rounds: int) -> dict[str, Any]:
    """Time both methods in a supercell of size^3 cells."""
    from jaxpto.calculator import JaxptoCalculator
    from jaxpto.lattice_dynamics.phonopy_bridge import (
        displacement_force_constants,
        hessian_force_constants,
        largest_force,
        make_phonopy,
    )
    from jaxpto.relaxation.target import Target
    from jaxpto.relaxation.with_ase import relax_with_ase
    from jaxpto.structures import builtin_structure

    calculator = JaxptoCalculator(model)
    relaxed = relax_with_ase(builtin_structure("PbTiO3-tetragonal"), calculator, Target(fmax=1e-4))
    phonon = make_phonopy(relaxed.atoms, (size, size, size))

    def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
        begin = time.perf_counter()
        result = function(*arguments)
        return time.perf_counter() - begin, result

    largest_force(phonon, calculator)  # compiles the forces
    first_hessian, hessian = timed(hessian_force_constants, phonon, calculator.potential)
    seconds: dict[str, list[float]] = {"hessian": [], "displacement": []}
    for _ in range(rounds):
        seconds["hessian"].append(timed(hessian_force_constants, phonon, calculator.potential)[0])
        spent, displaced = timed(displacement_force_constants, phonon, calculator)
        seconds["displacement"].append(spent)
    number = len(phonon.displacements)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    frequencies = []
    for constants in (hessian, displaced):
        phonon.force_constants = constants
        phonon.run_mesh([2, 2, 2], is_gamma_center=True)
        frequencies.append(phonon.mesh.frequencies)
    return {
        "atoms": len(phonon.supercell),
        "rows": 3 * len(phonon.primitive),
        "displacements": number,
        "displacements_without_symmetry": 6 * len(phonon.primitive),
        "seconds": seconds,
        "hessian_s": medians["hessian"],
        "displacement_s": medians["displacement"],
        "displacement_without_symmetry_s": medians["displacement"] * 6 * len(phonon.primitive) / number,
        "hessian_first_call_s": first_hessian,
        "largest_difference_THz": float(np.abs(frequencies[0] - frequencies[1]).max()),
        "residual_force": relaxed.residual_force,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--supercells", type=int, nargs="+", default=(2, 4))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="perovskite")
    parser.add_argument("--out", default="benchmarks/results/hessian.json")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])

    from jaxpto.console.command import set_up_jax
    from jaxpto.reporting.provenance import provenance

    set_up_jax("float32")
    rows = {}
    print(
        f"{'supercell':10s} {'atoms':>6s} {'hessian':>10s} {'displaced':>10s} {'no symmetry':>12s} {'difference':>19s}"
    )
    for size in arguments.supercells:
        row = rows[f"{size}x{size}x{size}"] = measure(size, arguments.model, arguments.rounds)
        print(
            f"{size}x{size}x{size:<6d} {row['atoms']:6d} {row['hessian_s']:8.2f} s {row['displacement_s']:8.2f} s "
            f"{row['displacement_without_symmetry_s']:10.2f} s {row['largest_difference_THz']:15.4f} THz",
            flush=True,
        )
    document = provenance() | {"model": arguments.model, "dtype": "float64", "rows": rows}
    document["command"] = "python -m benchmarks.hessian " + " ".join(sys.argv[1:])
    Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
