"""Settings of the sweep from which a method takes its samples."""

from __future__ import annotations

from pathlib import Path

from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.md.config import SweepConfig


def sweep_settings(config: FreeEnergyConfig, folder: Path) -> SweepConfig:
    """Settings of the sweep in `folder` for a free energy; an existing one is continued."""
    return SweepConfig(
        structure=config.structure,
        model=config.model,
        supercell=config.repeats,
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
        format=config.format,
        species=config.species,
    )
