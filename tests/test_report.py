"""Summary files, figures and the web page of a sweep, from stored files and from synthetic records."""

import base64
import csv
import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ase
import matplotlib
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image
from rich.console import Console

from jaxpto import report
from jaxpto.errors import InputError
from jaxpto.observables.lattice import UnitCell
from jaxpto.observables.summary import ReplicaRecord, Status, summarize
from jaxpto.perovskite.literature import EXPERIMENTS
from jaxpto.reporting.columns import uncertain
from jaxpto.reporting.stored_sweep import StoredSweep, load_sweep, read_summary
from jaxpto.reporting.sweep_report import headline, sweep_pictures, write_sweep_report
from jaxpto.reporting.temperature_figures import Sweep, lattice_figure, polarization_figure
from jaxpto.storage.trajectory import Quantity, create_trajectory, write_frames
from jaxpto.system import from_ase

REPEATS = (1, 1, 2)
CELLS = UnitCell(np.diag(1.0 / np.array(REPEATS)), perovskite=True)


def record(
    kelvin: float, *, replica: int = 0, status: Status = "ok", polar: bool = True, transition: float = 600.0
) -> ReplicaRecord:
    """A replica that is tetragonal below `transition`; a molten one ends early."""
    frames = 60 if status == "ok" else 9
    random = np.random.default_rng(int(kelvin) + replica)
    ordered = kelvin < transition
    lengths = np.array([3.90, 3.90, 4.10] if ordered else [3.95, 3.95, 3.95])
    edges = (lengths[None, :] + 0.005 * random.standard_normal((frames, 3))) * np.array(REPEATS)[None, :]
    flat = np.zeros(frames)
    return ReplicaRecord(
        temperature_K=kelvin,
        pressure_GPa=0.0,
        replica=replica,
        status=status,
        reason="" if status == "ok" else "molten: rms <displacement> & more",
        step_failed=None if status == "ok" else 450,
        time_ps=0.1 * np.arange(frames),
        cell=np.stack([np.diag(e) for e in edges]),
        temperature=kelvin + random.standard_normal(frames),
        potential_energy=flat,
        kinetic_energy=flat,
        conserved=flat,
        stress=np.zeros((frames, 3, 3)),
        polarization=0.01 * random.standard_normal((frames, 3)) + [0.0, 0.0, 0.7 * ordered] if polar else None,
    )


def a_run(records: list[ReplicaRecord]) -> StoredSweep:
    settings = {"config": {"model": "toy", "structure": "start.vasp", "ensemble": "npt"}, "versions": {"jax": "1"}}
    return StoredSweep(records, CELLS, 10, 0.3, "PbTiO3", settings, ("a note",))


def store(folder: Path, records: list[ReplicaRecord], structure: str = "start.vasp") -> None:
    """The files that a finished sweep leaves behind."""
    (folder / "trajectories").mkdir(parents=True)
    fractions = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    atoms = ase.Atoms("PbTiO3", scaled_positions=fractions, cell=[3.95] * 3, pbc=True).repeat(REPEATS)
    scalars = ("temperature", "potential_energy", "kinetic_energy", "conserved")
    observables = {name: Quantity((), "") for name in scalars}
    observables |= {"stress": Quantity((3, 3), ""), "polarization": Quantity((3,), "")}
    entries = []
    for number, one in enumerate(records):
        path = folder / "trajectories" / f"{number}.h5md"
        frames = len(one.time_ps)
        create_trajectory(path, from_ase(atoms, np.float64), frames, observables)
        polar = np.full((frames, 3), np.nan) if one.polarization is None else one.polarization
        stored = {name: getattr(one, name) for name in scalars} | {"stress": one.stress, "polarization": polar}
        stored |= {"step": 50 * np.arange(frames), "time": 1000.0 * one.time_ps, "cell": one.cell}
        write_frames(path, 0, stored | {"position": np.repeat(atoms.positions[None], frames, axis=0)})
        entries.append(
            {name: getattr(one, name) for name in ("temperature_K", "status", "reason", "step_failed")}
            | {"trajectory": path.name}
        )
    config: dict[str, Any] = {"model": "toy", "structure": structure, "ensemble": "npt", "supercell": [9, 9, 9]}
    config |= {"pressure": 0.0, "stress": None, "equilibration": 0.3}
    (folder / "config.json").write_text(json.dumps({"config": config, "versions": {"jax": "1"}}))
    outcome = {"replicas": entries, "polarization_note": "", "seconds": 1.5}
    (folder / "outcome.json").write_text(json.dumps(outcome))


