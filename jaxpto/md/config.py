"""Settings of a sweep: one dataclass, its presets, and the checks that refuse what cannot run."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import tyro

from jaxpto import bounds, units
from jaxpto.bounds import check_size
from jaxpto.errors import InputError
from jaxpto.integrators import ENSEMBLES, EnsembleName
from jaxpto.structures import repeats_of

# settings of where and how a run is computed or its structure is read, which do not change what is computed
PLACE = frozenset(
    {
        "out",
        "resume",
        "devices",
        "devices_per_replica",
        "distributed",
        "distributed_timeout",
        "preset",
        "checkpoint_every",
        "format",
        "species",
    }
)
Charges = Literal["auto", "authors", "lda", "nominal", "model"]
DEFAULT_TEMPERATURES = (300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0, 1000.0)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Batched temperature sweep: every temperature is a replica of one compiled program.

    Attributes:
        structure: file that ASE can read, or a built-in structure (PbTiO3-tetragonal, PbTiO3-cubic,
            PbTiO3-experimental).
        model: model name, model folder, or ase:package.module:factory.
        supercell: repeats along the lattice vectors; by default 5 5 5 for built-in structures; a file is taken as it
            is, 1 1 1.
        temperatures: K.
        ensemble: npt (flexible cell), nvt (Langevin, fixed cell) or nve.
        steps: time steps of each replica.
        timestep: fs.
        pressure: GPa.
        stress: external stress xx yy zz yz xz xy in GPa, positive in tension; instead of --pressure.
        stress_measure: cauchy (the true stress) or piola-kirchhoff (second one, on the initial cell; has an enthalpy).
        mask: cell degrees of freedom in npt: iso (volume), diag (three edges along x, y, z), full (six).
        seed: seed of the initial velocities and of the thermostat noise.
        replicas: independent runs at each temperature.
        out: output folder.
        resume: continue the run in the output folder, or start it if nothing is there.
        dtype: precision of the simulation.
        preset: pto-test sets the parameters of the PTO-test paper; options given besides it win.
        thermostat_time: time constant of the Nose-Hoover chains in npt, fs.
        barostat_time: time constant of the cell in npt, fs.
        pfactor: barostat mass / volume as in ASE's NPT, in ASE's units; instead of barostat_time.
        friction: friction of the Langevin thermostat in nvt, 1/fs.
        equilibration: fraction of the run left out of the averages.
        sample_every: steps between two samples (thermo row and trajectory frame).
        checkpoint_every: seconds between two checkpoints; what an interrupt can cost.
        charges: Born charges of the polarization: authors or lda (PbTiO3), nominal (formal ones, any perovskite),
            model (those that the model itself predicts for the initial structure); auto takes authors for PbTiO3,
            nominal for others.
        skin: extra reach of the neighbour list, Angstrom; by default 0.3, or 0.1 for models with angles.
        devices: devices to spread the replicas over; 0 takes all (on CPU: one per core).
        devices_per_replica: devices that share the atoms of one replica, for systems too large for one device.
        distributed: run the replicas in several processes that share the output folder: slurm (the tasks of srun), auto
            (what JAX detects) or HOST:PORT,N,I (process I of N, HOST is where process 0 runs).
        distributed_timeout: seconds without a sign of life after which another process counts as lost.
        format: file format of the structure, as ASE calls it (vasp, cif, extxyz, lammps-data, ...); guessed by default.
        species: element of each atom type, for files of LAMMPS that name none.
    """

    structure: Annotated[str, tyro.conf.Positional] = "PbTiO3-tetragonal"
    model: str = "perovskite"
    supercell: tuple[int, int, int] | None = None
    temperatures: tuple[float, ...] = DEFAULT_TEMPERATURES
    ensemble: EnsembleName = "npt"
    steps: int = 5_000
    timestep: float = 2.0
    pressure: float = 0.0
    stress: tuple[float, float, float, float, float, float] | None = None
    stress_measure: Literal["cauchy", "piola-kirchhoff"] = "cauchy"
    mask: Literal["iso", "diag", "full"] = "diag"
    seed: int = 0
    replicas: int = 1
    out: str = "runs/sweep"
    resume: bool = False
    dtype: Literal["float32", "float64"] = "float32"
    preset: Literal["pto-test"] | None = None
    thermostat_time: float = 100.0
    barostat_time: float = 500.0
    pfactor: float | None = None
    friction: float = 0.01
    equilibration: float = 0.4
    sample_every: int = 50
    checkpoint_every: float = 20.0
    charges: Charges = "auto"
    skin: float | None = None
    devices: int = 0
    devices_per_replica: int = 1
    distributed: str | None = None
    distributed_timeout: int = 60
    format: str | None = None
    species: tuple[str, ...] | None = None

    @property
    def repeats(self) -> tuple[int, int, int]:
        """Repeats along the lattice vectors, the default settled."""
        return repeats_of(self.structure, self.supercell, (5, 5, 5))


