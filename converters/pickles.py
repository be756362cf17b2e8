"""Reading pickles without executing anything: an interpreter of their opcodes that never imports and never calls.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever it names. This one
knows the opcodes but builds data only: names become `Reference`, instances of classes become `StandIn`, and the few
constructors of plain data that checkpoints use are listed here. What cannot be data, such as a call of `os.system`,
is refused by name.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxpto.errors import InputError

MOST_PICKLED = 64 * 2**20  # longest pickle; those of known models are below 1 MB, their tensors are stored apart


class CheckpointError(InputError):
    """Raised for a checkpoint that cannot be read or is refused; one line with the file and the remedy."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """The name of a class or function in a pickle, never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


@dataclasses.dataclass(eq=False, repr=False)
class StandIn:
    """What a pickle says about an instance of a class that is not ours.

    Attributes:
        reference: name of the class.
        arguments, keywords: what its constructor would have got.
        state: its `__dict__`, or what its `__setstate__` would have got.
        items, elements: its content if it is a kind of dict or list.
    """

    reference: Reference
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)
    elements: list[Any] = dataclasses.field(default_factory=list)

    def __repr__(self) -> str:
        return f"<stand-in for {self.reference}>"


Constructor = Callable[..., Any]
_STANDARD_LIBRARY = frozenset(sys.stdlib_module_names) | {"__builtin__", "copy_reg", "nt", "posix"}
# names of the standard library that may be mentioned, because they are types of plain data
_PLAIN_TYPES = frozenset(
    {
        "int",
        "float",
        "complex",
        "bool",
        "str",
        "bytes",
        "bytearray",
        "list",
        "tuple",
        "dict",
        "set",
        "frozenset",
        "object",
    }
)
# how protocols 0 and 1 write instances: (class, base, state of the base)
_RECONSTRUCTORS = (("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor"))
# functions of other packages whose calls merely rebuild data; they stay stand-ins
_INERT_FUNCTIONS = frozenset(
    (f"{package}.multiarray", name) for package in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")
) | {("numpy", "dtype"), ("torch.fx.graph_module", "reduce_graph_module")}


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them: `_codecs.encode(text, "latin1")`."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise TypeError("text is encoded in an unusual way")
    return text.encode(encoding)


def _collect(kind: type) -> Constructor:
    """Constructor of a container from a list; a number, which would allocate that many bytes, is refused."""

    def collect(elements: Sequence[Any] = ()) -> Any:
        if not isinstance(elements, list | tuple | bytes):
            raise TypeError(f"{kind.__name__} of something that is no sequence")
        if kind in (set, frozenset):
            elements = [_as_key(element) for element in elements]
        return kind(elements)

    return collect


def _ordered_dict(pairs: Sequence[Any] = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((_as_key(key), value) for key, value in pairs)


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    return {}


CONSTRUCTORS: Mapping[tuple[str, str], Constructor] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _default_dict,
    ("_codecs", "encode"): _encode,
} | {
    (module, kind.__name__): _collect(kind)
    for module in ("builtins", "__builtin__")
    for kind in (set, frozenset, list, tuple, bytes, bytearray)
}


def read_pickle(
    stream: io.BytesIO, constructors: Mapping[tuple[str, str], Constructor], load_persistent: Constructor | None = None
) -> Any:
    """Interpret the pickle at the position of a stream, which is then just behind it.

    Args:
        stream: in memory.
        constructors: module and name of callables that are known, with the functions to run in their place; those of
            `CONSTRUCTORS` are always known.
        load_persistent: called with each persistent id; None refuses them.

    Raises:
        CheckpointError: the pickle wants to execute something. The message lacks the file, which the caller knows.
        ValueError, TypeError, LookupError, ...: it is damaged; any exception may come out of damaged data.
    """
    machine = _Machine(dict(CONSTRUCTORS) | dict(constructors), load_persistent)
    start = stream.tell()
    for opcode, argument, position in pickletools.genops(stream):
        if position is not None and position - start > MOST_PICKLED:
            raise ValueError(f"pickle longer than {MOST_PICKLED} bytes")
        if opcode.name == "STOP":
            break
        machine.execute(opcode.name, argument)
    return machine.stack.pop()


