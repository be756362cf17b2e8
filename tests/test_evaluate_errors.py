"""`evaluate` against labels: errors known without jaxpto, signs and units, missing labels, names, what is refused."""

from __future__ import annotations

import csv
import html
import json
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.units import GPa
from test_report import check_page

from jaxpto.evaluate import EvaluateConfig, main, run
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.reporting.parity import error_table
from jaxpto.training.comparison import compare
from jaxpto.training.trajectories import LabelledTrajectory

EPSILON, SIGMA, CUTOFF = 0.0104, 3.40, 8.0


class Shifted(LennardJones):
    """ASE's Lennard-Jones pairs, all derivatives times a factor, the energy counted from another zero."""

    def __init__(self, factor: float = 1.0, zero: float = 0.0) -> None:
        super().__init__(epsilon=factor * EPSILON, sigma=SIGMA, rc=CUTOFF, ro=0.9 * CUTOFF, smooth=True)
        self.zero = zero

    def calculate(self, atoms=None, properties=None, system_changes=("positions", "cell")) -> None:
        super().calculate(atoms, properties or ["energy"], list(system_changes))
        assert atoms is not None
        for name in ("energy", "free_energy"):
            self.results[name] += self.zero * len(atoms)


def reference() -> Calculator:
    """What the tests evaluate, as a model of the user."""
    return Shifted()


MODEL = f"ase:{__name__}:reference"


