"""A distillation from its settings to its finished folder: labels, rounds, the last training, the proof."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numpy as np

from jaxpto.distillation.config import EDGE, FREE, DistilConfig, check
from jaxpto.distillation.exploration import Rung, ladder_settings, rungs_of
from jaxpto.distillation.label_store import LabelStore, key_of
from jaxpto.distillation.proof import Agreement, Independent, agreement, independent_structures
from jaxpto.distillation.publish import is_published, publish
from jaxpto.distillation.rounds import Round, Tools, first_labels, run_rounds, train_settings, training_labels
from jaxpto.distillation.seeds import Crystal
from jaxpto.distillation.spent_time import SpentTime
from jaxpto.distillation.teacher import load_teacher
from jaxpto.errors import InputError
from jaxpto.models.fresh import fresh_model
from jaxpto.models.suitability import check_supports
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.identity import differences, digest_of, make_identity
from jaxpto.storage.output import check_output_folder
from jaxpto.structures import BUILT_IN, make_supercell, read_input
from jaxpto.system import System, from_ase

CONFIG_FILE = "distillation.json"
PROOF_SEED = 1_000  # added to the seed for the ladder that the proof's structures come from


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What a distillation came to.

    Attributes:
        crystals: the structures.
        rounds: all rounds.
        reason: why there are no more.
        labels: number of labelled structures by file.
        independent: structures of the proof, by structure and temperature.
        agreements: how the student compares with its teacher on them.
        rungs: the finished student's ladder.
        teacher_rungs: the teacher's own, or none.
        seconds: time spent.
    """

    crystals: list[Crystal]
    rounds: list[Round]
    reason: str
    labels: dict[str, int]
    independent: list[Independent]
    agreements: list[Agreement]
    rungs: list[Rung]
    teacher_rungs: list[Rung]
    seconds: float


def distil(config: DistilConfig, tools: Tools, say: Callable[[str], None]) -> Distilled:
    """Distil a student, or go on with it; everything that takes time is stored and not done twice.

    Args:
        config: the settings.
        tools: what trains and what simulates.
        say: told how far it is.

    Raises:
        InputError: settings, teacher, structures or folder are refused.
        FloatingPointError: a training diverged.
    """
    check(config)
    out = Path(config.out)
    check_output_folder(out, resume=config.resume)
    teacher = load_teacher(config.teacher)
    crystals = [read_crystal(name, config, say) for name in config.structures]
    if len({one.name for one in crystals}) < len(crystals):
        raise InputError("two structures have files of one name; rename one")
    for crystal in crystals:
        check_supports(teacher.potential, crystal.supercell, crystal.source)
    elements = tuple(sorted({int(z) for one in crystals for z in one.atoms.numbers}))
    fresh_model(config.architecture, elements, named(config.hyperparameters), _some_systems(crystals))  # or it refuses
    _claim(config, out, teacher.digest, crystals)
    store = LabelStore(out / "labels", teacher, say)
    spent = SpentTime(out / "spent.json")

    first_labels(config, crystals, store, tools, say)
    spent.save()
    rounds, reason = run_rounds(config, crystals, store, tools, spent, say)
    labelled = training_labels(store)
    facts = {
        "teacher": config.teacher,
        "teacher_digest": teacher.digest,
        "labels": len(labelled),
        "labels_digest": digest_of(np.array([key_of(atoms) for atoms in labelled])),
        "steps": config.final_steps,
    }
    final = out / "rounds" / f"final-{len(labelled)}-labels-{config.final_steps}-steps" / "student"
    if not is_published(out, facts):
        say(f"last training: {len(labelled)} labels, {config.final_steps} steps")
        tools.train(train_settings(config, labelled, final, config.final_steps))
        publish(final, out, facts)
        spent.save()

    independent: list[Independent] = []
    rungs: list[Rung] = []
    teacher_rungs: list[Rung] = []
    student = load_teacher(out)
    for crystal in crystals:
        ladder = out / "proof" / final.parent.name / f"ladder-{crystal.name}"
        settings = ladder_settings(
            config, crystal, str(out), ladder, steps=config.explore_steps, seed=config.seed + PROOF_SEED
        )
        tools.sweep(settings)
        rungs += rungs_of(ladder, crystal.name, settings.equilibration)
        independent += independent_structures(config, crystal, ladder, settings.equilibration, store, student)
        spent.save()
        if config.teacher_ladder:
            own = out / "proof" / f"teacher-{crystal.name}"
            settings = ladder_settings(
                config, crystal, config.teacher, own, steps=config.teacher_ladder, seed=config.seed + PROOF_SEED
            )
            tools.sweep(dataclasses.replace(settings, temperatures=config.temperatures))
            teacher_rungs += rungs_of(own, crystal.name, settings.equilibration)
            spent.save()
    by_name = {one.name: one for one in crystals}
    agreements = [agreement(one, by_name[one.crystal]) for one in independent]
    return Distilled(
        crystals, rounds, reason, store.files(), independent, agreements, rungs, teacher_rungs, spent.seconds
    )


def read_crystal(name: str, config: DistilConfig, say: Callable[[str], None]) -> Crystal:
    """A structure to distil on, with the repeats in which it is labelled and simulated.

    Raises:
        InputError: `read_input` refuses it, or the supercell.
    """
    given = read_input(name, "dynamics")
    for note in given.notes:
        say(note)
    lengths = np.linalg.norm(given.atoms.cell.array, axis=1)
    x, y, z = (max(1, math.ceil(EDGE / length)) for length in lengths)
    repeats = config.supercell or (x, y, z)
    make_supercell(given.atoms, repeats)
    return Crystal(name if name in BUILT_IN else Path(name).stem, name, given.atoms, repeats)


def named(texts: tuple[str, ...]) -> dict[str, str]:
    """Hyperparameters NAME=VALUE by name."""
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def _some_systems(crystals: list[Crystal]) -> list[System]:
    return [from_ase(one.supercell, np.float32) for one in crystals]


def _claim(config: DistilConfig, out: Path, teacher: str, crystals: list[Crystal]) -> None:
    """Note what is distilled in the folder, or check that it is the same.

    Raises:
        InputError: the folder holds another distillation, or other things.
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    del settings["teacher"], settings["structures"]  # told by their content
    parts = [(one.name, _digest(one.atoms)) for one in crystals]
    identity = make_identity(settings, parts, {"teacher": teacher})
    path = out / CONFIG_FILE
    if path.exists():
        try:
            before = json.loads(path.read_text())["identity"]
            found = differences(before, identity, "structure")
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} is damaged; restore it or start in a new folder") from None
        if found:
            raise InputError(f"`resume=True`: {out} was begun otherwise: {'; '.join(found)}; name another `out`")
        return
    if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"{out} holds other things and no {CONFIG_FILE} to go on with; name another `out`")
    out.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, {"identity": identity, "config": _json(config)})


def _json(config: DistilConfig) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()
    }


def _digest(atoms: ase.Atoms) -> str:
    return digest_of(atoms.numbers, atoms.positions, atoms.cell.array)
