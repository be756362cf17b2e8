"""Output folder of the phonon command: phonopy's files, phonons.json, figures, and tables on the terminal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ase
import numpy as np
from phonopy import Phonopy
from rich.console import Console

from jaxpto.lattice_dynamics.figures import bands_figure, curves, dos_figure, thermal_figure
from jaxpto.lattice_dynamics.harmonic import Difference, Harmonic
from jaxpto.lattice_dynamics.modes import DEGENERATE, IMAGINARY
from jaxpto.lattice_dynamics.phonopy_bridge import SYMMETRY_PRECISION
from jaxpto.relaxation.target import Relaxed
from jaxpto.reporting.columns import TEMPERATURE, Column, terminal_table
from jaxpto.reporting.result import write_image
from jaxpto.reporting.style import png
from jaxpto.storage.files import replacing, write_json_atomic
from jaxpto.structures.write import write_frames

AGREEMENT = 0.02  # THz; what the two methods differ by less than, for smooth models
INTERPOLATED = "interpolated there, they may be artefacts of the supercell's size: compare with a larger `supercell`"
SHOWN_MODES = 12
SHOWN_TEMPERATURES = (0.0, 300.0, 600.0, 1000.0)
MODEL = Column("model", "model", words=True)
MODE_COLUMNS = (
    MODEL,
    Column("point", "q", spell=lambda row: row["point"] + ("" if row["exact"] else " (interpolated)"), words=True),
    Column("frequency_THz", "THz", spell=lambda row: frequency_text(row["frequency_THz"])),
    Column("degeneracy", "modes", form=".0f"),
    Column("polar", "", spell=lambda row: "polar" if row["polar"] else "", words=True),
    # no line break before a percent sign
    Column(
        "motions",
        "atoms that move, with their share",
        words=True,
        spell=lambda row: row["motions"][-1].replace(" %", "\u00a0%"),
    ),
)
THERMAL_COLUMNS = (
    MODEL,
    TEMPERATURE,
    Column("free_energy", "F", "eV", ".4f"),
    Column("entropy", "S", "J/K/mol", ".2f"),
    Column("heat_capacity", "Cv", "J/K/mol", ".2f"),
)


@dataclasses.dataclass(frozen=True)
class Calculation:
    """Phonons of one model by one method.

    Attributes:
        phonon: phonopy's object with force constants, bands, mesh and thermal properties.
        harmonic: frequencies and thermal properties that follow from them.
        sum_rule: residual of the acoustic sum rule before it was imposed, eV/Angstrom^2.
        symmetrized: whether phonopy then made the force constants obey it.
    """

    phonon: Phonopy
    harmonic: Harmonic
    sum_rule: float
    symmetrized: bool


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """Phonons of one model.

    Attributes:
        model: its name, made unique among those of the run.
        conservative: whether its forces are derivatives of its energy; None where that is not known.
        atoms: the structure with its energy and forces.
        relaxed: how it was relaxed; None if it was not.
        supercell_force: largest force in the undisplaced supercell, eV/Angstrom.
        calculations: by method.
        difference: where the methods differ most, if there are two.
    """

    model: str
    conservative: bool | None
    atoms: ase.Atoms
    relaxed: Relaxed | None
    supercell_force: float
    calculations: dict[str, Calculation]
    difference: Difference | None


def frequency_text(frequency: float) -> str:
    """A frequency in THz with two digits, imaginary ones as 3.41i."""
    return f"{-frequency:.2f}i" if frequency < -0.005 else f"{abs(frequency):.2f}"


def write_model(result: ModelResult, folder: Path) -> None:
    """Write the structure and, for each method, phonopy's own files.

    Args:
        result: phonons of one model.
        folder: created; with two methods each has a folder of its own inside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_frames([result.atoms], folder / "structure.extxyz")
    for method, calculation in result.calculations.items():
        inside = folder / method if len(result.calculations) > 1 else folder
        inside.mkdir(exist_ok=True)
        phonon = calculation.phonon
        writers = {
            "phonopy_params.yaml": lambda path, phonon=phonon: phonon.save(path, settings={"force_constants": True}),
            "band.yaml": lambda path, phonon=phonon: phonon.write_yaml_band_structure(filename=path),
            "total_dos.dat": lambda path, phonon=phonon: phonon.write_total_dos(filename=path),
            "thermal_properties.yaml": lambda path, phonon=phonon: phonon.write_yaml_thermal_properties(filename=path),
        }
        for name, write in writers.items():
            with replacing(inside / name) as temporary:
                write(temporary)


def write_phonons(results: list[ModelResult], folder: Path) -> None:
    """Write phonons.json and the three figures.

    Args:
        results: one for each model.
        folder: exists.
    """
    document = {
        "units": {
            "frequencies": "THz, imaginary ones negative", "wave_vectors": "reciprocal vectors of the primitive cell",
            "free_energy": "eV per formula unit", "entropy": "J/K per mole of formula units",
            "heat_capacity": "J/K per mole of formula units", "forces": "eV/A", "sum_rule": "eV/A^2",
        },
        "symmetry_precision_A": SYMMETRY_PRECISION,
        "imaginary_below_THz": IMAGINARY,
        "degenerate_within_THz": DEGENERATE,
        "models": {result.model: _model_json(result) for result in results},
    }  # fmt: skip
    write_json_atomic(folder / "phonons.json", document)
    drawn = curves([(r.model, method, c.harmonic) for r in results for method, c in r.calculations.items()])
    formula = results[0].atoms.symbols.formula.reduce()[0]
    figures = {
        "bands.png": bands_figure(drawn),
        "dos.png": dos_figure(drawn),
        "thermal.png": thermal_figure(drawn, len(formula)),
    }
    for name, figure in figures.items():
        write_image(folder / name, png(figure))


