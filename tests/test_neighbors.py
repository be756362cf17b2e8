"""The neighbour list against ASE's, its capacities, and the promise that it is never stale."""

from __future__ import annotations

import dataclasses
import re

import ase
import ase.neighborlist
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxpto.neighbors import (
    Layout,
    Neighbors,
    allocate,
    build,
    edge_vectors,
    grow,
    heights,
    lists,
    needs_rebuild,
    refresh,
    upkeep,
)
from jaxpto.system import System, from_ase, stack

LAYOUTS = {"dense": {}, "by_species": {"by_species": True}, "packed": {"packed": True}}


def roomy_layout(n: int, kind: str) -> Layout:
    """Holds `random_atoms(seed, n)` of any seed, so that property tests share compiled programs."""
    species, slots, edges = {
        "dense": ((), (600,), 0),
        "by_species": ((82, 22, 8), (600,) * 3, 0),
        "packed": ((), (), 4000),
    }[kind]
    bins, stencil = (1, 2, 3), (3, 6, 9)
    return Layout(5.4, 0.6, bins, stencil, (32 * 11 * n,) * max(1, len(species)), species, slots, edges)


def random_cell(rng: np.random.Generator, size: float) -> np.ndarray:
    """A right-handed cell, up to strongly triclinic (angles down to 35 degrees)."""
    while True:
        cell = rng.normal(size=(3, 3))
        cell /= np.linalg.norm(cell, axis=1)[:, None]
        cell *= rng.uniform(0.6, 1.6, (3, 1)) * size
        if np.linalg.det(cell) < 0:
            cell = cell[[1, 0, 2]]
        if heights(cell).min() > 0.45 * size:
            return cell


def random_atoms(seed: int, n: int, size: float = 5.0, far: int = 3) -> ase.Atoms:
    """Atoms at random places, `far` cells away from the origin, nobody on top of another."""
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, size)
    atoms = ase.Atoms(rng.choice(["Pb", "Ti", "O"], n), scaled_positions=rng.random((n, 3)), cell=cell, pbc=True)
    while len(close := ase.neighborlist.neighbor_list("i", atoms, 0.5)):
        again = np.unique(close)
        atoms.positions[again] = rng.random((len(again), 3)) @ cell
    atoms.positions += rng.integers(-far, far + 1, (n, 3)) @ cell
    return atoms


def edges_of(neighbors: Neighbors) -> set[tuple[int, ...]]:
    """(receiver, sender, shift) of every edge; fails on a duplicate."""
    n = neighbors.wraps.shape[0]
    filled = np.asarray(neighbors.senders) < n
    rows = np.column_stack([neighbors.receivers, neighbors.senders, neighbors.shifts])[filled]
    edges = {tuple(row) for row in rows.tolist()}
    assert len(edges) == filled.sum(), "an edge is listed twice"
    return edges


def edges_of_ase(atoms: ase.Atoms, reach: float) -> set[tuple[int, ...]]:
    first, second, shift = ase.neighborlist.neighbor_list("ijS", atoms, reach)
    return {(int(i), int(j), *s) for i, j, s in zip(first, second, shift.tolist(), strict=True)}


def check_against_ase(atoms: ase.Atoms, neighbors: Neighbors, reach: float) -> None:
    assert not neighbors.overflow
    edges = edges_of(neighbors)
    # pairs at the very edge of the sphere may fall on either side of it by rounding
    assert edges <= edges_of_ase(atoms, reach + 1e-9)
    assert edges >= edges_of_ase(atoms, reach - 1e-9)


def check_vectors(atoms: ase.Atoms, neighbors: Neighbors) -> None:
    n, reach = len(atoms), neighbors.layout.cutoff + neighbors.layout.skin
    vectors = np.asarray(edge_vectors(from_ase(atoms, np.float64), neighbors))
    filled = np.asarray(neighbors.senders) < n
    i, j = np.asarray(neighbors.receivers)[filled], np.asarray(neighbors.senders)[filled]
    expected = atoms.positions[j] + np.asarray(neighbors.shifts)[filled] @ atoms.cell.array - atoms.positions[i]
    np.testing.assert_allclose(vectors[filled], expected, atol=1e-10)
    assert (np.linalg.norm(vectors[~filled], axis=1) > reach).all()


