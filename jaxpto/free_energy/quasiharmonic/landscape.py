"""Quasi-harmonic free energy of a crystal over cell and internal coordinates, with gradients by differentiation.

    G(T, p) = min_x [E(x) + F(T; x) + p V(x)],

x is the strain (with internal = full also the internal coordinates), E the static energy, F the free energy of the
vibrations about x. dF/dx
goes through the force constants, by third derivatives of the energy. Internal coordinates y are treated in one of two
ways (Allan, Barron & Bruno, J. Chem. Phys. 105, 8300 (1996)):

    zsisa   zero static internal stress: y(strain) minimises E at each cell, and dF/dstrain holds its response,
            dy/dstrain = -E_yy^-1 E_y,strain, by implicit differentiation;
    full    y minimises G together with the strain.

At the minimum, with H = d2G/dx2 from central differences of the exact gradient,

    dx/dT = H^-1 dS/dx,    Cp = Cv + T dS/dx . H^-1 dS/dx.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto.free_energy.estimators.spectral import ModeFunction, frequencies
from jaxpto.free_energy.harmonic.vibrations import (
    VibratingCrystal,
    crystal_constants,
    dynamical_matrices,
    supercell_system,
    unit_system,
    vibrational_free_energy,
    without_translations,
)
from jaxpto.neighbors import Layout, build, grow, grow_until_it_fits
from jaxpto.potential import Potential
from jaxpto.system import System

Internal = Literal["zsisa", "full"]
STATIC_TOLERANCE = 1e-9  # eV per unit of a fractional coordinate
STATIC_STEPS = 50
LARGEST_SHIFT = 0.02  # of a fractional coordinate in one step
REGROWS = 5


class UnstableError(RuntimeError):
    """Raised for a crystal without a vibrational free energy or a minimum of it; the message says why."""


@dataclasses.dataclass(frozen=True)
class Landscape:
    """The free energy that is minimised, and its coordinates.

    Attributes:
        potential: conservative, parameters in double precision.
        crystal: the supercell and its wave vectors.
        function: free energy of one mode.
        pressure: eV/Angstrom^3.
        internal: how internal coordinates are treated.
        cell: [3, 3] primitive cell at zero strain, Angstrom.
        places: [p, 3] fractional coordinates at zero strain.
        strains: [k, 3, 3] basis of the strain.
        shifts: [m, p, 3] basis of the internal coordinates.
    """

    potential: Potential
    crystal: VibratingCrystal
    function: ModeFunction
    pressure: float
    internal: Internal
    cell: Float[np.ndarray, "3 3"]
    places: Float[np.ndarray, "p 3"]
    strains: Float[np.ndarray, "k 3 3"]
    shifts: Float[np.ndarray, "m p 3"]

    @property
    def size(self) -> int:
        """Number of coordinates x."""
        return len(self.strains) + (len(self.shifts) if self.internal == "full" else 0)

    def cell_at(self, x: Float[np.ndarray, " k"]) -> Float[np.ndarray, "3 3"]:
        """Cell h (1 + strain), Angstrom; the first coordinates are those of the strain."""
        return self.cell @ (np.eye(3) + np.tensordot(x[: len(self.strains)], self.strains, 1))

    def places_at(self, y: Float[np.ndarray, " m"]) -> Float[np.ndarray, "p 3"]:
        """Fractional coordinates at internal coordinates."""
        return self.places + np.tensordot(y, self.shifts, 1)


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a landscape at one temperature, for the primitive cell.

    Attributes:
        x: coordinates.
        y: [m] internal coordinates, part of x or following from it.
        cell: [3, 3] Angstrom.
        static, vibrational, gibbs: E, F and E + F + p V, eV.
        entropy, heat_capacity: at fixed x, eV/K.
        gradient, entropy_gradient: dG/dx, eV, and dS/dx, eV/K (zero unless it was asked for).
        thermal_stress: [3, 3] dF/dstrain / V, eV/Angstrom^3, positive where the vibrations pull the crystal together.
    """

    x: Float[np.ndarray, " k"]
    y: Float[np.ndarray, " m"]
    cell: Float[np.ndarray, "3 3"]
    static: float
    vibrational: float
    gibbs: float
    entropy: float
    heat_capacity: float
    gradient: Float[np.ndarray, " k"]
    entropy_gradient: Float[np.ndarray, " k"]
    thermal_stress: Float[np.ndarray, "3 3"]


