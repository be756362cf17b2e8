"""Constant pressure and temperature with a flexible cell: Parrinello-Rahman in Martyna, Tobias and Klein's form."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, UInt32

from jaxpto.errors import InputError
from jaxpto.integrators.common import (
    check_positive,
    check_thermal,
    kinetic_energy,
    kinetic_tensor,
    matmul,
    maxwell_boltzmann,
    remove_drift,
)
from jaxpto.integrators.external_stress import (
    StressMeasure,
    check_measure,
    deviatoric_work,
    external_force,
    potential_work,
)
from jaxpto.integrators.nose_hoover import Chain, chain_at_rest, chain_energy, chain_half_step
from jaxpto.integrators.state import Integrator, MDState
from jaxpto.model_interface import EvaluateFn
from jaxpto.neighbors import Neighbors
from jaxpto.system import Leaf, System, volume
from jaxpto.units import FEMTOSECOND, GIGAPASCAL

Mask = Literal["iso", "diag", "full"]
"""Strain the barostat may apply: volume alone; the three Cartesian axes; any symmetric strain rate (no rotation)."""

CELL_DEGREES_OF_FREEDOM: dict[str, int] = {"iso": 1, "diag": 3, "full": 6}


@struct.dataclass
class ParrinelloRahmanBath:
    """Thermostats, barostat and their targets.

    Attributes:
        kT: [] target temperature, eV.
        external_stress: [3, 3] eV/Angstrom^3, positive in tension (a pressure P is -P on the diagonal).
        inverse_reference_cell: [3, 3] 1/Angstrom, of the cell at `init`, where a Piola-Kirchhoff stress is defined.
        deviatoric_work: [] work so far against the deviatoric Cauchy stress, eV; None for the Piola-Kirchhoff stress.
        strain_rate: [3, 3] symmetric velocity of the cell, dh/dt = h @ strain_rate, 1/internal time.
        cell_mass: [] W, eV * internal time^2.
        particle_chain, cell_chain: Nose-Hoover chains of the atoms and of the cell.
        degrees_of_freedom: 3n - 3, because the total momentum is zero and stays so.
    """

    kT: Float[Leaf, "*batch"]
    external_stress: Float[Leaf, "*batch 3 3"]
    inverse_reference_cell: Float[Leaf, "*batch 3 3"]
    deviatoric_work: Float[Leaf, "*batch"] | None
    strain_rate: Float[Leaf, "*batch 3 3"]
    cell_mass: Float[Leaf, "*batch"]
    particle_chain: Chain
    cell_chain: Chain
    degrees_of_freedom: int = struct.field(pytree_node=False)


def npt_parrinello_rahman(
    evaluate: EvaluateFn,
    timestep_fs: float,
    *,
    thermostat_time_fs: float,
    barostat_time_fs: float | None = None,
    pfactor: float | None = None,
    mask: Mask = "full",
    stress_measure: StressMeasure = "cauchy",
    chain_length: int = 3,
) -> Integrator:
    """Isothermal-isobaric dynamics of atoms and cell, time-reversible and measure-preserving, one `evaluate` a step.

    With A the symmetric strain rate (projected on `mask`), N_f = 3n - 3, xi and eta the chains of atoms and cell:

        dr/dt = p/m + A r                        dh/dt = h A   (rows of h are the lattice vectors)
        dp/dt = F - A p - (Tr A / N_f) p - xi' p
        W dA/dt = sum p p^T/m - V stress + (1/N_f) sum p^2/m I + X - eta' W A

    where X is the external force on the cell. P = -Tr(external_stress)/3 acts on the present volume in either measure;
    for the deviatoric rest S of the external stress `stress_measure` says whether it is the true stress, force per
    present area, or a second Piola-Kirchhoff stress on the cell at `init` (volume V0, deformation E since then,
    r = E r0; Parrinello and Rahman, J. Appl. Phys. 52, 7182, 1981):

        cauchy             X = -P V I + V S          dW_ext = P dV - V Tr(S A) dt
        piola-kirchhoff    X = -P V I + V0 E S E^T   W_ext = P V - V0 Tr(S (E^T E - 1)/2)

    The conserved quantity is E_pot + E_kin + W Tr(A^2)/2 + W_ext + the energies of both chains.

    The compressibility of these equations at zero total momentum gives, for a pressure and for a Piola-Kirchhoff
    stress, the density exp(-(E_pot + W_ext)/kT) in all atomic positions and, for the cell, the scale-invariant measure:
    d ln V ("iso"), d ln of the three scale factors ("diag"), dh / V^3 ("full"). The volume has
    p(V) ~ V^-1 Z_n(V) exp(-P V/kT): an ideal gas has <P V> = n kT.

    A deviatoric Cauchy stress has no enthalpy, because its work depends on the path of the cell (by the product of two
    strains), so its steady state is no Boltzmann distribution, only near one. What it has is the mean: in any steady
    state W dA/dt is zero on average, so <V (internal stress)> = <V> (external stress) + kT I, where kT I belongs to the
    momentum that is held at zero, and the drag eta' W A has no mean in equilibrium. For the force see Miller, Tadmor,
    Gibson, Bernstein and Pavia, J. Chem. Phys. 144, 184107 (2016).

    Sources: Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177 (1994) for the equations; Martyna, Tuckerman, Tobias
    and Klein, Mol. Phys. 87, 1117 (1996) and Yu et al., Chem. Phys. 370, 294 (2010) for the Trotter splitting
    chains - cell - momenta - (positions, cell) - momenta - cell - chains.

    jax-md's `npt_nose_hoover` changes the volume only and keeps fractional positions, so it does not serve here.

    Args:
        evaluate: energy, forces and stress of (system, neighbors).
        timestep_fs: fs.
        thermostat_time_fs: relaxation time tau of the atoms' chain, fs; first mass N_f kT tau^2 (ASE's `ttime`).
        barostat_time_fs: tau_b, fs; the cell mass is then W = (N_f + 3) kT tau_b^2 / 3 (MTK). Give this or `pfactor`.
        pfactor: ASE's, eV/Angstrom^3 * internal time^2; the cell mass is then W = pfactor * V0.
        mask: strain the cell may undergo.
        stress_measure: what the deviatoric part of the external stress is.
        chain_length: thermostats in either chain, at least 2.

    The two masses suit different matter: in a solid of modulus B the volume oscillates with the angular frequency
    (3 B / pfactor)^(1/2), or (9 B V / ((N_f + 3) kT))^(1/2) / tau_b, which at room temperature is some 30 / tau_b. Keep
    the period well above the time step (20 steps and more) and near those of the atoms.

    The relaxation time of the cell's chain is tau_b; with `pfactor` it is sqrt(pfactor / 100 GPa), the inverse
    frequency of the cell of a solid with that modulus.

    Raises:
        InputError: a parameter out of range, or not exactly one of `barostat_time_fs` and `pfactor`.
    """
    check_positive("timestep", timestep_fs, "fs")
    check_positive("thermostat time", thermostat_time_fs, "fs")
    if mask not in CELL_DEGREES_OF_FREEDOM:
        raise InputError(f"strain mask is {mask!r}; choose one of {', '.join(CELL_DEGREES_OF_FREEDOM)}")
    check_measure(stress_measure)
    if chain_length < 2:
        raise InputError(f"Nose-Hoover chain length is {chain_length}; give at least 2")
    dt = timestep_fs * FEMTOSECOND
    thermostat_time = thermostat_time_fs * FEMTOSECOND
    cell_time = _cell_time(barostat_time_fs, pfactor)
    n_cell = CELL_DEGREES_OF_FREEDOM[mask]

    def init(
        key: UInt32[Array, " 2"],
        system: System,
        neighbors: Neighbors,
        kT: float | Float[Array, ""],
        external_stress: Float[Array, "3 3"],
    ) -> MDState:
        """Draw momenta at kT (eV), remove the drift, evaluate the forces; cell and chains start at rest."""
        n = system.masses.shape[0]
        check_thermal(n, "npt")
        dtype = system.positions.dtype
        n_f = 3 * n - 3
        target = jnp.asarray(kT, dtype)
        by_time = (n_f + 3) * target * cell_time**2 / 3.0
        cell_mass = by_time if pfactor is None else pfactor * volume(system.cell)
        bath = ParrinelloRahmanBath(
            kT=target,
            external_stress=jnp.asarray(external_stress, dtype),
            inverse_reference_cell=jnp.linalg.inv(system.cell),
            deviatoric_work=jnp.zeros((), dtype) if stress_measure == "cauchy" else None,
            strain_rate=jnp.zeros((3, 3), dtype),
            cell_mass=cell_mass,
            particle_chain=chain_at_rest(chain_length, thermostat_time, n_f, target),
            cell_chain=chain_at_rest(chain_length, cell_time, n_cell, target),
            degrees_of_freedom=n_f,
        )
        return MDState(
            system=system,
            neighbors=neighbors,
            momenta=remove_drift(maxwell_boltzmann(key, system.masses, target), system.masses),
            prediction=evaluate(system, neighbors),
            bath=bath,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def thermostat(state: MDState) -> MDState:
        bath: ParrinelloRahmanBath = state.bath
        half_step = chain_half_step(dt, (bath.degrees_of_freedom, n_cell), chain_length)
        chains, energies = (bath.particle_chain, bath.cell_chain), (kinetic_energy(state), _cell_kinetic_energy(bath))
        slow, (particle_chain, cell_chain) = half_step(chains, energies, bath.kT)
        bath = replace(
            bath, particle_chain=particle_chain, cell_chain=cell_chain, strain_rate=bath.strain_rate * slow[1]
        )
        return replace(state, momenta=state.momenta * slow[0], bath=bath)

    def kick_cell(state: MDState) -> MDState:
        kinetic = kinetic_tensor(state.momenta, state.system.masses)
        mtk = jnp.trace(kinetic) / state.bath.degrees_of_freedom * jnp.eye(3, dtype=kinetic.dtype)
        internal = kinetic + mtk - volume(state.system.cell) * state.prediction.stress
        bath: ParrinelloRahmanBath = state.bath
        external = external_force(bath.external_stress, bath.inverse_reference_cell, state.system.cell, stress_measure)
        force = _project(internal + external, mask)
        strain_rate = state.bath.strain_rate + 0.5 * dt * force / state.bath.cell_mass
        return replace(state, bath=replace(state.bath, strain_rate=strain_rate))

    def kick_momenta(state: MDState, strain: _StrainStep) -> MDState:
        # exp(-(Tr A / N_f) dt/2) is a number; the rest of the friction is the matrix exp(-A dt/2)
        trace = jnp.trace(state.bath.strain_rate)
        half = jnp.exp(-0.25 * dt * trace / state.bath.degrees_of_freedom)
        impulse = 0.5 * dt * state.prediction.forces
        momenta = half * (state.momenta + matmul(state.momenta, strain.minus_half))
        momenta = half * (momenta + impulse + matmul(impulse, strain.minus_quarter))
        return replace(state, momenta=momenta)

    def drift(state: MDState, strain: _StrainStep) -> MDState:
        system = state.system
        step = dt * state.momenta / system.masses[:, None]
        moved = matmul(system.positions, strain.plus_whole) + step + matmul(step, strain.plus_half)
        cell = system.cell + matmul(system.cell, strain.plus_whole)
        bath: ParrinelloRahmanBath = state.bath
        if bath.deviatoric_work is not None:
            done = deviatoric_work(bath.external_stress, dt * bath.strain_rate, system.cell, cell)
            bath = replace(bath, deviatoric_work=bath.deviatoric_work + done)
        return replace(state, system=replace(system, positions=system.positions + moved, cell=cell), bath=bath)

    def move(state: MDState) -> MDState:
        """Chains, cell and momenta by half a step, positions and cell by a whole one."""
        state = kick_cell(thermostat(state))
        strain = _strain_step(dt * state.bath.strain_rate)
        return drift(kick_momenta(state, strain), strain)

    def finish(state: MDState) -> MDState:
        """Momenta, cell and chains by half a step, under the new forces and stress."""
        state = replace(state, prediction=evaluate(state.system, state.neighbors))
        state = kick_momenta(state, _strain_step(dt * state.bath.strain_rate))
        state = thermostat(kick_cell(state))
        # exact in exact arithmetic for a potential; holds off rounding and the net force of non-conservative models
        momenta = remove_drift(state.momenta, state.system.masses)
        return replace(state, momenta=momenta, step=state.step + 1)

    def invariant(state: MDState) -> Float[Array, ""]:
        """Conserved energy of atoms, cell, external work and both chains, eV."""
        bath: ParrinelloRahmanBath = state.bath
        work = potential_work(bath.external_stress, bath.inverse_reference_cell, state.system.cell, stress_measure)
        if bath.deviatoric_work is not None:
            work = work + bath.deviatoric_work
        return (
            state.prediction.energy
            + kinetic_energy(state)
            + _cell_kinetic_energy(bath)
            + work
            + chain_energy(bath.particle_chain, bath.degrees_of_freedom, bath.kT)
            + chain_energy(bath.cell_chain, n_cell, bath.kT)
        )

    return Integrator(init, move, finish, invariant)


def _cell_time(barostat_time_fs: float | None, pfactor: float | None) -> float:
    """Relaxation time of the cell's chain, internal units."""
    if (barostat_time_fs is None) == (pfactor is None):
        raise InputError(f"barostat time is {barostat_time_fs} fs and pfactor {pfactor}; give exactly one of the two")
    if pfactor is not None:
        check_positive("pfactor", pfactor, "eV/A^3 * internal time^2")
        return (pfactor / (100.0 * GIGAPASCAL)) ** 0.5
    assert barostat_time_fs is not None
    check_positive("barostat time", barostat_time_fs, "fs")
    return barostat_time_fs * FEMTOSECOND