def labelled(
    count: int,
    seed: int,
    factor: float = 1.1,
    zero: float = 0.0,
    symbol: str = "Ar",
    labels=("energy", "forces", "stress"),
) -> list[ase.Atoms]:
    """Rattled, strained crystals with the labels of ASE's calculator."""
    generator, frames = np.random.default_rng(seed), []
    for _ in range(count):
        atoms = bulk(symbol, "fcc", 5.3, cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * generator.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.1 * generator.normal(size=(4, 3))
        free = atoms.copy()
        free.calc = Shifted(factor, zero)
        results = {"energy": free.get_potential_energy(), "forces": free.get_forces(), "stress": free.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **{name: results[name] for name in labels})
        frames.append(atoms)
    return frames


def write_deepmd(folder: Path, frames: list[ase.Atoms], virials: list[np.ndarray] | None) -> None:
    (folder / "set.000").mkdir(parents=True)
    columns = {
        "coord": [atoms.positions.ravel() for atoms in frames],
        "box": [atoms.cell.array.ravel() for atoms in frames],
        "energy": [atoms.calc.results["energy"] for atoms in frames],
        "force": [atoms.calc.results["forces"].ravel() for atoms in frames],
    }
    if virials is not None:
        columns["virial"] = [virial.ravel() for virial in virials]
    for name, column in columns.items():
        np.save(folder / "set.000" / f"{name}.npy", np.array(column))
    (folder / "type.raw").write_text("0\n" * len(frames[0]))
    (folder / "type_map.raw").write_text(frames[0].symbols[0])


def read_errors(folder: Path) -> list[dict[str, float | str]]:
    with (folder / "errors.csv").open() as file:
        lines = list(csv.DictReader(file))
    return [{k: v if k == "trajectory" else float(v) if v else np.nan for k, v in line.items()} for line in lines]


def stack(frames: list[ase.Atoms], name: str) -> np.ndarray:
    return np.array([atoms.calc.results[name] for atoms in frames])


def virial_by_strain(atoms: ase.Atoms, factor: float, step: float = 1e-5) -> np.ndarray:
    """-dE/dstrain [3, 3], eV, by central differences of ASE's energy."""
    virial = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            energies = []
            for sign in (1.0, -1.0):
                strain = np.eye(3)
                strain[i, j] += sign * step
                moved = atoms.copy()
                moved.set_cell(moved.cell.array @ strain, scale_atoms=True)
                moved.calc = Shifted(factor)
                energies.append(moved.get_potential_energy())
            virial[i, j] = -(energies[0] - energies[1]) / (2.0 * step)
    return virial


def test_errors_of_files_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels are 1.1 of the predictions: errors are 1/11 of the labels, whose virials are slopes of ASE's energy."""
    warm, hot = labelled(5, 0), labelled(3, 1)
    ase.io.write(tmp_path / "warm.traj", warm)
    write_deepmd(tmp_path / "data" / "hot", hot, [virial_by_strain(atoms, 1.1) for atoms in hot])
    write_deepmd(tmp_path / "data" / "bare", hot, None)
    arguments = [str(tmp_path / "warm.traj"), str(tmp_path / "data"), "--model", MODEL, "--energy-zero", "same"]
    assert main([*arguments, "--errors", str(tmp_path / "errors"), "--out", str(tmp_path / "out.traj")]) == 0
    rows = read_errors(tmp_path / "errors")
    assert [row["trajectory"] for row in rows] == ["warm", "bare", "hot", "all"]
    assert [row["frames"] for row in rows] == [5, 3, 3, 11]
    for row, frames in zip(rows, (warm, hot, hot, warm + hot + hot), strict=True):
        energies, forces = stack(frames, "energy") / 44, stack(frames, "forces") / 11
        assert row["energy_mean_error_meV_per_atom"] == pytest.approx(-1e3 * energies.mean(), rel=1e-6)
        assert row["energy_rmse_meV_per_atom"] == pytest.approx(1e3 * np.sqrt(np.square(energies).mean()), rel=1e-6)
        assert row["forces_mae_meV_per_A"] == pytest.approx(1e3 * np.abs(forces).mean(), rel=1e-6)
        assert row["forces_rmse_meV_per_A"] == pytest.approx(1e3 * np.sqrt(np.square(forces).mean()), rel=1e-6)
        if row["trajectory"] in ("warm", "hot"):
            stress = stack(frames, "stress")[:, [0, 5, 4, 5, 1, 3, 4, 3, 2]] / 11 / GPa
            assert row["stress_rmse_GPa"] == pytest.approx(np.sqrt(np.square(stress).mean()), rel=1e-5)
            assert row["stress_mae_GPa"] == pytest.approx(np.abs(stress).mean(), rel=1e-5)
    assert np.isnan(rows[1]["stress_rmse_GPa"])
    assert len(ase.io.read(tmp_path / "out.traj", ":")) == 11
    assert ["all", "11"] in [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert {path.name for path in (tmp_path / "errors").iterdir()} == {
        "errors.csv", "errors.json", "parity.png", "report.html",
    }  # fmt: skip
    page = (tmp_path / "errors" / "report.html").read_text()
    assert len(check_page(page)) == 1
    assert f"RMSE of force components {rows[-1]['forces_rmse_meV_per_A']:.1f} meV/A" in page
    document = json.loads((tmp_path / "errors" / "errors.json").read_text())
    assert document["rows"][0]["forces_mae_meV_per_A"] == rows[0]["forces_mae_meV_per_A"]
    assert document["settings"]["model"] == MODEL


def test_stress_of_extxyz_and_virial_agree_in_sign(tmp_path: Path) -> None:
    """A label of one GPa more tension along x, as ASE's stress and as a virial: the same error, -1 GPa."""
    (atoms,) = labelled(1, 3, factor=1.0)
    atoms.calc.results["stress"][0] += GPa
    virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
    ase.io.write(tmp_path / "stress.traj", atoms)
    del atoms.calc.results["stress"]
    atoms.info["virial"] = virial
    ase.io.write(tmp_path / "virial.extxyz", atoms)
    files = (str(tmp_path / "stress.traj"), str(tmp_path / "virial.extxyz"))
    run(EvaluateConfig(files, MODEL, errors=tmp_path / "errors", energy_zero="same"))
    for row in read_errors(tmp_path / "errors"):
        assert row["stress_rmse_GPa"] == pytest.approx(1.0 / 3.0, abs=1e-4)
        assert row["virial_mae_meV_per_atom"] == pytest.approx(1e3 * GPa * atoms.get_volume() / 4 / 9, rel=1e-3)


def test_energies_of_another_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default the zero is fitted, one energy for each element; a frame that alone has an element is left out."""
    frames = labelled(6, 4, zero=-500.0)
    ase.io.write(tmp_path / "argon.traj", frames)
    arguments = [str(tmp_path / "argon.traj"), "--model", MODEL]
    assert main([*arguments, "--errors", str(tmp_path / "fitted")]) == 0
    said = capsys.readouterr().out
    assert "one energy for each of 1 elements is fitted" in said
    assert "--energy-zero same" in said
    (row,) = read_errors(tmp_path / "fitted")
    energies = (stack(frames, "energy") / 4 + 500.0) / 11
    assert row["energy_rmse_meV_per_atom"] == pytest.approx(1e3 * energies.std(), rel=1e-5)
    assert row["energy_mean_error_meV_per_atom"] == pytest.approx(0.0, abs=1e-6)
    offsets = json.loads((tmp_path / "fitted" / "errors.json").read_text())["element_energies_added_eV"]
    assert offsets == {"Ar": pytest.approx(-500.0 + energies.mean(), rel=1e-9)}
    assert main([*arguments, "--errors", str(tmp_path / "same"), "--energy-zero", "same"]) == 0
    (row,) = read_errors(tmp_path / "same")
    assert row["energy_mae_meV_per_atom"] == pytest.approx(1e3 * (500.0 - energies.mean()), rel=1e-9)
    ase.io.write(tmp_path / "single.traj", frames[0])
    capsys.readouterr()
    assert main([str(tmp_path / "single.traj"), "--model", MODEL, "--errors", str(tmp_path / "single")]) == 0
    assert "energies of 1 frames are not compared" in capsys.readouterr().out
    (row,) = read_errors(tmp_path / "single")
    assert np.isnan(row["energy_rmse_meV_per_atom"])
    assert row["forces_mae_meV_per_A"] > 1.0


def test_reference_energies_of_the_model_are_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noble = lennard_jones(["Ar", "Kr"], [EPSILON, 0.014], [SIGMA, 3.65], 5.0, 4.5, np.float64)
    save_potential(noble, tmp_path / "noble", {"reference_energies_eV": {"Ar": -527.5, "Kr": -75.0}})
    frames = labelled(3, 5) + labelled(2, 6, symbol="Kr")
    for atoms, own in zip(
        frames,
        run(EvaluateConfig(_written(tmp_path, frames), str(tmp_path / "noble"), tmp_path / "a.traj")),
        strict=True,
    ):
        zero = {"Ar": -527.5, "Kr": -75.0}[atoms.symbols[0]]
        atoms.calc = SinglePointCalculator(atoms, energy=own.get_potential_energy() + 4 * zero + 0.02)
    files = _written(tmp_path, frames)
    capsys.readouterr()
    run(EvaluateConfig(files, str(tmp_path / "noble"), errors=tmp_path / "errors"))
    assert "the reference energies of the model's elements are added" in capsys.readouterr().out
    (row,) = read_errors(tmp_path / "errors")
    assert row["energy_mean_error_meV_per_atom"] == pytest.approx(-5.0, abs=1e-6)
    assert row["energy_rmse_meV_per_atom"] == pytest.approx(5.0, abs=1e-6)
    assert np.isnan(row["forces_rmse_meV_per_A"])
    for atoms in frames:
        atoms.calc.results["energy"] += 4 * 30.0
    files = _written(tmp_path, frames)
    run(EvaluateConfig(files, str(tmp_path / "noble"), errors=tmp_path / "other"))
    assert "energies differ by -30 eV/atom on average" in capsys.readouterr().out
    run(EvaluateConfig(files, str(tmp_path / "noble"), errors=tmp_path / "fit", energy_zero="fit"))
    assert "differ" not in capsys.readouterr().out
    assert read_errors(tmp_path / "fit")[0]["energy_rmse_meV_per_atom"] == pytest.approx(0.0, abs=1e-6)


def _written(folder: Path, frames: list[ase.Atoms]) -> tuple[str]:
    ase.io.write(folder / "frames.traj", frames)
    return (str(folder / "frames.traj"),)


def test_labels_partly_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every frame is evaluated, each label is used where it is, and what is missing is counted."""
    frames = [*labelled(2, 7), *labelled(2, 8, labels=("energy",)), *labelled(1, 9, labels=("forces",))]
    bare, broken = (labelled(1, seed)[0] for seed in (10, 11))
    bare.calc = None
    broken.calc.results["energy"] = np.nan
    broken.calc.results["forces"][1, 1] = np.inf
    frames = [*frames, bare, broken]
    out = tmp_path / "out.traj"
    evaluated = run(EvaluateConfig(_written(tmp_path, frames), MODEL, out, errors=tmp_path / "e", energy_zero="same"))
    assert len(evaluated) == len(ase.io.read(out, ":")) == 7
    said = capsys.readouterr().out
    for line in (
        "frames: 1 of 7 frames have no labels",
        "frames: 4 of 6 labelled frames have an energy",
        "frames: 4 of 6 labelled frames have forces",
        "frames: 3 of 6 labelled frames have a stress",
        "frames: 1 of 7 frames have labels that are not finite (frame 6)",
    ):
        assert line in said
    (row,) = read_errors(tmp_path / "e")
    assert [row[name] for name in ("frames", "energies", "forces", "stresses")] == [6, 4, 4, 3]
    energies = stack(frames[:4], "energy") / 44
    assert row["energy_mae_meV_per_atom"] == pytest.approx(1e3 * np.abs(energies).mean(), rel=1e-6)
    forces = np.concatenate([frames[k].calc.results["forces"].ravel() for k in (0, 1, 4, 6)]) / 11
    forces = forces[np.isfinite(forces)]
    assert len(forces) == 47
    assert row["forces_rmse_meV_per_A"] == pytest.approx(1e3 * np.sqrt(np.square(forces).mean()), rel=1e-6)


def test_worst_frame_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, wrong in (("a", None), ("b", 4)):
        frames = labelled(6, 12, factor=1.0)
        if wrong is not None:
            frames[wrong].calc.results["forces"][2] += [0.3, 0.0, 0.4]
        (tmp_path / place).mkdir()
        ase.io.write(tmp_path / place / "same.traj", frames)
    files = tuple(str(tmp_path / place / "same.traj") for place in "ab")
    run(EvaluateConfig(files, MODEL, errors=tmp_path / "errors"))
    worst = json.loads((tmp_path / "errors" / "errors.json").read_text())["worst_frames"][0]
    assert (worst["frame"], worst["trajectory"], worst["index"]) == ("same-2 frame 4", "same-2", 4)
    assert worst["largest_force_error_meV_per_A"] == pytest.approx(500.0, abs=1e-3)
    assert (worst["on_atom"], worst["atom"]) == ("Ar 2", 2)
    said = capsys.readouterr().out
    assert "same-2 frame 4" in said
    assert "same-2 frame 4" in (tmp_path / "errors" / "report.html").read_text()


def test_constraints_and_moments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels are the file's forces, on fixed atoms too; that a model has no moments is said."""
    frames = labelled(2, 13)
    for atoms in frames:
        atoms.set_constraint(FixAtoms([0]))
        atoms.calc.results["magmoms"] = np.ones(4)
    forces = stack(frames, "forces") / 11
    run(EvaluateConfig(_written(tmp_path, frames), MODEL, errors=tmp_path / "errors"))
    said = capsys.readouterr().out
    assert "magnetic moments of frames are not compared: the model predicts none" in said
    assert "constraints in 2 frames are not used; the forces on all atoms are those in the file" in said
    (row,) = read_errors(tmp_path / "errors")
    assert row["forces_mae_meV_per_A"] == pytest.approx(1e3 * np.abs(forces).mean(), rel=1e-6)
    for atoms in frames:
        atoms.calc.results["forces"][0] = 0.0
    run(EvaluateConfig(_written(tmp_path, frames), MODEL, errors=tmp_path / "zeroed"))
    assert "in 2 of 2 frames the forces on fixed atoms are exactly 0" in capsys.readouterr().out


def test_moments_are_compared() -> None:
    frames = labelled(2, 17)
    for atoms in frames:
        atoms.calc.results["magmoms"] = np.array([1.0, 0.0, 2.0, np.nan])
    one = LabelledTrajectory(
        "some", "some.traj", tuple(frames), stack(frames, "energy"), tuple(stack(frames, "forces")),
        np.full((2, 3, 3), np.nan), tuple(stack(frames, "magmoms")),
    )  # fmt: skip
    predicted = [atoms.copy() for atoms in frames]
    for atoms, moment in zip(predicted, (1.1, 0.9), strict=True):
        results = {"energy": 0.0, "forces": np.zeros((4, 3)), "magmoms": np.array([moment, 0.0, 2.3, 9.0])}
        atoms.calc = SinglePointCalculator(atoms, **results)
    found = compare([one], predicted, {})
    (row,) = error_table(found.parities)
    assert row["moments_mae_mu_B"] == pytest.approx((0.1 + 0.1 + 2 * 0.3) / 6)
    assert row["moments"] == 2
    assert not any("moments" in note for note in found.notes)


def test_table_without_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels are compared on the terminal even where no errors were asked for."""
    files = _written(tmp_path, labelled(2, 14))
    assert main([*files, "--model", MODEL, "--out", str(tmp_path / "out.extxyz")]) == 0
    said = capsys.readouterr().out
    assert "errors against the labels" in said
    assert "forces RMSE" in said
    assert {path.name for path in tmp_path.iterdir()} == {"frames.traj", "out.extxyz"}


@pytest.mark.parametrize(
    ("arguments", "value", "remedy"),
    [
        (["bare.extxyz", "--errors", "new"], "no frame has an energy, forces or a stress", "(they hold dft_energy)"),
        (["some.traj", "--errors", "used"], "used exists and is not empty", "name a new folder"),
        (["some.traj"], "nothing to write", "--errors"),
        (["used", "--errors", "new"], "used is a folder without a type.raw", "DeePMD npy folder"),
        (["wrong.traj", "--errors", "new"], "wrong.traj: frame 1: virial is not symmetric", "repair it"),
        (["mixed.traj", "--errors", "new"], "1 of 2 frames have energy, 1 free_energy", "the same one of the two"),
        (["left", "--errors", "new"], "left frame 0: left-handed cell", "swap two lattice vectors"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], value: str, remedy: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    frames = labelled(2, 15)
    ase.io.write("some.traj", frames)
    bare = frames[0].copy()
    bare.info["dft_energy"] = 1.0
    ase.io.write("bare.extxyz", bare)
    Path("used").mkdir()
    Path("used", "notes").write_text("precious")
    frames[1].info["virial"] = np.arange(9.0).reshape(3, 3)
    ase.io.write("wrong.traj", frames)
    del frames[1].info["virial"]
    frames[1].calc.results["free_energy"] = frames[1].calc.results.pop("energy")
    ase.io.write("mixed.traj", frames)
    turned = labelled(1, 16)
    turned[0].cell[:] = -turned[0].cell.array
    write_deepmd(Path("left"), turned, None)
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main([*arguments, "--model", MODEL]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "slow" not in line]
    assert len(lines) == 1, lines
    assert value in html.unescape(lines[0])
    assert remedy in lines[0]
    assert sorted(path for path in tmp_path.rglob("*")) == before
