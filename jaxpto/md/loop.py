"""The batched loop: chunks of compiled steps for a whole ladder of replicas, with regrow, failure watch and sharding.

One compiled program advances every replica; the host reads a few small arrays after each chunk. Replicas are
independent: a replica's numbers depend on its own state alone, so one that fails leaves the others bit-identical.
How many samples a chunk has follows the clock, and so no number may depend on it.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from jaxpto.devices.compiled import cached_jit
from jaxpto.devices.processes import Processes
from jaxpto.devices.sequential import sequential_over_replicas
from jaxpto.devices.sharding import ATOMS, constrain, divisible, edges_over, sharded
from jaxpto.integrators.state import MDState, Method
from jaxpto.md.batch import Batch
from jaxpto.md.health import OVERFLOWED, Limits, Watch, diagnose, mark_lost
from jaxpto.neighbors import Layout, NeighborOverflowError, build, grow, grow_until_it_fits, refresh
from jaxpto.observables.observable import Observable, Sample, measure
from jaxpto.platform import local_devices
from jaxpto.potential import Potential

REPLICAS = "replicas"
CHUNK_SECONDS = 5.0  # so that progress is seen, checkpoints are due, and little is lost
GROWTH = 4  # of the samples from chunk to chunk: the time of the first one is that of the compilation

Outcome = tuple[MDState, Watch, Sample]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The outcome of one chunk on the host.

    Attributes:
        first_sample: index of the first sample in `samples`.
        samples: arrays [samples, replicas, ...].
        states, watch: the batch after the chunk, on the device.
        regrown: enlargements of the neighbour list this chunk needed.
    """

    first_sample: int
    samples: Sample
    states: MDState
    watch: Watch
    regrown: int


def sample(states: MDState, watch: Watch, observables: tuple[Observable, ...]) -> Sample:
    """Measure every replica of a batch as it stands."""
    return jax.vmap(lambda state, alive: measure(state, alive, observables))(states, watch.alive)


