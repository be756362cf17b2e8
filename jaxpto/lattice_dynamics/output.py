"""Output folder of the phonon command: phonopy's files, phonons.json, figures, and tables on the console."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ase
import numpy as np
from phonopy import Phonopy
from rich.console import Console

from jaxpto.console.terminal import WholeTable
from jaxpto.lattice_dynamics.figures import bands_figure, curves, dos_figure, thermal_figure
from jaxpto.lattice_dynamics.harmonic import Difference, Harmonic
from jaxpto.lattice_dynamics.modes import DEGENERATE, IMAGINARY
from jaxpto.lattice_dynamics.phonopy_bridge import SYMMETRY_PRECISION
from jaxpto.relaxation.target import Relaxed
from jaxpto.reporting.figures import png
from jaxpto.storage.files import replacing, write_json_atomic
from jaxpto.structures.write import write_frames

AGREEMENT = 0.02  # THz; what the two methods differ by less than, for smooth models
INTERPOLATED = "interpolated there, they may be artefacts of the supercell's size: compare with a larger `supercell`"
SHOWN_MODES = 12
SHOWN_TEMPERATURES = (0.0, 300.0, 600.0, 1000.0)


@dataclasses.dataclass(frozen=True)
class Calculation:
    """Phonons of one model by one method.

    Attributes:
        phonon: phonopy's object with force constants, bands, mesh and thermal properties.
        harmonic: what is derived from them.
        sum_rule: residual of the acoustic sum rule, of the force constants as computed, eV/Angstrom^2.
        symmetrized: whether phonopy then made them obey it.
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
        atoms: the structure they are of, with energy and forces.
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
        result: of one model.
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


def write_summary(results: list[ModelResult], folder: Path) -> None:
    """Write phonons.json and the three figures.

    Args:
        results: of all models.
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
        image = png(figure)
        with replacing(folder / name, len(image)) as temporary:
            temporary.write_bytes(image)


def show(results: list[ModelResult], console: Console) -> None:
    """Print the lowest frequencies at the named points, the imaginary modes and the thermal properties."""
    several = any(len(result.calculations) > 1 for result in results)
    named = {
        f"{result.model}, {method}" if several else result.model: calculation
        for result in results
        for method, calculation in result.calculations.items()
    }
    _show_lowest(named, console)
    _show_imaginary(named, console)
    _show_thermal(named, console)


def _show_lowest(named: dict[str, Calculation], console: Console) -> None:
    points = list(dict.fromkeys(name for c in named.values() for name in c.harmonic.bands.path.named_points))
    table = WholeTable("model", *points, "highest", title="lowest frequency at each point but for translations (THz)")
    for label, calculation in named.items():
        lowest = calculation.harmonic.lowest
        cells = [frequency_text(lowest[name]) if name in lowest else "" for name in points]
        highest = max(float(f.max()) for f in calculation.harmonic.bands.frequencies)
        table.add_row(label, *cells, frequency_text(highest))
    console.print(table)


def _show_imaginary(named: dict[str, Calculation], console: Console) -> None:
    table = WholeTable("model", "q", "THz", "modes", "", "atoms that move, with their share", title="imaginary modes")
    for label, calculation in named.items():
        modes = calculation.harmonic.imaginary
        if not modes:
            where = "at the named points and those that fit the supercell"
            console.print(f"{label}: no imaginary mode (below {IMAGINARY:g} THz) {where}")
        for mode in modes[:SHOWN_MODES]:
            point = mode.point if mode.exact else f"{mode.point} (interpolated)"
            kind = "polar" if mode.polar else ""
            motion = mode.motions[-1].replace(" %", "\u00a0%")  # no line break there
            table.add_row(label, point, frequency_text(mode.frequency), str(mode.degeneracy), kind, motion)
        if len(modes) > SHOWN_MODES:
            table.add_row(label, f"{len(modes) - SHOWN_MODES} more", "", "", "", "in phonons.json")
    if table.row_count:
        console.print(table)
    for label, calculation in named.items():
        if dips := calculation.harmonic.bands.dips():
            deepest = ", ".join(f"{frequency_text(dip.frequency)} THz on {dip.stretch}" for dip in dips)
            console.print(f"{label}: between the named points bands reach {deepest}; {INTERPOLATED}")


def _show_thermal(named: dict[str, Calculation], console: Console) -> None:
    heads = "T (K)", "F (eV)", "S (J/K/mol)", "Cv (J/K/mol)"
    table = WholeTable("model", *heads, title="thermal properties, formula unit")
    for label, calculation in named.items():
        thermal = calculation.harmonic.thermal
        for row, kelvin in enumerate(thermal.temperatures):
            if kelvin in SHOWN_TEMPERATURES or len(thermal.temperatures) <= len(SHOWN_TEMPERATURES):
                values = thermal.free_energy[row], thermal.entropy[row], thermal.heat_capacity[row]
                table.add_row(label, f"{kelvin:g}", f"{values[0]:.4f}", *(f"{v:.2f}" for v in values[1:]))
    if table.row_count:
        console.print(table)
    for label, calculation in named.items():
        thermal = calculation.harmonic.thermal
        if thermal.left_out:
            share = 100.0 * thermal.left_out / thermal.modes
            reason = "; all are weak, as errors of the acoustic sum rule make them (see `symmetrize`)"
            if calculation.harmonic.imaginary:
                reason = ", which are not those of a stable crystal"
            elif thermal.lowest < IMAGINARY:
                reason = f"; they reach {frequency_text(thermal.lowest)} THz; {INTERPOLATED}"
            console.print(
                f"{label}: {share:.2g} % of modes ({thermal.left_out} of {thermal.modes}) on the mesh are imaginary "
                f"and left out of the thermal properties{reason}",
            )  # fmt: skip


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
