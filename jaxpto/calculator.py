"""The ASE calculator of a potential."""

from __future__ import annotations

from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from jaxpto.devices.compiled import WIDE
from jaxpto.errors import InputError
from jaxpto.model_interface import Prediction, SiteModel
from jaxpto.models.catalogue import load_potential
from jaxpto.models.energy_function import probe
from jaxpto.models.suitability import check_known
from jaxpto.neighbors import Layout, Neighbors, build, grow_until_it_fits, needs_rebuild
from jaxpto.potential import Potential
from jaxpto.system import System, check_atoms, check_cell, from_ase


@jax.jit(compiler_options=WIDE)
def _evaluate(potential: Potential, system: System, neighbors: Neighbors) -> tuple[Prediction, jax.Array]:
    return potential.evaluate(system, neighbors), needs_rebuild(neighbors, system)


@jax.jit
def _site_properties(potential: Potential, system: System, neighbors: Neighbors) -> dict[str, jax.Array]:
    return potential.site_properties(system, neighbors)


def site_properties_of(potential: Potential, atoms: ase.Atoms) -> dict[str, np.ndarray]:
    """What a potential predicts for the single atoms of a structure, in double precision; see `SiteModel`.

    Args:
        potential: any; {} for those that predict nothing of the kind.
        atoms: any periodic structure that the potential knows.
    """
    with jax.enable_x64(True):
        system, double = from_ase(atoms, np.float64), potential.astype(np.float64)
        neighbors = build(system, double.allocate([system], 0.0))
        return jax.device_get(_site_properties(double, system, neighbors))


def _two_longest(moved: np.ndarray) -> float:
    """Sum of the lengths of the two longest vectors [n, 3]."""
    return float(np.sort(np.linalg.norm(moved, axis=1))[-2:].sum())


class JaxptoCalculator(Calculator):
    """ASE calculator of a potential: energy and free energy in eV, forces in eV/Angstrom, stress in eV/Angstrom^3.

    `potential.caveat` says whether the forces of the model are derivatives of its energy.

    Models that predict energies (eV), magnetic moments (Bohr magnetons) or charges (e) of single atoms give these on
    request.

    The neighbour list is kept between calls and rebuilt when the atoms have moved by more than the skin allows, so that
    molecular dynamics and relaxations compile once. Double precision needs no global flag; each call switches it on and
    off again.

    Args:
        model: a potential, or what `load_potential` takes.
        dtype: precision of parameters and network, "float32" or "float64". Positions, cell and edge vectors are in
            double precision either way: rounding them would cost more digits than the network does.
        skin: extra distance of the neighbour list, Angstrom; by default `potential.usual_skin`.
        layout: sizes of the first neighbour list; by default those that the first structure needs.

    Raises:
        InputError: unknown model, other dtype or negative skin; in a calculation, an unknown element or a structure
            that `check_atoms` refuses (not periodic, say).
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012, the way of ASE

    def __init__(
        self,
        model: Potential | str | Path,
        dtype: str = "float64",
        skin: float | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        if dtype not in ("float32", "float64"):
            raise InputError(f"dtype {dtype}; choose float32 or float64")
        if skin is not None and not skin >= 0:
            raise InputError(f"skin {skin} A; give a distance of at least 0")
        self.dtype = np.dtype(dtype)
        with jax.enable_x64(True):
            potential = model if isinstance(model, Potential) else load_potential(model, self.dtype)
            self.potential = potential.astype(self.dtype)
        self.skin = self.potential.usual_skin if skin is None else float(skin)
        if isinstance(potential.model, SiteModel):
            self.implemented_properties = [*self.implemented_properties, *potential.model.site_quantities]
        self._system: System | None = None
        self._neighbors: Neighbors | None = None
        self._listed = np.zeros((0, 3))  # positions that the list was built for
        self._layout = layout

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute energy, forces and stress of atoms, and what `properties` asks of single atoms (ASE calls this)."""
        properties = properties or ["energy"]
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        with jax.enable_x64(True):
            prediction = jax.device_get(self._predict(self.atoms))
            site = {}
            model = self.potential.model
            if isinstance(model, SiteModel) and set(properties) & set(model.site_quantities):
                site = jax.device_get(_site_properties(self.potential, self._system, self._neighbors))
        energy = float(prediction.energy)
        self.results = {"energy": energy, "free_energy": energy, "forces": np.asarray(prediction.forces, np.float64)}
        stress = full_3x3_to_voigt_6_stress(np.asarray(prediction.stress, np.float64))
        if not np.isnan(stress).all():  # a wrapped ASE calculator may have none
            self.results["stress"] = stress
        self.results |= {name: np.asarray(values, np.float64) for name, values in site.items()}

    def _predict(self, atoms: ase.Atoms) -> Prediction:
        if self._system is None or not np.array_equal(self._system.numbers, atoms.numbers):
            check_known(self.potential, atoms)
            probe(self.potential, atoms)
            if self._system is not None:
                self._layout = None  # of other atoms
            self._system, self._neighbors = from_ase(atoms, np.float64), None
        check_cell(atoms)
        positions, cell = jnp.asarray(atoms.positions, np.float64), jnp.asarray(atoms.cell.array, np.float64)
        system: System = self._system.replace(positions=positions, cell=cell)  # ty: ignore[missing-attribute]
        self._system = system
        # the bound of `needs_rebuild` for a fixed cell: of frames far apart none is evaluated with a list that is stale
        if self._neighbors is not None and _two_longest(atoms.positions - self._listed) <= self.skin:
            prediction, stale = _evaluate(self.potential, system, self._neighbors)
            if not stale:
                return prediction
        self._neighbors, self._listed = self._rebuild(atoms, system), atoms.positions.copy()
        return _evaluate(self.potential, system, self._neighbors)[0]

    def _rebuild(self, atoms: ase.Atoms, system: System) -> Neighbors:
        layout = self._layout if self._neighbors is None else self._neighbors.layout

        def enlarge(layout: Layout, _: Neighbors) -> Layout:
            check_atoms(atoms)  # refuses atoms that have collapsed onto each other, the usual cause of an overflow
            # counted anew: the structure may have nothing in common with the one before
            return self.potential.allocate([system], self.skin)

        return grow_until_it_fits(
            lambda layout: build(system, layout),
            layout or self.potential.allocate([system], self.skin),
            overflowed=lambda neighbors: bool(neighbors.overflow),
            enlarge=enlarge,
            enlargements=1,
        ).result
