"""The rounds of a distillation: label, train a committee, let it run, label where it disagrees; until nothing moves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numpy as np

from jaxpto.distillation.config import DistilConfig, ladder_of
from jaxpto.distillation.exploration import (
    Rung,
    agree,
    candidates_of,
    from_json,
    ladder_settings,
    moved,
    rungs_of,
    to_json,
)
from jaxpto.distillation.label_store import LabelStore, key_of
from jaxpto.distillation.relaxed import relaxed
from jaxpto.distillation.seeds import Crystal, displaced_supercells, random_structures, thermal_structures
from jaxpto.distillation.selection import choose
from jaxpto.distillation.spent_time import SpentTime
from jaxpto.errors import InputError
from jaxpto.md.config import SweepConfig
from jaxpto.models.ase_calculator import PREFIX
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.trajectory import read_trajectory
from jaxpto.structures.write import write_frames
from jaxpto.training.config import TrainConfig

ROUND_FILE = "round.json"
LABELS_FILE = "labels.extxyz"
INDEPENDENT = "independent"  # beginning of the names of labels that no student is trained on
TEACHER_FRAMES = 12  # taken from each short run of the teacher
TEACHER_SHARE = 1.0 / 7.0  # of the time, for these runs
FEWEST_TEACHER_STEPS, MOST_TEACHER_STEPS = 50, 500  # fewer show nothing that displaced structures do not
BATCH = 2  # frames of a training step: a processor computes them side by side
DEAREST = 0.5  # share of the labels that displacements for phonons may take


@dataclasses.dataclass(frozen=True)
class Tools:
    """What trains and what simulates.

    Attributes:
        train: trains as its settings say.
        sweep: runs a ladder as its settings say; returns its folder.
    """

    train: Callable[[TrainConfig], Any]
    sweep: Callable[[SweepConfig], Path]


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round came to.

    Attributes:
        number: from 1.
        labels: labelled structures that its students were trained on.
        seconds: time that it took.
        training_seconds: time that its training took.
        errors: RMS errors on held-out labels, meV/atom and meV/Angstrom, over all trajectories.
        rungs: its ladder.
        chosen: structures labelled after it.
        settled: whether the committee agreed and nothing had moved since the round before.
    """

    number: int
    labels: int
    seconds: float
    training_seconds: float
    errors: dict[str, float | None]
    rungs: list[Rung]
    chosen: int
    settled: bool


