"""Passes over rows, a slice at a time and all at once, against the same sums written down."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpto.models.sliced_pass import RowCount, sliced_pass, whole_pass

OWNERS, ROWS, LENGTH = 5, 48, 8
USED = ROWS - LENGTH - 3  # the last slices are padding


def function(params: Any, rows: dict[str, Any], masked: dict[str, Any], streams: Any) -> tuple[Any, Any, Any]:
    kept = jnp.tanh(rows["owner"] * params["w"][None] + streams["x"]) + masked["owner"]
    return {"kept": kept}, None, {"owner": kept**2 * params["w"][None]}


def inputs() -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """What is differentiated, the owners, and weights of the kept results."""
    generator = np.random.default_rng(3)
    owner = np.where(np.arange(ROWS) < USED, generator.integers(0, OWNERS, ROWS), OWNERS)
    shapes = {"w": (3,), "table": (OWNERS, 3), "masked": (OWNERS, 3), "x": (ROWS, 3)}
    values = {name: jnp.asarray(generator.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return values, jnp.asarray(owner, jnp.int32), jnp.asarray(generator.normal(size=(USED, 3)), jnp.float32)


@pytest.mark.parametrize("whole", [False, True])
def test_values_and_derivatives(whole: bool) -> None:
    values, owner, weights = inputs()
    sizes, index = (("owner", OWNERS),), {"owner": owner}

    def with_pass(values: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        params, streams = {"w": values["w"]}, {"x": values["x"]}
        given = params, {"owner": values["table"]}, {"owner": values["masked"]}, index, streams
        if whole:
            kept, _, sums = whole_pass(function, sizes, *given)
        else:
            kept, _, sums = sliced_pass(function, sizes, *given, RowCount(jnp.int32(USED), LENGTH))
        return kept["kept"][:USED], sums["owner"]

    def written_down(values: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        own = owner[:USED]
        kept = jnp.tanh(values["table"][own] * values["w"][None] + values["x"][:USED]) + values["masked"][own]
        return kept, jax.ops.segment_sum(kept**2 * values["w"][None], own, OWNERS)

    def number(results: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.sum(results[0] * weights) + jnp.sum(jnp.sin(results[1] / USED))

    def slope(function: Any, values: dict[str, Any]) -> dict[str, jax.Array]:
        return jax.grad(lambda v: number(function(v)))(values)

    def curvature(function: Any, values: dict[str, Any]) -> dict[str, jax.Array]:
        """Derivative in everything of a number made of derivatives, as in the loss of forces."""

        def of_slopes(values: dict[str, Any]) -> jax.Array:
            found = slope(function, values)
            return jnp.sum(found["table"] ** 3) + jnp.sum(found["x"] ** 2)

        return jax.grad(of_slopes)(values)

    for of in (lambda f, v: f(v), slope, curvature):
        found, expected = (jax.jit(functools.partial(of, f))(values) for f in (with_pass, written_down))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            scale = float(jnp.max(jnp.abs(other)))
            np.testing.assert_allclose(one, other, rtol=0.0, atol=2e-5 * scale)
