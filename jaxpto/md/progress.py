"""The progress line of a batch: steps/s, ns/day, time left and one number of every replica."""

from __future__ import annotations

import time

import numpy as np
from jaxtyping import Bool, Float
from rich.console import Console
from rich.live import Live
from rich.text import Text

from jaxpto.observables.observable import Measurements, Sample

SECONDS_PER_DAY = 86400.0
PLAIN_INTERVAL = 20.0  # seconds between lines where the output is not a terminal
MOST_SHOWN = 32  # replicas whose number is shown


def ns_per_day(steps_per_second: float, timestep_fs: float) -> float:
    """Simulated nanoseconds a day at a given rate."""
    return steps_per_second * timestep_fs * 1e-6 * SECONDS_PER_DAY


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3 min 05 s or 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ProgressLine:
    """Shows a live line on a terminal, a plain line now and then elsewhere (a context manager).

    Args:
        console: where to write.
        total_steps: steps of the whole run.
        first_step: steps already done when the run was resumed.
        timestep_fs: fs.
        labels: one short label a replica (its temperature).
        measurements: which number of every replica is shown, and its name.
    """

    def __init__(
        self,
        console: Console,
        total_steps: int,
        first_step: int,
        timestep_fs: float,
        labels: list[str],
        measurements: Measurements,
    ):
        self._console, self._measurements = console, measurements
        self._total, self._first, self._timestep, self._labels = total_steps, first_step, timestep_fs, labels
        self._start: float | None = None
        self._start_step = first_step
        self._last_plain = 0.0
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> ProgressLine:
        if self._live is not None:
            self._live.start()
            self._live.update(Text("compiling the step (once; kept in the compilation cache) ..."), refresh=True)
        else:
            self._console.print("compiling the step (once; kept in the compilation cache) ...")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def number(self, sample: Sample) -> Float[np.ndarray, " r"]:
        """The number that is shown of every replica, from a sample of the batch."""
        return self._measurements.shown(sample)

    def update(self, step: int, alive: Bool[np.ndarray, " r"], numbers: Float[np.ndarray, " r"]) -> None:
        """Show the state after `step` steps.

        Args:
            step: steps done.
            alive: [replicas] whether each still runs.
            numbers: [replicas] from `number`.
        """
        now = time.monotonic()
        if self._start is None:  # the first chunk holds the compilation: the rate is counted from its end
            self._start, self._start_step = now, step
            rate = 0.0
        else:
            rate = (step - self._start_step) / max(now - self._start, 1e-9)
        line = self._line(step, rate, alive, numbers)
        if self._live is not None:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
        elif now - self._last_plain > PLAIN_INTERVAL or step >= self._total:
            self._last_plain = now
            self._console.print(line)

    def say(self, line: str) -> None:
        """Write a line that stays, above the live one."""
        self._console.print(line)

    def _line(self, step: int, rate: float, alive: np.ndarray, numbers: np.ndarray) -> str:
        head = f"step {step}/{self._total} ({100 * step // self._total} %)"
        if rate > 0:
            each = ns_per_day(rate, self._timestep)
            left = duration((self._total - step) / rate)
            head += f"  {rate:.1f} steps/s  {each:.2f} ns/day each, {each * alive.sum():.2f} in all  {left} left"
        if len(self._labels) > MOST_SHOWN:
            lost = f"  {int((~alive).sum())} lost" if not alive.all() else ""
            return f"{head}  {len(self._labels)} replicas{lost}"
        shown = " ".join(
            f"{label}:{number:.3f}" if ok else f"{label}:lost"
            for label, number, ok in zip(self._labels, numbers, alive, strict=True)
        )
        return f"{head}  {self._measurements.label} {shown}"
