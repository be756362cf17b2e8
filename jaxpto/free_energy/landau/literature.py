"""The simulated crystal, and the published Landau coefficients to compare it with."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxpto.free_energy.landau.profile import landau_well


@dataclasses.dataclass(frozen=True)
class Subject:
    """What was simulated.

    Attributes:
        formula: of one formula unit.
        model: its name.
        units: formula units in the simulated cell.
        flexible: whether the cell was (npt).
    """

    formula: str
    model: str
    units: int
    flexible: bool

    @property
    def known(self) -> bool:
        """Whether there are published coefficients, which are those of a stress-free crystal."""
        return self.formula == "PbTiO3" and self.flexible


@dataclasses.dataclass(frozen=True)
class LandauCoefficients:
    """Published Landau coefficients: a1 = slope (T - origin), a11 and a111 independent of temperature.

    Attributes:
        source: authors and year.
        slope: J m / C^2 / K.
        origin: K.
        a11: J m^5 / C^4.
        a111: J m^9 / C^6.
    """

    source: str
    slope: float
    origin: float
    a11: float
    a111: float

    def at(self, kelvin: float) -> Float[np.ndarray, " 3"]:
        """a1, a11, a111 at a temperature."""
        return np.array([self.slope * (kelvin - self.origin), self.a11, self.a111])

    def wells(self, kelvin: Float[np.ndarray, " t"]) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
        """Spontaneous polarization (C/m^2) and barrier (J/m^3) at each temperature [t]."""
        with jax.enable_x64(True):
            found = jax.vmap(landau_well)(jnp.asarray(np.stack([self.at(float(t)) for t in kelvin])))
            place, height = jax.device_get(found)
        return place, height


# stress-free PbTiO3: M. J. Haun, E. Furman, S. J. Jang, H. A. McKinstry and L. E. Cross, J. Appl. Phys. 62, 3331 (1987)
LEAD_TITANATE = LandauCoefficients("Haun et al., 1987", slope=3.8e5, origin=479.0 + 273.15, a11=-7.3e7, a111=2.6e8)
