"""What training reads from files, what it refuses and what it says it does not use; all on the host."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from jaxpto.errors import InputError
from jaxpto.structures import builtin_structure
from jaxpto.training import data
from jaxpto.training.config import TrainConfig, check
from jaxpto.training.progress import describe_data
from jaxpto.training.setup import load_frames


def labelled(symbols: str = "PbTiO3", count: int = 1, seed: int = 0, **results) -> list[ase.Atoms]:
    """Rattled, strained perovskite cells with random labels; `results` replace or (None) remove some."""
    generator, made = np.random.default_rng(seed), []
    for _ in range(count):
        atoms = builtin_structure("PbTiO3-tetragonal")
        atoms.symbols[:] = ase.Atoms(symbols).symbols
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * generator.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.1 * generator.normal(size=(5, 3))
        labels = {"energy": float(generator.normal()), "forces": generator.normal(size=(5, 3))}
        labels |= {"stress": 0.01 * generator.normal(size=6)} | results
        atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in labels.items() if v is not None})
        made.append(atoms)
    return made


def virial_of(atoms: ase.Atoms) -> np.ndarray:
    """-stress * volume, eV."""
    return -atoms.get_stress(voigt=False) * atoms.get_volume()


def heard(path: Path) -> tuple[list[data.LabelledFrames], list[str]]:
    """What is read, and what is said of it."""
    lines: list[str] = []
    return data.read(path, lines.append), lines


def write_mixed(folder: Path, frames: list[ase.Atoms], names: list[str], order: np.random.Generator) -> None:
    """DeePMD's mixed type format: atoms of each frame in any order, virtual atoms of type -1 after them."""
    (folder / "set.000").mkdir(parents=True)
    most = max(map(len, frames))
    columns: dict[str, list] = {name: [] for name in ("real_atom_types", "coord", "box", "energy", "force", "virial")}
    for atoms in frames:
        new = order.permutation(len(atoms))
        fill = lambda values, with_: np.concatenate([values, np.full((most - len(values), *values.shape[1:]), with_)])  # noqa: E731
        columns["real_atom_types"].append(fill(np.array([names.index(atoms.symbols[i]) for i in new]), -1))
        columns["coord"].append(fill(atoms.positions[new], 0.0).ravel())
        columns["force"].append(fill(atoms.get_forces()[new], 0.0).ravel())
        columns["box"].append(atoms.cell.array.ravel())
        columns["energy"].append(atoms.get_potential_energy())
        columns["virial"].append(virial_of(atoms).ravel())
    for name, column in columns.items():
        np.save(folder / "set.000" / f"{name}.npy", np.array(column))
    (folder / "type.raw").write_text("0\n" * most)
    (folder / "type_map.raw").write_text("\n".join(names))


def test_extxyz_of_ase_is_read(tmp_path: Path) -> None:
    images = labelled(count=3)
    ase.io.write(tmp_path / "some.extxyz", images)
    (found,), lines = heard(tmp_path / "some.extxyz")
    assert (found.name, lines) == ("some", [])
    for index, atoms in enumerate(images):
        np.testing.assert_allclose(found.positions[index], atoms.positions, atol=1e-7)
        np.testing.assert_allclose(found.cells[index], atoms.cell.array, atol=1e-7)
        np.testing.assert_allclose(found.energies[index], atoms.get_potential_energy(), atol=1e-7)
        np.testing.assert_allclose(found.forces[index], atoms.get_forces(), atol=1e-7)
        np.testing.assert_allclose(found.virials[index], virial_of(atoms), atol=1e-5)


def test_mixed_types(tmp_path: Path) -> None:
    """Two perovskites and a smaller crystal in one set, atoms in any order: three trajectories of their own atoms."""
    frames = labelled("PbTiO3", 3) + labelled("BaTiO3", 2, seed=1)
    rock = bulk("BaO", "rocksalt", 5.5)
    rock.calc = SinglePointCalculator(rock, energy=1.5, forces=np.array([[0, 0, 0.5], [0, 0, -0.5]]), stress=np.ones(6))
    frames = [frames[0], frames[3], frames[1], rock, frames[2], frames[4]]
    write_mixed(tmp_path / "mixed", frames, ["O", "Pb", "Ti", "Ba"], np.random.default_rng(3))
    found, lines = heard(tmp_path / "mixed")
    assert lines == []
    assert [t.name for t in found] == ["mixed-PbTiO3", "mixed-BaTiO3", "mixed-BaO"]
    for trajectory, members in zip(found, ([0, 2, 4], [1, 5], [3]), strict=True):
        assert len(trajectory) == len(members)
        for index, member in enumerate(members):
            atoms = frames[member]
            assert trajectory.energies[index] == atoms.get_potential_energy()
            np.testing.assert_allclose(trajectory.virials[index], virial_of(atoms), rtol=1e-12)
            at = [int(np.argmin(np.abs(atoms.positions - p).sum(axis=1))) for p in trajectory.positions[index]]
            np.testing.assert_array_equal(trajectory.positions[index], atoms.positions[at])
            np.testing.assert_array_equal(trajectory.forces[index], atoms.get_forces()[at])
            np.testing.assert_array_equal(trajectory.numbers, atoms.numbers[at])


