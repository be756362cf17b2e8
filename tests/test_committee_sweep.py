"""A sweep with a committee: the disagreement of every sample, and which replicas left the domain of the training."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest

from jaxpto import sweep
from jaxpto.calculator import JaxptoCalculator
from jaxpto.console.command import run_command
from jaxpto.md.config import SweepConfig
from jaxpto.models.catalogue import load_potential
from jaxpto.models.committee import Calibration, Committee, ErrorScale, save_calibration, save_committee
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.observables.force_deviation import domain_record, summarize_domain
from jaxpto.reporting.stored_sweep import as_rows, load_sweep, read_summary
from jaxpto.storage.trajectory import read_trajectory

pytestmark = pytest.mark.simulation

SIGMAS = (3.40, 3.38, 3.43)
FACTOR = 1.5


def argon_committee() -> Committee:
    params = {"epsilon": np.full((3, 1), 0.0103), "sigma": np.array(SIGMAS)[:, None]}
    return Committee(params, lennard_jones(["Ar"], [0.0103], [3.4], cutoff=6.0, onset=5.0).model, "argon")


def command(place: Path, out: str, *arguments: str) -> int:
    return run_command("jaxpto.sweep", SweepConfig, sweep.run, [
        str(place / "argon.vasp"), "--model", str(place / "argon"), "--supercell", "2", "2", "2", "--temperatures",
        "2", "60", "--timestep", "4", "--sample-every", "10", "--steps", "200", "--out", str(place / out), *arguments,
    ])  # fmt: skip


def deviations(folder: Path) -> dict[str, np.ndarray]:
    """[f] of each replica, as its trajectory has them."""
    found = {path.stem: read_trajectory(path) for path in sorted((folder / "trajectories").iterdir())}
    return {name: one.observables["force_deviation"] for name, one in found.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crystal, a committee that nobody calibrated, and its sweep."""
    folder = tmp_path_factory.mktemp("committee")
    ase.io.write(folder / "argon.vasp", ase.build.bulk("Ar", "fcc", a=5.3, cubic=True))
    save_committee(argon_committee(), folder / "argon")
    assert command(folder, "uncalibrated") == 0
    return folder


def test_the_deviation_is_that_of_the_members_by_hand(place: Path) -> None:
    """Every member, saved as a model of its own, on the stored frames; in trajectory, thermo.csv and summary."""
    calculators = []
    for number in range(3):
        save_potential(argon_committee().member(number), place / f"member{number}")
        calculators.append(JaxptoCalculator(load_potential(place / f"member{number}", np.float64), "float64"))
    table = list(csv.DictReader((place / "uncalibrated" / "thermo.csv").open()))
    for kelvin in (2, 60):
        stored = read_trajectory(place / "uncalibrated" / "trajectories" / f"{kelvin}K.h5md")
        assert stored.units["force_deviation"] == "eV Angstrom-1"
        expected = []
        for positions, cell in zip(stored.positions, stored.cells, strict=True):
            atoms = ase.Atoms(stored.numbers, positions, cell=cell, pbc=True)
            forces = np.array([calculator.get_forces(atoms) for calculator in calculators])
            spread = np.linalg.norm(forces - forces.mean(axis=0), axis=2)
            expected.append(np.sqrt((spread**2).mean(axis=0)).max())
        found = stored.observables["force_deviation"]
        assert len(found) == 21
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-6)
        column = [float(row["force_deviation_eV_per_A"]) for row in table if float(row["target_K"]) == kelvin]
        np.testing.assert_allclose(column, found, rtol=1e-6)
    for row in json.loads((place / "uncalibrated" / "summary.json").read_text()):
        assert row["force_deviation"] > 0.0
        assert "left_domain" not in row  # nobody knows how far the training reaches


def calibrated(place: Path, limit: float) -> None:
    scale = ErrorScale(FACTOR, ((0.01, FACTOR * 0.01, 5),))
    save_calibration(place / "argon", Calibration(limit, 5, scale, scale))


