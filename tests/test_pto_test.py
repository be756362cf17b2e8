"""`python -m jaxpto.pto_test` in small, with a toy: every stage, interrupts in each, models that fail, refusals."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ase.io
import pytest
from test_parallel import environment, finish

from jaxpto import pto_test
from jaxpto.md import stored_run
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.pto import config as settings
from jaxpto.pto import driver, stages
from jaxpto.pto.config import STAGES, PtoTestConfig
from jaxpto.pto.plan import Cost, check_hours
from jaxpto.structures import builtin_structure, read_structure

SMALL = dataclasses.replace(
    settings.SCALES["quick"], supercell=(2, 1, 1), phonons=(1, 1, 1), cells=(1,), npt=(300.0, 500.0),
    nvt=(300.0, 500.0), picoseconds=0.04,
)  # fmt: skip
RESULTS = ("npt.csv", "nvt.csv", "table2.csv", "verdict.csv")


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory):
    """`dust` hardly interacts, so that twenty steps keep any crystal; `leadless` knows no Pb."""
    folder = tmp_path_factory.mktemp("models")
    for name, elements in {"dust": ["Pb", "Ti", "O"], "leadless": ["Ti", "O"]}.items():
        toy = lennard_jones(elements, [1e-4] * len(elements), [1.8] * len(elements), 4.5, 4.0)
        save_potential(toy, folder / name, {"source": "a toy"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXPTO_MODELS", str(folder))
        patch.setitem(settings.SCALES, "quick", SMALL)
        yield


def run(out: pathlib.Path, *further: str, models: tuple[str, ...] = ("dust",)) -> int:
    return pto_test.main(["--models", *models, "--scale", "quick", "--out", str(out), "--devices", "1", *further])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An uninterrupted test."""
    out = tmp_path_factory.mktemp("pto") / "whole"
    assert run(out) == 0
    return out


