"""Checkpoints: what comes out of real and hand-made files, and that hostile and damaged ones are refused."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pathlib
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from converters.torch_files import CheckpointError, Reference, StandIn, read_checkpoint


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Storage:
    """Pickled as a persistent id."""

    def __init__(self, kind: str, key: str, values: np.ndarray, view: Any = None, count: int | None = None) -> None:
        self.kind, self.key, self.values, self.view = kind, key, values, view
        self.count = values.size if count is None else count


@pytest.fixture(autouse=True)
def _torch(monkeypatch) -> None:
    """Just enough of a module `torch` for Python's own pickle to write its names."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "BoolStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda *a: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(utils, name, function)
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def tensor(storage: Storage, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Call:
    function = sys.modules["torch._utils"]._rebuild_tensor_v2
    return Call(function, storage, offset, shape, strides, False, collections.OrderedDict())


def dump(content: Any, *, legacy: bool = False, protocol: int = 2) -> tuple[bytes, dict[str, Storage]]:
    storages: dict[str, Storage] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, Storage):
                return None
            storages[obj.key] = obj
            kind = getattr(sys.modules["torch"], obj.kind)
            identifier = ("storage", kind, obj.key, "cuda:0", obj.count)
            return (*identifier, obj.view) if legacy else identifier

    stream = io.BytesIO()
    Pickler(stream, protocol).dump(content)
    return stream.getvalue(), storages


def write_zip(path: pathlib.Path, content: Any, order: str = "", **options: Any) -> pathlib.Path:
    pickled, storages = dump(content, **options)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        if order:
            archive.writestr("archive/byteorder", order)
        for key, storage in storages.items():
            archive.writestr(f"archive/data/{key}", storage.values.tobytes())
    return path


