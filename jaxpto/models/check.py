"""What a model must be before it is used: types and ranges of hyperparameters, values and shapes of parameters.

Nothing is computed. Where hyperparameters decide all shapes, the parameters' are compared with those. Elsewhere the
energy is evaluated abstractly, on shapes alone (`jax.eval_shape`), which finds what is missing and what does not fit;
only the tables that are read by element are measured besides, because JAX takes the last row where a row is missing.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import sys
import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxpto.model_interface import AngularModel, DirectModel, Model, Prediction, ShapedModel, TableModel
from jaxpto.models.former_fields import FORMER_FIELDS
from jaxpto.neighbors import Angles, Layout, Neighbors
from jaxpto.system import System

LONGEST_CUTOFF = 20.0  # Angstrom
HIGHEST = 118
# Hyperparameters that are distances within the cutoff, wherever an architecture has them.
INNER_LENGTHS = ("angle_cutoff", "angular_cutoff", "three_body_cutoff", "onset", "smooth_start")
_LARGEST_COUNT = 1_000_000
_ATOMS, _EDGES, _SLOTS, _BONDS, _ANGLES = 2, 16, 8, 8, 16  # of the system on which the energy is evaluated abstractly


class MisfitError(ValueError):
    """What is wrong with a model, in one line without a remedy."""


def build_model(architecture: str, kind: type, hyperparameters: dict[str, Any]) -> Any:
    """The model of these hyperparameters, once their names and types are those that the architecture declares.

    Args:
        architecture: its name, for messages.
        kind: its class, a dataclass.
        hyperparameters: as read from JSON; lists stand for tuples. Former fields may be among them.

    Raises:
        MisfitError: a name that is missing or unknown, a value of another type, or a former field with another value.
    """
    values = {name: _tuples(value) for name, value in hyperparameters.items()}
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # ty: ignore[invalid-argument-type]
    whose = f"hyperparameters of the architecture {architecture}"
    for name, only in FORMER_FIELDS.get(kind.__name__, {}).items():
        if name in values and (given := values.pop(name)) != only:
            raise MisfitError(f"{whose}: {name} = {_short(given)} cannot be; it is {only} in all such models")
    if unknown := sorted(values.keys() - fields.keys()):
        raise MisfitError(f"{whose} do not include {', '.join(unknown)}")
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if missing := sorted(needed - values.keys()):
        raise MisfitError(f"{whose} miss {', '.join(missing)}")
    for name, value in values.items():
        if not _is(value, hints[name]):
            wanted = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
            raise MisfitError(f"{whose}: {name} = {_short(hyperparameters[name])} is not {wanted}")
    return kind(**values)


def check_model(model: Model, conservative: Any) -> None:
    """Refuse hyperparameters that no potential can have, and a wrong label of its forces.

    Raises:
        MisfitError: elements, cutoff or other lengths out of range, absurd counts, or a wrong `conservative`.
    """
    if not model.elements:
        raise MisfitError("elements: there are none")
    if wrong := [z for z in model.elements if not 1 <= z <= HIGHEST]:
        raise MisfitError(f"elements: {wrong[0]} is not an atomic number from 1 to {HIGHEST}")
    if len(set(model.elements)) < len(model.elements):
        raise MisfitError("elements: one is there twice")
    check_cutoff(model.cutoff)
    for name in INNER_LENGTHS:
        length = getattr(model, name, 0.0)
        if not 0.0 <= length <= model.cutoff:
            raise MisfitError(f"{name} {length:g} A is not between 0 and the cutoff, {model.cutoff:g} A")
    for field in dataclasses.fields(model):  # ty: ignore[invalid-argument-type]
        if wrong := [n for n in _integers(getattr(model, field.name)) if not 0 <= n <= _LARGEST_COUNT]:
            raise MisfitError(f"{field.name}: {wrong[0]} is not a number from 0 to {_LARGEST_COUNT}")
    if conservative is not model.conservative:
        derived = "derives forces from its energy, so that it is"
        forces = derived if model.conservative else "predicts forces, so that it is not"
        raise MisfitError(f"conservative {_short(conservative)}: {type(model).__name__} {forces} conservative")


def check_cutoff(cutoff: Any) -> None:
    """Refuse a value that cannot be a cutoff.

    Raises:
        MisfitError: no number of Angstrom above 0 and up to 20.
    """
    if not (_is(cutoff, float) and 0.0 < cutoff <= LONGEST_CUTOFF):
        raise MisfitError(f"cutoff {_short(cutoff)} is not a length above 0 and up to {LONGEST_CUTOFF:g} A")


def check_values(params: Any, dtype: DTypeLike | None = None) -> None:
    """Refuse parameters that are not nested dicts of finite numbers.

    Args:
        params: nested dicts of numpy arrays.
        dtype: floating-point type they will be used in; by default any that can hold them.

    Raises:
        MisfitError: other containers or types, NaN, infinity, or numbers too large for `dtype`.
    """
    for name, leaf in _named(params):
        if not isinstance(leaf, np.ndarray | np.generic):
            raise MisfitError(f"parameter {name} is no array but a {type(leaf).__name__}")
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        if not (floating or jnp.issubdtype(leaf.dtype, jnp.integer)):
            raise MisfitError(f"parameter {name} is of type {leaf.dtype}, which is no real number")
        if not floating or not leaf.size:
            continue
        # the sum is finite only if all are, and takes a third of the time; where it overflows each is looked at
        with np.errstate(all="ignore"):
            total = leaf.sum(dtype=np.float64)
        if not np.isfinite(total) and not (finite := np.isfinite(leaf)).all():
            raise MisfitError(f"parameter {name} holds NaN or infinity ({np.sum(~finite)} of {leaf.size} numbers)")
        if dtype is not None and jnp.finfo(dtype).max < jnp.finfo(leaf.dtype).max:
            largest = np.max(np.abs(leaf))
            if largest > jnp.finfo(dtype).max:
                raise MisfitError(f"parameter {name} holds {largest:.3g}, which {np.dtype(dtype)} cannot")


def check_shapes(model: Model, params: Any) -> None:
    """Refuse parameters whose shapes do not give an energy; takes a few tenths of a second at most.

    Args:
        model: hyperparameters that `check_model` lets pass.
        params: numbers or shapes.

    Raises:
        MisfitError: one is missing or does not fit the others or the hyperparameters, or a table is too short.
    """
    found = {name: tuple(leaf.shape) for name, leaf in _named(params)}
    if isinstance(model, ShapedModel):
        _compare(found, model.shapes)
        return
    if isinstance(model, TableModel):
        _measure(found, model.tables, len(model.elements))
    check_energy(model, params)


def shapes_of(model: ShapedModel) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a model whose hyperparameters decide their shapes, as shapes alone."""
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in model.shapes.items()}