@pytest.mark.parametrize("kind", LAYOUTS)
@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from((1, 9)))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_edges_equal_ase(kind: str, seed: int, n: int) -> None:
    atoms = random_atoms(seed, n)
    neighbors = build(from_ase(atoms, np.float64), roomy_layout(n, kind))
    check_against_ase(atoms, neighbors, 6.0)
    check_vectors(atoms, neighbors)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(("n", "size"), [(2, 4.0), (40, 9.0)])
def test_allocated_layout_holds_its_system(kind: str, n: int, size: float) -> None:
    atoms = random_atoms(n, n, size)
    system = from_ase(atoms, np.float64)
    check_against_ase(atoms, build(system, allocate([system], 4.0, 0.5, **LAYOUTS[kind])), 4.5)


@pytest.mark.parametrize("bins", [(1, 1, 1), (2, 2, 2), (3, 1, 4), (5, 6, 7)])
def test_number_of_bins_does_not_matter(bins: tuple[int, int, int]) -> None:
    """Bins fewer than, as many as and more than the stencil; no pair is found twice in any of them."""
    for seed, n in ((0, 5), (1, 60)):
        atoms = random_atoms(seed, n, size=8.0)
        system = from_ase(atoms, np.float64)
        stencil = np.ceil(4.5 * np.asarray(bins) / heights(atoms.cell.array)).astype(int)
        layout = Layout(4.0, 0.5, bins, tuple(stencil.tolist()), (n * 160,), (), (600,))
        check_against_ase(atoms, build(system, layout), 4.5)


def test_large_cell_and_blocks_by_species() -> None:
    atoms = random_atoms(3, 400, size=18.0)
    system = from_ase(atoms, np.float64)
    layout = allocate([system], 4.0, 0.3, by_species=True)
    assert min(layout.bins) >= 2
    neighbors = build(system, layout)
    check_against_ase(atoms, neighbors, 4.3)
    senders = np.asarray(neighbors.senders).reshape(len(atoms), -1)
    first = 0
    for number, slots in zip(layout.species, layout.slots, strict=True):
        block = senders[:, first : first + slots]
        assert (atoms.numbers[block[block < len(atoms)]] == number).all()
        first += slots


def test_float32_finds_the_same_edges() -> None:
    atoms = random_atoms(4, 60, size=9.0, far=0)
    single, double = from_ase(atoms, np.float32), from_ase(atoms, np.float64)
    layout = allocate([double], 4.0, 0.3)
    edges = edges_of(build(single, layout))
    assert edges <= edges_of_ase(atoms, 4.3 + 1e-5)
    assert edges >= edges_of_ase(atoms, 4.3 - 1e-5)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_isolated_atoms_have_no_edges(kind: str) -> None:
    for n in (1, 2):
        atoms = ase.Atoms("O" * n, positions=[[0, 0, 0], [25.0, 0, 0]][:n], cell=np.eye(3) * 50, pbc=True)
        system = from_ase(atoms, np.float64)
        neighbors = build(system, allocate([system], 6.0, 0.5, **LAYOUTS[kind]))
        assert not neighbors.overflow
        assert not edges_of(neighbors)
        check_vectors(atoms, neighbors)


def test_two_ways_of_packing_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one"):
        allocate([from_ase(random_atoms(0, 2))], 3.0, 0.3, by_species=True, packed=True)


