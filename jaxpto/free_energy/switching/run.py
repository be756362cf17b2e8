"""Switches of many replicas as one batch: set-up, a stored run that can be continued, and the works."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import warnings
from pathlib import Path
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from rich.console import Console

from jaxpto.console.status_line import StatusLine
from jaxpto.devices.sequential import sequential_over_replicas
from jaxpto.errors import InputError
from jaxpto.free_energy.switching.langevin import Switch, switching_langevin
from jaxpto.integrators.state import Integrator, MDState
from jaxpto.md.loop import Limits, Schedule, Watch, pad_replicas, replica_mesh, watch_init
from jaxpto.md.loop import run as run_chunks
from jaxpto.md.preparation import ATOM_STEPS_PER_CHUNK, nearest_distance
from jaxpto.md.progress import duration
from jaxpto.model_interface import EvaluateFn
from jaxpto.neighbors import Layout, build
from jaxpto.potential import Potential
from jaxpto.reporting.provenance import fingerprint
from jaxpto.storage.checkpoint import Checkpoints, layout_from_json, layout_to_json
from jaxpto.storage.files import write_json_atomic
from jaxpto.system import defining_arrays, from_ase
from jaxpto.units import BOLTZMANN

CHECKPOINT_EVERY = 20.0  # seconds, what an interrupt can cost
OWN_NOISE = 2**31  # no number of a replica, so that the noise of the sweep before is not met again
SHAKEN = 4  # starts whose neighbours the first layout has room for


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How every replica is switched; all of it static.

    Attributes:
        timestep: fs.
        friction: 1/fs.
        hold: steps at the first weights.
        length: steps of switching, a multiple of `slices`.
        slices: number of parts in which the work is recorded.
    """

    timestep: float
    friction: float
    hold: int
    length: int
    slices: int

    def integrator(self, evaluate: EvaluateFn) -> Integrator:
        """The integrator of this protocol."""
        return switching_langevin(
            evaluate,
            self.timestep,
            friction_per_fs=self.friction,
            hold=self.hold,
            length=self.length,
            slices=self.slices,
        )


@dataclasses.dataclass(frozen=True)
class Lanes:
    """The replicas of a batch.

    Attributes:
        temperatures: [l] target temperatures, K.
        starts: [l, n, 3] positions to begin from, Angstrom.
        sites: [l, n, 3] where springs hold the atoms, Angstrom.
        springs: [l, n] eV/Angstrom^2.
        ratios: [l] 0 to switch to the springs, else the factor on the temperature that reversible scaling goes up to.
        backward: [l] whether the path is taken from its end.
        origin: zero of the model's energy, eV.
    """

    temperatures: Float[np.ndarray, " l"]
    starts: Float[np.ndarray, "l n 3"]
    sites: Float[np.ndarray, "l n 3"]
    springs: Float[np.ndarray, "l n"]
    ratios: Float[np.ndarray, " l"]
    backward: Bool[np.ndarray, " l"]
    origin: float


def run_lanes(
    potential: Potential, atoms: ase.Atoms, lanes: Lanes, protocol: Protocol, seed: int, folder: Path, console: Console
) -> Float[np.ndarray, "l s"]:
    """Switch every replica, or go on where the folder stands, and return the work done in each slice of time, eV.

    Args:
        potential: conservative, in the precision of the run.
        atoms: the perfect crystal; its cell is that of all replicas.
        lanes: the batch.
        protocol: how it is switched.
        seed: seed of velocities and noise.
        folder: for checkpoints and, in the end, work.json.
        console: for the status line.

    Raises:
        InputError: the folder holds switches of something else, or a replica lost its structure on the way.
        StorageError: the disk fails; what was computed up to the last checkpoint stays.
    """
    identity = _identity(potential, atoms, lanes, protocol, seed)
    finished = folder / "work.json"
    if finished.exists():
        document = json.loads(finished.read_text())
        _check_identity(document["identity"], identity, folder)
    else:
        document = {"identity": identity, **_simulate(potential, atoms, lanes, protocol, seed, folder, console)}
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(finished, document)
    for kelvin, reason in zip(lanes.temperatures, document["reasons"], strict=True):
        if reason:
            raise InputError(
                f"{kelvin:g} K: a switch was lost ({reason}); leave this temperature out of `temperatures`, or take a "
                "shorter `timestep`"
            )
    return np.asarray(document["work"], np.float64)


