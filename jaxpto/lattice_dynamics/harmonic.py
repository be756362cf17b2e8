"""Derived from force constants: bands, density of states, thermal properties, imaginary modes."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from phonopy import Phonopy
from phonopy.phonon.mesh import Mesh
from phonopy.physical_units import get_physical_units

from jaxpto.lattice_dynamics.modes import (
    IMAGINARY,
    ImaginaryMode,
    frequencies_and_modes,
    imaginary_modes,
    translations,
    wave_vectors,
)
from jaxpto.lattice_dynamics.paths import BandPath

MESH_LENGTH = 100.0  # Angstrom; points along each reciprocal vector = this times its length / 2 pi
DOS_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Bands:
    """Frequencies along a path.

    Attributes:
        path: the path.
        distances: distance of each point from the start of the path, for each segment, 1/Angstrom.
        frequencies: [points, modes] THz for each segment, imaginary ones negative.
    """

    path: BandPath
    distances: list[Float[np.ndarray, " _"]]
    frequencies: list[Float[np.ndarray, "_ m"]]

    def dips(self, threshold: float = IMAGINARY) -> list[Dip]:
        """The lowest point of every stretch between two named points where it is below a threshold, THz, deepest first.

        Frequencies there are interpolated unless the wave vector fits the supercell; the named points are left out.
        """
        found = []
        for segment, frequencies in zip(self.path.segments, self.frequencies, strict=True):
            lowest = frequencies[1:-1].min(axis=1)
            if len(lowest) and lowest.min() < threshold:
                q = segment.points[1:-1][int(np.argmin(lowest))]
                place = (float(q[0]), float(q[1]), float(q[2]))
                found.append(Dip(f"{segment.start}-{segment.end}", place, float(lowest.min())))
        return sorted(found, key=lambda dip: dip.frequency)


@dataclasses.dataclass(frozen=True)
class Dip:
    """Where bands are imaginary between two named points.

    Attributes:
        stretch: the two points, as in "Γ-X".
        q: wave vector of the lowest frequency, in units of the reciprocal lattice vectors of the primitive cell.
        frequency: the lowest one, THz, negative.
    """

    stretch: str
    q: tuple[float, float, float]
    frequency: float


@dataclasses.dataclass(frozen=True)
class DensityOfStates:
    """Number of modes per THz and formula unit.

    Attributes:
        frequencies: THz.
        densities: 1/THz; the integral is three times the number of atoms of a formula unit.
    """

    frequencies: Float[np.ndarray, " f"]
    densities: Float[np.ndarray, " f"]


@dataclasses.dataclass(frozen=True)
class ThermalProperties:
    """Harmonic thermal properties at constant volume, of one formula unit or one mole of them.

    Attributes:
        temperatures: [t] K.
        free_energy: [t] free energy of the vibrations with their zero-point energy, eV.
        entropy, heat_capacity: [t] J/K/mol.
        zero_point: eV.
        mesh: wave vectors along the three reciprocal vectors.
        left_out: number of imaginary modes of the mesh, left out of every sum.
        lowest: lowest frequency of the mesh without the translations, THz.
        modes: number of all modes of the mesh.
    """

    temperatures: Float[np.ndarray, " t"]
    free_energy: Float[np.ndarray, " t"]
    entropy: Float[np.ndarray, " t"]
    heat_capacity: Float[np.ndarray, " t"]
    zero_point: float
    mesh: tuple[int, int, int]
    left_out: int
    lowest: float
    modes: int


@dataclasses.dataclass(frozen=True)
class Harmonic:
    """Bands, density of states, thermal properties and imaginary modes from one set of force constants.

    Attributes:
        points: wave vector and frequencies (THz, ascending) at the named points and those that fit the supercell.
        lowest: the lowest frequency at each of these, translations of the whole crystal left out, THz.
        bands, density, thermal: along the path and over the mesh.
        imaginary: imaginary modes.
    """

    points: dict[str, tuple[Float[np.ndarray, "3"], Float[np.ndarray, " m"]]]
    lowest: dict[str, float]
    bands: Bands
    density: DensityOfStates
    thermal: ThermalProperties
    imaginary: list[ImaginaryMode]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Where two sets of force constants differ most.

    Attributes:
        frequency: THz.
        point: name of the wave vector.
        band: counted from 1 at the lowest.
    """

    frequency: float
    point: str
    band: int


