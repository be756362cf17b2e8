"""Paths through the Brillouin zone: that of the PTO-test, and the standard one for a crystal's symmetry."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Literal

import numpy as np
import seekpath
from jaxtyping import Float
from phonopy.structure.cells import Primitive

from jaxpto.errors import InputError

POINTS = 101  # along the longest segment
PathName = Literal["auto", "pto-test"]

# Figure 2 of the PTO-test, doi:10.1021/acs.jpcc.5c07541
PTO_TEST_POINTS = {
    "Γ": (0.0, 0.0, 0.0),
    "X": (0.0, 0.5, 0.0),
    "M": (0.5, 0.5, 0.0),
    "Z": (0.0, 0.0, 0.5),
    "R": (0.0, 0.5, 0.5),
    "A": (0.5, 0.5, 0.5),
}
PTO_TEST_PATH = ("Γ", "X", "M", "Γ", "Z", "R", "A", "Z")
_GREEK = {"GAMMA": "Γ", "DELTA": "Δ", "LAMBDA": "Λ", "SIGMA": "Σ"}
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclasses.dataclass(frozen=True)
class Segment:
    """A straight line between two named points.

    Attributes:
        start, end: names of its ends.
        points: [p, 3] wave vectors, in units of the reciprocal lattice vectors of the primitive cell.
    """

    start: str
    end: str
    points: Float[np.ndarray, "p 3"]


@dataclasses.dataclass(frozen=True)
class BandPath:
    """Segments in the order in which they are drawn; the path jumps where one does not begin at the end of the last.

    Attributes:
        segments: at least one.
    """

    segments: tuple[Segment, ...]

    @property
    def named_points(self) -> dict[str, Float[np.ndarray, "3"]]:
        """Every named point once, in order of first appearance."""
        found: dict[str, Float[np.ndarray, "3"]] = {}
        for segment in self.segments:
            found.setdefault(segment.start, segment.points[0])
            found.setdefault(segment.end, segment.points[-1])
        return found

    @property
    def connections(self) -> list[bool]:
        """Whether each segment goes on into the next one, False for the last, as phonopy wants it."""
        pairs = zip(self.segments, self.segments[1:], strict=False)
        return [*(first.end == second.start for first, second in pairs), False]

    @property
    def labels(self) -> list[str]:
        """Names of the ends of all connected stretches, as phonopy wants them."""
        found = []
        for segment, connected in zip(self.segments, self.connections, strict=True):
            found += [segment.start] if connected else [segment.start, segment.end]
        return found


def pto_test_path(primitive: Primitive, points: int = POINTS) -> BandPath:
    """Γ X M Γ Z R A Z of the PTO-test, with the same number of points in every segment.

    Args:
        primitive: phonopy's primitive cell with lattice vectors at right angles, for which the names are defined.
        points: number of points in each segment.

    Raises:
        InputError: the lattice vectors are not at right angles.
    """
    unit = primitive.cell / np.linalg.norm(primitive.cell, axis=1)[:, None]
    skew = float(np.abs(np.rad2deg(np.arccos(np.clip(unit @ np.roll(unit, 1, axis=0).T, -1, 1).diagonal())) - 90).max())
    if skew > 0.5:
        raise InputError(
            f"`path=pto-test` needs a primitive cell with right angles, and one is {skew:.1f} degrees off; "
            "use `path=auto`"
        )
    ends = [np.array(PTO_TEST_POINTS[name]) for name in PTO_TEST_PATH]
    return BandPath(
        tuple(
            Segment(*PTO_TEST_PATH[i : i + 2], np.linspace(ends[i], ends[i + 1], points))
            for i in range(len(PTO_TEST_PATH) - 1)
        )
    )


def automatic_path(primitive: Primitive, symmetry_precision: float, points: int = POINTS) -> BandPath:
    """The standard path for the symmetry of a crystal by seekpath (Hinuma et al., Comp. Mat. Sci. 128, 140 (2017)).

    Seekpath names the points in its own primitive cell; here they are given in that of phonopy.

    Args:
        primitive: phonopy's primitive cell.
        symmetry_precision: Angstrom.
        points: number of points in the longest segment; shorter ones have the same density.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # edge cases, such as a = c in a tetragonal cell
        cell = primitive.totuple(distinguish_symbol_index=True)  # isotopes are different atoms, as in `make_phonopy`
        found = seekpath.get_path_orig_cell(cell, symprec=symmetry_precision)
    places = {name: np.array(place) for name, place in found["point_coords"].items()}
    reciprocal = np.linalg.inv(primitive.cell).T
    lengths = [float(np.linalg.norm((places[b] - places[a]) @ reciprocal)) for a, b in found["path"]]
    numbers = [max(2, 1 + math.ceil((points - 1) * length / max(lengths) - 1e-9)) for length in lengths]
    return BandPath(
        tuple(
            Segment(_pretty(a), _pretty(b), np.linspace(places[a], places[b], number))
            for (a, b), number in zip(found["path"], numbers, strict=True)
        )
    )


def band_path(name: PathName, primitive: Primitive, symmetry_precision: float) -> BandPath:
    """The path named "auto" or "pto-test".

    Raises:
        InputError: the path is not defined for the lattice.
    """
    return pto_test_path(primitive) if name == "pto-test" else automatic_path(primitive, symmetry_precision)


def _pretty(name: str) -> str:
    """Γ for GAMMA, Σ₀ for SIGMA_0."""
    letter, _, number = name.partition("_")
    return _GREEK.get(letter, letter) + number.translate(_SUBSCRIPTS)
