"""Functions of Hermitian matrices whose derivatives hold where eigenvalues coincide.

The free energy of harmonic vibrations is a trace, F = Tr f(D) = sum_k f(l_k), of the dynamical matrix D with
eigenvalues l_k = omega_k^2. Its derivatives need no derivative of an eigenvector:

    dF = Tr f'(D) dD,    d[f(D)] = V (phi o (V^H dD V)) V^H,    phi_kl = (f(l_k) - f(l_l)) / (l_k - l_l)

with phi_kl = f'(l_k) where the two coincide (Daleckii & Krein, AMS Transl. 47, 1 (1965)). First and second
derivatives in D, and any in the temperature, are exact.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from ase import units as ase_units
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Complex, Float

from jaxpto.units import BOLTZMANN, FEMTOSECOND

Statistics = Literal["quantum", "classical"]
Imaginary = Literal["refuse", "omit", "absolute"]

HBAR = ase_units._hbar / ase_units._e * 1e15 * FEMTOSECOND  # eV times the internal unit of time
TERAHERTZ = 1e3 * FEMTOSECOND / (2.0 * jnp.pi)  # THz per sqrt(eV / Angstrom^2 / amu)
COINCIDENT = 1e-5  # relative difference of eigenvalues below which their mean has phi to 10 digits


@dataclasses.dataclass(frozen=True)
class ModeFunction:
    """Free energy of one mode as a function of lambda = omega^2 and T, or a derivative of it; hashable.

    Quantum: f = hbar omega / 2 + kT ln(1 - exp(-hbar omega / kT)); classical: f = kT ln(hbar omega / kT).

    Attributes:
        statistics: quantum or classical.
        imaginary: treatment of lambda <= 0: refuse (not a number), omit (0), absolute (as -lambda).
        by_temperature, by_square: order of the derivative in T and lambda.
    """

    statistics: Statistics = "quantum"
    imaginary: Imaginary = "refuse"
    by_temperature: int = 0
    by_square: int = 0

    @property
    def in_temperature(self) -> ModeFunction:
        """One derivative in T more."""
        return dataclasses.replace(self, by_temperature=self.by_temperature + 1)

    @property
    def in_square(self) -> ModeFunction:
        """One derivative in lambda more."""
        return dataclasses.replace(self, by_square=self.by_square + 1)

    def __call__(self, squares: Float[Array, "*s"], temperature: Float[Array, ""]) -> Float[Array, "*s"]:
        """Values at squares, eV/Angstrom^2/amu, and a temperature above 0 K; in eV, K and the unit of squares."""
        function = self._of_one_mode
        for _ in range(self.by_square):
            function = jax.grad(function, argnums=0)
        for _ in range(self.by_temperature):
            function = jax.grad(function, argnums=1)
        return jax.vmap(function, in_axes=(0, None))(squares.reshape(-1), temperature).reshape(squares.shape)

    def _of_one_mode(self, square: Float[Array, ""], temperature: Float[Array, ""]) -> Float[Array, ""]:
        if self.imaginary == "absolute":
            square = jnp.abs(square)
        real = square > 0.0
        energy = HBAR * jnp.sqrt(jnp.where(real, square, 1.0))
        thermal = BOLTZMANN * temperature
        if self.statistics == "quantum":
            value = 0.5 * energy + thermal * jnp.log(-jnp.expm1(-energy / thermal))
        else:
            value = thermal * jnp.log(energy / thermal)
        return jnp.where(real, value, 0.0 if self.imaginary == "omit" else jnp.nan)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def trace(
    function: ModeFunction, matrices: Complex[Array, "*q m m"], temperature: Float[Array, ""]
) -> Float[Array, "*q"]:
    """Tr f(D) of each Hermitian matrix, with exact first and second derivatives.

    Args:
        function: f.
        matrices: D [*q, m, m], eV/Angstrom^2/amu.
        temperature: K.
    """
    return jnp.sum(function(jnp.linalg.eigvalsh(matrices), temperature), axis=-1)


@functools.partial(trace.defjvp, symbolic_zeros=True)
def _(function, primals, tangents):
    (matrices, temperature), (change, warming) = primals, tangents
    value = trace(function, matrices, temperature)
    tangent = jnp.zeros_like(value)
    if not isinstance(change, SymbolicZero):
        slope = matrix_function(function.in_square, matrices, temperature)
        tangent += jnp.einsum("...ij,...ji->...", slope, change).real
    if not isinstance(warming, SymbolicZero):
        tangent += warming * trace(function.in_temperature, matrices, temperature)
    return value, tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def matrix_function(
    function: ModeFunction, matrices: Complex[Array, "*q m m"], temperature: Float[Array, ""]
) -> Complex[Array, "*q m m"]:
    """f(D) = V f(lambda) V^H of each Hermitian matrix, with an exact first derivative; arguments as in `trace`."""
    squares, vectors = jnp.linalg.eigh(matrices)
    return (vectors * function(squares, temperature)[..., None, :]) @ jnp.conj(jnp.swapaxes(vectors, -1, -2))


@functools.partial(matrix_function.defjvp, symbolic_zeros=True)
def _(function, primals, tangents):
    (matrices, temperature), (change, warming) = primals, tangents
    value = matrix_function(function, matrices, temperature)
    tangent = jnp.zeros_like(value)
    if not isinstance(change, SymbolicZero):
        squares, vectors = jnp.linalg.eigh(matrices)
        back = jnp.conj(jnp.swapaxes(vectors, -1, -2))
        tangent += vectors @ (_divided(function, squares, temperature) * (back @ change @ vectors)) @ back
    if not isinstance(warming, SymbolicZero):
        tangent += warming * matrix_function(function.in_temperature, matrices, temperature)
    return value, tangent


def _divided(
    function: ModeFunction, squares: Float[Array, "*q m"], temperature: Float[Array, ""]
) -> Float[Array, "*q m m"]:
    """phi_kl of each pair of eigenvalues."""
    first, second = jnp.broadcast_arrays(squares[..., :, None], squares[..., None, :])
    close = jnp.abs(first - second) <= COINCIDENT * (jnp.abs(first) + jnp.abs(second))
    values = function(squares, temperature)
    rises, rest = jnp.broadcast_arrays(values[..., :, None], values[..., None, :])
    quotients = (rises - rest) / jnp.where(close, 1.0, first - second)
    return jnp.where(close, function.in_square(0.5 * (first + second), temperature), quotients)


@jax.custom_jvp
def eigenvalues(matrices: Complex[Array, "*q m m"]) -> Float[Array, "*q m"]:
    """Ascending eigenvalues of Hermitian matrices; where some coincide, only their sum has a derivative."""
    return jnp.linalg.eigvalsh(matrices)


@eigenvalues.defjvp
def _(primals, tangents):
    squares, vectors = jnp.linalg.eigh(primals[0])
    return squares, jnp.einsum("...ik,...ij,...jk->...k", jnp.conj(vectors), tangents[0], vectors).real


def frequencies(matrices: Complex[Array, "*q m m"]) -> Float[Array, "*q m"]:
    """Ascending frequencies, THz, of dynamical matrices, eV/Angstrom^2/amu; imaginary ones negative."""
    squares = eigenvalues(matrices)
    safe = jnp.where(squares == 0.0, 1.0, jnp.abs(squares))
    return jnp.where(squares == 0.0, 0.0, TERAHERTZ * jnp.sign(squares) * jnp.sqrt(safe))