def harmonic_properties(
    phonon: Phonopy, path: BandPath, temperatures: Sequence[float], mesh: tuple[int, int, int] | None = None
) -> Harmonic:
    """Bands, density of states, thermal properties and imaginary modes from phonopy's object, which keeps them too.

    Args:
        phonon: phonopy's object with force constants, used as they are.
        path: path of the bands.
        temperatures: K.
        mesh: wave vectors along the reciprocal vectors, centred at Γ; by default one every 2 pi / 100 A.
    """
    points, lowest = {}, {}
    for name, q in wave_vectors(phonon, path).items():
        frequencies, modes = frequencies_and_modes(phonon, q)
        points[name] = (q, frequencies)
        vibrations = frequencies[~translations(q, modes, phonon.primitive.masses)]
        lowest[name] = float(vibrations.min()) if len(vibrations) else 0.0
    bands = phonon.run_band_structure(
        [segment.points for segment in path.segments], path_connections=path.connections, labels=path.labels
    )
    found = phonon.run_mesh(MESH_LENGTH if mesh is None else mesh, is_gamma_center=True)
    assert isinstance(found, Mesh)
    scale = 1.0 / formula_units(phonon.primitive.numbers)
    return Harmonic(
        points=points,
        lowest=lowest,
        bands=Bands(path, list(bands.distances), list(bands.frequencies)),
        density=_density(phonon, found, scale),
        thermal=_thermal(phonon, found, temperatures, scale),
        imaginary=imaginary_modes(phonon, path),
    )


def formula_units(numbers: Int[np.ndarray, " n"]) -> int:
    """Number of formula units, such as PbTiO3, in a cell of these atomic numbers [n]."""
    return math.gcd(*np.unique(numbers, return_counts=True)[1].tolist())


def largest_difference(first: Harmonic, second: Harmonic) -> Difference:
    """The largest difference of two frequencies of the same rank at the wave vectors of `points`.

    Other wave vectors do not count: where a band turns imaginary, frequencies change too fast to be compared.
    """
    shared = [name for name in first.points if name in second.points]
    gaps = np.array([np.abs(first.points[name][1] - second.points[name][1]) for name in shared])
    place, band = np.unravel_index(np.argmax(gaps), gaps.shape)
    return Difference(float(gaps.max()), shared[place], int(band) + 1)


def _density(phonon: Phonopy, mesh: Mesh, scale: float) -> DensityOfStates:
    span = float(mesh.frequencies.max() - mesh.frequencies.min())
    margin = 0.02 * span
    total = phonon.run_total_dos(
        freq_min=float(mesh.frequencies.min()) - margin,
        freq_max=float(mesh.frequencies.max()) + margin,
        freq_pitch=(span + 2.0 * margin) / DOS_POINTS,
    )
    return DensityOfStates(total.frequency_points, scale * np.asarray(total.dos, np.float64))


def _thermal(phonon: Phonopy, mesh: Mesh, temperatures: Sequence[float], scale: float) -> ThermalProperties:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about acoustic modes off zero, which the sum rule residual tells
        thermal = phonon.run_thermal_properties(temperatures=list(temperatures), exclude_gamma_acoustic=True)
    electronvolt = scale / get_physical_units().EvTokJmol
    vibrations = np.ones(mesh.frequencies.shape, bool)
    for gamma in np.flatnonzero(np.abs(mesh.qpoints).max(axis=1) < 1e-9):
        vibrations[gamma, np.argsort(np.abs(mesh.frequencies[gamma]))[:3]] = False
    imaginary = (mesh.frequencies < 0.0) & vibrations
    numbers = mesh.mesh_numbers
    return ThermalProperties(
        temperatures=np.asarray(thermal.temperatures, np.float64),
        free_energy=electronvolt * np.asarray(thermal.free_energy, np.float64),
        entropy=scale * np.asarray(thermal.entropy, np.float64),
        heat_capacity=scale * np.asarray(thermal.heat_capacity, np.float64),
        zero_point=electronvolt * float(thermal.zero_point_energy or 0.0),
        mesh=(int(numbers[0]), int(numbers[1]), int(numbers[2])),
        left_out=int((imaginary * mesh.weights[:, None]).sum()),
        lowest=float(mesh.frequencies[vibrations].min(initial=np.inf)),
        modes=int(mesh.weights.sum()) * mesh.frequencies.shape[1],
    )
