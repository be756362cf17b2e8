"""The phonon command: what it writes, that phonopy reads it back, and what it refuses."""

from __future__ import annotations

import json
import pathlib

import ase.build
import ase.io
import numpy as np
import phonopy
import pytest
import yaml
from ase.calculators.emt import EMT
from phonopy.file_IO import parse_BORN
from phonopy.structure.atoms import PhonopyAtoms

from jaxpto import phonons
from jaxpto.lattice_dynamics.figures import bands_figure, curves
from jaxpto.lattice_dynamics.harmonic import largest_difference
from jaxpto.lattice_dynamics.output import AGREEMENT, frequency_text
from jaxpto.lattice_dynamics.phonopy_bridge import sum_rule_residual
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones

FILES = {"phonopy_params.yaml", "band.yaml", "total_dos.dat", "thermal_properties.yaml"}
SUMMARY = {"config.json", "phonons.json", "bands.png", "dos.png", "thermal.png"}
BORN = """14.400
6.0 0 0 0 6.0 0 0 0 6.0
3.9 0 0 0 3.9 0 0 0 3.9
7.1 0 0 0 7.1 0 0 0 7.1
-2.6 0 0 0 -2.6 0 0 0 -5.8
-2.6 0 0 0 -5.8 0 0 0 -2.6
"""


