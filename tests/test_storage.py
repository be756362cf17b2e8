"""Files and trajectories on the disk: real files, real kills, a real limit on what may be written."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Generator
from pathlib import Path

import ase.io
import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from child_process import Children, children

from jaxpto import export
from jaxpto.errors import InputError
from jaxpto.storage.files import StorageError, replacing, write_json_atomic, write_text_atomic
from jaxpto.storage.trajectory import (
    Quantity,
    check_trajectory,
    create_trajectory,
    finalize_trajectory,
    read_trajectory,
    valid_frames,
    write_frames,
)
from jaxpto.system import System

OBSERVABLES = {
    "potential_energy": Quantity((), "eV"),
    "static_stress": Quantity((3, 3), "eV Angstrom-3"),
    "polarization": Quantity((3,), "C m-2"),
    "quality": Quantity((), ""),
}


def make_system(n: int = 5, dtype: type = np.float32) -> System:
    numbers = np.resize([82, 22, 8, 8, 8], n).astype(np.int32)
    masses = np.resize([207.2, 47.867, 15.999, 15.999, 15.999], n).astype(dtype)
    arrays = (np.zeros((n, 3), dtype), np.eye(3, dtype=dtype) * 4, numbers, masses)
    return System(*[jnp.asarray(array) for array in arrays])


def make_frames(first: int, count: int, n: int = 5, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Frames whose every number depends on the frame's index alone, so that any mix-up shows."""
    each = [np.random.default_rng(index) for index in range(first, first + count)]
    draw = lambda *shape: np.array([rng.normal(size=shape) for rng in each], dtype).reshape(count, *shape)  # noqa: E731
    return {
        "step": np.arange(first, first + count) * 50,
        "time": np.arange(first, first + count) * 100.0,
        "position": draw(n, 3) * 20,
        "cell": np.eye(3, dtype=dtype)[None] * 4 + 0.1 * np.tril(draw(3, 3)),  # in standard orientation
        "potential_energy": draw(),
        "static_stress": draw(3, 3),
        "polarization": draw(3),
        "quality": draw(),
    }


def assert_holds(path: Path, count: int, n: int = 5, dtype: type = np.float32) -> None:
    stored, expected = read_trajectory(path), make_frames(0, count, n, dtype)
    assert stored.positions.dtype == stored.cells.dtype == stored.observables["static_stress"].dtype == dtype
    np.testing.assert_array_equal(stored.step, expected["step"])
    np.testing.assert_array_equal(stored.time, expected["time"])
    np.testing.assert_array_equal(stored.positions, expected["position"])
    np.testing.assert_array_equal(stored.cells, expected["cell"])
    np.testing.assert_array_equal(stored.rotation, np.tile(np.eye(3), (count, 1, 1)))
    for name in OBSERVABLES:
        np.testing.assert_array_equal(stored.observables[name], expected[name])


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Generator[Children]:
    """Child processes that have this module's names at hand."""
    with children(tmp_path_factory.mktemp("children"), "test_storage") as ready:
        yield ready


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_trajectory_returns_what_was_written_bit_for_bit(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "300K.h5md"
    create_trajectory(path, make_system(dtype=dtype), 10, OBSERVABLES)
    assert valid_frames(path) == 0
    write_frames(path, 0, make_frames(0, 4, dtype=dtype))
    write_frames(path, 4, make_frames(4, 6, dtype=dtype))
    assert_holds(path, 10, dtype=dtype)
    stored = read_trajectory(path)
    np.testing.assert_array_equal(stored.numbers, [82, 22, 8, 8, 8])
    np.testing.assert_array_equal(stored.masses, make_system(dtype=dtype).masses)
    assert stored.units == {
        "potential_energy": "eV",
        "static_stress": "eV Angstrom-3",
        "polarization": "C m-2",
        "quality": "",
    }
    assert os.listdir(tmp_path) == ["300K.h5md"]


def test_writing_frames_again_neither_loses_nor_doubles_any(tmp_path: Path) -> None:
    path = tmp_path / "t.h5md"
    create_trajectory(path, make_system(), 10, OBSERVABLES)
    write_frames(path, 0, make_frames(0, 8))
    before = path.read_bytes()
    write_frames(path, 4, make_frames(4, 4))
    assert path.read_bytes() == before
    write_frames(path, 4, make_frames(4, 2))  # the run went back and has come this far
    assert valid_frames(path) == 6
    check_trajectory(path, 6)
    with pytest.raises(InputError, match="holds 6 frames but the checkpoint counts 7"):
        check_trajectory(path, 7)
    with pytest.raises(InputError, match="is missing; restore it from a copy, or remove the run"):
        check_trajectory(tmp_path / "absent.h5md", 1)


def test_frames_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "t.h5md"
    create_trajectory(path, make_system(), 4, OBSERVABLES)
    write_frames(path, 0, make_frames(0, 2))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="do not fit"):
        write_frames(path, 3, make_frames(3, 1))  # a gap
    with pytest.raises(ValueError, match="do not fit"):
        write_frames(path, 2, make_frames(2, 3))  # beyond the end
    with pytest.raises(ValueError, match="shape"):
        write_frames(path, 2, make_frames(2, 1) | {"position": np.zeros((1, 4, 3), np.float32)})
    with pytest.raises(ValueError, match="the file needs"):
        write_frames(path, 2, {"step": np.arange(1)})
    with pytest.raises(ValueError, match="cannot name an observable"):
        create_trajectory(path, make_system(), 4, {"cell": Quantity((), "")})
    assert path.read_bytes() == before


