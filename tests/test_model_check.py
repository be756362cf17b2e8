"""What is no model is refused before anything is computed, for every architecture: values, types, ranges and shapes."""

import dataclasses
import fnmatch
import math
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import pytest
from model_cases import CASES

from converters.pickles import CheckpointError
from jaxpto.models.check import MisfitError, ShapedModel, build_model, check_model, check_shapes, check_values
from jaxpto.models.lennard_jones import LennardJones
from jaxpto.models.manifest import published_models
from jaxpto.models.orb import OrbDirect
from jaxpto.models.perovskite import Perovskite, initialize
from jaxpto.potential import Potential


@pytest.fixture(scope="module", params=CASES)
def potential(request: pytest.FixtureRequest, shared: pathlib.Path) -> Potential:
    try:
        return CASES[request.param].make(shared)
    except CheckpointError as error:
        pytest.skip(f"no published weights: {error}")


def shapes_of(params: Any) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.float32), params)


def changed(params: Any, name: str, change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Any:
    """The shapes of parameters with that of one of them changed."""

    def leaf(path: Any, value: Any) -> Any:
        shape = np.shape(value)
        this = "/".join(str(key.key) for key in path) == name
        return jax.ShapeDtypeStruct(change(shape) if this else shape, np.float32)

    return jax.tree.map_with_path(leaf, params)


def names(params: Any, pattern: str = "*") -> list[str]:
    found = ["/".join(str(key.key) for key in path) for path, _ in jax.tree.leaves_with_path(params)]
    return fnmatch.filter(found, pattern)


def test_every_architecture_lets_its_own_models_pass(potential: Potential) -> None:
    check_model(potential.model, potential.conservative)
    check_values(jax.tree.map(np.asarray, potential.params))
    check_shapes(potential.model, potential.params)


def test_the_manifest_counts_elements_and_parameters(potential: Potential) -> None:
    """Where the published file is at hand; its name is that of the potential."""
    published = published_models().get(potential.name)
    if published is None or not published.files[0].sha256:
        return
    assert published.elements == len(potential.elements)
    assert published.parameters == sum(np.size(leaf) for leaf in jax.tree.leaves(potential.params))


def test_a_table_without_a_row_for_each_element_is_refused(potential: Potential) -> None:
    """JAX would take the last row there is, without a word."""
    model = potential.model
    tables = model.shapes if isinstance(model, ShapedModel) else model.tables
    # of a model whose shapes are all known, those that count elements
    tables = [
        name for name, shape in tables.items() if not isinstance(model, ShapedModel) or len(model.elements) in shape
    ]
    assert tables
    for pattern in tables:
        name = names(potential.params, pattern)[0]
        # fewer than the largest atomic number as well
        rows = len(model.elements) - 1
        short = changed(potential.params, name, lambda shape, n=rows: (n - (n == shape[0]), *shape[1:]))
        with pytest.raises(MisfitError, match=name):
            check_shapes(model, short)


def test_parameters_that_do_not_fit_each_other_are_refused(potential: Potential) -> None:
    matrices = [name for name in names(potential.params) if "weight" in name or "mix" in name or "radial" in name]
    for name in (matrices or names(potential.params))[:2]:
        for change in (lambda shape: (*shape[:-1], shape[-1] + 1), lambda shape: (1, *shape)):
            with pytest.raises(MisfitError):
                check_shapes(potential.model, changed(potential.params, name, change))


def test_missing_parameters_are_named(potential: Potential) -> None:
    model, params = potential.model, shapes_of(potential.params)
    name = names(params, next(iter(model.shapes if isinstance(model, ShapedModel) else model.tables)))[0]
    first = name.partition("/")[0]
    with pytest.raises(MisfitError, match=f"parameter '?{first}'? is missing"):
        check_shapes(potential.model, {key: value for key, value in params.items() if key != first})


def test_the_shapes_of_perovskite_are_those_it_is_made_with() -> None:
    model = Perovskite((8, 22, 82), channels=7, radial=5, quartic=2, hidden=3)
    made = jax.eval_shape(lambda key: initialize(model, key), jax.random.key(0))
    assert {name: leaf.shape for name, leaf in made.items()} == model.shapes


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"a": np.array([1.0, np.nan])}, r"a holds NaN or infinity \(1 of 2 numbers\)"),
        ({"a": {"b": np.array([[np.inf, -np.inf]])}}, r"a/b holds NaN or infinity \(2 of 2"),
        ({"a": np.array([1e300, 1.0])}, r"a holds 1e\+300, which float32 cannot"),
        ({"a": np.array([1j])}, "complex128, which is no real number"),
        ({"a": np.array(["x"])}, "no real number"),
        ({"a": np.array([True])}, "bool, which is no real number"),
        ({"a": [1.0, 2.0]}, "a is no array but a list"),
        ({"a": None}, "a is no array but a NoneType"),
    ],
)
def test_values_that_are_no_finite_numbers_are_refused(values: Any, reason: str) -> None:
    with pytest.raises(MisfitError, match=reason):
        check_values(values, np.float32)


