"""Settings of the PTO-test: its scales, its stages, and the checks that refuse what cannot run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from jaxpto.errors import InputError
from jaxpto.md.config import PRESETS, SweepConfig

StageName = Literal["cells", "phonons", "npt", "nvt", "speed"]
ScaleName = Literal["quick", "small", "paper"]
STAGES: tuple[StageName, ...] = ("cells", "phonons", "npt", "nvt", "speed")
TIMESTEP = PRESETS["pto-test"].timestep
# settings that a resumed test may change: which parts are done, where and by whom, not what each of them is
FREE = ("models", "out", "stages", "both_starts", "hours", "resume", "reference", "devices", "distributed", "plan")


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large and how long the test is.

    Attributes:
        supercell: repeats of the five-atom cell in the ladders.
        picoseconds: length of the run at each temperature.
        npt, nvt: temperatures, K.
        phonons: supercell of the force constants.
        cells: S of the S x S x S supercells of the speed test.
        sample_every: steps between two samples of a ladder.
    """

    supercell: tuple[int, int, int]
    picoseconds: float
    npt: tuple[float, ...]
    nvt: tuple[float, ...]
    phonons: tuple[int, int, int]
    cells: tuple[int, ...]
    sample_every: int


_HUNDREDS = tuple(float(kelvin) for kelvin in range(300, 1400, 100))
SCALES: dict[ScaleName, Scale] = {
    "paper": Scale((5, 5, 5), 100.0, _HUNDREDS[:8], _HUNDREDS, (2, 2, 2), tuple(range(1, 11)), 50),
    "small": Scale((3, 3, 3), 20.0, _HUNDREDS[:8], _HUNDREDS, (2, 2, 2), (1, 2, 3, 5), 20),
    "quick": Scale((2, 2, 2), 2.0, (300.0, 600.0, 900.0), (300.0, 700.0, 1100.0), (2, 2, 2), (1, 2), 10),
}


@dataclasses.dataclass(frozen=True)
class PtoTestConfig:
    """The PTO-test: does a model get the finite-temperature dynamics of PbTiO3, or of another ferroelectric, right?

    Every stage of every model is a run of its own that can be killed and resumed; what exists is not done again.

    Attributes:
        models: names of models or model folders; `NAME:stress-in-GPa` and `NAME:old-neighbors` repeat what published
            results rest on.
        out: folder to write; a test that it holds is continued with `resume`, by further models or stages too.
        scale: quick (2x2x2, 2 ps, minutes), small (3x3x3, 20 ps) or paper (5x5x5, 100 ps).
        stages: cells (0 K), phonons, npt, nvt (at the experimental lattice) and speed.
        both_starts: a second ladder at constant pressure, from the cubic cell.
        structures: polar and cubic cell, files that ASE reads or built-in structures.
        lattice: a and c in Angstrom at which nvt holds the polar cell; by default those of PbTiO3-experimental for the
            built-in structures and those of the file otherwise.
        picoseconds: length of the run at each temperature, in place of the scale's.
        temperatures: K, both ladders' in place of the scale's.
        replicas: independent runs at each temperature.
        seed: seed of velocities and thermostat noise.
        hours: refuse a test that is expected to take longer.
        plan: print what the test is expected to cost, and end.
        reference: band.yaml of phonopy along the same path, to draw beside the models' bands.
        resume: continue the test in the output folder, or start it if nothing is there.
        devices: devices to spread the replicas over; 0 takes all.
        distributed: run the ladders in several processes that share the output folder, as in jaxpto.sweep.
    """

    models: tuple[str, ...]
    out: str
    scale: ScaleName = "small"
    stages: tuple[StageName, ...] = STAGES
    both_starts: bool = False
    structures: tuple[str, str] = ("PbTiO3-tetragonal", "PbTiO3-cubic")
    lattice: tuple[float, float] | None = None
    picoseconds: float | None = None
    temperatures: tuple[float, ...] | None = None
    replicas: int = 1
    seed: int = 0
    hours: float | None = None
    plan: bool = False
    reference: Path | None = None
    resume: bool = False
    devices: int = 0
    distributed: str | None = None

    @property
    def settled(self) -> Scale:
        """The scale with what the settings put in its place."""
        scale = SCALES[self.scale]
        if self.picoseconds is not None:
            scale = dataclasses.replace(scale, picoseconds=self.picoseconds)
        if self.temperatures is not None:
            scale = dataclasses.replace(scale, npt=self.temperatures, nvt=self.temperatures)
        return scale

    @property
    def steps(self) -> int:
        """Time steps of each temperature."""
        return max(1, round(1000.0 * self.settled.picoseconds / TIMESTEP))


def check(config: PtoTestConfig) -> None:
    """Refuse settings that cannot run; those of the ladders are checked as a sweep's.

    Raises:
        InputError: one line with the value, the limit and the remedy.
    """

    def require(condition: bool, name: str, limit: str) -> None:
        if not condition:
            value = getattr(config, name)
            spelled = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise InputError(f"`{name}={spelled}`: {limit}")

    require(bool(config.models), "models", "name at least one model; python -m jaxpto lists them")
    for name in ("models", "stages"):
        values = getattr(config, name)
        require(len(set(values)) == len(values), name, "something is named twice; name each once")
    require(bool(config.stages), "stages", f"name at least one of {', '.join(STAGES)}")
    if config.picoseconds is not None:
        require(
            math.isfinite(config.picoseconds) and config.picoseconds >= TIMESTEP / 1000.0,
            "picoseconds", f"must be at least one time step, {TIMESTEP / 1000.0:g} ps",
        )  # fmt: skip
    if config.lattice is not None:
        fine = all(math.isfinite(length) and 2.0 <= length <= 100.0 for length in config.lattice)
        require(fine, "lattice", "give a and c in Angstrom, as in 3.90 4.15")
    if config.hours is not None:
        require(math.isfinite(config.hours) and config.hours > 0.0, "hours", "must be above 0")
    if config.reference is not None:
        require(config.reference.is_file(), "reference", "there is no such file; give a band.yaml of phonopy")


def identity(config: PtoTestConfig) -> dict[str, Any]:
    """What makes a test this one, as JSON values."""
    everything = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in (*FREE, "scale", "temperatures")
    } | dataclasses.asdict(config.settled)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in everything.items()}


def ladder_config(config: PtoTestConfig, model: str, structure: str, ensemble: Literal["npt", "nvt"]) -> SweepConfig:
    """The sweep of one ladder, with the thermostat and barostat of the paper's scripts; `out` is left to the caller.

    Args:
        config: the settings of the test.
        model: name or folder.
        structure: file or built-in structure.
        ensemble: what the ladder samples.
    """
    scale = config.settled
    return dataclasses.replace(
        PRESETS["pto-test"],
        structure=structure,
        model=model,
        supercell=scale.supercell,
        temperatures=scale.npt if ensemble == "npt" else scale.nvt,
        ensemble=ensemble,
        steps=config.steps,
        sample_every=min(scale.sample_every, config.steps),
        seed=config.seed,
        replicas=config.replicas,
        devices=config.devices,
        distributed=config.distributed,
        resume=True,
    )
