"""Settings of the free-energy command: those all methods share, and a group for each method that needs its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from jaxpto.perovskite.polarization import ChargeSet
from jaxpto.structures import repeats_of

MethodName = Literal["ladder", "switching", "landau", "harmonic", "qha"]


@dataclasses.dataclass(frozen=True)
class SwitchingOptions:
    """Absolute free energies by switching between the model and an Einstein crystal (method switching)."""

    relax: Literal["none", "cell"] = "none"
    """none: the cell of the structure as given; cell: the one that the model has at 0 K and no pressure."""
    scaling: bool = False
    """Switch at the lowest and highest temperature only; those between by reversible scaling from the lowest."""


@dataclasses.dataclass(frozen=True)
class LandauOptions:
    """Umbrella windows on the z component of the polarization."""

    windows: int | None = None
    """At each temperature; by default 16 for 8 formula units, and more with the square root of their number."""
    range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest centre of a window, C/m^2."""
    strength: float | None = None
    """Strength K of the bias K/2 (P_z - P_0)^2 of the whole cell, eV/(C/m^2)^2; by default (3/2)^2 kT over the square
    of the windows' spacing, at the lowest temperature."""
    transverse: float | None = None
    """Strength of the restraint of P_x and P_y to 0; by default as strong as that of P_z, 0 leaves them free (the
    polarization can then turn away from z instead of passing through 0)."""
    symmetric: bool = True
    """Use F(P) = F(-P), so that half of the range is enough."""
    charges: ChargeSet = "auto"
    """Born charges of the polarization: authors and lda for PbTiO3, nominal for any perovskite; auto chooses."""


@dataclasses.dataclass(frozen=True)
class HarmonicOptions:
    """Vibrations from force constants (methods harmonic and qha)."""

    statistics: Literal["quantum", "classical"] = "quantum"
    """quantum: with zero-point energy; classical: what molecular dynamics samples."""
    imaginary: Literal["refuse", "omit", "absolute"] = "refuse"
    """Imaginary modes: refuse them, omit them from every sum (as phonopy does), or take their absolute frequency."""
    mesh: tuple[int, int, int] | None = None
    """Wave vectors, centred at Gamma; by default 50 A over the lattice parameters. Those of a simulation are as many as
    the repeats of its supercell."""
    relax: Literal["cell", "positions", "none"] = "cell"
    """At 0 K first, with the same model: cell (within --mask, at --pressure) and positions, positions only, or none."""


@dataclasses.dataclass(frozen=True)
class QuasiharmonicOptions:
    """Quasi-harmonic approximation (method qha)."""

    internal: Literal["zsisa", "full"] = "zsisa"
    """Internal coordinates: zsisa (zero static internal stress: relaxed at 0 K at each cell) or full (they minimise the
    free energy together with the cell)."""


@dataclasses.dataclass(frozen=True)
class FreeEnergyConfig:
    """Free energy, entropy and heat capacity of a crystal against temperature."""

    structure: tyro.conf.Positional[str] = "PbTiO3-tetragonal"
    """File in any ASE format, or PbTiO3-tetragonal, PbTiO3-cubic, PbTiO3-experimental."""
    model: str = "perovskite"
    """Name of a model, or a model folder."""
    method: MethodName = "ladder"
    """ladder: a temperature sweep, by MBAR and by Gibbs-Helmholtz integration. switching: absolute F at fixed cell.
    landau: free energy against polarization from umbrella windows, and the Landau coefficients. harmonic: absolute F
    from force constants at one cell. qha: the same at the cell that minimises it at each temperature."""
    supercell: tuple[int, int, int] | None = None
    """Repeats along the lattice vectors; the larger, the closer the temperatures of a ladder have to be. By default
    3 3 3, except that simulations (ladder, switching, landau) take a file as it is, 1 1 1."""
    temperatures: tuple[float, ...] = tuple(float(kelvin) for kelvin in range(300, 901, 50))
    """K."""
    ensemble: Literal["npt", "nvt"] = "npt"
    """npt: Gibbs energy, Cp; nvt: Helmholtz energy, Cv at fixed cell."""
    steps: int = 20_000
    """Time steps of each replica."""
    timestep: float = 2.0
    """fs."""
    replicas: int = 1
    """Independent runs at each temperature."""
    pressure: float = 0.0
    """GPa."""
    mask: Literal["iso", "diag", "full"] = "diag"
    """Cell degrees of freedom in npt: iso (volume), diag (three edges), full (six)."""
    equilibration: float = 0.3
    """Fraction of each run left out."""
    sample_every: int = 20
    """Steps between two samples."""
    seed: int = 0
    """Seed of velocities, noise and bootstrap."""
    format: str | None = None
    """Format of the file, as ASE calls it (vasp, cif, extxyz, lammps-data, ...); guessed by default."""
    species: tuple[str, ...] | None = None
    """Element of each atom type, for files of LAMMPS that name none."""
    out: Path = Path("runs/free-energy")
    """Output folder; the simulation in it is continued, or used as it is once it has finished."""
    switching: SwitchingOptions = SwitchingOptions()
    """Options of the method switching."""
    landau: LandauOptions = LandauOptions()
    """Options of the method landau."""
    harmonic: HarmonicOptions = HarmonicOptions()
    """Options of the methods harmonic and qha."""
    qha: QuasiharmonicOptions = QuasiharmonicOptions()
    """Options of the method qha."""

    @property
    def repeats(self) -> tuple[int, int, int]:
        """Repeats along the lattice vectors, the default settled: for force constants their range, not the file's."""
        usual = (3, 3, 3)
        if self.supercell is None and self.method in ("harmonic", "qha"):
            return usual
        return repeats_of(self.structure, self.supercell, usual)
