"""Training data in files that ASE reads: extended xyz, vasprun.xml, OUTCAR, ASE's own .traj and .json, ..."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.data
import ase.io
import numpy as np
from ase.constraints import FixAtoms
from ase.geometry import minkowski_reduce
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from jaxpto.errors import InputError
from jaxpto.training.frames import LabelledFrames, group_by_composition

VIRIALS = ("virial", "virials")  # keys of extended xyz
ALONE = 8.0  # Angstrom, the shortest distance between images at which a single atom is no crystal of its element
LISTED = 8  # names in a line at most


@dataclasses.dataclass(frozen=True)
class _Frame:
    """One frame as it was read: energies in eV (None where there is none), forces in eV/Angstrom, virial in eV."""

    atoms: ase.Atoms
    energy: float | None
    free_energy: float | None
    forces: np.ndarray
    virial: np.ndarray


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
    frames = [_labelled(atoms, f"{path}: frame {i}") for i, atoms in enumerate(images) if i not in alone]
    if alone:
        which = _listed([f"{atoms.symbols[0]} in frame {index}" for index, atoms in alone.items()])
        say(f"{path.name}: left out {len(alone)} isolated atoms ({which}); energies count from a fit to the crystals")
    _tell_unused(path, images, say)
    _tell_fixed(path, frames, say)
    energies = _energies(path, frames, say)
    rows = [
        (f.atoms.numbers, f.atoms.positions, f.atoms.cell.array, energy, f.forces, f.virial)
        for f, energy in zip(frames, energies, strict=True)
    ]
    return group_by_composition(path.stem, rows)


def _is_alone(atoms: ase.Atoms) -> bool:
    """Whether it is a single atom far from its own images, or without any."""
    if len(atoms) != 1:
        return False
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        return True
    return bool(np.linalg.norm(minkowski_reduce(atoms.cell.array)[0], axis=1).min() > ALONE)


def _labelled(atoms: ase.Atoms, where: str) -> _Frame:
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
    results: dict[str, Any] = atoms.calc.results if atoms.calc is not None else {}
    if not {"energy", "free_energy"} & results.keys() or "forces" not in results:
        missing = "no forces" if {"energy", "free_energy"} & results.keys() else "no energy"
        if missing == "no energy" and "forces" not in results:
            missing = "no energy and no forces"
        there = _listed(sorted(_keys(atoms))) or "nothing else"
        raise InputError(
            f"{where} has {missing} (it has {there}); label it with the keys energy and forces, or leave it out"
        )
    forces = np.asarray(results["forces"], np.float64)
    if forces.shape != (len(atoms), 3):
        raise InputError(f"{where}: forces of shape {list(forces.shape)}, not {[len(atoms), 3]}; repair it")
    energy, free_energy = (float(results[k]) if k in results else None for k in ("energy", "free_energy"))
    return _Frame(atoms, energy, free_energy, forces, _virial(atoms, results, where))


def _virial(atoms: ase.Atoms, results: dict[str, Any], where: str) -> np.ndarray:
    """-stress * volume [3, 3] in eV, NaN where the frame has neither stress nor virial."""
    volume = abs(np.linalg.det(atoms.cell.array))
    found = []
    if "stress" in results:
        stress = np.asarray(results["stress"], np.float64)
        voigt = stress if stress.shape == (6,) else full_3x3_to_voigt_6_stress(stress.reshape(3, 3))
        found.append(("stress", -volume * voigt_6_to_full_3x3_stress(voigt)))
    for key in VIRIALS:
        if key in atoms.info:
            given = np.asarray(atoms.info[key])
            if given.size != 9 or given.dtype.kind not in "if":
                raise InputError(f"{where}: {key} holds {given.size} values; write nine numbers in eV, row by row")
            given = given.reshape(3, 3).astype(np.float64)
            skew = np.abs(given - given.T).max()
            if skew > 0.02 + 0.02 * np.abs(given).max():
                raise InputError(
                    f"{where}: {key} is not symmetric (by {skew:.3g} eV); repair it or leave the frame out"
                )
            found.append((key, 0.5 * (given + given.T)))
    if not found:
        return np.full((3, 3), np.nan)
    (name, first), *others = found
    for key, other in others:
        apart, size = np.abs(first - other).max(), np.abs(first).max()
        if apart > 0.01 + 0.01 * size:
            of = "-stress * volume" if name == "stress" else name
            hint = "their signs are opposite; " if np.abs(first + other).max() <= 0.01 + 0.01 * size else ""
            raise InputError(
                f"{where}: diagonal of {key} {_spell(other)} eV, of {of} {_spell(first)} eV; {hint}"
                "keep the one that is right"
            )
    return first


def _energies(path: Path, frames: list[_Frame], say: Callable[[str], None]) -> list[float]:
    free = [f.free_energy for f in frames if f.free_energy is not None]
    if len(free) == len(frames):
        apart = [abs(f.energy - f.free_energy) / len(f.atoms) for f in frames
                 if f.energy is not None and f.free_energy is not None]  # fmt: skip
        if max(apart, default=0.0) > 1e-6:
            say(
                f"{path.name}: free_energy is used, of which the forces are derivatives; "
                f"energy differs from it by up to {1e3 * max(apart):.3g} meV/atom"
            )
        return free
    plain = [f.energy for f in frames if f.energy is not None]
    if len(plain) < len(frames):
        raise InputError(
            f"{path}: {len(plain)} of {len(frames)} frames have energy, {len(free)} free_energy; "
            "give all frames the same one of the two"
        )
    if free:
        say(f"{path.name}: only {len(free)} of {len(frames)} frames have free_energy; energy is used")
    return plain


def _tell_unused(path: Path, images: list[ase.Atoms], say: Callable[[str], None]) -> None:
    used = {"energy", "free_energy", "forces", "stress", *VIRIALS}
    unused = sorted({key for atoms in images for key in _keys(atoms)} - used)
    if unused:
        say(f"{path.name}: not used: {_listed(unused)}")


def _tell_fixed(path: Path, frames: list[_Frame], say: Callable[[str], None]) -> None:
    """Report constraints that may have changed the forces before they were written."""
    held = zeroed = 0
    for frame in frames:
        fixed = [index for c in frame.atoms.constraints if isinstance(c, FixAtoms) for index in c.get_indices()]
        held += bool(frame.atoms.constraints)
        zeroed += bool(fixed) and not frame.forces[fixed].any()
    if zeroed:
        say(
            f"{path.name}: in {zeroed} of {len(frames)} frames the forces on fixed atoms are exactly 0 and are trained "
            "on as such; if a constraint set them to 0, write them with get_forces(apply_constraint=False)"
        )
    elif held:
        say(f"{path.name}: constraints in {held} frames are not used; the forces on all atoms are those in the file")


def _keys(atoms: ase.Atoms) -> set[str]:
    """Names of everything that a frame holds besides atoms, positions and cell."""
    results = atoms.calc.results if atoms.calc is not None else {}
    columns = atoms.arrays.keys() - {"numbers", "positions"}
    return {str(key) for key in (*results, *atoms.info, *columns)}


def _is_disordered(atoms: ase.Atoms) -> bool:
    occupancy = atoms.info.get("occupancy")
    if not isinstance(occupancy, dict):
        return False
    return any(set(site.values()) != {1} and set(site.values()) != {1.0} for site in occupancy.values())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _spell(matrix: np.ndarray) -> str:
    return " ".join(f"{value:.4f}" for value in np.diag(matrix))
