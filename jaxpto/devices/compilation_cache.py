"""JAX's compilation cache for the commands: in a folder that only the user can write to, without damaged entries."""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any

import jax

from jaxpto.storage.own_folder import own_folder

_log = logging.getLogger(__name__)


def use_compilation_cache() -> None:
    """Keep compiled programs in ~/.cache/jaxpto/xla, or in JAX_COMPILATION_CACHE_DIR, and replace damaged entries.

    The programs in the cache are run, so the default folder is used only if nobody else can write to it. A folder that
    the user names is not checked.
    """
    if jax.config.jax_compilation_cache_dir is None:  # ty: ignore[missing-attribute]
        folder = Path.home() / ".cache" / "jaxpto" / "xla"
        if problem := own_folder(folder):
            _log.warning("programs are compiled anew in every run, because %s", problem)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    replace_damaged_entries()


def replace_damaged_entries() -> None:
    """Make JAX remove cache entries that it cannot read, so that they are written again.

    JAX writes entries in place and never overwrites them. If a kill or a full disk truncates one, every later process
    fails to read it and compiles again. JAX has no public hook for this; if its private function has moved, nothing is
    changed.
    """
    try:
        from jax._src import compilation_cache as private

        read = private.get_executable_and_time
    except (ImportError, AttributeError):
        return
    if hasattr(read, "replaces_damaged_entries"):
        return

    @functools.wraps(read)
    def get_executable_and_time(key: str, *others: Any, **named: Any) -> Any:
        try:
            return read(key, *others, **named)
        except Exception:
            folder = jax.config.jax_compilation_cache_dir  # ty: ignore[missing-attribute]
            if not folder or "://" in folder:
                raise
            with contextlib.suppress(OSError):
                (Path(folder) / f"{key}-cache").unlink()
                _log.warning("a damaged entry of the compilation cache in %s is written anew: %s", folder, key)
            return None, None

    get_executable_and_time.replaces_damaged_entries = True  # ty: ignore[missing-attribute]
    private.get_executable_and_time = get_executable_and_time  # ty: ignore[invalid-assignment]
