"""The folders of compiled and traced programs: nobody else's, read without running Python, damaged entries replaced."""

import dataclasses
import hashlib
import json
import os
import pathlib
import pickle
import sys
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax._src import compilation_cache as private
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxpto.devices import compilation_cache, compiled, tree_text
from jaxpto.devices.tree_text import UnknownStructureError, describe_tree, structure
from jaxpto.neighbors import Layout
from jaxpto.storage.own_folder import own_folder
from jaxpto.system import System

MARK = "/tmp/jaxpto-test-was-run"
LAYOUT = Layout(6.0, 0.3, (1, 1, 1), (1, 2, 1), (32,), (8, 22), (4, 5))


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """An empty compilation cache of JAX itself, in which everything is kept."""
    original = getattr(private.get_executable_and_time, "__wrapped__", private.get_executable_and_time)
    monkeypatch.setattr(private, "get_executable_and_time", original)  # without what a command has put in its place
    settings = {"jax_compilation_cache_dir": str(tmp_path / "xla"), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    reset_cache()
    yield tmp_path / "xla"
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def compiled_anew() -> np.ndarray:
    """The result of a program that this process has not compiled yet, as far as JAX knows."""
    jax.clear_caches()
    return np.asarray(jax.jit(lambda x: jnp.sin(x) + 3.0)(np.arange(5.0)))


def test_a_half_written_entry_is_replaced(cache: pathlib.Path) -> None:
    """JAX reads it, warns, compiles, and leaves it as it is, in this process and all later ones."""
    expected = compiled_anew()
    (entry,) = cache.glob("jit__lambda*-cache")
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        compiled_anew()
    assert len(entry.read_bytes()) < len(whole)  # what JAX does alone
    compilation_cache.replace_damaged_entries()
    compilation_cache.replace_damaged_entries()  # twice is once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(compiled_anew(), expected)
        assert len(entry.read_bytes()) > 0.9 * len(whole)
        written = entry.stat().st_mtime_ns
        np.testing.assert_array_equal(compiled_anew(), expected)
    assert entry.stat().st_mtime_ns == written


def test_without_the_private_place_jax_stays_as_it_is(cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(private, "get_executable_and_time")
    compilation_cache.replace_damaged_entries()
    assert not hasattr(private, "get_executable_and_time")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(
    mode: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / ".cache" / "jaxpto" / "xla"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(private, "get_executable_and_time", private.get_executable_and_time)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        compilation_cache.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    (line,) = caplog.messages
    assert f"{folder} could be written to by others; remove it" in line
    assert folder.stat().st_mode & 0o7777 == mode


def test_our_folder_is_made_for_its_owner_alone(tmp_path: pathlib.Path) -> None:
    assert not own_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "c").mkdir(mode=0o755)
    assert not own_folder(tmp_path / "c")
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    assert "cannot be used: File exists" in own_folder(tmp_path / "file")


def test_a_folder_of_another_user_is_not_used(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "belongs to another user" in own_folder(tmp_path)


def test_traced_programs_are_neither_written_nor_read_where_others_can_write(
    cache: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cache / compiled.FOLDER
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    for _ in range(2):
        assert float(compiled.cached_jit(lambda x: x + 1.0, "one more")(1.0)) == 2.0
    assert not list(folder.iterdir())
    assert [line for line in caplog.messages if str(folder) in line] == caplog.messages
    assert len(caplog.messages) == 1


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {MARK}",)


def test_a_pickle_in_the_place_of_a_program_does_not_run(cache: pathlib.Path) -> None:
    pathlib.Path(MARK).unlink(missing_ok=True)
    function = compiled.cached_jit(lambda x: x + 1.0, "two more")
    function(1.0)
    (path,) = (cache / compiled.FOLDER).iterdir()
    whole = path.read_bytes()
    planted = pickle.dumps((b"", Payload()))
    path.write_bytes(hashlib.sha256(planted).digest() + planted)
    assert float(compiled.cached_jit(lambda x: x + 1.0, "two more")(1.0)) == 2.0
    assert not pathlib.Path(MARK).exists()
    assert len(path.read_bytes()) == len(whole)


def some_trees() -> list[object]:
    system = System(np.zeros((2, 3)), np.eye(3), np.zeros(2, np.int32), np.ones(2))
    return [None, 1.0, (), [], {}, {"b": (1, [2, None]), "a": system}, (system, {"x": {"y": ()}})]


@pytest.mark.parametrize("tree", some_trees(), ids=str)
def test_structures_come_back_from_their_text(tree: object) -> None:
    text = json.loads(json.dumps(describe_tree(tree)))
    assert structure(text) == jax.tree.structure(tree)


def test_static_fields_come_back() -> None:
    text = json.loads(json.dumps(tree_text._constant(LAYOUT)))
    again = tree_text._of_constant(text)
    assert again == LAYOUT
    assert hash(again) == hash(LAYOUT)


@struct.dataclass
class Foreign:
    x: float


@dataclasses.dataclass
class Other:
    x: float


@pytest.mark.parametrize("tree", [Foreign(1.0), (Other(1.0),), {1: 2.0}], ids=lambda tree: type(tree).__name__)
def test_what_has_no_name_here_is_not_written_down(tree: object) -> None:
    with pytest.raises(UnknownStructureError):
        describe_tree(tree)


@pytest.mark.parametrize(
    "text",
    [
        3,
        "x",
        ["tuple"],
        ["tuple", {}],
        ["os:system", ["*"]],
        ["subprocess:Popen", {"args": "*"}],
        ["builtins:eval", ["*"]],
        ["jaxpto.programs:pickle", {}],
        ["jaxpto.programs:Path", {}],
        ["jaxpto.command:run_command", {}],
        ["jaxpto.not_there:System", {}],
        ["jaxpto.system:System", {"positions": "*"}],
        ["jaxpto.system:System", ["*"]],
    ],
    ids=str,
)
def test_other_texts_are_refused_and_import_nothing(text: object) -> None:
    before = set(sys.modules)
    with pytest.raises(UnknownStructureError):
        structure(text)
    assert set(sys.modules) == before