@pytest.mark.parametrize("count", [0, 3, 10])
def test_finalize_cuts_to_the_valid_frames(tmp_path: Path, count: int) -> None:
    path = tmp_path / "t.h5md"
    create_trajectory(path, make_system(), 10, OBSERVABLES)
    write_frames(path, 0, make_frames(0, 10))
    finalize_trajectory(path, count)
    finalize_trajectory(path, count)  # once more changes nothing
    assert_holds(path, count)
    with h5py.File(path) as file:
        assert file["particles/trajectory/position/value"].shape == (count, 5, 3)
        assert file["observables/static_stress/step"].shape == (count,)
    with pytest.raises(ValueError, match="fewer than"):
        finalize_trajectory(path, count + 1)
    if count:
        write_frames(path, count - 1, make_frames(count - 1, 1))  # a redo may still write what is kept
        assert_holds(path, count)
    assert os.listdir(tmp_path) == ["t.h5md"]


def test_file_follows_h5md_1_1(tmp_path: Path) -> None:
    path = tmp_path / "t.h5md"
    create_trajectory(path, make_system(), 3, OBSERVABLES)
    write_frames(path, 0, make_frames(0, 3))
    finalize_trajectory(path, 2)
    with h5py.File(path) as file:
        assert file["h5md"].attrs["version"].tolist() == [1, 1]
        assert file["h5md/author"].attrs["name"]
        assert file["h5md/creator"].attrs["name"] == "jaxpto"
        assert file["h5md/creator"].attrs["version"]
        assert file["h5md/modules/units"].attrs["version"].tolist() == [1, 0]
        atoms = file["particles/trajectory"]
        assert atoms["box"].attrs["dimension"] == 3
        assert list(atoms["box"].attrs["boundary"]) == ["periodic"] * 3
        assert atoms["species"][()].tolist() == [82, 22, 8, 8, 8]
        for element in (atoms["position"], atoms["box/edges"], *file["observables"].values()):
            assert set(element) == {"step", "time", "value"}
            assert element["step"] == atoms["step"]
            assert element["time"] == atoms["time"]
            assert len(element["value"]) == 2
        assert atoms["position/time"].attrs["unit"] == "fs"
        assert atoms["position/value"].attrs["unit"] == atoms["box/edges/value"].attrs["unit"] == "Angstrom"
        assert file["observables/static_stress/value"].attrs["unit"] == "eV Angstrom-3"


def test_mdanalysis_reads_positions_cell_time_and_observables(tmp_path: Path) -> None:
    mdanalysis = pytest.importorskip("MDAnalysis", reason="MDAnalysis is not installed")
    path = tmp_path / "t.h5md"
    create_trajectory(path, make_system(), 4, OBSERVABLES)
    frames = make_frames(0, 4)
    write_frames(path, 0, frames)
    universe = mdanalysis.Universe(str(path))
    assert universe.trajectory.n_frames == 4
    for frame, moment in enumerate(universe.trajectory):
        np.testing.assert_array_equal(moment.positions, frames["position"][frame])
        expected = mdanalysis.lib.mdamath.triclinic_box(*frames["cell"][frame])
        np.testing.assert_allclose(moment.dimensions, expected, rtol=1e-6)
        assert moment.time == pytest.approx(frames["time"][frame] / 1000)  # MDAnalysis counts ps
        assert moment.data["step"] == frames["step"][frame]
        np.testing.assert_array_equal(moment.data["static_stress"], frames["static_stress"][frame])