def test_folders_that_cannot_be_read_right_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    write_mixed(folder, labelled(count=2), ["Pb", "Ti", "O"], np.random.default_rng(0))

    def refused(words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            data.read(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)

    (folder / "type_map.raw").write_text("Pb Ti")
    refused("types from 0 to 2; type_map.raw has 2 names")
    (folder / "type_map.raw").write_text("Pb Ti Ox")
    refused("names Ox, no element")
    (folder / "type_map.raw").write_text("Pb Ti O")
    (folder / "set.001").mkdir()
    for name in ("coord", "box", "energy", "force"):
        (folder / "set.001" / f"{name}.npy").write_bytes((folder / "set.000" / f"{name}.npy").read_bytes())
    refused("no real_atom_types.npy in set.001")
    types = np.load(folder / "set.000" / "real_atom_types.npy")
    np.save(folder / "set.001" / "real_atom_types.npy", np.where(np.arange(2)[:, None] == 1, -1, types))
    refused("frame 3 holds virtual atoms only")
    np.save(folder / "set.001" / "real_atom_types.npy", types)
    np.save(folder / "set.001" / "aparam.npy", np.zeros(2))
    (found,), lines = heard(folder)
    assert lines == ["mixed: no virials in set.001", "mixed: not used: aparam"]
    assert found.with_virial.tolist() == [True, True, False, False]
    (folder / "set.001" / "box.npy").unlink()
    refused("no box.npy in set.001")
    (folder / "nopbc").touch()
    refused("nopbc")


def test_virial_of_extxyz(tmp_path: Path) -> None:
    """Nine numbers in eV, -stress * volume: positive where the crystal pushes outward, as in GAP, GPUMD and dpdata."""
    (atoms,) = labelled()
    atoms.info["virial"] = virial_of(atoms)
    stress = atoms.calc.results.pop("stress")
    ase.io.write(tmp_path / "virial.extxyz", atoms)
    (found,), lines = heard(tmp_path / "virial.extxyz")
    assert lines == []
    np.testing.assert_allclose(found.virials[0], atoms.info["virial"], atol=1e-6)
    atoms.calc.results["stress"] = stress
    ase.io.write(tmp_path / "both.extxyz", atoms)
    np.testing.assert_allclose(data.read(tmp_path / "both.extxyz")[0].virials[0], atoms.info["virial"], atol=1e-5)
    for wrong, words in (
        (
            -atoms.info["virial"],
            "frame 0: diagonal of virial .* eV, of -stress \\* volume .* eV; their signs are opposite",
        ),
        (2 * atoms.info["virial"], "frame 0: diagonal of virial .* keep the one that is right"),
        (np.arange(9.0).reshape(3, 3), "frame 0: virial is not symmetric"),
        (np.arange(6.0), "frame 0: virial holds 6 values; write nine"),
    ):
        atoms.info["virial"] = wrong
        ase.io.write(tmp_path / "wrong.traj", atoms)
        with pytest.raises(InputError, match=words):
            data.read(tmp_path / "wrong.traj")


def test_forces_belong_to_the_free_energy(tmp_path: Path) -> None:
    some = [labelled(seed=k, free_energy=-3.0 - k, energy=-2.9 - k)[0] for k in range(2)]
    ase.io.write(tmp_path / "smeared.traj", some)
    (found,), lines = heard(tmp_path / "smeared.traj")
    assert found.energies.tolist() == [-3.0, -4.0]
    assert len(lines) == 1
    assert "free_energy is used" in lines[0]
    assert "20 meV/atom" in lines[0]
    del some[1].calc.results["free_energy"]
    ase.io.write(tmp_path / "part.traj", some)
    (found,), lines = heard(tmp_path / "part.traj")
    assert found.energies.tolist() == [-2.9, -3.9]
    assert lines == ["part.traj: only 1 of 2 frames have free_energy; energy is used"]
    del some[0].calc.results["energy"]
    ase.io.write(tmp_path / "neither.traj", some)
    with pytest.raises(InputError, match="1 of 2 frames have energy, 1 free_energy"):
        data.read(tmp_path / "neither.traj")


def test_what_is_not_used_is_named_once(tmp_path: Path) -> None:
    some = labelled(count=2, magmoms=np.ones(5), charges=np.zeros(5))
    for atoms in some:
        atoms.info["config_type"] = "bulk"
        atoms.set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "more.traj", some)
    (found,), lines = heard(tmp_path / "more.traj")
    np.testing.assert_array_equal(found.forces[1], some[1].calc.results["forces"])  # not zeroed by the constraint
    assert lines == [
        "more.traj: not used: charges, config_type",
        "more.traj: constraints in 2 frames are not used; the forces on all atoms are those in the file",
    ]
    for atoms in some:
        atoms.calc.results["forces"][0] = 0.0
    ase.io.write(tmp_path / "zeroed.traj", some)
    assert "in 2 of 2 frames the forces on fixed atoms are exactly 0" in heard(tmp_path / "zeroed.traj")[1][1]


