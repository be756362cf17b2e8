"""Reading structures, the built-in cells, supercells, and what is refused."""

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from jaxpto.errors import InputError
from jaxpto.structures import BUILT_IN, builtin_structure, check_elements, make_supercell, read_frames, read_structure
from jaxpto.system import check_atoms


def test_tetragonal_cell_is_polar_along_plus_z():
    atoms = builtin_structure("PbTiO3-tetragonal")
    assert atoms.get_chemical_formula(mode="reduce") == "PbTiO3"
    np.testing.assert_allclose(atoms.cell.lengths(), [3.88, 3.88, 4.19])
    z = atoms.get_scaled_positions(wrap=False)[:, 2]
    assert z[0] - z[2] > 0.1  # Pb lies above the apical oxygen
    assert z[1] - z[3] > 0.05  # Ti lies above the equatorial oxygens
    assert z[3] == z[4]
    check_atoms(atoms)


def test_experimental_cell_is_that_of_the_paper():
    """a = 3.90, c = 4.15 and the fractions of POSCAR_5x5x5_nvt.vasp, to its two or three digits, turned upside down."""
    atoms = builtin_structure("PbTiO3-experimental")
    np.testing.assert_allclose(atoms.cell.lengths(), [3.90, 3.90, 4.15])
    theirs = [0.0, -0.535, -0.1, -0.615, -0.615]
    difference = atoms.get_scaled_positions(wrap=False)[:, 2] - theirs
    np.testing.assert_allclose(difference - np.rint(difference), 0.0, atol=0.013)


def test_cubic_cell_is_cubic():
    atoms = builtin_structure("PbTiO3-cubic")
    np.testing.assert_allclose(atoms.cell.array, 3.93 * np.eye(3))
    distances = atoms.get_distances(1, [2, 3, 4], mic=True)
    np.testing.assert_allclose(distances, 3.93 / 2)


def test_built_in_names_work_as_files():
    for name in BUILT_IN:
        assert read_structure(name) == builtin_structure(name)
        assert read_frames(name) == [builtin_structure(name)]
    with pytest.raises(InputError, match="PbTiO3-cubic"):
        builtin_structure("BaTiO3")


@pytest.mark.parametrize("name", ["a.vasp", "POSCAR", "a.extxyz", "a.cif", "a.traj", "a@2.extxyz"])
def test_any_ase_format(tmp_path, name):
    atoms = builtin_structure("PbTiO3-tetragonal")
    path = tmp_path / name
    kind = {"a.vasp": "vasp", "POSCAR": "vasp", "a.cif": "cif", "a.traj": "traj"}.get(name, "extxyz")
    with path.open("wb" if kind in ("cif", "traj") else "w") as file:
        ase.io.write(file, atoms, format=kind)
    read = read_structure(path)
    assert sorted(read.numbers) == sorted(atoms.numbers)
    np.testing.assert_allclose(read.get_volume(), atoms.get_volume(), rtol=1e-4)


def test_last_frame_and_all_frames(tmp_path):
    frames = [bulk("Ar", "fcc", a) for a in (5.2, 5.3, 5.4)]
    ase.io.write(tmp_path / "three.extxyz", frames)
    assert [len(read_frames(tmp_path / "three.extxyz"))] == [3]
    np.testing.assert_allclose(read_structure(tmp_path / "three.extxyz").cell.array, frames[-1].cell.array)


def spoil(what):
    atoms = builtin_structure("PbTiO3-cubic")
    if what == "position":
        atoms.positions[3, 1] = np.nan
    if what == "cell":
        atoms.cell[0, 0] = np.inf
    if what == "overlap":
        atoms.positions[4] = atoms.positions[3] + [0.1, 0.0, 0.0]
    if what == "image overlap":
        atoms.positions[4] = atoms.positions[3] + atoms.cell[0] + [0.1, 0.0, 0.0]
    if what == "volume":
        atoms.cell[2] = atoms.cell[1]
    if what == "left-handed":
        atoms.set_cell(atoms.cell[[1, 0, 2]])
    if what == "molecule":
        atoms.pbc = [True, True, False]
    if what == "empty":
        del atoms[:]
    if what == "element":
        atoms.numbers[2] = 0
    return atoms


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("position", "position of atom 3"),
        ("cell", "cell is not finite"),
        ("overlap", r"atoms 3 and 4 are 0\.100 A apart \(limit 0\.4 A\)"),
        ("image overlap", "apart"),
        ("volume", "volume .* is zero"),
        ("left-handed", "left-handed"),
        ("molecule", "periodic in 2 of 3"),
        ("empty", "no atoms"),
        ("element", "atom 2 has no element"),
    ],
)
def test_unusable_atoms_are_refused(what, message):
    with pytest.raises(InputError, match=message) as caught:
        check_atoms(spoil(what), "file.cif frame 7")
    assert str(caught.value).startswith("file.cif frame 7: ")
    assert "; " in str(caught.value)


def test_bad_frame_is_named(tmp_path):
    ase.io.write(tmp_path / "x.extxyz", [builtin_structure("PbTiO3-cubic"), spoil("overlap")])
    with pytest.raises(InputError, match=r"x\.extxyz frame 1: "):
        read_frames(tmp_path / "x.extxyz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.vasp", None, "does not exist"),
        ("empty.vasp", "", "empty file"),
        ("noise.vasp", "this is\nno structure\n\n\n", "cannot be read"),
        ("noise.xyz", "3\ncomment\nAr 0 0\n", "cannot be read"),
        ("unknown.suffix", "hello\n", "cannot be read"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    for read in (read_structure, read_frames):
        with pytest.raises(InputError, match=message) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_structure(tmp_path / "folder")


def test_unknown_elements_are_named():
    atoms = bulk("Ar", "fcc", 5.3)
    check_elements(atoms, (18, 36), "noble")
    with pytest.raises(InputError, match="here: model perovskite does not know Ar; it knows Pb, Ti, O;"):
        check_elements(atoms, (82, 22, 8), "perovskite", "here")


def test_supercell_keeps_cells_together():
    cell = builtin_structure("PbTiO3-tetragonal")
    big = make_supercell(cell, (2, 3, 4))
    assert len(big) == 5 * 24
    np.testing.assert_array_equal(big.numbers.reshape(24, 5), np.tile(cell.numbers, (24, 1)))
    np.testing.assert_allclose(big.positions[5:10], cell.positions + cell.cell[2], atol=1e-12)
    np.testing.assert_allclose(big.cell.array, cell.cell.array * np.array([[2], [3], [4]]))


@pytest.mark.parametrize("repeats", [(2, 2), (2, 2, 0), (1, -1, 1), (1.5, 1, 1)])
def test_bad_supercells_are_refused(repeats):
    with pytest.raises(InputError, match="supercell"):
        make_supercell(builtin_structure("PbTiO3-cubic"), repeats)