def names(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> pathlib.Path:
    """Two models of argon and a conventional cell."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, epsilon in (("soft", 0.01), ("stiff", 0.04)):
        save_potential(lennard_jones(["Ar"], [epsilon], [3.4], cutoff=7.0, onset=5.5, dtype=np.float64), folder / name)
    ase.io.write(folder / "argon.vasp", ase.build.bulk("Ar", "fcc", 5.3, cubic=True))
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[pathlib.Path, phonons.ModelResult]:
    """Relaxed tetragonal PbTiO3 by both methods."""
    out = tmp_path_factory.mktemp("both") / "out"
    config = phonons.PhononsConfig("PbTiO3-tetragonal", ("perovskite",), out, method="both", mesh=(4, 4, 4))
    (result,) = phonons.run(config)
    return out, result


def test_the_methods_agree_for_a_smooth_model(both) -> None:
    out, result = both
    hessian, displaced = (result.calculations[name].phonon.force_constants for name in ("hessian", "displacement"))
    assert 0.0 < np.abs(hessian - displaced).max() < 0.02
    assert 0.0 < result.difference.frequency < AGREEMENT
    stored = json.loads((out / "phonons.json").read_text())["models"]["perovskite"]
    assert stored["largest_difference"]["frequency"] == result.difference.frequency
    assert stored["methods"]["hessian"]["sum_rule"] < 1e-12
    assert 1e-6 < stored["methods"]["displacement"]["sum_rule"] < 0.01
    assert stored["relaxation"]["converged"] is True
    assert stored["largest_force_in_supercell"] < 1e-5
    assert stored["methods"]["hessian"]["imaginary_modes"] == []


def test_largest_difference_is_the_largest(both) -> None:
    _, result = both
    first, second = (result.calculations[name].harmonic for name in ("hessian", "displacement"))
    found = largest_difference(first, second)
    for name, (_, frequencies) in first.points.items():
        gaps = np.abs(frequencies - second.points[name][1])
        assert gaps.max() <= found.frequency
        if name == found.point:
            largest = gaps[found.band - 1]
    assert largest == found.frequency


@pytest.mark.parametrize("method", ["hessian", "displacement"])
def test_phonopy_reads_the_files_back(both, method: str) -> None:
    out, result = both
    assert names(out) == SUMMARY | {"structure.extxyz", "hessian", "displacement"}
    assert names(out / method) == FILES
    loaded = phonopy.load(out / method / "phonopy_params.yaml", log_level=0)
    points = json.loads((out / "phonons.json").read_text())["models"]["perovskite"]["methods"][method]["points"]
    assert set(points) == {"Γ", "X", "M", "Z", "R", "A"}
    for name, point in points.items():
        found = loaded.run_qpoints([point["q"]]).frequencies[0]
        np.testing.assert_allclose(found, point["frequencies"], atol=2e-4 if name == "Γ" else 1e-7)
    assert (loaded.dataset is not None) == (method == "displacement")
    bands = yaml.safe_load((out / method / "band.yaml").read_text())
    assert bands["labels"][0] == ["Γ", "X"]
    harmonic = result.calculations[method].harmonic
    first = [[band["frequency"] for band in point["band"]] for point in bands["phonon"][: bands["segment_nqpoint"][0]]]
    np.testing.assert_allclose(first, harmonic.bands.frequencies[0], atol=1e-9)
    table = yaml.safe_load((out / method / "thermal_properties.yaml").read_text())["thermal_properties"]
    assert table[30]["temperature"] == 300.0
    assert table[30]["entropy"] == pytest.approx(harmonic.thermal.entropy[30], abs=1e-6)
    assert table[30]["free_energy"] / 96.48533 == pytest.approx(harmonic.thermal.free_energy[30], abs=1e-6)


def test_thermal_properties_against_the_harmonic_oscillator(both) -> None:
    """F = sum (h f / 2 + k T ln(1 - exp(-h f / k T))) over all modes of the mesh but the translations."""
    thermal = both[1].calculations["hessian"].harmonic.thermal
    mesh = both[1].calculations["hessian"].phonon.mesh
    assert (thermal.mesh, thermal.modes, thermal.left_out) == ((4, 4, 4), 64 * 15, 0)
    quanta = np.sort(4.135667696e-3 * mesh.frequencies, axis=1)
    weights = np.repeat(mesh.weights[:, None], 15, axis=1).astype(float)
    weights[np.abs(mesh.qpoints).max(axis=1) < 1e-9, :3] = 0.0
    kT = 8.617333262e-5 * 500.0
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(weights > 0, quanta / 2 + kT * np.log1p(-np.exp(-quanta / kT)), 0.0)
    index = list(thermal.temperatures).index(500.0)
    assert thermal.free_energy[index] == pytest.approx((weights * each).sum() / 64, abs=1e-6)
    assert thermal.zero_point == pytest.approx((weights * quanta).sum() / 2 / 64, abs=1e-6)
    density = both[1].calculations["hessian"].harmonic.density
    assert np.trapezoid(density.densities, density.frequencies) == pytest.approx(15.0, rel=0.02)


def test_two_models_of_a_conventional_cell(inputs, tmp_path, capsys) -> None:
    """One formula unit is one atom; four times the energy is twice the frequency; a folder for each model."""
    config = phonons.PhononsConfig(
        str(inputs / "argon.vasp"), (str(inputs / "soft"), str(inputs / "stiff")), tmp_path / "out",
        mesh=(3, 3, 3), temperatures=(50.0, 10.0), distance=1e-3,
    )  # fmt: skip
    soft, stiff = phonons.run(config)
    assert names(tmp_path / "out") == SUMMARY | {"soft", "stiff"}
    assert names(tmp_path / "out" / "soft") == FILES | {"structure.extxyz"}
    assert len(soft.calculations["displacement"].phonon.primitive) == 1
    tops = [max(f.max() for f in r.calculations["displacement"].harmonic.bands.frequencies) for r in (soft, stiff)]
    assert tops[1] / tops[0] == pytest.approx(2.0, rel=1e-4)
    np.testing.assert_array_equal(soft.calculations["displacement"].harmonic.thermal.temperatures, [10.0, 50.0])
    printed = capsys.readouterr().out
    assert "primitive cell of 1 atom (of 4 in the structure)" in printed
    assert "soft: no imaginary mode" in printed


def test_imaginary_modes_are_told(tmp_path, capsys) -> None:
    config = phonons.PhononsConfig(
        "PbTiO3-cubic", ("perovskite",), tmp_path / "out", relax=False, mesh=(3, 3, 3), path="pto-test"
    )
    (result,) = phonons.run(config)
    printed = capsys.readouterr().out
    stored = json.loads((tmp_path / "out/phonons.json").read_text())["models"]["perovskite"]
    modes = {mode["point"]: mode for mode in stored["methods"]["displacement"]["imaginary_modes"]}
    # by the names of a tetragonal crystal, M and R are equivalent here, and A is what a cubic one calls R
    assert set(modes) == {"Γ", "M", "R", "A"}
    assert modes["M"]["frequency_THz"] == pytest.approx(modes["R"]["frequency_THz"], abs=1e-3)
    assert modes["Γ"]["polar"] is True
    assert np.shape(modes["Γ"]["eigenvectors"]["re"]) == (3, 5, 3)
    assert frequency_text(modes["Γ"]["frequency_THz"]) in printed
    thermal = result.calculations["displacement"].harmonic.thermal
    mesh = result.calculations["displacement"].phonon.mesh
    assert thermal.left_out == int((mesh.weights[:, None] * (mesh.frequencies < -0.01)).sum()) > 0
    assert f"({thermal.left_out} of {27 * 15}) on the mesh are imaginary and left out" in printed
    assert "as given, not relaxed: largest force" in printed
    assert stored["relaxed"] is False


def test_longitudinal_modes_split_off(tmp_path, both) -> None:
    """With Born charges: as in phonopy itself, given the same force constants."""
    (tmp_path / "BORN").write_text(BORN)
    structure = both[0] / "structure.extxyz"
    config = phonons.PhononsConfig(
        str(structure), ("perovskite",), tmp_path / "out", relax=False, mesh=(2, 2, 2), born=tmp_path / "BORN"
    )
    (result,) = phonons.run(config)
    plain = phonopy.load(both[0] / "displacement" / "phonopy_params.yaml", log_level=0)
    without = plain.run_qpoints([[1e-3, 0, 0]]).frequencies[0]
    plain.nac_params = parse_BORN(plain.primitive, filename=tmp_path / "BORN")
    harmonic = result.calculations["displacement"].harmonic
    segment = harmonic.bands.path.segments[0]
    expected = plain.run_qpoints(segment.points[1:4]).frequencies
    np.testing.assert_allclose(harmonic.bands.frequencies[0][1:4], expected, atol=1e-4)
    assert (expected[0] - without).max() > 1.0
    # at Γ itself the direction of the path counts: no jump along the segment
    np.testing.assert_allclose(harmonic.bands.frequencies[0][0][3:], expected[0][3:], atol=0.01)
    stored = json.loads((tmp_path / "out/phonons.json").read_text())["models"]["perovskite"]
    assert stored["methods"]["displacement"]["non_analytical_term"] is True


def test_symmetrized_force_constants(tmp_path, both) -> None:
    """The residual shown is that from before; afterwards there is none, and nothing else has moved much."""
    config = phonons.PhononsConfig(
        str(both[0] / "structure.extxyz"), ("perovskite",), tmp_path / "out", relax=False, mesh=(2, 2, 2),
        symmetrize=True,
    )  # fmt: skip
    (result,) = phonons.run(config)
    before, after = both[1].calculations["displacement"], result.calculations["displacement"]
    assert after.sum_rule == pytest.approx(before.sum_rule, rel=1e-3)
    assert sum_rule_residual(after.phonon, after.phonon.force_constants) < 1e-12 < before.sum_rule
    np.testing.assert_allclose(after.harmonic.points["Γ"][1][:3], 0.0, atol=1e-5)
    np.testing.assert_allclose(after.harmonic.points["X"][1], before.harmonic.points["X"][1], atol=0.01)


def test_wrapped_calculators(tmp_path) -> None:
    """Copper with ASE's EMT, against phonopy and EMT without anything of ours."""
    atoms = ase.build.bulk("Cu", "fcc", 3.59)
    ase.io.write(tmp_path / "copper.vasp", atoms)
    config = phonons.PhononsConfig(
        str(tmp_path / "copper.vasp"), ("ase:ase.calculators.emt:EMT",), tmp_path / "out", relax=False, mesh=(2, 2, 2)
    )
    (result,) = phonons.run(config)
    assert result.model == "ase_ase.calculators.emt_EMT"
    cell = PhonopyAtoms(numbers=atoms.numbers, cell=atoms.cell.array, positions=atoms.positions)
    reference = phonopy.Phonopy(cell, np.eye(3) * 2, primitive_matrix=np.eye(3))
    reference.generate_displacements(0.01, is_plusminus=True, is_diagonal=False)
    forces = []
    for supercell in reference.supercells_with_displacements:
        image = ase.Atoms(supercell.symbols, supercell.positions, cell=supercell.cell, pbc=True, calculator=EMT())
        forces.append(image.get_forces())
    reference.forces = forces
    reference.produce_force_constants()
    for _, (q, frequencies) in result.calculations["displacement"].harmonic.points.items():
        np.testing.assert_allclose(frequencies, reference.run_qpoints([q]).frequencies[0], atol=1e-3)


def test_models_of_other_symmetry_get_panels_of_their_own(both, inputs, tmp_path) -> None:
    """Curves over each other would put other points under the same name."""
    config = phonons.PhononsConfig(
        str(inputs / "argon.vasp"), (str(inputs / "soft"),), tmp_path / "out", relax=False, mesh=(2, 2, 2)
    )
    (argon,) = phonons.run(config)
    tetragonal = both[1].calculations["hessian"].harmonic
    cubic = argon.calculations["displacement"].harmonic
    figure = bands_figure(curves([("a", "m", tetragonal), ("b", "m", tetragonal), ("c", "m", cubic)]))
    assert len(figure.axes) == 2
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["Γ", "X", "M", "Γ", "Z", "R", "A", "Z|X", "R|M", "A"]
    assert len(figure.axes[0].lines) == 2 * 9 * 15 + 8 + 2  # bands, lines at points, zero, threshold


BAD = {
    "--supercell 0 1 1": "must be three counts of at least 1",
    "--distance 0": "must be above 0 and at most 0.5 A",
    "--mesh 4 4 0": "must be three counts of at least 1",
    "--temperatures -1": "must be 0 K or above",
    "--temperatures nan": "must be 0 K or above",
    "--batch 0": "must be at least 1 row",
    "--born nowhere": "nowhere does not exist",
    "--born model": "predicts no Born charges with a dielectric tensor; give a BORN file",
    "--path pto-test": "use --path auto",
    "--model nothing": "unknown model 'nothing'",
    "--model soft --model soft": "names one model twice",
    "--model ase:ase.calculators.emt:EMT --method hessian": "use --method displacement",
    "--out used": "is not empty; name a new folder",
    "--out BORN": "is a file; name a folder",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line(arguments: str, inputs, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("")
    (tmp_path / "BORN").write_text("")
    words = arguments.replace("--model soft --model soft", f"--model {inputs / 'soft'} {inputs / 'soft'}").split()
    if "--model" not in words:
        words += ["--model", str(inputs / "soft")]
    if "--out" not in words:
        words += ["--out", "new"]
    # EMT knows no argon, so that one is asked about copper
    ase.io.write(tmp_path / "copper.vasp", ase.build.bulk("Cu"))
    structure = "copper.vasp" if "emt" in arguments else str(inputs / "argon.vasp")
    assert phonons.main([structure, *words]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert BAD[arguments] in output.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ["", "14.4\n1 2 3\n", BORN + "1 0 0 0 1 0 0 0 1\n", BORN.replace("7.1", "a")])
def test_bad_born_files(content: str, tmp_path, capsys) -> None:
    (tmp_path / "BORN").write_text(content)
    words = ["PbTiO3-tetragonal", "--model", "perovskite", "--out", str(tmp_path / "new")]
    assert phonons.main([*words, "--born", str(tmp_path / "BORN")]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert "for this structure 4 lines of nine Born charges" in output.err
    assert not (tmp_path / "new").exists()
