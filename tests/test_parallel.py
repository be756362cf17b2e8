"""Many devices and processes: the numbers of one device, whole checkpoints, and one line when a process is lost."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import ase.build
import ase.io
import jax
import numpy as np
import pytest
from test_dynamics import begin, go, make

from jaxpto import sweep
from jaxpto.console.command import run_command
from jaxpto.devices import sharding
from jaxpto.devices.abort_filter import explain
from jaxpto.devices.processes import Processes
from jaxpto.md import loop
from jaxpto.md.batch import Batch
from jaxpto.md.config import SweepConfig
from jaxpto.md.initial import begin as begin_batch
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.observables.observable import Sample
from jaxpto.storage.trajectory import read_trajectory
from jaxpto.system import from_ase

HERE = pathlib.Path(__file__).parent


def environment(devices: int) -> dict[str, str]:
    """Environment of a child process with so many virtual CPU devices."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": flags}


def child(code: str, devices: int) -> dict:
    """Run code in a child process; it prints one JSON object last."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(devices))
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_eight_devices_and_a_padded_batch_give_the_numbers_of_one():
    """8 replicas on 8 devices, and 5 on 4: three places are filled up. Float64, so that rounding stays small."""
    found = child(
        """
import json
import jax
jax.config.update("jax_enable_x64", True)
from test_dynamics import *
found = {"devices": len(jax.local_devices())}
temperatures = tuple(10.0 + 5.0 * replica for replica in range(8))
setup = make("nvt", temperatures=temperatures, steps=40)
all_on_one, _ = go(setup, *begin(setup), devices=1)
for replicas, devices in ((8, 8), (5, 4)):
    setup = make("nvt", temperatures=temperatures[:replicas], steps=40)
    spread, chunks = go(setup, *begin(setup), devices=devices)
    one = jax.tree.map(lambda x: x[:, :replicas], all_on_one)
    used = chunks[-1].states.momenta.sharding.device_set
    found[str(replicas)] = {
        "used": len(used),
        "moved": float(abs(one.positions - one.positions[:1]).max()),
        "positions": float(abs(one.positions - spread.positions).max()),
        "conserved": float(abs(one.values["conserved"] - spread.values["conserved"]).max()),
        "valid": bool(spread.valid.all()),
    }
print(json.dumps(found))
""",
        devices=8,
    )
    assert found["devices"] == 8
    for replicas, used in (("8", 8), ("5", 4)):
        assert found[replicas]["used"] == used
        assert found[replicas]["valid"]
        assert found[replicas]["moved"] > 1e-2
        assert found[replicas]["positions"] < 1e-10
        assert found[replicas]["conserved"] < 1e-10


@pytest.fixture(scope="module")
def argon(tmp_path_factory) -> list[str]:
    """Arguments for a quick run of four replicas; in a crystal, friction keeps rounding from growing."""
    folder = tmp_path_factory.mktemp("argon")
    ase.io.write(folder / "argon.vasp", ase.build.bulk("Ar", "fcc", a=5.3, cubic=True))
    save_potential(lennard_jones(["Ar"], [0.0103], [3.40], cutoff=6.0, onset=5.0), folder / "lj")
    return [
        str(folder / "argon.vasp"), "--model", str(folder / "lj"), "--supercell", "2", "2", "2", "--ensemble", "nvt",
        "--temperatures", "5", "10", "15", "20", "--timestep", "4", "--sample-every", "10", "--steps", "4000",
        "--checkpoint-every", "0.2", "--dtype", "float64",
    ]  # fmt: skip


def start(arguments: list[str], devices: int, *, process: tuple[int, str] | None = None) -> subprocess.Popen[str]:
    """Start a sweep; `process` is its number and the address of process 0, of two."""
    if process is not None:
        index, address = process
        arguments = [*arguments, "--distributed", f"{address},2,{index}", "--distributed-timeout", "10"]
    return subprocess.Popen(
        [sys.executable, "-m", "jaxpto.sweep", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(devices),
    )  # fmt: skip


def start_two(arguments: list[str], devices: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [start(arguments, devices, process=(index, address)) for index in range(2)]


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that ends by itself."""
    try:
        out, err = process.communicate(timeout=600)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return process.returncode, out, err