def print_phonons(results: list[ModelResult], console: Console) -> None:
    """Print the lowest frequencies at the named points, the imaginary modes and the thermal properties."""
    several = any(len(result.calculations) > 1 for result in results)
    named = {
        f"{result.model}, {method}" if several else result.model: calculation.harmonic
        for result in results
        for method, calculation in result.calculations.items()
    }
    _print_lowest(named, console)
    _print_imaginary(named, console)
    _print_thermal(named, console)


def _print_lowest(named: dict[str, Harmonic], console: Console) -> None:
    points = list(dict.fromkeys(name for found in named.values() for name in found.bands.path.named_points))
    rows = []
    for label, found in named.items():
        frequencies = found.lowest | {"highest": max(float(f.max()) for f in found.bands.frequencies)}
        rows.append({"model": label} | {name: frequency_text(value) for name, value in frequencies.items()})
    columns = [MODEL, *(Column(name, name, spell=lambda row, n=name: row.get(n, "")) for name in (*points, "highest"))]
    console.print(terminal_table(columns, rows, "lowest frequency at each point but for translations (THz)"))


def _print_imaginary(named: dict[str, Harmonic], console: Console) -> None:
    for label, found in named.items():
        if not found.imaginary:
            where = "at the named points and those that fit the supercell"
            console.print(f"{label}: no imaginary mode (below {IMAGINARY:g} THz) {where}")
    shown = [(label, mode) for label, found in named.items() for mode in found.imaginary[:SHOWN_MODES]]
    if shown:
        rows = [{"model": label, **mode.as_json()} for label, mode in shown]
        console.print(terminal_table(MODE_COLUMNS, rows, "imaginary modes"))
    for label, found in named.items():
        if len(found.imaginary) > SHOWN_MODES:
            console.print(f"{label}: {len(found.imaginary) - SHOWN_MODES} more imaginary modes in phonons.json")
        if dips := found.bands.dips():
            deepest = ", ".join(f"{frequency_text(dip.frequency)} THz on {dip.stretch}" for dip in dips)
            console.print(f"{label}: between the named points bands reach {deepest}; {INTERPOLATED}")


def _print_thermal(named: dict[str, Harmonic], console: Console) -> None:
    rows = []
    for label, found in named.items():
        values = found.thermal
        for kelvin, *three in zip(
            values.temperatures, values.free_energy, values.entropy, values.heat_capacity, strict=True
        ):
            if kelvin in SHOWN_TEMPERATURES or len(values.temperatures) <= len(SHOWN_TEMPERATURES):
                names = (column.name for column in THERMAL_COLUMNS)
                rows.append(dict(zip(names, (label, kelvin, *three), strict=True)))
    if rows:
        console.print(terminal_table(THERMAL_COLUMNS, rows, "thermal properties, formula unit"))
    for label, found in named.items():
        if found.thermal.left_out:
            left_out, modes = found.thermal.left_out, found.thermal.modes
            reason = "; all are weak, as errors of the acoustic sum rule make them (see `symmetrize`)"
            if found.imaginary:
                reason = ", which are not those of a stable crystal"
            elif found.thermal.lowest < IMAGINARY:
                reason = f"; they reach {frequency_text(found.thermal.lowest)} THz; {INTERPOLATED}"
            console.print(
                f"{label}: {100.0 * left_out / modes:.2g} % of modes ({left_out} of {modes}) on the mesh are imaginary "
                f"and left out of the thermal properties{reason}"
            )


def _model_json(result: ModelResult) -> dict[str, Any]:
    relaxed = result.relaxed
    document: dict[str, Any] = {
        "conservative": result.conservative,
        "relaxed": relaxed is not None,
        "cell_A": result.atoms.cell.array,
        "largest_force": float(np.linalg.norm(result.atoms.get_forces(), axis=1).max()),
        "largest_force_in_supercell": result.supercell_force,
        "methods": {method: _calculation_json(found) for method, found in result.calculations.items()},
    }
    if relaxed is not None:
        document["relaxation"] = {
            "converged": relaxed.converged, "reason": relaxed.reason, "steps": relaxed.steps,
            "residual": relaxed.residual, "residual_stress_GPa": relaxed.residual_stress,
        }  # fmt: skip
    if result.difference is not None:
        document["largest_difference"] = dataclasses.asdict(result.difference)
    return document


def _calculation_json(calculation: Calculation) -> dict[str, Any]:
    harmonic, thermal = calculation.harmonic, calculation.harmonic.thermal
    displacements = calculation.phonon.dataset
    return {
        "sum_rule": calculation.sum_rule,
        "symmetrized": calculation.symmetrized,
        "displacements": None if displacements is None else len(calculation.phonon.displacements),
        "primitive_matrix": calculation.phonon.primitive_matrix,
        "non_analytical_term": calculation.phonon.nac_params is not None,
        "points": {name: {"q": q, "frequencies": f} for name, (q, f) in harmonic.points.items()},
        "imaginary_modes": [mode.as_json() for mode in harmonic.imaginary],
        "imaginary_between_points": [
            {"stretch": dip.stretch, "q": dip.q, "frequency_THz": dip.frequency} for dip in harmonic.bands.dips()
        ],
        "thermal": {
            "mesh": thermal.mesh, "modes": thermal.modes, "imaginary_modes_left_out": thermal.left_out,
            "zero_point_energy": thermal.zero_point, "temperatures_K": thermal.temperatures,
            "free_energy": thermal.free_energy, "entropy": thermal.entropy, "heat_capacity": thermal.heat_capacity,
        },
    }  # fmt: skip