def test_replicas_beyond_the_training_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The step of the first sample beyond, the temperature and the calibrated error: printed, page and summary."""
    before = deviations(place / "uncalibrated")
    limit = 1.05 * float(before["2K"].max())
    over = np.flatnonzero(before["60K"] > limit)
    assert 0 < len(over) < 21
    calibrated(place, limit)
    capsys.readouterr()
    assert command(place, "left") == 0
    said = " ".join(capsys.readouterr().out.split())
    step, deviation = 10 * int(over[0]), float(before["60K"][over[0]])
    error = f"{FACTOR * deviation:.2g}"
    line = f"60 K: left the domain of the model's training at step {step} ({step * 0.004:.3g} ps)"
    rest = f"an error of about {error} eV/A is expected; {len(over)} of 21 samples are beyond"
    for text in (said, " ".join((place / "left" / "report.html").read_text().replace("&#x27;", "'").split())):
        assert line in text
        assert rest in text
    assert "1 of 2 replicas left the domain of the model's training, from 60 K on" in said
    assert "committee of 3" in said
    assert "2 K: left" not in said
    cold, hot = json.loads((place / "left" / "summary.json").read_text())
    assert (cold["left_domain"], cold["left_domain_step"]) == (0, None)
    assert (hot["left_domain"], hot["left_domain_step"]) == (1, step)
    assert hot["left_domain_error_eV_per_A"] == pytest.approx(FACTOR * deviation, rel=1e-5)
    rows = read_summary(place / "left")
    assert as_rows(rows)[1]["left_domain_deviation_eV_per_A"] == pytest.approx(deviation, rel=1e-5)


def test_replicas_within_the_training_are_not(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated(place, 1e3)
    assert command(place, "within") == 0
    assert "left the domain" not in capsys.readouterr().out
    assert all(
        record.domain is not None and record.domain.beyond == 0 for record in load_sweep(place / "within").records
    )
    assert "In no replica" in (place / "within" / "report.html").read_text()


def test_another_committee_does_not_continue_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committee = argon_committee()
    shifted = {
        "epsilon": committee.params["epsilon"],
        "sigma": committee.params["sigma"] * np.array([[1], [1.01], [1]]),
    }
    kept = (place / "argon").rename(place / "kept")
    try:
        save_committee(dataclasses.replace(committee, params=shifted), place / "argon")
        assert command(place, "uncalibrated", "--resume") == 2
        assert "the committee is another one" in capsys.readouterr().err
    finally:
        (place / "argon").rename(place / "shifted")
        kept.rename(place / "argon")


def test_a_model_without_committee_has_no_column(place: Path, tmp_path: Path) -> None:
    """The dynamics are those with the committee, number by number."""
    save_potential(argon_committee().member(0), tmp_path / "argon")
    (tmp_path / "argon.vasp").write_text((place / "argon.vasp").read_text())
    assert command(tmp_path, "plain") == 0
    for kelvin in (2, 60):
        one, other = (read_trajectory(p / "trajectories" / f"{kelvin}K.h5md")
                      for p in (tmp_path / "plain", place / "uncalibrated"))  # fmt: skip
        assert other.observables.keys() - one.observables.keys() == {"force_deviation"}
        np.testing.assert_array_equal(one.positions, other.positions)
    for name in ("summary.csv", "thermo.csv", "summary.json", "outcome.json"):
        text = (tmp_path / "plain" / name).read_text()
        assert [word for word in ("deviation", "committee", "domain") if word in text] == []
    assert "committee" not in json.loads((tmp_path / "plain" / "config.json").read_text())["identity"]
    page = (tmp_path / "plain" / "report.html").read_text()
    assert [word for word in ("Domain of the model", "force deviation", "beyond the training") if word in page] == []


def test_the_first_to_leave_counts() -> None:
    step, time = np.array([0, 10, 20]), np.array([0.0, 0.02, 0.04])
    one = domain_record(np.array([0.1, 0.5, 0.2]), step, time, 0.3, None)
    other = domain_record(np.array([0.1, 0.2, 0.4]), step, time, 0.3, 2.0)
    inside = domain_record(np.array([0.1, 0.2, 0.3]), step, time, 0.3, 2.0)
    assert (one.step, one.beyond, inside.step, inside.beyond) == (10, 1, None, 0)
    assert np.isnan(one.error)
    assert other.error == pytest.approx(0.8)
    found = summarize_domain([inside, other, one, None])
    assert found is not None
    assert (found.replicas, found.step, found.deviation) == (2, 10.0, 0.5)
    assert summarize_domain([None]) is None
