"""The verdict of the PTO-test on made-up ladders: melted, supertetragonal, reversed, turning, never ordered."""

from __future__ import annotations

import dataclasses
import math

import pytest

from jaxpto.observables.summary import TemperatureSummary
from jaxpto.perovskite.literature import EXPERIMENTS
from jaxpto.pto import figures, paper
from jaxpto.pto.answers import Answer, Ladder, Loss
from jaxpto.pto.ground_state import Cells
from jaxpto.pto.output import headline, judgements, verdict_row
from jaxpto.pto.stages import SpeedPoint
from jaxpto.pto.verdict import bracket, collapse_of, loss_of, phases_of, polarization_at, transition_of

NUMBERS = {field.name: math.nan for field in dataclasses.fields(TemperatureSummary) if field.type == "float"}
WORDS = {"replica_phases": "", "polarity": "", "polar_axis": "c", "warnings": ""}
RATIOS = {"cubic": 1.0, "tetragonal": 1.06, "supertetragonal": 1.25}
MELTED = "molten: rms displacement above 0.5 of the nearest-neighbour distance"


def row(kelvin: float, phase: str) -> TemperatureSummary:
    """One temperature of a ladder at constant pressure, or "polar" and "nonpolar" of one in a held lattice."""
    lost = phase in ("molten", "failed")
    polarization = {"polar": 0.7, "nonpolar": 0.01}.get(phase, math.nan)
    ratio = RATIOS.get(phase, math.nan)
    known = {
        "temperature_K": kelvin, "pressure_GPa": 0.0, "tetragonality": ratio, "tetragonality_sem": 0.001,
        "a_plane": 3.9, "a_plane_std": 0.02, "c_polar": 3.9 * ratio, "c_polar_std": 0.03,
        "P": polarization, "P_sem": 0.002, "Pz": polarization, "Pz_std": 0.05,
    }  # fmt: skip
    held = phase in ("polar", "nonpolar")
    words = WORDS | {"status": phase if lost else "ok", "phase": "" if held else phase}
    words |= {"polarity": phase if held else ""}
    return TemperatureSummary(**NUMBERS | known | words, n_replicas=1, n_ok=0 if lost else 1)


def ladder(*phases: str, name: str = "npt-tetragonal", step: int = 4000) -> Ladder:
    """From 300 K on in steps of 100 K; those lost melt at a step."""
    rows = [row(300.0 + 100.0 * k, phase) for k, phase in enumerate(phases)]
    return Ladder(name, rows, [Loss(one.temperature_K, "molten", step, MELTED) for one in rows if one.n_ok == 0])


def answer(model: str, *npt: Ladder, nvt: Ladder | None = None) -> Answer:
    """Of a model, without phonons."""
    source = {"model": model, "source": "", "parameters": 1, "licence": ""}
    speed = [SpeedPoint(5, 1e-3, 3.0, 1.0, 100)]
    return Answer(model, source, "", Cells(3.85, 4.7, 3.95, 0.2, ()), None, list(npt), nvt, speed, {}, [])


COLLAPSING = ladder("supertetragonal", "supertetragonal", "molten", "molten")
MENDED = ladder("tetragonal", "tetragonal", "tetragonal", "cubic", "cubic")


def test_a_collapse_is_found_with_its_temperature_its_step_and_what_was_before() -> None:
    collapse = collapse_of(COLLAPSING)
    assert collapse is not None
    assert (collapse.lowest_K, collapse.before, collapse.first.step, collapse.survivors_above) == (
        500.0, "supertetragonal", 4000, (),
    )  # fmt: skip
    assert loss_of(COLLAPSING, timestep=2.0) == f"from 500 K, after 8 ps (step 4000): {MELTED}"
    assert phases_of(COLLAPSING) == "supertetragonal at 300 to 400 K, molten at 500 to 600 K"
    assert collapse_of(MENDED) is None
    assert loss_of(MENDED, timestep=2.0) == "none"


def test_a_temperature_that_survives_above_a_lost_one_is_told() -> None:
    collapse = collapse_of(ladder("tetragonal", "molten", "cubic"))
    assert collapse is not None
    assert collapse.survivors_above == (500.0,)
    assert loss_of(ladder("tetragonal", "molten", "cubic"), 2.0).endswith("; not at 500 K")


@pytest.mark.parametrize(
    ("phases", "spelled"),
    [
        (("tetragonal", "tetragonal", "cubic"), "450(50)"),
        (("tetragonal", "cubic", "tetragonal", "cubic"), "450(50), not monotonic"),  # a reverse transition
        (("tetragonal", "tetragonal"), "above 400"),
        (("cubic", "cubic"), "below 300"),
        (("cubic", "tetragonal"), "none"),
    ],
)
def test_transitions_are_spelled_with_the_step_of_the_ladder(phases: tuple[str, ...], spelled: str) -> None:
    assert bracket(transition_of(ladder(*phases).rows, "lattice")) == spelled


def test_a_ladder_without_a_crystal_has_no_transition() -> None:
    molten = ladder("molten", "molten")
    assert transition_of(molten.rows, "lattice") is None
    assert bracket(None) == ""
    assert headline([answer("m", molten)]) == "m: molten at 300 to 400 K."