class _Mark:
    """Divides the stack."""


_MARK = _Mark()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# opcodes that push the argument that pickletools has decoded
_LITERALS = (
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass
class _Machine:
    """The stack machine of one pickle."""

    constructors: dict[tuple[str, str], Constructor]
    load_persistent: Constructor | None
    stack: list[Any] = dataclasses.field(default_factory=list)
    memo: dict[int, Any] = dataclasses.field(default_factory=dict)

    def execute(self, opcode: str, argument: Any) -> None:
        """Execute one opcode with the argument that stands behind it in the pickle."""
        stack = self.stack
        if opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _SHORT_TUPLES:
            stack.append(tuple(self.pop(_SHORT_TUPLES[opcode])))
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        else:
            handler = getattr(self, f"do_{opcode.lower()}", None)
            if handler is None:
                raise CheckpointError(f"contains the opcode {opcode}, which no checkpoint needs")
            handler(argument)

    def pop(self, count: int) -> list[Any]:
        """The topmost `count` objects."""
        if len(self.stack) < count:
            raise IndexError("stack of the pickle is empty")
        popped = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return popped

    def pop_to_mark(self) -> list[Any]:
        """All objects above the topmost mark, which goes too."""
        position = len(self.stack) - 1
        while self.stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise IndexError("no mark on the stack of the pickle")
        popped = self.stack[position + 1 :]
        del self.stack[position:]
        return popped

    def do_proto(self, _: int) -> None:
        """Nothing: all protocols are understood."""

    def do_frame(self, _: int) -> None:
        """Nothing: the stream is in memory."""

    def do_pop(self, _: None) -> None:
        """Drop the topmost object."""
        self.stack.pop()

    def do_pop_mark(self, _: None) -> None:
        """Drop the objects above the mark."""
        self.pop_to_mark()

    def do_dup(self, _: None) -> None:
        """Push the topmost object again."""
        self.stack.append(self.stack[-1])

    def do_list(self, _: None) -> None:
        """A list of the objects above the mark."""
        self.stack.append(self.pop_to_mark())

    def do_tuple(self, _: None) -> None:
        """A tuple of the objects above the mark."""
        self.stack.append(tuple(self.pop_to_mark()))

    def do_dict(self, _: None) -> None:
        """A dict of the objects above the mark."""
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    def do_frozenset(self, _: None) -> None:
        """A frozen set of the objects above the mark."""
        self.stack.append(frozenset(_as_key(element) for element in self.pop_to_mark()))

    def do_append(self, _: None) -> None:
        """Append the topmost object to the list below it."""
        self.append(self.pop(1))

    def do_appends(self, _: None) -> None:
        """Append the objects above the mark to the list below it."""
        self.append(self.pop_to_mark())

    def do_additems(self, _: None) -> None:
        """Add the objects above the mark to the set below it."""
        elements = self.pop_to_mark()
        self.stack[-1].update([_as_key(element) for element in elements])

    def do_setitem(self, _: None) -> None:
        """Set an item of the dict below key and value."""
        self.set_items(self.pop(2))

    def do_setitems(self, _: None) -> None:
        """Set items of the dict below the mark."""
        self.set_items(self.pop_to_mark())

    def do_global(self, argument: str) -> None:
        """Push a name."""
        module, _, name = argument.partition(" ")
        self.stack.append(_refer(module, name, self.constructors))

    def do_stack_global(self, _: None) -> None:
        """Push a name whose parts are on the stack."""
        module, name = self.pop(2)
        self.stack.append(_refer(module, name, self.constructors))

    def do_reduce(self, _: None) -> None:
        """A "call"."""
        reference, arguments = self.pop(2)
        self.stack.append(self.construct(reference, arguments, is_class=False))

    def do_newobj(self, _: None) -> None:
        """A "new instance" of a class."""
        reference, arguments = self.pop(2)
        self.stack.append(self.construct(reference, arguments, is_class=True))

    def do_newobj_ex(self, _: None) -> None:
        """A "new instance" of a class, with keyword arguments."""
        reference, arguments, keywords = self.pop(3)
        instance = self.construct(reference, arguments, is_class=True)
        if keywords:
            if not isinstance(instance, StandIn) or not isinstance(keywords, dict):
                raise TypeError("keyword arguments of plain data")
            instance.keywords.update(keywords)
        self.stack.append(instance)

    def do_inst(self, argument: str) -> None:
        """A "new instance" of a class of protocol 0."""
        module, _, name = argument.partition(" ")
        arguments = tuple(self.pop_to_mark())
        self.stack.append(self.construct(_refer(module, name, self.constructors), arguments, is_class=False))

    def do_obj(self, _: None) -> None:
        """A "new instance" of a class of protocol 1."""
        reference, *arguments = self.pop_to_mark()
        self.stack.append(self.construct(reference, tuple(arguments), is_class=False))

    def do_build(self, _: None) -> None:
        """Note the state of an instance; of plain data only state dicts have one (`_metadata`), which is dropped."""
        (state,) = self.pop(1)
        instance = self.stack[-1]
        if isinstance(instance, StandIn):
            instance.state = state
        elif not isinstance(instance, OrderedDict):
            raise TypeError("state given to plain data")

    def do_binpersid(self, _: None) -> None:
        """Fetch what is stored outside of the pickle."""
        (identifier,) = self.pop(1)
        if self.load_persistent is None:
            raise TypeError("persistent object where none belongs")
        self.stack.append(self.load_persistent(identifier))

    def append(self, elements: list[Any]) -> None:
        """Append elements to the list or stand-in on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, StandIn):
            target.elements.extend(elements)
        elif isinstance(target, list):
            target.extend(elements)
        else:
            raise TypeError("elements appended to something that is no list")

    def set_items(self, items: list[Any]) -> None:
        """Set alternating keys and values in the dict or stand-in on top of the stack."""
        target = self.stack[-1]
        target = target.items if isinstance(target, StandIn) else target
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("items set in something that is no dict")
        target.update((_as_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def construct(self, reference: Any, arguments: Any, *, is_class: bool) -> Any:
        """Known plain data, or a stand-in of an instance; a call of anything else is refused."""
        if not isinstance(reference, Reference) or not isinstance(arguments, tuple):
            raise TypeError("call of something that is no name")
        key = (reference.module, reference.name)
        if key in self.constructors:
            return self.constructors[key](*arguments)
        if key in _RECONSTRUCTORS:
            return self.construct(arguments[0], tuple(arguments[2:]), is_class=True)
        looks_like_class = reference.name.rpartition(".")[2].lstrip("_")[:1].isupper()
        if is_class or looks_like_class or key in _INERT_FUNCTIONS:
            return StandIn(reference, arguments)
        raise CheckpointError(f"wants to call {reference}, which is not plain data")


def _refer(module: Any, name: Any, constructors: Mapping[tuple[str, str], Constructor]) -> Reference:
    """A name; those of the standard library are refused unless they are plain data."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("name that is no text")
    known = (module, name) in constructors or (module, name) in _RECONSTRUCTORS
    if module in ("builtins", "__builtin__"):
        known = known or name in _PLAIN_TYPES
    if not known and module.partition(".")[0] in _STANDARD_LIBRARY:
        raise CheckpointError(f"wants to use {Reference(module, name)}, which is not plain data")
    return Reference(module, name)


def _as_key(key: Any, depth: int = 0) -> Any:
    """A key of a dict; deep nests of tuples, whose hash would overflow Python's stack, are refused."""
    if isinstance(key, tuple) and depth < 4:
        return tuple(_as_key(part, depth + 1) for part in key)
    if key is None or isinstance(key, str | bytes | int | float | Reference | StandIn):
        return key
    raise TypeError(f"{type(key).__name__} as a key")
