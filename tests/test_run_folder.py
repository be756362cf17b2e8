"""A run's folder: one run at a time, nothing run over, room asked for, limits named before anything is built."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import ase
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpto.errors import InputError
from jaxpto.md.config import SweepConfig, check
from jaxpto.md.stored_run import trajectory_paths
from jaxpto.storage.lock import LOCK_FILE, is_empty, one_run
from jaxpto.storage.run_folder import (
    check_nothing_lost,
    check_unclaimed,
    mark_unsaved,
    read_config,
    remove_results,
    run_name,
    unmark_unsaved,
    write_config,
)
from jaxpto.storage.space import require_space
from jaxpto.storage.trajectory import (
    check_trajectory,
    create_trajectory,
    finalize_trajectory,
    trajectory_bytes,
    trajectory_origin,
    write_frames,
)
from jaxpto.structures import make_supercell
from jaxpto.system import System, check_atoms
from jaxpto.units import spell_kelvin

HOLDER = """
import sys, time
from jaxpto.storage.lock import one_run
with one_run(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
ARGON = System(jnp.zeros((1, 3)), jnp.eye(3) * 4, jnp.asarray([18], jnp.int32), jnp.asarray([39.95]))
FRAMES = {"step": np.arange(3), "time": np.arange(3.0), "position": np.zeros((3, 1, 3)), "cell": np.zeros((3, 3, 3))}


def trajectory(path: Path, origin: dict | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    create_trajectory(path, ARGON, 5, {}, origin)
    write_frames(path, 0, FRAMES)
    return path


def test_one_run_a_folder_until_its_holder_dies(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match=rf"in use by process {holder.pid} on \S+ since \d{{4}}-"), one_run(folder):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert os.listdir(folder) == [LOCK_FILE]
    assert is_empty(folder)
    check_unclaimed(folder, resume=False)
    with one_run(folder):
        assert json.loads((folder / LOCK_FILE).read_text())["pid"] == os.getpid()
        (folder / "result").touch()
    assert os.listdir(folder) == ["result"]


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="no model"), one_run(tmp_path / "a" / "b"):
        raise InputError("no model")
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"), one_run(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match="Not a directory; name a folder in a place"), one_run(tmp_path / "file" / "x"):
        pass


def test_frames_without_checkpoints_are_not_run_over(tmp_path):
    path = trajectory(tmp_path / "trajectories" / "300K.h5md")
    with pytest.raises(InputError, match=r"holds 3 frames, but .*checkpoints holds no checkpoint"):
        check_nothing_lost(tmp_path, [path])
    mark_unsaved(tmp_path)  # a run that was killed before its first checkpoint begins anew
    check_nothing_lost(tmp_path, [path])
    unmark_unsaved(tmp_path)
    create_trajectory(path, ARGON, 5, {})
    check_nothing_lost(tmp_path, [path])
    with pytest.raises(InputError, match=r"trajectories but no config\.json"):
        check_unclaimed(tmp_path, resume=True)


def test_a_run_that_goes_on_does_not_look_finished(tmp_path):
    for name in ("outcome.json", "summary.json", "report.html", "config.json", "lattice.png"):
        (tmp_path / name).touch()
    remove_results(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "lattice.png"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"config": {}, "identity": null}', "'identity'"),
        (b"{}", "'config'"),
        (b"[]", "'config'"),
        (b"", "not JSON"),
        ("{}".encode("utf-16"), "not JSON in UTF-8"),
        (b'{"config": "\xff"}', "not JSON in UTF-8"),
    ],
)
def test_a_damaged_config_is_one_line(tmp_path, content, words):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"config\.json is damaged, .*{words}.*; restore it"):
        read_config(tmp_path)


def test_a_run_has_a_name_of_its_own(tmp_path):
    names = [write_config(tmp_path / str(n), {"config": {}, "identity": {}}) for n in range(2)]
    assert names[0] != names[1]
    assert run_name(read_config(tmp_path / "0") or {}) == names[0]
    assert read_config(tmp_path) is None


