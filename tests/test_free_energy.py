"""The free-energy command: a ladder end to end, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import pathlib

import numpy as np
import pytest

from jaxpto.free_energy.command import main
from jaxpto.observables.statistics import estimate
from jaxpto.reporting.stored_sweep import load_sweep
from jaxpto.units import BOLTZMANN

LADDER = ("--supercell", "1", "1", "1", "--temperatures", "300", "450", "600", "--steps", "4000", "--ensemble", "nvt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("free") / "energy"
    assert main(["PbTiO3-cubic", *LADDER, "--out", str(out)]) == 0
    return out


def test_files_of_a_ladder(folder: pathlib.Path) -> None:
    document = json.loads((folder / "free_energy.json").read_text())
    assert document["reference_temperature_K"] == 300.0
    assert document["formula"] == "PbTiO3"
    with (folder / "free_energy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["temperature_K"]) for row in rows] == list(np.linspace(300.0, 600.0, 9))
    assert [row["free_energy_eV"] for row in rows] == [str(row["free_energy_eV"]) for row in document["rows"]]
    np.testing.assert_allclose(np.sum(document["overlap"], axis=1), 1.0, atol=1e-5)
    for name in ("free_energy.png", "report.html", "sweep/summary.json"):
        assert (folder / name).stat().st_size > 1000


def test_internal_energy_is_that_of_the_sweep(folder: pathlib.Path) -> None:
    """From 300 to 600 K, against the plain averages of the potential energy, within their errors; and S rises."""
    rows = json.loads((folder / "free_energy.json").read_text())["rows"]
    assert (np.diff([row["entropy_J_per_K_mol"] for row in rows]) > 0.0).all()
    records = load_sweep(folder / "sweep").records
    low, high = (
        estimate(record.potential_energy[math.ceil(0.3 * len(record.potential_energy)) :]) for record in records[::2]
    )
    expected = high.mean - low.mean + 0.5 * 15 * BOLTZMANN * 300.0
    assert abs(rows[-1]["enthalpy_eV"] - expected) <= 4.0 * math.hypot(low.sem, high.sem)


def test_the_same_command_again_uses_the_sweep(folder: pathlib.Path) -> None:
    before = (folder / "free_energy.csv").read_text()
    assert main(["PbTiO3-cubic", *LADDER, "--out", str(folder)]) == 0
    assert (folder / "free_energy.csv").read_text() == before


def test_other_settings_are_refused(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["PbTiO3-cubic", *LADDER, "--timestep", "1", "--out", str(folder)]) == 2
    assert "timestep was 2.0, now 1.0" in capsys.readouterr().err


def test_bad_input(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--temperatures", "300", "--out", str(tmp_path / "a")]) == 2
    assert "a ladder needs at least two" in capsys.readouterr().err
    assert main(["--equilibration", "1", "--out", str(tmp_path / "a")]) == 2
    assert "must be in [0, 1)" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("method", ["ladder", "harmonic", "qha", "switching", "landau"])
def test_what_lies_in_the_way_is_kept(method: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of something else, and a file."""
    given = ["--method", method, *(["--ensemble", "nvt", "--replicas", "2"] if method == "switching" else [])]
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("all of it")
    assert main([*given, "--out", str(tmp_path)]) == 2
    assert "exists and is not empty; name a new folder" in capsys.readouterr().err
    assert main([*given, "--out", str(thesis)]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert thesis.read_text() == "all of it"


def test_a_sweep_that_is_too_short_is_kept(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "short"
    assert (
        main(["--supercell", "1", "1", "1", "--temperatures", "300", "600", "--steps", "100", "--out", str(out)]) == 2
    )
    assert "independent samples, at least 10 are needed; take more --steps" in capsys.readouterr().err
    assert (out / "sweep" / "summary.json").exists()
