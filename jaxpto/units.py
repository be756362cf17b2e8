"""Conversion factors from the outside units (eV, Angstrom, amu, K, fs) to the internal ones.

Inside the engine energies are eV, lengths Angstrom, masses amu; time is therefore Angstrom sqrt(amu/eV) (10.18 fs).
The factors are ASE's (CODATA 2014), so that numbers agree with ASE to the last digit.
"""

import re

import numpy as np
from ase import units as _ase

FEMTOSECOND: float = _ase.fs  # internal time units per fs
BOLTZMANN: float = _ase.kB  # eV / K
GIGAPASCAL: float = _ase.GPa  # eV / Angstrom^3 per GPa
COULOMB_PER_SQUARE_METRE: float = _ase.C / _ase.m**2  # e / Angstrom^2 per C / m^2


def spell_kelvin(temperature: float) -> str:
    """A temperature (K) in figures, as short as tells it from every other: 300, 300.0001; for names of files."""
    return np.format_float_positional(float(temperature), trim="-")


def spell_unit(stored: str) -> str:
    """A unit in H5MD spelling as tables have it: eV/A^3 for "eV Angstrom-3", A^3 for "Angstrom3"."""
    factors: dict[str, list[str]] = {"": [], "-": []}
    for symbol, sign, power in re.findall(r"([A-Za-z]+)(-?)(\d*)", stored):
        short = "A" if symbol == "Angstrom" else symbol
        factors[sign].append(short if power in ("", "1") else f"{short}^{power}")
    return "/".join([" ".join(factors[""]) or "1" * bool(factors["-"]), *factors["-"]])