def write_legacy(path: pathlib.Path, content: Any) -> pathlib.Path:
    pickled, storages = dump(content, legacy=True)
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [pickled, pickle.dumps(list(storages), 2)]
    for storage in storages.values():
        parts += [struct.pack("<q", storage.values.size), storage.values.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def numbers(dtype: str, count: int = 12) -> np.ndarray:
    return np.arange(count).astype(dtype)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_tensors_of_both_formats(write, tmp_path) -> None:
    storage = Storage("FloatStorage", "0", numbers("f4"))
    halves = Storage("HalfStorage", "1", numbers("f2"))
    # upper halves of 1.0, -2.5 and 3.140625
    brains = Storage("BFloat16Storage", "2", np.array([0x3F80, 0xC020, 0x4049], "u2"))
    content = {
        "matrix": tensor(storage, (3, 4), (4, 1)),
        "transposed": Call(sys.modules["torch._utils"]._rebuild_parameter, tensor(storage, (4, 3), (1, 4)), True, None),
        "expanded": tensor(storage, (5, 2), (0, 1), 3),
        "scalar": tensor(Storage("LongStorage", "3", numbers("i8", 1)), (), ()),
        "empty": tensor(Storage("DoubleStorage", "4", numbers("f8", 0)), (0, 3), (3, 1)),
        "flags": tensor(Storage("BoolStorage", "5", numbers("?", 3)), (3,), (1,)),
        "half": tensor(halves, (12,), (1,)),
        "brain": tensor(brains, (3,), (1,)),
        "rest": (1, -(2**70), 2.5, "text", b"bytes", None, True, {1, 2}, frozenset("a"), [{}]),
    }
    read = read_checkpoint(write(tmp_path / "file", content))
    matrix = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(read["matrix"], matrix)
    np.testing.assert_array_equal(read["transposed"], matrix.T)
    np.testing.assert_array_equal(read["expanded"], [[3, 4]] * 5)
    np.testing.assert_array_equal(read["brain"], [1.0, -2.5, 3.140625])
    assert read["scalar"].shape == ()
    assert read["empty"].shape == (0, 3)
    types_read = {name: read[name].dtype.str[1:] for name in ("matrix", "scalar", "empty", "flags", "half", "brain")}
    assert types_read == {"matrix": "f4", "scalar": "i8", "empty": "f8", "flags": "b1", "half": "f2", "brain": "f4"}
    assert read["rest"] == content["rest"]


def test_view_of_a_legacy_storage(tmp_path) -> None:
    storage = Storage("FloatStorage", "0", numbers("f4"), view=("5", 4, 6))
    read = read_checkpoint(write_legacy(tmp_path / "file", [tensor(storage, (2, 2), (3, 1), 1)]))
    np.testing.assert_array_equal(read[0], [[5, 6], [8, 9]])


def test_big_endian(tmp_path) -> None:
    storage = Storage("FloatStorage", "0", numbers(">f4"))
    read = read_checkpoint(write_zip(tmp_path / "file", [tensor(storage, (12,), (1,))], order="big"))
    np.testing.assert_array_equal(read[0], np.arange(12.0))
    assert read[0].dtype == np.float32


@pytest.mark.parametrize("protocol", range(6))
def test_instances_become_stand_ins(protocol: int, tmp_path, monkeypatch) -> None:
    """Whatever the class does when it is made, nothing of it runs."""
    module = types.ModuleType("somebody")

    class Settings(dict):
        def __new__(cls, *_: Any) -> Settings:
            return dict.__new__(cls)

        def __setstate__(self, _: Any) -> None:
            raise AssertionError("was run")

    Settings.__module__, Settings.__qualname__ = "somebody", "Settings"
    module.Settings = Settings
    monkeypatch.setitem(sys.modules, "somebody", module)
    settings = Settings()
    settings["cutoff"] = 6.0
    settings.note = "kept"
    path = write_zip(tmp_path / "file", [settings, Settings], protocol=protocol)
    monkeypatch.delitem(sys.modules, "somebody")
    stand_in, reference = read_checkpoint(path)
    assert isinstance(stand_in, StandIn)
    assert stand_in.reference == reference == Reference("somebody", "Settings")
    if protocol >= 2:
        assert stand_in.items == {"cutoff": 6.0}
    assert stand_in.state == {"note": "kept"}


HOSTILE = [
    Call(os.system, "touch hacked"),
    Call(eval, "open('hacked', 'w')"),
    Call(exec, "open('hacked', 'w')"),
    Call(open, "hacked", "w"),
    Call(getattr, "text", "format"),
    Call(__import__, "os"),
    Call(builtins.print, "text"),
    {"state_dict": [1, Call(os.system, "touch hacked")]},
    Call(os.popen, "touch hacked"),
    Call(pickle.loads, pickle.dumps(Call(os.system, "touch hacked"))),
    Call(io.BytesIO, b""),
    Call(np.load, "file"),
    Call(np.fromfile, "file"),
    os.system,
    eval,
]


@pytest.mark.parametrize("content", HOSTILE, ids=[str(index) for index in range(len(HOSTILE))])
@pytest.mark.parametrize("write", ["zip", "legacy", "pickle"])
def test_hostile_pickles_are_refused(content: Any, write: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    if write == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        {"zip": write_zip, "legacy": write_legacy}[write](path, content)
    with pytest.raises(CheckpointError, match=r"wants to (call|use) .*nothing was executed") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


# hand-written opcodes that Python's own pickle would not write
CRAFTED = {
    "global of protocol 0": (b"cos\nsystem\n(S'touch hacked'\ntR.", "wants to use os.system"),
    "instance of protocol 0": (b"(S'touch hacked'\nios\nsystem\n.", "wants to use os.system"),
    "instance of protocol 1": (b"(cposix\nsystem\nS'touch hacked'\no.", "wants to use posix.system"),
    "stack global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "wants to use os.system"),
    "dotted name": (b"\x80\x04\x8c\x0bcollections\x8c\x0cabc.sys.exit\x93)R.", "wants to use collections.abc.sys.exit"),
    "third-party function": (b"ctorch.hub\nload\n(S'x'\ntR.", "wants to call torch.hub.load"),
    "extension registry": (b"\x80\x02\x82\x01.", "EXT1"),
    "text persistent id": (b"Pabc\n.", "PERSID"),
    "call of data": (b"\x80\x02K\x01)R.", "damaged"),
    "call of a stand-in": (b"csomebody\nClass\n)R)R.", "damaged"),
    "state of plain data": (b"\x80\x02]}b.", "damaged"),
    "state of a name": (b"csomebody\nClass\n}b.", "damaged"),
    "bytes of a number": (b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.", "damaged"),
    "memo without entry": (b"\x80\x02h\x07.", "damaged"),
    "empty stack": (b"\x80\x02.", "damaged"),
    "no mark": (b"\x80\x02K\x01t.", "damaged"),
    "list as key": (b"\x80\x02}]K\x01s.", "damaged"),
    "deep key": (b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.", "damaged"),
    "no end": (b"\x80\x02K\x01", "damaged"),
    "long text": (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_pickles_are_refused(name: str, tmp_path) -> None:
    pickled, message = CRAFTED[name]
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_state_of_a_state_dict_changes_nothing(tmp_path) -> None:
    """Attributes given to one dict reach neither its class nor any other dict."""
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "archive/data.pkl", b"\x80\x02ccollections\nOrderedDict\n)RN}X\x04\x00\x00\x00evilK\x01s\x86b."
        )
    assert read_checkpoint(path) == {}
    assert not hasattr(collections.OrderedDict(), "evil")


@pytest.mark.parametrize("bad", [(13, 1, 0), (12, 2, 0), (12, 1, 1), (3, -1, 8), (-1, 1, 0), (2**62, 4, 0)])
def test_tensors_stay_in_their_storage(bad: tuple[int, int, int], tmp_path) -> None:
    size, stride, offset = bad
    content = [tensor(Storage("FloatStorage", "0", numbers("f4")), (size,), (stride,), offset)]
    for write in (write_zip, write_legacy):
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(write(tmp_path / "file", content))


def test_storages_of_a_wrong_size_are_refused_before_they_are_allocated(tmp_path) -> None:
    content = [tensor(Storage("FloatStorage", "0", numbers("f4"), count=2**50), (2,), (1,))]
    for write in (write_zip, write_legacy):
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(write(tmp_path / "file", content))
    bomb = tmp_path / "bomb"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(80 * 2**20))
    with pytest.raises(CheckpointError, match="times as many"):
        read_checkpoint(bomb)


def test_records_outside_of_the_archive_are_not_reached(tmp_path) -> None:
    (tmp_path / "secret").write_bytes(numbers("f4").tobytes())
    content = [tensor(Storage("FloatStorage", "../../secret", numbers("f4")), (12,), (1,))]
    read = read_checkpoint(write_zip(tmp_path / "file", content))  # it lies in the zip file under that name
    np.testing.assert_array_equal(read[0], np.arange(12.0))
    with zipfile.ZipFile(tmp_path / "file") as archive:
        pickled = archive.read("archive/data.pkl")
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "other")


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_truncated_at_any_byte(write, tmp_path) -> None:
    content = {"a": tensor(Storage("FloatStorage", "0", numbers("f4")), (12,), (1,)), "b": {1, "x"}}
    whole = write(tmp_path / "whole", content).read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"is empty|is damaged"):
            read_checkpoint(cut)


def test_changed_bytes_never_crash(tmp_path) -> None:
    """A damaged file is read with other numbers or refused, nothing else."""
    content = {"a": tensor(Storage("FloatStorage", "0", numbers("f4")), (12,), (1,)), "b": {1, "x"}}
    generator = np.random.default_rng(0)
    for write in (write_zip, write_legacy):
        whole = write(tmp_path / "whole", content).read_bytes()
        for _ in range(500):
            damaged = bytearray(whole)
            for place in generator.integers(len(whole), size=generator.integers(1, 5)):
                damaged[place] = generator.integers(256)
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                read_checkpoint(tmp_path / "damaged")
            except CheckpointError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_other_files(tmp_path) -> None:
    cases = {"text": b"hello, this is no checkpoint", "json": b'{"a": 1}', "html": b"<!DOCTYPE html>", "nul": bytes(99)}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"checkpoint .*{name} is damaged or no PyTorch file"):
            read_checkpoint(tmp_path / name)
    (tmp_path / "plain").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="no magic number"):
        read_checkpoint(tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"0 records data\.pkl"):
        read_checkpoint(tmp_path / "zip")
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        read_checkpoint(tmp_path / "empty")
    for missing in (tmp_path / "missing", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(missing)


def test_published_checkpoints(shared) -> None:
    """Shapes, types and names of checkpoints as their authors wrote them."""
    gptff = read_checkpoint(shared / "weights" / "gptff_v2.pth")
    assert set(gptff) == {"state_dict", "cfg"}
    assert all(isinstance(value, np.ndarray) for value in gptff["state_dict"].values())
    state = read_checkpoint(shared / "weights" / "M3GNet-MP-2021.2.8-PES" / "state.pt")
    assert all(np.isfinite(value).all() for value in state.values())
    mace = read_checkpoint(shared / "weights" / "fixtures" / "mace_mp0b_reduced.model")
    assert str(mace.reference) == "mace.modules.models.ScaleShiftMACE"
    assert isinstance(mace.state, dict)
