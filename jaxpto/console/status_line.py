"""One line with the progress of a long calculation."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_INTERVAL = 10.0  # seconds between lines where the output is not a terminal


class StatusLine:
    """A live line on a terminal, a plain line now and then elsewhere (a context manager).

    Args:
        console: the console to write to.
        first: the first line.
        subject: beginning of every line, such as the name of the model.
    """

    def __init__(self, console: Console, first: str, subject: str = ""):
        self._console, self._first = console, first
        self._prefix = f"{subject}: " if subject else ""
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._last_plain = time.monotonic()

    def __enter__(self) -> StatusLine:
        if self._live is not None:
            self._live.start()
            self.update(self._first)
        else:
            self._console.print(self._prefix + self._first)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, line: str) -> None:
        """Replace the line."""
        now, line = time.monotonic(), self._prefix + line
        if self._live is not None:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
        elif now - self._last_plain > PLAIN_INTERVAL:
            self._last_plain = now
            self._console.print(line)
