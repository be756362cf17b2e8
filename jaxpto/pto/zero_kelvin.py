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

from rich.console import Console

from jaxpto.calculator import JaxptoCalculator
from jaxpto.console import terminal
from jaxpto.console.command import run_command
from jaxpto.errors import InputError
from jaxpto.models.catalogue import list_models
from jaxpto.models.suitability import check_supports
from jaxpto.phonons import PhononsConfig
from jaxpto.phonons import run as run_phonons
from jaxpto.potential import Potential
from jaxpto.pto.ground_state import RELAXATION, bands_from_json, bands_to_json, cells_of, vibrations_of
from jaxpto.pto.zero_kelvin_output import ZeroKelvin, write_zero_kelvin
from jaxpto.relaxation.with_ase import relax_with_ase
from jaxpto.reporting.provenance import fingerprint, provenance
from jaxpto.storage.files import write_json_atomic
from jaxpto.storage.output import check_output_folder
from jaxpto.structures import builtin_structure

RESULT_FILE = "pto-0k.json"
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
    cells, vibrations = cells_of(found.relaxed, cubic), vibrations_of(found)
    potential = calculator.potential
    result = ZeroKelvin(model=potential.name, conservative=potential.conservative, **vars(cells), **vars(vibrations))
    document = dataclasses.asdict(result) | {"bands": bands_to_json(vibrations.bands)}
    settings = {"supercell": list(config.supercell), "parameters": fingerprint(calculator.potential)}
    write_json_atomic(folder / RESULT_FILE, {"settings": settings, "result": document} | provenance())
    return result


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
        result = ZeroKelvin(**values | {"bands": bands_from_json(values["bands"])})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}); remove it and its model is computed again") from None
    if before != config.supercell:
        raise InputError(
            f"--supercell {' '.join(map(str, config.supercell))}: {path} was made with {' '.join(map(str, before))}; "
            "name another --out"
        )
    return result if parameters == fingerprint(potential) else None  # else another model of the same name
