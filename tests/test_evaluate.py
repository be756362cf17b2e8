"""The evaluate command: every frame of every file, read back by ASE with the very same numbers."""

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from jaxpto.calculator import JaxptoCalculator
from jaxpto.evaluate import EvaluateConfig, main, run
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.structures.write import write_frames


@pytest.fixture(scope="module")
def noble():
    return lennard_jones(["Ar", "Kr"], [0.0104, 0.0140], [3.40, 3.65], 5.0, 4.5, np.float64)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, noble):
    """Two files, two compositions, interleaved; the first frame carries constraints, metadata and foreign results."""
    folder = tmp_path_factory.mktemp("inputs")
    save_potential(noble, folder / "noble")
    small = [bulk("Kr", "fcc", a) for a in (5.6, 5.8)]
    large = [bulk("Ar", "fcc", a, cubic=True) for a in (5.2, 5.3)]
    for seed, atoms in enumerate(large):
        atoms.rattle(0.1, seed=seed)
    large[0].info |= {"label": "first one", "temperature": 300.5}
    large[0].set_constraint(FixAtoms([0]))
    ase.io.write(folder / "mixed.traj", [large[0], small[0], large[1]])
    ase.io.write(folder / "single.vasp", small[1])
    return folder


@pytest.fixture(scope="module")
def evaluated(inputs):
    files = (str(inputs / "mixed.traj"), str(inputs / "single.vasp"))
    return run(EvaluateConfig(files, str(inputs / "noble"), inputs / "new" / "out.traj"))


def test_order_and_values(inputs, evaluated, noble):
    originals = [*ase.io.read(inputs / "mixed.traj", ":"), ase.io.read(inputs / "single.vasp")]
    assert [len(atoms) for atoms in evaluated] == [4, 1, 4, 1]
    for original, atoms in zip(originals, evaluated, strict=True):
        fresh = original.copy()
        fresh.set_constraint()
        fresh.calc = JaxptoCalculator(noble)
        np.testing.assert_array_equal(atoms.positions, original.positions)
        assert atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy(), abs=1e-13)
        np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-13)
        np.testing.assert_allclose(atoms.get_stress(), fresh.get_stress(), atol=1e-14)
    assert np.abs(evaluated[0].get_forces()[0]).max() > 0  # not zeroed by the constraint


@pytest.mark.parametrize("suffix", [".extxyz", ".traj", ".json"])
def test_every_digit_comes_back(tmp_path, evaluated, suffix):
    awkward = [atoms.copy() for atoms in evaluated]
    awkward[2].positions[0] += [-7.1e3, 1 / 3, 1e-9]
    for atoms, source in zip(awkward, evaluated, strict=True):
        atoms.calc = SinglePointCalculator(atoms, **source.calc.results)
    path = tmp_path / f"out{suffix}"
    write_frames(awkward, path)
    read = ase.io.read(path, ":")
    assert len(read) == 4
    for before, after in zip(awkward, read, strict=True):
        np.testing.assert_array_equal(after.numbers, before.numbers)
        np.testing.assert_array_equal(after.positions, before.positions)
        np.testing.assert_array_equal(after.cell.array, before.cell.array)
        assert after.pbc.all()
        assert after.get_potential_energy() == before.get_potential_energy()
        np.testing.assert_array_equal(after.get_forces(), before.get_forces())
        np.testing.assert_array_equal(after.get_stress(), before.get_stress())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix != ".json":
        assert read[0].info["label"] == "first one"
        assert read[0].info["temperature"] == 300.5


def test_command_writes_and_reports(inputs, tmp_path, capsys):
    out = tmp_path / "out.extxyz"
    arguments = [str(inputs / "single.vasp"), "--model", str(inputs / "noble"), "--out", str(out)]
    assert main(arguments) == 0
    assert str(out) in capsys.readouterr().out
    assert ase.io.read(out).get_potential_energy() < 0
    before = out.read_bytes()
    assert main(arguments) == 2
    assert out.read_bytes() == before
    assert main([*arguments, "--overwrite", "--dtype", "float32"]) == 0
    assert out.read_bytes() != before


def test_failed_write_leaves_the_old_file(tmp_path, evaluated, monkeypatch):
    path = tmp_path / "out.extxyz"
    path.write_text("old")
    monkeypatch.setattr("jaxpto.structures.write.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_frames(evaluated, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.extxyz"]
