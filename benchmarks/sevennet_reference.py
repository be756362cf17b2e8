"""Energies, forces and stress of a SevenNet by the sevenn package in float64.

Runs in the environment of `benchmarks.environments` that has sevenn:

    python benchmarks/sevennet_reference.py MODEL MODALITY STRUCTURES.extxyz OUT.json [NAME ...]
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import ase.io
import numpy as np
import sevenn
import torch
from e3nn.o3 import wigner_3j
from sevenn import util
from sevenn.calculator import SevenNetCalculator


def in_double(model: torch.nn.Module) -> torch.nn.Module:
    """The model in float64, with 3j tensors that were never rounded to float32."""
    torch.set_default_dtype(torch.float64)
    model = model.double()
    for name, tensor in model.named_buffers():
        if "_w3j_" in name:
            exact = wigner_3j(*map(int, name.rsplit("_", 3)[1:]), dtype=torch.float64)
            tensor.copy_(exact * torch.sign((tensor * exact).sum()))
    for layer in model.children():  # one-hot vectors, for instance, are in float32 whatever the model is
        layer.register_forward_pre_hook(widened)
    return model


def widened(layer: torch.nn.Module, arguments: tuple) -> None:
    (data,) = arguments
    for name, value in list(data.items()):
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            data[name] = value.double()


def main() -> None:
    name, modality, source, out, *names = sys.argv[1:]
    util.dtype_correct = functools.partial(util.dtype_correct, float_dtype=torch.float64)  # of edge vectors
    checkpoint = util.load_checkpoint(name)
    model = in_double(checkpoint.build_model())
    calculator = SevenNetCalculator(model, "model_instance", "cpu", modal=modality, sevennet_config=checkpoint.config)
    found = []
    for atoms in ase.io.read(source, ":"):
        if names and atoms.info["name"] not in names:
            continue
        structure = {
            "name": atoms.info["name"],
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
        }
        atoms.calc = calculator
        results = {
            "energy": float(atoms.get_potential_energy()),
            "forces": np.asarray(atoms.get_forces(), np.float64).tolist(),
            "stress": np.asarray(atoms.get_stress(voigt=False), np.float64).tolist(),
        }
        print(f"{structure['name']:32s} {results['energy']:14.6f} eV")
        found.append(structure | {"float64": results})
    package = f"sevenn {sevenn.__version__}, torch {torch.__version__}, float64"
    Path(out).write_text(json.dumps({"model": f"{name} {modality}", "package": package, "structures": found}) + "\n")


if __name__ == "__main__":
    main()
