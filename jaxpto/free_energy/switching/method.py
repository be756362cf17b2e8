"""Method switching: absolute F at fixed cell by switching to an Einstein crystal, and by reversible scaling."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from functools import partial
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
import spglib
from jaxtyping import Float
from rich.console import Console

from jaxpto.calculator import JaxptoCalculator
from jaxpto.console.command import configure_devices
from jaxpto.console.status_line import StatusLine
from jaxpto.errors import InputError
from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.free_energy.sweep_settings import sweep_settings
from jaxpto.free_energy.switching.analysis import (
    Sites,
    SwitchedCrystal,
    analyse_scaling,
    analyse_switches,
    sites_of,
)
from jaxpto.free_energy.switching.einstein_crystal import einstein_displacements
from jaxpto.free_energy.switching.output import SwitchingResult, write_switching
from jaxpto.free_energy.switching.run import Lanes, Protocol, run_lanes
from jaxpto.md.config import SweepConfig, check
from jaxpto.md.stored_run import trajectory_paths
from jaxpto.md.sweep_run import run_sweep
from jaxpto.models.ase_calculator import PREFIX as HOST_PREFIX
from jaxpto.models.catalogue import load_potential
from jaxpto.models.suitability import check_supports
from jaxpto.observables.statistics import estimate
from jaxpto.observables.summary import ReplicaRecord
from jaxpto.perovskite.measurements import crystal_measurements
from jaxpto.potential import Potential
from jaxpto.relaxation.target import Target
from jaxpto.relaxation.with_ase import relax_with_ase
from jaxpto.reporting.provenance import fingerprint, provenance
from jaxpto.reporting.stored_sweep import load_sweep
from jaxpto.reporting.subject import Subject
from jaxpto.storage.output import check_output_folder
from jaxpto.storage.trajectory import read_trajectory
from jaxpto.structures import make_supercell, read_input, read_structure
from jaxpto.structures.write import write_frames
from jaxpto.system import defining_arrays, site_kinds
from jaxpto.units import BOLTZMANN

SLICES = 100  # of a switch, in which its work is recorded
RELAXATION = Target(fmax=1e-4)
SYMMETRY_PRECISION = 1e-3  # Angstrom, within which a translation maps the crystal onto itself
OWN_FILES = ("sweep", "switching", "relaxed.extxyz")


def run_switching(config: FreeEnergyConfig, console: Console) -> SwitchingResult:
    """Sample amplitudes in a sweep, switch all replicas there and back in one batch, and write the output folder.

    What has been simulated before is used as it is, or continued.

    Raises:
        InputError: settings that cannot be used, a model whose forces are no derivatives, or lost replicas; what was
            simulated is kept.
    """
    _check(config)
    configure_devices(1 if config.model.startswith(HOST_PREFIX) else None)
    potential = load_potential(config.model, np.float32)
    given = read_input(config.structure, "dynamics", format=config.format, species=config.species)
    check_supports(potential, given.atoms, config.structure, stress=config.switching.relax != "none")
    if potential.conservative is False:
        raise InputError(f"model {potential.name}: {potential.caveat}, so that no work is that of its energy")
    if potential.caveat:
        console.print(f"the {potential.caveat} ({potential.name}): if they are not, no work is that of its energy")
    check_output_folder(config.out, resume=any((config.out / name).exists() for name in OWN_FILES))
    kelvins = sorted(config.temperatures)
    kelvins = [kelvins[0], kelvins[-1]] if config.switching.scaling else kelvins
    check(_sweep_config(config, config.structure, tuple(kelvins)))
    sweep, cell = _sweep_config(config, config.structure, tuple(kelvins)), given.atoms
    if config.switching.relax != "none":
        for note in given.notes:
            console.print(note)
        path = _relaxed(config, given.atoms, potential, console)
        sweep, cell = dataclasses.replace(sweep, structure=str(path), format=None, species=None), read_structure(path)
    run_sweep(sweep, crystal_measurements)

    atoms = make_supercell(cell, config.repeats)
    masses = atoms.get_masses()
    records = load_sweep(Path(sweep.out)).records
    for record in records:
        if record.status != "ok":
            raise InputError(
                f"{record.temperature_K:g} K: replica {record.replica} is {record.status} ({record.reason}); "
                "leave this temperature out of `temperatures`"
            )
    paths = trajectory_paths(Path(sweep.out), [kelvin for kelvin in kelvins for _ in range(config.replicas)])
    own = [slice(t * config.replicas, (t + 1) * config.replicas) for t in range(len(kelvins))]
    sites = [
        sites_of(map(partial(_frames, config.equilibration), paths[mine]), atoms.positions, masses, len(cell), kelvin)
        for mine, kelvin in zip(own, kelvins, strict=True)
    ]
    crystal = SwitchedCrystal(
        masses,
        atoms.get_volume(),
        math.prod(config.repeats) * _translations(cell),
        float(records[0].potential_energy[0]),
    )
    lanes = _lanes(config, kelvins, sites, crystal)
    work = run_lanes(potential, atoms, lanes, _protocol(config), config.seed, config.out / "switching", console)

    works = work.reshape(-1, 2, config.replicas, SLICES)  # [temperatures, and scaling; there, back; replicas; slices]
    switched = [
        analyse_switches(*pair, place.springs, kelvin, crystal, config.seed)
        for pair, place, kelvin in zip(works, sites, kelvins, strict=False)
    ]
    scaled = (
        analyse_scaling(*works[-1], switched[0], kelvins[-1], crystal, config.seed)
        if config.switching.scaling
        else None
    )
    internal = [
        _internal(records[mine], config.equilibration, kelvin, len(atoms))
        for mine, kelvin in zip(own, kelvins, strict=True)
    ]
    result = SwitchingResult(switched, scaled, internal)
    formula, units = cell.symbols.formula.reduce()
    units *= math.prod(config.repeats)
    subject = Subject(formula.format("metal"), potential.name, units, len(atoms), caveat=potential.caveat)
    shared = {name: value for name, value in vars(config).items() if not dataclasses.is_dataclass(value)}
    settings = shared | {"switching": dataclasses.asdict(config.switching)} | provenance()
    wanted = np.array(sorted(config.temperatures))
    write_switching(result, wanted, subject, crystal, config.out, settings, console)
    return result


def _check(config: FreeEnergyConfig) -> None:
    if config.ensemble != "nvt":
        raise InputError(f"`ensemble={config.ensemble}`: switching is done at fixed cell; give `ensemble=nvt`")
    if config.replicas < 2:
        raise InputError(
            f"`replicas={config.replicas}`: errors come from independent switches; give at least 2, better 8"
        )
    if config.switching.scaling and len(config.temperatures) < 2:
        raise InputError(f"`temperatures` {len(config.temperatures)} value: scaling needs at least two")
    held = math.ceil(config.equilibration * config.steps)
    if config.steps - held < SLICES:
        raise InputError(f"`steps={config.steps}`: {config.steps - held} of switching, at least {SLICES} are needed")


def _protocol(config: FreeEnergyConfig) -> Protocol:
    """Equilibration for the first part of the steps; what is left is switching, in whole slices."""
    length = (config.steps - math.ceil(config.equilibration * config.steps)) // SLICES * SLICES
    return Protocol(config.timestep, SweepConfig.friction, config.steps - length, length, SLICES)


def _sweep_config(config: FreeEnergyConfig, structure: str, kelvins: tuple[float, ...]) -> SweepConfig:
    """The sweep that springs and starts are taken from; continued if it is there."""
    shared = sweep_settings(config, config.out / "sweep")
    return dataclasses.replace(shared, structure=structure, temperatures=kelvins, ensemble="nvt")


def _relaxed(config: FreeEnergyConfig, start: ase.Atoms, potential: Potential, console: Console) -> Path:
    """File of the structure in the cell that the model has at 0 K; made once.

    Raises:
        InputError: the relaxation does not converge, or the file there is that of another structure or model.
    """
    path = config.out / "relaxed.extxyz"
    source = hashlib.sha256(fingerprint(potential).encode())
    for array in defining_arrays(start):
        source.update(array.tobytes())
    origin = f"relaxed from {source.hexdigest()[:16]}"
    if path.exists():
        if read_structure(path).info.get("comment") != origin:
            raise InputError(f"{path} is that of another structure or model; name a new `out`")
        return path
    with StatusLine(console, "relaxing positions and cell ...", config.model) as line:
        relaxed = relax_with_ase(
            start,
            JaxptoCalculator(config.model),
            RELAXATION,
            on_step=lambda step, residual: line.update(f"step {step}, {residual:.1e} eV/A"),
        )
    if not relaxed.converged:
        raise InputError(f"`switching.relax=cell`: not converged ({relaxed.reason}); relax with python -m jaxpto.relax")
    relaxed.atoms.info["comment"] = origin
    write_frames([relaxed.atoms], path)
    return path


def _translations(cell: ase.Atoms) -> int:
    """Lattice translations within the unit cell given: 1 for a primitive one, 4 for a cube of an fcc lattice."""
    sites = (cell.cell.array, cell.get_scaled_positions(), site_kinds(cell).tolist())
    found = spglib.get_symmetry(sites, SYMMETRY_PRECISION)
    if found is None:
        raise InputError("spglib finds no symmetry operations of the structure; check it for atoms too close together")
    return int((found["rotations"] == np.eye(3, dtype=int)).all(axis=(1, 2)).sum())


def _lanes(config: FreeEnergyConfig, kelvins: list[float], sites: list[Sites], crystal: SwitchedCrystal) -> Lanes:
    """For each temperature the replicas that go to the Einstein crystal and those that come back, then scaling."""
    number = config.replicas
    pairs = [(place, kelvin, 0.0) for place, kelvin in zip(sites, kelvins, strict=True)]
    starts = [
        np.stack([place.last, _einstein_starts(config, index, place, kelvin)])
        for index, (place, kelvin, _) in enumerate(pairs)
    ]
    if config.switching.scaling:
        pairs.append((sites[0], kelvins[0], kelvins[-1] / kelvins[0]))
        starts.append(np.stack([sites[0].last, sites[-1].last]))
    each = 2 * number
    return Lanes(
        temperatures=np.repeat([kelvin for _, kelvin, _ in pairs], each),
        starts=np.concatenate(starts).reshape(-1, *sites[0].positions.shape),
        sites=np.concatenate([np.tile(place.positions, (each, 1, 1)) for place, _, _ in pairs]),
        springs=np.concatenate([np.tile(place.springs, (each, 1)) for place, _, _ in pairs]),
        ratios=np.repeat([ratio for _, _, ratio in pairs], each),
        backward=np.tile(np.repeat([False, True], number), len(pairs)),
        origin=crystal.origin,
    )


def _frames(equilibration: float, path: Path) -> Float[np.ndarray, "f n 3"]:
    """Positions of a trajectory without its beginning, as simulated."""
    positions = read_trajectory(path).in_laboratory().positions
    return positions[math.ceil(equilibration * len(positions)) :]


def _einstein_starts(config: FreeEnergyConfig, index: int, place: Sites, kelvin: float) -> Float[np.ndarray, "r n 3"]:
    """Independent draws of the Einstein crystal at the `index`-th temperature."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(config.seed), index), config.replicas)
        springs, kT = jnp.asarray(place.springs), jnp.asarray(kelvin)
        draws = jax.vmap(einstein_displacements, (0, None, None))(keys, springs, kT)
        return place.positions + np.asarray(draws)


def _internal(records: list[ReplicaRecord], equilibration: float, kelvin: float, atoms: int) -> tuple[float, float]:
    """Internal energy of the whole cell, with the kinetic energy of all 3 n momenta, and its standard error, eV."""
    series = [record.potential_energy for record in records]
    found = [estimate(values[math.ceil(equilibration * len(values)) :]) for values in series]
    mean = float(np.mean([one.mean for one in found]))
    error = math.sqrt(sum(one.sem**2 for one in found)) / len(found)
    return mean + 1.5 * atoms * BOLTZMANN * kelvin, error
