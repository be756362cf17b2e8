"""Every page shows text as it is: names, formulas, statuses and reasons from files are no markup."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from test_report import CELLS, LADDER, Tags, a_run, record, store

from jaxpto import report
from jaxpto.console.terminal import console
from jaxpto.lattice_dynamics.figures import bands_figure, curves
from jaxpto.lattice_dynamics.harmonic import Bands, DensityOfStates, Harmonic, ThermalProperties
from jaxpto.lattice_dynamics.paths import BandPath, Segment
from jaxpto.observables.summary import ReplicaRecord, summarize
from jaxpto.pto import zero_kelvin_output
from jaxpto.reporting import page
from jaxpto.reporting.figures import png

EVIL = "<script>alert(1)</script>[/x][bold]&amp;\"'$x_{%"
PACKAGE = Path(__file__).parents[1] / "jaxpto"


def check(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;[/x][bold]&amp;amp;&quot;&#x27;$x_{%" in page


def of_status(status: str) -> ReplicaRecord:
    """A replica with a status that types forbid, and files do not."""
    one = record(300.0)
    object.__setattr__(one, "status", status)
    return one


@pytest.mark.parametrize(
    "section",
    [
        page.page(EVIL, []),
        page.result(EVIL, []),
        page.result("fine", [EVIL]),
        page.failure_section([of_status(EVIL)]),
        page.failure_section([dataclasses.replace(record(300.0), status="failed", reason=EVIL)]),
        page.warning_section([dataclasses.replace(summarize([LADDER[0]], CELLS, 0.3)[0], warnings=EVIL)]),
        page.summary_table([dataclasses.replace(summarize([LADDER[0]], CELLS, 0.3)[0], phase=EVIL)]),
        page.figure_section({EVIL: b""}),
        page.wide_figure(b"", EVIL),
        page.plain_table([EVIL], [["1"]]),
        page.plain_table([("a", EVIL)], [["1"]]),
        page.plain_table(["a"], [[EVIL]]),
        page.settings_section({EVIL: 1}),
        page.settings_section({"model": EVIL}),
        page.settings_section({EVIL: {"model": 1}}),
        page.settings_section({"config": {"model": [EVIL], EVIL: None}}),
    ],
)
def test_sections(section: str) -> None:
    check(section)


def test_report_of_a_sweep(tmp_path: Path) -> None:
    run = dataclasses.replace(a_run(LADDER), formula=EVIL, notes=(EVIL,))
    report.write_report(tmp_path, run, summarize(LADDER, CELLS, 0.3), {})
    check((tmp_path / "report.html").read_text())


def test_comparison_of_oddly_named_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(tmp_path / name) for name in ("[bold]a", "<script>alert(1)<", "$x_{%[")]
    for name in names:
        store(Path(name), LADDER)
        report.write_outputs(name, console())
        assert name in capsys.readouterr().out
    report.compare(names, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page


def test_table_at_zero_kelvin(tmp_path: Path) -> None:
    segment = Segment("Γ", "X", np.linspace([0.0, 0.0, 0.0], [0.5, 0.0, 0.0], 5))
    bands = Bands(BandPath((segment,)), [np.linspace(0.0, 1.0, 5)], [np.ones((5, 3))])
    result = zero_kelvin_output.ZeroKelvin(EVIL, 3.8, 4.1, 3.9, 0.1, 0.0, (EVIL,), True, (EVIL,), bands)
    terminal, out = console(), io.StringIO()
    terminal.file = out
    zero_kelvin_output.write_outputs([result], tmp_path, {EVIL: EVIL}, terminal)  # draws the name, too
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
    """Tags elsewhere would be escaped, or not, by whoever writes them."""
    allowed = {"report_html.py", "zero_kelvin_output.py", "report.py"}
    tags = re.compile(r"</?(p|td|tr|th|h[1-6]|div|table|figure|img|span|ul|li)\b[^>]*>")
    found = {path.name for path in PACKAGE.rglob("*.py") if tags.search(path.read_text())}
    assert found <= allowed