def _select(choose: Bool[Array, " r"], new: MDState, old: MDState) -> MDState:
    """Per replica, the new state where `choose`, else the old one."""
    pick = lambda a, b: jnp.where(choose.reshape(choose.shape + (1,) * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(pick, new, old)


def _advance(
    potential: Potential,
    states: MDState,
    watch: Watch,
    observables: tuple[Observable, ...],
    n_samples: Int[Array, ""],
    last_step: Int[Array, ""],
    *,
    method: Method,
    sample_every: int,
    room: int,
    limits: Limits,
    share: bool,
) -> tuple[MDState, Watch, Sample]:
    """Advance the replicas of one device by `n_samples` samples; of the `room` the rest is left empty.

    With `share` the device is a group of devices that have dealt out each replica's edges.
    """
    integrator = method(sequential_over_replicas(sharded(potential.evaluate) if share else potential.evaluate))

    def step(_: Array, carry: tuple[MDState, Bool[Array, " r"]]) -> tuple[MDState, Bool[Array, " r"]]:
        states, alive = carry
        moved = jax.vmap(integrator.move)(states)
        neighbors = refresh(moved.system, moved.neighbors, alive, before=states.system)
        neighbors = jax.vmap(constrain)(neighbors) if share else neighbors
        return jax.vmap(integrator.finish)(dataclasses.replace(moved, neighbors=neighbors)), alive

    def one_sample(index: Array, carry: tuple[MDState, Watch, Sample]) -> tuple[MDState, Watch, Sample]:
        before, watch, samples = carry
        # Replicas step together; frozen ones are computed along and put back, so only running ones know the time.
        now = jnp.max(jnp.where(watch.alive, before.step, 0))
        todo = jnp.where(watch.alive.any(), jnp.clip(last_step - now, 0, sample_every), 0)
        after, _ = jax.lax.fori_loop(0, todo, step, (before, watch.alive))
        reason = jax.vmap(lambda s, w: diagnose(s, w, limits))(after, watch)
        # After an overflow the forces are wrong and the chunk will be done again: that is no failure of a replica.
        watch = mark_lost(watch, watch.alive & (reason > 0) & ~after.neighbors.overflow, reason, after.step)
        states = _select(watch.alive, after, before)
        record = sample(states, watch, observables)
        samples = jax.tree.map(lambda buffer, value: buffer.at[index].set(value), samples, record)
        return states, watch, samples

    shape = jax.eval_shape(lambda s, w: sample(s, w, observables), states, watch)
    empty = jax.tree.map(lambda s: jnp.zeros((room, *s.shape), s.dtype), shape)
    return jax.lax.fori_loop(0, n_samples, one_sample, (states, watch, empty))


def replica_mesh(n_replicas: int, devices: list[jax.Device] | None = None, devices_per_replica: int = 1) -> Mesh:
    """Mesh of as many local devices as there is work for.

    Args:
        n_replicas: replicas, dealt out along the axis `REPLICAS`.
        devices: all local ones if None.
        devices_per_replica: devices that share the edges of each replica, along a second axis `ATOMS` if above 1.
    """
    devices = local_devices() if devices is None else devices
    groups = max(1, min(len(devices) // devices_per_replica, n_replicas))
    if devices_per_replica == 1:
        return Mesh(np.asarray(devices[:groups]), (REPLICAS,))
    grid = np.asarray(devices[: groups * devices_per_replica]).reshape(groups, devices_per_replica)
    return Mesh(grid, (REPLICAS, ATOMS))


@functools.lru_cache(maxsize=8)
def compile_advance(method: Method, sample_every: int, room: int, limits: Limits, mesh: Mesh) -> Callable:
    """Compiled (potential, states, watch, observables, n_samples, last_step) -> (states, watch, samples)."""
    spread, same = PartitionSpec(REPLICAS), PartitionSpec()
    share = ATOMS in mesh.axis_names
    on_one = functools.partial(
        _advance, method=method, sample_every=sample_every, room=room, limits=limits, share=share
    )
    advance = jax.shard_map(
        on_one,
        mesh=mesh,
        in_specs=(same, spread, spread, same, same, same),
        out_specs=(spread, spread, PartitionSpec(None, REPLICAS)),
        axis_names={REPLICAS},  # what happens along `ATOMS` is left to XLA
        check_vma=False,
    )
    return cached_jit(advance, made_from=(on_one, mesh.axis_names, mesh.devices.shape))


def forget_programs() -> None:
    """Free the memory of all compiled programs; those that are used again come from the compilation cache."""
    compile_advance.cache_clear()
    jax.clear_caches()
    gc.collect()


def pad_replicas(states: MDState, watch: Watch, mesh: Mesh) -> tuple[MDState, Watch]:
    """Fill the last device up with copies of the last replica that are not alive, and lay the batch out on the mesh."""
    states, watch = jax.device_get((states, watch))  # on the host, where cutting them up takes no programs
    n_replicas = watch.alive.shape[0]
    extra = -n_replicas % mesh.shape[REPLICAS]
    if extra:
        repeat = lambda x: np.concatenate([x, np.repeat(x[-1:], extra, axis=0)])  # noqa: E731
        states, watch = jax.tree.map(repeat, (states, watch))
        watch = dataclasses.replace(watch, alive=watch.alive & (np.arange(n_replicas + extra) < n_replicas))
    return _lay_out(states, mesh), jax.device_put(watch, NamedSharding(mesh, PartitionSpec(REPLICAS)))


def _lay_out(states: MDState, mesh: Mesh) -> MDState:
    """The batch on the mesh: replicas over one axis and, if there is another, the edges of each over that."""
    states = jax.device_put(states, NamedSharding(mesh, PartitionSpec(REPLICAS)))
    if ATOMS not in mesh.axis_names:
        return states
    by_edge = NamedSharding(mesh, PartitionSpec(REPLICAS, ATOMS))
    neighbors = edges_over(states.neighbors, lambda x: jax.device_put(x, by_edge))
    return dataclasses.replace(states, neighbors=neighbors)


@functools.partial(jax.jit, static_argnames="layout")
def rebuild_all(states: MDState, layout: Layout) -> MDState:
    """Every replica's list anew with other capacities, at the positions where the old list was built.

    Building at the old reference keeps the set of edges, so that a larger capacity changes nothing but padding.
    """

    def one(state: MDState) -> MDState:
        neighbors = state.neighbors
        reference = dataclasses.replace(
            state.system, positions=neighbors.reference_positions, cell=neighbors.reference_cell
        )
        return dataclasses.replace(state, neighbors=build(reference, layout))

    return jax.vmap(one)(states)


def next_length(samples: int, seconds: float, most: int) -> int:
    """Samples of the next chunk: those that fit into `CHUNK_SECONDS`, and not many more than the last one had.

    Args:
        samples: those of the last chunk.
        seconds: that it took.
        most: samples that a chunk has room for.
    """
    fit = int(CHUNK_SECONDS * samples / max(seconds, 1e-6))
    return max(1, min(fit, GROWTH * samples, most))


def run(
    batch: Batch,
    states: MDState,
    watch: Watch,
    first_sample: int,
    mesh: Mesh,
    processes: Processes = Processes(),  # noqa: B008
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Chunk]:
    """Advance a batch of replicas to the end of its schedule, one chunk of some seconds at a time.

    A chunk in which a neighbour list overflows is done again in halves, until the list is enlarged for the one sample
    that needs it, whatever the chunks are: that costs the time of one more chunk at most.

    Args:
        batch: the replicas and how they are advanced.
        states, watch: where they are, as `pad_replicas` returns them.
        first_sample: samples already taken (the initial state is sample 0, taken by the caller).
        mesh: devices to spread the replicas over.
        processes: those that advance the other replicas of the run; all have the same capacities at all times.
        clock: seconds that have passed; the lengths of the chunks follow it, and nothing else.

    Yields:
        A `Chunk` after each call of the compiled program; iteration ends early once no replica of any process is alive.
    """
    schedule = batch.schedule
    advance = compile_advance(batch.method, schedule.sample_every, schedule.samples_per_chunk, batch.limits, mesh)

    def attempt(states: MDState, watch: Watch, n_samples: int) -> Outcome:
        return advance(batch.potential, states, watch, batch.observables, n_samples, schedule.steps)

    done, length, overflow_by = first_sample, 1, None
    while done < schedule.n_samples and processes.any(np.any(jax.device_get(watch.alive))):
        began, regrown = clock(), 0
        n_samples = min(length, schedule.n_samples - done)
        if overflow_by is not None:  # one of the samples up to here overflows, which may be in the second half
            n_samples = min(n_samples, max(1, (overflow_by - done) // 2))
        if n_samples > 1:
            outcome = attempt(states, watch, n_samples)
            if processes.any(np.any(_overflowed(outcome))):
                overflow_by = done + n_samples
                continue
        else:
            first = functools.partial(attempt, n_samples=1)
            outcome, regrown = _with_regrow(first, states, watch, batch.limits, mesh, processes)
        states, watch, samples = outcome
        # where XLA leaves an array without elements is its choice, and arrays elsewhere ask for another program
        states = _lay_out(states, mesh)
        # copied, or few samples would keep the room for many
        taken = jax.tree.map(lambda x, n=n_samples: np.array(np.asarray(x)[:n]), samples)
        seconds = processes.join(np.asarray([clock() - began])).max()
        yield Chunk(done, taken, states, watch, regrown)
        done += n_samples
        length = next_length(n_samples, seconds, schedule.samples_per_chunk)
        if regrown or done == overflow_by:
            overflow_by = None


def _overflowed(outcome: Outcome) -> np.ndarray:
    """[r] whether the list of a running replica was too small, so that nothing of the chunk counts."""
    overflow, alive = jax.device_get((outcome[0].neighbors.overflow, outcome[1].alive))
    return overflow & alive


def _with_regrow(
    attempt: Callable[[MDState, Watch], Outcome],
    states: MDState,
    watch: Watch,
    limits: Limits,
    mesh: Mesh,
    processes: Processes,
) -> tuple[Outcome, int]:
    """One sample; while a running replica overflows, discard it, enlarge the list and do it again (bounded)."""

    def begun(layout: Layout) -> MDState:
        same = layout == states.neighbors.layout
        return states if same else _lay_out(rebuild_all(states, layout), mesh)

    def enlarge(layout: Layout, outcome: Outcome) -> Layout:
        cells = np.concatenate(jax.device_get((states.system.cell, outcome[0].system.cell)))
        cells = processes.join(cells[np.isfinite(cells).all(axis=(1, 2))])
        return divisible(grow(layout, cells), mesh.shape.get(ATOMS, 1))

    try:
        fitted = grow_until_it_fits(
            lambda layout: attempt(begun(layout), watch),
            states.neighbors.layout,
            overflowed=lambda outcome: processes.any(np.any(_overflowed(outcome))),
            enlarge=enlarge,
            enlargements=limits.regrows,
        )
        return fitted.result, fitted.enlargements
    except NeighborOverflowError as error:
        # Only a replica that has lost its structure outgrows every enlargement: freeze it at the sample before.
        gone, states = _overflowed(error.result), begun(error.layout)
    watch = mark_lost(watch, jnp.asarray(gone), OVERFLOWED, states.step)
    return _with_regrow(attempt, states, watch, limits, mesh, processes)
