"""Measured averages that a model is tuned to: how they are written, and the observables of a frame."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
from jaxtyping import Float, Int

from jaxpto.errors import InputError
from jaxpto.observables.lattice import UnitCell, lattice_parameters
from jaxpto.units import spell_kelvin

UNITS = {"c_over_a": "", "a": "A", "c": "A", "volume": "A^3", "polarization": "C/m^2"}
FORM = 'write OBSERVABLE@TEMPERATUREK=VALUE or OBSERVABLE@TEMPERATUREK,PRESSUREGPa=VALUE, as in "c_over_a@300K=1.063"'
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TARGET = re.compile(rf"\s*(\w+)\s*@\s*({_NUMBER})\s*K\s*(?:,\s*({_NUMBER})\s*GPa\s*)?=\s*({_NUMBER})\s*")


@dataclasses.dataclass(frozen=True)
class MeasuredAverage:
    """A measured average.

    Attributes:
        observable: one of `UNITS`.
        temperature: K.
        pressure: GPa.
        value: measured value, in the unit of the observable.
    """

    observable: str
    temperature: float
    pressure: float
    value: float

    @property
    def condition(self) -> tuple[float, float]:
        """Temperature (K) and pressure (GPa)."""
        return self.temperature, self.pressure

    @property
    def name(self) -> str:
        """What it is an average of, as in "c_over_a@300K"."""
        squeezed = f",{self.pressure:g}GPa" if self.pressure else ""
        return f"{self.observable}@{spell_kelvin(self.temperature)}K{squeezed}"


def parse_target(text: str) -> MeasuredAverage:
    """Read a target such as "c_over_a@300K=1.063" or "volume@300K,2GPa=61.5".

    Raises:
        InputError: it cannot be read, names an unknown observable, or holds an impossible number.
    """
    found = _TARGET.fullmatch(text)
    if found is None:
        raise InputError(f"`match` {text!r} cannot be read; {FORM}")
    observable, temperature, pressure, value = found[1], float(found[2]), float(found[3] or 0.0), float(found[4])
    if observable not in UNITS:
        raise InputError(f"`match` {text!r}: unknown observable {observable!r}; choose one of {', '.join(UNITS)}")
    if not 0.0 < temperature < math.inf:
        raise InputError(f"`match` {text!r}: {spell_kelvin(temperature)} K; the temperature must be above 0 K")
    if not math.isfinite(pressure):
        raise InputError(f"`match` {text!r}: {pressure:g} GPa; the pressure must be finite")
    if not 0.0 < value < math.inf:
        raise InputError(f"`match` {text!r}: {value:g}; the value must be above 0")
    return MeasuredAverage(observable, temperature, pressure, value)


def parse_targets(texts: tuple[str, ...]) -> tuple[MeasuredAverage, ...]:
    """Read all targets of a run.

    Raises:
        InputError: `parse_target` refuses one, or there are two targets for one average.
    """
    targets = tuple(map(parse_target, texts))
    names = [target.name for target in targets]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"`match={twice[0]}` is given twice; give one value for it")
    return targets


def conditions(targets: tuple[MeasuredAverage, ...]) -> list[tuple[float, float]]:
    """Temperatures (K) and pressures (GPa) that have to be simulated, in the order of the targets."""
    return list(dict.fromkeys(target.condition for target in targets))


def observe(
    cells: Float[np.ndarray, "f 3 3"],
    polarizations: Float[np.ndarray, "f 3"],
    unit: UnitCell,
) -> dict[str, Float[np.ndarray, " f"]]:
    """Every observable of `UNITS` in every frame, for the unit cell.

    c lies along the component of the polarization that is largest in the frame, a is the mean of the two others: a
    small crystal turns its polar axis now and then. Without a polarization (NaN) c is the third axis.

    Args:
        cells: [f, 3, 3] Angstrom.
        polarizations: [f, 3] C/m^2, or NaN.
        unit: the unit cell, such as the 5-atom cell of a perovskite.
    """
    lattice = lattice_parameters(cells, unit)
    vectors = np.einsum("fkx,fx->fk", lattice.frame, np.asarray(polarizations, np.float64))
    polar = _polar_axis(vectors)
    c = np.take_along_axis(lattice.lengths, polar[:, None], axis=1)[:, 0]
    a = 0.5 * (lattice.lengths.sum(axis=1) - c)
    along = np.take_along_axis(np.abs(vectors), polar[:, None], axis=1)[:, 0]
    return {"c_over_a": c / a, "a": a, "c": c, "volume": lattice.volume, "polarization": along}


def _polar_axis(polarizations: Float[np.ndarray, "f 3"]) -> Int[np.ndarray, " f"]:
    known = np.isfinite(polarizations).all(axis=1)
    return np.where(known, np.argmax(np.nan_to_num(np.abs(polarizations)), axis=1), 2)
