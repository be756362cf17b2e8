"""Free energy against polarization from umbrella windows, and the Landau polynomial that describes it.

With p(P) the unbiased density of the polarization of the whole cell, from MBAR over the windows,

    F(P) = -kT ln p(P),    F / V = a1 P^2 + a11 P^4 + a111 P^6,    a1 = a0 (T - T0).

F is the Gibbs energy at the pressure of the simulation where its cell is flexible, and so are the coefficients
(stress-free ones). Curves go through zero at P = 0. Everything is a pure function of arrays in double precision,
differentiable in the samples' energies and polarizations.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from jaxpto.free_energy.estimators import mbar
from jaxpto.units import GIGAPASCAL

LANDAU_TERMS = 3
SMOOTH_TERMS = 5  # up to P^10: minimum and barrier must not hang on the Landau form
FINE = 2001  # points on which extrema are looked for before they are refined
JOULE_PER_CUBIC_METRE = 1e9 / GIGAPASCAL  # per eV/Angstrom^3


class FreeEnergyProfile(NamedTuple):
    """F(P) of the whole cell at one temperature, and the quantities derived from it.

    Attributes:
        profile: [b] F at the bins' middles, eV; not finite in a bin without samples.
        counts: [b] samples in each bin.
        smooth: [SMOOTH_TERMS] coefficients of x^2, x^4 ... with x = P / (largest edge), eV.
        landau: [3] a1 (J m / C^2), a11 (J m^5 / C^4), a111 (J m^9 / C^6).
        offset: difference of `profile` and Landau polynomial at P = 0, eV.
        spontaneous: P at the lowest point of `smooth`, C/m^2.
        barrier: height of `smooth` between there and P = 0, eV.
        volume: mean volume of the unbiased ensemble, Angstrom^3.
        misfit: root mean square of F - Landau polynomial over the bins with samples, eV.
    """

    profile: Float[Array, " b"]
    counts: Float[Array, " b"]
    smooth: Float[Array, " s"]
    landau: Float[Array, " l"]
    offset: Float[Array, ""]
    spontaneous: Float[Array, ""]
    barrier: Float[Array, ""]
    volume: Float[Array, ""]
    misfit: Float[Array, ""]


def reduced_bias(
    polarizations: Float[Array, " n"],
    centers: Float[Array, " k"],
    strength: Float[Array, ""],
    kT: Float[Array, ""],
    *,
    symmetric: bool,
) -> Float[Array, "k n"]:
    """Bias over kT of every sample in every window.

    Where F(P) = F(-P) is used, a window at P0 and its mirror image at -P0 are one state, with the bias
    -kT ln((exp(-u(P)/kT) + exp(-u(-P)/kT)) / 2): its samples are those of the window with signs drawn by lot.

    Args:
        polarizations: [n] C/m^2.
        centers: [k] C/m^2.
        strength: K, eV / (C/m^2)^2.
        kT: eV.
        symmetric: whether F(P) = F(-P) is used.
    """
    half = 0.5 * strength / kT
    bias = half * (polarizations[None, :] - centers[:, None]) ** 2
    if not symmetric:
        return bias
    mirrored = half * (polarizations[None, :] + centers[:, None]) ** 2
    return jnp.log(2.0) - jnp.logaddexp(-bias, -mirrored)


def free_energy_profile(
    polarizations: Float[Array, " n"],
    volumes: Float[Array, " n"],
    counts: Float[Array, " k"],
    centers: Float[Array, " k"],
    strength: Float[Array, ""],
    kT: Float[Array, ""],
    edges: Float[Array, " e"],
    *,
    symmetric: bool,
) -> FreeEnergyProfile:
    """F(P) and the Landau polynomial from the samples of all windows at one temperature.

    Within a bin F varies by more than kT where it is steep; each sample is therefore weighted with exp(F0 / kT), F0 the
    polynomial fitted to the profile before, which makes the bins flat and leaves F - F0 to be found.

    Args:
        polarizations, volumes: [n] C/m^2 and Angstrom^3, window after window.
        counts: [k] number of samples in each window.
        centers: [k] C/m^2.
        strength: K, the same in all windows, eV / (C/m^2)^2.
        kT: eV.
        edges: [b + 1] edges of the bins, C/m^2; they begin at 0 if `symmetric`.
        symmetric: whether F(P) = F(-P) is used.
    """
    bias = reduced_bias(polarizations, centers, strength, kT, symmetric=symmetric)
    mixture = mbar.solve(bias, counts)
    log_weights = jax.nn.log_softmax(mixture.log_weights)
    mean_volume = jnp.sum(jnp.exp(log_weights) * volumes)
    folded = jnp.abs(polarizations) if symmetric else polarizations
    middles, scale = 0.5 * (edges[1:] + edges[:-1]), jnp.max(jnp.abs(edges))
    inside = (folded[None, :] >= edges[:-1, None]) & (folded[None, :] < edges[1:, None])
    number = jnp.sum(inside, axis=1).astype(folded.dtype)
    filled = number > 0.0
    widths = jnp.diff(edges)

    def profile(guess: Float[Array, " s"]) -> Float[Array, " b"]:
        flat = log_weights + even(guess, folded / scale) / kT
        rows = jnp.where(inside | ~filled[:, None], flat[None, :], -jnp.inf)  # an empty bin takes all: a finite number
        found = even(guess, middles / scale) - kT * (logsumexp(rows, axis=1) - jnp.log(widths))
        return jnp.where(filled, found, 0.0)

    smooth = jnp.zeros(SMOOTH_TERMS, folded.dtype)
    for _ in range(3):
        found = profile(smooth)
        origin, smooth = even_fit(middles / scale, found, number, SMOOTH_TERMS)
    curve = found - origin
    offset, steep = even_fit(middles / scale, curve, number, LANDAU_TERMS)
    gaps = jnp.where(filled, curve - offset - even(steep, middles / scale), 0.0)
    powers = scale ** (2.0 * jnp.arange(1, LANDAU_TERMS + 1))
    spontaneous, barrier = well(smooth)
    return FreeEnergyProfile(
        profile=jnp.where(filled, curve, jnp.nan),
        counts=number,
        smooth=smooth,
        landau=steep / powers / mean_volume * JOULE_PER_CUBIC_METRE,
        offset=offset,
        spontaneous=scale * spontaneous,
        barrier=barrier,
        volume=mean_volume,
        misfit=jnp.sqrt(jnp.sum(gaps**2) / jnp.sum(filled)),
    )


def even(coefficients: Float[Array, " s"], x: Float[Array, " n"]) -> Float[Array, " n"]:
    """c_1 x^2 + c_2 x^4 + ... at every x."""
    result = jnp.zeros_like(x)
    for k in reversed(range(coefficients.shape[0])):
        result = (result + coefficients[k]) * x**2
    return result


def even_fit(
    x: Float[Array, " b"], values: Float[Array, " b"], weights: Float[Array, " b"], terms: int
) -> tuple[Float[Array, ""], Float[Array, " s"]]:
    """Constant and coefficients of x^2 ... x^(2 terms) by weighted least squares.

    Args:
        x: [b] abscissae of order one.
        values: [b] finite, also where the weight is zero.
        weights: [b] inverse variances up to a factor.
        terms: number of even powers.
    """
    columns = jnp.stack([x ** (2 * k) for k in range(terms + 1)], axis=1)
    root = jnp.sqrt(weights)
    q, r = jnp.linalg.qr(root[:, None] * columns)
    found = solve_triangular(r, jnp.matmul(q.T, root * values, precision="highest"))
    return found[0], found[1:]


def well(coefficients: Float[Array, " s"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Minimum of an even polynomial on 0 <= x <= 1, and the height of the barrier to x = 0; both 0 if x = 0 is lowest.

    Derivatives are exact: for the place by the last Newton step, for the heights because the slopes vanish there.
    """
    grid = jnp.linspace(0.0, 1.0, FINE)
    values = even(coefficients, grid)

    def at(x: Float[Array, ""]) -> Float[Array, ""]:
        return even(coefficients, x[None])[0]

    lowest = jnp.argmin(values)
    place = jax.lax.stop_gradient(grid[lowest])
    curvature = jax.grad(jax.grad(at))(place)
    inner = (lowest > 0) & (lowest < FINE - 1)
    newton = place - jax.grad(at)(place) / jnp.where(inner, curvature, 1.0)
    place = jnp.where(inner, newton, place)
    top = grid[jnp.argmax(jnp.where(jnp.arange(FINE) <= lowest, values, -jnp.inf))]
    return place, jnp.maximum(at(top) - at(place), 0.0)