LADDER = [record(300.0), record(500.0), record(700.0), record(900.0, status="molten")]


class Tags(HTMLParser):
    """Checks that tags are closed in order; collects links out of the page."""

    void = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.void:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> list[str]:
    """The embedded images of a page that is well formed and needs no other file."""
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert all(link.startswith("data:image/png;base64,") for link in tags.links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    return tags.links


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "sweep"
    store(folder, LADDER)
    write_sweep_report(folder, load_sweep(folder), Console(quiet=True))
    return folder


def test_outputs_from_stored_files(sweep: Path) -> None:
    rows = json.loads((sweep / "summary.json").read_text())
    assert [row["temperature_K"] for row in rows] == [300.0, 500.0, 700.0, 900.0]
    assert [row["phase"] for row in rows] == ["tetragonal", "tetragonal", "cubic", "molten"]
    assert rows[0]["c"] == pytest.approx(4.10, abs=0.003)  # the repeats come from the structure, not from the settings
    assert rows[3]["c"] is None
    with (sweep / "summary.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["a"]) for line in table[:3]] == [row["a"] for row in rows[:3]]
    assert (table[3]["a"], table[3]["status"]) == ("", "molten")
    wanted = "temperature_K measured_temperature_K a b c a_std c_sem c_over_a volume Px Py Pz phase status n_replicas"
    assert set(wanted.split()) <= set(table[0])
    transition = json.loads((sweep / "transition.json").read_text())
    assert transition["formula"] == "PbTiO3"
    assert [found["temperature_K"] for found in transition["transitions"]] == [600.0, 600.0]


def test_page_tells_the_result_and_embeds_the_figures(sweep: Path) -> None:
    text = (sweep / "report.html").read_text()
    images = [base64.b64decode(link.split(",", 1)[1]) for link in check_page(text)]
    names = ("lattice.png", "polarization.png", "timeseries.png")
    assert images == [(sweep / name).read_bytes() for name in names]
    assert "PbTiO3 with toy, 10 atoms from start.vasp: tetragonal to cubic between 500 and 700 K" in text
    assert "1 of 4 replicas melted or failed, from 900 K on" in text
    assert "molten: rms &lt;displacement&gt; &amp; more" in text
    assert "450" in text


def test_summary_survives_the_disk(tmp_path: Path) -> None:
    rows = write_sweep_report(tmp_path, a_run(LADDER), Console(quiet=True))
    for stored, row in zip(read_summary(tmp_path), rows, strict=True):
        for name, value in dataclasses.asdict(row).items():
            found = getattr(stored, name)
            assert found == value or (math.isnan(found) and math.isnan(value)), name


def test_comparison_of_two_starts(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    store(other, [record(300.0, transition=400.0), record(500.0, transition=400.0)], "cubic.vasp")
    write_sweep_report(other, load_sweep(other), Console(quiet=True))
    report.run(report.ReportConfig((str(sweep), str(other)), str(tmp_path / "both")))
    text = (tmp_path / "both" / "report.html").read_text()
    assert len(check_page(text)) == 2
    assert "start: tetragonal to cubic between 500 and 700 K" in text
    assert "cubic: tetragonal to cubic between 300 and 500 K" in text
    assert (tmp_path / "both" / "lattice.png").stat().st_size > 10_000


def test_bad_input_is_one_line(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder given"):
        report.run(report.ReportConfig())
    with pytest.raises(InputError, match="no such folder"):
        report.run(report.ReportConfig((str(tmp_path / "nowhere"),)))
    with pytest.raises(InputError, match=r"config\.json"):
        report.run(report.ReportConfig((str(tmp_path),)))
    with pytest.raises(InputError, match="--out"):
        report.run(report.ReportConfig((str(sweep), str(sweep))))
    with pytest.raises(InputError, match="overwritten"):
        report.run(report.ReportConfig((str(sweep),), str(sweep)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        report.run(report.ReportConfig((str(tmp_path),)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="without its entry 'config'"):
        report.run(report.ReportConfig((str(tmp_path),)))
    (tmp_path / "config.json").write_text('{"config": {}}')
    with pytest.raises(InputError, match="has not finished"):
        report.run(report.ReportConfig((str(tmp_path),)))
    (tmp_path / "outcome.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        report.run(report.ReportConfig((str(tmp_path),)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "outcome.json"]


@pytest.mark.parametrize("temperatures", [1, 16])
def test_figures_of_ladders_of_any_length(temperatures: int) -> None:
    before = dict(matplotlib.rcParams)
    records = [record(300.0 + 50.0 * i, status="ok" if i < 14 else "molten") for i in range(temperatures)]
    images = sweep_pictures(a_run(records), summarize(records, CELLS, 0.3))
    assert list(images) == ["lattice.png", "polarization.png", "timeseries.png"]
    assert dict(matplotlib.rcParams) == before
    for image in images.values():
        opened = Image.open(io.BytesIO(image.image))
        assert opened.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert opened.width >= 900


def test_lattice_figure_shows_the_numbers_of_the_summary() -> None:
    rows = summarize(LADDER, CELLS, 0.3)
    figure = lattice_figure([Sweep("", rows)], EXPERIMENTS["PbTiO3"])
    (axes,) = figure.axes
    curves = {str(c.get_label()): c for c in axes.containers if isinstance(c, ErrorbarContainer)}
    np.testing.assert_allclose(np.asarray(curves["c"].lines[0].get_ydata()), [row.c_polar for row in rows])
    np.testing.assert_allclose(np.asarray(curves["a"].lines[0].get_ydata()), [row.a_plane for row in rows])
    assert curves["c"].lines[0].get_markerfacecolor() != "white"
    assert curves["a"].lines[0].get_markerfacecolor() == "white"
    (errors,) = curves["c"].lines[2]
    bars = errors.get_segments()
    assert bars[0][1][1] - bars[0][0][1] == pytest.approx(2 * rows[0].c_polar_std)
    assert [text.get_text() for text in axes.texts] == ["molten"]
    assert axes.get_ylabel() == "lattice parameter (Å)"


def test_no_polarization_no_figure() -> None:
    records = [record(300.0, polar=False)]
    assert polarization_figure([Sweep("", summarize(records, CELLS, 0.3))]) is None


def test_everything_failed() -> None:
    empty = {name: getattr(record(300.0), name)[:0] for name in ("time_ps", "cell", "temperature", "stress")}
    energies = dict.fromkeys(("potential_energy", "kinetic_energy", "conserved"), np.zeros(0))
    lost = dataclasses.replace(record(400.0, status="failed"), **empty, **energies, polarization=None)
    rows = summarize([lost], CELLS, 0.3)
    images = sweep_pictures(a_run([lost]), rows)
    assert set(images) == {"lattice.png", "timeseries.png"}
    assert "X: failed at 400 K; 1 of 1 replicas" in headline(rows, "X")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (4.08314, 0.00068, "4.0831(7)"),
        (4.08314, 0.0014, "4.0831(14)"),
        (4.08314, 0.00096, "4.0831(10)"),
        (299.71, 0.52, "299.7(5)"),
        (1234.5, 21.0, "1234(21)"),
        (3.9, math.nan, "3.9"),
        (math.nan, 0.1, "\N{EN DASH}"),
    ],
)
def test_uncertain_numbers(value: float, error: float, text: str) -> None:
    assert uncertain(value, error) == text
