"""Static sizes of a neighbour list, and how they are chosen for given cells (on the host)."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from jaxpto.neighbors.waves import choose_waves
from jaxpto.platform import default_platform

WORD = 32
VECTOR = 8  # numbers that a processor's vector units take at once
_SHRINKAGE = 0.975  # a cell's heights may shrink by this factor before the stencil is too short


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static sizes of a neighbour list, and the devices it is for.

    Attributes:
        cutoff: the model's cutoff, Angstrom.
        skin: extra distance within which edges are kept, so that the list survives some motion, Angstrom.
        bins: number of bins along each lattice vector.
        stencil: bins searched on either side along each lattice vector.
        candidates: atoms of each block, images included, that the stencil of a bin can hold (a multiple of 32).
        species: atomic numbers of the slot blocks, or () for one block of any species.
        slots: edges that each atom can hold in each block; the list is then a dense matrix [n, sum(slots)], row-major
            by receiver. () for a packed list.
        edges: 0 for a dense list; otherwise the edges are packed to the front of arrays of this length.
        angle_cutoff: longest bond whose angles are listed, Angstrom; 0 for no angles.
        bonds, angles: capacities for bonds and for angles.
        near_cutoff: cutoff within which the edges of a block come first, Angstrom; 0 where they are not sorted.
        near: slots of each block that these edges can take, or (); see `near_first`.
        wave_cutoff: longest wave vector of a sum over the reciprocal lattice, 1/Angstrom; 0 for none.
        waves: half-widths of the box of whole numbers that holds these wave vectors, see `choose_waves`.
        platform: kind of device that computes with the list; it decides how many atoms or edges are taken at a time.
        devices: number of devices over which XLA spreads the edges of one system; `devices.sharding.sharded` sets it.
    """

    cutoff: float
    skin: float
    bins: tuple[int, int, int]
    stencil: tuple[int, int, int]
    candidates: tuple[int, ...]
    species: tuple[int, ...]
    slots: tuple[int, ...]
    edges: int = 0
    angle_cutoff: float = 0.0
    bonds: int = 0
    angles: int = 0
    near_cutoff: float = 0.0
    near: tuple[int, ...] = ()
    wave_cutoff: float = 0.0
    waves: tuple[int, int, int] = (0, 0, 0)
    platform: str = dataclasses.field(default_factory=default_platform)
    devices: int = 1


def heights(cell: np.ndarray) -> np.ndarray:
    """Perpendicular heights [3] of a cell [3, 3], Angstrom."""
    return np.abs(np.linalg.det(cell)) / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)


def grow(layout: Layout, cells: np.ndarray, factor: float = 1.3) -> Layout:
    """Enlarge every capacity of a layout that overflowed; slots are rounded up to whole vectors.

    Args:
        layout: the sizes that were too small.
        cells: [..., 3, 3] cells that the list must serve, Angstrom; the stencil changes only if one of them needs it.
            Wave vectors get one more row at least: where energies were lost, so were the cells that outgrew the box.
        factor: factor on the capacities.
    """
    reach = layout.cutoff + layout.skin
    smallest = reach * np.asarray(layout.bins) / np.asarray(layout.stencil)  # heights served by the present stencil
    needed = _smallest_heights(cells) * _SHRINKAGE
    bins, stencil = layout.bins, layout.stencil
    if (needed < smallest).any():
        bins, stencil = choose_bins(np.diag(np.minimum(needed, smallest) / _SHRINKAGE), reach)
    width = lambda b, s: math.prod((2 * j + 1) / i for i, j in zip(b, s, strict=True))  # noqa: E731
    wider = max(1.0, width(bins, stencil) / width(layout.bins, layout.stencil))
    larger = lambda capacity: math.ceil(capacity * factor) + 1  # noqa: E731
    waves = np.maximum(layout.waves, choose_waves(cells, layout.wave_cutoff)) + (1 if layout.wave_cutoff else 0)
    layout = dataclasses.replace(
        layout,
        bins=bins,
        stencil=stencil,
        candidates=tuple(whole_words(larger(c) * wider) for c in layout.candidates),
        slots=tuple(larger(s) for s in layout.slots),
        near=tuple(larger(s) for s in layout.near),
        waves=_three(waves),
        **{name: larger(size) for name in ("edges", "bonds", "angles") if (size := getattr(layout, name))},
    )
    return in_whole_vectors(layout)


def _smallest_heights(cells: np.ndarray) -> np.ndarray:
    flat = np.asarray(cells, np.float64).reshape(-1, 3, 3)
    return np.min([heights(cell) for cell in flat], axis=0)


def choose_bins(cells: np.ndarray, reach: float) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Bins just wider than the reach, and the stencil, for cells [..., 3, 3] whose heights may still shrink a little.

    Narrower bins would leave fewer candidates for each atom, but joining more runs of atoms costs more than that saves.
    """
    smallest = _smallest_heights(cells) * _SHRINKAGE
    bins = np.maximum(1, np.floor(smallest / reach))
    return _three(bins), _three(np.ceil(reach * bins / smallest))


def _three(values: np.ndarray) -> tuple[int, int, int]:
    return int(values[0]), int(values[1]), int(values[2])


def whole_words(capacity: float) -> int:
    """A capacity rounded up to a multiple of the bits in a word."""
    return WORD * max(1, math.ceil(capacity / WORD))


def in_whole_vectors(layout: Layout) -> Layout:
    """The layout with its slots rounded up to whole vectors, which costs a processor no time."""
    slots, near = (
        tuple(VECTOR * math.ceil(capacity / VECTOR) for capacity in capacities)
        for capacities in (layout.slots, layout.near)
    )
    return dataclasses.replace(layout, slots=slots, near=near)


def _image_extent(layout: Layout) -> list[int]:
    return [math.ceil(s / b) for s, b in zip(layout.stencil, layout.bins, strict=True)]


def image_vectors(layout: Layout) -> np.ndarray:
    """Lattice translations [images, 3] that a stencil can reach."""
    return np.asarray(list(itertools.product(*[range(-e, e + 1) for e in _image_extent(layout)])), np.int32)


def stencil_tables(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """For each bin and stencil offset: flat index of the bin there, and its image, an index into `image_vectors`."""
    bins = np.asarray(layout.bins)
    extent = np.asarray(_image_extent(layout))
    here = np.asarray(list(itertools.product(*[range(b) for b in layout.bins])))
    offsets = np.asarray(list(itertools.product(*[range(-s, s + 1) for s in layout.stencil])))
    looked = here[:, None, :] + offsets[None, :, :]
    image = looked // bins
    flat_bin = np.ravel_multi_index(tuple(np.moveaxis(looked - image * bins, -1, 0)), layout.bins)
    flat_image = np.ravel_multi_index(tuple(np.moveaxis(image + extent, -1, 0)), tuple(2 * extent + 1))
    return flat_bin.astype(np.int32), flat_image.astype(np.int32)