def wait_for_checkpoint(folder: pathlib.Path, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if list(folder.glob("checkpoints/step_*")):
            return
        time.sleep(0.05)
    pytest.fail("there was no checkpoint in time: " + "; ".join(str(process.poll()) for process in processes))


def difference(first: pathlib.Path, second: pathlib.Path) -> float:
    """Largest difference of any stored number of two runs with the same frames, Angstrom or eV."""
    largest = 0.0
    names = sorted(path.name for path in (first / "trajectories").iterdir())
    assert names == sorted(path.name for path in (second / "trajectories").iterdir())
    for name in names:
        one, other = (read_trajectory(folder / "trajectories" / name) for folder in (first, second))
        assert one.step.tolist() == other.step.tolist()
        pairs = [(one.positions, other.positions), (one.cells, other.cells)]
        pairs += [(v, other.observables[key]) for key, v in one.observables.items() if key != "polarization"]
        largest = max([largest, *(float(abs(a - b).max()) for a, b in pairs)])
    return largest


@pytest.fixture(scope="module")
def finished(argon, tmp_path_factory) -> pathlib.Path:
    """The run of one process with four devices."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    code, _, error = finish(start([*argon, "--out", str(folder)], devices=4))
    assert (code, error) == (0, "")
    return folder


def broken(argon: list[str], folder: pathlib.Path, victim: int) -> tuple[int, str, str]:
    """Start a run of two processes and kill one after the first checkpoint; how the other one ended."""
    pair = start_two([*argon, "--out", str(folder)], devices=2)
    wait_for_checkpoint(folder, pair)
    pair[victim].send_signal(signal.SIGKILL)
    outcome = finish(pair[1 - victim])
    finish(pair[victim])
    return outcome


def check_one_line(outcome: tuple[int, str, str], victim: int) -> None:
    code, out, error = outcome
    assert code not in (0, 2)
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("jaxpto.sweep: ")
    assert "gone" in error
    assert "--resume" in error
    assert "process 1" in error or victim == 0
    assert ("compiling" in out) is (victim == 1)  # process 1 prints nothing


def in_two(arguments: list[str]) -> str:
    """Run two processes to their end; what the first one printed."""
    outcomes = [finish(process) for process in start_two(arguments, devices=2)]
    assert [(code, error) for code, _, error in outcomes] == [(0, ""), (0, "")]
    assert "in each of 2 processes" in outcomes[0][1]
    assert outcomes[1][1] == ""
    return outcomes[0][1]


@pytest.fixture(scope="module")
def finished_in_two(argon, tmp_path_factory) -> pathlib.Path:
    """The run of two processes with two devices each."""
    folder = tmp_path_factory.mktemp("two") / "run"
    in_two([*argon, "--out", str(folder)])
    return folder


def test_two_processes_give_the_numbers_of_one(finished, finished_in_two):
    assert difference(finished, finished_in_two) < 1e-9
    names = {path.name for path in finished.iterdir()}
    assert {path.name for path in finished_in_two.iterdir()} == names
    rows = [json.loads((folder / "summary.json").read_text()) for folder in (finished, finished_in_two)]
    assert [row["temperature_K"] for row in rows[0]] == [row["temperature_K"] for row in rows[1]] == [5, 10, 15, 20]
    outcome = json.loads((finished_in_two / "outcome.json").read_text())
    assert [replica["status"] for replica in outcome["replicas"]] == ["ok"] * 4


def test_a_killed_process_ends_the_other_and_one_process_goes_on(argon, finished, tmp_path):
    """Process 0, with which the means to talk go; then one process with one device takes over all replicas."""
    folder = tmp_path / "run"
    check_one_line(broken(argon, folder, 0), 0)
    code, out, error = finish(start([*argon, "--out", str(folder), "--resume"], devices=1))
    assert (code, error) == (0, "")
    assert "continuing after" in out
    assert difference(finished, folder) < 1e-9


@pytest.mark.slow
def test_a_broken_run_of_two_processes_goes_on_in_two_bit_for_bit(argon, finished_in_two, tmp_path):
    folder = tmp_path / "run"
    check_one_line(broken(argon, folder, 1), 1)
    assert "continuing after" in in_two([*argon, "--out", str(folder), "--resume"])
    assert difference(finished_in_two, folder) == 0.0
    assert (finished_in_two / "summary.csv").read_text() == (folder / "summary.csv").read_text()


@pytest.mark.slow
def test_a_run_begun_on_eight_devices_goes_on_on_one_and_the_other_way_round(argon, finished, tmp_path):
    for first, second in ((8, 1), (1, 8)):
        folder = tmp_path / f"from{first}"
        process = start([*argon, "--out", str(folder)], devices=first)
        wait_for_checkpoint(folder, [process])
        process.send_signal(signal.SIGKILL)
        finish(process)
        code, out, error = finish(start([*argon, "--out", str(folder), "--resume"], devices=second))
        assert (code, error) == (0, "")
        assert "continuing after" in out
        assert difference(finished, folder) < 1e-9


def test_processes_with_different_settings_end_with_a_line_each(argon, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    out = ["--out", str(tmp_path / "run")]
    pair = [start([*argon, *out, *more], 1, process=(i, address)) for i, more in enumerate(([], ["--timestep", "3"]))]
    (first, _, told), (second, _, error) = [finish(process) for process in pair]
    assert (first, second) == (1, 2)
    assert re.fullmatch(r"jaxpto\.sweep: .*timestep was 4\.0, now 3\.0.*\n", error)
    assert re.fullmatch(r"jaxpto\.sweep: process 1 of 2 ended: .*timestep was 4\.0, now 3\.0.*\n", told)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--distributed", "here"], ["here", "HOST:PORT,N,I"]),
        (["--distributed", "localhost:1234,2,2"], ["process 2 of 2"]),
        (["--distributed", "slurm"], ["SLURM_PROCID", "srun"]),
        (["--distributed-timeout", "0"], ["distributed-timeout 0"]),
        (["--devices-per-replica", "0"], ["devices-per-replica 0"]),
        (["--devices-per-replica", "64"], ["this process has 2"]),
        (["--devices-per-replica", "2", "--model", "perovskite", "--supercell", "1", "1", "1"], ["5 atoms", "take 1"]),
        (["--devices-per-replica", "2", "--model", "ase:ase.calculators.emt:EMT"], ["cannot be shared"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(argon, tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    structure = [] if "perovskite" in options else argon
    arguments = [*structure, *options, "--out", str(tmp_path / "run")]
    assert run_command("jaxpto.sweep", SweepConfig, sweep.run, arguments) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()


def test_replicas_are_dealt_out_without_gap_or_overlap():
    for n in range(1, 20):
        for count in range(1, n + 1):
            parts = [Processes(index, count).own(n) for index in range(count)]
            assert [r for part in parts for r in range(n)[part]] == list(range(n))
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1


def test_every_abort_is_explained():
    unhealthy = b"F1123 ] ...: The following tasks are unhealthy (stopped sending heartbeats):\n12\n    @ 0x7f\n"
    assert explain(unhealthy).startswith("process 12 of the run is gone")
    assert "not all processes" in explain(b"F1123 ... RPC: /xla.coordination.CoordinationService/RegisterTask\n")
    assert explain(b"F1123 ... Socket closed").startswith("another process")


def shared_run(setup: Batch, devices: int, headroom: float) -> tuple[Sample, list[loop.Chunk]]:
    """As `go`, with each replica's edges over so many devices."""
    system = from_ase(setup.atoms, np.float64)
    layout = sharding.divisible(setup.potential.allocate([system], 0.4, headroom), devices)
    states, watch, _ = begin_batch(setup, layout)
    mesh = loop.replica_mesh(len(setup.temperatures), jax.local_devices()[:devices], devices)
    states, watch = loop.pad_replicas(states, watch, mesh)
    chunks = list(loop.run(setup, states, watch, 1, mesh))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *[chunk.samples for chunk in chunks]), chunks


