"""Reading PyTorch checkpoints, zip or legacy, without PyTorch and without executing anything in them.

Both formats hold a pickle of everything but the numbers, and the raw storages. In the zip format (PyTorch 1.6 on) these
are the records NAME/data.pkl and NAME/data/KEY; in the legacy one four pickles (magic number, version, byte order,
object), a pickled list of keys, and for each key a length and the numbers.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from converters.pickles import MOST_PICKLED, CheckpointError, Constructor, Reference, StandIn, read_pickle

__all__ = ["CheckpointError", "Reference", "StandIn", "read_checkpoint"]

_MOST_BYTES = 8 * 2**30  # in one checkpoint
_MOST_TIMES = 100  # what a file may unpack to, in its own size; PyTorch itself does not compress
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
}
# what damaged data may raise anywhere between zip file and tensor
_DAMAGE = (
    ValueError,  # UnicodeError among them
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RecursionError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


def read_checkpoint(path: str | Path) -> Any:
    """Content of a PyTorch checkpoint: plain data, tensors as numpy arrays, and stand-ins for instances of classes.

    Arrays keep their type, but for bfloat16, which becomes float32. Expanded tensors share memory as they did in torch;
    an array may therefore be read-only.

    Args:
        path: file in the zip or the legacy format, from any device.

    Raises:
        CheckpointError: the file is missing, empty, damaged or of another format, or wants to execute something.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason}; give another path") from None
    if not content:
        raise CheckpointError(f"checkpoint {path} is empty; download or copy it again")
    try:
        if content[:2] == b"PK":
            return _read_zip(content)
        return _read_legacy(content)
    except CheckpointError as error:
        remedy = "nothing was executed, take it from its official source"
        raise CheckpointError(f"checkpoint {path} {error}; {remedy}") from None
    except _DAMAGE as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or no PyTorch file: {_one_line(error)}; download or copy it again"
        ) from None


def _read_zip(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"zip file with {len(pickles)} records data.pkl, not one")
        prefix = pickles[0].removesuffix("data.pkl")
        budget = [min(_MOST_BYTES, _MOST_TIMES * len(content))]
        if (size := sum(info.file_size for info in records.values())) > budget[0]:
            raise ValueError(
                f"its {len(content):,} bytes would unpack to {size:,}, more than {_MOST_TIMES} times as many"
            )

        def read(name: str, most: int) -> bytes:
            size = records[name].file_size
            budget[0] -= size
            if size > most or budget[0] < 0:
                raise ValueError(f"record {name} has {size} bytes, more than belong there")
            return archive.read(records[name])

        order = read(f"{prefix}byteorder", 6).decode() if f"{prefix}byteorder" in records else "little"
        storages: dict[str, tuple[str, np.ndarray]] = {}

        def load_persistent(identifier: Any) -> np.ndarray:
            kind, key, count, view = _parse_identifier(identifier)
            if view is not None:
                raise TypeError("view of a storage in a zip file")
            if key not in storages:
                raw = read(f"{prefix}data/{key}", count * _item_size(kind))
                storages[key] = kind, _from_bytes(raw, kind, order, count)
            if storages[key][0] != kind:
                raise TypeError(f"storage {key} of two types")
            return storages[key][1]

        return read_pickle(io.BytesIO(read(pickles[0], MOST_PICKLED)), _TENSORS, load_persistent)


