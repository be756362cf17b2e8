"""Periodic neighbour lists on the device: every image of every pair within cutoff + skin.

`allocate` chooses static sizes (a `Layout`) on the host; `build` makes a `Neighbors` for one system inside a compiled
program; `needs_rebuild` and `refresh` keep those of many replicas valid; `edge_vectors` reads the geometry off it.
Where a list may overflow, `grow_until_it_fits` repeats the computation with larger sizes.
"""

from jaxpto.neighbors.angles import Angles
from jaxpto.neighbors.layout import Layout, grow, heights, in_whole_vectors
from jaxpto.neighbors.lists import Neighbors, allocate, build, edge_rows, edge_vectors
from jaxpto.neighbors.near import near_slots
from jaxpto.neighbors.overflow import Fitted, NeighborOverflowError, grow_until_it_fits
from jaxpto.neighbors.upkeep import needs_rebuild, refresh
from jaxpto.neighbors.waves import outgrown

__all__ = [
    "Angles",
    "Fitted",
    "Layout",
    "NeighborOverflowError",
    "Neighbors",
    "allocate",
    "build",
    "edge_rows",
    "edge_vectors",
    "grow",
    "grow_until_it_fits",
    "heights",
    "in_whole_vectors",
    "near_slots",
    "needs_rebuild",
    "outgrown",
    "refresh",
]