def test_a_replica_shared_by_two_devices_moves_as_on_one_also_when_its_list_grows():
    assert len(jax.local_devices()) == 2  # as conftest.py sets it
    setup = make("npt", temperatures=(20.0, 80.0))
    alone, _ = go(setup, *begin(setup))
    both, chunks = shared_run(setup, 2, headroom=1.0)
    assert sum(chunk.regrown for chunk in chunks) > 0, "the tight list never overflowed: nothing was tested"
    senders = chunks[-1].states.neighbors.senders
    assert {shard.data.shape for shard in senders.addressable_shards} == {(2, senders.shape[1] // 2)}
    np.testing.assert_allclose(both.positions, alone.positions, rtol=0, atol=1e-9)
    np.testing.assert_allclose(both.values["stress"], alone.values["stress"], rtol=0, atol=1e-11)


def test_the_command_shares_replicas_and_its_checkpoints_do_not_care(argon, tmp_path):
    """Begun with two devices a replica, gone on with one; against a run on one throughout."""
    short = [*argon, "--steps", "200", "--sample-every", "20"]
    one, shared = tmp_path / "one", tmp_path / "shared"
    assert run_command("jaxpto.sweep", SweepConfig, sweep.run, [*short, "--out", str(one)]) == 0
    arguments = [*short, "--out", str(shared), "--resume"]
    assert run_command("jaxpto.sweep", SweepConfig, sweep.run, [*arguments, "--devices-per-replica", "2"]) == 0
    assert 0.0 < difference(one, shared) < 1e-9
    last = max(shared.glob("checkpoints/step_*"))
    if len(list(shared.glob("checkpoints/step_*"))) > 1:
        shutil.rmtree(last)
    before = difference(one, shared)
    assert run_command("jaxpto.sweep", SweepConfig, sweep.run, arguments) == 0
    assert difference(one, shared) < max(2.0 * before, 1e-9)


def compare_large(repeats: tuple[int, int, int], dtype: str) -> dict:
    """One system evaluated on one device and on eight: numbers, and bytes of working memory a device.

    Each takes its atoms at once, as accelerators do, and in slices, as processors do.
    """
    return child(
        f"""
import json
import jax
import numpy as np
jax.config.update("jax_enable_x64", {dtype == "float64"})
from jaxpto.models.catalogue import load_potential
from jaxpto.models import perovskite
from jaxpto.neighbors import build
from jaxpto.devices.sharding import atom_mesh, constrain, sharded
from jaxpto.structures import make_supercell, read_structure
from jaxpto.system import from_ase
atoms = make_supercell(read_structure("PbTiO3-tetragonal"), {repeats})
atoms.rattle(0.05, seed=1)
potential = load_potential("perovskite", np.dtype("{dtype}"))
system = from_ase(atoms, np.dtype("{dtype}"))
layout = potential.allocate([system], 0.3, headroom=1.1)
mesh = atom_mesh()
def one(potential, system):
    return potential.evaluate(system, build(system, layout))
def eight(potential, system):
    return sharded(potential.evaluate, mesh)(system, constrain(build(system, layout), mesh))
programs = []
for longest in (len(atoms), perovskite.SLICE):
    perovskite.SLICE = longest
    jax.clear_caches()
    programs += [jax.jit(f).lower(potential, system).compile() for f in (one, eight)]
first, *others = (jax.device_get(program(potential, system)) for program in programs)
def most(name):
    return max(float(abs(getattr(first, name) - getattr(other, name)).max()) for other in others)
print(json.dumps({{
    "atoms": len(atoms),
    "devices": mesh.size,
    "memory": [program.memory_analysis().temp_size_in_bytes / 1e6 for program in programs],
    "energy": most("energy") / float(abs(first.energy)),
    "forces": most("forces") / float(abs(first.forces).max()),
    "stress": most("stress") / float(abs(first.stress).max()),
}}))
""",
        devices=8,
    )


def check_memory(found: dict) -> None:
    at_once, each, in_slices, each_in_slices = found["memory"]
    print(f"MB on one device {at_once:.0f}, each of eight {each:.0f}; in slices {in_slices:.0f}, {each_in_slices:.0f}")
    assert each < 0.3 * at_once
    assert in_slices < 0.3 * at_once
    assert each_in_slices < 0.85 * in_slices  # most of the rest is the search for neighbours


def test_a_large_system_over_eight_devices_needs_less_memory_on_each():
    found = compare_large((8, 5, 10), "float64")
    assert (found["atoms"], found["devices"]) == (2000, 8)
    assert found["energy"] < 1e-12
    assert found["forces"] < 1e-11
    assert found["stress"] < 1e-11
    check_memory(found)


@pytest.mark.slow
def test_twenty_thousand_atoms_over_eight_devices():
    found = compare_large((16, 16, 16), "float32")
    assert (found["atoms"], found["devices"]) == (20480, 8)
    assert found["energy"] < 1e-6
    assert found["forces"] < 1e-4
    assert found["stress"] < 1e-4
    check_memory(found)
