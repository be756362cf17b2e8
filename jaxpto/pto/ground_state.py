"""The two stages at 0 K: relaxed cells of both phases, and phonons of the polar one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import ase
import numpy as np

from jaxpto.calculator import JaxptoCalculator
from jaxpto.lattice_dynamics.harmonic import Bands
from jaxpto.lattice_dynamics.output import ModelResult
from jaxpto.lattice_dynamics.paths import BandPath, Segment
from jaxpto.relaxation.target import Relaxed, Target
from jaxpto.relaxation.with_ase import relax_with_ase
from jaxpto.structures import read_structure

RELAXATION = Target(fmax=1e-4)
PAPERS_LIMIT = 1e-3  # eV/Angstrom


@dataclasses.dataclass(frozen=True)
class Cells:
    """Relaxed cells of the polar and the cubic phase.

    Attributes:
        a, c: polar cell, Angstrom; a is the mean of the first two lengths.
        cubic_a: cubic cell, Angstrom.
        energy_difference: cubic minus polar, eV per formula unit.
        remarks: a relaxation that did not converge.
    """

    a: float
    c: float
    cubic_a: float
    energy_difference: float
    remarks: tuple[str, ...]

    @property
    def c_over_a(self) -> float:
        """Tetragonality."""
        return self.c / self.a


@dataclasses.dataclass(frozen=True)
class Vibrations:
    """Phonons of the relaxed polar cell.

    Attributes:
        lowest_frequency: along the path, THz, negative if imaginary.
        imaginary: imaginary modes (THz) at the named points and the wave vectors that fit the supercell.
        bands: along the paper's path.
    """

    lowest_frequency: float
    imaginary: tuple[str, ...]
    bands: Bands


def relax_cells(calculator: JaxptoCalculator, structures: Sequence[str]) -> Cells:
    """Relax both phases as the paper does (FrechetCellFilter and BFGS), to 1e-4 eV/Angstrom.

    Args:
        calculator: the model.
        structures: polar and cubic one, files or built-in.

    Raises:
        InputError: `read_structure` or the calculator refuses one.
    """
    polar, cubic = (relax_with_ase(read_structure(one, "relaxation"), calculator, RELAXATION) for one in structures)
    return cells_of(polar, cubic)


def cells_of(polar: Relaxed, cubic: Relaxed) -> Cells:
    """What is told of two relaxed phases."""
    a, b, c = polar.atoms.cell.lengths()
    return Cells(
        a=float(0.5 * (a + b)),
        c=float(c),
        cubic_a=float(cubic.atoms.cell.lengths().mean()),
        energy_difference=cubic.energy / _formula_units(cubic.atoms) - polar.energy / _formula_units(polar.atoms),
        remarks=(*_remark("tetragonal", polar), *_remark("cubic", cubic)),
    )


def vibrations_of(found: ModelResult) -> Vibrations:
    """What is told of the phonons by finite displacements."""
    harmonic = found.calculations["displacement"].harmonic
    return Vibrations(
        lowest_frequency=float(min(f.min() for f in harmonic.bands.frequencies)),
        imaginary=tuple(f"{mode.point} {-mode.frequency:.2f}i" for mode in harmonic.imaginary),
        bands=harmonic.bands,
    )


def bands_to_json(bands: Bands) -> list[dict[str, Any]]:
    """Bands as JSON values, frequencies to a microterahertz."""
    parts = zip(bands.path.segments, bands.distances, bands.frequencies, strict=True)
    return [
        {
            "start": segment.start,
            "end": segment.end,
            "q": segment.points.tolist(),
            "distances": distances.tolist(),
            "frequencies_THz": np.round(frequencies, 6).tolist(),
        }
        for segment, distances, frequencies in parts
    ]


def bands_from_json(stored: list[dict[str, Any]]) -> Bands:
    """The inverse of `bands_to_json`."""
    segments = tuple(Segment(part["start"], part["end"], np.asarray(part["q"])) for part in stored)
    distances = [np.asarray(part["distances"]) for part in stored]
    return Bands(BandPath(segments), distances, [np.asarray(part["frequencies_THz"]) for part in stored])


def _formula_units(atoms: ase.Atoms) -> int:
    return int(atoms.symbols.formula.reduce()[1])


def _remark(phase: str, relaxed: Relaxed) -> tuple[str, ...]:
    """A remark on a relaxation that did not reach the paper's limit."""
    if relaxed.residual < PAPERS_LIMIT:
        return ()
    return (f"{phase} phase relaxed to {relaxed.residual:.1e} eV/A only: {relaxed.reason}",)
