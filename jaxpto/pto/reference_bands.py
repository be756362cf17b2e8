"""Phonon bands that somebody else computed, from phonopy's band.yaml, to be drawn beside a model's."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import yaml

from jaxpto.errors import InputError
from jaxpto.lattice_dynamics.harmonic import Bands
from jaxpto.lattice_dynamics.paths import BandPath, Segment

CLOSE = 1e-3  # of a reciprocal lattice vector: ends of segments that count as the same


def read_reference(path: Path) -> Bands:
    """Bands of a band.yaml.

    Raises:
        InputError: it is not what phonopy writes.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        counts, points = document["segment_nqpoint"], document["phonon"]
        q = np.array([point["q-position"] for point in points], np.float64)
        distances = np.array([point["distance"] for point in points], np.float64)
        frequencies = np.array([[band["frequency"] for band in point["band"]] for point in points], np.float64)
        if sum(counts) != len(points):
            raise ValueError(f"{len(points)} wave vectors in segments of {counts}")
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"`reference={path}` is no band.yaml of phonopy ({' '.join(str(error).split())[:120]}); write it with "
            "phonon.write_yaml_band_structure()"
        ) from None
    ends = np.cumsum([0, *counts])
    parts = [slice(first, last) for first, last in itertools.pairwise(ends)]
    path_of = BandPath(tuple(Segment("", "", q[part]) for part in parts))
    return Bands(path_of, [distances[part] for part in parts], [frequencies[part] for part in parts])


def check_same_path(reference: Bands, bands: Bands, name: str) -> None:
    """Refuse a reference along another path than a model's.

    Args:
        reference: as `read_reference` gives it.
        bands: those of a model.
        name: what the file is called.

    Raises:
        InputError: with the first segment that differs.
    """
    theirs, ours = reference.path.segments, bands.path.segments
    if len(theirs) != len(ours):
        raise InputError(f"`reference={name}` has {len(theirs)} segments, the models' path has {len(ours)}")
    for number, (one, other) in enumerate(zip(theirs, ours, strict=True), start=1):
        for end, wanted in ((0, other.start), (-1, other.end)):
            difference = np.abs(one.points[end] - other.points[end]).max()
            if difference > CLOSE:
                place = np.round(other.points[end], 4).tolist()
                raise InputError(
                    f"`reference={name}`: segment {number} does not {'begin' if end == 0 else 'end'} at {wanted} "
                    f"{place}; compute it along {' '.join(bands.path.labels)}"
                )