# what acts in some ensembles only
ACTS_IN = {name: [e for e, facts in ENSEMBLES.items() if facts.flexible_cell] for name in ("pressure", "stress")} | {
    name: [e for e, facts in ENSEMBLES.items() if name in facts.settings.values()]
    for facts in ENSEMBLES.values()
    for name in facts.settings.values()
}

PRESETS: dict[str | None, SweepConfig] = {
    None: SweepConfig(),
    # Values of the scripts of doi 10.1021/acs.jpcc.5c07541. ASE expects a pfactor in eV/Angstrom^3 * time^2; the number
    # 75**2 * units.fs = 552.5 is kept as published and acts as a barostat time of about 300 fs at a modulus of 100 GPa.
    "pto-test": SweepConfig(
        preset="pto-test",
        steps=50_000,
        timestep=2.0,
        mask="diag",
        thermostat_time=25.0,
        pfactor=75.0**2 * units.FEMTOSECOND,
        friction=0.01,
        equilibration=0.5,
    ),
}


def check(config: SweepConfig) -> None:
    """Refuse settings that cannot run.

    Raises:
        InputError: one line with the value, the limit and the remedy.
    """

    def require(condition: bool, name: str, value: Any, limit: str) -> None:
        if not condition:
            raise InputError(f"`{name}={_spell(value)}`: {limit}")

    if not config.temperatures:
        raise InputError("`temperatures` (none): give at least one temperature in K")
    for temperature in config.temperatures:
        require(_positive(temperature), "temperatures", temperature, "must be above 0 K; 0 K work is for relaxation")
        require(
            temperature <= bounds.HOTTEST,
            "temperatures", temperature, f"must not be above {bounds.HOTTEST:g} K, where no solid or liquid is left",
        )  # fmt: skip
        twice = config.temperatures.count(temperature) > 1
        require(
            not twice, "temperatures", units.spell_kelvin(temperature), "is given twice; use `replicas` for repeats"
        )
    require(config.steps >= 1, "steps", config.steps, "must be at least 1")
    require(
        config.steps <= bounds.MOST_STEPS,
        "steps", config.steps, f"must not be above {bounds.MOST_STEPS}, which is what the step counter can hold",
    )  # fmt: skip
    require(
        config.timestep >= bounds.SHORTEST_TIMESTEP,
        "timestep", config.timestep, f"must be at least {bounds.SHORTEST_TIMESTEP} fs; 1 to 2 fs is usual",
    )  # fmt: skip
    require(
        config.timestep <= 20.0,
        "timestep", config.timestep, "is beyond 20 fs, where no solid's vibrations are resolved; 1 to 2 fs is usual",
    )  # fmt: skip
    require(
        abs(config.pressure) <= bounds.HIGHEST_PRESSURE,
        "pressure", config.pressure, f"must lie within {bounds.HIGHEST_PRESSURE:g} GPa of 0",
    )  # fmt: skip
    if config.stress is not None:
        require(all(map(math.isfinite, config.stress)), "stress", config.stress, "must be six finite numbers of GPa")
        require(config.pressure == 0.0, "pressure", config.pressure, "cannot go with `stress`; give one of them")
    usual = PRESETS[config.preset]
    for name, ensembles in ACTS_IN.items():
        value = getattr(config, name)
        require(
            config.ensemble in ensembles or value == getattr(usual, name), name, value,
            f"has no effect in {config.ensemble}; leave it out or use `ensemble={' or '.join(ensembles)}`",
        )  # fmt: skip
    if config.stress is not None and ENSEMBLES[config.ensemble].flexible_cell:
        shear = any(s != 0.0 for s in config.stress[3:])
        require(not shear or config.mask == "full", "stress", config.stress, f"needs `mask=full`, not {config.mask}")
        mean = f"`pressure={-sum(config.stress[:3]) / 3:g}`"
        require(
            config.mask != "iso" or is_hydrostatic(config),
            "stress", config.stress, f"only its mean acts with `mask=iso`; give `mask=diag` or full, or {mean}",
        )  # fmt: skip
    require(
        config.stress_measure == usual.stress_measure or not is_hydrostatic(config),
        "stress_measure", config.stress_measure, "has no effect without a `stress` that is no pressure; leave it out",
    )  # fmt: skip
    require(
        config.pfactor is None or config.barostat_time == usual.barostat_time, "barostat_time", config.barostat_time,
        f"has no effect beside `pfactor={config.pfactor}`; give one of them"
        + ("" if usual.pfactor is None else f" (`pfactor=None` takes that of `preset={config.preset}` away)"),
    )  # fmt: skip
    require(min(config.repeats) >= 1, "supercell", config.repeats, "repeats must be at least 1")
    require(_positive(config.checkpoint_every), "checkpoint_every", config.checkpoint_every, "must be above 0 s")
    require(config.replicas >= 1, "replicas", config.replicas, "must be at least 1")
    replicas = config.replicas * len(config.temperatures)
    require(
        replicas <= bounds.MOST_REPLICAS,
        "replicas", config.replicas, f"makes {replicas} replicas, at most {bounds.MOST_REPLICAS} are run at once",
    )  # fmt: skip
    check_size(math.prod(config.repeats), replicas, f"`supercell={config.repeats}`")
    require(0 <= config.seed < 2**32, "seed", config.seed, "must be a whole number from 0 to 2^32 - 1")
    require(_positive(config.thermostat_time), "thermostat_time", config.thermostat_time, "must be above 0 fs")
    require(_positive(config.barostat_time), "barostat_time", config.barostat_time, "must be above 0 fs")
    require(config.pfactor is None or _positive(config.pfactor), "pfactor", config.pfactor, "must be above 0")
    require(_positive(config.friction), "friction", config.friction, "must be above 0 per fs; 0.001 to 0.02 is usual")
    require(0.0 <= config.equilibration < 1.0, "equilibration", config.equilibration, "must be in [0, 1)")
    require(config.sample_every >= 1, "sample_every", config.sample_every, "must be at least 1 step")
    require(config.skin is None or _positive(config.skin), "skin", config.skin, "must be above 0 A; 0.3 is usual")
    require(
        config.skin is None or config.skin <= bounds.LONGEST_SKIN,
        "skin", config.skin, f"must not be above {bounds.LONGEST_SKIN:g} A; 0.3 is usual",
    )  # fmt: skip
    require(config.devices >= 0, "devices", config.devices, "must be 0 (all) or more")
    require(config.devices_per_replica >= 1, "devices_per_replica", config.devices_per_replica, "must be at least 1")
    require(
        config.devices_per_replica == 1 or not config.model.startswith("ase:"),
        "devices_per_replica", config.devices_per_replica, f"{config.model} runs on the host and cannot be shared",
    )  # fmt: skip
    require(config.distributed_timeout >= 1, "distributed_timeout", config.distributed_timeout, "must be at least 1 s")


