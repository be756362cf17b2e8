"""Bonds and angles of packed neighbour lists, against ASE's list and plain Python."""

from __future__ import annotations

import dataclasses
import itertools

import ase
import ase.neighborlist
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpto.neighbors import Layout, Neighbors, allocate, build, grow
from jaxpto.system import from_ase

BUILD = jax.jit(build, static_argnames="layout")


def random_atoms(seed: int, n: int, edge: float) -> ase.Atoms:
    random = np.random.default_rng(seed)
    cell = edge * (np.eye(3) + random.uniform(-0.25, 0.25, (3, 3)))
    if np.linalg.det(cell) < 0:
        cell = cell[::-1]
    atoms = ase.Atoms(f"H{n}", cell=cell, pbc=True, scaled_positions=random.uniform(-1.0, 2.0, (n, 3)))
    distances = atoms.get_all_distances(mic=True) + 9.0 * np.eye(n)
    if distances.min() < 0.4:  # atoms on top of each other are refused elsewhere
        return random_atoms(seed + 1000, n, edge)
    return atoms


def as_sets(neighbors: Neighbors) -> tuple[set, dict[int, tuple], list[tuple[int, int]]]:
    """Bonds as (receiver, sender, shift), the same by place, and angles as pairs of places."""
    found = neighbors.angles
    assert found is not None
    e, b = neighbors.senders.shape[0], found.bonds.shape[0]
    receivers, senders, shifts = (np.asarray(x) for x in (neighbors.receivers, neighbors.senders, neighbors.shifts))
    bonds = np.asarray(found.bonds)
    by_place = {
        place: (int(receivers[i]), int(senders[i]), tuple(shifts[i].tolist()))
        for place, i in enumerate(bonds.tolist())
        if i < e
    }
    angles = [(p, q) for p, q in zip(found.first.tolist(), found.second.tolist(), strict=True) if p < b]
    assert all(q == b for p, q in zip(found.first.tolist(), found.second.tolist(), strict=True) if p == b)
    return set(by_place.values()), by_place, angles


def check(atoms: ase.Atoms, layout: Layout, reach: float) -> None:
    neighbors = BUILD(from_ase(atoms, np.float64), layout)
    assert not neighbors.overflow
    bonds, by_place, angles = as_sets(neighbors)
    i, j, shift = ase.neighborlist.neighbor_list("ijS", atoms, reach)
    assert bonds == {(a, b, tuple(s)) for a, b, s in zip(i.tolist(), j.tolist(), shift.tolist(), strict=True)}
    assert len(by_place) == len(bonds)
    expected = {(p, q) for p, q in itertools.permutations(by_place, 2) if by_place[p][0] == by_place[q][0]}
    assert len(angles) == len(expected)
    assert set(angles) == expected
    assert angles == sorted(angles)
    reverse = np.asarray(neighbors.angles.reverse)  # ty: ignore[unresolved-attribute]
    for place, (receiver, sender, translation) in by_place.items():
        assert by_place[int(reverse[place])] == (sender, receiver, tuple(-x for x in translation))
    assert set(reverse[len(by_place) :].tolist()) <= {len(reverse)}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 5]), st.sampled_from([2.5, 3.5]))
def test_against_ase(seed: int, n: int, edge: float) -> None:
    atoms = random_atoms(seed, n, edge)
    # generous sizes, the same for all cells, so that only three programs are compiled
    stencil = (4, 4, 4)
    layout = Layout(3.6, 0.2, (1, 1, 1), stencil, (32 * (1 + 9**3 * n // 32),), (), (), 600, 2.6, 400, 16_000)
    check(atoms, layout, 2.8)


def test_larger_cell() -> None:
    atoms = random_atoms(3, 40, 8.0)
    check(atoms, allocate([from_ase(atoms, np.float64)], 4.0, 0.3, packed=True, angle_cutoff=2.5), 2.8)


def test_no_bond_at_all() -> None:
    atoms = ase.Atoms("He", cell=[9.0] * 3, pbc=True)
    neighbors = BUILD(
        from_ase(atoms, np.float64), allocate([from_ase(atoms, np.float64)], 5.0, 0.3, packed=True, angle_cutoff=3.0)
    )
    assert as_sets(neighbors) == (set(), {}, [])
    assert not neighbors.overflow


@pytest.mark.parametrize("name", ["bonds", "angles"])
def test_too_small_a_capacity_is_flagged_and_grows(name: str) -> None:
    atoms = random_atoms(5, 12, 5.0)
    system = from_ase(atoms, np.float64)
    exact = allocate([system], 4.0, 0.3, packed=True, angle_cutoff=3.0, headroom=1.0)
    enough = dataclasses.replace(exact, **{name: getattr(exact, name) - 1})  # allocate leaves one place free
    assert not BUILD(system, enough).overflow
    short = dataclasses.replace(exact, **{name: getattr(exact, name) - 2})
    assert BUILD(system, short).overflow
    grown = grow(short, atoms.cell.array)
    assert not BUILD(system, grown).overflow
    check(atoms, grown, 3.3)


def test_angles_need_a_packed_list() -> None:
    system = from_ase(random_atoms(1, 2, 4.0), np.float64)
    with pytest.raises(ValueError, match="packed=True"):
        allocate([system], 4.0, 0.3, angle_cutoff=3.0)
    with pytest.raises(ValueError, match="at least as long"):
        allocate([system], 4.0, 0.3, packed=True, angle_cutoff=5.0)
