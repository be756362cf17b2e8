"""Any ASE calculator as a potential, through a host callback: `ase:package.module:factory`.

The calculator runs in Python, one replica after the other, outside the compiled program. That is slow, but an
unconverted model still gets every integrator, barostat and output of the engine.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import threading
from typing import Any, ClassVar

import ase
import jax
import numpy as np
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from jaxtyping import Array, Float

from jaxpto.errors import InputError
from jaxpto.model_interface import Prediction
from jaxpto.neighbors import Neighbors
from jaxpto.potential import Potential
from jaxpto.system import System, to_ase

PREFIX = "ase:"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class HostCalculator:
    """A direct model that calls an ASE calculator on the host.

    Its text (`repr`), by which a run that goes on knows the model, is the same in every process.

    Attributes:
        calculator: any ASE calculator; a lock keeps concurrent devices from entering it together.
        origin: where it comes from, with its parameters.
        elements: all of them; the calculator itself refuses what it does not know (`probe` finds out early).
        cutoff: Angstrom; short, because the engine's neighbour list is not used.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = None
    usual_skin: ClassVar[float] = 0.3

    calculator: BaseCalculator = dataclasses.field(repr=False)
    origin: str = ""
    elements: tuple[int, ...] = tuple(range(1, 119))
    cutoff: float = 1.0
    _lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False)

    def predict(self, params: Any, system: System, neighbors: Neighbors) -> Prediction:
        """Energy, forces and stress of one system; stress is NaN where the calculator has none (see `probe`)."""
        dtype = system.positions.dtype
        shapes = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in ((), system.positions.shape, (3, 3)))
        return Prediction(*jax.pure_callback(self._on_host, shapes, system, vmap_method="sequential"))

    def energy(
        self, params: Any, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy of one system, eV; JAX cannot differentiate it."""
        return self.predict(params, system, neighbors).energy

    def _on_host(self, system: System) -> tuple[np.ndarray, ...]:
        atoms = to_ase(system)
        with self._lock:
            atoms.calc = self.calculator
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            try:
                stress = atoms.get_stress(voigt=False)
            except PropertyNotImplementedError:
                stress = np.full((3, 3), np.nan)
        dtype = np.asarray(system.positions).dtype
        return tuple(np.asarray(value, dtype) for value in (energy, forces, stress))


def load(name: str) -> Potential:
    """The potential behind `ase:package.module:factory`, where factory() returns an ASE calculator.

    Whether it is conservative is not known: most calculators are, and none says so.

    Raises:
        InputError: malformed name, module or factory that cannot be imported, or a factory that fails.
    """
    module_name, _, factory_name = name.removeprefix(PREFIX).partition(":")
    if not (module_name and factory_name):
        raise InputError(
            f"model '{name}' is incomplete; write ase:package.module:factory, e.g. ase:ase.calculators.emt:EMT"
        )
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"model '{name}': {error}; check the name and that the package is installed") from error
    try:
        calculator = factory()
    except Exception as error:  # a factory is foreign code: whatever it raises belongs to the name given
        raise InputError(
            f"model '{name}': {factory_name}() raised {type(error).__name__}: {_first_line(error)}"
        ) from error
    if not isinstance(calculator, BaseCalculator):
        raise InputError(
            f"model '{name}': {factory_name}() gave a {type(calculator).__name__}; it must return an ASE calculator"
        )
    _log.warning("%s runs in Python through a host callback, one replica after the other: expect it to be slow", name)
    parameters = getattr(calculator, "parameters", None) or {}
    plain = {key: value for key, value in sorted(parameters.items()) if isinstance(value, bool | int | float | str)}
    kind = type(calculator)
    origin = f"{name} {kind.__module__}.{kind.__qualname__} {plain}"
    return Potential({}, HostCalculator(calculator, origin), name)


def probe(model: HostCalculator, atoms: ase.Atoms, where: str, *, stress: bool) -> None:
    """Evaluate the structure once, before a simulation starts, to find out what the calculator cannot do.

    Args:
        model: the wrapped calculator.
        atoms: a structure to try.
        where: what to call the structure in the message.
        stress: whether the stress is needed.

    Raises:
        InputError: energy, forces or (if needed) stress are missing or not finite, or the structure is refused.
    """
    name = type(model.calculator).__name__
    trial = atoms.copy()
    trial.calc = model.calculator
    needed = {"energy": trial.get_potential_energy, "forces": trial.get_forces}
    if stress:
        needed["stress"] = trial.get_stress
    for quantity, get in needed.items():
        try:
            value = get()
        except Exception as error:  # foreign code again: the usual case is an element it has no parameters for
            if isinstance(error, PropertyNotImplementedError):
                remedy = "use the ensemble nvt" if quantity == "stress" else "use another calculator"
                raise InputError(f"{where}: ASE calculator {name} gives no {quantity}; {remedy}") from error
            raise InputError(
                f"{where}: ASE calculator {name} refuses it: {type(error).__name__}: {_first_line(error)}; "
                "use another model or structure"
            ) from error
        if not np.isfinite(value).all():
            raise InputError(
                f"{where}: ASE calculator {name} gives a {quantity} that is not finite; check the structure"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
