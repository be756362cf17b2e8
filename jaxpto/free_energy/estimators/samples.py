"""The enthalpies that a temperature sweep sampled, thinned to independent ones."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from jaxpto.errors import InputError
from jaxpto.observables.statistics import statistical_inefficiency
from jaxpto.observables.summary import ReplicaRecord
from jaxpto.units import GIGAPASCAL

FEWEST = 10  # independent samples of a temperature


@dataclasses.dataclass(frozen=True)
class EnthalpySamples:
    """Independent samples of h = U + p V at each temperature of a ladder.

    Attributes:
        temperatures: [k] ascending, K.
        enthalpies: for each temperature [n_k], eV of the whole cell.
        inefficiencies: [k] frames for each independent sample.
    """

    temperatures: Float[np.ndarray, " k"]
    enthalpies: tuple[Float[np.ndarray, "_"], ...]
    inefficiencies: Float[np.ndarray, " k"]

    @property
    def counts(self) -> Float[np.ndarray, " k"]:
        """Samples of each temperature."""
        return np.array([float(len(values)) for values in self.enthalpies])


def enthalpy_samples(records: list[ReplicaRecord], equilibration: float) -> EnthalpySamples:
    """Independent enthalpies from the replicas of a sweep.

    Every g-th frame is kept, g the statistical inefficiency of the enthalpy in its run (Chodera et al., J. Chem. Theory
    Comput. 3, 26, 2007), so that samples count as independent.

    Args:
        records: replicas of one sweep at one pressure.
        equilibration: fraction of each run that is left out.

    Raises:
        InputError: a temperature with a lost replica or too few samples, or fewer than two temperatures.
    """
    temperatures = sorted({record.temperature_K for record in records})
    if len(temperatures) < 2:
        raise InputError(f"{len(temperatures)} temperature in the sweep; a ladder needs at least two")
    enthalpies, inefficiencies = [], []
    for kelvin in temperatures:
        mine = [record for record in records if record.temperature_K == kelvin]
        lost = [record for record in mine if record.status != "ok"]
        if lost:
            raise InputError(
                f"{kelvin:g} K: replica {lost[0].replica} is {lost[0].status} ({lost[0].reason}); "
                "leave this temperature out of `temperatures`"
            )
        kept, slowest = [], 1.0
        for record in mine:
            volume = np.abs(np.linalg.det(np.asarray(record.cell, np.float64)))
            series = np.asarray(record.potential_energy, np.float64) + record.pressure_GPa * GIGAPASCAL * volume
            series = series[math.ceil(equilibration * len(series)) :]
            inefficiency = statistical_inefficiency(series)
            kept.append(series[:: math.ceil(inefficiency)])
            slowest = max(slowest, inefficiency)
        samples = np.concatenate(kept)
        if len(samples) < FEWEST:
            raise InputError(
                f"{kelvin:g} K: {len(samples)} independent samples, at least {FEWEST} are needed; "
                "take more `steps` or `replicas`"
            )
        enthalpies.append(samples)
        inefficiencies.append(slowest)
    return EnthalpySamples(np.array(temperatures), tuple(enthalpies), np.array(inefficiencies))
