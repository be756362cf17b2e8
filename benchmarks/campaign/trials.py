"""The trials of a campaign; each disturbs one run in one way and says what of the promises did not hold."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np

from benchmarks.campaign.runs import Command, Ended, FileEvents, differences, frames, sweep

Generator_ = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Ground:
    """Where trials happen.

    Attributes:
        folder: of this trial, new.
        reference: output folder of the undisturbed run.
        seconds: that the undisturbed run took with a full compilation cache.
        events: file events of the undisturbed run.
    """

    folder: Path
    reference: Path
    seconds: float
    events: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was done, and what went wrong ("" if nothing)."""

    done: str
    fault: str
    kills: int = 0


def _ended_badly(ended: Ended, allowed: tuple[int, ...]) -> str:
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    if ended.code not in allowed:
        return f"exit code {ended.code}: {' / '.join(lines[-3:])[:400]}"
    if ended.code == 2 and len(lines) != 1:
        return f"{len(lines)} lines in place of one: {' / '.join(lines[:3])[:400]}"
    return ""


def _finish(ground: Ground, out: Path) -> str:
    """Resume to the end and compare with the undisturbed run."""
    ended = sweep(out, "--resume").wait()
    return _ended_badly(ended, (0,)) or differences(out, ground.reference)


def kills_at_random_times(ground: Ground, random: Generator_) -> Verdict:
    """Up to four kill -9 at any time, then the end."""
    times = random.uniform(0.1, 1.1 * ground.seconds, random.integers(1, 5))
    for at in times:
        command = sweep(ground.folder, "--resume")
        with contextlib.suppress(subprocess.TimeoutExpired):
            command._process.wait(timeout=float(at))
        command.send(signal.SIGKILL)
        command.wait()
    said = ", ".join(f"{at:.2f}" for at in times)
    return Verdict(f"kill -9 after {said} s", _finish(ground, ground.folder), len(times))


def kills_at_file_events(ground: Ground, random: Generator_) -> Verdict:
    """Up to four kill -9 right after some file event, then the end."""
    numbers = random.integers(1, ground.events + 1, random.integers(1, 5)).tolist()
    kills = 0
    for number in numbers:
        events = FileEvents(ground.folder)
        command = sweep(ground.folder, "--resume")
        kills += events.wait_for(number, command)
        command.send(signal.SIGKILL)
        command.wait()
        events.close()
    return Verdict(f"kill -9 at file events {numbers}", _finish(ground, ground.folder), kills)


def signals(ground: Ground, random: Generator_) -> Verdict:
    """Ctrl-C, SIGTERM or SIGHUP, once or twice, at any time: an orderly end, and nothing computed is lost."""
    number = signal.Signals(int(random.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])))
    at, twice = float(random.uniform(0.1, 1.1 * ground.seconds)), bool(random.random() < 0.25)
    command = sweep(ground.folder, "--resume")
    with contextlib.suppress(subprocess.TimeoutExpired):
        command._process.wait(timeout=at)
    command.send(number)
    if twice:
        command.send(number)
    ended = command.wait()
    done = f"{number.name}{' twice' if twice else ''} after {at:.2f} s"
    # before the first line of jaxpto runs Python ends by the signal itself
    allowed = (0, 130, -int(number), 1) if at < 2.0 else (0, 130)
    fault = f"crashed: {ended.stderr[-400:]}" if ended.crashed else _ended_badly(ended, allowed)
    return Verdict(done, fault or _finish(ground, ground.folder))


def damage(ground: Ground, random: Generator_) -> Verdict:
    """One file of an interrupted run is cut, changed, emptied or removed: refused in one line, or the same end."""
    command = sweep(ground.folder)
    with contextlib.suppress(subprocess.TimeoutExpired):
        command._process.wait(timeout=float(random.uniform(0.5, 1.0)) * ground.seconds)
    command.send(signal.SIGKILL)
    command.wait()
    done = damage_one_file(ground.folder, random)
    before = frames(ground.folder)
    ended = sweep(ground.folder, "--resume").wait()
    if ended.code == 2 and frames(ground.folder) < before:
        return Verdict(done, f"refused, but {before} frames became {frames(ground.folder)}", 1)
    fault = _ended_badly(ended, (0, 2)) or (differences(ground.folder, ground.reference) if ended.code == 0 else "")
    return Verdict(f"{done}, exit {ended.code}", fault, 1)


def damaged_report(ground: Ground, random: Generator_) -> Verdict:
    """One file of a finished run is damaged: `report` refuses in one line or says what it said before."""
    shutil.copytree(ground.reference, ground.folder, dirs_exist_ok=True)
    done = damage_one_file(ground.folder, random)
    ended = Command("jaxpto.report", str(ground.folder)).wait()
    fault = _ended_badly(ended, (0, 2)) or (differences(ground.folder, ground.reference) if ended.code == 0 else "")
    if "config.json" in done and ended.code == 0:  # what it names may differ, what was measured may not
        fault = ""
    return Verdict(f"report: {done}, exit {ended.code}", fault)


def damage_one_file(folder: Path, random: Generator_) -> str:
    """Damage one file below a folder; returns what was done to which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        return "nothing there to damage"
    path = files[int(random.integers(len(files)))]
    data, how = path.read_bytes(), str(random.choice(["cut", "changed", "emptied", "removed"]))
    if how == "removed":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[: int(random.integers(len(data) + 1))])
    elif data:
        at = int(random.integers(len(data)))
        path.write_bytes(data[:at] + bytes([data[at] ^ int(random.integers(1, 256))]) + data[at + 1 :])
    return f"{path.relative_to(folder)} {how}"


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Generator[bool]:
    """A file system of `size` bytes at a folder; False where this user may mount none."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def full_disk(ground: Ground, random: Generator_) -> Verdict:
    """The disk fills up, before the start or in mid-run: one line, and after making room the same end."""
    needed = sum(path.stat().st_size for path in ground.reference.rglob("*") if path.is_file())
    with small_disk(ground.folder, 2 * needed + (1 << 22)) as mounted:
        if not mounted:
            return Verdict("full disk: left out, this user may not mount a file system", "")
        ballast, out = ground.folder / "ballast", ground.folder / "run"
        free = os.statvfs(ground.folder).f_bavail * os.statvfs(ground.folder).f_frsize
        taken = int(free * random.uniform(0.5, 1.0))
        late = bool(random.random() < 0.5)
        if not late:
            ballast.write_bytes(bytes(taken))
        command = sweep(out)
        if late:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command._process.wait(timeout=float(random.uniform(0.3, 0.8)) * ground.seconds)
            with contextlib.suppress(OSError), open(ballast, "wb") as file:
                while True:
                    file.write(bytes(1 << 16))
        ended = command.wait()
        done = f"disk full {'in mid-run' if late else f'but for {free - taken} bytes'}, exit {ended.code}"
        fault = _ended_badly(ended, (0, 1, 2))
        if "Traceback" in ended.stderr:
            fault = f"traceback: {ended.stderr[-300:]}"
        ballast.unlink(missing_ok=True)
        return Verdict(done, fault or _finish(ground, out))


Trial = Callable[[Ground, Generator_], Verdict]
TRIALS: dict[str, Trial] = {
    "kill at a time": kills_at_random_times,
    "kill at a file event": kills_at_file_events,
    "signal": signals,
    "damage": damage,
    "damaged report": damaged_report,
    "full disk": full_disk,
}
