"""The ensembles that a simulation can be asked for: the integrator of each, and what a caller must know about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from jaxpto.integrators.npt_parrinello_rahman import npt_parrinello_rahman
from jaxpto.integrators.nve import nve
from jaxpto.integrators.nvt_langevin import nvt_langevin
from jaxpto.integrators.state import Integrator

EnsembleName = Literal["npt", "nvt", "nve"]


@dataclasses.dataclass(frozen=True)
class IntegratorFacts:
    """What a caller must know about an integrator.

    Attributes:
        make: (evaluate, timestep_fs, further settings) -> `Integrator`.
        settings: keyword of `make` -> name of the setting of a simulation that it takes.
        flexible_cell: whether the cell moves; the stress is needed then, and `init` takes an external stress after kT.
        momentum_at_rest: whether the total momentum is zero and stays so, which needs two atoms at least.
    """

    make: Callable[..., Integrator]
    settings: Mapping[str, str]
    flexible_cell: bool
    momentum_at_rest: bool

    def degrees_of_freedom(self, n: int) -> int:
        """Thermal momenta of n atoms, which the bath of a state counts too: 3n, or 3n - 3 at zero total momentum."""
        return 3 * n - 3 if self.momentum_at_rest else 3 * n


ENSEMBLES: dict[EnsembleName, IntegratorFacts] = {
    "npt": IntegratorFacts(
        npt_parrinello_rahman,
        {
            "stress_measure": "stress_measure",
            "mask": "mask",
            "thermostat_time_fs": "thermostat_time",
            "barostat_time_fs": "barostat_time",
            "pfactor": "pfactor",
        },
        flexible_cell=True,
        momentum_at_rest=True,
    ),
    "nvt": IntegratorFacts(nvt_langevin, {"friction_per_fs": "friction"}, flexible_cell=False, momentum_at_rest=False),
    "nve": IntegratorFacts(nve, {}, flexible_cell=False, momentum_at_rest=True),
}
