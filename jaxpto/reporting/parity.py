"""Predictions of a model against labels: errors by trajectory, and the frames with the largest ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ase.data
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxpto.reporting.columns import Column, Row
from jaxpto.units import GIGAPASCAL

ALL = "all"  # the row of all trajectories together
MEV = 1e3

ERROR_COLUMNS = (
    Column("trajectory", "trajectory", words=True),
    Column("frames", "frames", form=".0f"),
    Column("energy_mean_error_meV_per_atom", "energy mean error", "meV/atom", ".2f", terminal=False),
    Column("energy_mae_meV_per_atom", "energy MAE", "meV/atom", ".2f"),
    Column("energy_rmse_meV_per_atom", "energy RMSE", "meV/atom", ".2f"),
    Column("forces_mae_meV_per_A", "forces MAE", "meV/A", ".1f"),
    Column("forces_rmse_meV_per_A", "forces RMSE", "meV/A", ".1f"),
    Column("stress_mae_GPa", "stress MAE", "GPa", ".3f"),
    Column("stress_rmse_GPa", "stress RMSE", "GPa", ".3f"),
    Column("virial_mae_meV_per_atom", "virial MAE", "meV/atom", ".2f", terminal=False),
    Column("virial_rmse_meV_per_atom", "virial RMSE", "meV/atom", ".2f", terminal=False),
    Column("moments_mae_mu_B", "moments MAE", "mu_B", ".3f"),
    Column("moments_rmse_mu_B", "moments RMSE", "mu_B", ".3f"),
)
WORST_COLUMNS = (
    Column("frame", "frame", words=True),
    Column("energy_error_meV_per_atom", "energy error", "meV/atom", "+.2f"),
    Column("largest_force_error_meV_per_A", "largest force error", "meV/A", ".1f"),
    Column("on_atom", "on atom", words=True),
    Column("stress_error_GPa", "stress error", "GPa", ".3f"),
)


@dataclasses.dataclass(frozen=True)
class Quantities:
    """Energies, forces, virials and magnetic moments of the frames of a trajectory; NaN where there is none.

    Attributes:
        energies: [f] eV.
        forces: [a, 3] eV/Angstrom, on the atoms of all frames, one frame after the other.
        virials: [f, 3, 3] eV, -stress * volume (stress is positive in tension).
        moments: [a] Bohr magnetons.
    """

    energies: Float[np.ndarray, " f"]
    forces: Float[np.ndarray, "a 3"]
    virials: Float[np.ndarray, "f 3 3"]
    moments: Float[np.ndarray, " a"]


@dataclasses.dataclass(frozen=True)
class Parity:
    """Labels and predictions of one trajectory, whose frames may have different atoms.

    Attributes:
        name: name of the trajectory.
        frames: [f] index of each frame in its file or folder.
        counts: [f] number of atoms of each frame.
        numbers: [a] atomic numbers of the atoms of all frames, one frame after the other.
        volumes: [f] Angstrom^3.
        labels, predictions: what is compared; energies of both count from the same zero.
    """

    name: str
    frames: Int[np.ndarray, " f"]
    counts: Int[np.ndarray, " f"]
    numbers: Int[np.ndarray, " a"]
    volumes: Float[np.ndarray, " f"]
    labels: Quantities
    predictions: Quantities

    @property
    def energy_errors(self) -> Float[np.ndarray, " f"]:
        """[f] prediction - label, eV/atom; NaN where either is missing, as below."""
        return (self.predictions.energies - self.labels.energies) / self.counts

    @property
    def force_errors(self) -> Float[np.ndarray, "a 3"]:
        """[a, 3] eV/Angstrom."""
        return self.predictions.forces - self.labels.forces

    @property
    def virial_errors(self) -> Float[np.ndarray, "f 3 3"]:
        """[f, 3, 3] eV/atom."""
        return (self.predictions.virials - self.labels.virials) / self.counts[:, None, None]

    @property
    def stress_errors(self) -> Float[np.ndarray, "f 3 3"]:
        """[f, 3, 3] GPa."""
        return stress_of(self.predictions, self.volumes) - stress_of(self.labels, self.volumes)

    @property
    def moment_errors(self) -> Float[np.ndarray, " a"]:
        """[a] Bohr magnetons."""
        return self.predictions.moments - self.labels.moments


def stress_of(quantities: Quantities, volumes: Float[np.ndarray, " f"]) -> Float[np.ndarray, "f 3 3"]:
    """Stress [f, 3, 3] in GPa, positive in tension, of frames with volumes [f] in Angstrom^3."""
    return -quantities.virials / volumes[:, None, None] / GIGAPASCAL


def of_one_composition(
    name: str,
    numbers: Int[np.ndarray, " n"],
    cells: Float[np.ndarray, "f 3 3"],
    labels: tuple[np.ndarray, ...],
    predictions: tuple[np.ndarray, ...],
    frames: Int[np.ndarray, " f"] | None = None,
) -> Parity:
    """Labels and predictions of frames with the same atoms.

    Args:
        name: name of the trajectory.
        numbers: [n] atomic numbers.
        cells: [f, 3, 3] Angstrom.
        labels: energies [f] in eV, forces [f, n, 3] in eV/Angstrom, virials [f, 3, 3] in eV and, if there are any,
            magnetic moments [f, n] in Bohr magnetons; NaN where there is none.
        predictions: the same.
        frames: [f] index of each frame in its file or folder; by default they are counted from 0.
    """
    count = len(cells)

    def gathered(
        energies: np.ndarray, forces: np.ndarray, virials: np.ndarray, moments: np.ndarray | None = None
    ) -> Quantities:
        moments = np.full((count, len(numbers)), np.nan) if moments is None else moments
        return Quantities(
            np.asarray(energies, np.float64),
            np.asarray(forces, np.float64).reshape(-1, 3),
            np.asarray(virials, np.float64),
            np.asarray(moments, np.float64).ravel(),
        )

    return Parity(
        name,
        np.arange(count) if frames is None else frames,
        np.full(count, len(numbers)),
        np.tile(numbers, count),
        np.abs(np.linalg.det(cells)),
        gathered(*labels),
        gathered(*predictions),
    )


def error_table(parities: Sequence[Parity]) -> list[dict[str, Any]]:
    """Mean absolute and root-mean-square errors of each trajectory, and of all together where there are several.

    Forces are averaged over components, stress and virial over the nine components of the tensor, everything over all
    frames that have the label; NaN where none has it. The names of `ERROR_COLUMNS` say the units. `energies`, `forces`,
    `stresses` and `moments` are the numbers of frames compared, `frames` is that of the frames with any of them.
    """
    rows = [_errors(parity.name, [parity]) for parity in parities]
    return rows if len(parities) == 1 else [*rows, _errors(ALL, parities)]


def shown_columns(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[Column, ...]:
    """The columns in which some row has a value."""
    return tuple(
        one for one in columns if any(row[one.name] is not None and row[one.name] == row[one.name] for row in rows)
    )


def worst_frames(parities: Sequence[Parity], count: int = 10) -> list[dict[str, Any]]:
    """The frames with the largest errors of energy, of the force on one atom, or of stress; worst first.

    They are ordered by the largest of the three, each in units of its root mean square over all frames. Names of
    `WORST_COLUMNS` say the units; the error of a force is the length of its vector, that of a stress its largest
    component.

    Args:
        parities: labels and predictions.
        count: number of frames.
    """
    rows = [row for parity in parities for row in _frame_errors(parity)]
    names = ("energy_error_meV_per_atom", "largest_force_error_meV_per_A", "stress_error_GPa")
    size = np.abs(np.array([[row[name] for name in names] for row in rows], np.float64).reshape(-1, 3))
    known = np.isfinite(size)
    square = np.where(known, size, 0.0) ** 2
    rms = np.sqrt(square.sum(axis=0) / np.maximum(known.sum(axis=0), 1))
    score = np.where(known, size / np.where(rms > 0.0, rms, 1.0), -np.inf).max(axis=1, initial=-np.inf)
    return [rows[index] for index in np.argsort(-score, kind="stable")[:count] if np.isfinite(score[index])]


def _errors(name: str, parities: Sequence[Parity]) -> dict[str, Any]:
    def gathered(of: Callable[[Parity], np.ndarray], factor: float) -> np.ndarray:
        values = np.concatenate([of(parity).ravel() for parity in parities])
        return factor * values[np.isfinite(values)]

    energy = gathered(lambda parity: parity.energy_errors, MEV)
    found = {
        "energy_{}_meV_per_atom": energy,
        "forces_{}_meV_per_A": gathered(lambda parity: parity.force_errors, MEV),
        "stress_{}_GPa": gathered(lambda parity: parity.stress_errors, 1.0),
        "virial_{}_meV_per_atom": gathered(lambda parity: parity.virial_errors, MEV),
        "moments_{}_mu_B": gathered(lambda parity: parity.moment_errors, 1.0),
    }
    compared = np.sum([np.sum(_compared(parity), axis=1) for parity in parities], axis=0)
    frames = sum(int(np.any(_compared(parity), axis=0).sum()) for parity in parities)
    row: dict[str, Any] = {"trajectory": name, "frames": frames}
    row |= dict(zip(("energies", "forces", "stresses", "moments"), compared.tolist(), strict=True))
    row["energy_mean_error_meV_per_atom"] = float(energy.mean()) if len(energy) else np.nan
    for label, values in found.items():
        row[label.format("mae")] = float(np.abs(values).mean()) if len(values) else np.nan
        row[label.format("rmse")] = float(np.sqrt(np.square(values).mean())) if len(values) else np.nan
    return row


def _compared(parity: Parity) -> Bool[np.ndarray, "4 f"]:
    """[4, f] whether energy, some force, some component of the stress and some moment of each frame are compared."""
    owner = np.repeat(np.arange(len(parity.counts)), parity.counts)
    frames = np.arange(len(parity.counts))
    forces = np.isin(frames, owner[np.isfinite(parity.force_errors).any(axis=1)])
    moments = np.isin(frames, owner[np.isfinite(parity.moment_errors)])
    stress = np.isfinite(parity.stress_errors).any(axis=(1, 2))
    return np.stack([np.isfinite(parity.energy_errors), forces, stress, moments])


def _frame_errors(parity: Parity) -> list[Mapping[str, Any]]:
    rows = []
    force = MEV * np.linalg.norm(parity.force_errors, axis=1)
    energy, stress = MEV * parity.energy_errors, np.abs(parity.stress_errors)
    ends = np.cumsum(parity.counts)
    for f, (end, count) in enumerate(zip(ends, parity.counts, strict=True)):
        own = np.nan_to_num(force[end - count : end], nan=-np.inf)
        atom = int(np.argmax(own))
        known = np.isfinite(own[atom])
        symbol = ase.data.chemical_symbols[parity.numbers[end - count + atom]]
        rows.append(
            {
                "frame": f"{parity.name} frame {parity.frames[f]}",
                "trajectory": parity.name,
                "index": int(parity.frames[f]),
                "energy_error_meV_per_atom": float(energy[f]),
                "largest_force_error_meV_per_A": float(own[atom]) if known else np.nan,
                "on_atom": f"{symbol} {atom}" if known else "",
                "atom": atom if known else None,
                "stress_error_GPa": float(np.nanmax(stress[f])) if np.isfinite(stress[f]).any() else np.nan,
            }
        )
    return rows
