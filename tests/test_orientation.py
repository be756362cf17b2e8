"""Orientation of stored cells, against ASE's algebra and as MDAnalysis and ASE measure distances."""

from __future__ import annotations

from pathlib import Path

import ase.io
import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import make_supercell
from ase.cell import Cell
from ase.geometry import get_distances
from scipy.spatial.transform import Rotation

from jaxpto import export
from jaxpto.storage.orientation import standard_orientation
from jaxpto.storage.trajectory import (
    EARLIER_PARTICLES,
    PARTICLES,
    Quantity,
    create_trajectory,
    finalize_trajectory,
    read_trajectory,
    write_frames,
)
from jaxpto.structures import builtin_structure
from jaxpto.system import System, from_ase

OBSERVABLES = {
    "static_stress": Quantity((3, 3), "eV Angstrom-3"),
    "polarization": Quantity((3,), "C m-2"),
    "volume": Quantity((), "Angstrom3"),
}
TURNS = {
    "upright": np.eye(3),
    "half a turn about z": Rotation.from_euler("z", 180, degrees=True).as_matrix(),
    "45 degrees about x": Rotation.from_euler("x", 45, degrees=True).as_matrix(),
    "at random": Rotation.random(rng=np.random.default_rng(1)).as_matrix(),
}


def crystal() -> ase.Atoms:
    """A triclinic cell of PbTiO3 in standard orientation, atoms off their sites."""
    atoms = make_supercell(builtin_structure("PbTiO3-tetragonal"), [[2, 0, 0], [1, 2, 0], [0, 1, 2]])
    atoms.set_cell(atoms.cell.standard_form()[0] @ [[1, 0, 0], [0.02, 1, 0], [0.01, 0.03, 1]], scale_atoms=True)
    atoms.set_cell(np.tril(atoms.cell.array), scale_atoms=False)
    atoms.rattle(0.1, seed=2)
    return atoms


def frames_of(atoms: ase.Atoms, rotations: np.ndarray, dtype: type) -> dict[str, np.ndarray]:
    """One frame for each rotation of a crystal; P along its c axis, a pull along it."""
    count, along_c = len(rotations), atoms.cell.array[2] / np.linalg.norm(atoms.cell.array[2]) @ rotations
    return {
        "step": np.arange(count),
        "time": np.arange(count) * 1.0,
        "position": (atoms.positions @ rotations).astype(dtype),
        "cell": (atoms.cell.array @ rotations).astype(dtype),
        "static_stress": (0.01 * along_c[:, :, None] * along_c[:, None, :]).astype(dtype),
        "polarization": (0.7 * along_c).astype(dtype),
        "volume": np.full(count, atoms.get_volume(), dtype),
    }


def store(path: Path, atoms: ase.Atoms, frames: dict[str, np.ndarray]) -> None:
    create_trajectory(path, from_ase(atoms, frames["cell"].dtype), len(frames["step"]), OBSERVABLES)
    write_frames(path, 0, frames)


def test_standard_orientation_is_ases() -> None:
    cells = np.random.default_rng(3).normal(size=(50, 3, 3)) + 3 * np.eye(3)
    cells = cells[np.linalg.det(cells) > 0.0]
    lower, rotation = standard_orientation(cells)
    for cell, mine, turn in zip(cells, lower, rotation, strict=True):
        theirs, orthogonal = Cell(cell).standard_form()
        np.testing.assert_allclose(mine, theirs.array, atol=1e-12)
        np.testing.assert_allclose(turn, orthogonal, atol=1e-12)
    np.testing.assert_allclose(lower @ rotation, cells, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-12)
    assert (np.triu(lower, 1) == 0.0).all()
    assert (np.diagonal(lower, axis1=1, axis2=2) > 0.0).all()
    again, nothing = standard_orientation(lower)
    np.testing.assert_array_equal(again, lower)  # bit for bit
    np.testing.assert_array_equal(nothing, np.broadcast_to(np.eye(3), nothing.shape))


