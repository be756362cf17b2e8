"""The text file of a NEP model, which GPUMD, LAMMPS and calorine read: its numbers in their order."""

from __future__ import annotations

import math
from typing import Any

import ase.data
import numpy as np

from jaxpto.models.charged_nep import ChargedNEP
from jaxpto.models.nep import NEP

# Most neighbours that GPUMD makes room for, per volume of a sphere: those of a dense crystal (0.15 atoms/Angstrom^3)
DENSEST = 0.15


def parameters_of(model: NEP | ChargedNEP, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters from the numbers of a file: nets, coefficients of the descriptors, scales of the descriptors.

    Args:
        model: hyperparameters.
        numbers: all numbers after the header.
    """
    shapes, place = model.shapes, 0

    def take(*shape: int) -> np.ndarray:
        nonlocal place
        size = int(np.prod(shape))
        part, place = numbers[place : place + size].reshape(shape), place + size
        return part

    each, hidden, d = shapes["weight0"]
    names = ("weight0", "bias0", "weight1", *(("charge",) if "charge" in shapes else ()))
    nets = [(take(hidden, d), *(take(hidden) for _ in names[1:])) for _ in range(each)]
    found = {name: np.stack(parts) for name, parts in zip(names, zip(*nets, strict=True), strict=True)}
    if "charge" in shapes:
        found["root_dielectric"] = take()
    found["bias1"] = take()
    for name in ("radial", "angular"):  # first descriptor, function, element of the atom, that of the neighbour
        n, _, channels, functions = shapes[name]
        found[name] = np.transpose(take(channels, functions, n, n), (2, 3, 0, 1))
    return found | {"scaler": take(d)}


def numbers_of(params: dict[str, Any]) -> np.ndarray:
    """The numbers of a file in their order; the inverse of `parameters_of`."""
    given = {name: np.asarray(array, np.float64) for name, array in params.items()}
    names = [name for name in ("weight0", "bias0", "weight1", "charge") if name in given]
    nets = zip(*(given[name] for name in names), strict=True)
    parts = [part for net in nets for part in net]
    parts += [given[name] for name in ("root_dielectric", "bias1") if name in given]
    parts += [np.transpose(given[name], (2, 3, 0, 1)) for name in ("radial", "angular")]
    return np.concatenate([np.ravel(part) for part in (*parts, given["scaler"])])


def nep_text(model: NEP | ChargedNEP, params: dict[str, Any]) -> str:
    """The file of a model, its numbers with the digits of single precision.

    Args:
        model: hyperparameters.
        params: parameters.
    """
    charged = isinstance(model, ChargedNEP)
    version, charge = (4, f"_charge{model.mode}") if charged else (3 if model.one_net else 4, "")
    kind = f"nep{version}{'_zbl' if model.repulsion else ''}{charge}"
    symbols = " ".join(ase.data.chemical_symbols[z] for z in model.elements)
    room = [math.ceil(DENSEST * 4.0 / 3.0 * math.pi * reach**3) for reach in (model.cutoff, model.angular_cutoff)]
    lines = [
        f"{kind} {len(model.elements)} {symbols}",
        *([f"zbl {model.repulsion[0]:g} {model.repulsion[1]:g}"] if model.repulsion else []),
        f"cutoff {model.cutoff:g} {model.angular_cutoff:g} {room[0]} {room[1]}",
        f"n_max {model.radial - 1} {model.angular - 1}",
        f"basis_size {model.radial_basis - 1} {model.angular_basis - 1}",
        f"l_max {model.highest} {2 if model.four_body else 0} {1 if model.five_body else 0}",
        f"ANN {model.hidden} 0",
    ]
    return "\n".join([*lines, *(f"{number:16.8e}" for number in numbers_of(params))]) + "\n"