def exact_layout(system: System, kind: str) -> Layout:
    """A layout of which every capacity is just large enough."""
    layout = allocate([system], 4.0, 0.4, **LAYOUTS[kind])
    counts = np.asarray(lists._count_edges(system, layout))
    if layout.edges:
        return dataclasses.replace(layout, edges=int(counts.sum()))
    return dataclasses.replace(layout, slots=tuple(counts.max(axis=1).tolist()))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_capacity_raises_the_overflow_flag_alone(kind: str) -> None:
    atoms = random_atoms(5, 120, size=12.0)
    system = from_ase(atoms, np.float64)
    layout = exact_layout(system, kind)
    check_against_ase(atoms, build(system, layout), 4.4)  # just large enough is large enough
    shorter = lambda sizes, k, by: tuple(s - by * (i == k) for i, s in enumerate(sizes))  # noqa: E731
    too_small = [dataclasses.replace(layout, slots=shorter(layout.slots, k, 1)) for k in range(len(layout.slots))]
    too_small += [dataclasses.replace(layout, stencil=shorter(layout.stencil, k, 1)) for k in range(3)]
    held = np.asarray(lists._count_candidates(system, layout))
    for k, number in enumerate(held.tolist()):
        fewer = 32 * ((number - 1) // 32)
        too_small.append(
            dataclasses.replace(layout, candidates=shorter(layout.candidates, k, layout.candidates[k] - fewer))
        )
    if layout.edges:
        too_small.append(dataclasses.replace(layout, edges=layout.edges - 1))
    for small in too_small:
        assert build(system, small).overflow, small


def test_atoms_of_a_species_without_slots_raise_the_overflow_flag() -> None:
    """A layout of another composition would lose their edges, and a model give a wrong energy."""
    atoms = random_atoms(0, 6)
    atoms.numbers = [82, 22, 8, 8, 82, 22]
    layout = dataclasses.replace(roomy_layout(6, "by_species"), species=(82, 22, 8))
    assert not build(from_ase(atoms), layout).overflow
    atoms.numbers[1] = 38
    assert build(from_ase(atoms), layout).overflow


def test_grown_layout_serves_again() -> None:
    atoms = random_atoms(6, 120, size=12.0)
    system = from_ase(atoms, np.float64)
    layout = exact_layout(system, "by_species")
    squeezed = dataclasses.replace(system, positions=system.positions * 0.9, cell=system.cell * 0.9)
    grown, turns = layout, 0
    while build(squeezed, grown).overflow:
        grown, turns = grow(grown, np.asarray(squeezed.cell)[None]), turns + 1
    atoms = ase.Atoms(atoms.numbers, positions=squeezed.positions, cell=squeezed.cell, pbc=True)
    check_against_ase(atoms, build(squeezed, grown), 4.4)
    assert 1 <= turns <= 4
    assert all(slots % 8 == 0 for slots in grown.slots)  # whole vectors
    assert grow(layout, np.asarray(system.cell)).stencil == layout.stencil


def toy_energy(system: System, neighbors: Neighbors) -> jax.Array:
    """A smooth pair potential (1 - r^2 / c^2)^3 within the cutoff."""
    square = jnp.sum(edge_vectors(system, neighbors) ** 2, axis=-1) / neighbors.layout.cutoff**2
    return jnp.sum(jnp.where(square < 1.0, (1.0 - square) ** 3, 0.0))


def moved_energy(positions: jax.Array, cell: jax.Array, system: System, neighbors: Neighbors) -> jax.Array:
    return toy_energy(dataclasses.replace(system, positions=positions, cell=cell), neighbors)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_doubled_capacity_changes_nothing(kind: str) -> None:
    system = from_ase(random_atoms(7, 17), np.float64)
    layout = exact_layout(system, kind)
    doubled = dataclasses.replace(
        layout,
        candidates=tuple(2 * c for c in layout.candidates),
        slots=tuple(2 * s for s in layout.slots),
        edges=2 * layout.edges,
    )
    both = [build(system, which) for which in (layout, doubled)]
    values = [jax.value_and_grad(moved_energy, argnums=(0, 1))(system.positions, system.cell, system, b) for b in both]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-13)
    np.testing.assert_allclose(values[0][1][0], values[1][1][0], atol=1e-12)
    np.testing.assert_allclose(values[0][1][1], values[1][1][1], atol=1e-11)
    assert edges_of(both[0]) == edges_of(both[1])


def test_forces_of_the_vectors_are_exact() -> None:
    """The gradient through the table of images, against finite differences, for positions and cell."""
    system = from_ase(random_atoms(8, 5), np.float64)
    neighbors = build(system, allocate([system], 4.0, 0.4))
    energy = jax.jit(lambda positions, cell: moved_energy(positions, cell, system, neighbors))
    check_grads(energy, (system.positions, system.cell), order=1, modes=["rev"], atol=1e-6, rtol=1e-7, eps=1e-5)


@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from((1, 9)), size=st.floats(0.01, 1.0))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_list_is_never_stale(seed: int, n: int, size: float) -> None:
    """Random walks of atoms and cell: while no rebuild is asked for, every pair within the cutoff is in the list."""
    rng = np.random.default_rng(seed)
    atoms = random_atoms(seed, n)
    system = from_ase(atoms, np.float64)
    neighbors = build(system, roomy_layout(n, "dense"))
    listed = edges_of(neighbors)
    drift = rng.normal(size=3)
    for _ in range(20):
        strain = np.eye(3) + 0.01 * size * rng.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += 0.05 * size * rng.normal(size=(n, 3)) + drift
        moved = dataclasses.replace(system, positions=jnp.asarray(atoms.positions), cell=jnp.asarray(atoms.cell.array))
        if jitted_needs_rebuild(neighbors, moved):
            break
        assert edges_of_ase(atoms, 5.4) <= listed


