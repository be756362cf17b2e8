"""Settings of the free-energy command: those all methods share, and a group for each method that needs its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

MethodName = Literal["ladder"]


@dataclasses.dataclass(frozen=True)
class FreeEnergyConfig:
    """Free energy, entropy and heat capacity of a crystal against temperature."""

    structure: tyro.conf.Positional[str] = "PbTiO3-tetragonal"
    """File in any ASE format, or PbTiO3-tetragonal, PbTiO3-cubic."""
    model: str = "perovskite"
    """Name of a model, or a model folder."""
    method: MethodName = "ladder"
    """ladder: a temperature sweep, by MBAR and by Gibbs-Helmholtz integration."""
    supercell: tuple[int, int, int] = (3, 3, 3)
    """Repeats along the lattice vectors; the larger, the closer the temperatures of a ladder have to be."""
    temperatures: tuple[float, ...] = tuple(float(kelvin) for kelvin in range(300, 901, 50))
    """K."""
    ensemble: Literal["npt", "nvt"] = "npt"
    """npt: Gibbs energy, Cp; nvt: Helmholtz energy, Cv at fixed cell."""
    steps: int = 20_000
    """Time steps of each replica."""
    timestep: float = 2.0
    """fs."""
    replicas: int = 1
    """Independent runs at each temperature."""
    pressure: float = 0.0
    """GPa."""
    mask: Literal["iso", "diag", "full"] = "diag"
    """Cell degrees of freedom in npt: iso (volume), diag (three edges), full (six)."""
    equilibration: float = 0.3
    """Fraction of each run left out."""
    sample_every: int = 20
    """Steps between two samples."""
    seed: int = 0
    """Of velocities and noise, and of the bootstrap."""
    out: Path = Path("runs/free-energy")
    """Output folder; the simulation in it is continued, or used as it is once it has finished."""