def _project(force: Float[Array, "3 3"], mask: Mask) -> Float[Array, "3 3"]:
    """Part of a generalized force on the cell that drives the strain the mask allows."""
    identity = jnp.eye(3, dtype=force.dtype)
    if mask == "iso":
        return jnp.trace(force) / 3.0 * identity
    if mask == "diag":
        return force * identity
    return 0.5 * (force + force.T)


def _cell_kinetic_energy(bath: ParrinelloRahmanBath) -> Float[Array, ""]:
    return 0.5 * bath.cell_mass * jnp.sum(bath.strain_rate**2)


class _StrainStep(NamedTuple):
    """exp(f X) - 1 of the strain X of one step for f = -1/4, -1/2, 1/2 and 1, each [3, 3]."""

    minus_quarter: Float[Array, "3 3"]
    minus_half: Float[Array, "3 3"]
    plus_half: Float[Array, "3 3"]
    plus_whole: Float[Array, "3 3"]


def _strain_step(strain: Float[Array, "3 3"]) -> _StrainStep:
    """Exponentials of a small symmetric matrix, without the rounding error of adding the one.

    Taylor series of cosh and sinh of X/4: right to double precision for |X| < 0.2, where the strain of a step is about
    1e-5; indifferent to degenerate eigenvalues; exp(X) exp(-X) = 1 to the last digit, which keeps the step reversible.
    """
    one = jnp.eye(3, dtype=strain.dtype)
    quarter = 0.25 * strain
    square = matmul(quarter, quarter)
    cosh_less_one = matmul(square, one / 2.0 + matmul(square, one / 24.0 + square / 720.0))
    sinh = matmul(quarter, one + matmul(square, one / 6.0 + matmul(square, one / 120.0 + square / 5040.0)))
    plus_quarter = cosh_less_one + sinh
    minus_quarter = cosh_less_one - sinh
    plus_half = _doubled(plus_quarter)
    return _StrainStep(minus_quarter, _doubled(minus_quarter), plus_half, _doubled(plus_half))


def _doubled(exponential: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """exp(2 X) - 1 from exp(X) - 1."""
    return 2.0 * exponential + matmul(exponential, exponential)