def is_hydrostatic(config: SweepConfig) -> bool:
    """Whether the external stress is a pressure."""
    return config.stress is None or (len(set(config.stress[:3])) == 1 and not any(config.stress[3:]))


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0.0


def _spell(value: Any) -> str:
    """A value with all its digits: 300, 300.0001, (0, 0, -3)."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_spell, value))})"
    return str(value).removesuffix(".0")


def changed_fields(config: SweepConfig, stored: dict[str, Any]) -> list[str]:
    """Names and values of settings that differ from a stored configuration.

    Where the run lives does not count, nor what has no effect on it.
    """
    now = to_json(config)
    idle = {name for name, ensembles in ACTS_IN.items() if config.ensemble not in ensembles}
    idle |= {"barostat_time"} if config.pfactor is not None else set()
    idle |= {"stress_measure"} if is_hydrostatic(config) else set()
    stored = {"stress_measure": "piola-kirchhoff"} | stored  # the only one before there was a choice
    return [
        f"{name} was {_spell_json(stored.get(name))}, now {_spell_json(value)}"
        for name, value in now.items()
        if name not in PLACE | idle and stored.get(name) != value
    ]


def _spell_json(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def to_json(config: SweepConfig) -> dict[str, Any]:
    """The settings as JSON values, the supercell settled."""
    settled = dataclasses.asdict(config) | {"supercell": config.repeats}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settled.items()}