jitted_needs_rebuild = jax.jit(needs_rebuild)


def test_rebuild_is_asked_for_by_relative_motion_only() -> None:
    atoms = random_atoms(9, 5)
    system = from_ase(atoms, np.float64)
    neighbors = build(system, allocate([system], 4.0, 0.4))
    asked = lambda **changed: bool(jitted_needs_rebuild(neighbors, dataclasses.replace(system, **changed)))  # noqa: E731
    assert not asked()
    assert not asked(positions=system.positions + jnp.asarray([[30.0, -7.0, 11.0]]))
    # an unwrapped atom that jumps by a lattice vector is elsewhere: the list's shift of it is wrong now
    assert asked(positions=system.positions.at[2].add(system.cell[0]))
    # two atoms towards each other: just short of the skin in all, and just beyond it
    for far, expected in ((0.19, False), (0.21, True)):
        step = jnp.zeros((5, 3)).at[0, 0].set(far).at[1, 0].set(-far)
        assert asked(positions=system.positions + step) == expected
    # an affine strain of 9 percent is covered by a skin of 10 percent, one of 11 is not, whatever the axis
    for axis in range(3):
        for factor, expected in ((1 / 1.09, False), (1 / 1.11, True)):
            stretch = jnp.eye(3).at[axis, axis].set(factor)
            assert asked(positions=system.positions @ stretch, cell=system.cell @ stretch) == expected
    assert not asked(positions=system.positions.at[0, 0].set(jnp.nan))


def replicas() -> tuple[System, Neighbors, Layout]:
    systems = [from_ase(random_atoms(10, 17), np.float64)] * 3
    layout = allocate(systems, 4.0, 0.4)
    batch = stack(systems)
    return batch, jax.vmap(lambda s: build(s, layout))(batch), layout


def same(one: Neighbors, other: Neighbors, replica: int) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(bool((a[replica] == b[replica]).all()) for a, b in pairs)


