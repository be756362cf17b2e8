"""Slots sorted by reach: in each block of a dense list, edges within a shorter cutoff come first.

What a model sums up to a shorter cutoff than its longest it then computes for those slots alone.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxpto.neighbors.layout import Layout


def near_first(
    vectors: Float[Array, "n s 3"], senders: Int[Array, "n s"], images: Int[Array, "n s"], layout: Layout
) -> tuple[Int[Array, "n s"], Int[Array, "n s"], Bool[Array, ""]]:
    """Senders and images with the near edges of each block first, in unchanged order, and whether some find no place.

    An edge is near within `layout.near_cutoff` and the skin, so that none is missed as long as the list is complete.

    Args:
        vectors: edge vectors, Angstrom; longer than the cutoff and the skin in empty slots.
        senders, images: as in `Neighbors`.
        layout: with `near`.
    """
    near = _is_near(vectors, layout)
    ranks, crowded = [], []
    for first, slots, room in zip(_starts(layout), layout.slots, layout.near, strict=True):
        here = near[:, first : first + slots].astype(jnp.int32)
        ahead, number = jnp.cumsum(here, axis=1), here.sum(axis=1)
        behind = number[:, None] + jnp.cumsum(1 - here, axis=1)
        ranks.append(first - 1 + jnp.where(here > 0, ahead, behind))
        crowded.append(number.max() > room)
    rank = jnp.concatenate(ranks, axis=1)
    rows = jnp.arange(len(rank), dtype=rank.dtype)[:, None]
    sorted_senders, sorted_images = (
        values.at[rows, rank].set(values, mode="promise_in_bounds", unique_indices=True) for values in (senders, images)
    )
    return sorted_senders, sorted_images, jnp.stack(crowded).any()


def count_near(vectors: Float[Array, "n s 3"], layout: Layout) -> Int[Array, " b"]:
    """The largest number of near edges of an atom, for each block.

    Args:
        vectors: edge vectors, Angstrom; longer than the cutoff and the skin in empty slots.
        layout: with `near_cutoff`.
    """
    near = _is_near(vectors, layout)
    parts = zip(_starts(layout), layout.slots, strict=True)
    return jnp.stack([near[:, first : first + slots].sum(axis=1, dtype=jnp.int32).max() for first, slots in parts])


def near_slots(array: Array, layout: Layout) -> Array:
    """The slots of an array [..., s] that hold near edges, block by block; all where the layout does not sort them."""
    if not layout.near:
        return array
    parts = zip(_starts(layout), layout.near, strict=True)
    return jnp.concatenate([array[..., first : first + room] for first, room in parts], axis=-1)


def _is_near(vectors: Array, layout: Layout) -> Array:
    return jnp.sum(vectors * vectors, axis=2) < (layout.near_cutoff + layout.skin) ** 2


def _starts(layout: Layout) -> list[int]:
    """First slot of each block."""
    return (np.cumsum(layout.slots) - np.asarray(layout.slots)).tolist()
