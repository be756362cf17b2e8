"""Checkpoints on the disk: exact round trips, kills in the middle of a save, damage of every kind, a full disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from child_process import Children, children
from flax import struct

from jaxpto.errors import InputError
from jaxpto.neighbors import Layout
from jaxpto.storage.checkpoint import Checkpoints, CheckpointWarning, layout_from_json, layout_to_json

# the platform is named: to ask JAX for it would start its threads, which a forked child lacks
LAYOUT = Layout(6.0, 0.4, (1, 2, 3), (1, 1, 2), (40,), (82, 22, 8), (10, 11, 12), platform="cpu")


@struct.dataclass
class Edges:
    """Arrays with a static layout beside them, as a neighbour list is."""

    senders: jax.Array
    shifts: jax.Array
    reference_positions: jax.Array
    reference_cell: jax.Array
    overflow: jax.Array
    layout: Layout = struct.field(pytree_node=False)


@struct.dataclass
class State:
    """A state as the engine has them: nested, with a static field, every type, and an empty leaf."""

    neighbors: Edges
    bath: Any
    key: jax.Array
    step: jax.Array


def make_state(seed: int, n: int = 20) -> State:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=(2, *shape))  # noqa: E731
    neighbors = Edges(
        senders=jnp.asarray(rng.integers(0, n, (2, n * 33)), jnp.int32),
        shifts=jnp.asarray(rng.integers(-2, 3, (2, n * 33, 3)), jnp.int32),
        reference_positions=jnp.asarray(draw(n, 3), jnp.float32),
        reference_cell=jnp.asarray(draw(3, 3), jnp.float64),
        overflow=jnp.asarray([True, False]),
        layout=LAYOUT,
    )
    chain = {"velocity": jnp.asarray(draw(3)), "empty": jnp.zeros((2, 0, 3), jnp.float32), "none": None}
    special = jnp.asarray([np.nan, -0.0, np.inf, 5e-324])
    key = jnp.asarray(rng.integers(0, 2**32, (2, 2)), jnp.uint32)
    return State(neighbors, [chain, (special, jnp.asarray(3, jnp.int16))], key, jnp.asarray(seed, jnp.int64))


def assert_identical(stored: Any, expected: Any) -> None:
    assert jax.tree.structure(stored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(stored), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def damage(folder: Path, how: Callable[[Path], None]) -> None:
    """Damage the files of a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        how(path)


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Generator[Children]:
    """Child processes that have this module's names at hand, with the test's JAX settings."""
    with children(tmp_path_factory.mktemp("children"), "test_checkpoint", "orbax.checkpoint") as ready:
        yield ready


