"""The device side of a batched relaxation: lanes, and chunks of compiled steps that advance them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxpto import units
from jaxpto.devices.compiled import cached_jit
from jaxpto.md.loop import REPLICAS
from jaxpto.model_interface import Prediction
from jaxpto.neighbors import Layout, Neighbors, build, refresh
from jaxpto.potential import Potential
from jaxpto.relaxation import lbfgs
from jaxpto.relaxation.coordinates import enthalpy, gradient, longest_row, rows_of, symmetric, system_at
from jaxpto.relaxation.lbfgs import Descent
from jaxpto.relaxation.target import NOT_FINITE, Mask
from jaxpto.system import Leaf, System, volume

CHUNK = 10  # steps between two looks of the host
PATIENCE = 50  # steps without progress before a structure counts as stalled
RUNNING, CONVERGED, OUT_OF_STEPS, COLLAPSED, NO_PROGRESS, LOST, OVERFLOWED = range(7)
REASONS = (
    "running",
    "",
    "{steps} steps done",
    "stalled: no step lowers the energy, however short; it has a cusp here, or forces are not its derivatives",
    f"stalled: in {PATIENCE} steps neither the energy fell beyond rounding nor the residual",
    NOT_FINITE,
    "the neighbour list overflowed however often it was enlarged; the structure has collapsed",
)


@struct.dataclass
class Lane:
    """One structure during its relaxation (a pytree without a batch axis).

    Attributes:
        start: the structure before the first step.
        system: the structure accepted last.
        neighbors: neighbour list for the next evaluation.
        descent: state of the minimizer.
        prediction: energy, forces and stress at `system`.
        residual: residual at `system`, eV/Angstrom; see `Target`.
        lowest, smallest: lowest enthalpy (eV) and residual (eV/Angstrom) that counted as progress.
        step: evaluations after the first; -1 before it.
        progress: step of the last progress.
        status: index into `REASONS`.
    """

    start: System
    system: System
    neighbors: Neighbors
    descent: Descent
    prediction: Prediction
    residual: Float[Leaf, "*batch"]
    lowest: Float[Leaf, "*batch"]
    smallest: Float[Leaf, "*batch"]
    step: Int[Leaf, "*batch"]
    progress: Int[Leaf, "*batch"]
    status: Int[Leaf, "*batch"]


@struct.dataclass
class Bounds:
    """The numbers of a `Target` on the device: fmax in eV/Angstrom, pressure in eV/Angstrom^3, steps."""

    fmax: Float[Leaf, ""]
    pressure: Float[Leaf, ""]
    steps: Int[Leaf, ""]


@functools.partial(jax.jit, static_argnames="layout")
def enter(starts: System, layout: Layout) -> Lane:
    """Lanes [r] for structures that have not been evaluated yet."""

    def one(start: System) -> Lane:
        dtype = start.positions.dtype
        infinite = jnp.asarray(jnp.inf, dtype)
        nothing = Prediction(*(jnp.full(shape, jnp.nan, dtype) for shape in ((), start.positions.shape, (3, 3))))
        zero = jnp.asarray(0, jnp.int32)
        return Lane(
            start=start,
            system=start,
            neighbors=build(start, layout),
            descent=lbfgs.init(rows_of(start)),
            prediction=nothing,
            residual=infinite,
            lowest=infinite,
            smallest=infinite,
            step=zero - 1,
            progress=zero,
            status=zero + RUNNING,
        )

    return jax.vmap(one)(starts)


@jax.jit
def choose(first: Bool[Array, " r"], new: Lane, old: Lane) -> Lane:
    """Lane by lane, the new one where `first`, else the old one."""
    pick = lambda a, b: jnp.where(first.reshape(first.shape + (1,) * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(pick, new, old)


@functools.partial(jax.jit, static_argnames="layout")
def rebuild(lanes: Lane, layout: Layout) -> Lane:
    """The lanes [r] with neighbour lists of other capacities."""
    return dataclasses.replace(lanes, neighbors=jax.vmap(lambda system: build(system, layout))(lanes.system))


@functools.lru_cache(maxsize=8)
def compile_advance(
    mask: Mask, mesh: Mesh
) -> Callable[[Potential, Bounds, Lane, Int[Array, ""]], tuple[Lane, Float[Array, "c r 5"]]]:
    """The compiled program: (potential, bounds, lanes, steps) -> (lanes, measures of the first `CHUNK` steps).

    The measures of a step are energy (eV), residual and largest force (eV/Angstrom), largest component of stress +
    pressure (GPa) and volume (Angstrom^3).
    """
    spread, same = PartitionSpec(REPLICAS), PartitionSpec()
    on_one = functools.partial(_advance, mask=mask)
    advance = jax.shard_map(
        on_one,
        mesh=mesh,
        in_specs=(same, same, spread, same),
        out_specs=(spread, PartitionSpec(None, REPLICAS)),
        check_vma=False,
    )
    return cached_jit(advance, made_from=(on_one, mesh.axis_names, mesh.devices.shape))


def _advance(
    potential: Potential, bounds: Bounds, lanes: Lane, n_steps: Int[Array, ""], *, mask: Mask
) -> tuple[Lane, Float[Array, "c r 5"]]:
    """Up to `n_steps` steps of the running lanes of one device, fewer if none runs any more."""

    def unfinished(carry: tuple[Array, Lane, Array]) -> Array:
        index, lanes, _ = carry
        return (index < n_steps) & jnp.any(lanes.status == RUNNING)

    def step(carry: tuple[Array, Lane, Array]) -> tuple[Array, Lane, Array]:
        index, lanes, seen = carry
        running = lanes.status == RUNNING
        trials = jax.vmap(lbfgs.propose)(lanes.descent)
        systems = jax.vmap(system_at)(lanes.start, trials)
        neighbors = refresh(systems, lanes.neighbors, running)
        lanes = dataclasses.replace(lanes, neighbors=neighbors)
        judge = functools.partial(_judge, potential, bounds, mask=mask)
        after = jax.vmap(judge)(lanes, systems, trials)
        kept = dataclasses.replace(choose(running, after, lanes), neighbors=neighbors)
        return index + 1, kept, seen.at[index].set(jax.vmap(functools.partial(_measure, bounds))(kept))

    seen = jnp.zeros((CHUNK, lanes.status.shape[0], 5), lanes.residual.dtype)
    _, lanes, seen = jax.lax.while_loop(unfinished, step, (jnp.asarray(0, jnp.int32), lanes, seen))
    return lanes, seen


def _judge(
    potential: Potential, bounds: Bounds, lane: Lane, system: System, trial: Float[Array, "k 3"], *, mask: Mask
) -> Lane:
    """One lane after the evaluation of its trial."""
    dtype = system.positions.dtype
    prediction = jax.tree.map(lambda leaf: leaf.astype(dtype), potential.evaluate(system, lane.neighbors))
    value = enthalpy(system, prediction, bounds.pressure)
    slope = gradient(trial, system, prediction, bounds.pressure, mask)
    # Sums over atoms of terms of some eV, which may cancel in the total energy.
    rounding = 16.0 * jnp.finfo(potential.dtype).eps * (jnp.abs(prediction.energy) + system.positions.shape[0])
    rise = rounding.astype(dtype) if potential.conservative else jnp.asarray(jnp.inf, dtype)
    descent = lbfgs.judge(lane.descent, trial, value, symmetric(slope), rise)
    accepted = jnp.all(descent.rows == trial)
    found = (system, prediction, longest_row(slope))
    known = (lane.system, lane.prediction, lane.residual)
    system, prediction, residual = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), found, known)
    lower, smaller = descent.value < lane.lowest - rise, residual < lane.smallest
    step = lane.step + 1
    progress = jnp.where(lower | smaller, step, lane.progress)
    lost = ~jnp.isfinite(descent.value)
    collapsed = descent.radius < lbfgs.COLLAPSED
    endings = (
        (residual < bounds.fmax, CONVERGED),
        (lost, LOST),
        (collapsed, COLLAPSED),
        (step - progress >= PATIENCE, NO_PROGRESS),
        (step >= bounds.steps, OUT_OF_STEPS),
    )
    status = jnp.select([found for found, _ in endings], [jnp.int32(code) for _, code in endings], jnp.int32(RUNNING))
    return dataclasses.replace(
        lane,
        system=system,
        descent=descent,
        prediction=prediction,
        residual=residual,
        lowest=jnp.where(lower, descent.value, lane.lowest),
        smallest=jnp.where(smaller, residual, lane.smallest),
        step=step,
        progress=progress,
        status=status,
    )


def _measure(bounds: Bounds, lane: Lane) -> Float[Array, "5"]:
    prediction, cell = lane.prediction, lane.system.cell
    stress = jnp.max(jnp.abs(prediction.stress + bounds.pressure * jnp.eye(3, dtype=cell.dtype))) / units.GIGAPASCAL
    return jnp.stack([prediction.energy, lane.residual, longest_row(prediction.forces), stress, volume(cell)])
