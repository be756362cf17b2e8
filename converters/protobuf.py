"""Reading frozen TensorFlow graphs without TensorFlow: the fields of protocol buffers that constants are made of.

A graph is a sequence of nodes; the parameters of a frozen one are in its nodes "Const". The numbers of fields are those
of graph.proto, node_def.proto, attr_value.proto, tensor.proto and tensor_shape.proto.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from converters.pickles import CheckpointError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_ELEMENTS = 2**28  # of one constant; a few bytes can claim any shape
# number of a type -> type, field of its values outside of tensor_content
_STRING = 7
_TYPES = {1: ("<f4", 5), 2: ("<f8", 6), 3: ("<i4", 7), 9: ("<i8", 10), 10: ("?", 11)}

Message = dict[int, list["int | bytes"]]


@dataclasses.dataclass(frozen=True)
class Node:
    """One node of a graph.

    Attributes:
        name, operation: as in the graph.
        attributes: message of each attribute, not yet read.
    """

    name: str
    operation: str
    attributes: dict[str, bytes]

    def number(self, attribute: str) -> float:
        """A float attribute (which is in single precision).

        Raises:
            KeyError, ValueError: there is none.
        """
        (raw,) = _values(_message(self.attributes[attribute]), 4, bytes)
        return struct.unpack("<f", raw)[0]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The nodes of a frozen graph.

    Attributes:
        nodes: by name.
    """

    nodes: dict[str, Node]

    def __contains__(self, name: str) -> bool:
        return name in self.nodes and self.nodes[name].operation == "Const"

    def array(self, name: str) -> np.ndarray:
        """The numbers of a constant.

        Raises:
            KeyError: there is none.
            ValueError: it is damaged or holds no numbers.
        """
        tensor = self._tensor(name)
        (kind,) = _values(tensor, 1, int)
        if kind not in _TYPES:
            raise ValueError(f"{name} has the type {kind}, which is not read here")
        code, field = _TYPES[kind]
        shape = _shape(tensor)
        content = b"".join(_values(tensor, 4, bytes))
        flat = np.frombuffer(content, code) if content else _listed(tensor.get(field, []), code)
        size = math.prod(shape)
        fits = flat.size == size if content or not size else 0 < flat.size <= size
        if not fits:
            raise ValueError(f"{name} has {flat.size} numbers, not {size}")
        if flat.size < size:  # the last one stands for all that follow
            flat = np.concatenate([flat, np.broadcast_to(flat[-1:], size - flat.size)])
        return flat.reshape(shape)

    def text(self, name: str) -> str:
        """The text of a constant.

        Raises:
            KeyError: there is none.
            ValueError: it is damaged or holds no text.
        """
        tensor = self._tensor(name)
        if _values(tensor, 1, int) != [_STRING]:
            raise ValueError(f"{name} is no text")
        (raw,) = _values(tensor, 8, bytes)
        return raw.decode()

    def _tensor(self, name: str) -> Message:
        if name not in self:
            raise KeyError(name)
        (raw,) = _values(_message(self.nodes[name].attributes["value"]), 8, bytes)
        return _message(raw)


def read_graph(path: Path, content: bytes) -> Graph:
    """The nodes of a frozen TensorFlow graph.

    Args:
        path: for messages.
        content: of the file.

    Raises:
        CheckpointError: it is no such graph, or a damaged one.
    """
    try:
        nodes = [_node(raw) for number, raw in _fields(content) if number == 1 and isinstance(raw, bytes)]
        if not nodes:
            raise ValueError("no nodes")
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or no frozen TensorFlow graph: {error}; download or copy it again"
        ) from None
    return Graph({node.name: node for node in nodes})


def _node(raw: bytes) -> Node:
    message = _message(raw)
    attributes = {}
    for entry in map(_message, _values(message, 5, bytes)):
        (key,), (value,) = _values(entry, 1, bytes), _values(entry, 2, bytes) or [b""]
        attributes[key.decode()] = value
    (name,), (operation,) = _values(message, 1, bytes), _values(message, 2, bytes)
    return Node(name.decode(), operation.decode(), attributes)


def _shape(tensor: Message) -> tuple[int, ...]:
    sizes = []
    for shape in map(_message, _values(tensor, 2, bytes)):
        for dimension in map(_message, _values(shape, 2, bytes)):
            (size,) = _values(dimension, 1, int) or [0]
            sizes.append(size)
            if math.prod(max(s, 1) for s in sizes) > _MOST_ELEMENTS:
                raise ValueError(f"a constant of shape {sizes} is larger than any model's")
    return tuple(sizes)


def _listed(values: list[int | bytes], code: str) -> np.ndarray:
    """Numbers that stand in a field one by one, or packed."""
    numbers: list[np.ndarray] = []
    for value in values:
        if isinstance(value, int):
            numbers.append(_wrapped([value], code))
        elif code in ("<f4", "<f8"):
            numbers.append(np.frombuffer(value, code))
        else:
            position, packed = 0, []
            while position < len(value):
                number, position = _varint(value, position)
                packed.append(number)
            numbers.append(_wrapped(packed, code))
    return np.concatenate(numbers) if numbers else np.zeros(0, code)


def _wrapped(numbers: list[int], code: str) -> np.ndarray:
    """Integers as the two's complement of 64 bits that the format has."""
    return np.asarray(numbers, np.uint64).astype(np.int64).astype(code)


def _values(message: Message, number: int, kind: type) -> list:
    found = message.get(number, [])
    if not all(isinstance(value, kind) for value in found):
        raise ValueError(f"field {number} is of another type")
    return found


def _message(raw: bytes) -> Message:
    message: Message = {}
    for number, value in _fields(raw):
        message.setdefault(number, []).append(value)
    return message


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field of a message."""
    position = 0
    while position < len(raw):
        key, position = _varint(raw, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"field 0 at byte {position}")
        if kind == _VARINT:
            value, position = _varint(raw, position)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = _varint(raw, position)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"type {kind} of a field at byte {position}")
        if position + length > len(raw):
            raise ValueError(f"a field of {length} bytes at byte {position} of {len(raw)}")
        yield number, raw[position : position + length]
        position += length


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(raw):
            raise ValueError("the data end within a number")
        byte = raw[position]
        result |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return result & (2**64 - 1), position
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {position}")