@pytest.mark.parametrize("rebuild", ["_rebuild_first", "_rebuild_all"])
def test_refresh_rebuilds_active_replicas_in_need_and_no_other(rebuild: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of rebuilding, the CPU's and the accelerators'."""
    monkeypatch.setattr(upkeep, "_rebuild_first", getattr(upkeep, rebuild))
    systems, old, layout = replicas()
    moved = dataclasses.replace(systems, positions=systems.positions.at[1:, 3].add(0.5))
    new = jax.jit(lambda *a: refresh(*a))(moved, old, jnp.asarray([True, True, False]))
    assert same(new, old, 0)
    assert same(new, old, 2)
    assert same(new, jax.vmap(lambda s: build(s, layout))(moved), 1)
    assert not same(new, old, 1)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rebuild", ["_rebuild_first", "_rebuild_all"])
def test_a_list_that_holds_is_not_built(rebuild: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA takes what no turn of a loop changes out of it, and computes it even if the loop has no turn."""
    monkeypatch.setattr(upkeep, "_rebuild_first", getattr(upkeep, rebuild))
    systems, old, _ = replicas()
    arrays, structure = jax.tree.flatten(jax.tree.map(lambda leaf: leaf[:count], (systems, old)))

    def renewed(arrays: list[jax.Array]) -> Neighbors:
        systems, lists = jax.tree.unflatten(structure, arrays)
        return refresh(systems, lists, jnp.ones(count, bool), before=systems)

    program = jax.jit(renewed).lower(arrays).compile().as_text()
    parts = list(re.finditer(r"^(ENTRY )?%(\S+) \(.*?^}", program, re.MULTILINE | re.DOTALL))
    bodies = {part[2]: part[0] for part in parts}
    pending, always = [part[2] for part in parts if part[1]], set()
    while pending:
        always.add(name := pending.pop())
        called = re.findall(r"(?:calls|to_apply)=%([^\s,}]+)", bodies[name])  # not the bodies of loops
        pending += [other for other in called if other not in always]
    # what only the search for neighbours does: sorting, and counting bits
    assert re.search(r" (sort|popcnt)\(", program)
    assert not [name for name in always if re.search(r" (sort|popcnt)\(", bodies[name])]


@pytest.mark.parametrize("rebuild", ["_rebuild_first", "_rebuild_all"])
def test_lists_built_ahead_last_longer_and_miss_no_pair(rebuild: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replicas of atoms on curved paths in a shearing cell, drifting all together; ASE counts the pairs."""
    monkeypatch.setattr(upkeep, "_rebuild_first", getattr(upkeep, rebuild))
    atoms = [random_atoms(seed, 20, 7.0) for seed in (3, 4)]
    start = stack([from_ase(one, np.float64) for one in atoms])
    cutoff, skin, steps = 4.0, 0.4, 100
    layout = allocate([from_ase(one, np.float64) for one in atoms], cutoff, skin, headroom=1.6)
    rng = np.random.default_rng(5)
    strain = jnp.asarray(rng.normal(size=(3, 3))) * 2e-4
    velocity, phase = (jnp.asarray(rng.normal(size=(2, 20, 3))) * scale for scale in (0.02, 3.0))

    def at(step: float) -> System:
        away = velocity * (step + 8.0 * jnp.sin(step / 15.0 + phase)) + 0.3 * step
        positions, cell = (x @ (jnp.eye(3) + step * strain) for x in (start.positions + away, start.cell))
        return dataclasses.replace(start, positions=positions, cell=cell)

    @jax.jit
    def renewed(step: float, old: Neighbors, ahead: bool) -> tuple[Neighbors, jax.Array]:
        now = at(step)
        here, there = (refresh(now, old, jnp.ones(2, bool), before=before) for before in (None, at(step - 1)))
        new = jax.tree.map(lambda a, b: jnp.where(ahead, a, b), there, here)
        return new, jax.vmap(needs_rebuild)(old, now)

    first = jax.jit(jax.vmap(lambda system: build(system, layout)))(at(0))
    built = {}
    for ahead in (False, True):
        neighbors, built[ahead] = first, 0
        for step in range(1, steps):
            neighbors, needed = renewed(step, neighbors, ahead)
            built[ahead] += int(needed.sum())
            if not step % 10 or needed.any():  # where it was just built, it has to hold as well
                for replica in range(2):
                    now, held = jax.tree.map(lambda leaf, r=replica: leaf[r], (at(step), neighbors))
                    present = ase.Atoms(["H"] * 20, now.positions, cell=now.cell, pbc=True)
                    assert edges_of(held) >= edges_of_ase(present, cutoff - 1e-9)
        assert not neighbors.overflow.any()
        assert not jax.vmap(needs_rebuild)(neighbors, at(steps - 1)).any()
    assert built[True] < 0.6 * built[False]
    assert built[True] > 20


def test_a_list_is_built_where_atoms_on_straight_paths_are_headed() -> None:
    """At a constant velocity it is 4 steps ahead, or what takes 0.9 of the skin; without motion it is here."""
    system = from_ase(random_atoms(10, 17), np.float64)
    headed = jax.jit(upkeep._ahead, static_argnames="skin")
    velocity = np.zeros((17, 3))  # without a drift, which is left out
    velocity[[2, 9], 0], velocity[[4, 7, 11], 1] = (0.05, -0.05), (0.03, -0.08, 0.05)
    for factor, steps in ((1e-3, 4.0), (1.0, 0.9 * 0.3 / 0.13)):
        before = dataclasses.replace(system, positions=system.positions - factor * velocity)
        expected = system.positions + steps * factor * velocity
        np.testing.assert_allclose(headed(system, before, skin=0.3).positions, expected, atol=1e-12)
    for skin in (0.0, 0.3):
        np.testing.assert_allclose(headed(system, system, skin=skin).positions, system.positions, atol=1e-12)


def test_overflow_stays_raised_and_frozen_replicas_raise_none() -> None:
    systems, old, _ = replicas()
    crowded = dataclasses.replace(
        systems, positions=systems.positions.at[1:].multiply(0.4), cell=systems.cell.at[1:].multiply(0.4)
    )
    after = jax.jit(lambda *a: refresh(*a))(crowded, old, jnp.asarray([True, True, False]))
    assert after.overflow.tolist() == [False, True, False]
    healed = dataclasses.replace(systems, positions=systems.positions.at[:, 3].add(0.6))
    again = jax.jit(lambda *a: refresh(*a))(healed, after, jnp.ones(3, bool))
    assert again.overflow.tolist() == [False, True, False]


def test_nan_does_not_hang_the_batch() -> None:
    systems, old, _ = replicas()
    broken = dataclasses.replace(systems, positions=systems.positions.at[0].set(jnp.nan).at[1, 3].add(0.5))
    after = jax.jit(lambda *a: refresh(*a))(broken, old, jnp.ones(3, bool))
    assert same(after, old, 0)
    assert same(after, old, 2)
    assert not same(after, old, 1)
