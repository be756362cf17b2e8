"""Means of correlated time series and how far to trust them (host side, NumPy, pure functions).

Two independent roads lead to the standard error: the integrated autocorrelation time with Sokal's automatic window, and
Flyvbjerg-Petersen blocking. The larger one is reported, so that a failure of either does not shrink an error bar.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

SOKAL_WINDOW = 5.0  # the sum over the autocorrelation stops at this many autocorrelation times
FEWEST_INDEPENDENT = 10.0  # with fewer independent samples neither the mean nor its error is trusted
LARGEST_DRIFT = 3.0  # halves of the series may differ by this many of their standard errors

Series = Float[np.ndarray, " frames"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean of a correlated time series.

    Attributes:
        mean: time average, in the unit of the series.
        std: standard deviation of the fluctuations (the paper's error bar).
        sem: standard error of the mean.
        inefficiency: g, number of samples per independent sample (1 for white noise).
        independent: number of independent samples, frames / g.
        drift: mean of the second half minus mean of the first half.
        drift_sem: standard error of `drift` for a stationary series.
    """

    mean: float
    std: float
    sem: float
    inefficiency: float
    independent: float
    drift: float
    drift_sem: float

    @property
    def converged(self) -> bool:
        """Enough independent samples, and no drift beyond the noise."""
        return self.independent >= FEWEST_INDEPENDENT and abs(self.drift) <= LARGEST_DRIFT * self.drift_sem


def autocorrelation(series: Series) -> Series:
    """Normalised autocorrelation C(t), C(0) = 1, of a series [frames] by Fourier transform (biased: divided by frames).

    A constant series has C(0) = 1 and C(t > 0) = 0.
    """
    frames = series.shape[0]
    if np.ptp(series) == 0.0:
        return np.eye(1, frames)[0]
    centred = np.asarray(series, np.float64) - np.mean(series, dtype=np.float64)
    transform = np.fft.rfft(centred, 2 * frames)
    correlation = np.fft.irfft(transform * transform.conj(), 2 * frames)[:frames]
    return correlation / correlation[0]


def statistical_inefficiency(series: Series) -> float:
    """Statistical inefficiency g = 1 + 2 sum_t C(t), at least 1, of a series [frames].

    The sum ends at the first t >= 5 tau(t), tau(t) = 1/2 + sum_{s<=t} C(s) (Sokal's window; A. Sokal, Monte Carlo
    Methods in Statistical Mechanics, 1996). The bias of order g/frames that comes from subtracting the sample's own
    mean is corrected to first order: C loses g/frames at every t, hence the factor 1 / (1 - (2 t + 1) / frames).
    """
    frames = series.shape[0]
    if frames < 2:
        return 1.0
    time = 0.5 + np.cumsum(autocorrelation(series)[1:])
    lags = np.arange(1, frames)
    inside = lags < SOKAL_WINDOW * time
    window = frames - 2 if inside.all() else int(np.argmin(inside))
    correction = 1.0 - (2.0 * lags[window] + 1.0) / frames
    if correction <= 0.5:  # the window takes up a quarter of the run: g is as good as unknown, and large
        correction = 0.5
    return float(np.clip(2.0 * time[window] / correction, 1.0, frames))


def blocking_standard_error(series: Series) -> float:
    """Standard error of the mean of a series [frames] by blocking (Flyvbjerg, Petersen, J. Chem. Phys. 91, 461, 1989).

    Blocks are doubled until their length B obeys B^3 > 2 frames (sem_B / sem_1)^4 (Lee et al., J. Chem. Phys. 134,
    244117, 2011) or fewer than sixteen blocks are left.
    """
    frames = series.shape[0]
    if frames < 2:
        return math.nan
    blocks = np.asarray(series, np.float64)
    first = last = float(blocks.std(ddof=1) / math.sqrt(frames))
    length = 1
    while blocks.shape[0] >= 16 and first > 0.0 and length**3 <= 2.0 * frames * (last / first) ** 4:
        blocks = blocks[: 2 * (blocks.shape[0] // 2)].reshape(-1, 2).mean(axis=1)
        length *= 2
        last = float(blocks.std(ddof=1) / math.sqrt(blocks.shape[0]))
    return max(last, first)


def estimate(series: Series) -> Estimate:
    """Mean, standard deviation, standard error, and drift of a series [frames]; all NaN without frames.

    With a single frame only the mean is known.
    """
    frames = series.shape[0]
    values = np.asarray(series, np.float64)
    if frames == 0:
        return Estimate(*[math.nan] * 7)
    if frames == 1:
        return Estimate(float(values[0]), math.nan, math.nan, 1.0, 1.0, math.nan, math.nan)
    if np.ptp(values) == 0.0:
        return Estimate(float(values[0]), 0.0, 0.0, 1.0, float(frames), 0.0, 0.0)
    std = float(values.std(ddof=1))
    inefficiency = statistical_inefficiency(values)
    sem = max(std * math.sqrt(inefficiency / frames), blocking_standard_error(values))
    inefficiency = min(float(frames), max(inefficiency, frames * (sem / std) ** 2))  # whichever road gave the error
    half = frames // 2
    drift = float(values[half:].mean() - values[:half].mean())
    return Estimate(
        mean=float(values.mean()),
        std=std,
        sem=sem,
        inefficiency=inefficiency,
        independent=frames / inefficiency,
        drift=drift,
        drift_sem=2.0 * sem,  # each half has variance 2 sem^2, their difference 4 sem^2
    )


def combine(estimates: list[Estimate]) -> Estimate:
    """Combine the estimates of independent replicas of the same system into one.

    The mean is the plain mean over replicas. Its standard error is the larger of the propagated one,
    sqrt(sum sem^2) / R, and the one from the scatter of the replicas, which also sees replicas that never
    visit each other's states. `std` is the root mean square over replicas: a thermal fluctuation, not the scatter.
    """
    if len(estimates) == 1:
        return estimates[0]
    if not estimates:
        return Estimate(*[math.nan] * 7)
    count = len(estimates)
    means = np.array([e.mean for e in estimates])
    propagated = math.sqrt(sum(e.sem**2 for e in estimates)) / count
    scatter = float(means.std(ddof=1)) / math.sqrt(count)
    return Estimate(
        mean=float(means.mean()),
        std=math.sqrt(sum(e.std**2 for e in estimates) / count),
        sem=scatter if math.isnan(propagated) else max(propagated, scatter),
        inefficiency=float(np.mean([e.inefficiency for e in estimates])),
        independent=sum(e.independent for e in estimates),
        drift=float(np.mean([e.drift for e in estimates])),
        drift_sem=math.sqrt(sum(e.drift_sem**2 for e in estimates)) / count,
    )


def cumulative_mean(series: Series) -> Series:
    """Mean of the first k samples for k = 1 ... frames."""
    return np.cumsum(series, dtype=np.float64) / np.arange(1, series.shape[0] + 1)


def settling_index(series: Series, tolerance: float) -> int:
    """First frame from which the cumulative mean stays within `tolerance` of its final value."""
    means = cumulative_mean(series)
    outside = np.flatnonzero(np.abs(means - means[-1]) > tolerance)
    return int(outside[-1]) + 1 if outside.size else 0
