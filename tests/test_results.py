"""The one writer of results: the same numbers in table, CSV, JSON and page, and a model's caveat on each."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from test_report import check_page

from jaxpto.console.terminal import console
from jaxpto.reporting.columns import MISSING, TEMPERATURE, Column, terminal_table
from jaxpto.reporting.result import Result, write_csv, write_result
from jaxpto.reporting.sections import Items, ResultTable, picture

ROWS: list[dict[str, Any]] = [
    {"temperature_K": 300.0, "energy_eV": -0.0123456, "energy_eV_error": 0.00012, "phase": "cubic", "samples": 12.4},
    {"temperature_K": 450.5, "energy_eV": math.nan, "energy_eV_error": math.nan, "phase": "molten", "samples": None},
]
COLUMNS = (
    TEMPERATURE,
    Column("energy_eV", "F", "meV", factor=1000.0),
    Column("phase", "phase", words=True),
    Column("samples", "samples", form=".0f"),
)
CAVEAT = "forces are not derivatives of its energy"


def printed(*objects: Any) -> str:
    terminal, out = console(), io.StringIO()
    terminal.file, terminal.width = out, 80
    for one in objects:
        terminal.print(one)
    return out.getvalue()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An output folder and what was printed."""
    out = tmp_path_factory.mktemp("result") / "new"
    result = Result(
        title="Energies",
        headline="It is cubic.",
        table=ResultTable(COLUMNS, ROWS),
        pictures={"energy.png": picture(Figure(), "Energy.")},
        settings={"model": "toy"},
        stem="energies",
        about={"formula": "PbTiO3"},
        remarks=["A remark."],
        notes=["A note."],
        caveat=CAVEAT,
        sections=[Items("Convergence", "With care:", ["450.5 K: molten"])],
    )
    terminal, said = console(), io.StringIO()
    terminal.file, terminal.width = said, 80
    write_result(out, result, terminal)
    return out, said.getvalue()


def test_files_hold_the_same_rows(written: tuple[Path, str]) -> None:
    out, _ = written
    assert {path.name for path in out.iterdir()} == {"energies.csv", "energies.json", "energy.png", "report.html"}
    with (out / "energies.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [list(line) for line in lines] == [list(ROWS[0])] * 2
    document = json.loads((out / "energies.json").read_text())
    assert document["formula"] == "PbTiO3"
    for line, row, given in zip(lines, document["rows"], ROWS, strict=True):
        for name, value in given.items():
            exists = value is not None and value == value
            assert row[name] == (value if exists else None)
            assert line[name] == (str(value) if exists else "")


def test_table_and_page_show_the_same_cells(written: tuple[Path, str]) -> None:
    out, said = written
    expected = [["300", "-12.35(12)", "cubic", "12"], ["450.5", MISSING, "molten", MISSING]]
    assert [line.split() for line in said.splitlines()[1:3]] == expected
    page = (out / "report.html").read_text()
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in re.findall(r"<tr>(.*?)</tr>", body)]
    assert cells == expected
    assert check_page(page)


def test_sentences(written: tuple[Path, str]) -> None:
    """The terminal leaves out notes; a model whose forces are no derivatives is told on both, and in the JSON file."""
    out, said = written
    caveat = f"The model's {CAVEAT}, which a simulation need not conserve."
    page = html.unescape((out / "report.html").read_text())
    for text in ("It is cubic.", "A remark.", caveat, "450.5 K: molten"):
        assert text in said
        assert text in page
    assert "A note." in page
    assert "A note." not in said
    assert json.loads((out / "energies.json").read_text())["settings"] == {
        "model": "toy",
        "caveat": f"the model's {CAVEAT}",
    }


def test_units_stand_below_headings_where_a_table_is_wide() -> None:
    narrow = printed(terminal_table(COLUMNS, ROWS)).splitlines()
    assert narrow[0].split() == ["T", "(K)", "F", "(meV)", "phase", "samples"]
    columns = [Column("x", f"energy {k}", "eV/f.u.", ".1f") for k in range(6)]
    wide = printed(terminal_table(columns, [{"x": 1.0}])).splitlines()
    assert wide[0].split() == " ".join(f"energy {k}" for k in range(6)).split()
    assert wide[1].split() == ["(eV/f.u.)"] * 6


def test_a_column_that_rows_do_not_have_is_an_error() -> None:
    with pytest.raises(KeyError):
        Column("enthalpy", "H").cell(ROWS[0])


def test_errors_of_either_name() -> None:
    assert Column("x", "x").cell({"x": 1.5, "x_sem": 0.02}) == "1.50(2)"
    assert Column("x", "x").cell({"x": 1.5, "x_error": 0.02}) == "1.50(2)"
    assert Column("x", "x").cell({"x": 1.5}) == "1.5"


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [{"x": 0.1 + 0.2, "name": "a, b"}])
    assert (tmp_path / "x.csv").read_text().splitlines() == ["x,name", '0.30000000000000004,"a, b"']
