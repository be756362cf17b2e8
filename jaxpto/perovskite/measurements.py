"""What a simulation of a crystal measures beside energies and stress: c/a while it runs and, in a perovskite, P."""

from __future__ import annotations

from typing import Literal

import ase
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxpto.calculator import site_properties_of
from jaxpto.errors import InputError
from jaxpto.integrators.state import MDState
from jaxpto.model_interface import BORN_CHARGES, predicts
from jaxpto.observables.lattice import lattice_parameters
from jaxpto.observables.observable import Measurements, Observable, Sample
from jaxpto.perovskite.polarization import ChargeSet, PolarizationTopology, build_topology, polarization
from jaxpto.perovskite.unit_cell import unit_cell
from jaxpto.potential import Potential


def crystal_measurements(
    atoms: ase.Atoms,
    repeats: tuple[int, int, int],
    charges: ChargeSet | Literal["model"],
    dtype: DTypeLike,
    potential: Potential,
) -> Measurements:
    """The polarization, NaN in a crystal that is no perovskite, and c/a of the unit cell for the progress line.

    Args:
        atoms: the supercell that a simulation starts from.
        repeats: unit cells in it along the lattice vectors.
        charges: Born charges, as in `build_topology`; "model" for those that the potential predicts for `atoms`.
        dtype: precision of the simulation.
        potential: the force field.

    Raises:
        InputError: Born charges of a model that has none.
    """
    chosen = _of_model(potential, atoms) if charges == "model" else charges
    topology, note = build_topology(atoms, chosen, dtype)
    unit = unit_cell(atoms, repeats)

    def axis_ratio(sample: Sample) -> Float[np.ndarray, " r"]:
        return lattice_parameters(np.asarray(sample.cell), unit).c_over_a

    return Measurements((polarization_observable(topology),), note, "c/a", axis_ratio)


def polarization_observable(topology: PolarizationTopology | None) -> Observable:
    """The polarization [3] in C/m^2, NaN without a topology (see `build_topology`)."""
    if topology is None:
        return Observable("polarization", (3,), "C m-2", _no_polarization)
    return Observable("polarization", (3,), "C m-2", _polarization, (topology,))


def _of_model(potential: Potential, atoms: ase.Atoms) -> Float[np.ndarray, "n 3 3"]:
    if not predicts(potential.model, BORN_CHARGES):
        raise InputError(
            f"`charges=model`: {potential.name} predicts no Born charges; use `charges=nominal`, or a qNEP model"
        )
    return site_properties_of(potential, atoms)[BORN_CHARGES]


def _polarization(state: MDState, topology: PolarizationTopology) -> Float[Array, 3]:
    return polarization(state.system, topology)


def _no_polarization(state: MDState) -> Float[Array, 3]:
    return jnp.full(3, jnp.nan, state.system.positions.dtype)
