"""Reading and writing `.dp` files of DeePMD-kit, so that tests can change them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import h5py
import numpy as np


def read_dp(path: pathlib.Path) -> dict[str, Any]:
    """The tree of a .dp file with its arrays."""

    def fill(value: Any, file: h5py.File) -> Any:
        if isinstance(value, dict):
            return {key: fill(part, file) for key, part in value.items()}
        if isinstance(value, list):
            return [fill(part, file) for part in value]
        return np.asarray(file[value]) if isinstance(value, str) and value.startswith("/variable_") else value

    with h5py.File(path) as file:
        return fill(json.loads(file.attrs["json"]), file)


def write_dp(path: pathlib.Path, tree: dict[str, Any]) -> pathlib.Path:
    """Write a .dp file as DeePMD-kit does."""
    with h5py.File(path, "w") as file:

        def empty(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: empty(part) for key, part in value.items()}
            if isinstance(value, list):
                return [empty(part) for part in value]
            if not isinstance(value, np.ndarray):
                return value
            name = f"/variable_{len(file):04d}"
            file[name] = value
            return name

        file.attrs["json"] = json.dumps(empty(tree))
    return path