def test_trajectories_know_where_they_belong(tmp_path):
    origin = {"run": "a1", "temperature_K": 300.0001, "replica": 2}
    path = trajectory(tmp_path / "300.0001K.h5md", origin)
    finalize_trajectory(path, 3)
    assert trajectory_origin(path) == origin
    check_trajectory(path, 3, origin)
    with pytest.raises(InputError, match=r"temperature_K is 300\.0001, not 600\.0; restore it from a copy, or remove"):
        check_trajectory(path, 3, origin | {"temperature_K": 600.0})
    with pytest.raises(InputError, match="its run is a1, not b2"):
        check_trajectory(path, 3, {"run": "b2"})
    os.truncate(path, 900)
    with pytest.raises(
        InputError, match=r"K\.h5md is cut or damaged; restore it from a copy, or remove the run"
    ) as cut:
        check_trajectory(path, 3, origin)
    assert "HDF5" not in str(cut.value)
    assert "superblock" not in str(cut.value)
    plain = trajectory(tmp_path / "old.h5md")  # of an earlier version
    check_trajectory(plain, 3, origin)


def test_names_hold_the_whole_temperature(tmp_path):
    assert [spell_kelvin(t) for t in (300.0, 1000.0, 300.0001, 0.1, 1 / 3)] == [
        "300", "1000", "300.0001", "0.1", "0.3333333333333333"
    ]  # fmt: skip
    close = SweepConfig(temperatures=(300.0001, 300.0002, math.nextafter(300.0002, 301.0)))
    check(close)
    assert len(set(trajectory_paths(tmp_path, close.temperatures))) == 3
    assert [path.name for path in trajectory_paths(tmp_path, [300.0])] == ["300K.h5md"]
    with pytest.raises(InputError, match=r"`temperatures=300\.0001`: is given twice"):
        check(SweepConfig(temperatures=(300.0001, 400.0, 300.0001)))


def test_space_is_asked_for(tmp_path):
    sizes = []
    for frames in (100, 5000):
        create_trajectory(tmp_path / "300K.h5md", ARGON, frames, {})
        sizes.append((tmp_path / "300K.h5md").stat().st_size)
    assert 0 <= sizes[1] - sizes[0] - trajectory_bytes(ARGON, 4900, {}) < 4096  # HDF5 rounds what it keeps itself
    nowhere = tmp_path / "not" / "yet"
    require_space(nowhere, 1000, "frames")
    with pytest.raises(
        InputError, match=r"takes 1000000000004 MB \(as told, 4 MB for figures and report\), \d+ MB are free"
    ):
        require_space(nowhere, 10**18, "as told")
    (tmp_path / "big").write_bytes(bytes(2_000_000))
    with pytest.raises(InputError, match="2 MB of it already there"):
        require_space(nowhere, 10**18, "as told", [tmp_path / "big", tmp_path / "missing"])
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 2**31}, "2000000000"),
        ({"temperatures": (1e30,)}, "100000 K"),
        ({"skin": 50.0}, "5 A"),
        ({"replicas": 1_000_000}, "10000"),
        ({"supercell": (2000, 2000, 2000)}, "smaller supercell"),
        ({"timestep": 1e-30}, "0.001 fs"),
        ({"pressure": 1e30}, "1000 GPa"),
    ],
)
def test_what_is_out_of_bounds_is_refused_at_once(changed, words):
    with pytest.raises(InputError, match=words):
        check(SweepConfig(**changed))


def test_cells_out_of_bounds_are_refused_before_they_are_built():
    cell = ase.Atoms("PbTiO3", np.random.default_rng(0).random((5, 3)), cell=[4, 4, 4], pbc=True)
    with pytest.raises(InputError, match=r"supercell 200 200 200: 40,000,000 atoms, at most 10,000,000"):
        make_supercell(cell, (200, 200, 200))
    with pytest.raises(InputError, match=r"1e\+06 A long, more than .*; give it in Angstrom"):
        check_atoms(ase.Atoms("Ar", cell=[1e6, 4, 4], pbc=True))
    with pytest.raises(InputError, match=r"0\.1 A wide"):
        check_atoms(ase.Atoms("Ar", cell=[0.1, 100, 100], pbc=True))
    check_atoms(ase.Atoms("Ar", cell=[20, 20, 20], pbc=True))
