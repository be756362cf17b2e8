"""The convolution of features with harmonics by a kernel of NVIDIA's cuEquivariance, if installed, on a GPU.

For every edge the kernel looks up the features of the sender, multiplies them with harmonics and radial weights, and
adds the products to the receiver; no message is written down. Its derivatives are kernels of the same kind.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.models.couplings import CouplingPath, path_coefficients
from jaxpto.neighbors import Layout

EDGES = 1 << 15  # that go through a layer at once; their radial weights are written down
_NEGLIGIBLE = 1e-12  # 3j symbols that are zero but for rounding


def available(layout: Layout) -> bool:
    """Whether the kernel can be used: on one GPU, where cuEquivariance is installed (bindings and kernels).

    XLA cannot spread the kernel's edges over several devices.
    """
    packages = ("cuequivariance_jax", "cuequivariance_ops_jax")
    return layout.platform == "gpu" and layout.devices == 1 and all(map(importlib.util.find_spec, packages))


def slice_length(edges: int) -> int:
    """Length of the slices that e edges are cut into: as few as possible, equal, the last one padded."""
    return math.ceil(edges / math.ceil(edges / EDGES))


@functools.cache
def coupled_channels(paths: tuple[CouplingPath, ...], channels: tuple[int, ...], highest: int) -> Any:
    """The products of radial weights, features and harmonics as a `cuequivariance.SegmentedPolynomial`.

    The kernel wants segments of one length only. That is the largest common divisor of the numbers of channels.

    Args:
        paths: couplings, in the order of the radial weights and ordered by their results.
        channels: number of channels for each l of the features.
        highest: largest l of the harmonics.
    """
    import cuequivariance as cue

    segment = math.gcd(*channels)
    pieces = [width // segment for width in channels]  # segments of each l's channels
    first_feature = [0, *itertools.accumulate((2 * order + 1) * count for order, count in enumerate(pieces))]
    first_weight = [0, *itertools.accumulate(pieces[path.features] for path in paths)]
    summed = [0] * (max(path.result for path in paths) + 1)  # segments of all paths to a result, side by side
    before = []
    for path in paths:
        before.append(summed[path.result])
        summed[path.result] += pieces[path.features]
    first_result = [0, *itertools.accumulate((2 * order + 1) * count for order, count in enumerate(summed))]
    product = cue.SegmentedTensorProduct.from_subscripts(cue.segmented_polynomials.Subscripts("u,u,,u"))
    for operand, starts in zip((0, 1, 3), (first_weight, first_feature, first_result), strict=True):
        product.add_segments(operand, [(segment,)] * starts[-1])
    product.add_segments(2, [()] * (highest + 1) ** 2)
    for number, path in enumerate(paths):
        coefficients = path_coefficients(path)
        for m1, m2, m3 in np.argwhere(np.abs(coefficients) > _NEGLIGIBLE).tolist():
            for piece in range(pieces[path.features]):
                product.add_path(
                    first_weight[number] + piece,
                    first_feature[path.features] + m1 * pieces[path.features] + piece,
                    path.harmonics**2 + m2,
                    first_result[path.result] + m3 * summed[path.result] + before[number] + piece,
                    c=coefficients[m1, m2, m3],
                )
    return cue.SegmentedPolynomial.eval_last_operand(product)


def fused_sums(
    polynomial: Any,
    weights: Callable[[Any], Float[Array, "s c"]],
    features: Float[Array, "n f"],
    senders: Int[Array, " e"],
    receivers: Int[Array, " e"],
    streams: Any,
) -> Float[Array, "n d"]:
    """Sums over the edges of each receiver.

    Args:
        polynomial: see `coupled_channels`.
        weights: radial weights [s, c] of edges from their streams, zero for empty ones; done again for the derivatives.
        features: features of the atoms, all l side by side.
        senders, receivers: ends of each edge; n marks an empty one. e is a multiple of `slice_length`(e).
        streams: pytree of arrays [e, ...], one of them the "harmonics".
    """
    import cuequivariance_jax

    n = features.shape[0]
    # an empty edge adds zero, but to an atom that exists, and not all of them to the same one
    anywhere = jnp.arange(senders.shape[0], dtype=senders.dtype) % n
    ends = [jnp.where(end < n, end, anywhere) for end in (senders, receivers)]
    shape = jax.ShapeDtypeStruct((n, polynomial.outputs[0].size), features.dtype)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(sums: Array, edges: Any) -> tuple[Array, None]:
        (senders, receivers), streams = edges
        factors = [weights(streams), features, streams["harmonics"]]
        (added,) = cuequivariance_jax.segmented_polynomial(
            polynomial, factors, [shape], [None, senders, None, receivers], method="uniform_1d", name="convolution"
        )
        return sums + added, None

    length = slice_length(senders.shape[0])
    sliced = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), (ends, streams))
    return jax.lax.scan(step, jnp.zeros(shape.shape, shape.dtype), sliced)[0]
