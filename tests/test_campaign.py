"""The campaign's own tools: what it counts, damages and writes is what it says."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.campaign.bad_input import bad_structure
from benchmarks.campaign.runs import Command, FileEvents
from benchmarks.campaign.trials import damage_one_file
from jaxpto.errors import InputError
from jaxpto.structures import read_structure


@pytest.mark.skipif(sys.platform != "linux", reason="file events are counted with inotify, which only Linux has")
def test_file_events_are_counted_in_folders_made_later(tmp_path: pathlib.Path) -> None:
    watched = tmp_path / "run"
    events = FileEvents(watched)
    code = f"import pathlib, time; p = pathlib.Path({str(watched)!r}); p.mkdir(); time.sleep(0.5)\n"
    code += "for k in range(5): (p / str(k)).write_text('x'); time.sleep(0.05)"
    command = Command("timeit", "-n1", "-r1", code)
    assert not events.wait_for(10**6, command)  # it ended before
    assert command.wait().code == 0
    assert events.count >= 6  # the folder and each file, made, written and closed
    events.close()


def test_a_command_and_its_children_are_killed_together() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    command = Command("timeit", "-n1", "-r1", code)
    assert command.running
    command.send(9)
    assert command.wait().code == -9


def test_damage_is_done_to_one_file(tmp_path: pathlib.Path) -> None:
    random, hows = np.random.default_rng(0), set()
    for _ in range(40):
        for name in "abc":
            (tmp_path / name).write_bytes(bytes(range(200)))
        name, how = damage_one_file(tmp_path, random).split()
        hows.add(how)
        other = [path for path in tmp_path.iterdir() if path.name != name]
        assert all(path.read_bytes() == bytes(range(200)) for path in other)
        assert len(other) == 2
        damaged = tmp_path / name
        assert how == "cut" or not damaged.exists() or damaged.read_bytes() != bytes(range(200))
    assert hows == {"cut", "changed", "emptied", "removed"}
    assert damage_one_file(tmp_path / "nowhere", random) == "nothing there to damage"


def test_bad_structures_are_bad(tmp_path: pathlib.Path) -> None:
    random, kinds = np.random.default_rng(0), set()
    for _ in range(30):
        kinds.add(bad_structure(tmp_path / "bad.extxyz", random))
        with pytest.raises(InputError):
            read_structure(tmp_path / "bad.extxyz")
    assert len(kinds) == 8


def test_the_campaign_lists_its_options() -> None:
    ran = subprocess.run([sys.executable, "-m", "benchmarks.campaign", "--help"], capture_output=True, text=True)
    assert ran.returncode == 0
    assert "--minutes" in ran.stdout
