"""The operations that `benchmarks.roofline` counts in programs with loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks.roofline import product_operations

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))
ONE = 2 * 3 * 4 * 5


def test_products_in_loops_branches_and_inner_functions() -> None:
    def program(a: jax.Array, b: jax.Array) -> jax.Array:
        def turn(total: jax.Array, _: None) -> tuple[jax.Array, None]:
            return total + jax.lax.cond(
                total[0, 0] < 9.0, lambda: jax.checkpoint(jnp.matmul)(a, b), lambda: total
            ), None

        return jax.lax.scan(turn, jax.jit(jnp.matmul)(a, b), length=7)[0]

    assert product_operations(jax.make_jaxpr(program)(A, B).jaxpr) == 8 * ONE


def test_batched_products() -> None:
    program = jax.make_jaxpr(jax.vmap(jnp.matmul))(jnp.stack([A] * 6), jnp.stack([B] * 6))
    assert product_operations(program.jaxpr) == 6 * ONE


def test_a_backward_pass_takes_a_product_for_each_factor() -> None:
    gradient = jax.grad(lambda a, b: jnp.sum(a @ b), argnums=(0, 1))
    assert product_operations(jax.make_jaxpr(gradient)(A, B).jaxpr) == 3 * ONE


def test_a_product_in_an_endless_loop_is_refused() -> None:
    program = jax.make_jaxpr(lambda a: jax.lax.while_loop(lambda x: x[0, 0] < 9.0, lambda x: x @ B @ B.T, a))(A)
    with pytest.raises(SystemExit, match="cannot be counted"):
        product_operations(program.jaxpr)
