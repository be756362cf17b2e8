"""COMMAND python -m jaxpto.free_energy: free energy, entropy and heat capacity against temperature, with errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from jaxpto.console.command import run_command
from jaxpto.console.terminal import console
from jaxpto.errors import InputError
from jaxpto.free_energy.config import (
    FreeEnergyConfig,
    HarmonicOptions,
    LandauOptions,
    MethodName,
    QuasiharmonicOptions,
    SwitchingOptions,
)
from jaxpto.free_energy.harmonic.method import run_harmonic
from jaxpto.free_energy.ladder.method import run_ladder
from jaxpto.free_energy.landau.method import run_landau
from jaxpto.free_energy.quasiharmonic.method import run_quasiharmonic
from jaxpto.free_energy.switching.method import run_switching
from jaxpto.storage.lock import one_run
from jaxpto.storage.output import check_output_folder

__all__ = ["FreeEnergyConfig", "main", "run"]

METHODS: dict[MethodName, Callable[[FreeEnergyConfig, Console], Any]] = {
    "ladder": run_ladder,
    "switching": run_switching,
    "landau": run_landau,
    "harmonic": run_harmonic,
    "qha": run_quasiharmonic,
}
GROUPS: dict[MethodName, Any] = {
    "switching": SwitchingOptions(),
    "landau": LandauOptions(),
    "harmonic": HarmonicOptions(),
    "qha": QuasiharmonicOptions(),
}
BORROWED: dict[MethodName, MethodName] = {"qha": "harmonic"}  # methods that take the options of another one too


def run(config: FreeEnergyConfig) -> Any:
    """Run or continue the chosen method, write the output folder, and return its result.

    Raises:
        InputError: settings that cannot be used, or the method refuses its samples; simulations are kept.
    """
    if not (math.isfinite(config.equilibration) and 0.0 <= config.equilibration < 1.0):
        raise InputError(f"--equilibration {config.equilibration:g}: must be in [0, 1)")
    for name, unchanged in GROUPS.items():
        if name not in (config.method, BORROWED.get(config.method)) and getattr(config, name) != unchanged:
            raise InputError(f"--{name}.* given with --method {config.method}; they belong to --method {name}")
    check_output_folder(config.out, resume=True)  # whether it is in use, each method says
    with one_run(config.out):
        return METHODS[config.method](dataclasses.replace(config, supercell=config.repeats), console(FreeEnergyConfig))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("jaxpto.free_energy", FreeEnergyConfig, run, argv)
