"""Harmonics and 3j symbols against e3nn-jax and against each other."""

from __future__ import annotations

import itertools

import e3nn_jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpto.models.equivariant import normalized_silu, polynomial_envelope, spherical_harmonics, wigner_3j


def _directions(count: int) -> jax.Array:
    vectors = np.random.default_rng(0).normal(size=(count, 3))
    return jnp.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@pytest.mark.parametrize("highest", [0, 1, 2, 3])
def test_harmonics_are_those_of_e3nn(highest: int) -> None:
    unit = _directions(20)
    expected = e3nn_jax.spherical_harmonics(
        "+".join(["0e", "1e", "2e", "3e"][: highest + 1]), unit, False, normalization="component"
    ).array
    np.testing.assert_allclose(spherical_harmonics(unit, highest), expected, atol=1e-13)
    assert spherical_harmonics(unit, highest).shape == (20, (highest + 1) ** 2)


def test_higher_harmonics_are_refused() -> None:
    with pytest.raises(ValueError, match="l = 4"):
        spherical_harmonics(_directions(1), 4)


def test_3j_symbols_are_those_of_e3nn() -> None:
    triples = [t for t in itertools.product(range(5), repeat=3) if abs(t[0] - t[1]) <= t[2] <= t[0] + t[1]]
    assert len(triples) == 65
    for triple in triples:
        np.testing.assert_allclose(wigner_3j(*triple), e3nn_jax.clebsch_gordan(*triple), atol=1e-13)


def test_3j_symbols_keep_to_the_triangle() -> None:
    with pytest.raises(ValueError, match="3 is not from 0 to 2"):
        wigner_3j(1, 1, 3)


def test_3j_symbols_couple_harmonics() -> None:
    """Of even l1 + l2 + l3: contracted with two harmonics of one direction they give a multiple of the third."""
    unit = _directions(5)
    blocks = np.split(np.asarray(spherical_harmonics(unit, 3)), [1, 4, 9], axis=1)
    checked = 0
    for l1, l2, l3 in itertools.product(range(4), repeat=3):
        if not abs(l1 - l2) <= l3 <= l1 + l2:
            continue
        table = wigner_3j(l1, l2, l3)
        np.testing.assert_allclose((table**2).sum(), 1.0, rtol=1e-12)
        coupled = np.einsum("abc,na,nb->nc", table, blocks[l1], blocks[l2])
        if (l1 + l2 + l3) % 2:
            np.testing.assert_allclose(coupled, 0.0, atol=1e-12)
        else:
            ratio = np.sum(coupled * blocks[l3], axis=1) / (2 * l3 + 1)
            np.testing.assert_allclose(coupled, ratio[:, None] * blocks[l3], atol=1e-12)
            assert (ratio > 1e-3).all()  # with the positive sign, as published weights expect
        checked += 1
    assert checked == 34


def test_silu_has_unit_second_moment() -> None:
    """By quadrature, to three standard deviations of the million samples that e3nn took the constant from."""
    x = jnp.linspace(-12.0, 12.0, 20001)
    density = jnp.exp(-0.5 * x**2) / np.sqrt(2.0 * np.pi)
    moment = jnp.sum(normalized_silu(x) ** 2 * density) * (x[1] - x[0])
    spread = jnp.sum(normalized_silu(x) ** 4 * density) * (x[1] - x[0]) - moment**2
    assert abs(moment - 1.0) < 3.0 * float(jnp.sqrt(spread / 1e6))


def test_envelope_is_the_published_polynomial() -> None:
    x = np.linspace(0.0, 0.999, 50)
    expected = 1.0 - 21.0 * x**5 + 35.0 * x**6 - 15.0 * x**7
    np.testing.assert_allclose(polynomial_envelope(jnp.asarray(x), 5), expected, atol=1e-13)
    assert polynomial_envelope(jnp.asarray(1.2), 5) == 0.0
