"""Settings for tuning a model to measured averages, and the simulations that this needs."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxpto.errors import InputError, settings_of
from jaxpto.md.config import SweepConfig
from jaxpto.structures import repeats_of
from jaxpto.training.ensembles import Plan, make_plan
from jaxpto.training.targets import MeasuredAverage, conditions


@dataclasses.dataclass(frozen=True)
class MatchOptions:
    """How a model is tuned to measured averages."""

    structure: str = "PbTiO3-tetragonal"
    """What is simulated: a file in any ASE format, or PbTiO3-tetragonal, PbTiO3-cubic, PbTiO3-experimental."""
    supercell: tuple[int, int, int] | None = None
    """Repeats along the lattice vectors; averages depend on the size of a small crystal. By default 3 3 3 for built-in
    structures; a file is taken as it is, 1 1 1."""
    mask: Literal["iso", "diag", "full"] = "diag"
    """Cell degrees of freedom: iso (volume), diag (three edges along x, y, z), full (six)."""
    replicas: int = 8
    """Independent runs at each temperature and pressure."""
    steps: int = 4000
    """Time steps of each run, equilibration included."""
    timestep: float = 2.0
    """fs."""
    equilibration: float = 0.3
    """Fraction of each run left out."""
    sample_every: int = 20
    """Steps between two frames."""
    iterations: int = 60
    """Changes of the parameters at most; fewer if all targets are met before."""
    rate: float = 1e-5
    """Learning rate of Adam: the largest change of a weight in one iteration."""
    weight: float = 1.0
    """Weight of the squared deviations, in units of the tolerance, relative to the loss on DFT data."""
    tolerance: float = 0.001
    """Relative deviation that is good enough."""
    frames: int = 32
    """Frames of DFT data in each gradient."""
    effective: float = 0.5
    """Configurations are sampled anew before the effective number of them falls below this fraction."""
    format: str | None = None
    """Format of the structure's file, as ASE calls it (vasp, cif, extxyz, lammps-data, ...); guessed by default."""
    species: tuple[str, ...] | None = None
    """Element of each atom type, for files of LAMMPS that name none."""

    @property
    def repeats(self) -> tuple[int, int, int]:
        """Repeats along the lattice vectors, the default settled."""
        return repeats_of(self.structure, self.supercell, (3, 3, 3))


def check_matching(options: MatchOptions) -> None:
    """Refuse options that cannot be used; `make_plan` checks those of the simulation.

    Raises:
        InputError: a number out of range.
    """
    for name in ("iterations", "rate", "tolerance", "frames"):
        value = getattr(options, name)
        if not 0 < value < math.inf:
            raise InputError(f"`{name}={value:g}`: it must be above 0")
    if not 0 <= options.weight < math.inf:
        raise InputError(f"`weight={options.weight:g}`: it must be 0 or more")
    if not 0 < options.effective < 1:
        raise InputError(f"`effective={options.effective:g}`: it must lie in (0, 1)")


def plan_of(options: MatchOptions, targets: tuple[MeasuredAverage, ...], seed: int) -> Plan:
    """The simulations that targets need.

    Raises:
        InputError: settings that cannot run, or a polarization target for a structure without one.
    """
    settings = SweepConfig(
        structure=options.structure,
        supercell=options.repeats,
        mask=options.mask,
        replicas=options.replicas,
        steps=options.steps,
        timestep=options.timestep,
        equilibration=options.equilibration,
        sample_every=options.sample_every,
        seed=seed,
        format=options.format,
        species=options.species,
    )
    with settings_of("matching"):
        plan = make_plan(settings, conditions(targets))
    if plan.topology is None and any(target.observable == "polarization" for target in targets):
        raise InputError(f"`match` polarization: {plan.note}")
    return plan
