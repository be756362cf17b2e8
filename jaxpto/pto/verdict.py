"""The verdict on a model's dynamics: what its ladders say, and whether the paper says the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jaxpto.observables.summary import TemperatureSummary, transitions
from jaxpto.observables.transition import Transition, sequence
from jaxpto.pto.answers import Ladder, Loss
from jaxpto.pto.paper import NVT_VANISHING, Dynamics
from jaxpto.reporting.columns import uncertain
from jaxpto.units import spell_kelvin

LADDER_STEP = 100.0  # K: what the paper's ladder, and ours, can tell apart
FAR_BELOW = 200.0  # K below 1100 K that count as far


@dataclasses.dataclass(frozen=True)
class Collapse:
    """Where a ladder loses its crystal.

    Attributes:
        lowest_K: the lowest temperature at which no replica came through.
        first: the loss at that temperature that came first.
        survivors_above: temperatures above it at which some did.
        before: the phase at the highest temperature below it; "" where it is the lowest.
    """

    lowest_K: float
    first: Loss
    survivors_above: tuple[float, ...]
    before: str


def collapse_of(ladder: Ladder) -> Collapse | None:
    """Where a ladder loses its crystal, or None where every temperature keeps one."""
    gone = [row for row in ladder.rows if row.n_ok == 0]
    if not gone:
        return None
    lowest = min(row.temperature_K for row in gone)
    losses = [loss for loss in ladder.lost if loss.temperature_K == lowest]
    below = [row for row in ladder.rows if row.temperature_K < lowest and row.n_ok]
    return Collapse(
        lowest_K=lowest,
        first=min(losses, key=lambda loss: loss.step),
        survivors_above=tuple(row.temperature_K for row in ladder.rows if row.temperature_K > lowest and row.n_ok),
        before=below[-1].phase if below else "",
    )


def transition_of(rows: Sequence[TemperatureSummary], order_parameter: str) -> Transition | None:
    """The transition of a ladder by one order parameter, "lattice" or "polarization"; None where it does not apply."""
    return next((one for one in transitions(list(rows)) if one.order_parameter == order_parameter), None)


def bracket(transition: Transition | None) -> str:
    """A transition as "650(50)": middle of its bracket and half the width, or the statistical error if that is more.

    "above 1000" and "below 300" where the ladder shows one side only, "none" where the order of phases is no such one.
    """
    if transition is None:
        return ""
    if transition.temperature_K is None or transition.lower_K is None or transition.upper_K is None:
        if transition.lower_K is not None:
            return f"above {spell_kelvin(transition.lower_K)}"
        return "none" if transition.upper_K is None else f"below {spell_kelvin(transition.upper_K)}"
    half = 0.5 * (transition.upper_K - transition.lower_K)
    error = max(half, transition.statistical_error_K or 0.0)
    reverse = "" if transition.monotonic else ", not monotonic"
    return f"{transition.temperature_K:.0f}({error:.0f}){reverse}"


def phases_of(ladder: Ladder) -> str:
    """The phases along a ladder in words; what melted or failed among them."""
    return sequence([row.temperature_K for row in ladder.rows], [row.phase for row in ladder.rows])


def loss_of(ladder: Ladder, timestep: float) -> str:
    """Where and how a ladder is lost, in words; "none" where it is not.

    Args:
        ladder: any.
        timestep: fs.
    """
    collapse = collapse_of(ladder)
    if collapse is None:
        return "none" if not ladder.lost else f"{len(ladder.lost)} replicas, others at the same temperatures stay"
    first = collapse.first
    text = (
        f"from {spell_kelvin(collapse.lowest_K)} K, after {first.step * timestep / 1000.0:.3g} ps "
        f"(step {first.step}): {first.reason}"
    )
    if collapse.survivors_above:
        text += f"; not at {', '.join(map(spell_kelvin, collapse.survivors_above))} K"
    return text


def polarization_at(ladder: Ladder | None, kelvin: float) -> str:
    """|P| with its standard error at a temperature of a ladder, C/m^2; "" where there is none."""
    if ladder is None:
        return ""
    row = next((row for row in ladder.rows if row.temperature_K == kelvin), None)
    return "" if row is None or math.isnan(row.P) else uncertain(row.P, row.P_sem)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A finding of the paper, and what we see of it.

    Attributes:
        paper: the finding.
        ours: what we see.
        stands: whether it is the same; None where it was not tested.
    """

    paper: str
    ours: str
    stands: bool | None


