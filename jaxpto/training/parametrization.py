"""What is trained, and how the parameters of the model follow from it: all of them, some, low-rank changes.

A `Parametrization` can be wrapped again: whitened weights of which some are frozen, say.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxpto.errors import InputError

Decode = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """A pytree to train, and the function that makes the model's parameters of it.

    Attributes:
        raw: what is trained.
        constants: what stays.
        decode: (raw, constants) -> parameters; pure.
    """

    raw: Any
    constants: Any
    decode: Decode

    @property
    def params(self) -> Any:
        """The model's parameters at the beginning."""
        return jax.jit(self.decode)(self.raw, self.constants)


def scaled(params: Any) -> Parametrization:
    """The parameters in units of their size, leaf by leaf, so that one learning rate suits all.

    Checkpoints keep factors inside weights that others keep outside: the size of a weight says nothing about how fast
    it should change. The unit is the power of two next to the root mean square, so that what is not trained stays as it
    is, bit for bit; of leaves of zeros it is 1.
    """

    def size(leaf: Array | np.ndarray) -> np.ndarray:
        square = np.mean(np.square(np.asarray(leaf, np.float64))) if leaf.size else 0.0
        known = jnp.issubdtype(leaf.dtype, jnp.floating) and square > 0.0
        return np.asarray(2.0 ** np.round(0.5 * np.log2(square)) if known else 1.0, leaf.dtype)

    scales = jax.tree.map(size, params)
    raw = jax.tree.map(lambda leaf, scale: jnp.asarray(leaf / scale, leaf.dtype), params, scales)
    return Parametrization(raw, scales, lambda raw, scales: jax.tree.map(jnp.multiply, raw, scales))


def names_of(tree: Any) -> list[str]:
    """Names "layers/0/weight" of the leaves of a tree of dictionaries, in the order of its leaves."""
    return [
        "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def frozen(inner: Parametrization, constants: Sequence[str], patterns: Sequence[str]) -> Parametrization:
    """Only the leaves of `inner.raw` are trained whose names match no pattern and that are floating-point numbers.

    Args:
        inner: what is trained without this; its `raw` a tree of dictionaries.
        constants: patterns of parameters that are no weights; see `ModelWithConstants`.
        patterns: those that the user holds, as in "embedding" or "layers/0/*".

    Raises:
        InputError: a pattern matches nothing, or nothing is left to train.
    """
    leaves, structure = jax.tree.flatten(inner.raw)
    names = names_of(inner.raw)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise InputError(f"freeze {pattern!r} matches no parameter; they are {_some(names)}")
    held = [
        any(fnmatch.fnmatch(name, pattern) for pattern in (*constants, *patterns))
        or not jnp.issubdtype(leaf.dtype, jnp.floating)
        for name, leaf in zip(names, leaves, strict=True)
    ]
    if all(held):
        raise InputError(f"freeze {' '.join(patterns)} matches every parameter; leave something to train")
    if not any(held):
        return inner
    raw = {name: leaf for name, leaf, stays in zip(names, leaves, held, strict=True) if not stays}
    kept = {name: leaf for name, leaf, stays in zip(names, leaves, held, strict=True) if stays}

    def decode(raw: Any, constants: Any) -> Any:
        both = raw | constants["frozen"]
        return inner.decode(jax.tree.unflatten(structure, [both[name] for name in names]), constants["inner"])

    return Parametrization(raw, {"frozen": kept, "inner": inner.constants}, decode)


def low_rank(inner: Parametrization, rank: int, key: Array) -> Parametrization:
    """Matrices W change by left @ right of a small rank (Hu et al., arXiv:2106.09685); vectors are trained as they are.

    The last two axes of a leaf are its matrix. Those whose shorter side is not above the rank are trained in full.

    Args:
        inner: what is trained without this.
        rank: inner dimension of left [m, rank] and right [rank, n].
        key: PRNG key of `left`; `right` begins at zero, so that nothing has changed yet.

    Raises:
        InputError: no matrix is larger than the rank.
    """
    leaves, structure = jax.tree.flatten(inner.raw)
    names = names_of(inner.raw)
    wide = {
        name: leaf for name, leaf in zip(names, leaves, strict=True) if leaf.ndim >= 2 and min(leaf.shape[-2:]) > rank
    }
    if not wide:
        raise InputError(f"rank {rank}: no matrix of the model is larger; give a smaller one, or train in full")
    raw: dict[str, Any] = {}
    for index, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if name not in wide:
            raw[name] = leaf
            continue
        *batch, m, n = leaf.shape
        left = jax.random.normal(jax.random.fold_in(key, index), (*batch, m, rank), leaf.dtype) / np.sqrt(m).item()
        raw[name] = {"left": left, "right": jnp.zeros((*batch, rank, n), leaf.dtype)}

    def decode(raw: Any, constants: Any) -> Any:
        def whole(name: str) -> Array:
            if name not in wide:
                return raw[name]
            return constants["base"][name] + jnp.matmul(raw[name]["left"], raw[name]["right"], precision="highest")

        return inner.decode(jax.tree.unflatten(structure, [whole(name) for name in names]), constants["inner"])

    return Parametrization(raw, {"base": wide, "inner": inner.constants}, decode)


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
