"""Method landau: free energy against polarization, by umbrella windows at every temperature run as one batch."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

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
from jaxpto.integrators.parametrised import parametrised
from jaxpto.md.config import changed_fields, check, to_json
from jaxpto.md.preparation import Setup, prepare
from jaxpto.md.stored_run import check_space, simulate
from jaxpto.models.ase_calculator import PREFIX as HOST_PREFIX
from jaxpto.perovskite.polarization import PolarizationTopology
from jaxpto.reporting.provenance import fingerprint, provenance
from jaxpto.reporting.stored_sweep import load_sweep
from jaxpto.reporting.subject import Subject
from jaxpto.storage.output import check_output_folder
from jaxpto.storage.run_folder import CONFIG_FILE, check_unclaimed, read_config, run_name, write_config
from jaxpto.system import defining_arrays, from_ase, unstack
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
    plain = prepare(sweep)
    if plain.topology is None:
        raise InputError(f"{config.structure}: {plain.note}")
    units = len(plain.atoms) // 5
    windows = choose_windows(config.landau, min(config.temperatures), units)
    setup = window_setup(config, plain, plain.topology, windows)
    run_of_windows = _claim(folder, setup, windows)
    for note in plain.notes:
        console.print(note)
    formula = plain.atoms.symbols.formula.reduce()[0].format("metal")
    console.print(
        f"{formula}, {len(plain.atoms)} atoms, {len(windows.centers)} windows from {windows.centers[0]:g} to "
        f"{windows.centers[-1]:g} C/m^2 with K = {windows.strength:.3g} eV/(C/m^2)^2, at {len(config.temperatures)} "
        f"temperatures: {len(setup.temperatures)} replicas, {config.steps} steps of {config.timestep:g} fs, "
        f"model {plain.potential.name}, {len(jax.local_devices())} {jax.local_devices()[0].platform.upper()} device(s)",
    )
    simulate(setup, folder, console, run=run_of_windows)
    sampled = read_windows(folder, windows, config)
    console.print("MBAR and bootstrap ...")
    result = analyse_windows(sampled, windows, seed=config.seed)
    flexible, caveat = config.ensemble == "npt", plain.potential.caveat
    subject = Subject(formula, config.model, units, len(plain.atoms), flexible, caveat)
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
    setup = prepare(sweep)  # a chunk of as many replicas has fewer steps
    dtype = np.dtype(sweep.dtype)
    transverse = windows.strength if config.landau.transverse is None else config.landau.transverse
    z = np.zeros((len(windows.centers), 3), dtype)
    z[:, 2] = windows.centers
    system = from_ase(plain.atoms, dtype)
    starts = jax.jit(jax.vmap(lambda target: displaced(system, topology, target)))(z)
    layout = plain.potential.allocate([system, *unstack(jax.device_get(starts))], plain.potential.usual_skin)
    descend = jax.jit(
        lambda potential: jax.vmap(lambda start: settled(potential.evaluate, start, topology, layout))(starts)
    )
    place = np.tile(np.repeat(np.arange(len(z)), config.replicas), len(config.temperatures))
    systems = jax.tree.map(lambda leaf: leaf[place], descend(plain.potential))
    centers = jnp.asarray(z[place])
    strengths = jnp.broadcast_to(jnp.asarray([transverse, transverse, windows.strength], dtype), centers.shape)
    plain_method = setup.method
    return dataclasses.replace(
        setup,
        method=lambda evaluate: parametrised(plain_method, biased(evaluate, topology)),
        systems=systems,
        parameters=Umbrella(centers, strengths),
    )


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


def _claim(folder: Path, setup: Setup, windows: Windows) -> str:
    """Claim the folder for this simulation, or check that it holds this one; returns the name of the run.

    Raises:
        InputError: the folder holds a simulation with other settings, structure or model.
    """
    structure = hashlib.sha256(b"".join(array.tobytes() for array in defining_arrays(setup.atoms)))
    bias = setup.parameters
    document: dict[str, Any] = {
        "config": to_json(setup.config),
        "windows": {
            "centers": [float(center) for center in windows.centers],
            "strength": [float(value) for value in bias.strength[0]],
        },
        "identity": {"structure": structure.hexdigest()[:16], "model": fingerprint(setup.potential)},
    }
    stored, before = folder / CONFIG_FILE, read_config(folder)
    if before is None:
        check_unclaimed(folder, resume=True)
        check_space(setup, folder)
        return write_config(folder, document | provenance())
    try:
        changes = changed_fields(setup.config, before["config"])
        changes += [
            f"the windows' {name} differ" for name, new in document["windows"].items() if before["windows"][name] != new
        ]
        changes += [
            f"the {name} is another one"
            for name, new in document["identity"].items()
            if before["identity"][name] != new
        ]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{stored} is damaged; restore it or start in a new folder") from None
    if changes:
        raise InputError(f"{folder} was run with other settings: {'; '.join(changes)}; name a new `out`")
    check_space(setup, folder)
    return run_name(before)
