"""thermo.csv: the time series of every observable of a run as one table, for pandas or a spreadsheet."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxpto.storage.files import replacing
from jaxpto.storage.run_folder import OUTCOME_FILE, THERMO_FILE
from jaxpto.storage.trajectory import Quantity, observable_blocks, stored_quantities
from jaxpto.units import spell_unit

BYTES_OF_A_NUMBER = 14  # in the table, its comma included


def write_thermo(folder: Path) -> None:
    """Write thermo.csv from the trajectories of a finished run, some frames at a time.

    One line a frame: target_K, replica, step, time_fs, and a column for each component of each observable with the
    unit in its name, as in stress_xx_eV_per_A3. Vectors and tensors are those of the trajectory, whose x lies along a.
    What a crystal does not have (NaN, such as the polarization of argon) gets no column.

    Args:
        folder: holds outcome.json and trajectories/.

    Raises:
        InputError: a trajectory is missing or damaged.
        StorageError: the disk refuses the file.
    """
    outcome = json.loads((folder / OUTCOME_FILE).read_text(encoding="utf-8"))
    runs = [(float(one["temperature_K"]), folder / "trajectories" / one["trajectory"]) for one in outcome["replicas"]]
    quantities = _measured([path for _, path in runs])
    names = itertools.chain.from_iterable(columns(name, one) for name, one in quantities.items())
    replicas: Counter[float] = Counter()
    with replacing(folder / THERMO_FILE) as temporary, open(temporary, "w", encoding="utf-8") as file:
        print("target_K", "replica", "step", "time_fs", *names, sep=",", file=file)
        for kelvin, path in runs:
            file.writelines(f"{kelvin:.17g},{replicas[kelvin]},{line}\n" for line in _lines(path, quantities))
            replicas[kelvin] += 1


def columns(name: str, quantity: Quantity) -> list[str]:
    """Headings of the components of an observable, as in polarization_x_C_per_m2."""
    unit = spell_unit(quantity.unit).replace("/", " per ").replace("^", "").split()
    return ["_".join([component, *unit]) for component in quantity.components(name)]


def _measured(paths: list[Path]) -> dict[str, Quantity]:
    """The observables of a run that have a value at its start."""
    for path in paths:
        for first in observable_blocks(path, 1):
            there = {name for name, values in first.items() if np.isfinite(values).any()}
            return {name: one for name, one in stored_quantities(path).items() if name in there}
    return {}


def _lines(path: Path, quantities: dict[str, Quantity]) -> Iterator[str]:
    """The table's lines of one replica, from its step on."""
    size = sum(math.prod(one.shape) for one in quantities.values())
    for block in observable_blocks(path):
        frames = len(block["step"])
        parts = [np.reshape(block[name], (frames, -1)) for name in quantities]
        values = np.concatenate(parts, axis=1) if parts else np.empty((frames, 0), np.float32)
        # as many digits as tell any two numbers of this precision apart
        form = "%d,%.10g" + (",%.9g" if values.dtype == np.float32 else ",%.17g") * size
        for step, time, row in zip(block["step"].tolist(), block["time"].tolist(), values.tolist(), strict=True):
            yield (form % (step, time, *row)).replace("nan", "")
