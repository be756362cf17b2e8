"""Interrupts that wait until the results so far can be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType


@contextlib.contextmanager
def interrupts_held() -> Generator[Callable[[], bool]]:
    """Hold the first interrupt back; the function handed out says whether it came.

    Ctrl-C is held, and SIGTERM and SIGHUP where they are handled in Python (as by `run_command`); a second signal acts
    at once. The body saves at a moment of its choosing and then raises KeyboardInterrupt itself. Outside the main
    thread, which gets no signals, nothing is held.
    """
    came: list[int] = []
    before: dict[int, Callable[[int, FrameType | None], object]] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            before[number](number, frame)
        came.append(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if callable(handler) and not isinstance(handler, signal.Handlers):
                before[number] = handler
                signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
