"""Langevin dynamics while the energy is switched: from the model to springs, or to a fraction of itself, and back."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpto.errors import InputError
from jaxpto.free_energy.switching.einstein_crystal import spring_energy
from jaxpto.free_energy.switching.paths import Weights, einstein_path, scaling_path
from jaxpto.integrators.common import kinetic_energy
from jaxpto.integrators.nvt_langevin import LangevinBath, nvt_langevin
from jaxpto.integrators.state import Integrator, MDState
from jaxpto.model_interface import EvaluateFn, Prediction
from jaxpto.neighbors import Neighbors
from jaxpto.system import Leaf, System


@struct.dataclass
class Switch:
    """What is switched in one replica (a pytree without a batch axis).

    Attributes:
        sites: [n, 3] where the springs hold the atoms, Angstrom.
        springs: [n] eV/Angstrom^2.
        origin: [] zero of the model's energy, eV.
        ratio: [] 0 to switch to the springs, else the factor on the temperature that reversible scaling goes up to.
        backward: [] whether the path is taken from its end.
    """

    sites: Float[Leaf, "*batch n 3"]
    springs: Float[Leaf, "*batch n"]
    origin: Float[Leaf, "*batch"]
    ratio: Float[Leaf, "*batch"]
    backward: Bool[Leaf, "*batch"]


@struct.dataclass
class SwitchingBath(LangevinBath):
    """Langevin bath, switch, and the work [slices] done in equal parts of the switching time, eV."""

    switch: Switch
    work: Float[Leaf, "*batch s"]


@struct.dataclass
class SwitchedPrediction(Prediction):
    """Energy, forces and stress of the switched system, and those of the model alone."""

    model: Prediction


def weights_at(switch: Switch, elapsed: Int[Array, ""], length: int) -> Weights:
    """Weights of model and springs after `elapsed` of `length` steps of switching, held before and after."""
    count = jnp.clip(elapsed, 0, length)
    # by counts, so that the way back meets the very weights of the way there
    progress = jnp.where(switch.backward, length - count, count).astype(switch.ratio.dtype) / length
    scaled, held = scaling_path(progress, switch.ratio), einstein_path(progress)
    to_springs = switch.ratio == 0.0
    model = jnp.where(to_springs, held.model, scaled.model)
    return Weights(model, jnp.where(to_springs, held.springs, scaled.springs))


def mix(switch: Switch, weights: Weights, system: System, model: Prediction) -> SwitchedPrediction:
    """H = a (U - U_0) + b U_E for the weights a and b, with its forces; the springs have no share in the stress."""
    springs, pull = spring_energy(system.positions - switch.sites, switch.springs)
    return SwitchedPrediction(
        energy=weights.model * (model.energy - switch.origin) + weights.springs * springs,
        forces=weights.model * model.forces + weights.springs * pull,
        stress=weights.model * model.stress,
        model=model,
    )


def switching_langevin(
    evaluate: EvaluateFn, timestep_fs: float, *, friction_per_fs: float, hold: int, length: int, slices: int
) -> Integrator:
    """Langevin dynamics by `nvt_langevin` whose energy is kept for `hold` steps and switched in `length` more.

    Each step first changes the weights where the atoms are, which does the work W = H(r, new) - H(r, old), and then
    moves the atoms under the new weights. Backwards, the same protocol reverses all
    steps, so that the works obey Crooks' theorem (Phys. Rev. E 61, 2361, 2000) but for the error of the time step.

    Neither energy changes when all atoms move together (see `spring_energy`): all 3 n degrees of freedom are thermal,
    and the centre of mass diffuses without any effect on the work.

    The invariant is E_pot + E_kin - heat - work.

    Args:
        evaluate: energy, forces and stress of (system, neighbors) of the model.
        timestep_fs: fs.
        friction_per_fs: 1/fs.
        hold: steps at the first weights.
        length: steps of switching, a multiple of `slices`.
        slices: number of parts in which the work is recorded.

    Raises:
        InputError: `nvt_langevin` refuses the settings, or the length is no multiple of `slices`.
    """
    if length < 1 or length % slices:
        raise InputError(f"{length} steps of switching: must be a multiple of {slices}, above 0")

    def langevin(switch: Switch, elapsed: int | Int[Array, ""]) -> Integrator:
        """Plain dynamics under the weights after so many steps of switching."""
        weights = weights_at(switch, jnp.asarray(elapsed), length)

        def switched(system: System, neighbors: Neighbors) -> Prediction:
            return mix(switch, weights, system, evaluate(system, neighbors))

        return nvt_langevin(switched, timestep_fs, friction_per_fs=friction_per_fs)

    def init(
        key: UInt32[Array, " 2"], system: System, neighbors: Neighbors, kT: float | Float[Array, ""], switch: Switch
    ) -> MDState:
        """Draw momenta at kT (eV), drift included, and evaluate the forces."""
        target = jnp.asarray(kT, system.masses.dtype)

        plain = langevin(switch, -hold).init(key, system, neighbors, target)
        bath = SwitchingBath(**vars(plain.bath), switch=switch, work=jnp.zeros(slices, target.dtype))
        return replace(plain, bath=bath)

    def move(state: MDState) -> MDState:
        """Change the weights, then the first half of a step under the new ones."""
        bath: SwitchingBath = state.bath
        elapsed = state.step - hold
        old, new = weights_at(bath.switch, elapsed, length), weights_at(bath.switch, elapsed + 1, length)
        held = state.prediction
        assert isinstance(held, SwitchedPrediction)
        mixed = mix(bath.switch, new, state.system, held.model)
        # differences of the weights, not of the energies: no digits are lost
        springs, _ = spring_energy(state.system.positions - bath.switch.sites, bath.switch.springs)
        work = (new.model - old.model) * (held.model.energy - bath.switch.origin)
        work += (new.springs - old.springs) * springs
        slot = jnp.clip(elapsed // (length // slices), 0, slices - 1)
        start = replace(state, prediction=mixed, bath=replace(bath, work=bath.work.at[slot].add(work)))
        return langevin(bath.switch, elapsed + 1).move(start)

    def finish(state: MDState) -> MDState:
        """Second half of the step under the weights that `move` changed to."""
        return langevin(state.bath.switch, state.step - hold + 1).finish(state)

    def invariant(state: MDState) -> Float[Array, ""]:
        """Total energy less the heat from the bath and the work of the switch, eV."""
        return state.prediction.energy + kinetic_energy(state) - state.bath.heat - jnp.sum(state.bath.work)

    return Integrator(init, move, finish, invariant)
