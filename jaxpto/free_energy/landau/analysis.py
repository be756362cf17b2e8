"""Free-energy profiles with error bars from umbrella windows at each temperature, and the checks that they hold."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto.errors import InputError
from jaxpto.free_energy.estimators import mbar
from jaxpto.free_energy.estimators.samples import FEWEST
from jaxpto.free_energy.ladder.analysis import LEAST_OVERLAP
from jaxpto.free_energy.landau.profile import (
    FreeEnergyProfile,
    curie_weiss,
    free_energy_profile,
    reduced_bias,
    umbrella_integration,
)
from jaxpto.observables.statistics import estimate
from jaxpto.units import BOLTZMANN

BINS_PER_WINDOW = 3
GOOD_DISTANCE = 2.0  # of the means of neighbouring windows, in standard deviations; such Gaussians overlap by 0.22


@dataclasses.dataclass(frozen=True)
class Windows:
    """Where the polarization is sampled.

    Attributes:
        centers: [k] C/m^2, evenly spaced.
        strength: K of the whole cell, eV / (C/m^2)^2.
        symmetric: whether F(P) = F(-P) is used; the centres then begin at 0.
    """

    centers: Float[np.ndarray, " k"]
    strength: float
    symmetric: bool

    @property
    def edges(self) -> Float[np.ndarray, " e"]:
        """Edges of the profile's bins, C/m^2."""
        return np.linspace(self.centers[0], self.centers[-1], BINS_PER_WINDOW * (len(self.centers) - 1) + 1)


@dataclasses.dataclass(frozen=True)
class WindowSamples:
    """Independent samples of all windows at one temperature.

    Attributes:
        temperature: K.
        polarizations, volumes: for each window [n_k], C/m^2 and Angstrom^3 of the whole cell.
        inefficiencies: [k] frames for each independent sample.
    """

    temperature: float
    polarizations: tuple[Float[np.ndarray, "_"], ...]
    volumes: tuple[Float[np.ndarray, "_"], ...]
    inefficiencies: Float[np.ndarray, " k"]

    @property
    def counts(self) -> Float[np.ndarray, " k"]:
        """Samples of each window."""
        return np.array([float(len(values)) for values in self.polarizations])


@dataclasses.dataclass(frozen=True)
class TemperatureResult:
    """The profile at one temperature.

    Attributes:
        samples: the samples behind it.
        values, errors: by MBAR, with bootstrap standard errors.
        overlap: [k, k] overlap matrix of the windows.
        integrated: [e] F at the bins' edges by umbrella integration, eV, zero at P = 0.
    """

    samples: WindowSamples
    values: FreeEnergyProfile
    errors: FreeEnergyProfile
    overlap: Float[np.ndarray, "k k"]
    integrated: Float[np.ndarray, " e"]


@dataclasses.dataclass(frozen=True)
class LandauResult:
    """The profiles at all temperatures.

    Attributes:
        windows: where the polarization was sampled.
        rows: one row for each temperature, ascending.
        curie_weiss, curie_weiss_errors: [2] a0 (J m / C^2 / K) and T0 (K), or None with a single temperature.
    """

    windows: Windows
    rows: list[TemperatureResult]
    curie_weiss: Float[np.ndarray, " 2"] | None
    curie_weiss_errors: Float[np.ndarray, " 2"] | None


def thinned(
    temperature: float,
    polarizations: list[list[Float[np.ndarray, "_"]]],
    volumes: list[list[Float[np.ndarray, "_"]]],
    windows: Windows,
) -> WindowSamples:
    """Every g-th frame of each run, g the statistical inefficiency of P in it, pooled by window.

    g is the larger one of autocorrelation and blocking: within a window the stiff bias makes P fast, while the lattice
    around it, on which its mean depends, stays slow.

    Args:
        temperature: K.
        polarizations, volumes: for each window and each of its runs the series [frames] without equilibration, C/m^2
            and Angstrom^3.
        windows: the windows.

    Raises:
        InputError: a window with too few independent samples.
    """
    kept_p, kept_v, inefficiencies = [], [], []
    for center, runs, sizes in zip(windows.centers, polarizations, volumes, strict=True):
        steps = [estimate(series).inefficiency for series in runs]
        kept_p.append(np.concatenate([s[:: math.ceil(g)] for s, g in zip(runs, steps, strict=True)]))
        kept_v.append(np.concatenate([s[:: math.ceil(g)] for s, g in zip(sizes, steps, strict=True)]))
        inefficiencies.append(max(steps))
        if len(kept_p[-1]) < FEWEST:
            raise InputError(
                f"{temperature:g} K, window at {center:.3g} C/m^2: {len(kept_p[-1])} independent samples, at least "
                f"{FEWEST} are needed; take more `steps` or `replicas`"
            )
    return WindowSamples(temperature, tuple(kept_p), tuple(kept_v), np.array(inefficiencies))


