"""Replay against forgetting: structures of what a model was made for, labelled by the model where nobody did."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import ase
import ase.data
import ase.io
import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from jaxpto.calculator import JaxptoCalculator
from jaxpto.errors import InputError
from jaxpto.potential import Potential
from jaxpto.structures import read_input
from jaxpto.training import data

PREFIX = "replay:"


def labelled_by_model(
    paths: Sequence[Path], potential: Potential, reference: dict[int, float]
) -> list[data.LabelledFrames]:
    """Trajectories "replay:NAME" of labelled data as they are, and of structures with the labels of a model.

    Args:
        paths: data as `data.read` takes them, or files of structures.
        potential: labels what has no labels, in single precision.
        reference: energies of the elements that its energies are relative to, eV.

    Raises:
        InputError: a file that is neither, or elements that the model does not know.
    """
    found = []
    for path in paths:
        try:
            trajectories = data.read(path)
        except InputError:
            trajectories = _label(path, potential, reference)
        for frames in trajectories:
            unknown = sorted({ase.data.chemical_symbols[z] for z in frames.numbers if z not in potential.elements})
            if unknown:
                raise InputError(f"replay {path}: {potential.name} does not know {', '.join(unknown)}; leave it out")
            found.append(dataclasses.replace(data.clean(frames), name=f"{PREFIX}{frames.name}"))
    return found


def _label(path: Path, potential: Potential, reference: dict[int, float]) -> list[data.LabelledFrames]:
    rows: list[data.Row] = []
    calculators: dict[tuple[int, ...], JaxptoCalculator] = {}
    for atoms in read_input(str(path), "evaluation", every=True).frames:
        # frames of one composition share the capacities of a calculator, and so its program
        calculator = calculators.setdefault(tuple(atoms.numbers.tolist()), JaxptoCalculator(potential, "float32"))
        calculator.calculate(atoms, ["energy", "forces", "stress"])
        results = calculator.results
        stress = voigt_6_to_full_3x3_stress(np.asarray(results["stress"]))
        virial = -stress * atoms.get_volume()
        energy = float(np.asarray(results["energy"])) + sum(reference[z] for z in atoms.numbers.tolist())
        forces = np.asarray(results["forces"])
        moments = np.asarray(results.get("magmoms", np.full(len(atoms), np.nan)))
        rows.append((atoms.numbers, atoms.positions, atoms.cell.array, energy, forces, virial, moments))
    print(f"{path.name}: {len(rows)} structures for replay, labelled by {potential.name}")
    return data.group_by_composition(path.stem, rows)
