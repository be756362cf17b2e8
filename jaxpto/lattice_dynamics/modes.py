"""Imaginary modes by name: where in the Brillouin zone, which atoms move, and along which axes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex, Float, Int
from phonopy import Phonopy
from phonopy.harmonic.dynmat_to_fc import get_commensurate_points

from jaxpto.lattice_dynamics.paths import BandPath

IMAGINARY = -0.05  # THz; weaker ones are within the errors of force constants
DEGENERATE = 0.01  # THz
POLAR = 0.02  # of the norm of a mode
MOVING = 0.05  # weight from which an atom's motion is named
_SAME_POINT = 1e-6


@dataclasses.dataclass(frozen=True)
class ImaginaryMode:
    """One imaginary frequency at one wave vector, with all modes that share it.

    Attributes:
        point: name of the wave vector on the path, or its coordinates.
        q: wave vector in units of the reciprocal lattice vectors of the primitive cell.
        exact: whether the wave vector fits the supercell; other frequencies are interpolated.
        frequency: THz, negative as in phonopy.
        polar: whether the mode moves charged atoms apart (at Γ only; see `is_polar`).
        species: share of each element in the squared eigenvectors.
        motions: one line for each mode, such as "Ti1 +z 74 %, O2 -z 15 %".
        eigenvectors: [d, atoms, 3] orthonormal, chosen to lie along Cartesian axes as far as they can.
    """

    point: str
    q: tuple[float, float, float]
    exact: bool
    frequency: float
    polar: bool
    species: dict[str, float]
    motions: tuple[str, ...]
    eigenvectors: Complex[np.ndarray, "d n 3"]

    @property
    def degeneracy(self) -> int:
        """Number of modes that share the frequency."""
        return len(self.eigenvectors)

    def as_json(self) -> dict[str, Any]:
        """What phonons.json holds: eigenvectors as real and imaginary parts [d, atoms, 3]."""
        parts = {"re": self.eigenvectors.real, "im": self.eigenvectors.imag}
        return {
            "point": self.point, "q": self.q, "exact": self.exact, "frequency_THz": self.frequency,
            "degeneracy": self.degeneracy, "polar": self.polar, "species_weights": self.species,
            "motions": self.motions, "eigenvectors": parts,
        }  # fmt: skip


def imaginary_modes(phonon: Phonopy, path: BandPath, threshold: float = IMAGINARY) -> list[ImaginaryMode]:
    """Every imaginary mode at the named points of a path and at the wave vectors that fit the supercell.

    One of several wave vectors that are equivalent by symmetry is kept. `translations` are left out.

    Args:
        phonon: phonopy's object with force constants.
        path: path with the named points.
        threshold: frequencies below this count as imaginary, THz.
    """
    found = []
    for name, q in wave_vectors(phonon, path).items():
        frequencies, vectors = frequencies_and_modes(phonon, q)
        at_gamma = bool(np.abs(q).max() < _SAME_POINT)
        wanted = (frequencies < threshold) & ~translations(q, vectors, phonon.primitive.masses)
        for group in _degenerate(frequencies, np.flatnonzero(wanted)):
            modes = along_axes(vectors[group])
            found.append(
                ImaginaryMode(
                    point=name,
                    q=(float(q[0]), float(q[1]), float(q[2])),
                    exact=_fits(phonon, q),
                    frequency=float(frequencies[group].mean()),
                    polar=at_gamma and is_polar(phonon, modes),
                    species=_species(phonon.primitive.symbols, modes),
                    motions=tuple(_motion(phonon, q, mode) for mode in modes),
                    eigenvectors=modes,
                )
            )
    return found


def wave_vectors(phonon: Phonopy, path: BandPath) -> dict[str, Float[np.ndarray, "3"]]:
    """Named points of a path, then every other wave vector that fits the supercell, one of each symmetric set."""
    found = dict(path.named_points)
    matrix = np.rint(np.linalg.inv(phonon.primitive_matrix) @ phonon.supercell_matrix).astype(int)
    rotations = phonon.primitive_symmetry.pointgroup_operations
    for q in sorted(get_commensurate_points(matrix).tolist(), key=lambda q: (sum(map(abs, q)), q)):
        if not any(_equivalent(np.array(q), other, rotations) for other in found.values()):
            found["({:.4g} {:.4g} {:.4g})".format(*q)] = np.array(q)
    return found


def frequencies_and_modes(
    phonon: Phonopy, q: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, " m"], Complex[np.ndarray, "m n 3"]]:
    """Frequencies in THz (imaginary ones negative), ascending, and eigenvectors of the dynamical matrix at q."""
    found = phonon.run_qpoints(q[None, :], with_eigenvectors=True)
    assert found.eigenvectors is not None
    return found.frequencies[0], found.eigenvectors[0].T.reshape(found.frequencies.shape[1], -1, 3)


def translations(
    q: Float[np.ndarray, "3"], modes: Complex[np.ndarray, "m n 3"], masses: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " m"]:
    """Which modes are translations of the whole crystal by more than half: at Γ, e_i along sqrt(m_i)."""
    rigid = np.sqrt(masses / masses.sum())
    share = (np.abs(np.einsum("i,mia->ma", rigid, modes)) ** 2).sum(axis=1)
    return (share > 0.5) & (np.abs(q).max() < _SAME_POINT)


def along_axes(modes: Complex[np.ndarray, "d n 3"]) -> Complex[np.ndarray, "d n 3"]:
    """Modes of one frequency, recombined so that each moves the atoms along one Cartesian axis where possible.

    They diagonalize, within their space, the operator that gives 1, 2 and 3 for motions along x, y and z.
    """
    axes = np.einsum("mia,a,nia->mn", modes.conj(), np.array([1.0, 2.0, 3.0]), modes)
    return np.einsum("mia,mk->kia", modes, np.linalg.eigh(axes)[1])


def is_polar(phonon: Phonopy, modes: Complex[np.ndarray, "d n 3"]) -> bool:
    """Whether modes at Γ can carry a dipole: whether any set of symmetry-equivalent atoms moves as a whole.

    No charges are needed, because all atoms of a set have the same one.
    """
    orbits = phonon.primitive_symmetry.get_map_atoms()
    shifts = modes / np.sqrt(phonon.primitive.masses)[None, :, None]
    net = [np.linalg.norm(shifts[:, orbits == orbit].sum(axis=1)) for orbit in np.unique(orbits)]
    return bool(max(net) > POLAR * np.linalg.norm(shifts))


def _degenerate(frequencies: Float[np.ndarray, " m"], chosen: Int[np.ndarray, " k"]) -> list[Int[np.ndarray, " d"]]:
    """The chosen modes (ascending) in groups of one frequency."""
    if not len(chosen):
        return []
    return np.split(chosen, np.flatnonzero(np.diff(frequencies[chosen]) > DEGENERATE) + 1)


def _equivalent(q: Float[np.ndarray, "3"], other: Float[np.ndarray, "3"], rotations: Int[np.ndarray, "r 3 3"]) -> bool:
    images = np.concatenate([q @ rotations, -q @ rotations])  # the second by time reversal
    apart = images - other[None, :]
    return bool((np.abs(apart - np.rint(apart)).max(axis=1) < _SAME_POINT).any())


def _fits(phonon: Phonopy, q: Float[np.ndarray, "3"]) -> bool:
    turns = q @ np.linalg.inv(phonon.primitive_matrix) @ phonon.supercell_matrix
    return bool(np.abs(turns - np.rint(turns)).max() < _SAME_POINT)


def _species(symbols: list[str], modes: Complex[np.ndarray, "d n 3"]) -> dict[str, float]:
    weights = (np.abs(modes) ** 2).sum(axis=(0, 2)) / len(modes)
    return {name: float(weights[np.array(symbols) == name].sum()) for name in dict.fromkeys(symbols)}


def _motion(phonon: Phonopy, q: Float[np.ndarray, "3"], mode: Complex[np.ndarray, "n 3"]) -> str:
    """The largest component of every atom that moves, with its sign in the first cell and its weight."""
    moved = mode * np.exp(2j * np.pi * (phonon.primitive.scaled_positions @ q))[:, None]
    largest = moved.ravel()[np.argmax(np.abs(moved))]
    real = (moved * (np.abs(largest) / largest)).real
    weights = (np.abs(mode) ** 2).sum(axis=1)
    parts = []
    for index in np.argsort(-weights.round(6), kind="stable"):
        if weights[index] >= MOVING:
            axis = int(np.argmax(np.abs(mode[index]).round(6)))
            sign = "+" if real[index, axis] >= 0.0 else "-"
            parts.append(f"{phonon.primitive.symbols[index]}{index} {sign}{'xyz'[axis]} {100 * weights[index]:.0f} %")
    return ", ".join(parts)
