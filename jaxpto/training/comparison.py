"""Evaluated structures against the labels that they were read with, on a common zero of energy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ase
import numpy as np
from ase.data import chemical_symbols
from ase.stress import voigt_6_to_full_3x3_stress

from jaxpto.reporting.parity import Parity, Quantities
from jaxpto.training.element_energies import composition_counts, fit_element_energies
from jaxpto.training.trajectories import LabelledTrajectory

Zero = Literal["auto", "fit", "same"]
FAR = 1.0  # eV/atom, an error of the energy that no usable model makes


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Labels and predictions, and how their zeros of energy were made the same.

    Attributes:
        parities: trajectories with at least one labelled frame.
        offsets: energy of each element that was added to the predictions, eV, by symbol.
        notes: one line on the zero of energy, and on each thing that is not compared.
    """

    parities: tuple[Parity, ...]
    offsets: dict[str, float]
    notes: tuple[str, ...]


def compare(
    trajectories: Sequence[LabelledTrajectory],
    evaluated: Sequence[ase.Atoms],
    references: Mapping[str, float],
    zero: Zero = "auto",
) -> Comparison:
    """Put predictions and labels side by side.

    Energies are total energies of the labels' calculation, while a model may count from another zero for each element:
    what it was trained relative to is added, or the difference is fitted. The energies in the parities are relative to
    a fit of one energy for each element to the labels, which changes no error.

    Args:
        trajectories: structures and labels.
        evaluated: the same structures, all in one sequence, with their predictions as results.
        references: energies that the model was trained relative to, eV, by symbol of the element; empty if there are
            none.
        zero: "auto" adds `references` or, where there are none, does as "fit", which fits one energy for each element;
            "same" does neither.
    """
    numbers = [atoms.numbers for atoms in evaluated]
    elements = tuple(sorted({z for own in numbers for z in own.tolist()}))
    counts = composition_counts(numbers, elements)
    labels = np.concatenate([one.energies for one in trajectories])
    predicted = np.array([_results(atoms)["energy"] for atoms in evaluated])
    notes: list[str] = []
    shift = np.zeros(len(elements))
    if zero == "auto" and all(chemical_symbols[z] in references for z in elements):
        shift = np.array([references[chemical_symbols[z]] for z in elements])
        notes.append("energies: the reference energies of the model's elements are added to its predictions")
        apart = (predicted + counts @ shift - labels) / counts.sum(axis=1)
        if np.isfinite(apart).any() and abs(np.nanmean(apart)) > FAR:
            notes.append(
                f"energies differ by {np.nanmean(apart):.4g} eV/atom on average: the labels count from another zero "
                "than the model's training data (`energy_zero=fit` fits it, `energy_zero=same` adds nothing)"
            )
    elif zero != "same" and np.isfinite(labels).any():
        shift, exact = fit_element_energies(counts, labels - predicted)
        notes.append(
            f"energies: one energy for each of {len(elements)} elements is fitted to labels minus predictions, and the "
            "errors are relative to that (`energy_zero=same` compares energies as they are)"
        )
        if exact.any():
            labels = np.where(exact, np.nan, labels)
            notes.append(f"energies of {exact.sum()} frames are not compared: the fit meets them whatever they are")
    base = fit_element_energies(counts, labels)[0] if np.isfinite(labels).any() else np.zeros(len(elements))
    relative, predicted = labels - counts @ base, predicted + counts @ (shift - base)
    parities, first = [], 0
    for one in trajectories:
        own = np.arange(first, first + len(one.frames))[one.labelled]
        first += len(one.frames)
        notes += _missing(one)
        if len(own):
            parities.append(_parity(one, [evaluated[i] for i in own], relative[own], predicted[own]))
    notes += _unpredicted(parities)
    offsets = {chemical_symbols[z]: float(energy) for z, energy in zip(elements, shift, strict=True)}
    return Comparison(tuple(parities), offsets, tuple(notes))


def _missing(one: LabelledTrajectory) -> list[str]:
    """Lines on frames without labels, and on labels that only some of the others have."""
    total, labelled = len(one.frames), int(one.labelled.sum())
    notes = [f"{one.name}: {total - labelled} of {total} frames have no labels"] if labelled < total else []
    some = {what: int(has.sum()) for what, has in one.has.items()}
    return notes + [
        f"{one.name}: {count} of {labelled} labelled frames have {what}"
        for what, count in some.items()
        if 0 < count < labelled
    ]


def _unpredicted(parities: Sequence[Parity]) -> list[str]:
    """Lines on labels that the model has nothing to compare with."""
    lost = {
        "stresses": lambda one: (one.labels.virials, one.predictions.virials),
        "magnetic moments": lambda one: (one.labels.moments, one.predictions.moments),
    }
    return [
        f"{what} of {parity.name} are not compared: the model predicts none"
        for what, pair in lost.items()
        for parity in parities
        if (np.isfinite(pair(parity)[0]) & np.isnan(pair(parity)[1])).any()
    ]


def _results(atoms: ase.Atoms) -> dict[str, Any]:
    return {} if atoms.calc is None else atoms.calc.results


def _parity(
    trajectory: LabelledTrajectory, evaluated: Sequence[ase.Atoms], labels: np.ndarray, predicted: np.ndarray
) -> Parity:
    """The labelled frames of one trajectory."""
    index = np.flatnonzero(trajectory.labelled)
    volumes = np.array([atoms.get_volume() for atoms in evaluated])
    results = [_results(atoms) for atoms in evaluated]
    nothing = np.full(6, np.nan)
    stresses = voigt_6_to_full_3x3_stress(np.array([one.get("stress", nothing) for one in results]))
    return Parity(
        trajectory.name,
        index,
        np.array([len(atoms) for atoms in evaluated]),
        np.concatenate([atoms.numbers for atoms in evaluated]),
        volumes,
        Quantities(
            labels,
            np.concatenate([trajectory.forces[i] for i in index]),
            trajectory.virials[index],
            np.concatenate([trajectory.moments[i] for i in index]),
        ),
        Quantities(
            predicted,
            np.concatenate([one["forces"] for one in results]),
            -stresses * volumes[:, None, None],
            np.concatenate(
                [one.get("magmoms", np.full(len(atoms), np.nan)) for one, atoms in zip(results, evaluated, strict=True)]
            ),
        ),
    )
