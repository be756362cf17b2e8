"""Replay against forgetting: structures of what a model was made for, labelled by the model where nobody did."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import ase
import ase.data
import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from jaxpto.calculator import JaxptoCalculator
from jaxpto.errors import InputError
from jaxpto.potential import Potential
from jaxpto.training import data
from jaxpto.training.trajectories import read_trajectories

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
        InputError: a file that is neither, elements that the model does not know, or no usable frame.
    """
    found: list[data.LabelledFrames] = []
    for path in paths:
        read = read_trajectories([str(path)])
        unknown = {z for one in read for atoms in one.frames for z in atoms.numbers.tolist()} - set(potential.elements)
        if unknown:
            symbols = ", ".join(ase.data.chemical_symbols[z] for z in sorted(unknown))
            raise InputError(f"replay {path}: {potential.name} does not know {symbols}; leave it out")
        if any(one.labelled.any() for one in read):  # then all of it must be right
            found += data.read(path)
            continue
        for one in read:
            found += data.group_by_composition(one.name, _label(one.frames, potential, reference))
            print(f"{one.name}: {len(one.frames)} structures for replay, labelled by {potential.name}")
    usable = data.usable([dataclasses.replace(frames, name=f"{PREFIX}{frames.name}") for frames in found])
    if not usable:
        raise InputError(f"replay {', '.join(map(str, paths))}: no usable frame; give other structures")
    return usable


def _label(frames: Sequence[ase.Atoms], potential: Potential, reference: dict[int, float]) -> list[data.Row]:
    rows: list[data.Row] = []
    calculators: dict[tuple[int, ...], JaxptoCalculator] = {}
    for atoms in frames:
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
    return rows