def test_large_finite_values_pass_in_the_type_that_holds_them() -> None:
    """Their sum overflows; none of them is infinite."""
    check_values({"a": np.full(4, 1e308), "b": np.arange(3), "c": np.zeros((0, 2))}, np.float64)
    check_values({"a": np.full(4, 3e38, np.float32)}, np.float32)


@dataclasses.dataclass(frozen=True)
class Kinds:
    elements: tuple[int, ...]
    cutoff: float
    pairs: tuple[tuple[int, int], ...]
    kind: Literal["soft", "hard"]
    name: str = "x"
    flag: bool = False


GOOD: dict[str, Any] = {"elements": [1, 8], "cutoff": 5, "pairs": [[1, 8]], "kind": "soft"}


def test_hyperparameters_of_the_declared_types_pass() -> None:
    assert build_model("kinds", Kinds, GOOD) == Kinds((1, 8), 5, ((1, 8),), "soft")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"elements": "O"}, "elements = 'O' is not tuple"),
        ({"elements": [1.0]}, "elements"),
        ({"elements": [True]}, "elements"),
        ({"cutoff": "5"}, "cutoff = '5' is not float"),
        ({"cutoff": None}, "cutoff"),
        ({"cutoff": math.nan}, "cutoff"),
        ({"cutoff": 10**400}, "cutoff"),
        ({"cutoff": True}, "cutoff"),
        ({"pairs": [[1, 8, 8]]}, "pairs"),
        ({"kind": "medium"}, "kind"),
        ({"name": 3}, "name"),
        ({"flag": 1}, "flag"),
        ({"colour": 1}, "do not include colour"),
    ],
)
def test_hyperparameters_of_other_types_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(MisfitError, match=reason):
        build_model("kinds", Kinds, GOOD | change)
    with pytest.raises(MisfitError, match="miss kind, pairs"):
        build_model("kinds", Kinds, {"elements": [1], "cutoff": 5.0})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cutoff": -6.0}, r"cutoff -6.0 is not a length above 0 and up to 20 A"),
        ({"cutoff": 60.0}, "cutoff 60.0"),
        ({"onset": 6.5}, "onset 6.5 A is not between 0 and the cutoff, 6 A"),
        ({"elements": ()}, "there are none"),
        ({"elements": (18, 119)}, "119 is not an atomic number"),
        ({"elements": (18, 18)}, "twice"),
    ],
)
def test_ranges(change: dict[str, Any], reason: str) -> None:
    model = dataclasses.replace(LennardJones((18, 36), 6.0, 5.0), **change)
    with pytest.raises(MisfitError, match=reason):
        check_model(model, True)


def test_a_wrong_label_of_the_forces_is_refused() -> None:
    with pytest.raises(MisfitError, match="derives forces from its energy"):
        check_model(LennardJones((18,), 6.0, 5.0), False)
    with pytest.raises(MisfitError, match="predicts forces"):
        check_model(OrbDirect((8,), 20, 6.0), True)
    with pytest.raises(MisfitError, match="conservative 'false'"):
        check_model(LennardJones((18,), 6.0, 5.0), "false")
    with pytest.raises(MisfitError, match="channels: -3 is not a number from 0"):
        check_model(Perovskite((8,), channels=-3), True)
