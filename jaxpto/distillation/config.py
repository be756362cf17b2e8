"""The settings of a distillation and their limits."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import tyro

from jaxpto import bounds
from jaxpto.errors import InputError
from jaxpto.md.config import DEFAULT_TEMPERATURES

FREE = (
    "out", "resume", "hours", "labels", "rounds", "labels_per_round", "final_steps", "proof_frames", "teacher_ladder",
    "checkpoint_every",
)  # fmt: skip
"""Settings that a resumed distillation may change: how far it goes, not what it does on the way."""
EDGE = 7.5  # Angstrom, shortest lattice vector of the supercells, unless they are given


@dataclasses.dataclass(frozen=True)
class DistilConfig:
    """Distil a fast student from any teacher, for given structures and temperatures, on the student's own trajectories.

    Attributes:
        teacher: model name, model folder, or ase:package.module:factory (a DFT code, say).
        structures: files that ASE reads, or built-in structures; all phases that matter, of one composition each.
        out: folder of the student, a model folder that every command takes; it also holds labels, rounds and the proof.
        temperatures: K, those the student is for.
        beyond: factor on the highest of them up to which it is trained.
        pressure: GPa.
        supercell: repeats in which structures are labelled and simulated; by default edges of at least 7.5 Angstrom.
        architecture: the student's.
        hyperparameters: its hyperparameters, as NAME=VALUE.
        members: students of the committee.
        seeds: random structures (strained and rattled) for each given one at the beginning, half of them around it and
            half around the minimum of the teacher next to it.
        thermal: structures displaced from that minimum along the teacher's phonons, for each temperature.
        teacher_steps: steps of short runs of the teacher at every temperature; by default as many as fit into a seventh
            of `hours`, at most 500, and none for a calculator of ASE, where each step may cost minutes.
        rounds: most rounds of training and exploring.
        labels_per_round: structures labelled after each.
        steps: training steps of a round.
        final_steps: training steps on all labels at the end.
        explore_steps: time steps of the students' ladder in each round.
        timestep: fs.
        disagreement: deviation of the committee's forces, eV/Angstrom, that counts as agreement: rounds end when 95 %
            of the samples at every temperature stay below it and lattice constants no longer move within their errors.
        proof_frames: independent structures labelled for the proof, for each given one and each temperature.
        teacher_ladder: time steps of the teacher's own ladder in the same cell, for comparison (0: none).
        hours: budget of time; rounds end early enough for the last training and the proof.
        labels: budget of labels, those of the proof included.
        seed: random numbers of structures, weights and velocities.
        resume: go on with what lies in `out`, or begin if nothing does.
        checkpoint_every: seconds between two checkpoints of a training or a ladder.
    """

    teacher: Annotated[str, tyro.conf.Positional]
    structures: Annotated[tuple[str, ...], tyro.conf.Positional]
    out: str
    temperatures: tuple[float, ...] = DEFAULT_TEMPERATURES
    beyond: float = 1.15
    pressure: float = 0.0
    supercell: tuple[int, int, int] | None = None
    architecture: str = "perovskite"
    hyperparameters: tuple[str, ...] = ()
    members: int = 4
    seeds: int = 24
    thermal: int = 3
    teacher_steps: int | None = None
    rounds: int = 6
    labels_per_round: int = 200
    steps: int = 6_000
    final_steps: int = 40_000
    explore_steps: int = 5_000
    timestep: float = 2.0
    disagreement: float = 0.2
    proof_frames: int = 10
    teacher_ladder: int = 0
    hours: float = 1.0
    labels: int = 2_000
    seed: int = 0
    resume: bool = False
    checkpoint_every: float = 60.0


def check(config: DistilConfig) -> None:
    """Refuse settings that cannot work.

    Raises:
        InputError: one line with the value, the limit and the remedy.
    """

    def require(condition: bool, name: str, limit: str) -> None:
        if not condition:
            raise InputError(f"`{name}={getattr(config, name)}`: {limit}")

    if not config.structures:
        raise InputError("no structure to distil on; name files or built-in structures such as PbTiO3-tetragonal")
    require(len(set(config.structures)) == len(config.structures), "structures", "one is named twice; name each once")
    require(bool(config.temperatures), "temperatures", "give at least one, in K")
    for kelvin in config.temperatures:
        if not 0.0 < kelvin * config.beyond <= bounds.HOTTEST:
            raise InputError(
                f"temperature {kelvin:g} K: it must be above 0 and, times `beyond={config.beyond:g}`, at most "
                f"{bounds.HOTTEST:g} K"
            )
    require(1.0 <= config.beyond <= 2.0, "beyond", "it must lie between 1 and 2; 1.15 is usual")
    require(config.members >= 2, "members", "a committee has at least 2; 4 are usual")
    for name in ("seeds", "labels_per_round", "steps", "final_steps", "explore_steps", "rounds", "proof_frames"):
        require(getattr(config, name) >= 1, name, "it must be at least 1")
    for name in ("thermal", "teacher_steps", "teacher_ladder"):
        value = getattr(config, name)
        require(value is None or value >= 0, name, "it must not be negative")
    for name in ("disagreement", "hours", "timestep", "checkpoint_every"):
        value = getattr(config, name)
        require(math.isfinite(value) and value > 0, name, "it must be positive")
    require(config.seeds + config.proof_frames < config.labels, "labels", "no budget for `seeds` and `proof_frames`")


def ladder_of(config: DistilConfig) -> tuple[float, ...]:
    """Temperatures at which the students run, K: those wanted, and one beyond the highest."""
    hottest = max(config.temperatures) * config.beyond
    return tuple(sorted({*config.temperatures, float(round(hottest))}))