def stands(model: str, *npt: Ladder, nvt: Ladder | None = None) -> dict[str, bool | None]:
    return {claim.paper: claim.stands for claim in judgements(answer(model, *npt, nvt=nvt))}


def held(polar: int, nonpolar: int) -> Ladder:
    return ladder(*["polar"] * polar, *["nonpolar"] * nonpolar, name="nvt")


def test_the_papers_findings_stand_or_fall() -> None:
    vanishing = "P vanishes near 1100 K in the experimental lattice"
    assert stands("chgnet-0.3.0", COLLAPSING, nvt=held(8, 3)) == {
        "collapses above a critical temperature": True, "supertetragonal at low temperature": True, vanishing: True,
    }  # fmt: skip
    assert stands("7net-l3i5", ladder("supertetragonal", "cubic"), nvt=held(3, 8)) == {
        "collapses above a critical temperature": False, "supertetragonal at low temperature": True,
        "does not become cubic": False, vanishing: False,
    }  # fmt: skip
    assert stands("chgnet-0.3.0") == dict.fromkeys(
        ["collapses above a critical temperature", "supertetragonal at low temperature", vanishing]
    )
    far = "P vanishes far below 1100 K in the experimental lattice"
    assert stands("gptff-v2", ladder("supertetragonal", "cubic"), nvt=held(3, 8)) == {
        "supertetragonal at low temperature": True, "becomes cubic": True, far: True,
    }  # fmt: skip
    assert stands("gptff-v2", COLLAPSING, nvt=held(11, 0))["keeps its crystal"] is False
    assert stands("gptff-v2", COLLAPSING, nvt=held(11, 0))[far] is False
    assert stands("unipero", MENDED)["becomes cubic near 603 K"] is True
    assert stands("unipero", ladder("tetragonal", "cubic"))["becomes cubic near 603 K"] is False
    assert judgements(answer("perovskite", MENDED)) == []


def test_every_model_of_the_table_has_findings() -> None:
    assert {row.name for row in paper.TABLE} == {one.name for one in paper.DYNAMICS}
    assert {one.name for one in paper.SOURCES} < {row.name for row in paper.TABLE}


def test_a_row_of_the_verdict() -> None:
    cubic_start = dataclasses.replace(ladder("tetragonal", "cubic", "cubic", "cubic", "cubic"), name="npt-cubic")
    found = verdict_row(answer("perovskite", MENDED, cubic_start, nvt=held(5, 6)))
    assert found["npt_transition"] == "550(50) from tetragonal; 350(50) from cubic"
    assert found["nvt_vanishing"] == "750(50)"
    assert found["nvt_polarization"] == "0.700(2)"
    assert found["agreement"] == ""
    assert verdict_row(answer("chgnet-0.3.0", COLLAPSING))["agreement"] == "2 of 2"
    assert polarization_at(held(1, 0), 999.0) == ""


def test_what_is_not_sure_is_said() -> None:
    """Flagged averages stand in the headline, relaxations that did not converge and failures in the verdict's line."""
    drifting = dataclasses.replace(
        MENDED, rows=[dataclasses.replace(MENDED.rows[0], warnings="a drifts"), *MENDED.rows[1:]]
    )
    found = answer("m", drifting)
    assert headline([found]) == "m: becomes cubic at 550(50) K; preliminary for m: averages are flagged."
    assert verdict_row(found)["flagged"] == "1 of 5"
    assert verdict_row(answer("m", MENDED))["flagged"] == "0 of 5"
    cells = Cells(3.85, 4.7, 3.95, 0.2, ("cubic phase relaxed to 1.0e-02 eV/A only: 500 steps",))
    spoilt = dataclasses.replace(found, remark="a deliberate error", cells=cells, failures={"phonons": "ValueError: x"})
    assert verdict_row(spoilt)["remark"] == (
        "a deliberate error; cubic phase relaxed to 1.0e-02 eV/A only: 500 steps; phonons failed: ValueError: x"
    )


def test_figures_show_every_model_and_mark_what_was_lost() -> None:
    answers = [answer("one", MENDED, nvt=held(8, 3)), answer("two $x$", COLLAPSING, nvt=held(2, 2))]
    figure = figures.npt_figure(answers, EXPERIMENTS["PbTiO3"])
    titles = [panel.get_title() for panel in figure.axes if panel.get_visible()]
    assert titles == ["one", "two $x$"]
    crosses = [line.get_xdata().tolist() for line in figure.axes[1].lines if line.get_marker() == "x"]
    assert crosses == [[500.0, 600.0]]
    filled = next(one for one in figure.axes[0].containers if one.get_label() == "c")
    assert filled[0].get_ydata()[0] == pytest.approx(3.9 * 1.06)
    polarized = figures.nvt_figure(answers)
    assert polarized.axes[0].containers[0][0].get_ydata()[0] == 0.7
    assert figures.speed_figure(answers).axes[0].lines[0].get_ydata()[0] == 1.0
    (ratio, _) = figures.cells_figure(answers).axes
    assert ratio.lines[0].get_xdata()[0] == pytest.approx(4.70 / 3.85)
