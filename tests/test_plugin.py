"""Models that other packages bring, by the example package as it is installed."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "jaxpto-buckingham"
BUILD = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the wheel of the package unpacked in it, which is all that an installation does."""
    folder = tmp_path_factory.mktemp("site")
    source = folder / "source"
    shutil.copytree(EXAMPLE, source)
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "packages")
    return folder / "packages"


def run(installed: pathlib.Path, folder: pathlib.Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(installed), str(EXAMPLE.parents[1])])
    models = {"JAXPTO_MODELS": str(folder / "models"), "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=os.environ | models, capture_output=True, text=True
    )  # fmt: skip


def test_a_package_brings_an_architecture(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Its model is made by its own command, evaluated against a sum over pairs, listed, and trained."""
    (tmp_path / "models").mkdir()
    made = run(installed, tmp_path / "models", "-m", "jaxpto_buckingham", "argon")
    assert made.returncode == 0, made.stderr
    code = """
import numpy as np
from ase.build import bulk
from ase.neighborlist import neighbor_list
from jaxpto import JaxptoCalculator
atoms = bulk("Ar", "fcc", a=5.2, cubic=True)
atoms.rattle(0.1, seed=0)
atoms.calc = JaxptoCalculator("argon", dtype="float64")
r = neighbor_list("d", atoms, 8.0)
pairs = 0.5 * np.sum((5000.0 * np.exp(-r / np.float32(0.30)) - 65.0 / r**6) * (1.0 - (r / 8.0) ** 2) ** 3)
print(atoms.get_potential_energy(), pairs)
assert abs(atoms.get_potential_energy() - pairs) < 1e-6
from jaxpto.models.fresh import trainable_architectures
assert "buckingham" in trainable_architectures()
"""
    assert (done := run(installed, tmp_path, "-c", code)).returncode == 0, done.stdout + done.stderr
    listed = run(installed, tmp_path, "-m", "jaxpto")
    assert listed.returncode == 0, listed.stderr
    assert "argon" in listed.stdout


def test_a_package_that_fails_costs_no_other_model(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    broken = tmp_path / "packages"
    shutil.copytree(installed, broken)
    (broken / "jaxpto_buckingham.py").write_text("PLUGIN = 1 / 0\n")
    done = run(broken, tmp_path, "-c", "from jaxpto import load_potential; print(load_potential('perovskite').name)")
    assert done.returncode == 0
    assert done.stdout.strip() == "perovskite"
    assert "models of the package jaxpto-buckingham are left out: division by zero" in done.stderr
