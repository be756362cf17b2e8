"""Numbers of the PTO-test (J. Phys. Chem. C, doi 10.1021/acs.jpcc.5c07541), Table 2: PbTiO3 at 0 K."""

from __future__ import annotations

import dataclasses

LENGTH_DIGIT, RATIO_DIGIT, ENERGY_DIGIT = 0.01, 0.01, 0.01  # the last digits that the paper prints


@dataclasses.dataclass(frozen=True)
class GroundState:
    """A row of the table.

    Attributes:
        name: as the paper has it.
        a, c: relaxed tetragonal cell, Angstrom.
        c_over_a: as printed there.
        energy_difference: cubic minus tetragonal, eV per formula unit; None where the paper has none.
    """

    name: str
    a: float
    c: float
    c_over_a: float
    energy_difference: float | None


TABLE = (
    GroundState("CHGNet", 3.80, 5.01, 1.32, 0.24),
    GroundState("GPTFF", 3.79, 4.88, 1.29, 0.25),
    GroundState("M3GNet", 3.80, 4.92, 1.30, 0.16),
    GroundState("MACE", 3.84, 4.83, 1.26, 0.19),
    GroundState("ORB", 3.83, 4.87, 1.27, 0.21),
    GroundState("SevenNet", 3.84, 4.79, 1.25, 0.21),
    GroundState("MACE-FT", 3.89, 4.16, 1.07, 0.08),
    GroundState("UniPero", 3.88, 4.21, 1.08, 0.09),
)
REFERENCES = (
    GroundState("LDA", 3.86, 4.04, 1.05, None),
    GroundState("PBE", 3.85, 4.73, 1.23, 0.20),
    GroundState("PBEsol", 3.87, 4.20, 1.08, 0.08),
    GroundState("experiment", 3.90, 4.15, 1.06, None),
)
# names of jaxpto's models, by their beginnings; the first that fits counts
ROWS = (
    ("chgnet-0.3.0", "CHGNet"),
    ("gptff-", "GPTFF"),
    ("m3gnet-mp-2021.2.8", "M3GNet"),
    ("mace-mp-0b-medium", "MACE"),
    ("orb-v2", "ORB"),
    ("7net-l3i5", "SevenNet"),
    ("unipero", "UniPero"),
)


def row_of(model: str) -> GroundState | None:
    """The paper's row for one of our models, or None if the paper does not have it."""
    for beginning, name in ROWS:
        if model.startswith(beginning):
            return next(row for row in TABLE if row.name == name)
    return None


@dataclasses.dataclass(frozen=True)
class Source:
    """A row of Table 1.

    Attributes:
        name: as the paper has it.
        version: which weights.
        training_set: what they were trained on.
        parameters: how many, as printed.
        energy_error: mean absolute error on its own test set, meV/atom; None where the paper has none.
        force_error: the same of forces, meV/Angstrom.
    """

    name: str
    version: str
    training_set: str
    parameters: str
    energy_error: float | None
    force_error: float | None


SOURCES = (
    Source("CHGNet", "0.3.0", "MPtrj", "413 K", 26.0, 60.0),
    Source("GPTFF", "v2", "Atomly", "502 K", 32.0, 71.0),
    Source("M3GNet", "MP-2021.2.8-PES", "MPF-2021.2.8", "228 K", 18.7, 63.0),
    Source("MACE", "MP-0b-medium", "MPtrj", "4.69 M", 20.0, 45.0),
    Source("ORB", "orb-v2", "MPtrj + Alexandria", "25.2 M", None, None),
    Source("SevenNet", "7net-l3i5", "MPtrj", "1.17 M", 8.3, 29.0),
    Source("UniPero", "v1", "perovskites, PBEsol", "~500 K", 1.75, 54.0),
)


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """What the paper finds at finite temperature.

    Attributes:
        name: the model, as the paper has it.
        collapses: at constant pressure it melts above a critical temperature.
        supertetragonal: before that, or at the lowest temperature, it is supertetragonal; None: not said.
        transition_K: where it becomes cubic; None: nowhere, or not said where.
        becomes_cubic: whether it does.
        vanishing_K: where P_z vanishes in the experimental lattice; None: far below 1100 K.
    """

    name: str
    collapses: bool
    supertetragonal: bool | None
    transition_K: float | None
    becomes_cubic: bool
    vanishing_K: float | None


EXPERIMENT_UNDERESTIMATED_BY = 160.0  # K, by UniPero and MACE-FT
NVT_VANISHING = 1100.0  # K
DYNAMICS = (
    Dynamics("CHGNet", True, True, None, False, NVT_VANISHING),
    Dynamics("GPTFF", False, True, None, True, None),
    Dynamics("M3GNet", True, None, None, False, None),
    Dynamics("MACE", True, True, None, False, NVT_VANISHING),
    Dynamics("ORB", False, None, 1100.0, True, NVT_VANISHING),
    Dynamics("SevenNet", True, True, None, False, NVT_VANISHING),
    Dynamics("MACE-FT", False, False, 763.0 - EXPERIMENT_UNDERESTIMATED_BY, True, NVT_VANISHING),
    Dynamics("UniPero", False, False, 763.0 - EXPERIMENT_UNDERESTIMATED_BY, True, NVT_VANISHING),
)


def dynamics_of(model: str) -> Dynamics | None:
    """What the paper finds for one of our models at finite temperature, or None if it does not have it."""
    row = row_of(model)
    return None if row is None else next(one for one in DYNAMICS if one.name == row.name)


# what may explain a finding that does not stand here, by the beginning of our model's name
EXPLANATIONS = {
    "gptff-v2": "the paper's numbers for GPTFF at 0 K are those of version 1 with its older neighbour rule, which "
    "`gptff-v1:old-neighbors` repeats",
    "m3gnet-mp-2021.2.8": "the published scripts may have taken a stress in GPa for one in eV/Angstrom^3, which "
    "`m3gnet-mp-2021.2.8:stress-in-GPa` repeats",
}


def explanation_of(model: str) -> str:
    """What may explain that the paper found otherwise, or ""."""
    return next((text for name, text in EXPLANATIONS.items() if model == name), "")
