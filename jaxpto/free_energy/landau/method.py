"""Method landau: free energy against polarization, by umbrella windows at every temperature run as one batch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxpto.console.command import configure_devices
from jaxpto.errors import InputError
from jaxpto.free_energy.config import FreeEnergyConfig, LandauOptions
from jaxpto.free_energy.landau.analysis import LandauResult, Windows, WindowSamples, analyse_windows, thinned
from jaxpto.free_energy.landau.output import write_landau
from jaxpto.free_energy.landau.umbrella import Umbrella, biased, displaced, settled
from jaxpto.free_energy.sweep_settings import sweep_settings
from jaxpto.integrators.ensembles import ENSEMBLES
from jaxpto.integrators.parametrised import parametrised
from jaxpto.integrators.state import Integrator
from jaxpto.md.config import check
from jaxpto.md.preparation import Setup, prepare
from jaxpto.md.sweep_run import simulate
from jaxpto.model_interface import EvaluateFn
from jaxpto.models.ase_calculator import PREFIX as HOST_PREFIX
from jaxpto.observables.observable import general_observables
from jaxpto.perovskite.measurements import crystal_measurements
from jaxpto.perovskite.polarization import PolarizationTopology, build_topology
from jaxpto.platform import local_devices
from jaxpto.reporting.provenance import provenance
from jaxpto.reporting.stored_sweep import load_sweep
from jaxpto.reporting.subject import Subject
from jaxpto.storage.output import check_output_folder
from jaxpto.system import from_ase, unstack
from jaxpto.units import BOLTZMANN

WINDOWS_OF_EIGHT = 16  # a window for every 1/15 of the range with eight formula units: barriers grow with the cell
SPACING = 1.5  # of the windows, in units of the width of the bias at the lowest temperature


def run_landau(config: FreeEnergyConfig, console: Console) -> LandauResult:
    """Run all windows at all temperatures (or go on with them), analyse them, write the folder, return what was found.

    Raises:
        InputError: settings that cannot be used, a structure without polarization, or windows that do not overlap or
            were sampled too little; what was simulated is kept.
    """
    check_landau(config.landau)
    folder = config.out / "windows"
    check_output_folder(config.out, resume=folder.exists())
    sweep = dataclasses.replace(sweep_settings(config, folder), replicas=1, charges=config.landau.charges)
    check(sweep)
    configure_devices(1 if config.model.startswith(HOST_PREFIX) else None)
    plain = prepare(sweep, crystal_measurements)
    atoms = plain.batch.atoms
    topology, why_not = build_topology(atoms, config.landau.charges, np.dtype(sweep.dtype))
    if topology is None:
        raise InputError(f"{config.structure}: {why_not}")
    units = len(atoms) // 5
    windows = choose_windows(config.landau, min(config.temperatures), units)
    setup = window_setup(config, plain, topology, windows)
    formula = atoms.symbols.formula.reduce()[0].format("metal")
    devices = local_devices()
    plan = (
        f"{formula}, {len(atoms)} atoms, {len(windows.centers)} windows from {windows.centers[0]:g} to "
        f"{windows.centers[-1]:g} C/m^2 with K = {windows.strength:.3g} eV/(C/m^2)^2, at {len(config.temperatures)} "
        f"temperatures: {len(setup.batch.temperatures)} replicas, {config.steps} steps of {config.timestep:g} fs, "
        f"model {plain.batch.potential.name}, {len(devices)} {devices[0].platform.upper()} device(s)"
    )
    marks = {"windows": {"centers": windows.centers.tolist(), "strength": _strengths(setup)}}
    simulate(setup, folder, console, announced=(*plain.notes, plan), marks=marks)
    sampled = read_windows(folder, windows, config)
    console.print("MBAR and bootstrap ...")
    result = analyse_windows(sampled, windows, seed=config.seed)
    flexible, caveat = ENSEMBLES[config.ensemble].flexible_cell, plain.batch.potential.caveat
    subject = Subject(formula, config.model, units, len(atoms), flexible, caveat)
    write_landau(result, subject, config.out, dataclasses.asdict(config) | provenance(), console)
    return result


def check_landau(options: LandauOptions) -> None:
    """Refuse impossible windows.

    Raises:
        InputError: one line with the value, the limit and the remedy.
    """
    low, high = options.range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"`range=({low:g}, {high:g})`: give the lowest and the highest centre in C/m^2")
    if options.symmetric and low != 0.0:
        raise InputError(f"`range=({low:g}, {high:g})`: starts at 0 where F(P) = F(-P) is used; add `symmetric=False`")
    if not options.symmetric and not low < 0.0 < high:
        raise InputError(f"`range=({low:g}, {high:g})`: must hold P = 0 within, where the barrier is")
    if options.windows is not None and options.windows < 4:
        raise InputError(f"`windows={options.windows}`: at least 4 are needed, 16 are usual")
    if options.strength is not None and not (math.isfinite(options.strength) and options.strength > 0.0):
        raise InputError(f"`strength={options.strength:g}`: must be above 0 eV/(C/m^2)^2")
    if options.transverse is not None and not (math.isfinite(options.transverse) and options.transverse >= 0.0):
        raise InputError(f"`transverse={options.transverse:g}`: must be 0 (free) or above, in eV/(C/m^2)^2")


def choose_windows(options: LandauOptions, coldest: float, units: int) -> Windows:
    """Centres and strength from the options, or such that neighbouring windows overlap at the lowest temperature.

    Args:
        options: options that `check_landau` accepts.
        coldest: lowest temperature, K.
        units: formula units in the cell; the barrier grows with it, and the number of windows with its root.

    Raises:
        InputError: the bias is so strong that neighbouring windows cannot overlap.
    """
    low, high = options.range
    share = 1.0 if options.symmetric else 2.0
    number = options.windows or 1 + max(6, round(share * (WINDOWS_OF_EIGHT - 1) * math.sqrt(units / 8.0)))
    spacing = (high - low) / (number - 1)
    kT = BOLTZMANN * coldest
    strength = kT * (SPACING / spacing) ** 2 if options.strength is None else options.strength
    apart = spacing * math.sqrt(strength / kT)
    if apart > 4.0:
        enough = 1 + math.ceil((number - 1) * apart / 2.0)
        raise InputError(
            f"`strength={strength:g}`: {number} windows are {apart:.1f} widths of the bias apart at "
            f"{coldest:g} K, at most 4 will do; take `windows={enough}`, or a strength of "
            f"{kT * (SPACING / spacing) ** 2:.3g}"
        )
    return Windows(np.linspace(low, high, number), strength, options.symmetric)


def window_setup(config: FreeEnergyConfig, plain: Setup, topology: PolarizationTopology, windows: Windows) -> Setup:
    """The batch: at each temperature every window, each as often as `replicas` says, started near its centre."""
    number = len(windows.centers) * config.replicas
    sweep = dataclasses.replace(plain.config, replicas=number)
    setup = prepare(sweep, crystal_measurements)
    batch, dtype = setup.batch, np.dtype(sweep.dtype)
    transverse = windows.strength if config.landau.transverse is None else config.landau.transverse
    z = np.zeros((len(windows.centers), 3), dtype)
    z[:, 2] = windows.centers
    system = from_ase(batch.atoms, dtype)
    starts = jax.jit(jax.vmap(lambda target: displaced(system, topology, target)))(z)
    layout = batch.potential.allocate([system, *unstack(jax.device_get(starts))], batch.potential.usual_skin)
    descend = jax.jit(
        lambda potential: jax.vmap(lambda start: settled(potential.evaluate, start, topology, layout))(starts)
    )
    place = np.tile(np.repeat(np.arange(len(z)), config.replicas), len(config.temperatures))
    systems = jax.tree.map(lambda leaf: leaf[place], descend(batch.potential))
    centers = jnp.asarray(z[place])
    strengths = jnp.broadcast_to(jnp.asarray([transverse, transverse, windows.strength], dtype), centers.shape)

    def method(evaluate: EvaluateFn) -> Integrator:
        return parametrised(setup.batch.method, biased(evaluate, topology))

    batch = dataclasses.replace(
        batch,
        method=method,
        observables=(*general_observables(method), *setup.measurements.observables),
        start=dataclasses.replace(batch.start, systems=systems, parameters=Umbrella(centers, strengths)),
    )
    return dataclasses.replace(setup, batch=batch)


def read_windows(folder: Path, windows: Windows, config: FreeEnergyConfig) -> list[WindowSamples]:
    """Independent samples of all windows from the finished trajectories, by ascending temperature.

    Raises:
        InputError: a lost replica, or too few samples.
    """
    records = load_sweep(folder).records
    number = len(windows.centers)
    sampled = []
    for kelvin in sorted(config.temperatures):
        mine = [record for record in records if record.temperature_K == kelvin]
        series: list[list[np.ndarray]] = [[] for _ in range(number)]
        sizes: list[list[np.ndarray]] = [[] for _ in range(number)]
        for record in mine:
            window = record.replica // config.replicas
            if record.status != "ok" or record.polarization is None:
                raise InputError(
                    f"{kelvin:g} K, window at {windows.centers[window]:.3g} C/m^2: {record.status} ({record.reason}); "
                    "leave this temperature out, or take a shorter `range`"
                )
            first = math.ceil(config.equilibration * len(record.polarization))
            # the bias holds P along z of the laboratory
            along = np.eye(3)[2][None] if record.rotation is None else record.rotation[first:, :, 2]
            series[window].append(np.sum(np.asarray(record.polarization[first:], np.float64) * along, axis=1))
            sizes[window].append(np.abs(np.linalg.det(record.cell[first:])))
        sampled.append(thinned(kelvin, series, sizes, windows))
    return sampled


def _strengths(setup: Setup) -> list[float]:
    """Strength of the bias along x, y and z, eV/(C/m^2)^2."""
    return [float(value) for value in setup.batch.start.parameters.strength[0]]
