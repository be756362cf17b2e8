"""A line that says how far a long calculation is: live on a terminal, now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator

from rich.console import Console

from jaxpto.progress import PLAIN_INTERVAL


@contextlib.contextmanager
def waiting(console: Console, what: str) -> Generator[Callable[[str], None]]:
    """Show what is being waited for, and yield a function that says how far it is.

    Args:
        console: where to write.
        what: such as "perovskite: relaxing".
    """
    if console.is_terminal:
        with console.status(f"{what} ...") as status:
            yield lambda state: status.update(f"{what}: {state}")
        return
    last = time.monotonic()

    def say(state: str) -> None:
        nonlocal last
        if time.monotonic() - last > PLAIN_INTERVAL:
            last = time.monotonic()
            console.print(f"{what}: {state}", soft_wrap=True, highlight=False)

    yield say
