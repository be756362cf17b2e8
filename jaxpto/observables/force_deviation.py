"""How far the members of a committee disagree along a simulation, and where a replica left their training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.devices.sequential import sequential_over_replicas
from jaxpto.integrators.state import MDState
from jaxpto.models.committee import Committee, force_deviation
from jaxpto.observables.observable import Observable

FORCE_DEVIATION = "force_deviation"  # name of the observable


class DomainRecord(NamedTuple):
    """One replica beside what its model was trained on.

    Attributes:
        limit: largest force deviation of an atom in the training, eV/Angstrom.
        frames, beyond: samples, and how many of them exceed it.
        step, time_ps: when the first one did; None and NaN if none did.
        deviation: force deviation of an atom then, eV/Angstrom; NaN if none did.
        error: error of that force that the calibration expects, eV/Angstrom; NaN where there is none.
    """

    limit: float
    frames: int
    beyond: int
    step: int | None
    time_ps: float
    deviation: float
    error: float


class DomainSummary(NamedTuple):
    """The replicas of one temperature: how many left the domain of the training, and the first one that did.

    Attributes:
        replicas: how many left it.
        step: when the first one did; NaN if none did, as below.
        deviation, error: as in `DomainRecord`, of that one; eV/Angstrom.
    """

    replicas: int
    step: float
    deviation: float
    error: float


def deviation_observable(committee: Committee) -> Observable:
    """The largest `force_deviation` of an atom, eV/Angstrom, at every sample."""
    bare = dataclasses.replace(committee, calibration=None)  # no part of the program
    return Observable(FORCE_DEVIATION, (), "eV Angstrom-1", _largest_deviation, (bare,))


def _largest_deviation(state: MDState, committee: Committee) -> Float[Array, ""]:
    found = sequential_over_replicas(committee.evaluate)(state.system, state.neighbors)
    return force_deviation(found.forces).max()


def domain_record(
    deviations: Float[np.ndarray, " f"],
    step: Int[np.ndarray, " f"],
    time_ps: Float[np.ndarray, " f"],
    limit: float,
    factor: float | None,
) -> DomainRecord:
    """Where the samples of a replica exceed a limit.

    Args:
        deviations: [f] largest force deviation of an atom, eV/Angstrom.
        step, time_ps: [f] when; ps.
        limit: largest deviation in the training, eV/Angstrom.
        factor: error over deviation; None where nobody has measured it.
    """
    over = np.flatnonzero(deviations > limit)
    if not len(over):
        return DomainRecord(limit, len(deviations), 0, None, math.nan, math.nan, math.nan)
    first = over[0]
    found = float(deviations[first])
    error = math.nan if factor is None else factor * found
    return DomainRecord(limit, len(deviations), len(over), int(step[first]), float(time_ps[first]), found, error)


def summarize_domain(records: Sequence[DomainRecord | None]) -> DomainSummary | None:
    """The replicas of one temperature together; None where there is nothing to compare with."""
    known = [one for one in records if one is not None]
    if not known:
        return None
    left = sorted((one for one in known if one.step is not None), key=lambda one: one.step or 0)
    first = left[0] if left else None
    if first is None or first.step is None:
        return DomainSummary(0, math.nan, math.nan, math.nan)
    return DomainSummary(len(left), float(first.step), first.deviation, first.error)


def describe_committee(committee: Committee) -> dict[str, Any]:
    """What a report needs to know of a committee, as JSON values."""
    calibration = committee.calibration
    facts: dict[str, Any] = {"members": committee.members}
    if calibration is not None:
        largest = calibration.largest
        facts["largest_deviation_of_training"] = calibration.largest_deviation_of_training
        facts["error_per_deviation"] = None if largest is None else largest.factor
    return facts
