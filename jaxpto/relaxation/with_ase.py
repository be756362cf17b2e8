"""Relaxation of one structure by ASE's optimizers: the protocol of the PTO-test paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE

from jaxpto.errors import InputError, is_interrupt
from jaxpto.relaxation.target import (
    NOT_FINITE,
    History,
    Relaxed,
    Target,
    check_start,
    measures,
    stress_of,
    with_results,
)

_OPTIMIZERS = {"bfgs": BFGS, "fire": FIRE}


def relax_with_ase(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    target: Target,
    optimizer: Literal["bfgs", "fire"] = "bfgs",
    on_step: Callable[[int, float], None] | None = None,
) -> Relaxed:
    """Relax one structure with ASE's BFGS or FIRE, its cell through ASE's FrechetCellFilter.

    Args:
        atoms: the start; it is left as it is.
        calculator: any ASE calculator.
        target: when the structure counts as relaxed.
        optimizer: "bfgs" (as in the paper) or "fire".
        on_step: called with the number of steps done and the residual, eV/Angstrom.

    Returns:
        The structure at which the residual fell below `target.fmax`, or the last one that could be evaluated, with the
        reason why the relaxation ended.

    Raises:
        InputError: `check_start` or the calculator refuses the structure, or a cell cannot be relaxed without a stress.
    """
    check_start(atoms)
    moving = atoms.copy()
    moving.calc = calculator
    moving.get_potential_energy()
    if target.mask != "fixed" and stress_of(moving) is None:
        raise InputError(f"{type(calculator).__name__} gives no stress, so the cell cannot move; use the mask fixed")
    free = _free_coordinates(moving, target)
    rows, last, converged, reason = [], moving, False, ""
    with _OPTIMIZERS[optimizer](free, logfile=None) as driver:  # ty: ignore[invalid-argument-type]
        walk = driver.irun(target.fmax, target.steps)
        while not reason:
            try:
                converged = bool(next(walk))
            except StopIteration:
                break
            except (ValueError, RuntimeError) as error:  # atoms on top of each other, a Hessian of NaN, ...
                if is_interrupt(error):
                    raise KeyboardInterrupt from error
                reason = f"a step led nowhere: {_in_one_line(error)}"
                break
            energy, forces, stress = moving.get_potential_energy(), moving.get_forces(), stress_of(moving)
            residual = float(np.linalg.norm(free.get_forces(), axis=1).max())
            rows.append((energy, residual, *measures(forces, stress, target), moving.get_volume()))
            last = with_results(moving, energy, forces, stress)
            if on_step is not None:
                on_step(len(rows) - 1, residual)
            if not np.isfinite(rows[-1][:3]).all():
                reason = NOT_FINITE
    if not converged and not reason:
        reason = f"{target.steps} steps done"
    history = History(*np.asarray(rows, np.float64).T)
    return Relaxed(last, converged, len(rows) - 1, reason, history, target.pressure)


def _in_one_line(error: Exception) -> str:
    """The message in one line; an error from a host callback carries a whole traceback, whose last line is taken."""
    lines = str(error).split("\n")
    return " ".join((lines[-1] if any("Traceback" in line for line in lines) else str(error)).split())


class _CellFilter(FrechetCellFilter):
    """ASE's filter with forces computed once for each structure; ASE's optimizers ask three times in every step."""

    def __init__(self, atoms: ase.Atoms, mask: list[bool] | None, isotropic: bool, pressure: float) -> None:
        super().__init__(atoms, mask=mask, hydrostatic_strain=isotropic, scalar_pressure=pressure)
        self._known: tuple[np.ndarray, np.ndarray] | None = None

    def get_forces(self) -> np.ndarray:  # ty: ignore[incompatible-method-override]
        place = np.concatenate([self.atoms.positions, self.atoms.cell.array])
        if self._known is None or not np.array_equal(place, self._known[0]):
            self._known = place, super().get_forces()
        return self._known[1]


def _free_coordinates(atoms: ase.Atoms, target: Target) -> ase.Atoms | FrechetCellFilter:
    if target.mask == "fixed":
        return atoms
    mask = [True, True, True, False, False, False] if target.mask == "diag" else None
    return _CellFilter(atoms, mask, target.mask == "iso", target.external_pressure)
