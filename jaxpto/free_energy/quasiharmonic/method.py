"""Method qha: the cell that minimises the harmonic free energy at each temperature, and what follows from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxpto.console.status_line import StatusLine
from jaxpto.errors import InputError
from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.free_energy.estimators.spectral import ModeFunction
from jaxpto.free_energy.harmonic.method import check_harmonic, prepare_crystal
from jaxpto.free_energy.quasiharmonic.landscape import Evaluator, Landscape, Point
from jaxpto.free_energy.quasiharmonic.minimum import Equilibrium, Lost, follow
from jaxpto.free_energy.quasiharmonic.output import QuasiharmonicResult, write_quasiharmonic
from jaxpto.free_energy.quasiharmonic.symmetric_coordinates import internal_basis, strain_basis
from jaxpto.reporting.provenance import fingerprint, provenance
from jaxpto.storage.files import write_json_atomic
from jaxpto.system import has_own_masses
from jaxpto.units import GIGAPASCAL

STORE = "points.json"


def run_quasiharmonic(config: FreeEnergyConfig, console: Console) -> QuasiharmonicResult:
    """Follow the minimum upwards in temperature, write the output folder, and return what was found.

    Every minimum is stored when it is found; the same command goes on from there.

    Raises:
        InputError: settings, structure, model or output folder that cannot be used, or no minimum at any temperature.
    """
    with jax.enable_x64(True):
        check_harmonic(config)
        if config.harmonic.relax != "cell":
            raise InputError(f"`harmonic.relax={config.harmonic.relax}`: qha moves the cell; leave it at cell")
        if config.harmonic.imaginary != "refuse":
            raise InputError(
                f"`imaginary={config.harmonic.imaginary}`: a minimum over the cell needs every mode; with qha "
                "leave it at refuse"
            )
        prepared = prepare_crystal(config, console)
        potential, primitive = prepared.calculator.potential, prepared.phonon.primitive
        if not potential.conservative:
            raise InputError(
                f"model {potential.name}: its forces are not derivatives of its energy, so no gradient leads to the "
                "minimum of a free energy; use a conservative model, or `method=harmonic`"
            )
        symmetry = prepared.phonon.primitive_symmetry
        landscape = Landscape(
            potential=potential,
            crystal=prepared.crystal,
            function=ModeFunction(config.harmonic.statistics),
            pressure=config.pressure * GIGAPASCAL,
            internal=config.qha.internal,
            cell=np.asarray(primitive.cell),
            places=np.asarray(primitive.scaled_positions),
            strains=strain_basis(primitive, symmetry, config.mask),
            shifts=internal_basis(primitive, symmetry),
        )
        found, lost = _follow(config, landscape, fingerprint(potential), console)
    if lost is not None and not found:
        raise InputError(
            f"no minimum at {lost.first:g} K{_bracket(lost)}: {lost.reason}; give lower `temperatures`, another phase "
            "or a larger `supercell`"
        )
    unit_from_primitive = np.linalg.inv(prepared.phonon.primitive_matrix).T
    result = QuasiharmonicResult(
        equilibria=found,
        lost=lost,
        cells=[unit_from_primitive @ minimum.point.cell for minimum in found],
        start=prepared.atoms.cell.array,
        internal=config.qha.internal,
        coordinates=landscape.size,
    )
    settings = dataclasses.asdict(config) | provenance()
    write_quasiharmonic(result, prepared.subject, prepared.treatment, config.out, settings, console)
    return result


def _follow(
    config: FreeEnergyConfig, landscape: Landscape, model: str, console: Console
) -> tuple[list[Equilibrium], Lost | None]:
    """All minima, those that are stored included; new ones are stored."""
    settings = {"model": model, "cell": landscape.cell.tolist(), "places": landscape.places.tolist()}
    settings |= _settings(config)
    numbers, masses = np.asarray(landscape.crystal.numbers), np.asarray(landscape.crystal.masses)
    if has_own_masses(numbers, masses):
        settings["masses"] = masses.round(4).tolist()
    known = _read(config.out, settings)
    evaluator = Evaluator(landscape)
    with StatusLine(console, "compiling the third derivatives (minutes, once; kept in the compilation cache)") as line:

        def keep(minimum: Equilibrium) -> None:
            known[minimum.temperature] = minimum
            config.out.mkdir(parents=True, exist_ok=True)
            points = [dataclasses.asdict(known[kelvin]) for kelvin in sorted(known)]
            write_json_atomic(config.out / STORE, {"method": "qha", "settings": settings, "points": points})

        return follow(evaluator, sorted(set(config.temperatures)), known, line.update, keep)


def _settings(config: FreeEnergyConfig) -> dict[str, Any]:
    """Everything that the minima depend on, as JSON has it."""
    wanted = ("structure", "supercell", "pressure", "mask", "harmonic", "qha")
    return json.loads(json.dumps({name: dataclasses.asdict(config)[name] for name in wanted}))


def _read(out: Path, settings: dict[str, Any]) -> dict[float, Equilibrium]:
    """The stored minima.

    Raises:
        InputError: they were found with other settings.
    """
    if not (out / STORE).exists():
        return {}
    try:
        document = json.loads((out / STORE).read_text())
        stored, points = document["settings"], document["points"]
        found = [_equilibrium(point) for point in points]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out / STORE} cannot be read ({error}); name a new `out` folder") from error
    for name in dict.fromkeys([*settings, *stored]):
        before, now = stored.get(name), settings.get(name)
        same = before == now
        if name in ("cell", "places"):  # of a relaxation, which other hardware ends elsewhere in the last digits
            before, now = np.array(before, float), np.array(now, float)
            same = before.shape == now.shape and np.allclose(before, now, atol=1e-5)
        if not same:
            raise InputError(f"`out={out}` holds minima found with another {name}; name a new folder")
    return {minimum.temperature: minimum for minimum in found}


def _equilibrium(values: dict[str, Any]) -> Equilibrium:
    def arrays(part: dict[str, Any]) -> dict[str, Any]:
        return {name: np.array(value, float) if isinstance(value, list) else value for name, value in part.items()}

    return Equilibrium(**arrays({**values, "point": Point(**arrays(values["point"]))}))


def _bracket(lost: Lost) -> str:
    return f" (the last is at {lost.last:g} K)" if lost.last else ""