def slab() -> ase.Atoms:
    (atoms,) = labelled()
    atoms.pbc = (True, True, False)
    return atoms


def molecule() -> ase.Atoms:
    (atoms,) = labelled()
    atoms.cell, atoms.pbc = None, False
    return atoms


def renamed() -> ase.Atoms:
    (atoms,) = labelled(stress=None)
    atoms.info["dft_energy"] = atoms.calc.results["energy"]
    atoms.set_array("force", atoms.calc.results["forces"])
    atoms.calc = None
    return atoms


REFUSED = {
    "pbc": (slab, 'frame 1 has pbc="T T F"'),
    "no cell": (molecule, "frame 1 has no cell"),
    "keys": (renamed, r"frame 1 has no energy and no forces \(it has dft_energy, force\); label it with the keys"),
    "forces": (lambda: labelled(forces=None)[0], r"frame 1 has no forces \(it has energy, stress\)"),
    "element": (lambda: labelled("XTiO3")[0], "frame 1: atom 0 has no element"),
}


@pytest.mark.parametrize(("made", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_labelled_crystal_is_refused(tmp_path: Path, made, words: str) -> None:
    ase.io.write(tmp_path / "some.extxyz", [*labelled(), made()])
    with pytest.raises(InputError, match=words) as caught:
        data.read(tmp_path / "some.extxyz")
    assert str(tmp_path / "some.extxyz") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_isolated_atoms_are_left_out_by_name(tmp_path: Path) -> None:
    far = ase.Atoms("Pb", cell=[12, 12, 12], pbc=True)
    near = ase.Atoms("Pb", cell=[[0, 2.5, 2.5], [2.5, 0, 2.5], [2.5, 2.5, 0]], pbc=True)
    for atoms in (alone := ase.Atoms("O"), far, near):
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((1, 3)))
    ase.io.write(tmp_path / "some.traj", [alone, *labelled(), far, near])
    found, lines = heard(tmp_path / "some.traj")
    assert [t.name for t in found] == ["some-PbTiO3", "some-Pb"]
    assert "left out 2 isolated atoms (O in frame 0, Pb in frame 2)" in lines[0]


def test_dropped_frames_are_counted_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = labelled(count=8)
    for index in (1, 4, 5):
        labels = some[index].calc.results
        some[index].set_cell(-some[index].cell.array)
        some[index].calc = SinglePointCalculator(some[index], **labels)
    some[2].calc.results["energy"] = np.nan
    some[3].calc.results["forces"][0, 0] = -1e4
    ase.io.write(tmp_path / "some.traj", some)
    (kept,) = load_frames((tmp_path / "some.traj",))
    assert len(kept) == 3
    said = capsys.readouterr().out
    assert (
        "some: left out 5 of 8 frames: 1 with coordinates or labels that are not finite, 3 with a left-handed" in said
    )
    assert "1 with a force above 100 eV/A" in said


def test_trajectories_of_one_name_stay_apart(tmp_path: Path) -> None:
    for place, seed in (("a", 0), ("b", 1)):
        (tmp_path / place).mkdir()
        ase.io.write(tmp_path / place / "some.traj", labelled(seed=seed))
    files = tuple(tmp_path / place / "some.traj" for place in ("a", "b"))
    assert [t.name for t in load_frames(files)] == ["some", "some-2"]
    with pytest.raises(InputError, match="twice; give it once"):
        check(TrainConfig((files[0], files[0]), tmp_path / "out"))


def test_what_is_held_out_is_said() -> None:
    def trajectory(name: str, count: int) -> data.LabelledFrames:
        nothing = np.full((count, 3, 3), np.nan)
        return data.LabelledFrames(
            name, np.array([8]), nothing[:, :1], nothing, nothing[:, 0, 0], nothing[:, :1], nothing, nothing[:, :1, 0]
        )

    long, short = trajectory("long", 40), trajectory("short", 7)
    some = dataclasses.replace(long, virials=np.where(np.arange(40)[:, None, None] < 30, 1.0, np.nan))
    first, *rest = describe_data([some, short])
    assert first.startswith("47 frames, 1 compositions, 1 elements; 4 frames held out for validation")
    assert rest == [
        "nothing is held out of short (7 frames), too short for blocks",
        "no virial or stress in 10 of 40 frames of long, 7 of 7 frames of short",
    ]
    assert "nothing is held out of short (7 frames), too short for blocks; the errors" in describe_data([short])[1]
    assert describe_data([long])[1] == "no frame has a virial or stress: trained on energies and forces alone"
