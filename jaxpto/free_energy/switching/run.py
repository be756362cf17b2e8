"""Switches of many replicas as one batch: set-up, a stored run that can be continued, and the works."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from rich.console import Console

from jaxpto.console.status_line import StatusLine
from jaxpto.errors import InputError
from jaxpto.free_energy.switching.langevin import Switch, switching_langevin
from jaxpto.integrators.state import Integrator
from jaxpto.md.batch import Batch, Start, schedule_of
from jaxpto.md.health import Limits
from jaxpto.md.initial import nearest_distance
from jaxpto.md.progress import duration
from jaxpto.md.stored_run import StoredRun, advance
from jaxpto.model_interface import EvaluateFn
from jaxpto.observables.observable import Sample
from jaxpto.potential import Potential
from jaxpto.reporting.provenance import fingerprint
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.lock import one_run
from jaxpto.system import defining_arrays, from_ase
from jaxpto.units import BOLTZMANN

CHECKPOINT_EVERY = 20.0  # seconds, what an interrupt can cost
LOOK_EVERY = 20  # steps after which a replica may be found lost; short enough for a slow model to be followed
OWN_NOISE = 2**31  # no number of a replica, so that the noise of the sweep before is not met again


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
    finished_path = folder / "work.json"
    if finished_path.exists():
        document = json.loads(finished_path.read_text())
        _check_identity(document["identity"], identity, folder)
    else:
        with one_run(folder):
            batch = _batch(potential, atoms, lanes, protocol, seed)
            run = StoredRun(batch, folder, identity, frames=False, checkpoint_every=CHECKPOINT_EVERY)
            finished = advance(run, lambda first_step: SwitchLine(console, batch, protocol.hold, first_step), console)
            work = np.asarray(finished.states.bath.work, np.float64)
            document = {"identity": identity, "work": work, "reasons": finished.ended.describe(batch.limits)}
            write_json_atomic(finished_path, document)
    for kelvin, reason in zip(lanes.temperatures, document["reasons"], strict=True):
        if reason:
            raise InputError(
                f"{kelvin:g} K: a switch was lost ({reason}); leave this temperature out of `temperatures`, or take a "
                "shorter `timestep`"
            )
    return np.asarray(document["work"], np.float64)


def _batch(potential: Potential, atoms: ase.Atoms, lanes: Lanes, protocol: Protocol, seed: int) -> Batch:
    """The replicas: each from its own start, with its own switch, and displacements counted from the crystal."""
    dtype, number = np.dtype(potential.dtype), len(lanes.temperatures)
    crystal = from_ase(atoms, dtype)
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * number), crystal)
    steps = protocol.hold + protocol.length
    return Batch(
        potential=potential,
        atoms=atoms,
        temperatures=lanes.temperatures,
        start=Start(
            systems=dataclasses.replace(starts, positions=jnp.asarray(lanes.starts, dtype)),
            kT=jnp.asarray(BOLTZMANN * lanes.temperatures, dtype),
            key=jax.random.fold_in(jax.random.PRNGKey(seed), OWN_NOISE),
            nearest=jnp.asarray(nearest_distance(atoms), dtype),
            parameters=Switch(
                sites=jnp.asarray(lanes.sites, dtype),
                springs=jnp.asarray(lanes.springs, dtype),
                origin=jnp.full(number, lanes.origin, dtype),
                ratio=jnp.asarray(lanes.ratios, dtype),
                backward=jnp.asarray(lanes.backward),
            ),
            crystal=crystal,
        ),
        method=protocol.integrator,
        schedule=schedule_of(steps, LOOK_EVERY, number * len(atoms)),
        limits=Limits(),
        observables=(),
        timestep=protocol.timestep,
        skin=potential.usual_skin,
    )


class SwitchLine:
    """How far the switches are, and how long they still take (see `md.stored_run.Display`).

    Args:
        console: where to write.
        batch: the switches.
        hold: steps at the first weights.
        first_step: steps already done when the run was resumed.
    """

    def __init__(self, console: Console, batch: Batch, hold: int, first_step: int):
        self._console, self._hold, self._steps = console, hold, batch.schedule.steps
        self._step, self._began = first_step, 0.0
        subject = f"{len(batch.temperatures)} switches"
        self._line = StatusLine(console, "compiling (once; kept in the compilation cache) ...", subject)

    def __enter__(self) -> SwitchLine:
        self._line.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.__exit__()

    def number(self, sample: Sample) -> Float[np.ndarray, " r"]:
        """No number is shown of a switch."""
        return np.zeros(sample.step.shape[0])

    def update(self, step: int, alive: Bool[np.ndarray, " r"], numbers: Float[np.ndarray, " r"]) -> None:
        """Show the steps done and, from the second chunk on, the time left: the first one holds the compilation."""
        now, left = time.monotonic(), ""
        if not self._began:
            self._began, self._step = now, step
        elif step > self._step:
            rest = (now - self._began) / (step - self._step) * (self._steps - step)
            left = f", {duration(rest)} left"
        what = "equilibrating" if step < self._hold else "switching"
        self._line.update(f"{what}, step {step} of {self._steps} ({100 * step // self._steps} %){left}")

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self._console.print(line)


def _identity(potential: Potential, atoms: ase.Atoms, lanes: Lanes, protocol: Protocol, seed: int) -> str:
    """Digest of everything that the works depend on."""
    digest = hashlib.sha256(f"{fingerprint(potential)} {protocol} {seed}".encode())
    for array in [*defining_arrays(atoms), *dataclasses.astuple(lanes)]:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _check_identity(stored: str, now: str, folder: Path) -> None:
    if stored != now:
        raise InputError(f"{folder} holds switches with other settings; name a new `out`")
