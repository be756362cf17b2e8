"""The paper's table and figure at 0 K: what is computed, kept, marked and refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from jaxpto import report
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.pto import paper, zero_kelvin_output
from jaxpto.pto.zero_kelvin import main
from jaxpto.storage import files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """With phonons of the 5-atom cell, for speed."""
    out = tmp_path_factory.mktemp("pto") / "0k"
    assert main(["--models", "perovskite", "--supercell", "1", "1", "1", "--out", str(out)]) == 0
    return out


def test_table_of_the_shipped_model(folder: pathlib.Path) -> None:
    """The physics that the model's card promises."""
    (row,) = json.loads((folder / "table2.json").read_text())
    assert 3.86 <= row["a_A"] <= 3.90
    assert 4.14 <= row["c_A"] <= 4.24
    assert 3.91 <= row["cubic_a_A"] <= 3.94
    assert 0.070 <= row["dE_eV"] <= 0.100
    assert row["paper_a_A"] == ""
    with (folder / "table2.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert line == {key: str(value) for key, value in row.items()}
    assert (folder / "bands.png").stat().st_size > 10_000
    page = (folder / "report.html").read_text()
    assert "perovskite" in page
    assert "(4.73)" in page  # PBE


def test_a_model_is_computed_once(folder: pathlib.Path) -> None:
    stored = folder / "models" / "perovskite" / "pto-0k.json"
    document = json.loads(stored.read_text())
    document["result"]["c"] = 5.01
    files.write_json_atomic(stored, document)
    assert main(["--models", "perovskite", "--supercell", "1", "1", "1", "--out", str(folder)]) == 0
    assert json.loads((folder / "table2.json").read_text())[0]["c_A"] == 5.01


def test_other_settings_and_damage_are_refused(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", "perovskite", "--supercell", "2", "1", "1", "--out", str(folder)]) == 2
    assert "was made with 1 1 1" in capsys.readouterr().err
    stored = folder / "models" / "perovskite" / "pto-0k.json"
    stored.write_text("{}")
    assert main(["--models", "perovskite", "--supercell", "1", "1", "1", "--out", str(folder)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_unknown_models_and_those_without_the_elements(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path))
    save_potential(lennard_jones(["Ar"], [0.0104], [3.4], 8.0, 7.0), tmp_path / "argon", {})
    assert main(["--models", "argon", "--out", str(tmp_path / "out")]) == 2
    assert "Pb" in capsys.readouterr().err
    assert main(["--models", "nothing", "--out", str(tmp_path / "out")]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_report_hands_over(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["report", "pto-0k", "--help"])
    assert report.main() == 0
    assert "--supercell" in capsys.readouterr().out


def test_rows_of_the_paper() -> None:
    assert paper.row_of("7net-l3i5").name == "SevenNet"
    assert paper.row_of("gptff-v1-no-self-images").name == "GPTFF"
    assert paper.row_of("perovskite") is None
    assert paper.row_of("7net-0") is None
    for row in paper.TABLE + paper.REFERENCES:
        assert abs(row.c / row.a - row.c_over_a) < 0.011  # two digits each


@pytest.mark.parametrize(
    ("ours", "expected"), [(5.012, "5.012 (5.01)"), (5.03, "5.030* (5.01)"), (4.99, "4.990* (5.01)")]
)
def test_marks(ours: float, expected: str) -> None:
    assert zero_kelvin_output.beside(ours, 5.01, 0.01) == expected


def test_dips_between_the_points_are_told() -> None:
    from jaxpto.lattice_dynamics.harmonic import Bands
    from jaxpto.lattice_dynamics.paths import BandPath, Segment

    ends = {"Γ": [0.0, 0.0, 0.0], "X": [0.5, 0.0, 0.0], "M": [0.5, 0.5, 0.0]}
    segments = tuple(Segment(a, b, np.linspace(ends[a], ends[b], 5)) for a, b in ("ΓX", "XM", "MΓ"))
    values = [0, -0.72, -0.1, 1, 2], [2, 1, -0.04, 1, -2], [-2, 1, 1, -0.06, 0]
    along = [np.array(part)[:, None] for part in values]
    bands = Bands(BandPath(segments), [np.linspace(k, k + 1, 5) for k in range(3)], along)
    found = bands.dips()
    assert [(dip.stretch, dip.frequency) for dip in found] == [("Γ-X", -0.72), ("M-Γ", -0.06)]  # not at M itself
    assert found[0].q == (0.125, 0.0, 0.0)
    result = zero_kelvin_output.ZeroKelvin("m", 3.8, 4.1, 3.9, 0.1, -2.0, (), True, (), bands)
    row = zero_kelvin_output.table_row(result)
    assert [column.cell(row) for column in zero_kelvin_output.COLUMNS[-2:]] == ["none", "0.72i, Γ-X"]
    assert zero_kelvin_output.numbers(result)["imaginary_between"] == "Γ-X 0.72i; M-Γ 0.06i"
    (panel,) = zero_kelvin_output.bands_by_model({"m": result.bands}).axes
    assert "imaginary: below \N{MINUS SIGN}0.05 THz" in [text.get_text() for text in panel.texts]
    assert -0.05 in [line.get_ydata()[0] for line in panel.lines]


def test_figure_has_a_panel_for_each_model(folder: pathlib.Path) -> None:
    from jaxpto.lattice_dynamics.harmonic import Bands
    from jaxpto.lattice_dynamics.paths import BandPath, Segment

    points = np.linspace([0.0, 0.0, 0.0], [0.5, 0.0, 0.0], 5)
    bands = Bands(BandPath((Segment("Γ", "X", points),)), [np.linspace(0.0, 1.0, 5)], [np.ones((5, 3))])
    unstable = dataclasses.replace(bands, frequencies=[-3.0 * np.ones((5, 3))])
    figure = zero_kelvin_output.bands_by_model({"k": bands, "l": unstable, "m": bands, "n": bands})
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 4
    assert {axes.get_ylim() for axes in panels} == {panels[0].get_ylim()}
    assert panels[0].get_ylim()[0] < -3.0