def test_state_comes_back_bit_for_bit_with_its_static_fields(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path / "checkpoints"), make_state(7)
    assert checkpoints.restore() is None
    metadata = {"samples": [3, 4], "layout": layout_to_json(LAYOUT), "time": 0.1, "note": "Pb\u2013O"}
    checkpoints.save(7, state, metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = checkpoints.restore()
    assert found is not None
    assert (found.index, found.metadata) == (7, metadata)
    assert layout_from_json(found.metadata["layout"]) == LAYOUT
    assert hash(layout_from_json(found.metadata["layout"])) == hash(LAYOUT)
    assert_identical(found.into(state), state)
    assert_identical(found.into(jax.eval_shape(lambda: make_state(0))), state)


def test_a_template_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": jnp.zeros(3), "b": jnp.zeros(2)}, {})
    found = checkpoints.restore()
    assert found is not None
    with pytest.raises(InputError, match=r"a is float64\[3\], this run needs float64\[4\]"):
        found.into({"a": jnp.zeros(4), "b": jnp.zeros(2)})
    with pytest.raises(InputError, match=r"a is float64\[3\], this run needs float32\[3\]"):
        found.into({"a": jnp.zeros(3, jnp.float32), "b": jnp.zeros(2)})
    with pytest.raises(InputError, match=r"b is float64.*needs absent"):
        found.into({"a": jnp.zeros(3)})
    with pytest.raises(InputError, match="c is absent"):
        found.into({"a": jnp.zeros(3), "b": jnp.zeros(2), "c": jnp.zeros(1)})


def test_the_newest_two_stay_and_a_run_that_went_back_forgets_its_future(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    names = lambda: sorted(os.listdir(tmp_path))  # noqa: E731
    for index in (1, 2, 3):
        checkpoints.save(index, {"x": jnp.asarray(index)}, {})
    assert names() == ["step_0000000002", "step_0000000003"]
    (tmp_path / ".partial-step_0000000009").mkdir()  # left by a kill
    checkpoints.save(3, {"x": jnp.asarray(30)}, {})
    assert names() == ["step_0000000002", "step_0000000003"]
    found = checkpoints.restore()
    assert found is not None
    assert found.arrays["x"] == 30
    (tmp_path / "step_0000000003" / "state" / "manifest.ocdbt").unlink()
    checkpoints.save(2, {"x": jnp.asarray(2)}, {})
    assert names() == ["step_0000000002"]


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


@pytest.mark.parametrize("how", [_truncate, _flip, _garbage, Path.unlink], ids=["cut", "flipped", "garbage", "deleted"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path, how: Callable[[Path], None]) -> None:
    checkpoints = Checkpoints(tmp_path)
    for index in (1, 2):
        checkpoints.save(index, make_state(index), {"index": index})
    damage(tmp_path / "step_0000000002", how)
    with pytest.warns(CheckpointWarning) as caught:
        found = checkpoints.restore()
    assert found is not None
    assert found.index == 1
    assert_identical(found.into(make_state(0)), make_state(1))
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith(f"{tmp_path / 'step_0000000002'} is damaged (")
    assert message.endswith("falling back to the checkpoint before it")
    assert len(message.splitlines()) == 1
    checkpoints.save(2, make_state(2), {"index": 2})
    found = checkpoints.restore()
    assert found is not None
    assert_identical(found.into(make_state(0)), make_state(2))


def test_damage_of_any_single_file_never_yields_other_numbers(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "sound").save(1, make_state(1), {"index": 1})
    sound = tmp_path / "sound" / "step_0000000001"
    files = sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file())
    noticed = 0
    for file in files:
        for how in (_truncate, _flip):
            folder = tmp_path / "damaged" / "step_0000000001"
            shutil.copytree(sound, folder)
            how(folder / file)
            try:
                found, message = Checkpoints(tmp_path / "damaged").restore(), None
            except InputError as error:
                found, message = None, str(error)
            if found is None:
                noticed += 1
                assert message is not None
                assert "none of its 1 checkpoints is readable" in message
                assert len(message.splitlines()) == 1
            else:  # the file was of no consequence
                assert found.metadata == {"index": 1}
                assert_identical(found.into(make_state(0)), make_state(1))
            shutil.rmtree(tmp_path / "damaged")
    assert noticed >= 4


def test_the_digests_notice_a_change_that_the_format_cannot(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": jnp.arange(3.0)}, {})
    target = tmp_path / "step_0000000001" / "state"
    shutil.rmtree(target)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(target, args=ocp.args.PyTreeSave({"x": np.array([0.0, 1.0, 2.5])}))
    with pytest.raises(InputError, match=r"its file .* is (changed|missing|unknown)"):
        checkpoints.restore()


def test_sigkill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path: Path, child: Children) -> None:
    moments, last = random.Random(2), 0
    for _ in range(3):
        save_all = f"""
from test_checkpoint import *
jax.config.update("jax_enable_x64", True)
checkpoints = Checkpoints(Path({str(tmp_path)!r}))
found = checkpoints.restore()
index = 0 if found is None else found.index
print(index, flush=True)
while True:
    index += 1
    checkpoints.save(index, make_state(index), dict(index=index))
    print(index, flush=True)
"""
        status, output = child.run_and_kill(save_all, lines=2, after=moments.uniform(0.0, 0.3))
        assert status == -signal.SIGKILL, output
        reported = [int(word) for word in output.split()]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a kill damages nothing, it only leaves out
            found = Checkpoints(tmp_path).restore()
        if found is not None:
            assert found.metadata == {"index": found.index}
            assert_identical(found.into(make_state(0)), make_state(found.index))
        newest = 0 if found is None else found.index
        assert last <= reported[0] <= reported[-1] <= newest <= reported[-1] + 1
        last = newest
    assert last > 0


@pytest.mark.parametrize("noticed_by", ["the claim", "Orbax"])
def test_a_full_disk_is_reported_in_one_line_and_leaves_the_one_before(
    tmp_path: Path, child: Children, noticed_by: str
) -> None:
    Checkpoints(tmp_path).save(1, make_state(1), {})
    status, output = child.run(f"""
import resource
from test_checkpoint import *
from jaxpto.storage.files import StorageError
jax.config.update("jax_enable_x64", True)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
if {noticed_by!r} == "Orbax":
    Checkpoints._claim = lambda self, needed: None  # as if the disk filled up a moment later
try:
    Checkpoints(Path({str(tmp_path)!r})).save(2, make_state(2, n=400), dict())
except StorageError as error:
    print(error)
""")
    assert status == 0, output
    message = output.splitlines()[-1]
    assert len(output.splitlines()) == 1 or noticed_by == "Orbax", output
    assert message.startswith(f"{tmp_path / 'step_0000000002'}: could not be written (0.4 MB needed): "), output
    assert "free space and run again (a sweep with `resume=True`)" in message
    assert os.listdir(tmp_path) == ["step_0000000001"]
    found = Checkpoints(tmp_path).restore()
    assert found is not None
    assert_identical(found.into(make_state(0)), make_state(1))


def test_nothing_is_printed_and_no_thread_is_left(
    tmp_path: Path, child: Children, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {thread.name for thread in threading.enumerate()}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {})
    checkpoints.restore()
    assert {thread.name for thread in threading.enumerate()} <= before
    assert capfd.readouterr() == ("", "")
    status, output = child.run(f"""
from test_checkpoint import *
checkpoints = Checkpoints(Path({str(tmp_path)!r}))
checkpoints.save(2, dict(a=np.arange(5)), dict())
checkpoints.restore()
""")
    assert (status, output) == (0, "")
