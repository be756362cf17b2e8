"""Models for other programs: NEP files, and programs that run without jaxpto."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import ase.io
import model_contract as contract
import nep_files
import numpy as np
import pytest
from crystals import titanate
from small_fresh import small_fresh
from test_nep import NEP_CPU

from converters import nep as converter
from jaxpto import export_model
from jaxpto.console.command import run_command
from jaxpto.models.catalogue import load_potential
from jaxpto.models.folder import save_potential

LOADER = pathlib.Path(__file__).parents[1] / "docs" / "run_program.py"


def command(*words: object) -> int:
    return run_command("jaxpto.export_model", export_model.ExportModelConfig, export_model.run, list(map(str, words)))


@pytest.mark.parametrize("kind", nep_files.HEADERS)
def test_a_file_goes_in_and_out(kind: str, tmp_path: pathlib.Path) -> None:
    """Every number of the file, and its header but for the room for neighbours."""
    path = nep_files.write(tmp_path / "mine.txt", nep_files.HEADERS[kind])
    save_potential(converter.convert(path, "mine"), tmp_path / "model")
    assert command(tmp_path / "model", tmp_path / "again.txt") == 0
    before, after = (file.read_text().splitlines() for file in (path, tmp_path / "again.txt"))
    header = len(nep_files.HEADERS[kind])
    numbers = [np.array([float(line) for line in lines[header:]]) for lines in (before, after)]
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-7)
    for one, other in zip(before[:header], after[:header], strict=True):
        count = 3 if one.startswith("cutoff") else None
        assert words_of(one)[:count] == words_of(other)[:count]
    found = contract.predict(contract.cast(converter.convert(tmp_path / "again.txt", "x"), np.float64), titanate())
    np.testing.assert_allclose(found.energy, NEP_CPU[kind][0], atol=1e-6)


def words_of(line: str) -> list[str | float]:
    return [float(word) if word.replace(".", "").isdigit() else word for word in line.split()]


def test_a_model_trained_here_is_written(tmp_path: pathlib.Path) -> None:
    potential, _ = small_fresh("nep", titanate())
    save_potential(potential, tmp_path / "model")
    assert command(tmp_path / "model", tmp_path / "nep.txt") == 0
    again = converter.convert(tmp_path / "nep.txt", "x")
    assert again.model == potential.model
    one, other = (contract.predict(contract.cast(p, np.float64), titanate()) for p in (potential, again))
    contract.assert_same(one, other, 1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_program_runs_without_jaxpto(dtype: str, tmp_path: pathlib.Path) -> None:
    """With other positions and another cell than it was made for; too dense a crystal is told."""
    path = nep_files.write(tmp_path / "mine.txt", nep_files.HEADERS["nep4_zbl"])
    save_potential(converter.convert(path, "mine"), tmp_path / "model")
    atoms = titanate()
    ase.io.write(tmp_path / "atoms.extxyz", atoms)
    out = tmp_path / "mine.stablehlo"
    assert command(tmp_path / "model", out, "--structure", tmp_path / "atoms.extxyz", "--dtype", dtype) == 0
    facts = json.loads((tmp_path / "mine.stablehlo.json").read_text())
    assert facts["numbers"] == atoms.numbers.tolist()
    atoms.rattle(0.05, seed=3)
    atoms.set_cell(atoms.cell.array * 1.02, scale_atoms=True)
    energy, forces, stress, fits = ran(out, atoms, dtype, tmp_path)
    expected = contract.predict(contract.cast(load_potential(tmp_path / "model"), np.dtype(dtype).type), atoms)
    assert fits
    tolerance = 2e-5 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(energy, expected.energy, atol=tolerance)
    np.testing.assert_allclose(forces, expected.forces, atol=tolerance)
    np.testing.assert_allclose(stress, expected.stress, atol=tolerance)
    atoms.set_cell(atoms.cell.array * 0.6, scale_atoms=True)
    assert not ran(out, atoms, dtype, tmp_path)[3]


def ran(out: pathlib.Path, atoms: ase.Atoms, dtype: str, folder: pathlib.Path) -> list:
    """What the program gives in a process of its own."""
    np.savez(folder / "given.npz", positions=atoms.positions.astype(dtype), cell=atoms.cell.array.astype(dtype))
    words = [sys.executable, str(LOADER), str(out), str(folder / "given.npz")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["perovskite", "nep.txt"], "is no NEP model"),
        (["perovskite", "model.onnx"], "unknown kind of file"),
        (["perovskite", "a.stablehlo"], "name a --structure"),
        (["perovskite", "a.stablehlo", "--structure", "PbTiO3-cubic", "--headroom", "0"], "0: give a factor"),
        (["perovskite", "a.stablehlo", "--structure", "nowhere.cif"], "does not exist"),
        (["nothing", "nep.txt"], "nothing"),
        (["perovskite", "nowhere/nep.txt"], "its folder does not exist"),
    ],
)  # fmt: skip
def test_refuses_in_one_line(words: list[str], message: str, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert message in error
    assert not list(tmp_path.iterdir())
