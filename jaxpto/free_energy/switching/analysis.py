"""Free energies with error bars from the works of switches; springs from the amplitudes of a crystal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxpto.free_energy.switching.einstein_crystal import einstein_free_energy, spring_constants
from jaxpto.free_energy.switching.paths import smooth_step
from jaxpto.free_energy.switching.works import FreeEnergyChange, bootstrap, free_energy_change, scaled_free_energy


@dataclasses.dataclass(frozen=True)
class SwitchedCrystal:
    """The crystal whose free energy is computed.

    Attributes:
        masses: [n] amu.
        volume: volume of the periodic cell, Angstrom^3.
        translations: lattice translations of the crystal within it.
        origin: zero of the potential energy in the works, eV.
    """

    masses: Float[np.ndarray, " n"]
    volume: float
    translations: int
    origin: float


@dataclasses.dataclass(frozen=True)
class Sites:
    """Where springs hold the atoms at one temperature, and how strongly.

    Attributes:
        positions: [n, 3] mean positions with the centre of mass of the perfect crystal, Angstrom.
        springs: [n] eV/Angstrom^2.
        last: [r, n, 3] last positions of each replica with the same centre of mass, Angstrom.
    """

    positions: Float[np.ndarray, "n 3"]
    springs: Float[np.ndarray, " n"]
    last: Float[np.ndarray, "r n 3"]


@dataclasses.dataclass(frozen=True)
class Switched:
    """Absolute free energy of the whole cell at one temperature from switches between model and Einstein crystal.

    Attributes:
        temperature: K.
        free_energy, error: F and its standard error, eV.
        bar, bar_error: F by Bennett's acceptance ratio, eV.
        dissipation, dissipation_error: mean of both ways, eV.
        forward, backward: [r] work of every switch, eV.
        einstein: free energy of the Einstein crystal, eV.
        springs: [n] eV/Angstrom^2.
        path: [s] position on the path (0 to 1) in the middle of each slice.
        there, back: [s] mean of dH/d(path) in each slice on the way there and, negated, on the way back, eV.
    """

    temperature: float
    free_energy: float
    error: float
    bar: float
    bar_error: float
    dissipation: float
    dissipation_error: float
    forward: Float[np.ndarray, " r"]
    backward: Float[np.ndarray, " r"]
    einstein: float
    springs: Float[np.ndarray, " n"]
    path: Float[np.ndarray, " s"]
    there: Float[np.ndarray, " s"]
    back: Float[np.ndarray, " s"]


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Free energy of the whole cell over a range of temperatures by reversible scaling from the lowest one.

    Attributes:
        temperatures: [s] K, the lowest first.
        free_energy, error: [s] eV.
        dissipation: [s] mean of both ways up to each temperature, as a work at the lowest one, eV.
        forward, backward: [r] work of every switch over the whole range, eV.
        bar: F at the highest temperature with the work by Bennett's acceptance ratio, eV.
        origin: zero of the potential energy in the works, eV.
    """

    temperatures: Float[np.ndarray, " s"]
    free_energy: Float[np.ndarray, " s"]
    error: Float[np.ndarray, " s"]
    dissipation: Float[np.ndarray, " s"]
    forward: Float[np.ndarray, " r"]
    backward: Float[np.ndarray, " r"]
    bar: float
    origin: float


