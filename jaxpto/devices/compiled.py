"""`jax.jit` with the traced program kept on disk, so that the next process need not trace the function again.

JAX's compilation cache stores what XLA compiles, but every process still traces and lowers the Python function first,
which takes most of the time to the first step. The lowered program (`jax.export`) is stored beside the cache, in a
file named by a digest of everything it depends on: the sources of jaxpto, the installed packages, JAX's settings, what
the function is made from, and the structure, shapes and devices of its arguments. (A module constant that is changed
while the process runs is not part of the name.)

No file is run as Python: it holds a program for XLA, and the structure of the results as JSON. Since that program does
run, nobody else may be able to write to the folder.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
import pickle
import sys
import types
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from jaxpto.devices.tree_text import UnknownStructureError, describe_tree, structure
from jaxpto.platform import platform_of
from jaxpto.storage.files import StorageError, replacing
from jaxpto.storage.own_folder import own_folder

FOLDER = "jaxpto-traced"
# As wide as the processor's vectors are: XLA stays below 512 bits unless told, and is up to 8 percent slower then.
WIDE = {"xla_cpu_prefer_vector_width": 512}
# Packages whose code the file name identifies: jaxpto by its sources, the others by their versions.
_ACCOUNTED = frozenset({"builtins", "copyreg", "functools", "jaxpto", "jax", "jaxlib", "flax", "numpy"})
_DIGEST = hashlib.sha256().digest_size
_log = logging.getLogger(__name__)


def cached_jit(
    function: Callable[..., Any], made_from: Any, compiler_options: dict[str, Any] = WIDE
) -> Callable[..., Any]:
    """Compile a function as `jax.jit` does, and keep the traced program on disk if JAX has a compilation cache.

    It is plain `jax.jit` where there is no cache, or where the function depends on something that a file name cannot
    identify: a function or class from outside jaxpto, a closure, or a callback to Python.

    Args:
        function: a pure function of pytrees of arrays, determined by `made_from`.
        made_from: everything that decides what the function does, in a form that can be pickled: settings, functions
            at the top level of a module of jaxpto, and `functools.partial` of them.
        compiler_options: passed to `jax.jit`.
    """
    plain = jax.jit(function, compiler_options=compiler_options)
    programs: dict[Hashable, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        leaves, given = jax.tree.flatten(arguments)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        shapes = tuple((leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves)
        signature = given, shapes, platform_of(leaves), _settings()
        if signature not in programs:
            path = _path((made_from, compiler_options, *signature), leaves)
            found = None if path is None else _of_file(path, function, given, leaves, compiler_options)
            programs[signature] = found or (lambda *leaves: plain(*jax.tree.unflatten(given, leaves)))
        return programs[signature](*leaves)

    return call


def _of_file(
    path: Path,
    function: Callable[..., Any],
    given: Any,
    leaves: list[jax.Array],
    compiler_options: dict[str, Any],
) -> Callable[..., Any] | None:
    """The program stored in a file, which is written first if need be; None if the program cannot be stored."""
    found = _read(path)
    if found is None:
        results_text: Any = None

        def flat(*leaves: jax.Array) -> list[jax.Array]:
            nonlocal results_text
            results = function(*jax.tree.unflatten(given, leaves))
            results_text = describe_tree(results)
            if structure(results_text) != jax.tree.structure(results):
                raise UnknownStructureError("the results have another structure than their description")
            return jax.tree.leaves(results)

        platform = platform_of(leaves)
        # JAX has other names for GPUs here, of their makers; its default, where there is one, is the right one
        platforms = None if platform == "gpu" else (platform,)
        try:
            program = bytes(export.export(jax.jit(flat), platforms=platforms)(*leaves).serialize())
        # a callback to Python, a library call without a promise of stability, or a result of an unknown kind
        except (NotImplementedError, ValueError):
            return None
        found = program, structure(results_text)
        _write(path, program, results_text)
    program, results = found
    run = jax.jit(export.deserialize(bytearray(program)).call, compiler_options=compiler_options)
    return lambda *leaves: jax.tree.unflatten(results, run(*leaves))


def _read(path: Path) -> tuple[bytes, Any] | None:
    """A stored program and the structure of its results; None if the file is missing, damaged or something else."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        return None
    text, _, program = data[_DIGEST:].partition(b"\n")
    try:
        return program, structure(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _write(path: Path, program: bytes, results_text: Any) -> None:
    data = json.dumps(results_text).encode() + b"\n" + program
    try:
        with replacing(path, len(data)) as temporary:
            temporary.write_bytes(hashlib.sha256(data).digest() + data)
    except (OSError, StorageError):  # costs the next process time, nothing else
        return


def _path(content: tuple[Any, ...], leaves: list[jax.Array]) -> Path | None:
    """The file for a program; None if there is no folder for it, or no name that identifies it."""
    settings = jax.config.values
    cache = settings["jax_compilation_cache_dir"] if settings["jax_enable_compilation_cache"] else None
    if not cache or "://" in cache or settings["jax_disable_jit"]:
        return None
    folder = Path(cache) / FOLDER
    if not _usable(folder):
        return None
    kinds = sorted({device.device_kind for leaf in leaves for device in leaf.devices()})
    devices = kinds, [str(leaf.sharding) for leaf in leaves]
    name = io.BytesIO()
    try:
        _Content(name).dump((_code(), devices, content))
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return folder / hashlib.sha256(name.getvalue()).hexdigest()


@functools.cache
def _usable(folder: Path) -> bool:
    """Whether programs may be stored in a folder; if not, the log says why, once."""
    if problem := own_folder(folder):
        _log.warning("programs are traced anew in every run, because %s", problem)
    return not problem


class _Content(pickle.Pickler):
    """Refuses functions and classes that could change without a change in the file name."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | types.FunctionType) and obj.__module__.partition(".")[0] not in _ACCOUNTED:
            raise pickle.PicklingError(f"{obj.__module__}.{obj.__qualname__} may change without a sign")
        return NotImplemented


@functools.cache
def _code() -> tuple[str, list[str], str]:
    """The code that runs: a digest of jaxpto's sources, the installed packages, and Python's version."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        sources.update(path.read_bytes())
    packages = sorted(name for folder in sys.path for name in _names(folder or ".") if name.endswith(".dist-info"))
    return sources.hexdigest(), packages, sys.version


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # an archive, or one that is missing or unreadable: Python imports nothing from it either
        return []


def _settings() -> tuple[tuple[str, str], ...]:
    """JAX's settings, except for those that say where its cache is."""
    values = jax.config.values
    return tuple((name, repr(getattr(jax.config, name, values[name]))) for name in values if "cache" not in name)
