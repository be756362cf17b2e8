"""Averages of observables that a summary has no words of its own for: whatever else a run has measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxpto.observables.statistics import combine, estimate
from jaxpto.storage.trajectory import Quantity, Trajectory

# what a summary has columns of its own for, and tensors that it has none for
SUMMARIZED = frozenset({"temperature", "conserved", "stress", "static_stress", "volume", "polarization"})


class FurtherSeries(NamedTuple):
    """Samples [frames] of a scalar or of one component of a vector, and their unit in H5MD spelling."""

    values: Float[np.ndarray, " frames"]
    unit: str


class FurtherAverage(NamedTuple):
    """Mean over the production part, its standard error, and their unit in H5MD spelling."""

    value: float
    error: float
    unit: str


def further_series(stored: Trajectory) -> dict[str, FurtherSeries]:
    """Every scalar, and every component of every vector, beside those that a summary knows; NaN is left out."""
    found = {}
    for name, values in stored.observables.items():
        if name in SUMMARIZED or values.ndim > 2 or not np.isfinite(values).any():
            continue
        unit = stored.units[name]
        parts = np.reshape(values, (len(values), -1)).astype(np.float64)
        for k, component in enumerate(Quantity(values.shape[1:], unit).components(name)):
            found[component] = FurtherSeries(parts[:, k], unit)
    return found


def further_averages(
    replicas: Sequence[Mapping[str, FurtherSeries]], production: Sequence[slice]
) -> dict[str, FurtherAverage]:
    """Averages over the replicas of one temperature; none without replicas.

    Args:
        replicas: further observables of each.
        production: frames of each that are averaged over.
    """
    found = {}
    for name, first in next(iter(replicas), {}).items():
        pairs = zip(replicas, production, strict=True)
        total = combine([estimate(series[name].values[kept]) for series, kept in pairs if name in series])
        found[name] = FurtherAverage(total.mean, total.sem, first.unit)
    return found
