"""Strict JAX for every test: 64-bit on, no implicit rank promotion, shapes of signatures checked at run time."""

import os
import pathlib

import pytest
from jaxtyping import install_import_hook

install_import_hook("jaxpto", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/jaxpto/xla-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

SHARED = pathlib.Path(os.environ.get("JAXPTO_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder with reference data of the original implementations; tests that need it skip where it is absent."""
    if not (SHARED / "README.md").exists():
        pytest.skip(f"no reference data at {SHARED}; set JAXPTO_SHARED to the folder that holds it")
    return SHARED
