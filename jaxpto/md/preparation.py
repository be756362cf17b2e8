"""What a configuration comes to before the first step: model, structure, method, and what is measured."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import ase
import jax
import numpy as np
from jaxtyping import Float

from jaxpto import units
from jaxpto.bounds import check_size
from jaxpto.devices.sharding import check_sharing
from jaxpto.errors import InputError
from jaxpto.integrators.common import check_thermal
from jaxpto.integrators.ensembles import ENSEMBLES
from jaxpto.integrators.state import Method
from jaxpto.md.batch import Batch, Start, schedule_of
from jaxpto.md.config import Charges, SweepConfig, is_hydrostatic
from jaxpto.md.health import Limits
from jaxpto.md.initial import nearest_distance
from jaxpto.models.catalogue import load_potential
from jaxpto.models.committee import Committee, load_committee
from jaxpto.models.energy_function import probe
from jaxpto.models.suitability import check_supports
from jaxpto.observables.force_deviation import deviation_observable
from jaxpto.observables.observable import Measurements, Observable, general_observables
from jaxpto.platform import local_devices
from jaxpto.potential import Potential
from jaxpto.storage.trajectory import RESERVED
from jaxpto.structures import make_supercell, read_input
from jaxpto.structures.axes import held_shear
from jaxpto.system import from_ase, on_device


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a configuration comes to before the first step.

    Attributes:
        config: the settings.
        batch: the replicas, at the temperatures of the settings one after the other.
        measurements: what is measured in this crystal beside what every run measures.
        notes: what the structure's file holds and a simulation does not use.
        committee: whose disagreement is measured, or None.
    """

    config: SweepConfig
    batch: Batch
    measurements: Measurements
    notes: tuple[str, ...] = ()
    committee: Committee | None = None


Measure = Callable[[ase.Atoms, tuple[int, int, int], Charges, np.dtype, Potential], Measurements]
"""What is measured in a supercell of so many repeats, with Born charges of that kind, in that precision."""


def prepare(
    config: SweepConfig,
    measure: Measure,
    potential: Potential | None = None,
    further: tuple[Observable, ...] = (),
    *,
    with_committee: bool = False,
) -> Setup:
    """Read structure and model and settle everything that is fixed during the run.

    Args:
        config: the settings, checked.
        measure: gives what is measured in a crystal beside what every run measures.
        potential: takes the place of the model that the settings name.
        further: observables of the caller, measured after those.
        with_committee: whether the disagreement of the model's committee is measured, where it has one.

    Raises:
        InputError: what `read_input`, `check_dynamics`, `load_potential`, `check_supports`, `probe` or `measure`
            refuses, or two observables of one name.
    """
    if config.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise InputError('dtype float64 needs JAX in 64 bit; call jax.config.update("jax_enable_x64", True) first')
    dtype = np.dtype(config.dtype)
    given = read_input(config.structure, "dynamics", format=config.format, species=config.species)
    number = len(given.atoms) * math.prod(config.repeats)
    check_size(number, config.replicas * len(config.temperatures), f"`supercell={config.repeats}`")
    atoms = make_supercell(given.atoms, config.repeats)
    check_dynamics(config, atoms)
    committee = load_committee(config.model, dtype) if with_committee and potential is None else None
    potential = load_potential(config.model, dtype) if potential is None else potential.astype(dtype)
    check_supports(potential, atoms, config.structure, stress=ENSEMBLES[config.ensemble].flexible_cell)
    probe(potential, atoms, config.structure)
    if config.devices_per_replica > 1:
        usable = local_devices()[: config.devices or None]
        check_sharing(config.devices_per_replica, len(usable), len(atoms), potential)
    measurements, method = measure(atoms, config.repeats, config.charges, dtype, potential), method_of(config)
    disagreement = () if committee is None else (deviation_observable(committee),)
    observables = (*general_observables(method), *measurements.observables, *disagreement, *further)
    _check_names([one.name for one in observables])
    temperatures = np.repeat(np.asarray(config.temperatures), config.replicas)
    batch = Batch(
        potential=potential,
        atoms=atoms,
        temperatures=temperatures,
        start=start_of(config, atoms, temperatures),
        method=method,
        schedule=schedule_of(config.steps, config.sample_every, len(temperatures) * len(atoms)),
        limits=Limits(),
        observables=observables,
        timestep=config.timestep,
        skin=config.skin or potential.usual_skin,
        devices=config.devices,
        devices_per_replica=config.devices_per_replica,
    )
    return Setup(config, batch, measurements, given.notes, committee)


def start_of(config: SweepConfig, atoms: ase.Atoms, temperatures: Float[np.ndarray, " r"]) -> Start:
    """All replicas in the given supercell, at these temperatures (K), with the seed and the stress of the settings."""
    dtype = np.dtype(config.dtype)
    return Start(
        systems=from_ase(atoms, dtype),
        kT=on_device(temperatures * units.BOLTZMANN, dtype),
        key=jax.random.PRNGKey(config.seed),
        nearest=on_device(nearest_distance(atoms), dtype),
        stress=on_device(external_stress(config), dtype) if ENSEMBLES[config.ensemble].flexible_cell else None,
    )


def _check_names(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1 or name in RESERVED:
            raise InputError(f"observable {name}: a run records something of that name already; take another one")


def check_dynamics(config: SweepConfig, atoms: ase.Atoms) -> None:
    """Refuse a supercell that the ensemble and the strain mask of a configuration do not fit.

    Raises:
        InputError: one atom where the total momentum is zero, or vectors off x, y and z with the mask diag.
    """
    facts = ENSEMBLES[config.ensemble]
    if facts.momentum_at_rest:
        check_thermal(len(atoms), config.ensemble)
    if facts.flexible_cell and config.mask == "diag" and (held := held_shear(atoms.cell.array)):
        raise InputError(f"`mask=diag`: {held}; use full (any strain), or iso (volume only)")


def method_of(config: SweepConfig) -> Method:
    """The integrator that a configuration asks for."""
    facts = ENSEMBLES[config.ensemble]
    settings = {keyword: getattr(config, name) for keyword, name in facts.settings.items()}
    if config.pfactor is not None and "pfactor" in settings:
        settings["barostat_time_fs"] = None
    if is_hydrostatic(config) and "stress_measure" in settings:
        # of a pressure both are the same, and this one has nothing to sum up along the way
        settings["stress_measure"] = "piola-kirchhoff"
    return functools.partial(facts.make, timestep_fs=config.timestep, **settings)


def external_stress(config: SweepConfig) -> np.ndarray:
    """External stress tensor [3, 3], eV/Angstrom^3, positive in tension."""
    if config.stress is None:
        return -config.pressure * units.GIGAPASCAL * np.eye(3)
    xx, yy, zz, yz, xz, xy = config.stress
    return units.GIGAPASCAL * np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
