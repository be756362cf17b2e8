"""Bad input to the commands: exit code 2, one line with value and remedy on stderr, nothing written."""

import os
import subprocess
import sys

import ase.io
import numpy as np
import pytest

from jaxpto import evaluate
from jaxpto.__main__ import main as list_everything
from jaxpto.console.command import configure_devices, run_command
from jaxpto.errors import InputError
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.structures import builtin_structure


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a model that knows Pb, Ti and O, good and bad structures."""
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    perovskite = lennard_jones(["Pb", "Ti", "O"], [0.01] * 3, [2.0] * 3, cutoff=5.0, onset=4.0)
    save_potential(perovskite, tmp_path / "models" / "toy")
    good = builtin_structure("PbTiO3-cubic")
    ase.io.write("good.vasp", good)
    barium = good.copy()
    barium.symbols[0] = "Ba"
    ase.io.write("barium.vasp", barium)
    nan = good.copy()
    nan.positions[1, 0] = np.nan
    ase.io.write("nan.extxyz", nan)
    overlap = good.copy()
    overlap.positions[1] = overlap.positions[0] + 0.05
    ase.io.write("overlap.extxyz", overlap)
    left = good.copy()
    left.set_cell(left.cell[[1, 0, 2]])
    ase.io.write("left.extxyz", left)
    flat = good.copy()
    flat.cell[2] = flat.cell[1]
    ase.io.write("flat.extxyz", flat)
    (tmp_path / "noise.vasp").write_text("no structure\n")
    (tmp_path / "exists.traj").write_text("precious")
    return tmp_path


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "value", "remedy"),
    [
        (["barium.vasp"], "does not know Ba", "it knows Pb, Ti, O"),
        (["good.vasp", "nan.extxyz"], "nan.extxyz: the position of atom 1", "repair"),
        (["overlap.extxyz"], "atoms 0 and 1 are 0.087 A apart (limit 0.4 A)", "separate them"),
        (["left.extxyz"], "left-handed cell", "swap two lattice vectors"),
        (["flat.extxyz"], "is zero", "three independent lattice vectors"),
        (["missing.vasp"], "missing.vasp does not exist", "PbTiO3-tetragonal"),
        (["noise.vasp"], "noise.vasp cannot be read", "any ASE format"),
        ([], "no structure given", "name one or more"),
        (["good.vasp", "--model", "toi"], "'toi'", "did you mean toy?"),
        (["good.vasp", "--model", "ase:ase.calculators.emt:EMT"], "No EMT-potential for Ti", "use another model"),
        (["good.vasp", "--out", "out.pdf"], "'.pdf'", "choose .extxyz, .traj or .json"),
        (["good.vasp", "--out", "exists.traj"], "exists.traj exists", "--overwrite"),
        (["good.vasp", "--out", "good.vasp/out.traj"], "out.traj cannot be written", "choose another place"),
        (["good.vasp", "--dtype", "float16"], "float16", "'float64'"),
        (["good.vasp", "--modle", "toy"], "evaluate: Unrecognized options: --modle", "--help"),
    ],
)
def test_evaluate_refuses(workplace, capsys, arguments, value, remedy):
    full = list(arguments)
    if "--model" not in full:
        full += ["--model", "toy"]
    if "--out" not in full:
        full += ["--out", "out.traj"]
    before = content(workplace)
    assert evaluate.main(full) == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = [line for line in output.err.splitlines() if "slow" not in line]
    assert len(lines) == 1, output.err
    assert lines[0].startswith("jaxpto.evaluate: ")
    assert value in lines[0]
    assert remedy in lines[0]
    assert content(workplace) == before


def test_process_exit_code_and_stderr(workplace):
    command = [sys.executable, "-m", "jaxpto.evaluate", "barium.vasp", "--model", "toy", "--out", "out.traj"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "does not know Ba" in done.stderr
    assert not (workplace / "out.traj").exists()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("T = -1 K; give more"), 2, "jaxpto.evaluate: T = -1 K; give more"),
        (ValueError("two\nlines"), 1, "jaxpto.evaluate: ValueError: two lines (JAXPTO_TRACEBACK=1 shows where)"),
        (OSError(28, "No space left on device"), 1, "disk full"),
        (KeyboardInterrupt(), 130, "jaxpto.evaluate: interrupted"),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code, text):
    def fail(_):
        raise error

    arguments = ["x", "--model", "m", "--out", "o"]
    assert run_command("jaxpto.evaluate", evaluate.EvaluateConfig, fail, arguments) == code
    stderr = capsys.readouterr().err
    assert text in stderr
    assert len(stderr.splitlines()) == 1
    monkeypatch.setenv("JAXPTO_TRACEBACK", "1")
    run_command("jaxpto.evaluate", evaluate.EvaluateConfig, fail, arguments)
    assert ("Traceback" in capsys.readouterr().err) == (code == 1)


def test_help_is_no_error(capsys):
    assert evaluate.main(["--help"]) == 0
    output = capsys.readouterr()
    assert "--overwrite" in output.out
    assert output.err == ""


def test_defaults_give_way_to_arguments():
    seen = []
    defaults = evaluate.EvaluateConfig(("a",), "m", evaluate.Path("o"), dtype="float32")
    assert run_command("jaxpto.evaluate", evaluate.EvaluateConfig, seen.append, ["--model", "other"], defaults) == 0
    assert seen == [evaluate.EvaluateConfig(("a",), "other", evaluate.Path("o"), dtype="float32")]


def test_devices_are_counted():
    assert configure_devices() >= 1
    with pytest.raises(InputError, match="0 CPU devices"):
        configure_devices(0)


def test_overview_survives_damaged_models(workplace, capsys):
    save_potential(lennard_jones(["Ar"], [0.01], [3.4], 6.0, 5.0), workplace / "models" / "broken")
    (workplace / "models" / "broken" / "model.json").write_text("{")
    list_everything()
    shown = capsys.readouterr().out
    for word in ("sweep", "evaluate", "train", "export", "report", "toy", "Pb Ti O", "broken", "damaged"):
        assert word in shown