def _read_legacy(content: bytes) -> Any:
    stream = io.BytesIO(content)
    if content[257:262] == b"ustar":
        raise ValueError("tar file, as PyTorch wrote before version 0.1.10")
    if read_pickle(stream, {}) != _MAGIC_NUMBER:
        raise ValueError("no magic number of PyTorch")
    version, system = read_pickle(stream, {}), read_pickle(stream, {})
    if version != _LEGACY_VERSION:
        raise ValueError("unknown version of the legacy format")
    order = "little" if system["little_endian"] else "big"
    storages: dict[str, tuple[str, np.ndarray]] = {}
    room = [len(content)]

    def load_persistent(identifier: Any) -> np.ndarray:
        kind, key, count, view = _parse_identifier(identifier)
        if key not in storages:
            room[0] -= count * _item_size(kind)
            if room[0] < 0:
                raise ValueError("storages larger than the file")
            # The numbers stand behind the pickle: they are filled in once they are reached, and views see them.
            storages[key] = kind, np.zeros(count, "f4" if kind == _BFLOAT16 else kind)
        storage = storages[key][1]
        if storages[key][0] != kind or storage.size != count:
            raise TypeError(f"storage {key} of two types or sizes")
        if view is None:
            return storage
        _, first, size = view
        if not 0 <= first <= first + size <= storage.size:
            raise ValueError(f"view beyond storage {key}")
        return storage[first : first + size]

    result = read_pickle(stream, _TENSORS, load_persistent)
    for key in read_pickle(stream, {}):
        kind, storage = storages[key]
        (count,) = struct.unpack("<q" if order == "little" else ">q", stream.read(8))
        if count != storage.size:
            raise ValueError(f"storage {key} has {count} numbers instead of {storage.size}")
        storage[:] = _from_bytes(stream.read(count * _item_size(kind)), kind, order, count)
        del storages[key]
    if storages:
        raise EOFError(f"{len(storages)} storages are missing")
    return result


def _parse_identifier(identifier: Any) -> tuple[str, str, int, tuple[str, int, int] | None]:
    """Type, key, number of elements and view of a storage from its persistent id."""
    label, reference, key, _location, count, *view = identifier
    if label != "storage" or not isinstance(reference, Reference) or reference.module.partition(".")[0] != "torch":
        raise TypeError("persistent object that is no storage")
    if reference.name not in _STORAGES:
        raise CheckpointError(f"holds {reference}, a type of numbers that numpy lacks")
    if not isinstance(key, str) or not isinstance(count, int) or count < 0:
        raise TypeError("storage without key or size")
    return _STORAGES[reference.name], key, count, view[0] if view else None


def _item_size(kind: str) -> int:
    return 2 if kind == _BFLOAT16 else np.dtype(kind).itemsize


def _from_bytes(raw: bytes, kind: str, order: str, count: int) -> np.ndarray:
    if len(raw) != count * _item_size(kind):
        raise EOFError(f"storage of {len(raw)} bytes instead of {count * _item_size(kind)}")
    mark = {"little": "<", "big": ">"}[order]
    if kind == _BFLOAT16:
        # bfloat16 is the upper half of a float32
        return (np.frombuffer(raw, mark + "u2").astype(np.uint32) << 16).view(np.float32)
    array = np.frombuffer(raw, np.dtype(kind).newbyteorder(mark))
    return array.astype(np.dtype(kind), copy=False)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """A strided view of a storage that does not leave it."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise TypeError("tensor without storage")
    if len(size) != len(stride) or not all(isinstance(v, int) and v >= 0 for v in (offset, *size, *stride)):
        raise ValueError("tensor with a bad shape")
    if math.prod(size) == 0:
        return np.zeros(size, storage.dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= storage.size:
        raise ValueError("tensor beyond its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps)


def _tensor_with_metadata(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
) -> np.ndarray:
    if metadata:
        raise CheckpointError("holds a tensor stored as a conjugate or negative view")
    return _tensor(storage, offset, size, stride)


def _parameter(data: Any, *_: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise TypeError("parameter that is no tensor")
    return data


def _tagged(value: Any, _type: str) -> Any:
    """A container of TorchScript, whose type stands beside it."""
    return value


def _listed(value: list[Any]) -> list[Any]:
    """A list of TorchScript whose elements are of one type."""
    if not isinstance(value, list):
        raise TypeError("list that is none")
    return value


def _device(kind: str, index: int | None = None) -> str:
    return kind if index is None else f"{kind}:{index}"


_TENSORS: dict[tuple[str, str], Constructor] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_with_metadata,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.jit._pickle", "restore_type_tag"): _tagged,
    ("torch.jit._pickle", "build_intlist"): _listed,
    ("torch.jit._pickle", "build_doublelist"): _listed,
    ("torch.jit._pickle", "build_boollist"): _listed,
    ("torch.jit._pickle", "build_tensorlist"): _listed,
    ("torch", "Size"): tuple,
    ("torch", "device"): _device,
}


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
