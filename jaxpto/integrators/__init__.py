"""Integrators: one method a file, each returning `Integrator(init, move, finish, invariant)`."""

from jaxpto.integrators.common import kinetic_energy, temperature, total_stress
from jaxpto.integrators.ensembles import ENSEMBLES, EnsembleName, IntegratorFacts
from jaxpto.integrators.external_stress import hydrostatic_stress
from jaxpto.integrators.npt_parrinello_rahman import npt_parrinello_rahman
from jaxpto.integrators.nve import nve
from jaxpto.integrators.nvt_langevin import nvt_langevin
from jaxpto.integrators.state import Integrator, MDState
from jaxpto.model_interface import EvaluateFn

__all__ = [
    "ENSEMBLES",
    "EnsembleName",
    "EvaluateFn",
    "Integrator",
    "IntegratorFacts",
    "MDState",
    "hydrostatic_stress",
    "kinetic_energy",
    "npt_parrinello_rahman",
    "nve",
    "nvt_langevin",
    "temperature",
    "total_stress",
]