def table(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_stage_leaves_its_results(whole: pathlib.Path) -> None:
    page = (whole / "report.html").read_text()
    for text in ("Verdict", "Table 1", "a toy", "Table 2", "(4.73)", "Speed", "Fig. 3."):
        assert text in page
    for number, name in enumerate(("cells", "phonons", "npt", "nvt", "speed"), start=1):
        assert (whole / f"fig{number}-{name}.png").stat().st_size > 10_000
    assert [(row["model"], row["start"], row["temperature_K"]) for row in table(whole / "npt.csv")] == [
        ("dust", "tetragonal", kelvin) for kelvin in ("300.0", "500.0")
    ]
    assert len(table(whole / "nvt.csv")) == 2
    assert [row["atoms"] for row in table(whole / "speed.csv")] == ["5"]
    (verdict,) = table(whole / "verdict.csv")
    assert verdict["model"] == "dust"
    assert verdict["npt_loss"] == "none"
    costs = json.loads((whole / "costs.json").read_text())
    assert {cost["stage"] for cost in costs} == {"npt-tetragonal", "nvt", "cells", "phonons"}
    assert all(cost["hours"] > 0.0 for cost in costs)


def test_nvt_holds_the_experimental_lattice(whole: pathlib.Path) -> None:
    stored = json.loads((whole / "models" / "dust" / "nvt" / "config.json").read_text())["config"]
    assert (stored["structure"], stored["ensemble"]) == ("PbTiO3-experimental", "nvt")
    assert {(row["a"], row["c"]) for row in map(_rounded, table(whole / "nvt.csv"))} == {(3.9, 4.15)}
    stored = json.loads((whole / "models" / "dust" / "npt-tetragonal" / "config.json").read_text())["config"]
    assert stored["thermostat_time"] == 25.0
    assert stored["pfactor"] == pytest.approx(552.5, rel=1e-3)
    assert (stored["mask"], stored["timestep"], stored["steps"]) == ("diag", 2.0, 20)


def _rounded(row: dict[str, str]) -> dict[str, float]:
    return {name: round(float(row[name]), 6) for name in ("a", "c")}


def interrupting(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is interrupted once it has done its work, the first time."""
    calls = []

    def once(*arguments: Any, **keywords: Any) -> Any:
        done = original(*arguments, **keywords)
        if not calls:
            calls.append(1)
            raise KeyboardInterrupt
        return done

    return once


# where each stage is interrupted: with its work done and nothing of it told
PLACES = {
    "cells": (stages, "relax_cells"),
    "phonons": (stages, "vibrations_of"),
    "npt": (stored_run, "unmark_unsaved"),
    "nvt": (stored_run, "unmark_unsaved"),
    "speed": (stages, "time_steps"),
}


def test_a_test_that_is_interrupted_in_every_stage_ends_as_one_that_was_not(
    whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "interrupted"
    for stage in STAGES:
        module, name = PLACES[stage]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, interrupting(getattr(module, name)))
            assert run(out, "--resume", "--stages", stage) == 130
        assert not (out / "report.html").exists()
    assert run(out, "--resume") == 0
    for name in RESULTS:
        assert (out / name).read_text() == (whole / name).read_text()


def test_what_exists_is_not_done_again(whole: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(driver, "run_stage", None)
    before = (whole / "npt.csv").read_bytes()
    assert run(whole, "--resume") == 0
    assert "everything is computed" in capsys.readouterr().out
    assert (whole / "npt.csv").read_bytes() == before
    assert run(whole) == 2  # without --resume
    assert "is not empty" in capsys.readouterr().err
    assert run(whole, "--resume", "--picoseconds", "0.1") == 2
    assert "picoseconds was 0.04, now 0.1; name a new --out" in capsys.readouterr().err


def test_a_model_that_fails_leaves_the_others_alone(
    whole: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "two"
    shutil.copytree(whole / "models" / "dust" / "nvt", out / "models" / "dust" / "nvt")
    original = stages.vibrations_of

    def without_phonons(found: Any) -> Any:
        if found.model == "dust":
            raise RuntimeError("no phonons")
        return original(found)

    monkeypatch.setattr(stages, "vibrations_of", without_phonons)
    chosen = ("--resume", "--stages", "phonons", "nvt")
    assert run(out, *chosen, models=("leadless", "dust")) == 1
    text = capsys.readouterr()
    assert "leadless, nvt" in text.err
    assert "Pb" in text.err
    assert "dust, phonons: RuntimeError: no phonons" in text.err
    rows = {row["model"]: row for row in table(out / "verdict.csv")}
    assert rows["dust"]["nvt_loss"] == "none"
    assert "phonons failed: RuntimeError: no phonons" in rows["dust"]["remark"]
    assert "nvt failed" in rows["leadless"]["remark"]
    monkeypatch.setattr(stages, "vibrations_of", original)
    assert run(out, *chosen) == 0  # what failed is tried again
    assert table(out / "verdict.csv")[0]["remark"] == ""


def test_another_crystal_and_its_own_lattice(tmp_path: pathlib.Path) -> None:
    polar = tmp_path / "polar.cif"
    ase.io.write(polar, builtin_structure("PbTiO3-tetragonal"))
    config = PtoTestConfig(("dust",), str(tmp_path), structures=(str(polar), "PbTiO3-cubic"), both_starts=True)
    assert stages.experimental_structure(config, tmp_path) == str(polar)
    config = dataclasses.replace(config, lattice=(3.95, 4.10))
    path = stages.experimental_structure(config, tmp_path)
    held = read_structure(path)
    assert held.cell.lengths() == pytest.approx([3.95, 3.95, 4.10])
    given = read_structure(polar).get_scaled_positions()
    assert held.get_scaled_positions() == pytest.approx(given, abs=1e-6)
    ladders = {one.name: one.config.structure for one in stages.stages_of(config, "dust", path) if one.config}
    assert ladders == {"npt-tetragonal": str(polar), "npt-cubic": "PbTiO3-cubic", "nvt": path}


def test_the_plan_alone_writes_nothing(tmp_path: pathlib.Path, capsys: Any) -> None:
    out = tmp_path / "planned"
    assert run(out, "--stages", "nvt", "--plan") == 0
    text = capsys.readouterr().out
    assert "expected:" in text
    assert "nvt" in text
    assert not out.exists()
    assert run(out, "--stages", "nvt", "--hours", "1e-9") == 2
    assert "the test is expected to take" in capsys.readouterr().err
    assert not out.exists()


def test_what_would_fit_is_said() -> None:
    from jaxpto.errors import InputError

    costs = [Cost("a", "npt", 625, 8, 50_000, 3.0, 1.0), Cost("b", "npt", 625, 8, 50_000, 7.0, 1.0), Cost("b", "cells")]
    check_hours(costs, 10.0, 100.0)
    check_hours(costs, None, 100.0)
    with pytest.raises(InputError, match=r"take 10 h; `picoseconds=50` fits, so do the models a alone, or give"):
        check_hours(costs, 5.0, 100.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "nothing"), "unknown model 'nothing'"),
        (("--models", "dust", "dust"), "named twice"),
        (("--picoseconds", "0"), "at least one time step"),
        (("--temperatures", "-5"), "above 0 K"),
        (("--hours", "0"), "must be above 0"),
        (("--lattice", "0", "4"), "give a and c in Angstrom"),
        (("--structures", "no.cif", "PbTiO3-cubic"), "no.cif does not exist"),
        (("--reference", "no.yaml"), "there is no such file"),
        (("--replicas", "0"), "must be at least 1"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: pathlib.Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    assert run(out, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_reference_is_drawn_along_the_same_path_only(
    whole: pathlib.Path, tmp_path: pathlib.Path, capsys: Any
) -> None:
    reference = whole / "models" / "dust" / "phonons" / "band.yaml"
    assert run(whole, "--resume", "--reference", str(reference)) == 0
    assert "Dashed" in (whole / "report.html").read_text()
    for text, message in (("{}", "no band.yaml"), (_shifted(reference), "segment 1 does not end at X")):
        other = tmp_path / "other.yaml"
        other.write_text(text)
        assert run(whole, "--resume", "--reference", str(other)) == 2
        assert message in capsys.readouterr().err


def _shifted(path: pathlib.Path) -> str:
    """The same bands with other wave vectors."""
    return path.read_text().replace("0.5000000", "0.4000000")


@pytest.mark.slow
def test_two_processes_share_every_ladder(tmp_path: pathlib.Path) -> None:
    """Each ladder of a test is another run of the same processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    out = tmp_path / "shared"
    command = [sys.executable, "-m", "jaxpto.pto_test", "--models", "dust", "--scale", "quick", "--out", str(out)]
    command += ["--picoseconds", "0.04", "--temperatures", "300", "500", "--stages", "npt", "nvt", "--devices", "1"]
    pair = [
        subprocess.Popen(
            [*command, "--distributed", f"{address},2,{index}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(1),
        )
        for index in range(2)
    ]  # fmt: skip
    outcomes = [finish(process) for process in pair]
    assert [(code, error) for code, _, error in outcomes] == [(0, ""), (0, "")]
    assert outcomes[1][1] == ""
    assert len(table(out / "npt.csv")) == len(table(out / "nvt.csv")) == 2


def test_settings_of_the_paper() -> None:
    config = PtoTestConfig(("perovskite",), "out", "paper")
    assert config.steps == 50_000
    assert config.settled.supercell == (5, 5, 5)
    assert config.settled.npt == tuple(float(kelvin) for kelvin in range(300, 1001, 100))
    assert config.settled.nvt[-1] == 1300.0
    assert settings.SCALES["small"].picoseconds == 20.0