def analyse_windows(
    sampled: list[WindowSamples], windows: Windows, *, resamplings: int = 100, seed: int = 0
) -> LandauResult:
    """Profiles at all temperatures, with errors by bootstrap over the samples of each window.

    Args:
        sampled: samples at each temperature, ascending.
        windows: the windows, the same at all temperatures.
        resamplings: number of bootstrap resamplings.
        seed: seed of the bootstrap.

    Raises:
        InputError: neighbouring windows do not overlap, or the lowest point lies at the end of the range.
    """
    generator = np.random.default_rng(seed)
    with jax.enable_x64(True):
        trusts = [check_window_overlap(samples, windows) for samples in sampled]
        rows = [
            _temperature(samples, windows, overlap, generator, resamplings)
            for samples, overlap in zip(sampled, trusts, strict=True)
        ]
        for row in rows:
            _check_range(row, windows)
        if len(rows) < 2:
            return LandauResult(windows, rows, None, None)
        columns = (
            [row.samples.temperature for row in rows],
            [row.values.landau[0] for row in rows],
            [row.errors.landau[0] for row in rows],
        )
        law, spread = jax.device_get(curie_weiss(*(jnp.asarray(column) for column in columns)))
    return LandauResult(windows, rows, law, spread)


def check_window_overlap(samples: WindowSamples, windows: Windows) -> Float[np.ndarray, "k k"]:
    """Overlap matrix of the windows; refuses those that hardly share configurations. Call it in 64-bit mode.

    Raises:
        InputError: the message names the number of windows that would do.
    """
    overlap = np.asarray(
        _overlap(
            jnp.asarray(np.concatenate(samples.polarizations)),
            jnp.asarray(samples.counts),
            jnp.asarray(windows.centers),
            jnp.asarray(windows.strength),
            jnp.asarray(BOLTZMANN * samples.temperature),
            symmetric=windows.symmetric,
        )
    )
    shared = np.minimum(np.diagonal(overlap, 1), np.diagonal(overlap, -1))
    worst = int(np.argmin(shared))
    if shared[worst] >= LEAST_OVERLAP:
        return overlap
    means = np.array([values.mean() for values in samples.polarizations])
    widths = np.array([values.std() for values in samples.polarizations])
    distances = np.diff(means) / np.sqrt(0.5 * (widths[1:] ** 2 + widths[:-1] ** 2))
    enough = 1 + math.ceil((len(means) - 1) * max(float(distances.max()) / GOOD_DISTANCE, 1.25))
    first, second = windows.centers[worst : worst + 2]
    raise InputError(
        f"{samples.temperature:g} K: the windows at {first:.3g} and {second:.3g} C/m^2 overlap by "
        f"{shared[worst]:.2g}, at least {LEAST_OVERLAP:g} is needed; take `windows={enough}` with "
        f"`strength={windows.strength:.3g}` in a new folder"
    )


@functools.partial(jax.jit, static_argnames="symmetric")
def _overlap(
    polarizations: Float[Array, " n"],
    counts: Float[Array, " k"],
    centers: Float[Array, " k"],
    strength: Float[Array, ""],
    kT: Float[Array, ""],
    *,
    symmetric: bool,
) -> Float[Array, "k k"]:
    bias = reduced_bias(polarizations, centers, strength, kT, symmetric=symmetric)
    return mbar.overlap(mbar.solve(bias, counts), bias, counts)


