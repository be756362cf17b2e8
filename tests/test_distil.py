"""`python -m jaxpto.distil` in small: argon, taught by Lennard-Jones, interrupted and resumed."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_distillation import CUTOFF, EPSILON, ONSET, SIGMA, argon

from jaxpto import sweep, train
from jaxpto.distillation.config import DistilConfig
from jaxpto.distillation.distillation import Distilled, distil
from jaxpto.distillation.output import write_distillation
from jaxpto.distillation.rounds import Tools
from jaxpto.errors import InputError
from jaxpto.models.committee import load_committee
from jaxpto.models.folder import read_header, save_potential
from jaxpto.models.lennard_jones import lennard_jones


@dataclasses.dataclass
class Story:
    """A distillation that was interrupted and went on."""

    config: DistilConfig
    found: Distilled
    calls: list[str]  # what trained and what ran, in order, "!" where the interrupt struck
    said: list[str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One round of two tiny students; the interrupt strikes before its ladder."""
    place = tmp_path_factory.mktemp("distil")
    save_potential(lennard_jones(["Ar"], [EPSILON], [SIGMA], cutoff=CUTOFF, onset=ONSET), place / "teacher")
    argon(1).write(place / "argon.cif")
    config = DistilConfig(
        str(place / "teacher"), (str(place / "argon.cif"),), str(place / "student"), temperatures=(20.0,), members=2,
        hyperparameters=("hidden=4", "channels=2", "radial=4", "quartic=1", "cutoff=6"), seeds=20, thermal=2,
        teacher_steps=0, rounds=1, labels_per_round=6, steps=20, final_steps=30, explore_steps=40, proof_frames=6,
        teacher_ladder=40, hours=10.0, disagreement=0.01,
    )  # fmt: skip
    calls: list[str] = []
    said: list[str] = []

    def told(run: Callable[[Any], Any], stop: str = "") -> Callable[[Any], Any]:
        def call(settings: Any) -> Any:
            name = Path(settings.out).relative_to(config.out).as_posix()
            if name == stop:
                calls.append("!")
                raise KeyboardInterrupt
            calls.append(name)
            return run(settings)

        return call

    with pytest.raises(KeyboardInterrupt):
        distil(config, Tools(told(train.run), told(sweep.run, "rounds/01/ladder-argon")), said.append)
    config = dataclasses.replace(config, resume=True)
    found = distil(config, Tools(told(train.run), told(sweep.run)), said.append)
    write_distillation(config, found, Console(quiet=True))
    return Story(config, found, calls, said)


def trained_labels(story: Story) -> int:
    """20 random structures, the way to the minimum, 1 displacement of argon, 2 thermal ones, 6 of the first round."""
    return 29 + story.found.labels["relaxation-argon"]


def test_what_was_done_is_not_done_again(story: Story) -> None:
    final = f"final-{trained_labels(story)}-labels-30-steps"
    before = story.calls.index("!")
    assert story.calls[:before] == ["rounds/01/student"]
    # the training is there: its command only looks
    assert story.calls[before + 1 :] == [
        "rounds/01/student", "rounds/01/ladder-argon", f"rounds/{final}/student", f"proof/{final}/ladder-argon",
        "proof/teacher-argon",
    ]  # fmt: skip


def test_labels_are_counted(story: Story) -> None:
    found, way = story.found, trained_labels(story) - 29
    assert found.labels == {
        "seeds-argon": 20, "relaxation-argon": way, "phonons-argon": 1, "thermal-argon": 2, "round-01-argon": 6,
        "independent-argon-20K": 6,
    }  # fmt: skip
    assert 2 <= way <= 20
    assert [(one.labels, one.chosen) for one in found.rounds] == [(23 + way, 6)]
    assert found.reason == "`rounds=1` are done"
    independent = {atoms.positions.tobytes() for one in found.independent for atoms in one.teacher}
    trained = Path(story.config.out, f"rounds/final-{29 + way}-labels-30-steps/labels.extxyz").read_text()
    assert len(independent) == 6
    assert trained.count("Lattice") == 29 + way


def test_the_student_is_a_model_with_a_committee(story: Story) -> None:
    committee = load_committee(story.config.out)
    assert committee is not None
    assert committee.members == 2
    assert committee.calibration is not None
    header = read_header(Path(story.config.out))
    assert header["distillation"]["labels"] == trained_labels(story)
    assert header["source"] == f"distilled from {story.config.teacher}"


def test_what_is_reported_is_what_was_measured(story: Story) -> None:
    out = Path(story.config.out)
    document = json.loads((out / "proof.json").read_text())
    with (out / "proof.csv").open() as file:
        (row,) = csv.DictReader(file)
    (one,) = story.found.agreements
    teacher, student = story.found.independent[0].teacher, story.found.independent[0].student
    errors = [a.get_potential_energy() - b.get_potential_energy() for a, b in zip(teacher, student, strict=True)]
    assert float(row["energy_meV_per_atom"]) == pytest.approx(
        1e3 * (sum(e * e for e in errors) / len(errors)) ** 0.5 / len(teacher[0])
    )
    assert float(row["forces_meV_per_A"]) == one.forces
    assert one.energy < 10.0  # of both with the energies of their elements; argon is bound by 80 meV
    assert [line["round"] for line in document["rounds"]] == [1]
    assert [line["teacher"] for line in document["ladders"]] == ["ok", ""]  # not beyond what is wanted
    assert (out / "report.html").read_text().count("<img") == 2


def test_a_finished_one_is_only_looked_at(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def refuse(settings: Any) -> Any:
        calls.append(Path(settings.out).name)
        raise AssertionError("nothing is left to train")

    briefly = functools.partial(sweep.run, brief=True)
    again = distil(story.config, Tools(refuse, briefly), calls.append)
    assert "T (K)" not in capsys.readouterr().out  # tables of single ladders stand in their reports
    assert [one.forces for one in again.agreements] == [one.forces for one in story.found.agreements]


def test_other_settings_and_folders_are_refused(story: Story, tmp_path: Path) -> None:
    tools = Tools(train.run, sweep.run)
    with pytest.raises(InputError, match="begun otherwise: members was 2, now 3"):
        distil(dataclasses.replace(story.config, members=3), tools, print)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other things and no distillation.json"):
        distil(dataclasses.replace(story.config, out=str(tmp_path)), tools, print)
    with pytest.raises(InputError, match="unknown architecture 'nets'"):
        distil(dataclasses.replace(story.config, out=str(tmp_path / "new"), architecture="nets"), tools, print)
    slow = dataclasses.replace(story.config, out=str(tmp_path / "slow"), hours=1e-6)
    with pytest.raises(InputError, match="give more hours"):
        distil(slow, tools, print)
