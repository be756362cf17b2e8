"""The one exception that means "the user can fix this", and how a message names the setting that would do it.

A message names a setting as Python does, in backticks: "`temperatures`", "`windows=23`", "`resume=True`",
"`supercell=(2, 2, 2)`", with its group where the name alone is not unique: "`harmonic.relax=none`". A command shows it
as the option that its user types (`jaxpto.console.options`), so no module below the commands knows any option.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator

SETTING = re.compile(r"`([a-z]\w*(?:\.\w+)*)(?:=([^`]*))?`")


class InputError(ValueError):
    """Raised for bad input; the message carries the value, the limit and the remedy in one line.

    Commands print it and exit with code 2.
    """


@contextlib.contextmanager
def settings_of(group: str) -> Generator[None]:
    """Put a group in front of the settings that an InputError names: a caller keeps those of a callee in a group.

    Args:
        group: field of the caller's configuration that holds them.
    """
    try:
        yield
    except InputError as error:
        raise InputError(SETTING.sub(lambda found: f"`{group}.{found[0][1:]}", str(error))) from None


def is_interrupt(error: Exception) -> bool:
    """Whether an error of a compiled program is a KeyboardInterrupt that struck inside one of its host callbacks."""
    return isinstance(error, RuntimeError | ValueError) and "KeyboardInterrupt" in str(error)