def claims(paper: Dynamics, npt: Ladder | None, nvt: Ladder | None) -> list[Judgement]:
    """Every finding of the paper on a model beside what its ladders show.

    Args:
        paper: its findings.
        npt: ladder at constant pressure from the tetragonal cell, or None.
        nvt: ladder at the experimental lattice, or None.
    """
    return [*_claims_npt(paper, npt), *_claims_nvt(paper, nvt)]


def _claims_npt(paper: Dynamics, ladder: Ladder | None) -> list[Judgement]:
    found: list[Judgement] = []
    collapse = None if ladder is None else collapse_of(ladder)
    transition = None if ladder is None else transition_of(ladder.rows, "lattice")
    kept = [] if ladder is None else [row for row in ladder.rows if row.n_ok]

    def add(text: str, ours: str, stands: bool) -> None:
        found.append(Judgement(text, "not run" if ladder is None else ours, None if ladder is None else stands))

    if paper.collapses:
        highest = spell_kelvin(kept[-1].temperature_K) if kept else ""
        ours = f"none up to {highest} K" if collapse is None else f"from {spell_kelvin(collapse.lowest_K)} K"
        add("collapses above a critical temperature", ours, collapse is not None)
    elif ladder is not None and collapse is not None:
        add("keeps its crystal", f"lost from {spell_kelvin(collapse.lowest_K)} K", False)
    if paper.supertetragonal is not None:
        phase = kept[0].phase if kept else "none kept"
        wanted = "supertetragonal" if paper.supertetragonal else "tetragonal"
        ours = f"{phase} at {spell_kelvin(kept[0].temperature_K)} K" if kept else phase
        add(f"{wanted} at low temperature", ours, phase == wanted)
    if paper.becomes_cubic:
        where = None if transition is None else transition.temperature_K
        ours = "no transition" if where is None else f"cubic from {bracket(transition)} K"
        if paper.transition_K is None:
            add("becomes cubic", ours, where is not None)
        else:
            near = where is not None and abs(where - paper.transition_K) <= LADDER_STEP
            add(f"becomes cubic near {paper.transition_K:.0f} K", ours, near)
    elif ladder is not None and transition is not None and transition.temperature_K is not None:
        add("does not become cubic", f"cubic from {bracket(transition)} K", False)
    return found


def _claims_nvt(paper: Dynamics, ladder: Ladder | None) -> list[Judgement]:
    vanishing = paper.vanishing_K
    text = "P vanishes far below 1100 K" if vanishing is None else f"P vanishes near {vanishing:.0f} K"
    text += " in the experimental lattice"
    if ladder is None:
        return [Judgement(text, "not run", None)]
    transition = transition_of(ladder.rows, "polarization")
    if transition is not None and transition.temperature_K is not None:
        where = transition.temperature_K
        far = where < NVT_VANISHING - FAR_BELOW
        stands = far if vanishing is None else abs(where - vanishing) <= 1.5 * LADDER_STEP
        return [Judgement(text, f"at {bracket(transition)} K", stands)]
    if transition is not None and transition.upper_K is not None:
        return [Judgement(text, f"nonpolar from {spell_kelvin(transition.upper_K)} K", vanishing is None)]
    collapse = collapse_of(ladder)
    ours = "stays polar" if collapse is None else f"lost from {spell_kelvin(collapse.lowest_K)} K"
    return [Judgement(text, ours, False)]
