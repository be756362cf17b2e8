"""The proof: a student's errors against its teacher on independent structures, averages in the teacher's ensemble."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import ase
import numpy as np
from jaxtyping import Float

from jaxpto.distillation.config import DistilConfig
from jaxpto.distillation.label_store import LabelStore, rounded
from jaxpto.distillation.rounds import INDEPENDENT
from jaxpto.distillation.seeds import Crystal
from jaxpto.distillation.teacher import Teacher
from jaxpto.observables.force_deviation import FORCE_DEVIATION
from jaxpto.observables.lattice import UnitCell, lattice_parameters
from jaxpto.observables.summary import production_start
from jaxpto.perovskite.unit_cell import unit_cell
from jaxpto.storage.trajectory import read_trajectory, trajectory_origin
from jaxpto.units import BOLTZMANN, GIGAPASCAL

FEWEST = 5.0  # effective samples below which a reweighted average says nothing


@dataclasses.dataclass(frozen=True)
class Independent:
    """Structures of one temperature that no student was trained on, labelled by the teacher and by the student.

    Attributes:
        crystal: name of the structure.
        temperature: K.
        teacher, student: [f] the same structures with the results of each.
        deviation: [f] largest deviation of the committee's forces, eV/Angstrom.
    """

    crystal: str
    temperature: float
    teacher: list[ase.Atoms]
    student: list[ase.Atoms]
    deviation: Float[np.ndarray, " f"]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a student compares with its teacher at one temperature.

    Attributes:
        crystal: name of the structure.
        temperature: K.
        frames: number of structures.
        energy: RMS error, meV/atom.
        forces: RMS error of the components, meV/Angstrom.
        stress: RMS error of the components, GPa.
        effective: effective number of structures with Boltzmann weights of U_teacher - U_student.
        student: averages in the student's ensemble by name: longest axis over the mean of the others in each structure,
            and volume of the unit cell, Angstrom^3.
        reweighted: the same in the teacher's ensemble; NaN where fewer than 5 structures carry them.
    """

    crystal: str
    temperature: float
    frames: int
    energy: float
    forces: float
    stress: float
    effective: float
    student: dict[str, float]
    reweighted: dict[str, float]


def independent_structures(
    config: DistilConfig,
    crystal: Crystal,
    folder: Path,
    equilibration: float,
    store: LabelStore,
    student: Teacher,
) -> list[Independent]:
    """Label structures of a ladder that the finished student ran, spread over the runs of each temperature.

    Args:
        config: the settings.
        crystal: the structure.
        folder: the sweep.
        equilibration: fraction of each run left out.
        store: labels; these go to files that no training reads.
        student: labels with the student.
    """
    gathered: dict[float, list[tuple[ase.Atoms, float]]] = {}
    for path in sorted((folder / "trajectories").glob("*.h5md")):
        stored, kelvin = read_trajectory(path), float(trajectory_origin(path)["temperature_K"])
        if kelvin not in config.temperatures or not len(stored.step):
            continue
        first = production_start(stored.time, equilibration)
        for k in range(first, len(stored.step)):
            atoms = rounded(ase.Atoms(stored.numbers, stored.positions[k], cell=stored.cells[k], pbc=True))
            deviation = float(stored.observables[FORCE_DEVIATION][k])
            gathered.setdefault(kelvin, []).append((atoms, deviation))
    found = []
    for kelvin, samples in sorted(gathered.items()):
        # evenly through all runs, so that neighbours in time are as far apart as can be
        picked = np.unique(np.linspace(0, len(samples) - 1, min(config.proof_frames, len(samples))).astype(int))
        some = [samples[k] for k in picked.tolist()]
        frames, deviations = [atoms for atoms, _ in some], np.array([deviation for _, deviation in some])
        labelled = store.label(frames, f"{INDEPENDENT}-{crystal.name}-{kelvin:g}K")
        found.append(Independent(crystal.name, kelvin, labelled, student.label(frames), deviations))
    return found


def agreement(one: Independent, crystal: Crystal) -> Agreement:
    """Errors and averages at one temperature.

    The weights are w_f = exp(-(U_teacher - U_student) / kT) up to a constant; pressure and momenta are the same in both
    ensembles. The effective number is (sum w)^2 / sum w^2.

    Args:
        one: labelled structures.
        crystal: the structure they are of.
    """
    n = len(one.teacher[0])
    energies, told = (np.array([atoms.get_potential_energy() for atoms in part]) for part in (one.teacher, one.student))
    forces = [a.get_forces() - b.get_forces() for a, b in zip(one.teacher, one.student, strict=True)]
    stresses = [a.get_stress() - b.get_stress() for a, b in zip(one.teacher, one.student, strict=True)]
    exponent = -(energies - told) / (BOLTZMANN * one.temperature)
    weights = np.exp(exponent - exponent.max())
    weights /= weights.sum()
    effective = float(1.0 / np.sum(weights**2))
    unit = unit_cell(crystal.supercell, crystal.repeats)
    values = _observed(np.array([atoms.cell.array for atoms in one.teacher]), unit)
    enough = effective >= FEWEST
    return Agreement(
        crystal=one.crystal,
        temperature=one.temperature,
        frames=len(one.teacher),
        energy=1e3 * _rms(energies - told) / n,
        forces=1e3 * _rms(np.array(forces)),
        stress=_rms(np.array(stresses)) / GIGAPASCAL,
        effective=effective,
        student={name: float(x.mean()) for name, x in values.items()},
        reweighted={name: float(weights @ x) if enough else math.nan for name, x in values.items()},
    )


def _observed(cells: Float[np.ndarray, "f 3 3"], unit: UnitCell) -> dict[str, np.ndarray]:
    lattice = lattice_parameters(cells, unit)
    lengths = np.sort(lattice.lengths, axis=1)
    return {"c/a": lengths[:, 2] / lengths[:, :2].mean(axis=1), "volume": lattice.volume}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
