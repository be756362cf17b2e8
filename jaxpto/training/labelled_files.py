"""Training data in files that ASE reads: extended xyz, vasprun.xml, OUTCAR, ASE's own .traj and .json, ..."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase
import ase.data
import ase.io
import numpy as np
from ase.geometry import minkowski_reduce

from jaxpto.errors import InputError
from jaxpto.structures.labels import FrameLabels, energies_of, fixed_note, labels_of, listed, names_in, unused_note
from jaxpto.training.frames import LabelledFrames, group_by_composition

ALONE = 8.0  # Angstrom, the shortest distance between images at which a single atom is no crystal of its element


def read_ase(path: Path, say: Callable[[str], None]) -> list[LabelledFrames]:
    """Read a file with energies and forces, and stress or virial if it has them; one trajectory for each composition.

    Where every frame has a `free_energy` that is used, because the forces of a calculation with smeared occupations
    are derivatives of it and not of the energy extrapolated to zero width; else `energy`. Forces are those in the
    file, whatever constraints it holds. The virial of extended xyz is in eV and -stress * volume. Isolated atoms are
    left out.

    Args:
        path: the file.
        say: called with a line about everything that is left out or not used.

    Raises:
        InputError: the file is unreadable, or a frame is not periodic, lacks a cell, energy or forces, or contradicts
            itself.
    """
    try:
        images = ase.io.read(path, index=":", do_not_split_by_at_sign=True)
    except Exception as error:  # ASE's readers raise whatever they like
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{path}: unreadable ({why}); give a DeePMD npy folder or an extxyz file") from error
    images = images if isinstance(images, list) else [images]
    alone = {index: atoms for index, atoms in enumerate(images) if _is_alone(atoms)}
    kept = {index: atoms for index, atoms in enumerate(images) if index not in alone}
    labels = [_labels(atoms, f"{path}: frame {index}") for index, atoms in kept.items()]
    if alone:
        which = listed([f"{atoms.symbols[0]} in frame {index}" for index, atoms in alone.items()])
        say(f"{path.name}: left out {len(alone)} isolated atoms ({which}); energies count from a fit to the crystals")
    crystals = list(kept.values())
    for note in (*unused_note(path, images), *fixed_note(path, crystals, labels)):
        say(note)
    rows = [
        (
            atoms.numbers,
            atoms.positions,
            atoms.cell.array,
            float(energy),
            one.forces,
            np.full((3, 3), np.nan) if one.virial is None else one.virial,
            np.full(len(atoms), np.nan) if one.moments is None else one.moments,
        )
        for atoms, one, energy in zip(crystals, labels, energies_of(path, crystals, labels, say), strict=True)
        if one.forces is not None
    ]
    return group_by_composition(path.stem, rows)


def _is_alone(atoms: ase.Atoms) -> bool:
    """Whether it is a single atom far from its own images, or without any."""
    if len(atoms) != 1:
        return False
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        return True
    return bool(np.linalg.norm(minkowski_reduce(atoms.cell.array)[0], axis=1).min() > ALONE)


def _labels(atoms: ase.Atoms, where: str) -> FrameLabels:
    """Labels of a crystal with energy and forces."""
    if len(atoms) == 0:
        raise InputError(f"{where} has no atoms; leave it out")
    if (atoms.numbers < 1).any():
        raise InputError(f"{where}: atom {np.argmax(atoms.numbers < 1)} has no element; name it or leave the frame out")
    if atoms.cell.rank < 3:
        raise InputError(
            f"{where} has no cell of three vectors; the model is for crystals: give a molecule a periodic cell with "
            "vacuum, or leave it out"
        )
    if not atoms.pbc.all():
        flags = " ".join("T" if periodic else "F" for periodic in atoms.pbc)
        raise InputError(
            f'{where} has pbc="{flags}"; the model is for crystals: leave it out, or write pbc="T T T" if that is wrong'
        )
    if _is_disordered(atoms):
        raise InputError(f"{where} has partly occupied sites; a frame that was computed has none: leave it out")
    labels = labels_of(atoms, where)
    missing = ["energy"] * (not labels.has_energy) + ["forces"] * (labels.forces is None)
    if missing:
        there = listed(sorted(names_in(atoms))) or "nothing else"
        raise InputError(
            f"{where} has no {' and no '.join(missing)} (it has {there}); label it with the keys energy and forces, or "
            "leave it out"
        )
    return labels


def _is_disordered(atoms: ase.Atoms) -> bool:
    occupancy = atoms.info.get("occupancy")
    if not isinstance(occupancy, dict):
        return False
    return any(set(site.values()) != {1} and set(site.values()) != {1.0} for site in occupancy.values())
