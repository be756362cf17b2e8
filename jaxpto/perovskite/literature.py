"""Published numbers of perovskites to compare with."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A measured lattice and transition.

    Attributes:
        temperature_K: temperature of the lattice parameters.
        a, c: Angstrom.
        transition_K: tetragonal to cubic.
    """

    temperature_K: float
    a: float
    c: float
    transition_K: float


@dataclasses.dataclass(frozen=True)
class LandauCoefficients:
    """Coefficients of F = a1 P^2 + a11 P^4 + a111 P^6 with a1 = slope (T - origin), the others at all temperatures.

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


# room-temperature lattice and Curie point that the PTO-test compares with, by formula
EXPERIMENTS = {"PbTiO3": Experiment(temperature_K=298.0, a=3.904, c=4.152, transition_K=763.0)}

# stress-free crystals. PbTiO3: M. J. Haun, E. Furman, S. J. Jang, H. A. McKinstry and L. E. Cross,
# J. Appl. Phys. 62, 3331 (1987)
LANDAU = {"PbTiO3": LandauCoefficients("Haun et al., 1987", slope=3.8e5, origin=479.0 + 273.15, a11=-7.3e7, a111=2.6e8)}