def check_energy(model: Model, params: Any) -> None:
    """Refuse parameters that do not give an energy; the first part of `check_shapes` finds what this one cannot.

    Args:
        model: hyperparameters that `check_model` lets pass.
        params: numbers or shapes.

    Raises:
        MisfitError: one is missing or does not fit the others or the hyperparameters.
    """
    try:
        with jax.numpy_rank_promotion("raise"):
            energy = _abstract(model, params)
    except KeyError as error:
        raise MisfitError(f"parameter {error} is missing") from error
    except Exception as error:  # whatever a product of arrays that do not fit raises
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MisfitError(f"the parameters do not fit the hyperparameters or each other: {line[:200]}") from error
    wanted = [(), (_ATOMS, 3), (3, 3)] if isinstance(model, DirectModel) else [()]
    shapes = [leaf.shape for leaf in jax.tree.leaves(energy)]
    if shapes != wanted:
        raise MisfitError(f"the parameters do not fit the hyperparameters: they give an energy of shape {shapes[0]}")


def _compare(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    if missing := sorted(wanted.keys() - found.keys()):
        raise MisfitError(f"parameter {missing[0]} is missing")
    if unknown := sorted(found.keys() - wanted.keys()):
        raise MisfitError(f"parameter {unknown[0]} does not belong to this architecture")
    for name, shape in found.items():
        if shape != wanted[name]:
            raise MisfitError(f"parameter {name} has the shape {shape}, the hyperparameters ask for {wanted[name]}")


def _measure(found: dict[str, tuple[int, ...]], tables: dict[str, tuple[int, ...]], elements: int) -> None:
    for pattern, lengths in tables.items():
        for name in fnmatch.filter(found, pattern):
            rows = found[name][: len(lengths)]
            enough = [
                have >= need if need > 0 else have in (1, -need) for have, need in zip(rows, lengths, strict=False)
            ]
            if len(enough) < len(lengths) or not all(enough):
                wanted = " x ".join(str(abs(length)) for length in lengths)
                raise MisfitError(
                    f"parameter {name} has the shape {found[name]}; {elements} elements need {wanted} rows"
                )


def _abstract(model: Model, params: Any) -> Any:
    """Shapes of the energy, or of all that a direct model predicts, for two atoms."""

    def of(*shape: int, dtype: Any = np.float32) -> Any:  # one precision for all: only shapes count
        return jax.ShapeDtypeStruct(shape, dtype)

    def whole(*shape: int) -> Any:
        return of(*shape, dtype=np.int32)

    species = tuple(dict.fromkeys((model.elements[0], model.elements[-1]))) if model.by_species else ()
    angle_cutoff = model.angle_cutoff if isinstance(model, AngularModel) else 0.0
    layout = Layout(
        cutoff=model.cutoff,
        skin=0.0,
        bins=(1, 1, 1),
        stencil=(1, 1, 1),
        candidates=(32,) * max(1, len(species)),
        species=species,
        slots=(_SLOTS,) * len(species),
        edges=0 if species else _EDGES,
        angle_cutoff=angle_cutoff,
        bonds=_BONDS if angle_cutoff else 0,
        angles=_ANGLES if angle_cutoff else 0,
    )
    edges = _ATOMS * _SLOTS * len(species) or _EDGES
    angles = Angles(
        bonds=whole(_BONDS),
        reverse=whole(_BONDS),
        first=whole(_ANGLES),
        second=whole(_ANGLES),
        overflow=of(dtype=np.bool_),
    )
    neighbors = Neighbors(
        senders=whole(edges),
        images=whole(edges),
        wraps=whole(_ATOMS, 3),
        packed_receivers=whole(0 if species else edges),
        reference_positions=of(_ATOMS, 3),
        reference_cell=of(3, 3),
        overflow=of(dtype=np.bool_),
        angles=angles if angle_cutoff else None,
        layout=layout,
    )
    system = System(positions=of(_ATOMS, 3), cell=of(3, 3), numbers=whole(_ATOMS), masses=of(_ATOMS))
    kinds = {True: np.float32, False: np.int32}
    shapes = jax.tree.map(lambda leaf: of(*leaf.shape, dtype=kinds[jnp.issubdtype(leaf.dtype, jnp.floating)]), params)
    if isinstance(model, DirectModel):
        found: Prediction = jax.eval_shape(model.predict, shapes, system, neighbors)
        return found.energy, found.forces, found.stress
    return jax.eval_shape(model.energy, shapes, system, neighbors, of(edges, 3))


def _named(params: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Every parameter with its name, "outer/inner"."""
    if not isinstance(params, dict):
        return [(prefix or "(all)", params)]
    inner = [_named(value, f"{prefix}/{key}" if prefix else str(key)) for key, value in params.items()]
    return [pair for pairs in inner for pair in pairs]


def _is(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is what a dataclass declares: bool, int, float, str, literals, tuples of them."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        kinds = (inner[0],) * len(value) if isinstance(value, tuple) and inner[1:] == (...,) else inner
        return (
            isinstance(value, tuple)
            and len(value) == len(kinds)
            and all(_is(item, kind) for item, kind in zip(value, kinds, strict=True))
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _integers(value: Any) -> list[int]:
    """All whole numbers in a hyperparameter."""
    if isinstance(value, tuple):
        return [number for item in value for number in _integers(item)]
    return [value] if isinstance(value, int) else []


def _tuples(value: Any) -> Any:
    """JSON has no tuples, and hyperparameters must be hashable: every list is a tuple."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
