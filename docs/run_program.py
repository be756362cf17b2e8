"""Run a program that `python -m jaxpto.export_model` wrote; copy these lines into yours: they need JAX and NumPy alone.

    python run_program.py model.stablehlo atoms.npz

atoms.npz holds `positions` [n, 3] and `cell` [3, 3] in Angstrom, in the precision of the program; the atoms are those,
in the order, that model.stablehlo.json names.
"""

import json
import sys

import jax
import numpy as np
from jax import export


def load(path):
    """The function (positions, cell) -> (energy, forces, stress, fits) in a file."""
    with open(f"{path}.json") as file:
        facts = json.load(file)
    jax.config.update("jax_enable_x64", facts["dtype"] == "float64")
    with open(path, "rb") as file:
        program = export.deserialize(bytearray(file.read()))
    return jax.jit(program.call)  # compiled once


if __name__ == "__main__":
    given = np.load(sys.argv[2])
    energy, forces, stress, fits = load(sys.argv[1])(given["positions"], given["cell"])
    print(json.dumps([float(energy), np.asarray(forces).tolist(), np.asarray(stress).tolist(), bool(fits)]))
    assert "jaxpto" not in sys.modules