def landau_energy(landau: Float[Array, " l"], polarization: Float[Array, " n"]) -> Float[Array, " n"]:
    """a1 P^2 + a11 P^4 + a111 P^6 in J/m^3, P in C/m^2."""
    return even(landau, polarization)


def landau_well(landau: Float[Array, " l"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Spontaneous polarization (C/m^2) and barrier (J/m^3) of a Landau polynomial; 0, 0 where P = 0 is lowest.

    P_s^2 = (-a11 + (a11^2 - 3 a1 a111)^(1/2)) / (3 a111); the barrier lies at the other root if that is positive
    (a transition of first order, between both temperatures of stability), else at P = 0.
    """
    a1, a11, a111 = landau
    square = a11**2 - 3.0 * a1 * a111
    root = jnp.sqrt(jnp.maximum(square, 0.0))
    minimum, maximum = (-a11 + root) / (3.0 * a111), jnp.maximum((-a11 - root) / (3.0 * a111), 0.0)
    place, top = jnp.sqrt(jnp.maximum(jnp.stack([minimum, maximum]), 0.0))
    low, high = landau_energy(landau, jnp.stack([place, top]))
    polar = (square > 0.0) & (minimum > 0.0) & (low < 0.0)
    return jnp.where(polar, place, 0.0), jnp.where(polar, high - low, 0.0)


def umbrella_integration(
    means: Float[Array, " k"],
    variances: Float[Array, " k"],
    counts: Float[Array, " k"],
    centers: Float[Array, " k"],
    strength: Float[Array, ""],
    kT: Float[Array, ""],
    grid: Float[Array, " g"],
) -> Float[Array, " g"]:
    """F on a grid by umbrella integration, zero at its first point; unlike MBAR it takes the windows as Gaussian.

    dF/dP = sum_k w_k(P) (kT (P - mean_k) / variance_k - K (P - P0_k)), w_k its share of the samples at P.
    Source: Kaestner and Thiel, J. Chem. Phys. 123, 144104 (2005).

    Args:
        means, variances: [k] mean and variance of P in each window, C/m^2 and (C/m^2)^2.
        counts: [k] number of samples in each window.
        centers: [k] C/m^2.
        strength: K, eV / (C/m^2)^2.
        kT: eV.
        grid: [g] ascending, C/m^2.
    """
    away = grid[:, None] - means[None, :]
    log_density = jnp.log(counts)[None, :] - 0.5 * away**2 / variances[None, :] - 0.5 * jnp.log(variances)[None, :]
    force = kT * away / variances[None, :] - strength * (grid[:, None] - centers[None, :])
    slope = jnp.sum(jax.nn.softmax(log_density, axis=1) * force, axis=1)
    parts = 0.5 * jnp.diff(grid) * (slope[1:] + slope[:-1])
    return jnp.concatenate([jnp.zeros(1, grid.dtype), jnp.cumsum(parts)])


def curie_weiss(
    temperatures: Float[Array, " t"], stiffness: Float[Array, " t"], errors: Float[Array, " t"]
) -> tuple[Float[Array, " 2"], Float[Array, " 2"]]:
    """a0 (J m / C^2 / K) and T0 (K) of a1 = a0 (T - T0) by weighted least squares, and their standard errors.

    Args:
        temperatures: [t] at least two, K.
        stiffness, errors: [t] a1 with its standard errors, J m / C^2.
    """

    def line(values: Float[Array, " t"]) -> Float[Array, " 2"]:
        weights = 1.0 / errors**2
        middle = jnp.sum(weights * temperatures) / jnp.sum(weights)
        away = temperatures - middle
        slope = jnp.sum(weights * away * values) / jnp.sum(weights * away**2)
        return jnp.stack([slope, middle - jnp.sum(weights * values) / jnp.sum(weights) / slope])

    return line(stiffness), jnp.sqrt(jnp.sum((jax.jacobian(line)(stiffness) * errors[None, :]) ** 2, axis=1))
