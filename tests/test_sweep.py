"""The sweep command: what it writes, that a killed run continues to the same numbers, and what it refuses."""

import csv
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import ase.build
import ase.io
import h5py
import numpy as np
import pytest
from ase.calculators.emt import EMT

from jaxpto import sweep
from jaxpto.console.command import run_command
from jaxpto.errors import InputError
from jaxpto.md.config import PRESETS, SweepConfig
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.reporting.stored_sweep import load_sweep
from jaxpto.storage.trajectory import read_trajectory

FILES = {
    "config.json", "outcome.json", "summary.csv", "summary.json", "lattice.png", "timeseries.png", "report.html",
    "trajectories", "checkpoints",
}  # fmt: skip


@pytest.fixture(scope="module")
def argon(tmp_path_factory) -> list[str]:
    """Arguments for a quick run: a crystal, a model folder, three temperatures."""
    folder = tmp_path_factory.mktemp("argon")
    atoms = ase.build.bulk("Ar", "fcc", a=5.3, cubic=True)
    ase.io.write(folder / "argon.vasp", atoms)
    save_potential(lennard_jones(["Ar"], [0.0103], [3.40], cutoff=6.0, onset=5.0), folder / "lj")
    return [
        str(folder / "argon.vasp"), "--model", str(folder / "lj"), "--supercell", "2", "2", "2",
        "--temperatures", "10", "20", "30", "--timestep", "4", "--sample-every", "10", "--steps", "4000",
        "--checkpoint-every", "0.1",
    ]  # fmt: skip


def command(*arguments: str) -> int:
    return run_command("jaxpto.sweep", SweepConfig, sweep.run, list(arguments))


def frames(folder: pathlib.Path) -> list:
    return [read_trajectory(path) for path in sorted((folder / "trajectories").iterdir())]


def same(first: pathlib.Path, second: pathlib.Path) -> None:
    """Every stored number of two runs is equal, bit for bit."""
    for one, other in zip(frames(first), frames(second), strict=True):
        assert np.array_equal(one.step, other.step)
        assert np.array_equal(one.positions, other.positions)
        assert np.array_equal(one.cells, other.cells)
        for name, values in one.observables.items():
            assert np.array_equal(values, other.observables[name], equal_nan=True), name
    assert (first / "summary.csv").read_text() == (second / "summary.csv").read_text()


