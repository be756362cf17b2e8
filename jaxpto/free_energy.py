"""COMMAND python -m jaxpto.free_energy: free energy, entropy and heat capacity against temperature, with errors."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console

from jaxpto.command import run_command
from jaxpto.config import SweepConfig
from jaxpto.errors import InputError
from jaxpto.provenance import provenance
from jaxpto.report import load_run
from jaxpto.structures import read_structure
from jaxpto.sweep import run as run_sweep
from jaxpto.thermodynamics.ladder_analysis import LadderResult, analyse
from jaxpto.thermodynamics.ladder_output import Subject, write_ladder
from jaxpto.thermodynamics.samples import enthalpy_samples


@dataclasses.dataclass(frozen=True)
class FreeEnergyConfig:
    """Free energy, entropy and heat capacity of a crystal against temperature, from classical molecular dynamics."""

    structure: tyro.conf.Positional[str] = "PbTiO3-tetragonal"
    """File in any ASE format, or PbTiO3-tetragonal, PbTiO3-cubic."""
    model: str = "perovskite"
    """Name of a model, or a model folder."""
    method: Literal["ladder"] = "ladder"
    """ladder: a temperature sweep, by MBAR and by Gibbs-Helmholtz integration."""
    supercell: tuple[int, int, int] = (3, 3, 3)
    """Repeats along the lattice vectors; the larger, the closer the temperatures have to be."""
    temperatures: tuple[float, ...] = tuple(float(kelvin) for kelvin in range(300, 901, 50))
    """Of the ladder, K."""
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
    """Output folder; the sweep in it is continued, or used as it is once it has finished."""


def run(config: FreeEnergyConfig) -> LadderResult:
    """Run the sweep (or go on with it), analyse it, write the output folder, and return what was found.

    Raises:
        InputError: settings that cannot be used, or a sweep that is no ladder: temperatures that do not overlap, lost
            replicas, too few samples; the sweep itself is kept.
    """
    console = Console()
    if not (math.isfinite(config.equilibration) and 0.0 <= config.equilibration < 1.0):
        raise InputError(f"--equilibration {config.equilibration:g}: must be in [0, 1)")
    if len(config.temperatures) < 2:
        raise InputError(f"--temperatures {len(config.temperatures)} value: a ladder needs at least two")
    cell = read_structure(config.structure)
    folder = config.out / "sweep"
    if config.out.is_dir() and any(config.out.iterdir()) and not folder.exists():
        raise InputError(f"--out {config.out} exists and holds something else; name a new folder")
    run_sweep(_sweep_config(config, folder))
    finished = load_run(folder)
    cells = math.prod(config.supercell)
    atoms = cells * len(cell)
    freedom = 3 * atoms - 3 if config.ensemble == "npt" else 3 * atoms
    samples = enthalpy_samples(finished.records, config.equilibration)
    wanted = np.linspace(samples.temperatures[0], samples.temperatures[-1], 1 + 4 * (len(samples.temperatures) - 1))
    console.print("MBAR and bootstrap ...", highlight=False)
    result = analyse(samples, wanted, freedom, seed=config.seed)
    formula, units = cell.symbols.formula.reduce()
    subject = Subject(formula.format("metal"), config.model, cells * units, atoms, config.ensemble == "npt")
    write_ladder(result, subject, config.out, dataclasses.asdict(config) | provenance(), console)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("jaxpto.free_energy", FreeEnergyConfig, run, argv)


def _sweep_config(config: FreeEnergyConfig, folder: Path) -> SweepConfig:
    """The sweep that the ladder is sampled by; continued if it is there."""
    return SweepConfig(
        structure=config.structure,
        model=config.model,
        supercell=config.supercell,
        temperatures=config.temperatures,
        ensemble=config.ensemble,
        steps=config.steps,
        timestep=config.timestep,
        pressure=config.pressure,
        mask=config.mask,
        seed=config.seed,
        replicas=config.replicas,
        out=str(folder),
        resume=True,
        equilibration=config.equilibration,
        sample_every=config.sample_every,
    )


if __name__ == "__main__":
    sys.exit(main())
