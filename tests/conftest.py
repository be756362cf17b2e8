"""Strict JAX for every test: 64-bit on, no implicit rank promotion, shapes of signatures checked at run time."""

import gc
import os
import pathlib
import signal
from collections.abc import Iterator

# Also for the processes that tests start. What the environment says stands.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/jaxpto/xla-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the threads of small matrices wait by spinning

import pytest
from jaxtyping import install_import_hook

install_import_hook("jaxpto", "beartype.beartype")

import ase  # noqa: E402
import jax  # noqa: E402
from crystals import four_species  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)
gc.set_threshold(50_000)  # as commands do: tracing makes many objects and no garbage

# In the background of a shell, or under nohup, a suite starts with these ignored; tests of interrupts need them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SHARED = pathlib.Path(os.environ.get("JAXPTO_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


LONGEST = (
    "notebooks", "reweighting", "landau", "train", "neighbors", "parallel", "matching", "sweep",
    "train_architectures", "models", "perovskite", "dynamics", "docs", "integrators", "jax_md", "ensembles",
    "relaxation", "pto_test", "distil", "switching", "harmonic", "deepmd", "committee", "phonons", "free_energy",
    "thermodynamics", "fresh", "parameter_gradients", "loss_gradients", "gptff", "chgnet", "orb", "energy_function",
    "committee_sweep", "programs", "relax", "m3gnet", "lattice_dynamics", "distillation", "mace", "nep", "tensornet",
    "export_model",
)  # fmt: skip
"""Test files of more than 20 processor seconds, longest first. They start in this order; `make test-fast` has none."""


# What XLA spends on a program: its older emitters of kernels take two thirds of the time, one piece has no overhead.
QUICKLY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def _are_quick(config: pytest.Config) -> bool:
    """Whether programs are compiled quickly: unless the slow tests run too, which see what users see."""
    return "not slow" in config.option.markexpr


def pytest_configure(config: pytest.Config) -> None:
    """XLA reads its flags once, when the first array is made."""
    if _are_quick(config) and QUICKLY not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{QUICKLY} {os.environ.get('XLA_FLAGS', '')}"


def _rank(item: pytest.Item) -> int:
    name = item.path.stem.removeprefix("test_")
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that the last ones to run are short; their tests are marked long."""
    items.sort(key=_rank)
    for item in items:
        if _rank(item) < len(LONGEST):
            item.add_marker("long")


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file(request: pytest.FixtureRequest) -> Iterator[None]:
    """How the programs of a file are compiled; frees them afterwards.

    Most run a few times and are compiled quickly. Those of files marked `simulation` run for long, and with the slow
    tests all programs are compiled as users compile them. Each takes many memory maps, of which a process may have
    65,530.
    """
    quickly = _are_quick(request.config) and not request.node.get_closest_marker("simulation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(quickly))  # for the processes that tests start
        jax.config.update("jax_disable_most_optimizations", quickly)
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