def test_left_handed_cell_keeps_its_hand() -> None:
    cell = np.array([[0.0, 4.0, 0.0], [5.0, 0.0, 0.1], [0.2, 0.0, 6.0]])
    lower, rotation = standard_orientation(cell)
    np.testing.assert_allclose(lower @ rotation, cell, atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    assert np.sign(np.diag(lower)).tolist() == [1, 1, -1]


@pytest.mark.parametrize("name", TURNS)
def test_distances_are_the_same_in_mdanalysis_and_ase(tmp_path: Path, name: str) -> None:
    mdanalysis = pytest.importorskip("MDAnalysis", reason="MDAnalysis is not installed")
    from MDAnalysis.lib import distances

    atoms, path, out = crystal(), tmp_path / "300K.h5md", tmp_path / "frames.extxyz"
    frames = frames_of(atoms, TURNS[name][None], np.float32)
    store(path, atoms, frames)
    expected = get_distances(atoms.positions, cell=atoms.cell, pbc=True)[1]
    universe = mdanalysis.Universe(str(path))  # the file alone
    found = distances.distance_array(universe.atoms.positions, universe.atoms.positions, box=universe.dimensions)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    export.run(export.ExportConfig(path, out))
    written = ase.io.read(out)
    np.testing.assert_allclose(written.get_all_distances(mic=True), expected, atol=2e-5)
    np.testing.assert_allclose(written.cell.array, frames["cell"][0], atol=2e-6)  # as it was simulated
    np.testing.assert_allclose(written.positions, frames["position"][0], atol=2e-5)
    np.testing.assert_allclose(written.get_stress(voigt=False), frames["static_stress"][0], atol=1e-7)


def test_a_cell_that_turns_keeps_its_polarization_and_stress_along_its_axes(tmp_path: Path) -> None:
    atoms, path = crystal(), tmp_path / "300K.h5md"
    turns = Rotation.from_euler("xyz", np.linspace(0, [30, 200, -70], 6), degrees=True).as_matrix()
    frames = frames_of(atoms, turns, np.float64)
    store(path, atoms, frames)
    upright = frames_of(atoms, turns[:1], np.float64)
    for cut in (False, True):
        stored = read_trajectory(path)
        np.testing.assert_allclose(stored.rotation, turns[: len(stored.step)], atol=1e-12)
        for values, same in (
            (stored.positions, "position"),
            (stored.cells, "cell"),
            *((stored.observables[name], name) for name in OBSERVABLES),
        ):
            np.testing.assert_allclose(values, np.broadcast_to(upright[same], values.shape), atol=1e-10)
        back = stored.in_laboratory()
        np.testing.assert_array_equal(back.rotation, np.broadcast_to(np.eye(3), back.rotation.shape))
        for values, same in (
            (back.positions, "position"),
            (back.cells, "cell"),
            *((back.observables[name], name) for name in OBSERVABLES),
        ):
            np.testing.assert_allclose(values, frames[same][: len(values)], atol=1e-10)
        assert len(stored.step) == (4 if cut else 6)
        finalize_trajectory(path, 4)


def test_files_of_earlier_versions_are_read_and_go_on_in_the_laboratory(tmp_path: Path) -> None:
    atoms, path = crystal(), tmp_path / "300K.h5md"
    frames = frames_of(atoms, np.stack(list(TURNS.values())), np.float64)
    create_trajectory(path, from_ase(atoms, np.float64), 6, OBSERVABLES)
    with h5py.File(path, "r+") as file:
        file.move(PARTICLES, EARLIER_PARTICLES)
        del file["observables/rotation"]
    write_frames(path, 0, frames)
    for _ in range(2):
        stored = read_trajectory(path)
        np.testing.assert_array_equal(stored.cells, frames["cell"])
        np.testing.assert_array_equal(stored.positions, frames["position"])
        np.testing.assert_array_equal(stored.observables["polarization"], frames["polarization"])
        np.testing.assert_array_equal(stored.rotation, np.broadcast_to(np.eye(3), (4, 3, 3)))
        finalize_trajectory(path, 4)


def test_an_observable_cannot_be_called_rotation(tmp_path: Path) -> None:
    system = System(jnp.zeros((1, 3)), jnp.eye(3), jnp.asarray([1]), jnp.ones(1))
    with pytest.raises(ValueError, match="cannot name an observable"):
        create_trajectory(tmp_path / "t.h5md", system, 1, {"rotation": Quantity((3, 3), "")})
