"""Child processes of a campaign: starting commands, waiting for file events, and comparing what runs leave behind."""

from __future__ import annotations

import ctypes
import ctypes.util
import dataclasses
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jaxpto.errors import InputError
from jaxpto.storage.trajectory import read_trajectory

# small enough for a run of seconds, long enough for some checkpoints: 3 replicas of 40 atoms, 121 frames each
SWEEP = (
    "PbTiO3-tetragonal", "--supercell", "2", "2", "2", "--temperatures", "300", "600", "900", "--steps", "2400",
    "--sample-every", "20", "--checkpoint-every", "0.3",
)  # fmt: skip
LONGEST = 300.0  # seconds after which a command counts as hung
_EVENTS = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200  # modified, closed after writing, moved, created, deleted


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: the signal), what it printed, seconds."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def crashed(self) -> bool:
        """Whether it died by a signal that nobody sent."""
        return self.code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL)


class Command:
    """A command of jaxpto in a process group of its own."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", module, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def send(self, number: int) -> None:
        """Send a signal to the whole group, as a terminal does."""
        if self.running:
            os.killpg(self._process.pid, number)

    def wait(self) -> Ended:
        """Wait for its end; one that hangs is killed and ends with the code of SIGKILL."""
        try:
            out, err = self._process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            out, err = self._process.communicate()
            err += "\n(killed: it hung)"
        return Ended(self._process.returncode, out, err, time.monotonic() - self.began)


def sweep(out: Path, *further: str) -> Command:
    """The campaign's sweep into a folder."""
    return Command("jaxpto.sweep", *SWEEP, "--out", str(out), *further)


class FileEvents:
    """Counts what happens below a folder (Linux inotify): files made, written, closed, moved, deleted."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify is not to be had")
        self._watched: set[Path] = set()
        self._top = folder
        self.count = 0
        self._watch_new()

    def _watch_new(self) -> None:
        for place in (self._top.parent, *(entry[0] for entry in os.walk(self._top))):  # passes over what is gone
            folder = Path(place)
            if folder not in self._watched and folder.is_dir():
                self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _EVENTS)
                self._watched.add(folder)

    def wait_for(self, number: int, command: Command) -> bool:
        """Wait for so many events in all; False if the command ended before."""
        while self.count < number and command.running:
            if select.select([self._descriptor], [], [], 0.05)[0]:
                data, at = os.read(self._descriptor, 1 << 16), 0
                while at < len(data):  # int wd; uint32 mask, cookie, len; char name[len]
                    at += 16 + int.from_bytes(data[at + 12 : at + 16], sys.byteorder)
                    self.count += 1
                self._watch_new()
        return command.running

    def close(self) -> None:
        """Give the watches back."""
        os.close(self._descriptor)


def differences(folder: Path, reference: Path) -> str:
    """What of a finished sweep is not, bit for bit, what an undisturbed one wrote; "" if nothing."""
    for wanted in sorted((reference / "trajectories").glob("*.h5md")):
        try:
            found = read_trajectory(folder / "trajectories" / wanted.name)
        except InputError as error:
            return str(error)
        expected = read_trajectory(wanted)
        arrays = {name: getattr(expected, name) for name in ("step", "time", "positions", "cells")}
        for name, values in (arrays | expected.observables).items():
            other = getattr(found, name) if name in arrays else found.observables[name]
            if not np.array_equal(values, other, equal_nan=values.dtype.kind == "f"):
                return f"{wanted.name}: {name} differs ({len(found.step)} frames, {len(expected.step)} expected)"
    if (folder / "summary.csv").read_bytes() != (reference / "summary.csv").read_bytes():
        return "summary.csv differs"
    return ""


def frames(folder: Path) -> int:
    """Frames that count in all trajectories of a folder, as far as they can be read."""
    total = 0
    for path in (folder / "trajectories").glob("*.h5md"):
        try:
            total += len(read_trajectory(path).step)
        except (InputError, OSError):
            continue
    return total