def test_sigkill_at_any_moment_loses_no_frame(tmp_path: Path, child: Children) -> None:
    path, count = tmp_path / "t.h5md", 900
    create_trajectory(path, make_system(300), count, OBSERVABLES)
    moments, done, kills, deadline = random.Random(1), 0, 0, time.monotonic() + 12
    while kills < 12 and time.monotonic() < deadline:
        write_all = f"""
from test_storage import *
print("ready", flush=True)
for index in range({done}, {count}, 3):
    write_frames({str(path)!r}, index, make_frames(index, min(3, {count} - index), 300))
    print(min(index + 3, {count}), flush=True)
"""
        status, output = child.run_and_kill(write_all, lines=1, after=moments.uniform(0.0, 0.3))
        assert status in (0, -signal.SIGKILL), output
        reported, stored = output.split()[1:], valid_frames(path)
        assert stored >= (int(reported[-1]) if reported else done), "a frame that was reported durable is gone"
        assert_holds(path, stored, 300)
        kills += status == -signal.SIGKILL
        done = max(0, stored - moments.randrange(60))  # the checkpoint is behind: some frames are written again
    assert kills >= 2
    assert stored > 0
    write_frames(path, done, make_frames(done, count - done, 300))
    assert_holds(path, count, 300)


DIE_INSIDE_WRITE = """
import os, signal
from test_storage import *
whole, calls = os.pwrite, 0
def half(descriptor, content, offset):
    global calls
    calls += 1
    if calls <= {survived}:
        return whole(descriptor, content, offset)
    whole(descriptor, content[: len(content) // 2], offset)
    os.kill(os.getpid(), signal.SIGKILL)
os.pwrite = half
write_frames({path!r}, {first}, make_frames({first}, 4, 20))
"""


@pytest.mark.parametrize("first", [6, 3], ids=["append", "redo"])
def test_sigkill_inside_any_single_write_leaves_whole_frames_only(tmp_path: Path, child: Children, first: int) -> None:
    path, killed = tmp_path / "t.h5md", 0
    create_trajectory(path, make_system(20), 10, OBSERVABLES)
    write_frames(path, 0, make_frames(0, 6, 20))
    if first < 6:  # what is written again had other numbers, to tell old from new
        write_frames(path, first, make_frames(50, 6 - first, 20))
    before = path.read_bytes()
    while True:
        status, output = child.run(DIE_INSIDE_WRITE.format(survived=killed, path=str(path), first=first))
        assert status in (0, -signal.SIGKILL), output
        stored = valid_frames(path)
        assert first <= stored <= first + 4
        assert_holds(path, stored, 20)
        if status == 0:
            break
        killed += 1
        path.write_bytes(before)
    assert killed > len(OBSERVABLES)
    assert stored == first + 4


LIMIT_FILES = """
import resource
from test_storage import *
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    {call}
except StorageError as error:
    print(error)
"""