@pytest.fixture(scope="module")
def finished(argon, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("sweep") / "run"
    ran = subprocess.run(
        [sys.executable, "-m", "jaxpto.sweep", *argon, "--out", str(folder)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    (folder.parent / "output.txt").write_text(ran.stdout + ran.stderr)
    return folder


def test_the_output_folder_is_complete(finished):
    assert {path.name for path in finished.iterdir()} >= FILES
    rows = list(csv.DictReader((finished / "summary.csv").open()))
    assert [float(row["temperature_K"]) for row in rows] == [10, 20, 30]
    assert all(row["status"] == "ok" for row in rows)
    assert json.loads((finished / "summary.json").read_text())
    document = json.loads((finished / "config.json").read_text())
    assert document["config"]["timestep"] == 4.0
    assert {"versions", "hardware", "git", "command"} <= set(document)
    for trajectory in frames(finished):
        assert trajectory.step.tolist() == list(range(0, 4001, 10))
        np.testing.assert_allclose(trajectory.time, 4.0 * trajectory.step)


def test_the_physics_is_that_of_argon(finished):
    rows = json.loads((finished / "summary.json").read_text())
    rows = rows["temperatures"] if isinstance(rows, dict) else rows
    for row in rows:
        error = row["measured_temperature_K"] - row["temperature_K"]
        assert abs(error) < 6.0 * row["measured_temperature_K_sem"] + 0.2
    lengths = [row["a"] for row in rows]
    assert lengths[0] < lengths[1] < lengths[2]  # thermal expansion


def test_what_a_person_reads_is_short(finished):
    text = (finished.parent / "output.txt").read_text()
    assert "Traceback" not in text
    assert "Warning" not in text
    assert "cpu_aot_loader" not in text
    assert "32 atoms, 3 replicas" in text
    assert "ns/day" in text


@pytest.mark.parametrize("seconds_after_start", [0.0, 0.7, 1.9])
def test_a_killed_run_continues_to_the_same_numbers(argon, finished, tmp_path, seconds_after_start):
    """SIGKILL once the trajectories exist plus some time; then --resume, killed again; then to the end."""
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "jaxpto.sweep", *argon, "--out", str(folder), "--resume"]
    for attempt in range(2):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while not (folder / "checkpoints").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        time.sleep(seconds_after_start * (attempt + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    ran = subprocess.run(arguments, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    same(finished, folder)


def test_a_damaged_checkpoint_falls_back_with_a_warning(argon, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    newest, older = sorted((folder / "checkpoints").iterdir())[-1:], sorted((folder / "checkpoints").iterdir())[:-1]
    assert newest
    if not older:
        pytest.skip("the run was so short that it kept one checkpoint only")
    victim = max((path for path in newest[0].rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    ran = subprocess.run(
        [sys.executable, "-m", "jaxpto.sweep", *argon, "--out", str(folder), "--resume"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "damaged" in ran.stdout
    same(finished, folder)


def test_resuming_a_finished_run_changes_nothing(argon, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert command(*argon, "--out", str(folder), "--resume") == 0
    same(finished, folder)


def test_a_run_that_lost_its_checkpoints_is_not_begun_anew(argon, finished, capsys, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for step in (folder / "checkpoints").iterdir():
        shutil.rmtree(step)
    assert "401 frames" in refused(capsys, tmp_path, *argon, "--out", str(folder), "--resume")
    (folder / "checkpoints").rmdir()
    assert "restore" in refused(capsys, tmp_path, *argon, "--out", str(folder), "--resume")
    same(finished, folder)


def test_exchanged_trajectories_are_noticed(argon, finished, capsys, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    one, other = (folder / "trajectories" / f"{t}K.h5md" for t in (10, 30))
    one.rename(tmp_path / "kept")
    other.rename(one)
    (tmp_path / "kept").rename(other)
    assert "temperature_K is 30.0, not 10.0" in refused(capsys, tmp_path, *argon, "--out", str(folder), "--resume")
    with pytest.raises(InputError, match=r"10K\.h5md belongs elsewhere"):
        load_sweep(folder)


def test_the_report_counts_the_frames(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert len(load_sweep(folder).records[0].time_ps) == 401
    with h5py.File(folder / "trajectories" / "20K.h5md", "r+") as file:
        file["parameters/jaxpto/valid_frames"][()] = 101
    with pytest.raises(InputError, match=r"20K\.h5md holds 101 frames, outcome\.json counts 401"):
        load_sweep(folder)


def test_a_sweep_without_any_survivor_fails_after_it_has_written_all(argon, tmp_path):
    hot = ["--temperatures", "9000", "--steps", "400", "--out", str(tmp_path / "run")]
    ran = subprocess.run([sys.executable, "-m", "jaxpto.sweep", *argon, *hot], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines() == [
        f"jaxpto.sweep: all 1 replicas melted or failed; {tmp_path / 'run'} says why"
    ]
    assert {path.name for path in (tmp_path / "run").iterdir()} >= FILES


def refused(capsys, tmp_path, *arguments: str) -> str:
    """Exit code 2, one line on stderr, nothing written; the line."""
    before = sorted(tmp_path.rglob("*"))
    assert command(*arguments) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    return captured.err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--temperatures", "-300", ["-300", "0 K"]),
        ("--temperatures", "0", ["0 K"]),
        ("--temperatures", "nan", ["nan"]),
        ("--timestep", "0", ["timestep", "0"]),
        ("--timestep", "-1", ["-1"]),
        ("--timestep", "200", ["200", "20 fs"]),
        ("--steps", "0", ["steps", "0", "1"]),
        ("--steps", "-5", ["-5"]),
        ("--sample-every", "0", ["sample-every"]),
        ("--replicas", "0", ["replicas"]),
        ("--pressure", "inf", ["inf"]),
        ("--friction", "-1", ["friction"]),
        ("--skin", "0", ["skin"]),
        ("--equilibration", "1.0", ["equilibration"]),
        ("--seed", "-1", ["seed"]),
        ("--model", "no-such-model", ["no-such-model", "perovskite"]),
        ("--ensemble", "nph", ["nph"]),
        ("--steps", "many", ["many"]),
    ],
)
def test_bad_settings_are_refused(capsys, tmp_path, option, value, words):
    line = refused(capsys, tmp_path, "--out", str(tmp_path / "out"), option, value)
    for word in words:
        assert word in line


def test_settings_that_do_not_fit_together_are_refused(capsys, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    assert "npt" in refused(capsys, tmp_path, *out, "--ensemble", "nvt", "--pressure", "1")
    assert "full" in refused(capsys, tmp_path, *out, "--stress", "0", "0", "0", "1", "0", "0")
    assert "--stress" in refused(capsys, tmp_path, *out, "--stress", "1", "0", "0", "0", "0", "0", "--pressure", "1")
    assert "twice" in refused(capsys, tmp_path, *out, "--temperatures", "300", "300")


def test_a_folder_in_use_is_refused(argon, finished, capsys, tmp_path):
    line = refused(capsys, finished, *argon, "--out", str(finished))
    assert "--resume" in line
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "not empty" in refused(capsys, tmp_path, *argon, "--out", str(tmp_path / "mine"))
    assert "is a file" in refused(capsys, tmp_path, *argon, "--out", str(tmp_path / "mine" / "thesis.tex"))


def test_resuming_with_other_settings_is_refused(argon, finished, capsys):
    line = refused(capsys, finished, *argon, "--timestep", "3", "--out", str(finished), "--resume")
    assert re.search(r"timestep was 4.0, now 3.0", line)


def test_a_full_disk_is_told_in_one_line_and_nothing_is_lost(argon, finished, tmp_path):
    """A limit on the size of files stands in for the full disk: checkpoints no longer fit after the first."""
    folder = tmp_path / "run"
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY));"
        "from jaxpto.sweep import main; sys.exit(main())"
    )
    ran = subprocess.run([sys.executable, "-c", limited, *argon, "--out", str(folder)], capture_output=True, text=True)
    assert ran.returncode == 1
    assert len(ran.stderr.strip().splitlines()) == 1
    assert str(folder) in ran.stderr
    assert "--resume" in ran.stderr
    # a process of its own, with as many devices as the others: on another number the last bits differ
    resumed = [sys.executable, "-m", "jaxpto.sweep", *argon, "--out", str(folder), "--resume"]
    assert subprocess.run(resumed).returncode == 0
    same(finished, folder)


def test_the_preset_is_that_of_the_paper():
    preset = PRESETS["pto-test"]
    assert (preset.timestep, preset.steps, preset.mask, preset.thermostat_time) == (2.0, 50_000, "diag", 25.0)
    assert preset.pfactor == pytest.approx(552.527, abs=0.001)  # 75**2 * ase.units.fs
    assert preset.temperatures == (300, 400, 500, 600, 700, 800, 900, 1000)
    assert preset.equilibration == 0.5


def test_a_preset_gives_way_to_options():
    assert sweep._preset(["--preset", "pto-test"]).steps == 50_000
    assert sweep._preset(["--preset=pto-test"]).steps == 50_000
    assert sweep._preset([]).preset is None


@pytest.mark.parametrize("ensemble", ["nvt", "nve"])
def test_a_fixed_cell_stays_fixed(argon, tmp_path, ensemble):
    out = tmp_path / "run"
    assert command(*argon, "--ensemble", ensemble, "--steps", "20", "--replicas", "2", "--out", str(out)) == 0
    assert sorted(path.name for path in (out / "trajectories").iterdir()) == [
        f"{t}K_{r}.h5md" for t in (10, 20, 30) for r in (0, 1)
    ]
    for trajectory in frames(out):
        assert (trajectory.cells == trajectory.cells[0]).all()
        assert not np.array_equal(trajectory.positions[0], trajectory.positions[-1])


def test_any_ase_calculator_runs_in_the_engine(tmp_path, caplog):
    """Aluminium with ASE's EMT through the host callback: the energies of ASE itself, and a word that it is slow."""
    atoms = ase.build.bulk("Al", cubic=True)
    ase.io.write(tmp_path / "aluminium.vasp", atoms)
    out = tmp_path / "run"
    arguments = [
        str(tmp_path / "aluminium.vasp"),
        "--model",
        "ase:ase.calculators.emt:EMT",
        "--supercell",
        "2",
        "2",
        "2",
    ]
    short = ["--temperatures", "100", "300", "--steps", "6", "--sample-every", "3", "--mask", "full"]
    assert command(*arguments, *short, "--out", str(out)) == 0
    assert "slow" in caplog.text
    for trajectory in frames(out):
        atoms = ase.Atoms(trajectory.numbers, trajectory.positions[-1], cell=trajectory.cells[-1], pbc=True)
        atoms.calc = EMT()
        energy = trajectory.observables["potential_energy"][-1]
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)  # float32 run
        assert trajectory.step.tolist() == [0, 3, 6]
