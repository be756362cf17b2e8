"""The trainer's checkpoint: one file, replaced all or nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpto.errors import InputError


def checkpoint(path: Path, state: Any, meta: dict[str, Any]) -> None:
    """Write a pytree and a little metadata to one file, all or nothing."""
    leaves = {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}
    temporary = path.with_suffix(".tmp.npz")
    with open(temporary, "wb") as file:
        np.savez(file, **leaves | {"meta": np.array(json.dumps(meta))})  # ty: ignore[invalid-argument-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def restore(path: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """Read what `checkpoint` wrote into the structure of `like`.

    Raises:
        InputError: the file is missing, damaged, or of another model.
    """
    try:
        with np.load(path) as stored:
            meta = json.loads(str(stored["meta"]))
            paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(like)]
            leaves = [jnp.asarray(stored[p]) for p in paths]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no usable checkpoint ({error}); start anew with another --out") from error
    shapes = [x.shape for x in jax.tree.leaves(like)]
    if [x.shape for x in leaves] != shapes:
        raise InputError(f"{path}: its arrays have other shapes than this configuration; resume with the same options")
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta
