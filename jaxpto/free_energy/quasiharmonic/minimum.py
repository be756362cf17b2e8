"""The minimum of a quasi-harmonic free energy, followed upwards in temperature as far as it exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxpto.free_energy.quasiharmonic.landscape import Evaluator, Point, UnstableError

TOLERANCE = 1e-7  # of dG/dx, eV
STEPS = 40
DIFFERENCES = (1e-4, 2e-5, 4e-6)  # in x, for second derivatives; the smaller ones where a jump is within the larger
JUMP = 0.02  # by which differences forwards and backwards differ, relative to the largest element, from which it is one
LARGEST_STEP = 0.01  # in x
HALVINGS = 4  # of an interval of temperature in which the minimum is lost


@dataclasses.dataclass(frozen=True)
class Equilibrium:
    """The minimum at one temperature, for the primitive cell.

    Attributes:
        temperature: K.
        point: the landscape there.
        curvature: [k, k] d2G/dx2, eV.
        expansion: [k] dx/dT, 1/K.
        strain_rate: [3, 3] h^-1 dh/dT, whose symmetric part is the thermal expansion tensor, 1/K.
        heat_capacity: Cp, at constant pressure within the coordinates, eV/K.
        jumps: whether dG/dx jumps beside the minimum, so that d2G/dx2, expansion and Cp hold between two jumps only.
    """

    temperature: float
    point: Point
    curvature: Float[np.ndarray, "k k"]
    expansion: Float[np.ndarray, " k"]
    strain_rate: Float[np.ndarray, "3 3"]
    heat_capacity: float
    jumps: bool


@dataclasses.dataclass(frozen=True)
class Lost:
    """Where the minimum ends.

    Attributes:
        last: highest temperature with a minimum, K; 0 if there is none.
        first: a higher temperature without one, K.
        reason: why there is none, in words.
    """

    last: float
    first: float
    reason: str


def follow(
    evaluator: Evaluator,
    temperatures: Sequence[float],
    known: Mapping[float, Equilibrium],
    on_step: Callable[[str], None] | None = None,
    on_found: Callable[[Equilibrium], None] | None = None,
) -> tuple[list[Equilibrium], Lost | None]:
    """Minima at ascending temperatures, each from the one before; the first from the static crystal.

    Where there is none, the interval of temperature is halved up to four times to bracket the loss of stability.

    Args:
        evaluator: evaluates the landscape.
        temperatures: ascending, K.
        known: minima at some of them, found earlier.
        on_step: called with a line about every evaluation.
        on_found: called with each new minimum.

    Returns:
        The minima up to the first temperature without one, and where they end; None if they do not.
    """
    say = on_step or (lambda line: None)
    found: list[Equilibrium] = []
    now: Equilibrium | None = None
    for temperature in temperatures:
        if temperature in known:
            now = known[temperature]
        else:
            now, lost = _advance(evaluator, now, temperature, say, HALVINGS)
            if lost is not None:
                return found, lost
            assert now is not None
            if on_found is not None:
                on_found(now)
        found.append(now)
    return found, None


def minimise(
    evaluator: Evaluator, temperature: float, before: Equilibrium | None, say: Callable[[str], None]
) -> Equilibrium:
    """The minimum at one temperature by Newton's method; the curvature is computed anew where convergence is slow.

    Raises:
        UnstableError: imaginary modes on the way, or no minimum.
    """
    size = evaluator.landscape.size
    if before is None:
        x, y, curvature = np.zeros(size), np.zeros(len(evaluator.landscape.shifts)), None
    else:
        x = before.point.x + before.expansion * (temperature - before.temperature)
        y, curvature = before.point.y, before.curvature
    point = evaluator(x, y, temperature)
    for step in range(STEPS):
        residual = np.abs(point.gradient).max(initial=0.0)
        say(f"{temperature:g} K: step {step}, |dG/dx| {residual:.1e} eV")
        if residual < TOLERANCE:
            return _equilibrium(evaluator, point, temperature)
        if curvature is None:
            curvature, _ = _curvature(evaluator, point, temperature)
        change = -np.linalg.solve(curvature, point.gradient)
        change *= min(1.0, LARGEST_STEP / np.abs(change).max())
        point = evaluator(point.x + change, point.y, temperature)
        if np.abs(point.gradient).max() > 0.3 * residual:
            curvature = None
    raise UnstableError("the free energy has no minimum over the cell that could be found")


def _advance(
    evaluator: Evaluator, now: Equilibrium | None, temperature: float, say: Callable[[str], None], halvings: int
) -> tuple[Equilibrium | None, Lost | None]:
    try:
        return minimise(evaluator, temperature, now, say), None
    except UnstableError as error:
        last = 0.0 if now is None else now.temperature
        if not halvings:
            return now, Lost(last, temperature, str(error))
    between, lost = _advance(evaluator, now, 0.5 * (last + temperature), say, halvings - 1)
    if lost is not None:
        return between, lost
    return _advance(evaluator, between, temperature, say, halvings - 1)


def _equilibrium(evaluator: Evaluator, point: Point, temperature: float) -> Equilibrium:
    terrain = evaluator.landscape
    curvature, jumps = _curvature(evaluator, point, temperature)
    point = evaluator(point.x, point.y, temperature, entropy_gradient=True)
    expansion = np.linalg.solve(curvature, point.entropy_gradient)
    growth = terrain.cell @ np.tensordot(expansion[: len(terrain.strains)], terrain.strains, 1)
    capacity = point.heat_capacity + temperature * float(point.entropy_gradient @ expansion)
    rate = np.linalg.solve(point.cell, growth)
    return Equilibrium(temperature, point, curvature, expansion, rate, capacity, jumps)


def _curvature(evaluator: Evaluator, point: Point, temperature: float) -> tuple[Float[np.ndarray, "k k"], bool]:
    """d2G/dx2 by central differences of the exact gradient, and whether one of them met a jump.

    Where the third derivatives of a model jump (at its cutoff, say) so does dG/dx, and a difference over such a place
    is off by the jump over the step. Differences forwards and backwards then differ, and a smaller step is taken.

    Raises:
        UnstableError: the curvature is not positive.
    """
    rows, jumps = [], False
    for direction in np.eye(len(point.x)):
        sides = np.zeros((2, len(point.x)))
        for step in DIFFERENCES:
            ends = [evaluator(point.x + sign * step * direction, point.y, temperature) for sign in (1.0, -1.0)]
            sides = np.array([(ends[0].gradient - point.gradient) / step, (point.gradient - ends[1].gradient) / step])
            if np.abs(sides[0] - sides[1]).max() <= JUMP * np.abs(sides).min(axis=0).max():
                rows.append(sides.mean(axis=0))
                break
            jumps = True
        else:  # a jump right here is on one side, and makes that one the larger
            rows.append(sides[np.abs(sides).max(axis=1).argmin()])
    curvature = np.array(rows).reshape(len(point.x), len(point.x))
    curvature = 0.5 * (curvature + curvature.T)
    if (np.linalg.eigvalsh(curvature) <= 0.0).any():
        raise UnstableError("the free energy is not at a minimum over the cell: its curvature is negative")
    return curvature, jumps