def _simulate(
    potential: Potential, atoms: ase.Atoms, lanes: Lanes, protocol: Protocol, seed: int, folder: Path, console: Console
) -> dict[str, Any]:
    number, steps = len(lanes.temperatures), protocol.hold + protocol.length
    every = int(np.clip(ATOM_STEPS_PER_CHUNK // (number * len(atoms)), 1, steps))
    schedule, limits = Schedule(steps, every, 1), Limits()
    checkpoints = Checkpoints(folder / "checkpoints")
    identity = _identity(potential, atoms, lanes, protocol, seed)
    states, watch, done = _restore(checkpoints, potential, atoms, lanes, protocol, seed, identity) or (
        *_begin(potential, atoms, lanes, protocol, seed, _first_layout(potential, atoms, lanes)),
        1,
    )
    mesh = replica_mesh(number)
    states, watch = pad_replicas(states, watch, mesh)
    own: tuple[MDState, Watch] = jax.tree.map(lambda x: x[:number], (states, watch))
    began = saved = time.monotonic()
    first = done

    def save() -> None:
        if done > first:
            metadata = {"layout": layout_to_json(own[0].neighbors.layout), "identity": identity}
            checkpoints.save(done, own, metadata)

    chunks = run_chunks(potential, protocol.integrator, states, watch, schedule, limits, None, done, mesh)
    try:
        with StatusLine(console, "compiling (once; kept in the compilation cache) ...", f"{number} switches") as line:
            for chunk in chunks:
                own = jax.tree.map(lambda x: x[:number], (chunk.states, chunk.watch))
                done = chunk.first_sample + 1
                now = time.monotonic()
                if done == first + 1:  # the first chunk holds the compilation: the rate is counted from its end
                    began = now
                left = (now - began) / max(done - first - 1, 1) * (schedule.n_samples - done)
                step = min((done - 1) * every, steps)
                what = "equilibrating" if step < protocol.hold else "switching"
                rest = f", {duration(left)} left" if now > began else ""
                line.update(f"{what}, step {step} of {steps} ({100 * step // steps} %){rest}")
                if now - saved > CHECKPOINT_EVERY:
                    save()
                    saved = now
    except BaseException:  # an interrupt, say: what is computed is kept
        save()
        raise
    reasons = [limits.describe(int(reason)) if reason else "" for reason in np.asarray(own[1].reason)]
    return {"work": np.asarray(own[0].bath.work, np.float64), "reasons": reasons}


def _begin(
    potential: Potential, atoms: ase.Atoms, lanes: Lanes, protocol: Protocol, seed: int, layout: Layout
) -> tuple[MDState, Watch]:
    """The batch at step 0 with neighbour lists of the given capacities."""
    dtype = np.dtype(potential.dtype)
    system, key = from_ase(atoms, dtype), jax.random.fold_in(jax.random.PRNGKey(seed), OWN_NOISE)
    nearest = jnp.asarray(nearest_distance(atoms), dtype)
    kT = jnp.asarray(BOLTZMANN * lanes.temperatures, dtype)
    switches = Switch(
        sites=jnp.asarray(lanes.sites, dtype),
        springs=jnp.asarray(lanes.springs, dtype),
        origin=jnp.full(len(kT), lanes.origin, dtype),
        ratio=jnp.asarray(lanes.ratios, dtype),
        backward=jnp.asarray(lanes.backward),
    )

    def one(potential: Potential, number: Array, kT: Array, start: Array, switch: Switch) -> tuple[MDState, Watch]:
        moved = dataclasses.replace(system, positions=start)
        integrator = protocol.integrator(sequential_over_replicas(potential.evaluate))
        state = integrator.init(jax.random.fold_in(key, number), moved, build(moved, layout), kT, switch)
        return state, watch_init(system, kT, nearest)

    starts = jnp.asarray(lanes.starts, dtype)
    every = jax.jit(jax.vmap(one, (None, 0, 0, 0, 0)))  # parameters as arguments, not as constants
    return every(potential, jnp.arange(len(kT)), kT, starts, switches)


def _first_layout(potential: Potential, atoms: ase.Atoms, lanes: Lanes) -> Layout:
    """Room for what the perfect crystal and some of the starts have within reach."""
    system = from_ase(atoms, np.dtype(potential.dtype))
    some = lanes.starts[:: max(1, len(lanes.starts) // SHAKEN)]
    moved = [dataclasses.replace(system, positions=jnp.asarray(start, potential.dtype)) for start in some]
    return potential.allocate([system, *moved], potential.usual_skin, headroom=1.1)


def _restore(
    checkpoints: Checkpoints,
    potential: Potential,
    atoms: ase.Atoms,
    lanes: Lanes,
    protocol: Protocol,
    seed: int,
    identity: str,
) -> tuple[MDState, Watch, int] | None:
    """The batch at its newest usable checkpoint and the samples done, or None where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older one is as good: the run goes on from there
        checkpoint = checkpoints.restore()
    if checkpoint is None:
        return None
    _check_identity(checkpoint.metadata["identity"], identity, checkpoints.directory.parent)
    layout = layout_from_json(checkpoint.metadata["layout"])
    template = jax.eval_shape(lambda: _begin(potential, atoms, lanes, protocol, seed, layout))
    return *checkpoint.into(template), checkpoint.index


def _identity(potential: Potential, atoms: ase.Atoms, lanes: Lanes, protocol: Protocol, seed: int) -> str:
    """Digest of everything that the works depend on."""
    digest = hashlib.sha256(f"{fingerprint(potential)} {protocol} {seed}".encode())
    for array in [*defining_arrays(atoms), *dataclasses.astuple(lanes)]:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _check_identity(stored: str, now: str, folder: Path) -> None:
    if stored != now:
        raise InputError(f"{folder} holds switches with other settings; name a new `out`")
