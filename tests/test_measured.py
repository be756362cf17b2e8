"""Observables of the caller: measured, stored, averaged and written out without a word about them anywhere else."""

import csv
import dataclasses
import json
import pathlib

import ase.build
import ase.io
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpto.errors import InputError
from jaxpto.md.config import SweepConfig
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.observables.further import FurtherSeries, further_averages
from jaxpto.observables.observable import Observable
from jaxpto.observables.statistics import combine, estimate
from jaxpto.reporting.stored_sweep import load_sweep, read_summary
from jaxpto.reporting.sweep_report import write_sweep_report
from jaxpto.storage.trajectory import Quantity, read_trajectory
from jaxpto.sweep import run
from jaxpto.units import spell_unit


def largest_force(state):
    return jnp.sqrt(jnp.max(jnp.sum(state.prediction.forces**2, axis=1)))


def centre(state, scale):
    return scale * state.system.positions.mean(axis=0)


FORCE = Observable("largest_force", (), "eV Angstrom-1", largest_force)
CENTRE = Observable("centre", (3,), "Angstrom", centre, (jnp.float32(2.0),))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> SweepConfig:
    folder = tmp_path_factory.mktemp("argon")
    ase.io.write(folder / "argon.vasp", ase.build.bulk("Ar", "fcc", a=5.3, cubic=True))
    save_potential(lennard_jones(["Ar"], [0.0103], [3.40], cutoff=6.0, onset=5.0), folder / "lj")
    return SweepConfig(
        str(folder / "argon.vasp"), str(folder / "lj"), supercell=(2, 2, 2), temperatures=(10.0, 20.0), replicas=2,
        steps=200, sample_every=5, timestep=4.0, mask="full", out=str(folder / "run"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(config) -> pathlib.Path:
    return run(config, (FORCE, CENTRE))


def test_trajectories_hold_them_with_unit_and_shape(folder):
    stored = read_trajectory(folder / "trajectories" / "10K_1.h5md").in_laboratory()
    assert (stored.units["largest_force"], stored.units["centre"]) == ("eV Angstrom-1", "Angstrom")
    assert stored.observables["largest_force"].shape == (41,)
    np.testing.assert_allclose(stored.observables["centre"], 2.0 * stored.positions.mean(axis=1), atol=1e-4)


def test_the_summary_averages_them(folder, config):
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    series = [read_trajectory(folder / "trajectories" / f"10K_{r}.h5md") for r in range(2)]
    first = np.searchsorted(series[0].time, config.equilibration * series[0].time[-1], side="right")
    found = combine([estimate(one.observables["largest_force"][first:].astype(np.float64)) for one in series])
    assert float(rows[0]["largest_force"]) == pytest.approx(found.mean, rel=1e-12)
    assert float(rows[0]["largest_force_error"]) == pytest.approx(found.sem, rel=1e-12)
    assert {"centre_x", "centre_y_error", "potential_energy", "kinetic_energy_error"} <= set(rows[0])
    assert float(rows[0]["largest_force"]) < float(rows[1]["largest_force"])
    assert json.loads((folder / "summary.json").read_text())[0]["largest_force"] == float(rows[0]["largest_force"])
    (row, _) = read_summary(folder)
    assert row.further["largest_force"][:2] == (float(rows[0]["largest_force"]), float(rows[0]["largest_force_error"]))
    page = (folder / "report.html").read_text()
    assert "largest force" in page
    assert "eV/A" in page


def test_thermo_csv_is_the_time_series_of_everything(folder):
    table = np.genfromtxt(folder / "thermo.csv", delimiter=",", names=True)
    header = (folder / "thermo.csv").read_text().partition("\n")[0].split(",")
    assert len(set(header)) == len(header)
    assert table.dtype.names[:4] == ("target_K", "replica", "step", "time_fs")
    wanted = {"largest_force_eV_per_A", "centre_z_A", "stress_xy_eV_per_A3", "volume_A3", "conserved_eV"}
    assert wanted <= set(table.dtype.names)
    assert not any("polarization" in name for name in table.dtype.names)  # argon has none
    assert len(table) == 4 * 41
    for kelvin, replica in ((10.0, 0), (20.0, 1)):
        mine = table[(table["target_K"] == kelvin) & (table["replica"] == replica)]
        stored = read_trajectory(folder / "trajectories" / f"{kelvin:g}K_{replica}.h5md")
        np.testing.assert_array_equal(mine["step"], stored.step)
        np.testing.assert_array_equal(mine["time_fs"], stored.time)
        for column, name, index in (
            ("largest_force_eV_per_A", "largest_force", ()),
            ("stress_xy_eV_per_A3", "stress", (0, 1)),
            ("centre_z_A", "centre", (2,)),
        ):
            np.testing.assert_array_equal(mine[column].astype(np.float32), stored.observables[name][:, *index])


def test_pandas_reads_thermo_csv(folder):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(folder / "thermo.csv")
    sizes = table.groupby(["target_K", "replica"]).size()
    assert sizes.to_dict() == {(kelvin, replica): 41 for kelvin in (10.0, 20.0) for replica in (0, 1)}
    assert not table.isna().any(axis=None)


def test_the_report_command_writes_thermo_csv_again(folder):
    from jaxpto.report import ReportConfig
    from jaxpto.report import run as report

    before = (folder / "thermo.csv").read_bytes()
    (folder / "thermo.csv").unlink()
    report(ReportConfig((str(folder),)))
    assert (folder / "thermo.csv").read_bytes() == before


def test_a_run_goes_on_with_its_own_observables_alone(folder, config):
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(InputError, match=r"begun with other observables \(centre\)"):
        run(again, (FORCE,))
    assert run(again, (FORCE, CENTRE)) == folder


@pytest.mark.parametrize("name", ["volume", "polarization", "position", "cell"])
def test_a_name_that_is_taken_is_refused(config, tmp_path, name):
    out = tmp_path / "new"
    with pytest.raises(InputError, match=f"observable {name}: a run records something of that name already"):
        run(dataclasses.replace(config, out=str(out)), (dataclasses.replace(FORCE, name=name),))
    assert not out.exists()


def test_what_no_replica_came_through_for_is_missing_not_zero(folder, tmp_path, config):
    """A temperature without survivors has empty cells in the columns that the others have."""
    sweep = load_sweep(folder)
    lost = [
        dataclasses.replace(one, status="molten", reason="molten") if one.temperature_K == 20.0 else one
        for one in sweep.records
    ]
    from rich.console import Console

    write_sweep_report(tmp_path, dataclasses.replace(sweep, records=lost), Console(quiet=True))
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["largest_force"] != ""
    assert rows[1]["largest_force"] == rows[1]["largest_force_error"] == ""


def test_averages_are_those_of_the_production_part():
    random = np.random.default_rng(0)
    series = [random.standard_normal(200) + shift for shift in (1.0, 3.0)]
    kept = [slice(50, None), slice(100, None)]
    found = further_averages([{"x": FurtherSeries(values, "K")} for values in series], kept)
    expected = combine([estimate(values[part]) for values, part in zip(series, kept, strict=True)])
    assert found == {"x": (expected.mean, expected.sem, "K")}
    assert further_averages([], []) == {}


def test_names_of_components_and_units():
    assert Quantity((), "K").components("t") == ["t"]
    assert Quantity((3,), "").components("v") == ["v_x", "v_y", "v_z"]
    assert Quantity((3, 3), "").components("s")[:4] == ["s_xx", "s_xy", "s_xz", "s_yx"]
    assert Quantity((2, 4), "").components("m")[4:6] == ["m_1_0", "m_1_1"]
    units = ("", "eV", "eV Angstrom-3", "Angstrom3", "C m-2", "Angstrom-1", "kg m2 s-2")
    assert [spell_unit(unit) for unit in units] == ["", "eV", "eV/A^3", "A^3", "C/m^2", "1/A", "kg m^2/s^2"]
