"""A computation whose neighbour list overflows is repeated with a larger one, as often as allowed."""

import dataclasses

import jax
import pytest
from ase.build import bulk

from jaxpto.neighbors import Fitted, Layout, NeighborOverflowError, Neighbors, allocate, build, grow, grow_until_it_fits
from jaxpto.system import System, from_ase

ARGON = bulk("Ar", "fcc", 5.3, cubic=True)  # 12 neighbours within 4 Angstrom
TIGHT = dataclasses.replace(allocate([from_ase(ARGON)], 4.0, 0.0), slots=(2,))


def list_of(system: System, layout: Layout) -> Neighbors:
    return jax.jit(build, static_argnames="layout")(system, layout=layout)


def grow_list(layout: Layout, enlargements: int) -> Fitted[Neighbors]:
    system = from_ase(ARGON)
    return grow_until_it_fits(
        lambda layout: list_of(system, layout),
        layout,
        overflowed=lambda neighbors: bool(neighbors.overflow),
        enlarge=lambda layout, _: grow(layout, ARGON.cell.array),
        enlargements=enlargements,
    )


def test_the_result_is_complete_and_comes_with_its_layout() -> None:
    found = grow_list(TIGHT, 5)
    neighbors = found.result
    assert int((neighbors.senders < len(ARGON)).sum()) == 12 * len(ARGON)
    assert neighbors.layout == found.layout
    grown = TIGHT
    for _ in range(found.enlargements):
        assert grown.slots[0] < 12
        grown = grow(grown, ARGON.cell.array)
    assert found.layout == grown


def test_a_list_with_room_is_computed_once() -> None:
    roomy = dataclasses.replace(TIGHT, slots=(16,))
    found = grow_list(roomy, 0)
    assert (found.layout, found.enlargements) == (roomy, 0)


@pytest.mark.parametrize("enlargements", [0, 1])
def test_the_error_holds_the_last_result_and_its_layout(enlargements: int) -> None:
    computed = []

    def compute(layout: Layout) -> int:
        computed.append(layout.edges)
        return layout.edges

    with pytest.raises(NeighborOverflowError, match=f"overflows even after enlargement {enlargements};") as caught:
        grow_until_it_fits(
            compute,
            dataclasses.replace(TIGHT, edges=10),
            overflowed=lambda edges: edges < 100,
            enlarge=lambda layout, edges: dataclasses.replace(layout, edges=edges + 5),
            enlargements=enlargements,
        )
    assert computed == [10, 15][: enlargements + 1]
    assert (caught.value.result, caught.value.layout.edges) == (computed[-1], computed[-1])
