"""The settings that messages name, as the options of a command."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import get_type_hints

from jaxpto.errors import SETTING


def as_typed(text: str, config: type) -> str:
    """A message whose settings (see `jaxpto.errors`) are spelled as the options of a command.

    "`windows=23`" becomes "--landau.windows 23", "`resume=True`" "--resume", "`symmetric=False`"
    "--landau.no-symmetric"; what the command has no option for, or several, stays as it is.

    Args:
        text: any message.
        config: dataclass whose fields are the options; fields of groups count, too.
    """
    options = list(_options(config))

    def typed(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        fitting = [option for option in options if option == name]
        fitting = fitting or [option for option in options if option.endswith(f".{name}")]
        return _option(fitting[0], value) if len(fitting) == 1 else found[0]

    return SETTING.sub(typed, text)


def _options(config: type, group: str = "") -> Iterator[str]:
    """Names of all settings, those of groups with the group in front."""
    if not dataclasses.is_dataclass(config):
        return
    kinds = get_type_hints(config)
    for field in dataclasses.fields(config):
        yield group + field.name
        if isinstance(kinds[field.name], type):
            yield from _options(kinds[field.name], f"{group}{field.name}.")


def _option(name: str, value: str | None) -> str:
    group, dot, last = name.replace("_", "-").rpartition(".")
    if value == "False":
        return f"--{group}{dot}no-{last}"
    if value is None or value == "True":
        return f"--{group}{dot}{last}"
    if value.startswith("(") and value.endswith(")"):
        value = " ".join(word.strip("'\"") for word in value[1:-1].rstrip(",").split(", "))
    return f"--{group}{dot}{last} {value}"
