"""Models to be trained from nothing: their hyperparameters, from defaults of the manifest and what a user asks for."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ase.data
import jax

from jaxpto.errors import InputError
from jaxpto.model_interface import ShapedModel
from jaxpto.models.check import build_model, check_energy, check_model, shapes_of
from jaxpto.models.deepmd_initial import fitting_copies, residual_copies
from jaxpto.models.manifest import Architecture, architectures
from jaxpto.neighbors import allocate
from jaxpto.system import System

_RADIAL = 8  # functions of MACE
_HEADROOM = 1.1  # on the largest number of neighbours found, as DeePMD-kit's "auto"
_Derive = Callable[[Mapping[str, Any], tuple[int, ...], Sequence[System]], Any]


def fresh_model(
    architecture: str, elements: tuple[int, ...], settings: Mapping[str, str], systems: Sequence[System]
) -> Any:
    """A model that can be trained from nothing (`TrainableModel`).

    Args:
        architecture: its name in the manifest.
        elements: atomic numbers it shall know.
        settings: what the user wants of its hyperparameters, as text: numbers, true or false, words, numbers with
            commas between them, and several of these with slashes between them ("64/64,32,16").
        systems: some frames of the training data, for hyperparameters that follow from them: how many neighbours of
            each element count (`sel` of DeepPot-SE).

    Raises:
        InputError: an architecture that is unknown or cannot be trained from nothing, a setting that it does not have,
            or a value of another type, out of range or at odds with the others.
    """
    entry, defaults = _trainable(architecture)
    hints = typing.get_type_hints(entry.kind)
    values = {name: _tuples(value) for name, value in defaults.items()}
    for name, text in settings.items():
        if name not in entry.settings:
            raise InputError(
                f"the architecture {architecture} has no setting {name}; it has {', '.join(entry.settings)}"
            )
        values[name] = _read(architecture, name, text, hints[name], entry.settings[name])
    for name, value in values.items():
        if isinstance(value, str) and value.startswith("@"):
            values[name] = _DERIVED[value](values, elements, systems)
    try:
        model = build_model(architecture, entry.kind, values | {"elements": elements})
        check_model(model, model.conservative)
        params = shapes_of(model) if isinstance(model, ShapedModel) else model.initialize(jax.random.key(0), (), 1.0)
        check_energy(model, params)
    except ValueError as error:
        wanted = ", ".join(f"{name}={text}" for name, text in settings.items()) or "its defaults"
        line = str(error).splitlines()[0]
        raise InputError(f"the architecture {architecture} cannot be made with {wanted}: {line}") from error
    return model


def trainable_architectures() -> tuple[str, ...]:
    """Names of the architectures that can be trained from nothing."""
    return tuple(name for name, entry in architectures().items() if entry.fresh is not None)


def _trainable(architecture: str) -> tuple[Architecture, dict[str, Any]]:
    """The entry of an architecture, and its defaults."""
    entry = architectures().get(architecture)
    those = f"those that can be trained from nothing: {', '.join(trainable_architectures())}"
    if entry is None:
        raise InputError(f"unknown architecture '{architecture}'; {those}")
    if entry.fresh is None:
        raise InputError(f"the architecture {architecture} cannot be trained from nothing; {those}")
    return entry, entry.fresh


def _read(architecture: str, name: str, text: str, hint: Any, allowed: Sequence[Any]) -> Any:
    """The value in a text; `allowed` are words, or the ends of a range of numbers."""
    words = allowed if isinstance(allowed[0], str) else ()
    try:
        value = _parsed(text, hint)
        fits = text in words if words else all(allowed[0] <= number <= allowed[1] for number in _numbers(value))
    except ValueError:
        fits = False
    if not fits:
        wanted = " or ".join(words) if words else f"{_kind(hint)} from {allowed[0]} to {allowed[1]}"
        raise InputError(f"setting {name}={text} of the architecture {architecture}: give {wanted}")
    return value


def _parsed(text: str, hint: Any) -> Any:
    """A text as the type that a field declares.

    Raises:
        ValueError: it is no number.
    """
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        between = "/" if typing.get_origin(inner[0]) is tuple else ","
        return tuple(_parsed(part, inner[0]) for part in text.split(between))
    if hint in (int, float):
        return hint(text)
    return text == "true" if hint is bool else text


def _kind(hint: Any) -> str:
    """What numbers to give, for people."""
    if typing.get_origin(hint) is not tuple:
        return "a whole number" if hint is int else "a number"
    inner = typing.get_args(hint)[0]
    if typing.get_origin(inner) is tuple:
        return "whole numbers with commas, and slashes between layers,"
    return "whole numbers with commas" if inner is int else "numbers with commas"


def _numbers(value: Any) -> list[float]:
    return [number for part in value for number in _numbers(part)] if isinstance(value, tuple) else [float(value)]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _covalent_radii(values: Mapping[str, Any], elements: tuple[int, ...], systems: Sequence[System]) -> Any:
    return tuple(ase.data.covalent_radii[list(elements)].tolist())


def _bessel(values: Mapping[str, Any], elements: tuple[int, ...], systems: Sequence[System]) -> Any:
    """n pi / cutoff."""
    return tuple(math.pi * n / values["cutoff"] for n in range(1, _RADIAL + 1))


def _most_neighbors(values: Mapping[str, Any], elements: tuple[int, ...], systems: Sequence[System]) -> Any:
    """For each element the largest number of neighbours found, with some room; at least 1."""
    most = dict.fromkeys(elements, 1)
    for system in systems:
        layout = allocate([system], values["cutoff"], 0.0, by_species=True, packed=False, headroom=_HEADROOM)
        for number, slots in zip(layout.species, layout.slots, strict=True):
            most[number] = max(most[number], slots)
    return tuple(most[number] for number in elements)


_DERIVED: dict[str, _Derive] = {
    "@covalent radii": _covalent_radii,
    "@bessel": _bessel,
    "@neighbors": _most_neighbors,
    "@embedding copies": lambda values, elements, systems: residual_copies(values["embedding_widths"], 1),
    "@fitting copies": lambda values, elements, systems: fitting_copies(values["fitting_widths"]),
    "@all but the first layer": lambda values, *_: tuple(number > 0 for number in range(len(values["hidden"]))),
    "@no layer": lambda values, *_: (False,) * len(values["hidden"]),
    "@every layer": lambda values, *_: tuple(range(len(values["hidden"]))),
    "@powers": lambda values, *_: ((3, 2, 1),) * len(values["hidden"]),
}
