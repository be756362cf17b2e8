"""The gate after reading: what is refused, what is named, and what comes along, whatever the format."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms

from jaxpto import evaluate, phonons, relax, sweep
from jaxpto.calculator import JaxptoCalculator
from jaxpto.console.command import run_command
from jaxpto.errors import InputError
from jaxpto.free_energy.command import main as free_energy
from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.md.config import SweepConfig, changed_fields, to_json
from jaxpto.md.preparation import prepare
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.perovskite.measurements import crystal_measurements
from jaxpto.relaxation.target import with_results
from jaxpto.structures import builtin_structure, notes_on, read_input, read_structure, vacuum
from jaxpto.structures.write import write_frames
from jaxpto.system import made_anew, site_kinds
from jaxpto.training.matching_options import MatchOptions

CIF = """data_PZT
_cell_length_a 4.0
_cell_length_b 4.0
_cell_length_c 4.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M '{group}'
_symmetry_Int_Tables_number {number}
_symmetry_cell_setting cubic
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
{sites}
"""
A_AND_O = "Pb1 Pb 0 0 0 1.0\nO1 O 0.5 0.5 0.0 1"
DUMP = """ITEM: TIMESTEP
0
ITEM: NUMBER OF ATOMS
5
ITEM: BOX BOUNDS pp pp pp
0.0 3.93
0.0 3.93
0.0 3.93
ITEM: ATOMS id type x y z{column}
1 1 0 0 0{Pb}
2 2 1.965 1.965 1.965{Ti}
3 3 1.965 1.965 0{O}
4 3 1.965 0 1.965{O}
5 3 0 1.965 1.965{O}
"""
DATA = """a cell

5 atoms
3 atom types
0.0 3.93 xlo xhi
0.0 3.93 ylo yhi
0.0 3.93 zlo zhi
{masses}
Atoms # atomic

