"""Harmonic free energy of a crystal: from force constants of a supercell to dynamical matrices on a mesh, to F(T).

Dynamical matrices are those of phonopy (Togo & Tanaka, Scr. Mater. 108, 1 (2015)): with the shortest of the images of
each pair in the supercell, all of them with equal weights where there are several,

    D_ij(q) = 1 / sqrt(m_i m_j) sum_l Phi_i,jl <exp(2 pi i q.R_l)>,

    F(T) = 1/N_q sum_q Tr f(D(q), T),    S = -dF/dT,    Cv = -T d2F/dT2,

the latter by automatic differentiation. Phases hold the lattice vectors R_l only, which changes no eigenvalue. Which
images are shortest is settled once, for the crystal as it is given: under strain F stays smooth.
Everything is pure and can be differentiated with respect to cell, positions and parameters of the potential.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Complex, Float, Int
from phonopy import Phonopy
from phonopy.structure.cells import Primitive

from jaxpto.free_energy.estimators.spectral import ModeFunction, trace
from jaxpto.lattice_dynamics.hessian import force_constants
from jaxpto.neighbors import Neighbors
from jaxpto.potential import Potential
from jaxpto.system import Leaf, System

MESH_LENGTH = 50.0  # Angstrom; points along each reciprocal vector = this times its length / 2 pi
STAND_IN = 1.0  # eV/Angstrom^2/amu, in the place of the three zeros of the translations at Gamma


@struct.dataclass
class VibratingCrystal:
    """The part of a supercell that does not change with cell and positions.

    Attributes:
        numbers: [p] atomic numbers of the primitive cell.
        masses: [p] amu.
        owners: [n] atom of the primitive cell that each atom of the supercell is an image of.
        translations: [n, 3] lattice translation from the one to the other, in lattice vectors of the primitive cell.
        repeats: [3, 3] lattice vectors of the supercell, in the same units.
        rows: [p] atoms of the supercell whose force constants are used.
        images: [p, c] atoms of the supercell that are images of each atom of the primitive cell.
        points: [q, 3] wave vectors, in units of the reciprocal lattice vectors; the first is Gamma.
        weights: [q] their weights, which add up to 1; one of q and -q is kept.
        phases: [q, p, p, c] mean of exp(2 pi i q.R) over the shortest images.
    """

    numbers: Int[Leaf, " p"]
    masses: Float[Leaf, " p"]
    owners: Int[Leaf, " n"]
    translations: Float[Leaf, "n 3"]
    repeats: Float[Leaf, "3 3"]
    rows: Int[Leaf, " p"]
    images: Int[Leaf, "p c"]
    points: Float[Leaf, "q 3"]
    weights: Float[Leaf, " q"]
    phases: Complex[Leaf, "q p p c"]


class VibrationalThermodynamics(NamedTuple):
    """Thermodynamics of the vibrations of one primitive cell, at fixed cell.

    Attributes:
        free_energy: [] Helmholtz energy, eV.
        entropy: [] eV/K.
        heat_capacity: [] eV/K.
    """

    free_energy: Float[Array, ""]
    entropy: Float[Array, ""]
    heat_capacity: Float[Array, ""]


def usual_mesh(primitive: Primitive) -> tuple[int, int, int]:
    """Wave vectors along the reciprocal vectors, one for every 2 pi / 50 A."""
    lengths = np.linalg.norm(np.linalg.inv(primitive.cell), axis=0)
    a, b, c = np.maximum(1, np.rint(MESH_LENGTH * lengths)).astype(int).tolist()
    return a, b, c


def make_crystal(phonon: Phonopy, mesh: Sequence[int]) -> VibratingCrystal:
    """A crystal from phonopy's supercell and shortest pairs, with a mesh of wave vectors centred at Gamma.

    Call it in JAX's 64-bit mode.

    Args:
        phonon: from `make_phonopy`; no force constants are needed.
        mesh: wave vectors along the three reciprocal vectors; the repeats of the supercell give those of its own
            vibrations, which is what a simulation in it samples.
    """
    primitive, supercell = phonon.primitive, phonon.supercell
    places = [primitive.p2p_map[index] for index in primitive.s2p_map]
    owners = np.array(places)
    inside = supercell.positions @ np.linalg.inv(primitive.cell)
    translations = inside - primitive.scaled_positions[owners]
    points, weights = _mesh(mesh)
    vectors, multiplicities = primitive.get_smallest_vectors()
    images = np.stack([np.flatnonzero(owners == place) for place in range(len(primitive))])
    phases = np.empty((len(points), len(primitive), len(supercell)), complex)
    for atom, centre in np.ndindex(len(supercell), len(primitive)):
        number, first = multiplicities[atom, centre]
        apart = primitive.scaled_positions[owners[atom]] - primitive.scaled_positions[centre]
        whole = np.rint(vectors[first : first + number] - apart)
        phases[:, centre, atom] = np.exp(2j * np.pi * points @ whole.T).mean(axis=1)
    return VibratingCrystal(
        numbers=jnp.asarray(primitive.numbers, jnp.int32),
        masses=jnp.asarray(primitive.masses),
        owners=jnp.asarray(owners, jnp.int32),
        translations=jnp.asarray(np.rint(translations)),
        repeats=jnp.asarray(np.rint(supercell.cell @ np.linalg.inv(primitive.cell))),
        rows=jnp.asarray(primitive.p2s_map, jnp.int32),
        images=jnp.asarray(images, jnp.int32),
        points=jnp.asarray(points),
        weights=jnp.asarray(weights),
        phases=jnp.asarray(phases[:, :, images]),
    )


def unit_system(crystal: VibratingCrystal, cell: Float[Array, "3 3"], places: Float[Array, "p 3"]) -> System:
    """The primitive cell [3, 3] Angstrom with atoms at fractional coordinates [p, 3]."""
    return System(places @ cell, cell, crystal.numbers, crystal.masses)


def supercell_system(crystal: VibratingCrystal, cell: Float[Array, "3 3"], places: Float[Array, "p 3"]) -> System:
    """The supercell of a primitive cell [3, 3] Angstrom with atoms at fractional coordinates [p, 3]."""
    positions = (places[crystal.owners] + crystal.translations) @ cell
    return System(positions, crystal.repeats @ cell, crystal.numbers[crystal.owners], crystal.masses[crystal.owners])


def crystal_constants(
    potential: Potential, crystal: VibratingCrystal, system: System, neighbors: Neighbors
) -> Float[Array, "p n 3 3"]:
    """Force constants of the atoms of the primitive cell with all of the supercell, eV/Angstrom^2.

    Differentiated, it holds the intermediate results of one atom at a time and computes them again.
    """
    batch = 1 if neighbors.layout.platform == "cpu" else 3

    @jax.checkpoint
    def of_one(row: Int[Array, ""]) -> Float[Array, "n 3 3"]:
        return force_constants(potential, system, neighbors, row[None], batch)[0]

    return jax.lax.map(of_one, crystal.rows)


def dynamical_matrices(crystal: VibratingCrystal, constants: Float[Array, "p n 3 3"]) -> Complex[Array, "q m m"]:
    """D(q) of all wave vectors, m = 3 p, eV/Angstrom^2/amu, made Hermitian.

    Args:
        crystal: the crystal whose atoms are indexed.
        constants: force constants [p, n, 3, 3] eV/Angstrom^2.
    """
    size = 3 * crystal.masses.shape[0]
    by_pair = constants[:, crystal.images].astype(crystal.phases.dtype)
    sums = jnp.einsum("qijc,ijcab->qiajb", crystal.phases, by_pair).reshape(-1, size, size)
    root = jnp.sqrt(jnp.repeat(crystal.masses, 3))
    matrices = sums / (root[:, None] * root[None, :])[None]
    return 0.5 * (matrices + jnp.conj(jnp.swapaxes(matrices, 1, 2)))


def without_translations(crystal: VibratingCrystal, matrices: Complex[Array, "q m m"]) -> Complex[Array, "q m m"]:
    """The same with the three translations at Gamma, the first matrix, at `STAND_IN` in place of zero."""
    shares = jnp.sqrt(crystal.masses / jnp.sum(crystal.masses))
    rigid = jnp.kron(jnp.outer(shares, shares), jnp.eye(3)).astype(matrices.dtype)
    other = jnp.eye(rigid.shape[0], dtype=matrices.dtype) - rigid
    return matrices.at[0].set(other @ matrices[0] @ other + STAND_IN * rigid)


def vibrational_free_energy(
    function: ModeFunction, crystal: VibratingCrystal, matrices: Complex[Array, "q m m"], temperature: Float[Array, ""]
) -> Float[Array, ""]:
    """Free energy of the vibrations of one primitive cell, eV, or the derivative of it that `function` stands for.

    The three translations at Gamma are left out, as phonopy does on a mesh that holds it.

    Args:
        function: free energy of one mode, or a derivative of it.
        crystal: source of weights and masses.
        matrices: [q, m, m] from `dynamical_matrices`, eV/Angstrom^2/amu.
        temperature: K.
    """
    traces = trace(function, without_translations(crystal, matrices), temperature)
    stand_ins = 3.0 * crystal.weights[0] * function(jnp.full(1, STAND_IN, traces.dtype), temperature)[0]
    return jnp.dot(crystal.weights, traces) - stand_ins


def vibrational_thermodynamics(
    function: ModeFunction, crystal: VibratingCrystal, matrices: Complex[Array, "q m m"], temperature: Float[Array, ""]
) -> VibrationalThermodynamics:
    """F, S = -dF/dT and Cv = -T d2F/dT2 by automatic differentiation; arguments as in `vibrational_free_energy`."""

    def at(kelvin: Float[Array, ""]) -> Float[Array, ""]:
        return vibrational_free_energy(function, crystal, matrices, kelvin)

    value, slope = jax.value_and_grad(at)(temperature)
    return VibrationalThermodynamics(value, -slope, -temperature * jax.grad(jax.grad(at))(temperature))


def _mesh(mesh: Sequence[int]) -> tuple[Float[np.ndarray, "q 3"], Float[np.ndarray, " q"]]:
    """Points of a mesh centred at Gamma, one of q and -q, and weights of sum 1."""
    shape = np.asarray(mesh)
    grid = np.indices(mesh).reshape(3, -1).T
    opposite = np.ravel_multi_index(((shape - grid) % shape).T, tuple(mesh))
    own = np.arange(len(grid))
    kept = own <= opposite
    weights = np.where(own == opposite, 1.0, 2.0)[kept] / len(grid)
    return (grid / shape)[kept], weights