def _temperature(
    samples: WindowSamples,
    windows: Windows,
    overlap: Float[np.ndarray, "k k"],
    generator: np.random.Generator,
    resamplings: int,
) -> TemperatureResult:
    counts, kT = jnp.asarray(samples.counts), jnp.asarray(BOLTZMANN * samples.temperature)
    centers, strength = jnp.asarray(windows.centers), jnp.asarray(windows.strength)
    pooled, sizes = np.concatenate(samples.polarizations), np.concatenate(samples.volumes)
    ends = np.cumsum(samples.counts).astype(int)
    starts = np.concatenate([[0], ends[:-1]])

    def one(both: tuple[Float[Array, " n"], Float[Array, " n"]]) -> FreeEnergyProfile:
        shape = (counts, centers, strength, kT, jnp.asarray(windows.edges))
        return free_energy_profile(*both, *shape, symmetric=windows.symmetric)

    chosen = np.stack(
        [
            np.concatenate([generator.integers(a, b, b - a) for a, b in zip(starts, ends, strict=True)])
            for _ in range(resamplings)
        ]
    )
    plain = (jnp.asarray(pooled)[None], jnp.asarray(sizes)[None])
    drawn = (jnp.asarray(pooled[chosen]), jnp.asarray(sizes[chosen]))
    both = jax.tree.map(lambda first, further: jnp.concatenate([first, further]), plain, drawn)
    found = jax.device_get(jax.jit(lambda many: jax.lax.map(one, many))(both))  # one program for value and errors
    values = jax.tree.map(lambda leaf: leaf[0], found)
    # a bin that no sample of a resampling falls into says nothing there
    errors = jax.tree.map(lambda leaf: _spread(leaf[1:]), found)
    means = np.array([values.mean() for values in samples.polarizations])
    variances = np.array([values.var(ddof=1) for values in samples.polarizations])
    return TemperatureResult(samples, values, errors, overlap, _integrated(means, variances, samples, windows))


def _spread(draws: Float[np.ndarray, "draws ..."]) -> Float[np.ndarray, "..."]:
    """Standard deviation over the draws that are finite."""
    finite = np.isfinite(draws)
    number = np.maximum(finite.sum(axis=0), 1)
    values = np.where(finite, draws, 0.0)
    mean = values.sum(axis=0) / number
    square = np.where(finite, (draws - mean) ** 2, 0.0).sum(axis=0)
    return np.where(number > 1, np.sqrt(square / np.maximum(number - 1, 1)), np.nan)


def _integrated(
    means: Float[np.ndarray, " k"], variances: Float[np.ndarray, " k"], samples: WindowSamples, windows: Windows
) -> Float[np.ndarray, " e"]:
    """Umbrella integration at the bins' edges, zero at P = 0; mirror images of the windows count as sampled ones."""
    centers, counts, edges = windows.centers, samples.counts, windows.edges
    if windows.symmetric:
        mirror = lambda values, sign: np.concatenate([sign * values[:0:-1], values])  # noqa: E731
        counts, variances = mirror(counts, 1.0), mirror(variances, 1.0)
        centers, means = mirror(centers, -1.0), mirror(means, -1.0)
    numbers = (means, variances, counts, centers, np.float64(windows.strength), BOLTZMANN * samples.temperature, edges)
    curve = np.asarray(umbrella_integration(*(jnp.asarray(x) for x in numbers)))
    return curve - np.interp(0.0, edges, curve)


def _check_range(row: TemperatureResult, windows: Windows) -> None:
    """Refuse a profile whose lowest point is its last.

    Raises:
        InputError: the message names the range that would do.
    """
    last = max(abs(windows.centers[0]), abs(windows.centers[-1]))
    if row.values.spontaneous < 0.97 * last:
        return
    low = windows.centers[0] if windows.symmetric else -1.3 * last
    raise InputError(
        f"{row.samples.temperature:g} K: the free energy is lowest at the end of the range, {last:g} C/m^2; "
        f"take `range=({low:g}, {1.3 * last:.2g})` in a new folder"
    )
