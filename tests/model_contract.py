"""What every model must satisfy: each function takes a potential and atoms it knows, and asserts one law.

All are meant for float64, where a broken law shows at 1e-9 and rounding does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import ase
import jax
import jax.numpy as jnp
import numpy as np
from reference_data import Case
from scipy.spatial.transform import Rotation

from jaxpto import neighbors
from jaxpto.model_interface import Prediction
from jaxpto.potential import Potential
from jaxpto.system import System, from_ase, stack

SKIN = 0.4

_evaluate = jax.jit(lambda potential, system, found: potential.evaluate(system, found))


def layout_of(potential: Potential, atoms: ase.Atoms) -> neighbors.Layout:
    """Layout with room for the edges of atoms."""
    system = from_ase(atoms, np.float64)
    return potential.allocate([system], SKIN)


def layouts_of(potential: Potential, structures: Sequence[ase.Atoms]) -> list[neighbors.Layout]:
    """A layout for each structure; those with as many atoms have one together, and so one compiled program."""
    groups: dict[tuple[object, ...], list[System]] = {}
    keys = []
    for atoms in structures:
        species = tuple(dict.fromkeys(atoms.numbers.tolist())) if potential.model.by_species else ()
        keys.append((len(atoms), *species))
        groups.setdefault(keys[-1], []).append(from_ase(atoms, np.float64))
    found = {key: potential.allocate(systems, SKIN) for key, systems in groups.items()}
    return [found[key] for key in keys]


def predict(potential: Potential, atoms: ase.Atoms, layout: neighbors.Layout | None = None) -> Prediction:
    """Energy, forces and stress of atoms in float64, by the potential in the precision of its parameters."""
    system = from_ase(atoms, np.float64)
    found = neighbors.build(system, layout_of(potential, atoms) if layout is None else layout)
    assert not found.overflow
    return jax.device_get(_evaluate(potential, system, found))


def cast(potential: Potential, dtype: type) -> Potential:
    """The potential with parameters of a precision."""

    def one(leaf: jax.Array) -> jax.Array:
        return jnp.asarray(leaf, dtype if jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating) else None)

    return potential.replace(params=jax.tree.map(one, potential.params))


def expected(energy: float, forces: np.ndarray, stress: np.ndarray) -> Prediction:
    """A prediction put together by a test."""
    return Prediction(np.asarray(energy), forces, stress)


def assert_same(first: Prediction, second: Prediction, tolerance: float = 1e-9) -> None:
    """Two predictions agree."""
    np.testing.assert_allclose(first.energy, second.energy, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(first.forces, second.forces, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(first.stress, second.stress, rtol=tolerance, atol=tolerance)


def agreement(potential: Potential, cases: list[Case], *names: str) -> None:
    """The named cases (all, if none) come out as the original has them, in both precisions."""
    double, single = cast(potential, np.float64), cast(potential, np.float32)
    assert set(names) <= {case.name for case in cases}
    chosen = [case for case in cases if not names or case.name in names]
    for case, layout in zip(chosen, layouts_of(potential, [case.atoms for case in chosen]), strict=True):
        case.assert_exact(predict(double, case.atoms, layout))
        case.assert_as_exact_as(predict(single, case.atoms, layout), cases)


TURN = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()


def turned(atoms: ase.Atoms) -> ase.Atoms:
    """Atoms and cell rotated by `TURN`."""
    moved = atoms.copy()
    moved.set_cell(atoms.cell.array @ TURN.T)
    moved.positions = atoms.positions @ TURN.T
    return moved


def order_of(atoms: ase.Atoms) -> np.ndarray:
    """Another order of the atoms."""
    return np.random.default_rng(1).permutation(len(atoms))


def shifted(atoms: ase.Atoms) -> ase.Atoms:
    """Each atom in another periodic image, and all of them translated."""
    moved = atoms.copy()
    images = np.random.default_rng(2).integers(-2, 3, (len(atoms), 3))
    moved.positions += images @ atoms.cell.array + np.array([0.3, -0.2, 7.7])[None, :]
    return moved


def sheared(atoms: ase.Atoms) -> ase.Atoms:
    """The same crystal with other lattice vectors."""
    moved = atoms.copy()
    moved.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]) @ atoms.cell.array)
    return moved


_common: dict[tuple[object, ...], neighbors.Layout] = {}


def common_layout(potential: Potential, atoms: ase.Atoms) -> neighbors.Layout:
    """One layout, and so one compiled program, for atoms and what the laws below compare them with."""
    key = (potential.model, *(array.tobytes() for array in (atoms.numbers, atoms.positions, atoms.cell.array)))
    if key not in _common:
        same = [atoms, turned(atoms), atoms[order_of(atoms)], shifted(atoms), sheared(atoms)]
        _common[key] = potential.allocate([from_ase(one, np.float64) for one in same], SKIN)
    return _common[key]


def rotation(potential: Potential, atoms: ase.Atoms) -> None:
    """A rotation leaves the energy and rotates forces and stress."""
    layout = common_layout(potential, atoms)
    before, after = predict(potential, atoms, layout), predict(potential, turned(atoms), layout)
    assert np.abs(before.forces).max() > 0.01
    assert_same(after, expected(before.energy, before.forces @ TURN.T, TURN @ before.stress @ TURN.T))


def permutation(potential: Potential, atoms: ase.Atoms) -> None:
    """The order of the atoms does not matter."""
    order, layout = order_of(atoms), common_layout(potential, atoms)
    before, after = predict(potential, atoms, layout), predict(potential, atoms[order], layout)
    assert_same(after, expected(before.energy, before.forces[order], before.stress))


def image_shift(potential: Potential, atoms: ase.Atoms) -> None:
    """Every atom may be written down in any periodic image, and all may be translated."""
    layout = common_layout(potential, atoms)
    assert_same(predict(potential, shifted(atoms), layout), predict(potential, atoms, layout))


def extensivity(potential: Potential, atoms: ase.Atoms) -> None:
    """A supercell has the energy of its cells, the same forces and the same stress."""
    one = predict(potential, atoms, common_layout(potential, atoms))
    six = predict(potential, atoms.repeat((2, 1, 3)))
    assert_same(six, expected(6.0 * one.energy, np.tile(one.forces, (6, 1)), one.stress))


def other_cell_vectors(potential: Potential, atoms: ase.Atoms) -> None:
    """The same crystal described by other lattice vectors has the same energy, forces and stress."""
    layout = common_layout(potential, atoms)
    assert_same(predict(potential, sheared(atoms), layout), predict(potential, atoms, layout))


def forces_are_gradients(potential: Potential, atoms: ase.Atoms, step: float = 2e-6) -> None:
    """Forces and stress against central differences of the energy, along random displacements and strains."""
    generator = np.random.default_rng(3)
    layout = common_layout(potential, atoms)
    base = predict(potential, atoms, layout)
    for _ in range(3):
        direction = generator.normal(size=(len(atoms), 3))
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions += sign * step * direction
            energies.append(predict(potential, moved, layout).energy)
        slope = (energies[0] - energies[1]) / (2 * step)
        np.testing.assert_allclose(slope, -np.sum(base.forces * direction), rtol=1e-5, atol=1e-5)
        strain = generator.normal(size=(3, 3))
        strain = strain + strain.T
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ (np.eye(3) + sign * step * strain), scale_atoms=True)
            energies.append(predict(potential, moved, layout).energy)
        slope = (energies[0] - energies[1]) / (2 * step)
        np.testing.assert_allclose(slope, atoms.get_volume() * np.sum(base.stress * strain), rtol=1e-5, atol=1e-4)


def second_derivatives(potential: Potential, atoms: ase.Atoms, step: float = 1e-4) -> None:
    """A row of the Hessian, from the derivative of the forces, against central differences of the forces."""
    layout, which, axis = layout_of(potential, atoms), 1, 2
    system = from_ase(atoms, np.float64)
    found = neighbors.build(system, layout)

    @jax.jit
    def row(potential: Potential, positions: jax.Array) -> jax.Array:
        forces = lambda x: potential.evaluate(system.replace(positions=x), found).forces[which, axis]  # noqa: E731
        return jax.grad(forces)(positions)

    moved = []
    for sign in (1, -1):
        moved.append(atoms.copy())
        moved[-1].positions[which, axis] += sign * step
    plus, minus = (predict(potential, one, layout).forces for one in moved)
    expected = (plus - minus) / (2 * step)
    np.testing.assert_allclose(row(potential, system.positions), expected, atol=2e-4 * np.abs(expected).max())


def capacity(potential: Potential, atoms: ase.Atoms) -> None:
    """Room for twice the neighbours changes nothing."""
    layout = common_layout(potential, atoms)
    larger = dataclasses.replace(layout, slots=tuple(2 * s for s in layout.slots), edges=2 * layout.edges)
    assert_same(predict(potential, atoms, larger), predict(potential, atoms, layout))


def batch(potential: Potential, atoms: ase.Atoms) -> None:
    """Three replicas under vmap are three single systems."""
    images = []
    for seed in range(3):
        images.append(atoms.copy())
        images[-1].rattle(0.03, seed=seed)
    layout = common_layout(potential, atoms)
    systems = stack([from_ase(image, np.float64) for image in images])

    @jax.jit
    def together(potential: Potential) -> Prediction:
        return jax.vmap(lambda s: potential.evaluate(s, neighbors.build(s, layout)))(systems)

    found = jax.device_get(together(potential))
    for r, image in enumerate(images):
        assert_same(jax.tree.map(lambda leaf, r=r: np.asarray(leaf[r]), found), predict(potential, image, layout))


def isolated_atom(potential: Potential, number: int) -> None:
    """An atom without neighbours feels nothing, has a finite energy, and a second one far away does not change that."""
    alone = ase.Atoms([number], [[1.0, 2.0, 3.0]], cell=[30.0] * 3, pbc=True)
    far = ase.Atoms([number] * 2, [[1.0, 2.0, 3.0], [16.0, 17.0, 18.0]], cell=[30.0] * 3, pbc=True)
    one, two = predict(potential, alone), predict(potential, far)
    assert np.isfinite(one.energy)
    np.testing.assert_array_equal(one.forces, 0.0)
    np.testing.assert_array_equal(one.stress, 0.0)
    np.testing.assert_allclose(two.energy, 2.0 * one.energy, rtol=1e-12, atol=1e-12)


def one_atom_cell(potential: Potential, number: int, edge: float = 3.2) -> None:
    """A cell of one atom, whose neighbours are all images of itself, agrees with its supercell and has no force."""
    atoms = ase.Atoms([number], [[0.1, 0.2, 0.3]], cell=np.eye(3) * edge + 0.1, pbc=True)
    one, eight = predict(potential, atoms), predict(potential, atoms.repeat(2))
    np.testing.assert_allclose(one.forces, 0.0, atol=1e-10)
    assert np.abs(one.stress).max() > 1e-6
    np.testing.assert_allclose(eight.energy, 8.0 * one.energy, rtol=1e-10)
    np.testing.assert_allclose(eight.stress, one.stress, rtol=1e-9, atol=1e-12)


def smooth_at_cutoff(potential: Potential, numbers: tuple[int, int]) -> None:
    """The energy of a pair and its first two derivatives go to zero at the cutoff without a jump."""

    def energy(distance: float) -> float:
        pair = ase.Atoms(numbers, [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]], cell=[30.0] * 3, pbc=True)
        return float(predict(potential, pair, layout).energy)

    near = ase.Atoms(numbers, [[0.0, 0.0, 0.0], [0.9 * potential.cutoff, 0.0, 0.0]], cell=[30.0] * 3, pbc=True)
    layout = layout_of(potential, near)
    outside = energy(potential.cutoff + 0.2)
    inside = [abs(energy(potential.cutoff - gap) - outside) for gap in (0.01, 0.02)]
    # C2: the energy vanishes at least as the cube of the distance to the cutoff
    assert inside[1] > 0.0
    assert inside[0] < inside[1] / 7.0 + 1e-13
