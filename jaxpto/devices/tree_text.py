"""The structure of a pytree as JSON, and back again without running anything that the JSON names.

A tree may hold tuples, lists, dicts, None, and dataclasses and named tuples of jaxpto. The JSON names these classes;
they are looked up in the modules that are already imported. No constructor is called and nothing is imported.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import jax

_LEAF = "*"


class UnknownStructureError(ValueError):
    """A tree that cannot be described, or JSON that describes no tree."""


def describe_tree(tree: Any) -> Any:
    """A pytree's structure as lists, dicts, texts and numbers; leaves are marks.

    Args:
        tree: dicts with text keys, tuples, lists, None, and dataclasses and named tuples of jaxpto.

    Raises:
        UnknownStructureError: the tree holds something else.
    """
    if tree is None:
        return None
    if type(tree) in (tuple, list):
        return [type(tree).__name__, [describe_tree(item) for item in tree]]
    if type(tree) is dict and all(type(key) is str for key in tree):
        return ["dict", {key: describe_tree(value) for key, value in tree.items()}]
    if _is_named_tuple(type(tree)):
        return [_name(type(tree)), [describe_tree(item) for item in tree]]
    if dataclasses.is_dataclass(tree):
        fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
        static = _static_fields(type(tree))
        return [_name(type(tree)), {k: _constant(v) if k in static else describe_tree(v) for k, v in fields.items()}]
    if jax.tree.structure(tree) != jax.tree.structure(0):
        raise UnknownStructureError(f"{type(tree).__qualname__} in a tree")
    return _LEAF


def structure(text: Any) -> Any:
    """The structure (`jax.tree.structure`) that `describe_tree` wrote down.

    Raises:
        UnknownStructureError: it names a class that is not there, or is not such a text.
    """
    return jax.tree.structure(_tree(text))


def _tree(text: Any) -> Any:
    """A tree of that structure, all of its leaves 0."""
    if text is None:
        return None
    if text == _LEAF:
        return 0
    kind, parts = _pair(text)
    if kind in ("tuple", "list") and isinstance(parts, list):
        return (tuple if kind == "tuple" else list)(_tree(part) for part in parts)
    if kind == "dict" and isinstance(parts, dict):
        return {key: _tree(part) for key, part in parts.items()}
    found = _class(kind)
    static = _static_fields(found)
    if isinstance(parts, list):
        return _bare(found, [_tree(part) for part in parts])
    return _bare(found, {k: _of_constant(v) if k in static else _tree(v) for k, v in parts.items()})


def _constant(value: Any) -> Any:
    """What a static field holds."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is tuple:
        return ["tuple", [_constant(item) for item in value]]
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return [_name(type(value)), {k: _constant(v) for k, v in fields.items()}]
    raise UnknownStructureError(f"{type(value).__qualname__} in a static field")


def _of_constant(text: Any) -> Any:
    if not isinstance(text, list):
        return text
    kind, parts = _pair(text)
    if kind == "tuple" and isinstance(parts, list):
        return tuple(_of_constant(part) for part in parts)
    if not isinstance(parts, dict):
        raise UnknownStructureError(f"{kind} without fields")
    return _bare(_class(kind), {k: _of_constant(v) for k, v in parts.items()})


def _pair(text: Any) -> tuple[str, Any]:
    if not (
        isinstance(text, list) and len(text) == 2 and isinstance(text[0], str) and isinstance(text[1], list | dict)
    ):
        raise UnknownStructureError("neither a tree nor a leaf")
    return text[0], text[1]


def _name(kind: type) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    if _class(name) is not kind:
        raise UnknownStructureError(f"{name} is not found under its name")
    return name


def _class(name: str) -> type:
    """A dataclass or named tuple at the top level of a module of jaxpto that is imported."""
    module, _, attribute = name.partition(":")
    found = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    ours = module.partition(".")[0] == "jaxpto" and isinstance(found, type) and found.__module__ == module
    if not (ours and (dataclasses.is_dataclass(found) or _is_named_tuple(found))):
        raise UnknownStructureError(f"{name} is no dataclass or named tuple of jaxpto")
    return found


def _bare(kind: type, values: dict[str, Any] | list[Any]) -> Any:
    """An instance with these fields, made without its constructor."""
    if isinstance(values, list):
        if not (_is_named_tuple(kind) and len(values) == len(getattr(kind, "_fields", ()))):
            raise UnknownStructureError(f"{kind.__qualname__} has other fields")
        return tuple.__new__(kind, values)  # ty: ignore[invalid-argument-type]
    if not (dataclasses.is_dataclass(kind) and values.keys() == {field.name for field in dataclasses.fields(kind)}):
        raise UnknownStructureError(f"{kind.__qualname__} has other fields")
    made = object.__new__(kind)
    for field, value in values.items():
        object.__setattr__(made, field, value)
    return made


def _static_fields(kind: type) -> set[str]:
    """Fields that belong to the structure; flax marks them."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return {field.name for field in fields if not field.metadata.get("pytree_node", True)}


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")