def test_a_disk_too_small_for_the_run_shows_at_creation(tmp_path: Path, child: Children) -> None:
    path = tmp_path / "t.h5md"
    call = f"create_trajectory({str(path)!r}, make_system(100), 1000, OBSERVABLES)"
    status, output = child.run(LIMIT_FILES.format(call=call))
    assert status == 0, output
    assert output.startswith(f"{path}: could not be written (1.4 MB needed): File too large; free space"), output
    assert len(output.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_a_write_that_the_disk_refuses_leaves_the_frames_before(tmp_path: Path, child: Children) -> None:
    path = tmp_path / "t.h5md"
    create_trajectory(path, make_system(100), 40, OBSERVABLES)
    write_frames(path, 0, make_frames(0, 2, 100))
    call = f"write_frames({str(path)!r}, 2, make_frames(2, 38, 100))"
    status, output = child.run(LIMIT_FILES.format(call=call))
    assert status == 0, output
    assert f"{path}: could not be written" in output
    assert "run again (a sweep with `resume=True`)" in output
    assert valid_frames(path) == 2
    assert_holds(path, 2, 100)
    write_frames(path, 2, make_frames(2, 38, 100))
    assert_holds(path, 40, 100)


def _write_half(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, child: Children) -> None:
    path = tmp_path / "summary.csv"
    write_text_atomic(path, "old")
    status, output = child.run(LIMIT_FILES.format(call=f"write_text_atomic({str(path)!r}, 'x' * 50_000)"))
    assert status == 0, output
    assert f"{path}: could not be written" in output
    assert path.read_text() == "old"
    with pytest.raises(KeyError):
        _write_half(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.csv"]
    write_text_atomic(path, "new")
    assert path.read_text() == "new"
    with pytest.raises(StorageError, match="could not be written"):
        write_text_atomic(tmp_path / "absent" / "file", "x")


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"a": np.float32(1.5), "b": [np.nan, np.arange(2)], "c": Path("x"), "d": None, "e": True})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "a": 1.5,
        "b": [None, [0, 1]],
        "c": "x",
        "d": None,
        "e": True,
    }


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    path = tmp_path / "300K.h5md"
    create_trajectory(path, make_system(dtype=np.float64), 6, OBSERVABLES)
    write_frames(path, 0, make_frames(0, 5, dtype=np.float64))
    return path


@pytest.mark.parametrize("name", ["frames.extxyz", "frames.traj", "frames.json", "XDATCAR"])
def test_export_to_ase_formats(trajectory: Path, name: str) -> None:
    out, frames = trajectory.parent / name, make_frames(0, 5, dtype=np.float64)
    assert export.run(export.ExportConfig(trajectory, out, every=2)) == 3
    stored = ase.io.read(out, ":")
    assert len(stored) == 3
    for atoms, frame in zip(stored, (0, 2, 4), strict=True):
        np.testing.assert_array_equal(atoms.numbers, [82, 22, 8, 8, 8])
        if name == "XDATCAR":  # holds 6 digits of the cell, and neither energies nor stresses
            np.testing.assert_allclose(atoms.cell.array, frames["cell"][frame], atol=1e-6)
            np.testing.assert_allclose(atoms.positions, frames["position"][frame], atol=2e-5)
            continue
        np.testing.assert_allclose(atoms.cell.array, frames["cell"][frame], atol=1e-7)
        np.testing.assert_allclose(atoms.positions, frames["position"][frame], atol=1e-8)
        assert atoms.get_potential_energy() == pytest.approx(frames["potential_energy"][frame], abs=1e-8)
        stress = frames["static_stress"][frame]
        symmetric = (stress + stress.T) / 2
        np.testing.assert_allclose(atoms.get_stress(voigt=False), symmetric, atol=1e-8)
    assert sorted(os.listdir(out.parent)) == sorted([trajectory.name, name])


def test_export_command_says_what_is_wrong_and_writes_nothing(trajectory: Path, child: Children) -> None:
    folder = trajectory.parent
    (folder / "taken.traj").write_text("precious")
    (folder / "noise.h5md").write_bytes(b"noise")
    refused = [
        (trajectory, folder / "taken.traj", 1, "exists; choose another name"),
        (trajectory, folder / "frames.nonsense", 1, "ASE writes no format"),
        (trajectory, folder / "POSCAR", 1, "holds one frame, not 5"),
        (trajectory, folder / "absent" / "x.traj", 1, "folder does not exist"),
        (trajectory, folder / "x.traj", 0, "--every 0: must be at least 1"),
        (folder / "noise.h5md", folder / "x.traj", 1, "not a readable H5MD file"),
    ]
    before = sorted(os.listdir(folder))
    for source, out, every, message in refused:
        with pytest.raises(InputError, match=message) as caught:
            export.run(export.ExportConfig(source, out, every))
        assert len(str(caught.value).splitlines()) == 1
    assert sorted(os.listdir(folder)) == before
    assert (folder / "taken.traj").read_text() == "precious"
    command = "import sys; from jaxpto.export import main; sys.exit(main({!r}))"
    arguments = [str(trajectory), str(folder / "frames.extxyz"), "--every", "2"]
    assert child.run(command.format(arguments)) == (0, f"3 frames written to {folder / 'frames.extxyz'}\n")
    status, output = child.run(command.format(arguments))
    assert status == 2
    assert output == f"jaxpto.export: output {folder / 'frames.extxyz'} exists; choose another name, or remove it\n"
