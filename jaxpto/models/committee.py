"""A committee: models of one architecture that differ by chance, and how far they disagree about a structure.

The first member is the model itself: a folder with a committee is used like any other, at one model's speed. Where
there are data the members agree; where there are none, nothing makes them. Their disagreement is measured as the
standard deviation of the force on an atom (DP-GEN: Zhang et al., Comput. Phys. Commun. 253, 107206, 2020), and how
large the true error is where they disagree by so much is measured once, on held-out labels: the `Calibration`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxpto.devices.sequential import over_members
from jaxpto.errors import InputError
from jaxpto.model_interface import Model, Prediction
from jaxpto.models import ase_calculator
from jaxpto.models.catalogue import find_model
from jaxpto.models.folder import COMMITTEE, describe_committee, read_committee, read_folder, save_potential
from jaxpto.neighbors import Neighbors
from jaxpto.potential import Potential
from jaxpto.system import System


@dataclasses.dataclass(frozen=True)
class ErrorScale:
    """How large the true error is where the committee disagrees by so much, in one measure of both.

    Attributes:
        factor: root of the mean squared error over the mean squared deviation.
        bins: (deviation, error, number of frames) of equally many frames each, in rising order of the deviation; root
            mean squares, eV/Angstrom.
    """

    factor: float
    bins: tuple[tuple[float, float, int], ...]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What the deviations of a committee mean, measured on labelled frames.

    Attributes:
        largest_deviation_of_training: largest `force_deviation` of an atom in all labelled frames, eV/Angstrom; beyond
            it a structure is none that the members were made to agree on.
        frames: number of held-out frames that the errors were measured on; 0 if there were none.
        largest: the scale between, in each frame, the largest deviation and the largest force error of an atom; None
            without such frames.
        rms: the root mean squares over the atoms of a frame.
    """

    largest_deviation_of_training: float
    frames: int
    largest: ErrorScale | None
    rms: ErrorScale | None


@struct.dataclass
class Committee:
    """The members of a committee (a pytree; only `params` are leaves).

    Attributes:
        params: their parameters, with a leading axis; those of the model itself come first.
        model: architecture and hyperparameters.
        name: name of the model.
        calibration: what their deviations mean; None where nobody has measured it.
    """

    params: Any
    model: Model = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)
    calibration: Calibration | None = struct.field(pytree_node=False, default=None)

    @property
    def members(self) -> int:
        """Number of members."""
        return len(jax.tree.leaves(self.params)[0])

    def member(self, number: int) -> Potential:
        """One member; number 0 is the model itself."""
        return Potential(jax.tree.map(lambda leaf: leaf[number, ...], self.params), self.model, self.name)

    def evaluate(self, system: System, neighbors: Neighbors) -> Prediction:
        """Energies [m], forces [m, n, 3] and stresses [m, 3, 3] of all members for one system; traceable."""
        of_one = lambda params: Potential(params, self.model, self.name).evaluate(system, neighbors)  # noqa: E731
        return over_members(of_one, neighbors.layout.platform)(self.params)


def committee_forces(committee: Committee, system: System, neighbors: Neighbors) -> Float[Array, "m n 3"]:
    """Forces [m, n, 3] of every member, eV/Angstrom.

    Args:
        committee: m members.
        system: n atoms.
        neighbors: their neighbour list, in the layout that a member asks for.
    """
    return committee.evaluate(system, neighbors).forces


def force_deviation(forces: Float[Array, "m n 3"]) -> Float[Array, " n"]:
    """Disagreement about the force on each atom, eV/Angstrom: sqrt(mean_m |F_m - <F>|^2).

    Zhang et al., Comput. Phys. Commun. 253, 107206 (2020); DP-GEN selects structures by its largest value.

    Args:
        forces: [m, n, 3] forces of m members on n atoms, eV/Angstrom.
    """
    return jnp.sqrt(jnp.square(forces - forces.mean(axis=0, keepdims=True)).sum(axis=2).mean(axis=0))


def save_committee(committee: Committee, folder: str | Path, header_extra: Mapping[str, Any] | None = None) -> None:
    """Save the first member as a model folder, and the others in its subfolder `committee`; see `save_potential`.

    Raises:
        ValueError: as `save_potential`.
        InputError: as `save_potential`; nothing is written then.
    """
    others = jax.tree.map(lambda leaf: leaf[1:], committee.params)
    save_potential(committee.member(0), folder, header_extra, others)
    if committee.calibration is not None:
        save_calibration(folder, committee.calibration)


def save_calibration(folder: str | Path, calibration: Calibration) -> None:
    """Store in `model.json` what the deviations of a model's committee mean.

    Raises:
        InputError: the folder holds no model with a committee.
    """
    describe_committee(Path(folder), {"calibration_eV_per_A": dataclasses.asdict(calibration)})


def load_committee(name: str | Path, dtype: DTypeLike | None = None) -> Committee | None:
    """The committee of a model, or None where it has none.

    Args:
        name: what `load_potential` takes.
        dtype: floating-point type the parameters are cast to; None: as they were saved.

    Raises:
        InputError: unknown name, damaged folder, or float64 while JAX's 64-bit mode is off.
    """
    if str(name).startswith(ase_calculator.PREFIX):
        return None
    folder = find_model(name)
    header, model, first = read_folder(folder, dtype)
    if COMMITTEE not in header:
        return None
    others = read_committee(folder, header, model, dtype)
    params = jax.tree.map(lambda one, rest: np.concatenate([one[None], rest]), first, others)
    stored = header[COMMITTEE].get("calibration_eV_per_A")
    try:
        calibration = None if stored is None else _calibration(stored)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"model folder {folder} is damaged: its calibration has no sense; save it again") from error
    if dtype is not None:
        params = Potential(params, model, folder.name).astype(dtype).params
    return Committee(params, model, folder.name, calibration)


def _calibration(stored: Mapping[str, Any]) -> Calibration:
    def scale(entry: Mapping[str, Any] | None) -> ErrorScale | None:
        if entry is None:
            return None
        bins = tuple((float(deviation), float(error), int(count)) for deviation, error, count in entry["bins"])
        return ErrorScale(float(entry["factor"]), bins)

    return Calibration(
        float(stored["largest_deviation_of_training"]), int(stored["frames"]), scale(stored["largest"]),
        scale(stored["rms"]),
    )  # fmt: skip
