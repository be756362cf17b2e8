"""Traced programs on disk: found again, never mistaken for another one, and never in the way."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_dynamics import make
from test_parallel import child

from jaxpto.devices import compiled
from jaxpto.devices.compiled import cached_jit
from jaxpto.integrators.nve import nve
from jaxpto.md import initial

X = np.linspace(0.0, 1.0, 5)


@pytest.fixture
def cache(tmp_path):
    """An empty compilation cache; gives the folder of the traced programs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / compiled.FOLDER
    jax.config.update("jax_compilation_cache_dir", before)


class Traced:
    """A function of a pytree that counts how often it is traced."""

    def __init__(self):
        self.times = 0

    def __call__(self, tree):
        self.times += 1
        return {"sine": jnp.sin(tree["x"]), "number": tree["n"] + 1, "none": None}


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


def test_the_next_process_does_not_trace_and_gets_the_same(cache):
    first, second = Traced(), Traced()
    found = [cached_jit(function, "sine")({"x": X, "n": 3}) for function in (first, second)]
    assert (first.times, second.times) == (1, 0)
    for values in found:
        assert values.keys() == {"sine", "number", "none"}
        np.testing.assert_array_equal(values["sine"], jax.jit(jnp.sin)(X))
        assert int(values["number"]) == 4
        assert values["none"] is None


def test_shapes_types_structure_settings_and_what_it_is_made_from_make_another_program(cache, monkeypatch):
    def new(made_from, *arguments):
        """Whether a function made from this is traced."""
        function = Traced()
        cached_jit(function, made_from)(*arguments)
        return function.times == 1

    assert new("sine", {"x": X, "n": 3})
    assert new("sine", {"x": X[:4], "n": 3})
    assert new("sine", {"x": X.astype(np.float32), "n": 3})
    assert new("sine", {"x": X, "n": np.int32(3)})
    assert new("sine", {"x": X, "n": 3, "m": None})
    assert new("cosine", {"x": X, "n": 3})
    assert new(functools.partial(nve, timestep_fs=1.0), {"x": X, "n": 3})
    assert new(functools.partial(nve, timestep_fs=2.0), {"x": X, "n": 3})
    with jax.default_matmul_precision("highest"):
        assert new("sine", {"x": X, "n": 3})
    assert not new("sine", {"x": X, "n": 3})
    monkeypatch.setattr(compiled, "_code", lambda: ("other sources", [], ""))
    assert new("sine", {"x": X, "n": 3})


def test_the_code_is_that_of_the_package(monkeypatch, tmp_path):
    """Another byte in one source, or another package, is another code."""
    source = pathlib.Path(compiled.__file__).read_text()
    module = tmp_path / "devices" / "compiled.py"
    module.parent.mkdir()
    module.write_text(source)
    monkeypatch.setattr(compiled, "__file__", str(module))
    before = compiled._code.__wrapped__()
    module.write_text(source + "\n")
    after = compiled._code.__wrapped__()
    assert before[0] != after[0]
    assert before[1:] == after[1:]
    assert any(name.startswith(f"jax-{jax.__version__}") for name in before[1])
    (tmp_path / "something-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert compiled._code.__wrapped__()[1] != before[1]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:99] + b"x" + data[100:]]
)
def test_a_damaged_file_is_replaced(cache, damage):
    cached_jit(Traced(), "sine")({"x": X, "n": 3})
    (path,) = files(cache)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = Traced()
    np.testing.assert_array_equal(cached_jit(again, "sine")({"x": X, "n": 3})["sine"], np.sin(X))
    assert again.times == 1
    last = Traced()
    cached_jit(last, "sine")({"x": X, "n": 3})
    assert last.times == 0


def a_function_of_this_file():
    """Nothing tells when its lines change."""


@pytest.mark.parametrize("made_from", [lambda: None, a_function_of_this_file, Traced, functools.partial(Traced)])
def test_what_may_change_without_a_sign_is_not_kept(cache, made_from):
    np.testing.assert_array_equal(cached_jit(Traced(), made_from)({"x": X, "n": 3})["sine"], np.sin(X))
    assert not files(cache)


def test_a_call_back_to_python_is_not_kept(cache):
    def through_python(x):
        return jax.pure_callback(np.cos, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    np.testing.assert_array_equal(cached_jit(through_python, "callback")(X), np.cos(X))
    assert not files(cache)


def test_no_place_for_the_file_is_no_failure(cache):
    cache.write_text("a file where the folder should be")
    assert int(cached_jit(Traced(), "sine")({"x": X, "n": 3})["number"]) == 4


def test_without_a_cache_nothing_is_kept(cache):
    jax.config.update("jax_compilation_cache_dir", None)
    assert int(cached_jit(Traced(), "sine")({"x": X, "n": 3})["number"]) == 4
    assert not files(cache)


def test_errors_of_the_function_come_through(cache):
    def wrong(x):
        raise ValueError("a value")

    with pytest.raises(ValueError, match="a value"):
        cached_jit(wrong, "wrong")(X)


@pytest.mark.parametrize("ensemble", ["npt", "nvt", "nve"])
def test_a_run_begins_from_a_kept_program_with_the_numbers_of_a_traced_one(cache, ensemble):
    setup = make(ensemble)
    layout = initial.first_layout(setup)
    states, watch = jax.jit(lambda: initial.initial_state(setup, layout), compiler_options=initial.RUN_ONCE)()
    for _ in range(2):
        begun = initial.begin(setup, layout)
        assert len(files(cache)) == 1
        for mine, other in zip(jax.tree.leaves(begun[:2]), jax.tree.leaves((states, watch)), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)


def test_a_second_process_traces_neither_beginning_nor_steps_and_one_program_serves_all_chunks(tmp_path):
    """Two devices: an array without elements that came back from elsewhere once had all steps compiled twice."""
    code = f"""
import json
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_compilation_cache_dir", {str(tmp_path)!r})
from jaxpto import neighbors
from jaxpto.md import initial
from test_dynamics import *
traced, compiled, exported = [], [], jax.export.export
def counting(function, platforms):
    traced.append(1)
    return exported(function, platforms=platforms)
jax.export.export = counting
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None)
setup = make()
layout = neighbors.allocate([from_ase(setup.atoms, np.float64)], setup.potential.cutoff, 0.4, headroom=2.0)
states, watch, _ = initial.begin(setup, layout)
assert states.neighbors.packed_receivers.size == 0
mesh = loop.replica_mesh(3, jax.local_devices()[:2])
states, watch = loop.pad_replicas(states, watch, mesh)
chunks = loop.run(setup, states, watch, 1, mesh)
next(chunks)
compiled.clear()
last = list(chunks)[-1]
print(json.dumps([len(traced), len(compiled), np.asarray(last.states.system.positions).tolist()]))
"""
    first, second = (child(code, devices=2) for _ in range(2))
    assert first[:2] == [2, 0]
    assert second[:2] == [0, 0]
    assert second[2] == first[2]
