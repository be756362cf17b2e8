"""Every page shows text as it is: names, formulas, statuses and reasons from files are no markup."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from test_report import CELLS, LADDER, Tags, a_run, record, store

from jaxpto.console.terminal import console
from jaxpto.lattice_dynamics.figures import bands_figure, curves
from jaxpto.lattice_dynamics.harmonic import Bands, DensityOfStates, Harmonic, ThermalProperties
from jaxpto.lattice_dynamics.paths import BandPath, Segment
from jaxpto.observables.summary import ReplicaRecord, summarize
from jaxpto.pto import zero_kelvin_output
from jaxpto.reporting.columns import Column
from jaxpto.reporting.comparison import compare
from jaxpto.reporting.page import page
from jaxpto.reporting.sections import Finding, Items, Picture, ResultTable, Section, Settings
from jaxpto.reporting.stored_sweep import load_sweep
from jaxpto.reporting.style import png
from jaxpto.reporting.sweep_report import convergence, lost_replicas, summary_table, write_sweep_report

EVIL = "<script>alert(1)</script>[/x][bold]&amp;\"'$x_{%"
PACKAGE = Path(__file__).parents[1] / "jaxpto"


def check(text: str) -> None:
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;[/x][bold]&amp;amp;&quot;&#x27;$x_{%" in text


def of_status(status: str) -> ReplicaRecord:
    """A replica with a status that types forbid, and files do not."""
    one = record(300.0)
    object.__setattr__(one, "status", status)
    return one


WORDS, NUMBER = Column("x", "heading", words=True), Column("x", "heading")


@pytest.mark.parametrize(
    "sections",
    [
        [Finding(EVIL)],
        [Finding("fine", [EVIL])],
        lost_replicas([of_status(EVIL)]),
        lost_replicas([dataclasses.replace(record(300.0), status="failed", reason=EVIL)]),
        convergence([dataclasses.replace(summarize([LADDER[0]], CELLS, 0.3)[0], warnings=EVIL)]),
        [summary_table([dataclasses.replace(summarize([LADDER[0]], CELLS, 0.3)[0], phase=EVIL)])],
        [Picture(b"", EVIL)],
        [Picture(b"", EVIL, wide=False)],
        [Items(EVIL, "")],
        [Items("", EVIL)],
        [ResultTable([Column("x", EVIL)], [])],
        [ResultTable([Column("x", "a", EVIL)], [])],
        [ResultTable([WORDS], [{"x": EVIL}])],
        [ResultTable([NUMBER], [{"x": EVIL}])],
        [ResultTable([NUMBER], [], heading=EVIL)],
        [ResultTable([NUMBER], [], note=EVIL)],
        [Settings({}, EVIL)],
        [Settings({EVIL: 1})],
        [Settings({"model": EVIL})],
        [Settings({EVIL: {"model": 1}})],
        [Settings({"config": {"model": [EVIL], EVIL: None}})],
    ],
)
def test_sections(sections: list[Section]) -> None:
    check(page("title", sections))


def test_title() -> None:
    check(page(EVIL, []))


def test_report_of_a_sweep(tmp_path: Path) -> None:
    run = dataclasses.replace(a_run(LADDER), formula=EVIL, notes=(EVIL,))
    write_sweep_report(tmp_path, run, console(quiet=True))
    check((tmp_path / "report.html").read_text())


def test_comparison_of_oddly_named_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(tmp_path / name) for name in ("[bold]a", "<script>alert(1)<", "$x_{%[")]
    for name in names:
        store(Path(name), LADDER)
        write_sweep_report(name, load_sweep(name), console())
        assert name in capsys.readouterr().out
    compare(names, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;" in text


def test_table_at_zero_kelvin(tmp_path: Path) -> None:
    segment = Segment("Γ", "X", np.linspace([0.0, 0.0, 0.0], [0.5, 0.0, 0.0], 5))
    bands = Bands(BandPath((segment,)), [np.linspace(0.0, 1.0, 5)], [np.ones((5, 3))])
    result = zero_kelvin_output.ZeroKelvin(EVIL, 3.8, 4.1, 3.9, 0.1, 0.0, (EVIL,), True, (EVIL,), bands)
    terminal, out = console(), io.StringIO()
    terminal.file = out
    zero_kelvin_output.write_zero_kelvin([result], tmp_path, {EVIL: EVIL}, terminal)  # draws the name, too
    check((tmp_path / "report.html").read_text())
    assert out.getvalue().count(EVIL) >= 4


def test_model_names_in_the_figures_of_phonons() -> None:
    segment = Segment("Γ", "X", np.linspace([0.0, 0.0, 0.0], [0.5, 0.0, 0.0], 5))
    bands = Bands(BandPath((segment,)), [np.linspace(0.0, 1.0, 5)], [np.ones((5, 3))])
    density = DensityOfStates(np.linspace(0.0, 5.0, 5), np.ones(5))
    thermal = ThermalProperties(np.array([300.0]), np.ones(1), np.ones(1), np.ones(1), 0.1, (1, 1, 1), 0, 1.0, 3)
    harmonic = Harmonic({}, {}, bands, density, thermal, [])
    figure = bands_figure(curves([(EVIL, "displacement", harmonic)]))
    assert png(figure)  # drawn: a dollar sign begins no formula
    (text,) = figure.legends[0].get_texts()
    assert text.get_text() == EVIL


def test_pages_are_written_in_one_place() -> None:
    """Tags elsewhere would be escaped, or not, by whoever writes them; and what is written is not cut up again."""
    tags = re.compile(r"</?(p|td|tr|th|h[1-6]|div|table|figure|img|span|ul|li)\b[^>]*>")
    places = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert {path.name for path, text in places.items() if tags.search(text)} == {"page.py"}
    handlers = [text for path, text in places.items() if path.name == "page.py" or "reporting.page import" in text]
    assert len(handlers) == 3
    assert not [text for text in handlers if re.search(r"(?<!dataclasses)\.(replace|sub|format)\(", text)]