def sites_of(
    replicas: Iterable[Float[np.ndarray, "_ n 3"]],
    lattice: Float[np.ndarray, "n 3"],
    masses: Float[np.ndarray, " n"],
    basis: int,
    temperature: float,
) -> Sites:
    """Mean positions and springs from trajectories of a crystal.

    Springs are 3 kT / <u^2> with the mean squared displacement from the mean position, the centre of mass held. Both
    are averaged over the replicas and the unit cells.

    Args:
        replicas: for each replica [frames, n, 3] unwrapped positions in equilibrium, taken one by one, Angstrom.
        lattice: [n, 3] positions of the perfect crystal, those of one unit cell after another.
        masses: [n] amu.
        basis: atoms of a unit cell.
        temperature: K.
    """
    n, share = len(lattice), (masses / masses.sum())[:, None]
    total, squared, number, last = np.zeros((n, 3)), np.zeros(n), 0, []
    for frames in replicas:
        moved = frames.astype(np.float64) - lattice[None]
        moved -= (share[None] * moved).sum(1, keepdims=True)
        total += moved.sum(0)
        squared += (moved**2).sum((0, 2))
        number += len(moved)
        last.append(lattice + moved[-1])
    cell_mean = (total / number).reshape(-1, basis, 3).mean(0)
    squares = (squared / number).reshape(-1, basis).mean(0) - (cell_mean**2).sum(1)
    mean = np.tile(cell_mean, (n // basis, 1))
    with jax.enable_x64(True):
        springs = np.asarray(spring_constants(jnp.asarray(squares), jnp.asarray(temperature)))
    return Sites(lattice + mean, np.tile(springs, n // basis), np.stack(last))


def analyse_switches(
    forward: Float[np.ndarray, "r s"],
    backward: Float[np.ndarray, "r s"],
    springs: Float[np.ndarray, " n"],
    temperature: float,
    crystal: SwitchedCrystal,
    seed: int = 0,
) -> Switched:
    """Absolute free energy from the works to the Einstein crystal and back.

    Args:
        forward, backward: [r, s] work of every switch in equal parts of its time, in the order they were done, eV.
        springs: [n] eV/Angstrom^2.
        temperature: K.
        crystal: the crystal.
        seed: seed of the bootstrap.
    """
    there, back = forward.sum(1), backward.sum(1)
    value, error = _estimate(there, back, temperature, seed)
    with jax.enable_x64(True):
        einstein = crystal.origin + float(
            einstein_free_energy(
                jnp.asarray(springs, jnp.float64),
                jnp.asarray(crystal.masses, jnp.float64),
                jnp.asarray(temperature, jnp.float64),
                jnp.asarray(crystal.volume, jnp.float64),
                crystal.translations,
            )
        )
        edges = np.asarray(smooth_step(jnp.linspace(0.0, 1.0, forward.shape[1] + 1))[0])
    steps = np.diff(edges)
    return Switched(
        temperature=temperature,
        free_energy=einstein - float(value.change),
        error=float(error.change),
        bar=einstein - float(value.bar),
        bar_error=float(error.bar),
        dissipation=float(value.dissipation),
        dissipation_error=float(error.dissipation),
        forward=there,
        backward=back,
        einstein=einstein,
        springs=springs,
        path=0.5 * (edges[1:] + edges[:-1]),
        there=forward.mean(0) / steps,
        back=-backward.mean(0)[::-1] / steps,
    )


def analyse_scaling(
    forward: Float[np.ndarray, "r s"],
    backward: Float[np.ndarray, "r s"],
    first: Switched,
    highest: float,
    crystal: SwitchedCrystal,
    seed: int = 0,
) -> Scaled:
    """Free energies up to the highest temperature from the works of scaling the energy down and up again.

    Args:
        forward, backward: [r, s] work of every switch in equal parts of its time, in the order they were done, eV.
        first: free energy at the lowest temperature.
        highest: K.
        crystal: the crystal.
        seed: seed of the bootstrap.
    """
    replicas, slices = forward.shape
    start = np.zeros((replicas, 1))
    there = np.concatenate([start, np.cumsum(forward, axis=1)], axis=1)
    back = np.concatenate([start, np.cumsum(backward[:, ::-1], axis=1)], axis=1)
    work, dissipation = 0.5 * (there.mean(0) - back.mean(0)), 0.5 * (there.mean(0) + back.mean(0))
    spread = 0.5 * np.sqrt((there.var(0, ddof=1) + back.var(0, ddof=1)) / replicas)
    kelvin = np.linspace(first.temperature, highest, slices + 1)
    value, _ = _estimate(there[:, -1], back[:, -1], first.temperature, seed)
    atoms, relative = len(crystal.masses), first.free_energy - crystal.origin
    with jax.enable_x64(True):
        free = np.asarray(scaled_free_energy(*map(jnp.asarray, (relative, work, kelvin, first.temperature)), atoms))
        last = scaled_free_energy(*map(jnp.asarray, (relative, float(value.bar), kelvin[-1], first.temperature)), atoms)
    return Scaled(
        temperatures=kelvin,
        free_energy=crystal.origin + free,
        error=kelvin / first.temperature * np.hypot(first.error, spread),
        dissipation=dissipation,
        forward=there[:, -1],
        backward=back[:, -1],
        bar=crystal.origin + float(last),
        origin=crystal.origin,
    )


def at_temperatures(
    scaled: Scaled, wanted: Float[np.ndarray, " t"]
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """F and its standard error at any temperatures of the range, eV.

    Between two points (F - U_0) / T is interpolated linearly in ln T, which is exact for a constant heat capacity.
    """
    reduced = (scaled.free_energy - scaled.origin) / scaled.temperatures
    between = np.interp(np.log(wanted), np.log(scaled.temperatures), reduced)
    return scaled.origin + wanted * between, np.interp(wanted, scaled.temperatures, scaled.error)


def agreement(first: Switched, second: float, error: float) -> float:
    """How many standard errors two independent free energies are apart."""
    return abs(first.free_energy - second) / math.hypot(first.error, error)


def _estimate(
    forward: Float[np.ndarray, " r"], backward: Float[np.ndarray, " r"], temperature: float, seed: int
) -> tuple[FreeEnergyChange, FreeEnergyChange]:
    """Estimate and standard errors in double precision."""
    with jax.enable_x64(True):
        works = jnp.asarray(forward, jnp.float64), jnp.asarray(backward, jnp.float64), jnp.asarray(temperature)
        value = jax.jit(free_energy_change)(*works)
        error = jax.jit(bootstrap)(jax.random.PRNGKey(seed), *works)
        return jax.device_get(value), jax.device_get(error)
