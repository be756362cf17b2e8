"""Errors of predictions against labels, as pure functions: their averages, the worst frames, and the figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.units import GPa
from matplotlib.figure import Figure
from test_report import check_page

from jaxpto.reporting.parity import ALL, Parity, Quantities, error_table, of_one_composition, worst_frames
from jaxpto.reporting.parity_figure import DRAWN, parity_figure, trajectory_colors
from jaxpto.reporting.style import png
from jaxpto.training.element_energies import composition_counts, fit_element_energies
from jaxpto.training.learning_curve import learning_curve
from jaxpto.training.output import write_training_report

NUMBERS = np.array([82, 22, 8, 8, 8])


def random_parity(name: str, count: int, seed: int) -> Parity:
    generator = np.random.default_rng(seed)

    def quantities() -> tuple[np.ndarray, ...]:
        virials, moments = generator.normal(size=(count, 3, 3)), np.full((count, 5), np.nan)
        forces = generator.normal(size=(count, 5, 3))
        return generator.normal(size=count), forces, virials + virials.swapaxes(1, 2), moments

    cells = 4.0 * np.eye(3) + 0.1 * generator.normal(size=(count, 3, 3))
    return of_one_composition(name, NUMBERS, cells, quantities(), quantities(), np.arange(count) + 100)


@pytest.fixture
def pair() -> list[Parity]:
    return [random_parity("PT-300K", 7, 0), random_parity("PT-900K", 4, 1)]


def test_averages(pair: list[Parity]) -> None:
    rows = error_table(pair)
    assert [row["trajectory"] for row in rows] == ["PT-300K", "PT-900K", ALL]
    assert [row["frames"] for row in rows] == [7, 4, 11]
    for row, members in zip(rows, ([pair[0]], [pair[1]], pair), strict=True):
        energy = np.concatenate([(p.predictions.energies - p.labels.energies) / 5 for p in members])
        forces = np.concatenate([(p.predictions.forces - p.labels.forces).ravel() for p in members])
        stress = np.concatenate(
            [((p.labels.virials - p.predictions.virials).reshape(-1, 9).T / p.volumes).T.ravel() for p in members]
        )
        assert row["energy_mean_error_meV_per_atom"] == pytest.approx(1e3 * energy.mean())
        assert row["energy_mae_meV_per_atom"] == pytest.approx(1e3 * np.abs(energy).mean())
        assert row["energy_rmse_meV_per_atom"] == pytest.approx(1e3 * np.linalg.norm(energy) / len(energy) ** 0.5)
        assert row["forces_rmse_meV_per_A"] == pytest.approx(1e3 * np.linalg.norm(forces) / len(forces) ** 0.5)
        assert row["forces_mae_meV_per_A"] == pytest.approx(1e3 * np.abs(forces).mean())
        assert row["stress_rmse_GPa"] == pytest.approx(np.linalg.norm(stress) / GPa / len(stress) ** 0.5)
        assert row["stress_mae_GPa"] == pytest.approx(np.abs(stress).mean() / GPa)


def test_stress_is_positive_in_tension_and_the_virial_its_opposite() -> None:
    cells = np.diag([2.0, 3.0, 4.0])[None]
    stress = np.zeros((1, 3, 3))
    stress[0, 0, 0] = 2.0 * GPa
    zero = np.zeros(1), np.zeros((1, 5, 3)), np.zeros((1, 3, 3)), np.zeros((1, 5))
    moments = np.array([[0.0, 0.0, 0.0, 0.3, 0.4]])
    parity = of_one_composition("x", NUMBERS, cells, zero, (*zero[:2], -24.0 * stress, moments))
    assert parity.stress_errors[0, 0, 0] == pytest.approx(2.0)
    (row,) = error_table([parity])
    assert row["stress_rmse_GPa"] == pytest.approx(2.0 / 3.0)
    assert row["virial_mae_meV_per_atom"] == pytest.approx(1e3 * 24.0 * 2.0 * GPa / 5 / 9)
    assert row["moments_mae_mu_B"] == pytest.approx(0.7 / 5)
    assert row["moments_rmse_mu_B"] == pytest.approx(0.05**0.5)
    assert [axes.get_title() for axes in parity_figure([parity]).axes][3] == "magnetic moments"


def test_missing_labels_are_left_out_of_the_averages(pair: list[Parity]) -> None:
    one = pair[0]
    energies, forces, virials = one.labels.energies.copy(), one.labels.forces.copy(), one.labels.virials.copy()
    energies[4], forces[5:15], virials[:] = np.nan, np.nan, np.nan
    labels = Quantities(energies, forces, virials, one.labels.moments)
    part = dataclasses.replace(one, name="part", labels=labels)
    (row,) = error_table([part])
    assert (row["frames"], row["energies"], row["forces"], row["stresses"]) == (7, 6, 5, 0)
    kept = np.delete(np.arange(35), np.arange(5, 15))
    assert row["forces_mae_meV_per_A"] == pytest.approx(1e3 * np.abs(one.force_errors[kept]).mean())
    assert row["energy_mae_meV_per_atom"] == pytest.approx(1e3 * np.abs(np.delete(one.energy_errors, 4)).mean())
    assert np.isnan(row["stress_rmse_GPa"])
    assert len(worst_frames([part], 20)) == 7
    nothing = Quantities(*(np.full(shape, np.nan) for shape in (7, (35, 3), (7, 3, 3), 35)))
    empty = dataclasses.replace(one, labels=nothing)
    assert worst_frames([empty]) == []
    assert isinstance(parity_figure([empty]), Figure)


def test_worst_frames_have_their_names(pair: list[Parity]) -> None:
    """Frames of different sizes: the atom counts from 0 in its own frame, the frame as in its file."""
    zeros = Quantities(np.zeros(3), np.zeros((6, 3)), np.zeros((3, 3, 3)), np.zeros(6))
    wrong = Quantities(np.array([0.0, 0.0, -0.04]), np.zeros((6, 3)), np.zeros((3, 3, 3)), np.zeros(6))
    wrong.forces[1] = [0.3, 0.0, -0.4]
    wrong.virials[0, 1, 2] = wrong.virials[0, 2, 1] = 8.0 * GPa
    one = Parity(
        "mixed", np.array([4, 7, 9]), np.array([1, 2, 3]), np.array([18, 36, 18, 36, 36, 18]), np.full(3, 8.0), zeros,
        wrong,
    )  # fmt: skip
    found = {row["frame"]: row for row in worst_frames([one], 3)}
    assert set(found) == {"mixed frame 4", "mixed frame 7", "mixed frame 9"}
    assert found["mixed frame 7"]["largest_force_error_meV_per_A"] == pytest.approx(500.0)
    assert (found["mixed frame 7"]["on_atom"], found["mixed frame 7"]["atom"]) == ("Kr 0", 0)
    assert found["mixed frame 9"]["energy_error_meV_per_atom"] == pytest.approx(-40.0 / 3)
    assert found["mixed frame 4"]["stress_error_GPa"] == pytest.approx(1.0)
    pair[1].predictions.energies[2] += 100.0
    assert worst_frames(pair, 1)[0]["frame"] == "PT-900K frame 102"
    assert len(worst_frames(pair)) == 10


def test_figure_shows_the_errors_of_the_table_and_the_outliers() -> None:
    """Of more points than are drawn the farthest is there, and the numbers are those of all points."""
    count = DRAWN // 5
    parity = random_parity("long", count, 2)
    parity.predictions.forces[777::3000, 1] = np.arange(50.0, 57.0)
    figure = parity_figure([parity])
    (row,) = error_table([parity])
    texts = [axes.texts[0].get_text() for axes in figure.axes]
    assert f"RMSE {row['energy_rmse_meV_per_atom']:.3g} meV/atom" in texts[0]
    assert f"RMSE {row['forces_rmse_meV_per_A']:.0f} meV/Å\n" in texts[1]
    assert f"MAE {row['stress_mae_GPa']:.3g} GPa\n{9 * count} points" in texts[2]
    drawn = np.asarray(figure.axes[1].collections[0].get_offsets())
    assert len(drawn) <= DRAWN < 15 * count
    assert set(np.arange(50.0, 57.0)) <= set(drawn[:, 1])
    for axes in figure.axes:
        assert axes.get_xlim() == axes.get_ylim()


def test_trajectories_have_different_colors(tmp_path: Path) -> None:
    for count in (1, 7, 28):
        assert len(set(trajectory_colors(count))) == count
    many = [random_parity(f"trajectory-{k}", 3, k) for k in range(28)]
    many[3] = dataclasses.replace(many[3], name="$x_{%$")  # no formula
    (legend,) = parity_figure(many).legends
    assert [text.get_text() for text in legend.get_texts()] == [parity.name for parity in many]
    assert png(parity_figure(many)).startswith(b"\x89PNG")


def test_energies_of_elements() -> None:
    frames = [ase.Atoms(formula).numbers for formula in ("PbTiO3", "PbTiO3", "BaTiO3", "BaTiO3", "SrTiO3")]
    elements = (8, 22, 38, 56, 82)
    counts = composition_counts(frames, elements)
    np.testing.assert_array_equal(counts[0], [3, 1, 0, 0, 1])
    energies = counts @ np.array([-400.0, -1500.0, -900.0, -700.0, -3000.0]) + np.array([0.3, -0.3, 0.1, -0.1, 5.0])
    fitted, exact = fit_element_energies(counts, energies)
    np.testing.assert_allclose(energies - counts @ fitted, [0.3, -0.3, 0.1, -0.1, 0.0], atol=1e-9)
    assert exact.tolist() == [False, False, False, False, True]  # the only one with Sr
    energies[1] = np.nan
    assert fit_element_energies(counts, energies)[1].tolist() == [True, False, False, False, True]


def validation(step: int, size: float) -> dict:
    errors = {"energy": 0.5 * size, "forces": 20.0 * size, "virial": None}
    return {
        "step": step, "seconds": 0.1 * step, "loss": size, "energy": size, "forces": 30.0 * size, "virial": np.nan,
        "learning_rate": 1e-3 * size, "validation": {"PT-300K": errors, "PT-900K": errors | {"virial": 2.0 * size}},
    }  # fmt: skip


def test_learning_curve(tmp_path: Path) -> None:
    rows = [validation(step, 1000.0 / step) for step in (1000, 2000, 3000)]
    figure = learning_curve(rows)
    energy, forces, virial = figure.axes[:3]
    lines = {line.get_label(): line for line in forces.get_lines()}
    assert list(lines) == ["training (running)", "PT-300K", "PT-900K"]
    np.testing.assert_allclose(lines["training (running)"].get_ydata(), [30.0, 15.0, 10.0])
    np.testing.assert_allclose(lines["PT-900K"].get_ydata(), [20.0, 10.0, 20.0 / 3])
    assert {axes.get_yscale() for axes in (energy, forces, virial)} == {"log"}
    magnetic = learning_curve([row | {"moments": 90.0} for row in rows]).axes[3]
    np.testing.assert_array_equal(magnetic.get_lines()[0].get_ydata(), [90.0] * 3)
    assert png(learning_curve(rows[:1])).startswith(b"\x89PNG")


def test_report_of_a_training(tmp_path: Path, pair: list[Parity]) -> None:
    rows = [validation(step, 1000.0 / step) for step in (1000, 2000)]
    write_training_report(tmp_path, rows, pair, {"steps": 2000, "weights": {"energy": 1.0}}, {"frames": 440})
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html", "learning_curve.png", "learning_curve.csv", "learning_curve.json", "parity.png",
    }  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert len(check_page(page)) == 2
    for text in (
        worst_frames(pair)[0]["frame"],
        "PT-900K",
        "frames",
        "440",
        "versions",
        "weights",
        "2000 steps in 3 min",
    ):
        assert text in page
    document = json.loads((tmp_path / "learning_curve.json").read_text())
    assert [row["PT-900K forces"] for row in document["rows"]] == [20.0, 10.0]
    assert document["errors"][-1]["forces_rmse_meV_per_A"] == error_table(pair)[-1]["forces_rmse_meV_per_A"]
    alone = tmp_path / "alone"
    write_training_report(alone, rows, [], {}, {})
    assert "No frames were held out" in (alone / "report.html").read_text()
    assert {path.name for path in alone.iterdir()} == {
        "report.html", "learning_curve.png", "learning_curve.csv", "learning_curve.json",
    }  # fmt: skip
