"""Method ladder: a temperature sweep, by MBAR over its temperatures and by Gibbs-Helmholtz integration."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from rich.console import Console

from jaxpto.errors import InputError
from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.free_energy.estimators.samples import enthalpy_samples
from jaxpto.free_energy.estimators.transition import phase_bracket
from jaxpto.free_energy.ladder.analysis import LadderResult, analyse_ladder
from jaxpto.free_energy.ladder.output import write_ladder
from jaxpto.free_energy.sweep_settings import sweep_settings
from jaxpto.integrators import ENSEMBLES
from jaxpto.md.sweep_run import run_sweep
from jaxpto.observables.summary import summarize, transitions
from jaxpto.perovskite.measurements import crystal_measurements
from jaxpto.reporting.provenance import provenance
from jaxpto.reporting.stored_sweep import load_sweep
from jaxpto.reporting.subject import Subject
from jaxpto.storage.output import check_output_folder
from jaxpto.structures import read_input


def run_ladder(config: FreeEnergyConfig, console: Console) -> LadderResult:
    """Run the sweep (or go on with it), analyse it, write the output folder, and return what was found.

    Raises:
        InputError: settings that cannot be used, temperatures that do not overlap, lost replicas or too few samples;
            the sweep itself is kept.
    """
    if len(config.temperatures) < 2:
        raise InputError(f"`temperatures` {len(config.temperatures)} value: a ladder needs at least two")
    cell = read_input(config.structure, "dynamics", format=config.format, species=config.species).atoms
    folder = config.out / "sweep"
    check_output_folder(config.out, resume=folder.exists())
    run_sweep(sweep_settings(config, folder), crystal_measurements)
    finished = load_sweep(folder)
    cells = math.prod(config.repeats)
    atoms = cells * len(cell)
    freedom = ENSEMBLES[config.ensemble].degrees_of_freedom(atoms)
    samples = enthalpy_samples(finished.records, config.equilibration)
    wanted = np.linspace(samples.temperatures[0], samples.temperatures[-1], 1 + 4 * (len(samples.temperatures) - 1))
    console.print("MBAR and bootstrap ...")
    rows = summarize(finished.records, finished.unit, finished.equilibration)
    found = next(iter(transitions(rows)), None)
    bracket = phase_bracket(samples.temperatures, found.lower_K, found.upper_K) if found else None
    result = analyse_ladder(samples, wanted, freedom, bracket=bracket, seed=config.seed)
    formula, units = cell.symbols.formula.reduce()
    flexible = ENSEMBLES[config.ensemble].flexible_cell
    subject = Subject(formula.format("metal"), config.model, cells * units, atoms, flexible, finished.caveat)
    write_ladder(result, subject, config.out, dataclasses.asdict(config) | provenance(), console)
    return result
