"""The relax command from end to end: what it writes, says and refuses."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.relax import RelaxConfig, main, run
from jaxpto.relaxation import batched
from jaxpto.relaxation.output import unique_names


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of argon; hexagonal argon, and a file of two cubic ones of which one is a supercell, in other folders."""
    folder = tmp_path_factory.mktemp("relax")
    save_potential(lennard_jones(["Ar"], [0.0104], [3.40], 8.0, 7.0, np.float64), folder / "argon")
    (folder / "other").mkdir()
    ase.io.write(folder / "crystal.vasp", bulk("Ar", "hcp", a=3.7, c=6.2))
    double = bulk("Ar", "fcc", 5.4).repeat((1, 1, 2))
    double.info |= {"label": "the double one", "number": 3}
    ase.io.write(folder / "other" / "crystal.extxyz", [bulk("Ar", "fcc", 5.2), double])
    return folder


def arguments(workplace: Path, *more: str) -> list[str]:
    files = [str(workplace / "crystal.vasp"), str(workplace / "other" / "crystal.extxyz")]
    return [*files, "--model", str(workplace / "argon"), *more]


@pytest.mark.parametrize("method", ["bfgs", "batched"])
def test_from_end_to_end(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "new" / "out"
    assert main(arguments(workplace, "--out", str(out), "--fmax", "1e-5", "--method", method)) == 0
    names = ["crystal-1", "crystal-2", "crystal-3"]
    document = json.loads((out / "relaxation.json").read_text())
    assert (document["model"], document["conservative"], document["symprec_A"]) == ("argon", True, 1e-3)
    assert document["missing"] == []
    found = document["structures"]
    assert [entry["name"] for entry in found] == names
    assert [entry["formula"] for entry in found] == ["Ar2", "Ar", "Ar2"]
    assert [entry["space_group_after"]["number"] for entry in found] == [194, 225, 225]
    assert all(entry["converged"] and entry["residual_eV_per_A"] < 1e-5 for entry in found)
    assert found[1]["a"] == pytest.approx(found[2]["a"], abs=1e-3)
    per_atom = np.array([entry["energy_eV_per_atom"] for entry in found])
    differences = [entry["difference_meV_per_formula_unit"] for entry in found]
    np.testing.assert_allclose(differences, 1e3 * (per_atom - per_atom.min()), atol=1e-9)
    assert max(differences) > 1e-3

    with (out / "convergence.csv").open() as file:
        rows = list(csv.DictReader(file))
    for entry in found:
        own = [row for row in rows if row["structure"] == entry["name"]]
        assert [int(row["step"]) for row in own] == list(range(entry["steps"] + 1))
        assert float(own[-1]["residual_eV_per_A"]) == entry["residual_eV_per_A"]
        assert float(own[-1]["volume_A3"]) == pytest.approx(entry["volume_A3"])
        exact = ase.io.read(out / "relaxed" / f"{entry['name']}.extxyz")
        assert exact.get_potential_energy() == entry["energy_eV"]
        assert np.linalg.norm(exact.get_forces(), axis=1).max() == pytest.approx(entry["residual_force_eV_per_A"])
        np.testing.assert_allclose(
            exact.cell.cellpar(), [entry[key] for key in ("a", "b", "c", "alpha", "beta", "gamma")]
        )
        plain = ase.io.read(out / "relaxed" / f"{entry['name']}.vasp")
        away = plain.get_scaled_positions() - exact.get_scaled_positions()
        np.testing.assert_allclose(away, np.round(away), atol=1e-9)  # the same up to lattice translations
        np.testing.assert_allclose(plain.cell.array, exact.cell.array, atol=1e-9)
    assert ase.io.read(out / "relaxed" / "crystal-3.extxyz").info["label"] == "the double one"

    config = json.loads((out / "config.json").read_text())
    assert config["config"]["method"] == method
    assert {"versions", "hardware", "git", "command"} <= config.keys()
    printed = capsys.readouterr()
    assert printed.err == ""
    for words in ("crystal-1", "P6_3/mmc (194)", "Fm-3m (225)", "converged", f"{found[0]['a']:.4f}", str(out)):
        assert words in printed.out.replace("\n", "")
    assert max(map(len, printed.out.replace(str(out), "").splitlines())) <= 80


def test_what_is_not_converged_is_written_and_told(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(workplace, "--out", str(out), "--fmax", "1e-5", "--steps", "2", "--pressure", "0.1")) == 1
    printed = capsys.readouterr()
    assert printed.err == "jaxpto.relax: not converged: crystal-1, crystal-2, crystal-3 (3 of 3)\n"
    assert "NOT converged: 2 steps done" in " ".join(printed.out.split())
    for entry in json.loads((out / "relaxation.json").read_text())["structures"]:
        assert (entry["converged"], entry["reason"], entry["steps"]) == (False, "2 steps done", 2)
        expected = entry["energy_eV"] + 0.1 * 0.006241509 * entry["volume_A3"]
        assert entry["enthalpy_eV"] == pytest.approx(expected, abs=1e-8)
        assert (out / "relaxed" / f"{entry['name']}.vasp").exists()


def test_wrapped_calculators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write(tmp_path / "copper.vasp", bulk("Cu", "fcc", 3.5))
    ase.io.write(tmp_path / "gold.vasp", bulk("Au", "fcc", 4.0))
    files = (str(tmp_path / "copper.vasp"), str(tmp_path / "gold.vasp"))
    entries = run(RelaxConfig(files, "ase:ase.calculators.emt:EMT", tmp_path / "out"))
    assert [entry.relaxed.converged for entry in entries] == [True, True]
    assert [entry.difference for entry in entries] == [None, None]  # other formulas
    for entry, path in zip(entries, files, strict=True):
        atoms = ase.io.read(path)
        atoms.calc = EMT()
        with BFGS(FrechetCellFilter(atoms), logfile=None) as driver:
            assert driver.run(fmax=1e-3, steps=100)
        np.testing.assert_allclose(entry.relaxed.atoms.cell.array, atoms.cell.array, atol=1e-10)
    document = json.loads((tmp_path / "out" / "relaxation.json").read_text())
    assert document["conservative"] is None
    assert "need not be derivatives of its energy" in " ".join(capsys.readouterr().out.split())


def test_finished_structures_outlive_the_end_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A calculator that has the process terminated, as a batch system does, when it comes to gold."""
    (tmp_path / "impatient.py").write_text(
        "import os, signal\nfrom ase.calculators.emt import EMT\n\n"
        "class Impatient(EMT):\n"
        "    def calculate(self, atoms=None, *args):\n"
        "        if atoms.numbers[0] == 79 and atoms.cell[0, 1] != 2.0:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        super().calculate(atoms, *args)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, atoms in (("gold", bulk("Au", "fcc", 4.0)), ("copper", bulk("Cu", "fcc", 3.5))):
        ase.io.write(tmp_path / f"{name}.vasp", atoms)
    files = [str(tmp_path / "gold.vasp"), str(tmp_path / "copper.vasp")]
    before = signal.getsignal(signal.SIGTERM)
    out = tmp_path / "out"
    assert main([*files, "--model", "ase:impatient:Impatient", "--out", str(out)]) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    printed = capsys.readouterr()
    assert printed.err == "jaxpto.relax: interrupted; the same command with --resume goes on\n"
    assert "1 of 2 structures are finished" in printed.out
    document = json.loads((out / "relaxation.json").read_text())
    assert document["missing"] == ["gold"]
    (found,) = document["structures"]
    assert (found["name"], found["converged"]) == ("copper", True)
    assert (out / "relaxed" / "copper.vasp").exists()

    (tmp_path / "impatient.py").write_text("from ase.calculators.emt import EMT as Impatient\n")
    monkeypatch.delitem(sys.modules, "impatient")
    copper = (out / "relaxed" / "copper.extxyz").read_bytes()
    assert main([*files, "--model", "ase:impatient:Impatient", "--out", str(out), "--resume"]) == 0
    assert "1 of 2 structures were finished before" in capsys.readouterr().out
    document = json.loads((out / "relaxation.json").read_text())
    assert [(found["name"], found["converged"]) for found in document["structures"]] == [
        ("gold", True),
        ("copper", True),
    ]
    assert document["missing"] == []
    assert (out / "relaxed" / "copper.extxyz").read_bytes() == copper


@pytest.mark.parametrize(("method", "mask"), [("bfgs", "fixed"), ("batched", "full")])
def test_a_resumed_run_gives_what_an_uninterrupted_one_does(
    workplace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    mask: str,
) -> None:
    """Bit for bit, from what a kill leaves behind: config.json, and the structures that were finished by then."""
    monkeypatch.setattr(batched, "ATOMS_AT_ONCE", {"cpu": 4})  # two lanes for the three alike
    starts = [bulk("Ar", "hcp", a=a, c=c) for a, c in ((3.7, 6.2), (3.9, 6.0), (3.6, 6.4))]
    for seed, start in enumerate(starts):
        start.rattle(0.05, seed=seed)
    ase.io.write(tmp_path / "hexagonal.traj", starts)
    ase.io.write(tmp_path / "cubic.traj", bulk("Ar", "fcc", 5.2))
    given = [str(tmp_path / "hexagonal.traj"), str(tmp_path / "cubic.traj"), "--model", str(workplace / "argon")]
    given += ["--fmax", "1e-3", "--method", method, "--mask", mask, "--out", str(tmp_path / "out")]
    assert main(given) == 0
    out, results = tmp_path / "out", ("relaxation.json", "convergence.csv", "relaxed")
    straight = {path: path.read_bytes() for name in results for path in _files(out / name)}
    assert len(straight) == 2 + 2 * 4
    for path in straight:
        path.unlink()
    (out / "finished" / "hexagonal-2.npz").unlink()
    (out / "finished" / "hexagonal-3.npz").write_bytes((out / "finished" / "hexagonal-3.npz").read_bytes()[:-40])
    capsys.readouterr()

    for options, words in (
        (["--fmax", "1e-5", "--steps", "9"], "fmax was 0.001, now 1e-05; steps was 500, now 9"),
        (["--dtype", "float32"], "dtype was float64, now float32; the model is another one"),
    ):
        assert main([*given, *options, "--resume"]) == 2
        assert words in capsys.readouterr().err
    assert main([*given[1:], "--resume"]) == 2
    assert "structure hexagonal-1 is missing; structure hexagonal-2 is missing" in capsys.readouterr().err
    assert main(given) == 2
    assert "--resume to finish its run" in capsys.readouterr().err

    assert main([*given, "--resume"]) == 0
    said = capsys.readouterr()
    assert "2 of 4 structures were finished before" in said.out
    assert said.err.count("\n") == 1
    assert "hexagonal-3.npz: damaged (" in said.err
    assert straight == {path: path.read_bytes() for name in results for path in _files(out / name)}

    heavy = bulk("Ar", "fcc", 5.2)
    heavy.set_masses([36.0])
    ase.io.write(tmp_path / "cubic.traj", heavy)
    assert main([*given, "--resume"]) == 2
    assert "structure cubic is another one" in capsys.readouterr().err


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def test_single_precision_needs_no_flag(workplace: Path, tmp_path: Path) -> None:
    """In a process of its own, where JAX's 64-bit mode is off."""
    command = [sys.executable, "-m", "jaxpto.relax", str(workplace / "crystal.vasp"), "--out", str(tmp_path / "out")]
    command += ["--model", str(workplace / "argon"), "--dtype", "float32", "--method", "batched"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = json.loads((tmp_path / "out" / "relaxation.json").read_text())["structures"]
    assert found["space_group_after"]["number"] == 194


@pytest.mark.parametrize(
    ("files", "options", "value", "remedy"),
    [
        ([], [], "no structure given", "name one or more"),
        (["missing.vasp"], [], "missing.vasp does not exist", "PbTiO3-tetragonal"),
        (["held.traj"], [], r"held.traj frame 1: constraints (FixAtoms)", "remove them"),
        (["PbTiO3-cubic"], [], "does not know Pb, Ti, O", "it knows Ar"),
        (["crystal.vasp"], ["--fmax", "-1"], "fmax -1", "1e-3 is usual"),
        (["crystal.vasp"], ["--steps", "0"], "steps 0", "at least 1"),
        (["crystal.vasp"], ["--mask", "fixed", "--pressure", "1"], "pressure 1 GPa", "use the mask full"),
        (["crystal.vasp"], ["--mask", "shear"], "shear", "'full'"),
        (["crystal.vasp"], ["--out", "other"], "--out other exists and is not empty", "new folder"),
        (["crystal.vasp"], ["--out", "crystal.vasp"], "--out crystal.vasp is a file", "name a folder"),
        (["crystal.vasp"], ["--model", "agron"], "unknown model 'agron'", "known models"),
        (
            ["copper.vasp"],
            ["--model", "ase:ase.calculators.emt:EMT", "--method", "batched"],
            "ase:ase.calculators.emt:EMT runs in Python",
            "--method bfgs or fire",
        ),
    ],
)
def test_bad_input_is_one_line(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    options: list[str],
    value: str,
    remedy: str,
) -> None:
    monkeypatch.chdir(workplace)
    held = bulk("Ar", "fcc", 5.4)
    held.set_constraint(FixAtoms([0]))
    ase.io.write("held.traj", [bulk("Ar", "fcc", 5.4), held])
    ase.io.write("copper.vasp", bulk("Cu"))
    given = [*files, *options]
    given += [] if "--model" in given else ["--model", "argon"]
    given += [] if "--out" in given else ["--out", "new"]
    before = sorted(workplace.rglob("*"))
    assert main(given) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert value in message
    assert remedy in message
    assert sorted(workplace.rglob("*")) == before


def test_names_are_unique() -> None:
    assert unique_names(["a/x.vasp", "y.cif"]) == ["x", "y"]
    assert unique_names(["a/x.vasp", "b/x.vasp", "x-1.cif", "PbTiO3-cubic"]) == ["x-2", "x-3", "x-1", "PbTiO3-cubic"]
    assert len(set(unique_names(["x", "x-1", "x-1", "x", "x-2"]))) == 5
