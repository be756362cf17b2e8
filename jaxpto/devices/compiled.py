"""Compiled programs whose traced form is kept on disk, so that the next process need not trace them again.

JAX's compilation cache keeps what XLA makes of a program, but every process has to trace and lower its Python first:
most of the time to the first step. What comes of that (`jax.export`) is kept beside the cache, under a name that says
all it depends on: the sources of jaxpto, the installed packages, JAX's settings, what the function is made from, and
the structure, shapes and devices of its arguments. (A module's constant that is changed while the process runs is not
in the name.)

Nothing in a file is run as Python: it is a program for XLA and the structure of its results as JSON. As that program
runs all the same, the folder must be one that nobody else can write to.
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
from jaxpto.storage.files import StorageError, replacing
from jaxpto.storage.own_folder import own_folder

FOLDER = "jaxpto-traced"
# As wide as the processor's vectors are: XLA stays below 512 bits unless told, and is up to 8 percent slower then.
WIDE = {"xla_cpu_prefer_vector_width": 512}
# Code that the name of a file accounts for: jaxpto's by its sources, that of others by their versions.
_ACCOUNTED = frozenset({"builtins", "copyreg", "functools", "jaxpto", "jax", "jaxlib", "flax", "numpy"})
_DIGEST = hashlib.sha256().digest_size
_log = logging.getLogger(__name__)


def kept(function: Callable[..., Any], made_from: Any, compiler_options: dict[str, Any] = WIDE) -> Callable[..., Any]:
    """The function compiled, as by `jax.jit`, with its traced form kept on disk where JAX has a compilation cache.

    Where that cannot be, because there is no cache, or the program depends on something that no file name can stand for
    (a function or class from outside of jaxpto, a closure, a call back to Python), it is what `jax.jit` gives.

    Args:
        function: of pytrees of arrays; a pure function of its arguments and what it is made from.
        made_from: everything that decides what the function does, in a form that can be pickled: settings, functions
            at the top level of a module of jaxpto, `functools.partial` of such.
        compiler_options: as of `jax.jit`.
    """
    plain = jax.jit(function, compiler_options=compiler_options)
    programs: dict[Hashable, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        leaves, given = jax.tree.flatten(arguments)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        shapes = tuple((leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves)
        signature = given, shapes, _settings()
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
    """The program of a file, which is written if it is not there; None if the program cannot be kept."""
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

        try:
            program = bytes(export.export(jax.jit(flat))(*leaves).serialize())
        # a call back to Python, or to a library that promises nothing, or a result of an unknown kind
        except (NotImplementedError, ValueError):
            return None
        found = program, structure(results_text)
        _write(path, program, results_text)
    program, results = found
    run = jax.jit(export.deserialize(bytearray(program)).call, compiler_options=compiler_options)
    return lambda *leaves: jax.tree.unflatten(results, run(*leaves))


def _read(path: Path) -> tuple[bytes, Any] | None:
    """Program, and structure of its results; None where the file is missing, damaged or of another kind."""
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
    """The file for a program, or None where there is no place for it or no name."""
    settings = jax.config.values
    cache = settings["jax_compilation_cache_dir"] if settings["jax_enable_compilation_cache"] else None
    if not cache or "://" in cache or settings["jax_disable_jit"]:
        return None
    folder = Path(cache) / FOLDER
    if not _usable(folder):
        return None
    devices = jax.default_backend(), jax.local_devices()[0].device_kind, [str(leaf.sharding) for leaf in leaves]
    name = io.BytesIO()
    try:
        _Content(name).dump((_code(), devices, content))
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return folder / hashlib.sha256(name.getvalue()).hexdigest()


@functools.cache
def _usable(folder: Path) -> bool:
    """Whether programs may be kept there; says why not, once."""
    if problem := own_folder(folder):
        _log.warning("programs are traced anew in every run, because %s", problem)
    return not problem


class _Content(pickle.Pickler):
    """Refuses functions and classes that may change while the name of the file stays the same."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | types.FunctionType) and obj.__module__.partition(".")[0] not in _ACCOUNTED:
            raise pickle.PicklingError(f"{obj.__module__}.{obj.__qualname__} may change without a sign")
        return NotImplemented


@functools.cache
def _code() -> tuple[str, list[str], str]:
    """What runs: sources of jaxpto, installed packages, Python."""
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
    """JAX's settings, but for those that say where its cache lies."""
    values = jax.config.values
    return tuple((name, repr(getattr(jax.config, name, values[name]))) for name in values if "cache" not in name)
