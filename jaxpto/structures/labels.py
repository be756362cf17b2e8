"""Labels of a structure: energy, forces, virial and magnetic moments that somebody computed, as ASE reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.constraints import FixAtoms
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from jaxtyping import Float

from jaxpto.errors import InputError

VIRIALS = ("virial", "virials")  # keys of extended xyz
USED = frozenset({"energy", "free_energy", "forces", "stress", "magmoms", *VIRIALS})
LISTED = 8  # names in a line at most


@dataclasses.dataclass(frozen=True)
class FrameLabels:
    """Labels of one frame; None for each that it does not have.

    Attributes:
        energy: eV.
        free_energy: eV, of a calculation with smeared occupations; the forces are derivatives of it.
        forces: [n, 3] eV/Angstrom, those in the file whatever constraints it holds.
        virial: [3, 3] eV, symmetric, -dE/dstrain = -stress * volume (stress is positive in tension).
        moments: [n] magnetic moments, Bohr magnetons.
    """

    energy: float | None = None
    free_energy: float | None = None
    forces: Float[np.ndarray, "n 3"] | None = None
    virial: Float[np.ndarray, "3 3"] | None = None
    moments: Float[np.ndarray, " n"] | None = None

    @property
    def has_energy(self) -> bool:
        """Whether it has an energy of either kind."""
        return self.energy is not None or self.free_energy is not None

    @property
    def has_any(self) -> bool:
        """Whether it has any label."""
        return self.has_energy or any(one is not None for one in (self.forces, self.virial, self.moments))

    @property
    def finite(self) -> bool:
        """Whether all labels that it has are finite."""
        every = (self.energy, self.free_energy, self.forces, self.virial, self.moments)
        return all(bool(np.isfinite(one).all()) for one in every if one is not None)


def labels_of(atoms: ase.Atoms, where: str) -> FrameLabels:
    """The labels in the results and the `info` of a structure that was read.

    Args:
        atoms: the structure; its stress is that of ASE, in eV/Angstrom^3 and positive in tension; a virial of extended
            xyz is in eV and -stress * volume.
        where: file and frame, for messages.

    Raises:
        InputError: forces, moments or a virial of the wrong shape, a virial that is not symmetric or contradicts the
            stress.
    """
    results: dict[str, Any] = atoms.calc.results if atoms.calc is not None else {}
    forces = None
    if "forces" in results:
        forces = np.asarray(results["forces"], np.float64)
        if forces.shape != (len(atoms), 3):
            raise InputError(f"{where}: forces of shape {list(forces.shape)}, not {[len(atoms), 3]}; repair it")
    energy, free_energy = (float(results[k]) if k in results else None for k in ("energy", "free_energy"))
    moments = None
    if "magmoms" in results:
        moments = np.asarray(results["magmoms"], np.float64)
        if moments.shape != (len(atoms),):
            raise InputError(
                f"{where}: magmoms of shape {list(moments.shape)}, not {[len(atoms)]}; moments must be collinear, one "
                "number for each atom"
            )
    return FrameLabels(energy, free_energy, forces, _virial(atoms, results, where), moments)


def energies_of(
    path: Path, images: Sequence[ase.Atoms], labels: Sequence[FrameLabels], say: Callable[[str], None]
) -> Float[np.ndarray, " f"]:
    """The energy [f] of each frame of a file, eV, NaN where there is none.

    It is the free energy where every frame with an energy has one, because the forces of a calculation with smeared
    occupations are derivatives of that and not of the energy extrapolated to zero width.

    Args:
        path: the file, for messages.
        images: its frames.
        labels: their labels.
        say: called with a line where the two energies differ or one is not used.

    Raises:
        InputError: some frames have one of the two only, others the other.
    """
    plain, free = (
        np.array([np.nan if energy is None else energy for energy in column], np.float64)
        for column in ([one.energy for one in labels], [one.free_energy for one in labels])
    )
    counts = {
        "any": sum(one.has_energy for one in labels),
        "energy": sum(one.energy is not None for one in labels),
        "free_energy": sum(one.free_energy is not None for one in labels),
    }
    if counts["free_energy"] == counts["any"]:
        apart = np.nan_to_num(np.abs(plain - free) / [len(atoms) for atoms in images]).max(initial=0.0)
        if apart > 1e-6:
            say(
                f"{path.name}: free_energy is used, of which the forces are derivatives; "
                f"energy differs from it by up to {1e3 * apart:.3g} meV/atom"
            )
        return free
    if counts["energy"] < counts["any"]:
        raise InputError(
            f"{path}: {counts['energy']} of {counts['any']} frames have energy, {counts['free_energy']} free_energy; "
            "give all frames the same one of the two"
        )
    if counts["free_energy"]:
        say(f"{path.name}: only {counts['free_energy']} of {counts['any']} frames have free_energy; energy is used")
    return plain


def unused_note(path: Path, images: Sequence[ase.Atoms]) -> list[str]:
    """A line on everything that the frames of a file hold besides atoms and labels, if there is anything."""
    unused = sorted({key for atoms in images for key in names_in(atoms)} - USED)
    return [f"{path.name}: not used: {listed(unused)}"] if unused else []


def fixed_note(path: Path, images: Sequence[ase.Atoms], labels: Sequence[FrameLabels]) -> list[str]:
    """A line on constraints that may have changed the forces before they were written, if there are any."""
    held = zeroed = 0
    for atoms, one in zip(images, labels, strict=True):
        if one.forces is None or not atoms.constraints:
            continue
        fixed = [index for c in atoms.constraints if isinstance(c, FixAtoms) for index in c.get_indices()]
        held += 1
        zeroed += bool(fixed) and not one.forces[fixed].any()
    if zeroed:
        return [
            f"{path.name}: in {zeroed} of {len(images)} frames the forces on fixed atoms are exactly 0 and count as "
            "such; if a constraint set them to 0, write them with get_forces(apply_constraint=False)"
        ]
    if held:
        return [
            f"{path.name}: constraints in {held} frames are not used; the forces on all atoms are those in the file"
        ]
    return []


def names_in(atoms: ase.Atoms) -> set[str]:
    """Names of everything that a frame holds besides atoms, positions and cell."""
    results = atoms.calc.results if atoms.calc is not None else {}
    columns = atoms.arrays.keys() - {"numbers", "positions"}
    return {str(key) for key in (*results, *atoms.info, *columns)}


def listed(names: Sequence[str]) -> str:
    """The first eight names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _virial(atoms: ase.Atoms, results: dict[str, Any], where: str) -> np.ndarray | None:
    """-stress * volume [3, 3] in eV, None where the frame has neither stress nor virial."""
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
        return None
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


def _spell(matrix: np.ndarray) -> str:
    return " ".join(f"{value:.4f}" for value in np.diag(matrix))
