"""A fixed linear transformation of the model's inputs that makes training well conditioned.

Training works on `raw` weights that act on whitened radial functions (per element pair) and whitened invariants (per
element). `fold` multiplies the whitening into them, which gives the parameters that `Perovskite` uses.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jaxpto.models.perovskite import Params, Perovskite


@struct.dataclass
class Whitening:
    """Whitening for e elements; of a committee's constants each array has a leading axis of members.

    Attributes:
        radial: [e, e, k, k] applied to the k radial functions of an element pair.
        mean: [e, d] subtracted from the d independent invariants.
        features: [e, d, d] applied to them.
    """

    radial: Float[Array, "*m e e k k"]
    mean: Float[Array, "*m e d"]
    features: Float[Array, "*m e d d"]


def independent(model: Perovskite) -> np.ndarray:
    """Indices of the invariants that are not the mirror image (n', n) of another."""
    c = model.channels
    first, second = np.triu_indices(c)
    upper = first * c + second
    rest = np.arange(c + 2 * c * c, model.features)
    return np.concatenate([np.arange(c), c + upper, c + c * c + upper, rest])


def inverse_root(covariance: np.ndarray, floor: float) -> np.ndarray:
    """Symmetric inverse square root of covariances [..., k, k] with eigenvalues raised by `floor` x their mean."""
    values, basis = np.linalg.eigh(covariance)
    values = np.maximum(values, 0.0)
    mean = values.mean(-1, keepdims=True)
    scale = 1.0 / np.sqrt(values + floor * mean + 1e-12)
    return np.einsum("...ij,...j,...kj->...ik", basis, scale, basis)


def fold(model: Perovskite, raw: Params, whitening: Whitening) -> Params:
    """The parameters that give, on plain inputs, what `raw` gives on whitened ones."""
    kept = independent(model)
    weight1 = jnp.einsum("epd,eph->edh", whitening.features, raw["weight1"])
    linear = jnp.einsum("epd,ep->ed", whitening.features, raw["linear"])
    e, _, h = weight1.shape
    return raw | {
        "mix": _by_pair(raw["mix"], whitening.radial),
        "pair": _by_pair(raw["pair"][:, :, None], whitening.radial)[:, :, 0],
        "weight1": jnp.zeros((e, model.features, h), weight1.dtype).at[:, kept].set(weight1),
        "bias1": raw["bias1"] - jnp.einsum("ed,edh->eh", whitening.mean, weight1),
        "linear": jnp.zeros((e, model.features), linear.dtype).at[:, kept].set(linear),
        "offset": raw["offset"] - jnp.einsum("ed,ed->e", whitening.mean, linear),
    }


def _by_pair(weights: Float[Array, "e e n p"], radial: Float[Array, "e e p k"]) -> Float[Array, "e e n k"]:
    """weights @ radial of each pair of elements.

    With the two axes of elements as one: XLA (jax 0.10) breaks on derivatives of products over two such axes and a
    third one of members.
    """
    pairs = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # noqa: E731
    return jnp.einsum("anp,apk->ank", pairs(weights), pairs(radial)).reshape(*weights.shape[:3], radial.shape[3])


def unfold(model: Perovskite, params: Params, whitening: Whitening) -> Params:
    """Inverse of `fold`: the raw weights for given parameters."""
    kept = independent(model)
    c = model.channels
    first, second = np.divmod(np.arange(c * c), c)
    mirror = np.arange(model.features)
    mirror[c : c + c * c] = c + second * c + first
    mirror[c + c * c : c + 2 * c * c] = c + c * c + second * c + first

    def once(weight: Array) -> Array:
        twins = (mirror != np.arange(model.features)).reshape(1, -1, *[1] * (weight.ndim - 2))
        return (weight + jnp.asarray(twins, weight.dtype) * weight[:, mirror])[:, kept]

    weight1, linear = once(params["weight1"]), once(params["linear"])
    transposed = jnp.swapaxes(whitening.features, 1, 2)
    radial = jnp.linalg.inv(whitening.radial)
    return params | {
        "mix": jnp.einsum("abnk,abkp->abnp", params["mix"], radial),
        "pair": jnp.einsum("abk,abkp->abp", params["pair"], radial),
        "weight1": jnp.linalg.solve(transposed, weight1),
        "bias1": params["bias1"] + jnp.einsum("ed,edh->eh", whitening.mean, weight1),
        "linear": jnp.linalg.solve(transposed, linear[:, :, None])[:, :, 0],
        "offset": params["offset"] + jnp.einsum("ed,ed->e", whitening.mean, linear),
    }
