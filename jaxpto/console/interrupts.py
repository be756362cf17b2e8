"""Interrupts that wait for a moment at which what is computed can be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType


@contextlib.contextmanager
def interrupts_held() -> Generator[Callable[[], bool]]:
    """Inside, the first interrupt only sets a mark; the function handed out says whether it came.

    Held are Ctrl-C and those of SIGTERM and SIGHUP that somebody handles in Python (as `run_command` does); a second
    signal acts at once, as it would have. The body saves at a moment of its choosing and raises KeyboardInterrupt
    itself. Outside the main thread, which gets no signals, nothing is held.
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
