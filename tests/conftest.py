"""Strict JAX for every test: 64-bit on, no implicit rank promotion, shapes of signatures checked at run time."""

import gc
import os
import pathlib
import signal
from collections.abc import Iterator

import pytest
from jaxtyping import install_import_hook

install_import_hook("jaxpto", "beartype.beartype")

import ase  # noqa: E402
import jax  # noqa: E402
from crystals import four_species  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/jaxpto/xla-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# In the background of a shell, or under nohup, a suite starts with these ignored; tests of interrupts need them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SHARED = pathlib.Path(os.environ.get("JAXPTO_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file() -> Iterator[None]:
    """Frees compiled programs after each file: each takes many memory maps, of which a process may have 65,530."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder with reference data of the original implementations; tests that need it skip where it is absent."""
    if not (SHARED / "README.md").exists():
        pytest.skip(f"no reference data at {SHARED}; set JAXPTO_SHARED to the folder that holds it")
    return SHARED


@pytest.fixture(scope="session")
def crystal() -> ase.Atoms:
    """A triclinic, rattled five-atom cell, smaller than the cutoff, its species interleaved."""
    return four_species()