class Evaluator:
    """Evaluates a landscape; keeps neighbour layouts between calls, and regrows them. Use it in 64-bit mode."""

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape
        self._layouts: dict[int, Layout] = {}  # by the number of atoms

    def __call__(
        self,
        x: Float[np.ndarray, " k"],
        y: Float[np.ndarray, " m"],
        temperature: float,
        *,
        entropy_gradient: bool = False,
    ) -> Point:
        """The point at x.

        Args:
            x: [k] coordinates.
            y: [m] internal coordinates to start from with zsisa; not used otherwise.
            temperature: K.
            entropy_gradient: compute dS/dx too, which takes as long again.

        Raises:
            UnstableError: imaginary modes, or no static equilibrium of the internal coordinates.
        """
        terrain = self.landscape
        cell = terrain.cell_at(x)
        y = self._relaxed(cell, y) if terrain.internal == "zsisa" else x[len(terrain.strains) :]
        static = self._static(cell, y)
        parts = self._vibrations(cell, y, temperature, (1.0, 0.0))
        volume = float(np.linalg.det(cell))
        vibrational_slope, along_y = self._total(parts["by_cell"], parts["by_place"], static)
        outer = terrain.pressure * volume * np.linalg.inv(cell).T
        slope = self._project(static["by_cell"] + outer + vibrational_slope, static["by_y"] + along_y)
        warming = np.zeros_like(slope)
        if entropy_gradient:
            mixed = self._vibrations(cell, y, temperature, (0.0, 1.0))
            warming = self._project(*self._total(mixed["by_cell"], mixed["by_place"], static))
        return Point(
            x=x,
            y=y,
            cell=cell,
            static=float(static["energy"]),
            vibrational=float(parts["free_energy"]),
            gibbs=float(static["energy"] + parts["free_energy"]) + terrain.pressure * volume,
            entropy=float(parts["entropy"]),
            heat_capacity=float(parts["heat_capacity"]),
            gradient=slope,
            entropy_gradient=warming,
            thermal_stress=cell.T @ vibrational_slope / volume,
        )

    def _total(
        self, by_cell: np.ndarray, by_place: np.ndarray, static: dict[str, np.ndarray]
    ) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, " m"]]:
        """Derivatives by cell and by internal coordinates; with zsisa all of it by cell, response included."""
        along_y = np.tensordot(self.landscape.shifts, by_place, 2)
        if self.landscape.internal == "full" or not len(along_y):
            return by_cell, along_y
        multipliers = np.linalg.solve(static["by_y_y"], along_y)
        return by_cell - np.tensordot(multipliers, static["by_y_cell"], 1), np.zeros_like(along_y)

    def _project(self, by_cell: np.ndarray, by_y: np.ndarray) -> Float[np.ndarray, " k"]:
        """Derivatives by x from those by cell and by internal coordinates."""
        strain = np.tensordot(self.landscape.strains, self.landscape.cell.T @ by_cell, 2)
        return np.concatenate([strain, by_y]) if self.landscape.internal == "full" else strain

    def _relaxed(self, cell: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Internal coordinates in static equilibrium at a cell, by Newton's method."""
        if not len(y):
            return y
        for _ in range(STATIC_STEPS):
            found = self._static(cell, y)
            slope, curvature = found["by_y"], found["by_y_y"]
            if np.abs(slope).max() < STATIC_TOLERANCE:
                return y
            values, vectors = np.linalg.eigh(curvature)
            if values[0] <= 0.0:
                raise UnstableError("the static energy has no minimum in the internal coordinates")
            step = -vectors @ ((vectors.T @ slope) / values)
            y = y + step * min(1.0, LARGEST_SHIFT / np.abs(step).max())
        raise UnstableError("the internal coordinates find no static equilibrium")

    def _static(self, cell: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        terrain = self.landscape
        place = jnp.asarray(cell), jnp.asarray(terrain.places_at(y))
        shifts = jnp.asarray(terrain.shifts)

        def compute(layout: Layout) -> dict[str, np.ndarray]:
            return jax.device_get(_static(terrain.potential, terrain.crystal, *place, shifts, layout=layout))

        return self._with_room(compute, unit_system(terrain.crystal, *place))

    def _vibrations(
        self, cell: np.ndarray, y: np.ndarray, temperature: float, mixture: tuple[float, float]
    ) -> dict[str, np.ndarray]:
        terrain = self.landscape
        place = jnp.asarray(cell), jnp.asarray(terrain.places_at(y))
        state = jnp.asarray(temperature, float), jnp.asarray(mixture)

        def compute(layout: Layout) -> dict[str, np.ndarray]:
            fixed = {"function": terrain.function, "layout": layout}
            return jax.device_get(_vibrations(terrain.potential, terrain.crystal, *place, *state, **fixed))

        found = self._with_room(compute, supercell_system(terrain.crystal, *place))
        if found["lowest"].min() <= 0.0:
            worst = int(found["lowest"].argmin())
            raise UnstableError(
                imaginary_text(float(found["lowest"][worst]), np.asarray(terrain.crystal.points)[worst])
            )
        return found

    def _with_room(self, compute: Callable[[Layout], dict[str, np.ndarray]], system: System) -> dict[str, np.ndarray]:
        """What is computed of a system, by the layout that has been large enough so far for as many atoms."""
        atoms = len(system.numbers)
        layout = self._layouts.get(atoms) or self.landscape.potential.allocate([system], skin=0.0)
        fitted = grow_until_it_fits(
            compute,
            layout,
            overflowed=lambda found: bool(found["overflow"]),
            enlarge=lambda layout, _: grow(layout, np.asarray(system.cell)),
            enlargements=REGROWS,
        )
        self._layouts[atoms] = fitted.layout
        return fitted.result


def imaginary_text(frequency: float, point: Float[np.ndarray, "3"]) -> str:
    """Words for the worst of the imaginary modes: its frequency, THz, and wave vector."""
    return f"the mode at q = ({point[0]:.4g} {point[1]:.4g} {point[2]:.4g}) is imaginary ({abs(frequency):.3g}i THz)"


@functools.partial(jax.jit, static_argnames="layout")
def _static(
    potential: Potential,
    crystal: VibratingCrystal,
    cell: Float[Array, "3 3"],
    places: Float[Array, "p 3"],
    shifts: Float[Array, "m p 3"],
    *,
    layout: Layout,
) -> dict[str, Array]:
    """Static energy and its first and the second derivatives that internal coordinates need."""
    neighbors = build(unit_system(crystal, cell, places), layout)

    def energy(cell: Array, places: Array) -> Array:
        return potential.energy(unit_system(crystal, cell, places), neighbors)

    def along(shift: Array) -> tuple[Array, Array]:
        return jax.grad(lambda *at: jnp.sum(shift * jax.grad(energy, argnums=1)(*at)), argnums=(0, 1))(cell, places)

    value, (by_cell, by_place) = jax.value_and_grad(energy, argnums=(0, 1))(cell, places)
    found = {"energy": value, "by_cell": by_cell, "by_y": jnp.tensordot(shifts, by_place, 2)}
    if len(shifts):
        found["by_y_cell"], mixed = jax.lax.map(along, shifts)
        found["by_y_y"] = jnp.tensordot(mixed, shifts, [[1, 2], [1, 2]])
    return found | {"overflow": neighbors.overflow}


@functools.partial(jax.jit, static_argnames=("function", "layout"))
def _vibrations(
    potential: Potential,
    crystal: VibratingCrystal,
    cell: Float[Array, "3 3"],
    places: Float[Array, "p 3"],
    temperature: Float[Array, ""],
    mixture: Float[Array, "2"],
    *,
    function: ModeFunction,
    layout: Layout,
) -> dict[str, Array]:
    """F, S, Cv, the lowest frequency of each wave vector, and the derivatives of mixture . (F, S) in cell and places.

    One program serves both derivatives: to compile third derivatives of a model takes longer than to run them.
    """

    def mixed(cell: Array, places: Array) -> tuple[Array, dict[str, Array]]:
        system = supercell_system(crystal, cell, places)
        neighbors = build(jax.lax.stop_gradient(system), layout)
        matrices = dynamical_matrices(crystal, crystal_constants(potential, crystal, system, neighbors))
        energy, entropy, capacity = (
            sign * vibrational_free_energy(order, crystal, matrices, temperature)
            for sign, order in (
                (1.0, function),
                (-1.0, function.in_temperature),
                (-temperature, function.in_temperature.in_temperature),
            )
        )
        lowest = frequencies(jax.lax.stop_gradient(without_translations(crystal, matrices)))[:, 0]
        values = {"free_energy": energy, "entropy": entropy, "heat_capacity": capacity}
        values |= {"lowest": lowest, "overflow": neighbors.overflow}
        return mixture[0] * energy + mixture[1] * entropy, values

    (_, values), (by_cell, by_place) = jax.value_and_grad(mixed, argnums=(0, 1), has_aux=True)(cell, places)
    return values | {"by_cell": by_cell, "by_place": by_place}