1 1 0 0 0
2 2 1.965 1.965 1.965
3 3 1.965 1.965 0
4 3 1.965 0 1.965
5 3 0 1.965 1.965
"""
PEROVSKITE = [82, 22, 8, 8, 8]


def dump(column: str = "", lead: str = "", titanium: str = "", oxygen: str = "") -> str:
    spaced = {"column": column, "Pb": lead, "Ti": titanium, "O": oxygen}
    return DUMP.format(**{name: f" {text}" if text else "" for name, text in spaced.items()})


def data(*masses: float) -> str:
    lines = "".join(f"{kind} {mass}\n" for kind, mass in enumerate(masses, 1))
    return DATA.format(masses=f"\nMasses\n\n{lines}" if masses else "")


def write(folder: pathlib.Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def moved() -> ase.Atoms:
    """Cubic PbTiO3 with everything that an ASE structure can carry besides elements and places."""
    atoms = builtin_structure("PbTiO3-cubic")
    atoms.set_masses([208.0, 47.867, 17.999, 15.999, 15.999])
    atoms.set_initial_magnetic_moments([0.0, 1.5, 0.0, 0.0, 0.0])
    atoms.set_initial_charges([2.0, 4.0, -2.0, -2.0, -2.0])
    atoms.set_tags([1, 2, 3, 4, 5])
    atoms.set_velocities(np.full((5, 3), 0.01))
    atoms.set_array("label", np.array(["A", "B", "apical", "equatorial", "equatorial"]))
    atoms.info |= {"name": "sample 7", "run": 3, "weights": np.array([0.5, 0.25])}
    return atoms


# --- partial occupancies


@pytest.mark.parametrize(
    ("sites", "named"),
    [
        ("Zr1 Zr 0.5 0.5 0.5 0.52\nTi1 Ti 0.5 0.5 0.5 0.48", "(0.52 Zr + 0.48 Ti on sites 2, 3; sites count from 0)"),
        ("Ti1 Ti 0.5 0.5 0.5 0.90", "(0.9 Ti on site 2; sites count from 0)"),
    ],
    ids=["mixed", "vacancies"],
)
def test_partial_occupancies_are_refused(tmp_path, capsys, sites, named) -> None:
    path = write(tmp_path, "pzt.cif", CIF.format(group="P m -3 m", number=221, sites=f"{A_AND_O}\n{sites}"))
    for use in ("dynamics", "relaxation", "vibrations", "evaluation"):
        with pytest.raises(InputError) as caught:
            read_input(path, use)
        assert str(caught.value).startswith(f"{path}: partial occupancies {named}")
    out = str(tmp_path / "out")
    model = ("--model", "perovskite")
    assert evaluate.main([path, *model, "--out", f"{out}.extxyz"]) == 2
    assert relax.main([path, *model, "--out", out]) == 2
    assert phonons.main([path, *model, "--out", out]) == 2
    assert free_energy([path, *model, "--method", "harmonic", "--out", out]) == 2
    assert (
        free_energy([path, *model, "--method", "switching", "--ensemble", "nvt", "--replicas", "2", "--out", out]) == 2
    )
    assert run_command("jaxpto.sweep", SweepConfig, sweep.run, [path, "--out", out]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert all(named in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["pzt.cif"]


def test_whole_occupancies_are_taken(tmp_path) -> None:
    sites = f"{A_AND_O}\nTi1 Ti 0.5 0.5 0.5 1.0"
    found = read_input(write(tmp_path, "pto.cif", CIF.format(group="P m -3 m", number=221, sites=sites)), "dynamics")
    assert sorted(found.atoms.numbers) == sorted(PEROVSKITE)
    assert found.notes == ()  # ASE warns that it does not interpret "cubic", which this space group does not need


def test_occupancies_of_pdb_files_count_too(tmp_path) -> None:
    atoms = builtin_structure("PbTiO3-cubic")
    atoms.set_array("occupancy", np.array([1.0, 0.5, 1.0, 1.0, 1.0]))
    ase.io.write(tmp_path / "half.pdb", atoms)
    with pytest.raises(InputError, match=r"partial occupancies \(0\.5 Ti on site 1;"):
        read_structure(tmp_path / "half.pdb")


def test_the_calculator_refuses_what_is_no_structure() -> None:
    calculator = JaxptoCalculator(lennard_jones(["Pb", "Ti", "O"], [0.01] * 3, [2.0] * 3, 5.0, 4.0, np.float64))
    atoms = builtin_structure("PbTiO3-cubic")
    atoms.calc = calculator
    atoms.info["occupancy"] = {"0": {"Pb": 1.0}, "1": {"Ti": 0.48, "Zr": 0.52}}
    with pytest.raises(InputError, match="partial occupancies"):
        atoms.get_potential_energy()
    nameless = builtin_structure("PbTiO3-cubic")
    nameless.numbers[1] = 0
    nameless.calc = calculator
    with pytest.raises(InputError, match="X"):
        nameless.get_potential_energy()


# --- elements


@pytest.mark.parametrize(("name", "text"), [("dump.lammpstrj", dump()), ("lammps.data", data())])
def test_types_are_no_elements(tmp_path, capsys, name, text) -> None:
    path = write(tmp_path, name, text)
    given = () if name == "dump.lammpstrj" else ("--format", "lammps-data")
    out = tmp_path / "out.extxyz"
    assert evaluate.main([path, *given, "--model", "perovskite", "--out", str(out)]) == 2
    assert capsys.readouterr().err.endswith("name the element of each type in order, such as --species Pb Ti O\n")
    taken = read_input(path, "dynamics", format=given[1] if given else None, species=("Pb", "Ti", "O"))
    assert taken.atoms.numbers.tolist() == PEROVSKITE
    assert taken.notes == ()
    np.testing.assert_allclose(taken.atoms.positions, 1.965 * np.rint(taken.atoms.positions / 1.965))
    for species, message in ((("Pb", "Ti"), "from 1 to 3"), (("Pb", "Ti", "Q"), "Q is no element")):
        with pytest.raises(InputError, match=message):
            read_input(path, "dynamics", format=given[1] if given else None, species=species)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dump.lammpstrj", dump("mass", "207.2", "48", "17.999")),
        ("lammps.data", data(207.2, 48.0, 17.999)),
    ],
)
def test_isotopes_are_not_taken_for_other_elements(tmp_path, name, text) -> None:
    """The element nearest to 18O by mass is fluorine: ASE takes it."""
    path, format = write(tmp_path, name, text), "lammps-data" if name == "lammps.data" else None
    with pytest.raises(InputError, match=r"type 3 has the mass 17\.999 u, .* \(nearest: F with 18\.998"):
        read_input(path, "dynamics", format=format)
    atoms = read_input(path, "dynamics", format=format, species=("Pb", "Ti", "O")).atoms
    assert atoms.numbers.tolist() == PEROVSKITE
    np.testing.assert_allclose(atoms.get_masses(), [207.2, 48.0, *[17.999] * 3])


@pytest.mark.parametrize(
    ("name", "text"),
    [("dump.lammpstrj", dump("mass", "207.2", "48", "16")), ("lammps.data", data(207.2, 48.0, 16.0))],
)
def test_elements_by_mass_are_said(tmp_path, name, text) -> None:
    path, format = write(tmp_path, name, text), "lammps-data" if name == "lammps.data" else None
    found = read_input(path, "dynamics", format=format)
    assert found.atoms.numbers.tolist() == PEROVSKITE
    assert found.notes == (f"{path}: elements by mass: type 1 is Pb, type 2 is Ti, type 3 is O",)
    np.testing.assert_allclose(found.atoms.get_masses(), [207.2, 48.0, 16.0, 16.0, 16.0])


def test_named_elements_are_not_renamed(tmp_path) -> None:
    named = write(tmp_path, "named.lammpstrj", dump("element", "Pb", "Ti", "O"))
    assert read_structure(named).numbers.tolist() == PEROVSKITE
    with pytest.raises(InputError, match=r"`species=\('Pb', 'Ti', 'O'\)`: .* names its elements itself"):
        read_input(named, "dynamics", species=("Pb", "Ti", "O"))
    # hydrogen of type 1: its number is its type, and it has a name all the same
    hydrogen = dump("element", "H", "He", "Li")
    assert read_structure(write(tmp_path, "light.lammpstrj", hydrogen)).numbers.tolist() == [1, 2, 3, 3, 3]


def test_elements_from_a_comment_line_are_said(tmp_path) -> None:
    ase.io.write(tmp_path / "new.vasp", builtin_structure("PbTiO3-cubic"))
    lines = (tmp_path / "new.vasp").read_text().splitlines()
    old = write(tmp_path, "POSCAR", "\n".join(["No comment In O", *lines[1:5], *lines[6:]]) + "\n")
    found = read_input(old, "evaluation")
    assert found.atoms.get_chemical_formula() == "InNoO3"
    assert found.notes == (f"{old}: it names no elements (VASP 4); No In O are guessed from its comment line",)
    assert read_input(tmp_path / "new.vasp", "evaluation").notes == ()


def test_formats_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"cannot be read as runnerdata .* or name its format with `format`"):
        read_structure(write(tmp_path, "lammps.data", data()))  # what ASE guesses from the name
    path = write(tmp_path, "cell.lmp", data(207.2, 47.867, 15.999))
    with pytest.raises(InputError, match=r"no format lmp; name its format with `format`"):
        read_structure(path)
    with pytest.raises(InputError, match="`format=lammps`: ASE reads no format of that name"):
        read_input(path, "dynamics", format="lammps")
    with pytest.raises(InputError, match="cannot be read as vasp "):
        read_input(path, "dynamics", format="vasp")


def test_warnings_of_a_reader_are_shown(tmp_path) -> None:
    """Fd-3m has two settings, and the file does not say which one it means."""
    path = write(tmp_path, "si.cif", CIF.format(group="F d -3 m", number=227, sites="Si1 Si 0 0 0 1.0"))
    (note,) = read_input(path, "dynamics").notes
    assert note.startswith(f"{path}: ASE's reader: crystal system 'cubic' is not interpreted")
    # with its operations spelled out nothing is open
    spelled = CIF.replace("loop_\n_atom", "loop_\n_symmetry_equiv_pos_as_xyz\n'x, y, z'\nloop_\n_atom")
    path = write(tmp_path, "p1.cif", spelled.format(group="F d -3 m", number=227, sites="Si1 Si 0 0 0 1.0"))
    assert read_input(path, "dynamics").notes == ()


# --- what a use does not take


def test_constraints_are_refused_where_atoms_move(tmp_path, capsys) -> None:
    atoms = builtin_structure("PbTiO3-cubic")
    atoms.set_constraint(FixAtoms([0, 1]))
    ase.io.write(tmp_path / "fixed.vasp", atoms)
    path, out = str(tmp_path / "fixed.vasp"), str(tmp_path / "out")
    assert run_command("jaxpto.sweep", SweepConfig, sweep.run, [path, "--ensemble", "nvt", "--out", out]) == 2
    assert phonons.main([path, "--model", "perovskite", "--no-relax", "--out", out]) == 2
    assert relax.main([path, "--model", "perovskite", "--out", out]) == 2
    lines = capsys.readouterr().err.splitlines()
    for line, what in zip(lines, ("molecular dynamics", "vibrations", "a relaxation"), strict=True):
        assert f"fixed.vasp: constraints (FixAtoms) are not kept by {what}" in line
        assert line.endswith("; remove them from the file")
    assert not pathlib.Path(out).exists()
    (note,) = read_input(path, "evaluation").notes
    assert note == f"{path}: constraints (FixAtoms) are left out; forces are those of free atoms"


def test_what_a_simulation_does_not_use_is_named(tmp_path) -> None:
    path = str(tmp_path / "run.traj")
    ase.io.write(path, [builtin_structure("PbTiO3-cubic"), moved()])
    assert read_input(path, "dynamics").notes == (
        f"{path}: it holds 2 structures; the last one is taken",
        f"{path}: velocities are not used; each replica draws its own",
        f"{path}: magnetic moments are not used; a model sees elements and positions only",
        f"{path}: charges are not used; a model sees elements and positions only",
    )
    assert read_input(path, "relaxation").notes[1] == f"{path}: velocities are not used; atoms start at rest"
    assert read_input(path, "evaluation", every=True).notes == (
        f"{path} (1 of 2 structures): magnetic moments are not used; a model sees elements and positions only",
        f"{path} (1 of 2 structures): charges are not used; a model sees elements and positions only",
    )


def test_zeros_are_nothing_to_be_named() -> None:
    atoms = builtin_structure("PbTiO3-cubic")
    atoms.set_velocities(np.zeros((5, 3)))
    atoms.set_initial_magnetic_moments(np.zeros(5))
    atoms.set_initial_charges(np.zeros(5))
    assert notes_on([atoms], "dynamics") == []


def test_vacuum_is_measured_and_named() -> None:
    slab = bulk("Ar", "fcc", 5.3, cubic=True)
    assert vacuum(slab)[0] == pytest.approx(5.3 / 2)
    slab.positions += [0.0, 0.0, 3.0]  # across the boundary, so that the gap does not begin at 0
    slab.cell[2] = [2.0, 0.0, 20.05]  # skewed: the width is along the normal, not along the vector
    width, along = vacuum(slab)
    assert (width, along) == (pytest.approx(20.05 - 5.3 / 2), 2)
    (note,) = notes_on([slab], "dynamics", "slab.vasp")
    assert note.startswith("slab.vasp: 17.4 A of vacuum along lattice vector 3, with periodic images beyond it; a cell")
    assert notes_on([bulk("Ar", "fcc", 5.3)], "dynamics") == []


def test_notes_reach_the_console(tmp_path, capsys) -> None:
    path = str(tmp_path / "run.traj")
    ase.io.write(path, moved())
    assert evaluate.main([path, "--model", "perovskite", "--out", str(tmp_path / "out.extxyz")]) == 0
    assert f"{path}: magnetic moments are not used" in capsys.readouterr().out
    assert prepare(SweepConfig(path), crystal_measurements).notes == read_input(path, "dynamics").notes != ()


# --- atoms made anew


def test_everything_but_results_comes_along() -> None:
    given = moved()
    given.set_constraint(FixAtoms([0]))
    given.set_array("forces", np.ones((5, 3)))
    given.info["virial"] = np.eye(3)
    new = made_anew(given)
    assert set(new.arrays) == set(given.arrays) - {"forces"}
    assert set(new.info) == set(given.info) - {"virial"}
    for name, values in new.arrays.items():
        np.testing.assert_array_equal(values, given.arrays[name])
    assert new.get_masses().tolist() == [208.0, 47.867, 17.999, 15.999, 15.999]
    assert new.constraints == []
    assert len(given.constraints) == 1  # the original is left as it is
    resting = with_results(given, 0.0, np.zeros((5, 3)), None)
    assert set(resting.arrays) == set(new.arrays) - {"momenta"}


@pytest.mark.parametrize("suffix", [".extxyz", ".traj"])
def test_arrays_and_info_are_written_and_read_back(tmp_path, suffix) -> None:
    given = moved()
    given.info["object"] = object()  # what a reader may have put there
    given.set_array("spaced", np.array(["a b", "c", "d", "e", "f"]))
    given.set_array("deep", np.zeros((5, 2, 2)))
    write_frames([with_results(given, -1.0, np.zeros((5, 3)), np.eye(3))], tmp_path / f"out{suffix}")
    read = ase.io.read(tmp_path / f"out{suffix}")
    assert isinstance(read, ase.Atoms)
    words = ["label"] if suffix == ".extxyz" else []  # ASE's .traj has no place for it
    for name in ("masses", "initial_magmoms", "initial_charges", "tags", *words):
        np.testing.assert_array_equal(read.arrays[name], given.arrays[name], err_msg=name)
    assert (read.info["name"], read.info["run"]) == ("sample 7", 3)
    np.testing.assert_array_equal(read.info["weights"], [0.5, 0.25])
    assert {"spaced", "deep", "momenta"}.isdisjoint(read.arrays)
    assert read.get_potential_energy() == -1.0


def test_kinds_are_elements_and_masses() -> None:
    assert site_kinds(builtin_structure("PbTiO3-cubic")).tolist() == [0, 1, 2, 2, 2]
    assert site_kinds(moved()).tolist() == [0, 1, 2, 3, 3]


# --- a file is taken as it is


def test_files_are_not_multiplied(tmp_path) -> None:
    path = str(tmp_path / "pto.vasp")
    ase.io.write(path, builtin_structure("PbTiO3-cubic"))
    assert len(prepare(SweepConfig(path), crystal_measurements).batch.atoms) == 5
    assert len(prepare(SweepConfig(path, supercell=(2, 1, 1)), crystal_measurements).batch.atoms) == 10
    assert len(prepare(SweepConfig("PbTiO3-cubic"), crystal_measurements).batch.atoms) == 625
    assert FreeEnergyConfig(path).repeats == (1, 1, 1)
    assert FreeEnergyConfig().repeats == MatchOptions().repeats == (3, 3, 3)
    assert MatchOptions(structure=path).repeats == (1, 1, 1)
    # there the supercell is the range of the force constants
    assert (
        FreeEnergyConfig(path, method="harmonic").repeats == FreeEnergyConfig(path, method="qha").repeats == (3, 3, 3)
    )


@pytest.mark.parametrize(("structure", "repeats"), [("PbTiO3-cubic", [5, 5, 5]), ("pto.vasp", [1, 1, 1])])
def test_the_settled_supercell_is_stored_and_goes_on(structure: str, repeats: list[int]) -> None:
    config = SweepConfig(structure)
    stored: dict[str, Any] = json.loads(json.dumps(to_json(config)))
    assert stored["supercell"] == repeats
    assert changed_fields(config, stored) == []
    assert changed_fields(dataclasses.replace(config, supercell=tuple(repeats)), stored) == []
    (change,) = changed_fields(dataclasses.replace(config, supercell=(2, 2, 2)), stored)
    assert change.startswith(f"supercell was {' '.join(map(str, repeats))}")
    # a run from before the options --format and --species
    for name in ("format", "species"):
        del stored[name]
    assert changed_fields(config, stored) == []
