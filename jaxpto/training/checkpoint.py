"""The trainer's checkpoint: one file, replaced atomically, with its predecessor and the identity of its run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpto.errors import InputError
from jaxpto.storage.arrays import DamagedError, read_arrays, write_arrays
from jaxpto.storage.identity import differences


def previous_of(path: Path) -> Path:
    """File of the checkpoint before the one at `path`."""
    return path.with_suffix(f".previous{path.suffix}")


def checkpoint(path: Path, state: Any, meta: Mapping[str, Any]) -> None:
    """Write a pytree and a little metadata to one file, atomically; the one before is kept at `previous_of`."""
    leaves = {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}
    write_arrays(path, leaves, meta, previous_of(path))


def restore(
    path: Path, like: Any, identity: Mapping[str, Any] | None = None, say: Callable[[str], None] = print
) -> tuple[Any, dict[str, Any]]:
    """Read a checkpoint into the structure of `like`; if it is damaged, the one before it.

    Args:
        path: file of the checkpoint.
        like: a pytree with the shapes and types of the state.
        identity: `make_identity` of the present run, compared with the stored one.
        say: called with a line if the newest checkpoint is damaged and the one before is used.

    Returns:
        The state and the metadata without the identity.

    Raises:
        InputError: there is no usable checkpoint, or it has other settings, data or models.
    """
    previous, reasons = previous_of(path), []
    for place in (path, previous):
        try:
            arrays, meta = read_arrays(place)
        except DamagedError as error:
            reasons.append(f"{place.name}: {error}")
            continue
        stored = meta.pop("identity", None)
        if identity is not None:
            check_identity(path.parent, stored, identity)
        state = _fill(place, like, arrays)
        if reasons:
            os.replace(previous, path)  # the next checkpoint must not put the damaged one in the place of the good one
            say(f"{path.parent / reasons[0]}; goes on with {previous.name}, the checkpoint before it")
        return state, meta
    raise InputError(
        f"{path.parent}: no usable checkpoint ({'; '.join(reasons)}); restore one of these files, or start anew with "
        "another `out`"
    )


def _fill(path: Path, like: Any, arrays: dict[str, np.ndarray]) -> Any:
    wanted = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(like)}
    if arrays.keys() != wanted.keys():
        odd = sorted(arrays.keys() ^ wanted.keys())[0]
        raise InputError(f"{path}: no usable checkpoint of this training (array {odd}); start anew with another `out`")
    for name, leaf in wanted.items():
        found = arrays[name]
        if (found.shape, found.dtype.kind) != (leaf.shape, leaf.dtype.kind):
            raise InputError(
                f"{path}: its arrays have other shapes than this configuration ({name}: {found.dtype}"
                f"{list(found.shape)}, not {leaf.dtype}{list(leaf.shape)}); resume with the same options"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in wanted])


def check_identity(folder: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Refuse to go on with a checkpoint of another training.

    Args:
        folder: output folder of the run.
        before, now: identities from `make_identity`; None in checkpoints that have none.

    Raises:
        InputError: the message names every difference.
    """
    if before is None:
        raise InputError(
            f"{folder}: its checkpoint does not say which settings and data it is of (an earlier version wrote it); "
            "start anew with another `out`, with `initial` to keep the weights"
        )
    changes = differences(before, now, "trajectory")
    if changes:
        hint = ""
        if before["settings"].get("steps") != now["settings"].get("steps"):
            hint = "; learning rates follow the number of steps: to train on, use `initial` and a new `out`"
        raise InputError(
            f"`resume=True` with changed settings: {'; '.join(changes)}; "
            f"resume {folder} as it was begun, or choose a new `out`{hint}"
        )
