"""What a model folder of matgl says about its architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.pickles import CheckpointError


def architecture_arguments(path: Path, supported: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the network in a model.json.

    Args:
        path: model.json.
        supported: values of arguments that are implemented; any other is refused by name.

    Raises:
        CheckpointError: an argument has another value.
        KeyError, TypeError, ValueError, OSError: it is no such file.
    """
    arguments = json.loads(path.read_text())["kwargs"]["model"]["init_args"]
    for key, value in supported.items():
        if key in arguments and arguments[key] != value:
            raise CheckpointError(
                f"checkpoint {path}: {key} = {arguments[key]!r} is not supported (only {value!r}); "
                "give a checkpoint of the published architecture"
            )
    return arguments
