"""COMMAND python -m jaxpto.report pto-0k: the paper's Table 2 and Fig. 2 (PbTiO3 at 0 K) for every installed model.

Each model's part is computed once (relaxation of both phases, phonons of the tetragonal one) and kept in its folder;
the command goes on where it was interrupted, and adds models to a folder that holds others.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxpto.calculator import JaxptoCalculator
from jaxpto.console import terminal
from jaxpto.console.command import run_command
from jaxpto.errors import InputError
from jaxpto.lattice_dynamics.harmonic import Bands
from jaxpto.lattice_dynamics.paths import BandPath, Segment
from jaxpto.models.catalogue import list_models
from jaxpto.models.suitability import check_supports
from jaxpto.phonons import PhononsConfig
from jaxpto.phonons import run as run_phonons
from jaxpto.potential import Potential
from jaxpto.pto.zero_kelvin_output import ZeroKelvin, write_zero_kelvin
from jaxpto.relaxation.target import Relaxed, Target
from jaxpto.relaxation.with_ase import relax_with_ase
from jaxpto.reporting.provenance import fingerprint, provenance
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.output import check_output_folder
from jaxpto.structures import builtin_structure

RESULT_FILE = "pto-0k.json"
RELAXATION = Target(fmax=1e-4)
TETRAGONAL, CUBIC = "PbTiO3-tetragonal", "PbTiO3-cubic"


@dataclasses.dataclass(frozen=True)
class ZeroKelvinConfig:
    """The paper's Table 2 and Fig. 2: relaxed PbTiO3 and its phonons with every model, beside the paper's numbers."""

    out: Path = Path("runs/pto-0k")
    """Folder to write; models that it holds already are not computed again."""
    models: tuple[str, ...] = ()
    """Names of models or model folders; all installed ones if not given."""
    supercell: tuple[int, int, int] = (2, 2, 2)
    """Supercell of the phonons; the paper's by default."""


def run(config: ZeroKelvinConfig) -> list[ZeroKelvin]:
    """Compute what is missing, write table, figure and report into `config.out`, and return every model's results.

    Raises:
        InputError: no model, an unknown one, or a folder with other settings.
        RuntimeError: a model failed; raised once everything else is written.
    """
    console = terminal.console(ZeroKelvinConfig)
    check_output_folder(config.out, resume=True)
    models = config.models or tuple(info.name for info in list_models() if not info.problem)
    if not models:
        raise InputError("no model is installed; python -m jaxpto lists the commands that make them")
    results, failed = [], []
    for model in models:
        calculator = JaxptoCalculator(model)
        folder = config.out / "models" / calculator.potential.name.replace("/", "_").replace(":", "_")
        stored = _stored(folder, calculator.potential, config)
        if stored is None:
            try:
                check_supports(calculator.potential, builtin_structure(TETRAGONAL), TETRAGONAL)
            except InputError as error:
                if config.models:
                    raise
                console.print(f"{model}: left out ({error})")
                continue
            try:
                stored = _compute(model, calculator, folder, config, console)
            except Exception as error:  # one model must not cost the others
                traceback.print_exc()
                failed.append(f"{model} ({type(error).__name__}: {error})")
                continue
        results.append(stored)
    if results:
        write_zero_kelvin(results, config.out, dataclasses.asdict(config) | provenance(), console)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(models)} models failed: {'; '.join(failed)}")
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("jaxpto.report pto-0k", ZeroKelvinConfig, run, argv)


def _compute(
    model: str, calculator: JaxptoCalculator, folder: Path, config: ZeroKelvinConfig, console: Console
) -> ZeroKelvin:
    phonons = folder / "phonons"
    shutil.rmtree(phonons, ignore_errors=True)  # what an interrupted run, or one of another model, has left
    cubic = relax_with_ase(builtin_structure(CUBIC), calculator, RELAXATION)
    (found,) = run_phonons(
        PhononsConfig(TETRAGONAL, (model,), phonons, supercell=config.supercell, path="pto-test", symmetrize=True)
    )
    assert found.relaxed is not None
    tetragonal = found.relaxed
    harmonic = found.calculations["displacement"].harmonic
    a, b, c = tetragonal.atoms.cell.lengths()
    result = ZeroKelvin(
        model=calculator.potential.name,
        a=float(0.5 * (a + b)),
        c=float(c),
        cubic_a=float(cubic.atoms.cell.lengths().mean()),
        energy_difference=cubic.energy - tetragonal.energy,
        lowest_frequency=float(min(f.min() for f in harmonic.bands.frequencies)),
        imaginary=tuple(f"{mode.point} {-mode.frequency:.2f}i" for mode in harmonic.imaginary),
        conservative=calculator.potential.conservative,
        remarks=(*_remark("tetragonal", tetragonal, 1e-3), *_remark("cubic", cubic, 1e-3)),
        bands=harmonic.bands,
    )
    document = dataclasses.asdict(result) | {"bands": _bands_to_json(harmonic.bands)}
    settings = {"supercell": list(config.supercell), "parameters": fingerprint(calculator.potential)}
    write_json_atomic(folder / RESULT_FILE, {"settings": settings, "result": document} | provenance())
    return result


def _remark(phase: str, relaxed: Relaxed, limit: float) -> tuple[str, ...]:
    """A remark on a relaxation that did not reach the paper's limit."""
    if relaxed.residual < limit:
        return ()
    return (f"{phase} phase relaxed to {relaxed.residual:.1e} eV/A only: {relaxed.reason}",)


def _stored(folder: Path, potential: Potential, config: ZeroKelvinConfig) -> ZeroKelvin | None:
    """An earlier result with the same settings."""
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text())
        before, parameters = tuple(document["settings"]["supercell"]), document["settings"]["parameters"]
        values = document["result"]
        values |= {name: tuple(values[name]) for name in ("remarks", "imaginary")}
        result = ZeroKelvin(**values | {"bands": _bands_from_json(values["bands"])})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}); remove it and its model is computed again") from None
    if before != config.supercell:
        raise InputError(
            f"--supercell {' '.join(map(str, config.supercell))}: {path} was made with {' '.join(map(str, before))}; "
            "name another --out"
        )
    return result if parameters == fingerprint(potential) else None  # else another model of the same name


def _bands_to_json(bands: Bands) -> list[dict[str, Any]]:
    parts = zip(bands.path.segments, bands.distances, bands.frequencies, strict=True)
    return [
        {
            "start": segment.start,
            "end": segment.end,
            "q": segment.points.tolist(),
            "distances": distances.tolist(),
            "frequencies_THz": np.round(frequencies, 6).tolist(),
        }
        for segment, distances, frequencies in parts
    ]


def _bands_from_json(stored: list[dict[str, Any]]) -> Bands:
    segments = tuple(Segment(part["start"], part["end"], np.asarray(part["q"])) for part in stored)
    distances = [np.asarray(part["distances"]) for part in stored]
    return Bands(BandPath(segments), distances, [np.asarray(part["frequencies_THz"]) for part in stored])
