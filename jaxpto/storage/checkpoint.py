"""Checkpoints of a run with Orbax: atomic, with digests of every file, the newest few kept.

A checkpoint is a folder `step_NNNNNNNNNN` with two Orbax items: `state`, the arrays of a pytree under their paths
("system.positions"), and `metadata`, JSON with the caller's metadata and the shapes. The arrays therefore describe
themselves; `Checkpoint.into` puts them back into a pytree of the caller's making. `digest.json` beside them holds the
SHA-256 of every file, so that a cut, missing or silently changed one is noticed before Orbax reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging as absl_logging

from jaxpto.errors import InputError
from jaxpto.neighbors import Layout
from jaxpto.storage.alone import process_alone
from jaxpto.storage.files import storage_error, sync_directory, write_json_atomic

Tree = TypeVar("Tree")
_DIGESTS = "digest.json"
_OVERHEAD = 1 << 18  # bytes of Orbax's own files, at most
_OF_THE_MACHINE = ("platform", "devices")  # fields of a layout that are settled anew in each process
_NAME = re.compile(r"step_(\d{10,})")


class CheckpointWarning(UserWarning):
    """Issued, one line each, for a checkpoint that could not be used."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        index: the number it was saved under.
        metadata: the caller's JSON.
        arrays: path of a leaf -> its values, bit for bit as saved.
    """

    index: int
    metadata: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def into(self, template: Tree) -> Tree:
        """Put the arrays into a pytree.

        Args:
            template: a pytree of the same structure with leaves of the saved shapes and types (arrays, or the
                `jax.ShapeDtypeStruct` of `jax.eval_shape`); its static fields are kept.

        Returns:
            The pytree with JAX arrays as leaves.

        Raises:
            InputError: a leaf is missing, left over, or of another shape or type.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        wanted = {_name(path): (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in leaves}
        stored = {name: (values.shape, values.dtype) for name, values in self.arrays.items()}
        for name in [*wanted, *stored]:
            if wanted.get(name) != stored.get(name):
                raise InputError(
                    f"checkpoint {self.index}: {name} is {_say(stored.get(name))}, "
                    f"this run needs {_say(wanted.get(name))}; "
                    "resume with the settings and the version that wrote it, or start in a new folder"
                )
        arrays = [jnp.asarray(self.arrays[_name(path)]) for path, _ in leaves]
        if any(array.dtype != self.arrays[_name(path)].dtype for array, (path, _) in zip(arrays, leaves, strict=True)):
            raise InputError(f"checkpoint {self.index}: it was saved in double precision; run with `dtype=float64`")
        return jax.tree_util.tree_unflatten(structure, arrays)


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        directory: their folder, made with the first checkpoint and used by nothing else.
        keep: how many of the newest stay.
    """

    directory: Path
    keep: int = 2

    def save(self, index: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Save a pytree of arrays; it is on the disk when this returns, and only then are old ones removed.

        Args:
            index: a number that grows along the run, such as the samples done.
            tree: any pytree of numpy or JAX arrays or numbers.
            metadata: anything JSON can hold.

        Raises:
            StorageError: the disk refuses the write; the checkpoints before are untouched.
        """
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        values_on_host = jax.device_get([leaf for _, leaf in leaves])
        arrays = {_name(path): np.asarray(values) for (path, _), values in zip(leaves, values_on_host, strict=True)}
        document = {
            "index": index,
            "metadata": json.loads(json.dumps(metadata)),
            "shapes": {name: [str(values.dtype), list(values.shape)] for name, values in arrays.items()},
        }
        target = self.directory / f"step_{index:010d}"
        temporary = self.directory / f".partial-{target.name}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self._claim(sum(values.nbytes for values in arrays.values()))
            _write(temporary, arrays, document)
            if target.exists():  # one that a resumed run could not read, or has gone back behind
                target.rename(self.directory / f".partial-replaced-{target.name}")
            temporary.rename(target)
            sync_directory(self.directory)
        except Exception as error:  # TensorStore reports a full disk in exceptions of many types
            with contextlib.suppress(OSError):
                self._remove_leftovers()
            raise storage_error(target, error, sum(values.nbytes for values in arrays.values())) from error
        self._remove_leftovers()
        self._retire(index)

    def restore(self) -> Checkpoint | None:
        """Read the newest checkpoint that is whole, or give None where there is none at all.

        Warns:
            CheckpointWarning: for every damaged checkpoint that had to be passed over.

        Raises:
            InputError: there are checkpoints but none is readable.
        """
        found = sorted(self._indices(), reverse=True)
        reasons = []
        for index in found:
            path = self.directory / f"step_{index:010d}"
            try:
                checkpoint = _read(path)
            except Exception as error:  # damage shows in exceptions of every type; the digest catches the rest
                reason = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
                reasons.append(reason)
                if index != found[-1]:
                    message = f"{path} is damaged ({reason}); falling back to the checkpoint before it"
                    warnings.warn(message, CheckpointWarning, stacklevel=2)
                continue
            return checkpoint
        if found:
            raise InputError(
                f"{self.directory}: none of its {len(found)} checkpoints is readable ({reasons[0]}); "
                "restore the folder from a copy or start in a new folder"
            )
        return None

    def _indices(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        matches = [_NAME.fullmatch(path.name) for path in self.directory.iterdir()]
        return [int(match[1]) for match in matches if match]

    def _retire(self, index: int) -> None:
        """Keep the newest up to `index`; later ones belong to a future that the run has gone back behind."""
        past = sorted((i for i in self._indices() if i <= index), reverse=True)
        for old in set(self._indices()) - set(past[: self.keep]):
            shutil.rmtree(self.directory / f"step_{old:010d}", ignore_errors=True)

    def _claim(self, needed: int) -> None:
        """Take the space and give it back: a full disk is then one OSError, not many exceptions of TensorStore's."""
        ballast = self.directory / ".partial-ballast"
        try:
            with open(ballast, "wb") as file:
                for first in range(0, needed + _OVERHEAD, _OVERHEAD):
                    file.write(bytes(min(_OVERHEAD, needed + _OVERHEAD - first)))
        finally:
            ballast.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        for path in self.directory.glob(".partial-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """The static sizes of a neighbour list as JSON, for the metadata of a checkpoint."""
    sizes = {name: v for name, v in dataclasses.asdict(layout).items() if name not in _OF_THE_MACHINE}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in sizes.items()}


def layout_from_json(fields: dict[str, Any]) -> Layout:
    """The layout that `layout_to_json` wrote, for the devices of this process."""
    hashable: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return Layout(**hashable)


def _write(target: Path, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    # TensorStore refuses arrays without elements; their shape in the document says all there is to say.
    state = {name: values for name, values in arrays.items() if values.size}
    with _quiet(), _checkpointer() as checkpointer:
        checkpointer.save(
            target.absolute(),
            ocp.args.Composite(state=ocp.args.PyTreeSave(state), metadata=ocp.args.JsonSave(document)),
        )
    write_json_atomic(target / _DIGESTS, _digests(target))
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        sync_directory(folder)


def _read(path: Path) -> Checkpoint:
    import orbax.checkpoint as ocp

    written, found = json.loads((path / _DIGESTS).read_text()), _digests(path)
    for file in sorted(written.keys() | found.keys()):
        if written.get(file) != found.get(file):
            what = "changed" if file in written and file in found else "missing" if file in written else "unknown"
            raise ValueError(f"its file {file} is {what}")
    with _quiet(), _checkpointer() as checkpointer:
        saved = checkpointer.restore(path.absolute(), ocp.args.Composite(metadata=ocp.args.JsonRestore()))
        document = saved["metadata"]
        arrays = {name: np.empty(shape, kind) for name, (kind, shape) in document["shapes"].items()}
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name, values in arrays.items() if values.size}
        restore = ocp.args.PyTreeRestore(item=dict.fromkeys(as_numpy, 0), restore_args=as_numpy)
        saved = checkpointer.restore(path.absolute(), ocp.args.Composite(state=restore))
    arrays |= {name: np.asarray(values) for name, values in saved["state"].items()}
    return Checkpoint(int(document["index"]), document["metadata"], arrays)


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    alone = process_alone()
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        state=ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
        metadata=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a checkpoint's folder, but of the digests themselves."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _DIGESTS)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _say(entry: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "absent" if entry is None else f"{entry[1]}{list(entry[0])}"


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep Orbax's notes to its developers off the user's console; what matters is raised."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)
