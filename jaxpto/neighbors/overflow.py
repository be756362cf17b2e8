"""Computations whose neighbour lists may turn out too small: done again with larger ones until they fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from jaxpto.neighbors.layout import Layout

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Fitted(Generic[T]):
    """A result for which every neighbour list had room, the layout it took, and how often that had to be enlarged."""

    result: T
    layout: Layout
    enlargements: int


class NeighborOverflowError(RuntimeError):
    """A neighbour list overflows however often it is enlarged: the structure has collapsed, or has lost its cell.

    Attributes:
        result: what came out last, with incomplete lists.
        layout: the layout it was computed with.
    """

    def __init__(self, result: Any, layout: Layout, enlargements: int) -> None:
        super().__init__(
            f"the neighbour list overflows even after enlargement {enlargements}; check the structure's density"
        )
        self.result = result
        self.layout = layout


def grow_until_it_fits(
    compute: Callable[[Layout], T],
    layout: Layout,
    *,
    overflowed: Callable[[T], bool],
    enlarge: Callable[[Layout, T], Layout],
    enlargements: int,
) -> Fitted[T]:
    """Compute with a layout; while a list overflows, discard the result, enlarge the layout and compute again.

    Args:
        compute: the computation from its beginning, with neighbour lists of a given layout.
        layout: sizes to begin with.
        overflowed: whether a list was too small for a result, which then counts for nothing.
        enlarge: a larger layout in place of the one that a result overflowed; usually by `grow`.
        enlargements: how often at most the layout is enlarged.

    Raises:
        NeighborOverflowError: the largest layout was too small as well.
    """
    for done in range(enlargements + 1):
        result = compute(layout)
        if not overflowed(result):
            return Fitted(result, layout, done)
        if done < enlargements:
            layout = enlarge(layout, result)
    raise NeighborOverflowError(result, layout, enlargements)