def first_labels(
    config: DistilConfig, crystals: list[Crystal], store: LabelStore, tools: Tools, say: Callable[[str], None]
) -> None:
    """Label what students begin with: ways to the teacher's minima, structures around both ends, runs of the teacher.

    Around the given crystals they are random, around the minima also displaced along the teacher's phonons.

    Raises:
        InputError: the teacher refuses a structure, or the time is too short for that many labels.
    """
    for number, crystal in enumerate(crystals):
        generator = np.random.default_rng([config.seed, number])
        random = random_structures(crystal, -(-config.seeds // 2), generator)
        store.label(random[:1], f"seeds-{crystal.name}")
        store.label(random[1:9], f"seeds-{crystal.name}")  # the first one took the compilation
        _check_time(config, store)
        minimum = relaxed(crystal, store, config.pressure, say)
        store.label(random + random_structures(minimum, config.seeds // 2, generator), f"seeds-{crystal.name}")
        phonon, displaced = displaced_supercells(minimum)
        if config.thermal and len(displaced) > DEAREST * config.labels:
            say(
                f"{crystal.name}: its phonons would take {len(displaced)} labels of {config.labels}; no structures are "
                "displaced along them"
            )
        elif config.thermal:
            labelled = store.label(displaced, f"phonons-{crystal.name}")
            thermal = thermal_structures(phonon, labelled, config.temperatures, config.thermal, config.seed)
            store.label(thermal, f"thermal-{crystal.name}")
        if steps := teacher_steps(config, len(crystals), store, say):
            store.label(_teacher_run(config, crystal, steps, tools), f"teacher-{crystal.name}")


def _check_time(config: DistilConfig, store: LabelStore) -> None:
    each = store.seconds_per_label or 0.0
    needed = each * (config.seeds + config.labels_per_round) / 3600.0
    if needed > config.hours:
        raise InputError(
            f"`hours={config.hours:g}`: a label takes {each:.2g} s, those of one round alone {needed:.2g} h; "
            "give more hours, or lower `seeds` and `labels_per_round`"
        )


def teacher_steps(config: DistilConfig, crystals: int, store: LabelStore, say: Callable[[str], None]) -> int:
    """Steps of the teacher's runs: what was asked for, or what the time allows, noted for a resumed run."""
    if config.teacher_steps is not None or config.teacher.startswith(PREFIX):
        return config.teacher_steps or 0
    path = Path(config.out) / "teacher-runs" / "steps.json"
    if not path.exists():
        runs = crystals * len(ladder_of(config))
        seconds = (store.seconds_per_label or 0.0) * runs
        affordable = int(TEACHER_SHARE * 3600.0 * config.hours / seconds) if seconds else MOST_TEACHER_STEPS
        steps = min(affordable, MOST_TEACHER_STEPS) if affordable >= FEWEST_TEACHER_STEPS else 0
        say(
            f"runs of the teacher: {steps} steps at {len(ladder_of(config))} temperatures"
            if steps
            else f"no runs of the teacher: a step of all temperatures takes {seconds / crystals:.2g} s"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, {"steps": steps})
    return int(json.loads(path.read_text())["steps"])


def _teacher_run(config: DistilConfig, crystal: Crystal, steps: int, tools: Tools) -> list[ase.Atoms]:
    """Structures from short runs of the teacher, a ladder of temperatures as the students will run."""
    folder = Path(config.out) / "teacher-runs" / crystal.name
    settings = ladder_settings(config, crystal, config.teacher, folder, steps=steps, seed=config.seed)
    tools.sweep(dataclasses.replace(settings, sample_every=max(1, steps // TEACHER_FRAMES)))
    found = []
    for path in sorted((folder / "trajectories").glob("*.h5md")):
        stored = read_trajectory(path)
        found += [
            ase.Atoms(stored.numbers, stored.positions[k], cell=stored.cells[k], pbc=True)
            for k in range(1, len(stored.step))
        ]
    return found


def training_labels(store: LabelStore, before: int | None = None) -> list[ase.Atoms]:
    """The labelled structures that students are trained on, in an order that has nothing to do with how they arose.

    So the blocks that a training holds out are a fair sample of them.

    Args:
        store: all labels.
        before: only those that were there before the end of this round; all if None.
    """
    found = []
    for name in store.files():
        later = name.startswith("round-") and before is not None and int(name.split("-")[1]) >= before
        if not later and not name.startswith(INDEPENDENT):
            found += store.structures(name)
    return sorted(found, key=key_of)


def train_settings(config: DistilConfig, labelled: list[ase.Atoms], out: Path, steps: int) -> TrainConfig:
    """The training of a committee from nothing, so that its trust in short distances is that of all labels so far.

    Args:
        config: the settings.
        labelled: written beside the student as one file of labels.
        out: folder of the student.
        steps: training steps.
    """
    data = out.parent / LABELS_FILE
    write_frames(labelled, data)
    return TrainConfig(
        data=(data,),
        out=out,
        architecture=config.architecture,
        hyperparameters=config.hyperparameters,
        committee=config.members,
        steps=steps,
        batch=BATCH,
        validate_every=max(1, steps // 4),
        checkpoint_every=config.checkpoint_every,
        resume=True,
        seed=config.seed,
        source=f"distilled from {config.teacher}",
    )


def run_rounds(
    config: DistilConfig,
    crystals: list[Crystal],
    store: LabelStore,
    tools: Tools,
    spent: SpentTime,
    say: Callable[[str], None],
) -> tuple[list[Round], str]:
    """Rounds until the committee agrees and the lattice stays, or the budget is spent; those done are read back.

    Returns:
        The rounds, and why the last one was the last.

    Raises:
        InputError: a training or a ladder is refused.
        FloatingPointError: a training diverged.
    """
    done: list[Round] = []
    reason = ""
    while not reason:
        folder = Path(config.out) / "rounds" / f"{len(done) + 1:02d}"
        stored = folder / ROUND_FILE
        if stored.exists():
            done.append(_read(stored))
        else:
            done.append(_one_round(config, crystals, store, tools, spent, folder, done, say))
            write_json_atomic(stored, _as_json(done[-1]))
            say(_sentence(done[-1], config))
        reason = _reason(config, store, spent, done[-1])
    say(f"no further round: {reason}")
    return done, reason


def _one_round(
    config: DistilConfig,
    crystals: list[Crystal],
    store: LabelStore,
    tools: Tools,
    spent: SpentTime,
    folder: Path,
    done: list[Round],
    say: Callable[[str], None],
) -> Round:
    number, began = len(done) + 1, spent.seconds
    labelled = training_labels(store, before=number)
    say(f"round {number}: {config.members} students from {len(labelled)} labels")
    tools.train(train_settings(config, labelled, folder / "student", config.steps))
    trained = spent.seconds - began
    spent.save()
    rungs: list[Rung] = []
    for crystal in crystals:
        ladder = folder / f"ladder-{crystal.name}"
        settings = ladder_settings(
            config, crystal, str(folder / "student"), ladder, steps=config.explore_steps, seed=config.seed + number
        )
        tools.sweep(settings)
        rungs += rungs_of(ladder, crystal.name, settings.equilibration)
        spent.save()
    settled = bool(done) and agree(rungs, config.temperatures, config.disagreement)
    settled = settled and not moved(done[-1].rungs, rungs, config.temperatures)
    chosen = 0
    if not settled and (free := _free(config, crystals, store)) > 0:
        each = max(1, min(config.labels_per_round, free) // len(crystals))
        for crystal in crystals:
            visited = candidates_of(folder / f"ladder-{crystal.name}", config.disagreement)
            known = [atoms for atoms in labelled if len(atoms) == len(crystal.supercell)]
            picked = choose(visited, known, each)
            store.label([one.atoms for one in picked], f"round-{number:02d}-{crystal.name}")
            chosen += len(picked)
    spent.save()
    return Round(
        number, len(labelled), spent.seconds - began, trained, _errors(folder / "student"), rungs, chosen, settled
    )


def _free(config: DistilConfig, crystals: list[Crystal], store: LabelStore) -> int:
    """Labels that may still be chosen: those of the proof are kept back."""
    proof = config.proof_frames * len(config.temperatures) * len(crystals)
    return config.labels - len(store) - proof


def _reason(config: DistilConfig, store: LabelStore, spent: SpentTime, one: Round) -> str:
    """Why this round is the last one, or ""."""
    if one.settled:
        return f"the committee agrees within {config.disagreement:g} eV/A and no lattice constant moves"
    if one.number >= config.rounds:
        return f"`rounds={config.rounds}` are done"
    # what follows the rounds: a longer training, one more ladder, and the labels of the proof
    last = one.seconds + one.training_seconds * (config.final_steps / config.steps - 1.0)
    if spent.seconds + one.seconds + last > 3600.0 * config.hours:
        return f"`hours={config.hours:g}` have no room for another one, the last training and the proof"
    if not one.chosen:
        return f"nothing is left to label of `labels={config.labels}`, {len(store)} of which are used"
    return ""


def _errors(student: Path) -> dict[str, float | None]:
    """RMS errors over the held-out frames of all trajectories, by what the training stored."""
    by_name = json.loads((student / "model.json").read_text())["training"]["validation_rmse_meV"]
    found: dict[str, float | None] = {}
    for quantity in ("energy", "forces", "virial"):
        known = [e[quantity] for e in by_name.values() if e.get(quantity) is not None]
        found[quantity] = float(np.sqrt(np.mean(np.square(known)))) if known else None
    return found


def _sentence(one: Round, config: DistilConfig) -> str:
    worst = max((rung for rung in one.rungs if rung.temperature in config.temperatures), key=lambda r: r.deviation)
    return (
        f"round {one.number}: {one.seconds / 60.0:.1f} min; 95 % of the samples deviate by less than "
        f"{worst.deviation:.2f} eV/A (worst: {worst.crystal} at {worst.temperature:g} K); {one.chosen} more labels"
    )


def _as_json(one: Round) -> dict[str, Any]:
    return dataclasses.asdict(one) | {"rungs": to_json(one.rungs)}


def _read(path: Path) -> Round:
    try:
        stored = json.loads(path.read_text())
        return Round(**stored | {"rungs": from_json(stored["rungs"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); remove it, and its round is done again") from None
