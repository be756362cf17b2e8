"""COMMAND python -m jaxpto.export_model MODEL OUT: a model for other programs, as nep.txt or as a StableHLO program."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from jax import export
from jaxtyping import Array, Float

from jaxpto.console.command import leave, run_command
from jaxpto.errors import InputError
from jaxpto.models.catalogue import load_potential, reference_energies_of
from jaxpto.models.charged_nep import ChargedNEP
from jaxpto.models.nep import NEP
from jaxpto.models.nep_file import nep_text
from jaxpto.models.suitability import check_supports
from jaxpto.neighbors import build
from jaxpto.potential import Potential
from jaxpto.reporting.provenance import fingerprint
from jaxpto.storage.files import replacing, write_json_atomic
from jaxpto.storage.output import check_output_file
from jaxpto.structures import read_input
from jaxpto.system import System, from_ase

PLATFORMS = {"cpu": "cpu", "cuda": "gpu"}


@dataclasses.dataclass(frozen=True)
class ExportModelConfig:
    """Write a model for other programs: nep.txt (GPUMD, LAMMPS, calorine), or a program for JAX alone.

    Attributes:
        model: model name or model folder.
        out: file to write: NAME.txt for a NEP model, NAME.stablehlo for any.
        structure: file or built-in structure with the atoms that a program shall evaluate, in their order; positions
            and cell may change as long as the neighbours fit, which the program says.
        platform: what a program runs on.
        headroom: room for neighbours in a program, as a factor on the numbers in the structure.
        dtype: precision of a program.
    """

    model: Annotated[str, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    structure: str | None = None
    platform: Literal["cpu", "cuda"] = "cpu"
    headroom: float = 1.5
    dtype: Literal["float32", "float64"] = "float32"


def run(config: ExportModelConfig) -> Path:
    """Export a model; returns the file.

    Raises:
        InputError: unknown model, another suffix, a model that is no NEP, or no structure for a program.
        StorageError: the disk refuses the write.
    """
    check_output_file(config.out)
    if not config.out.absolute().parent.is_dir():
        raise InputError(f"{config.out}: its folder does not exist; make it first")
    if config.out.suffix not in (".txt", ".stablehlo"):
        raise InputError(f"{config.out}: unknown kind of file; give NAME.txt for a NEP model, or NAME.stablehlo")
    potential = load_potential(config.model, np.dtype(config.dtype))
    content = _nep(config, potential) if config.out.suffix == ".txt" else _program(config, potential)
    with replacing(config.out, len(content)) as temporary:
        temporary.write_bytes(content)
    return config.out


def _nep(config: ExportModelConfig, potential: Potential) -> bytes:
    if not isinstance(potential.model, NEP | ChargedNEP):
        raise InputError(f"{config.model} is no NEP model and no nep.txt can hold it; give NAME.stablehlo")
    if reference_energies_of(config.model):
        print("note: energies in the file lack the reference energies of the elements, as those of the model do")
    return nep_text(potential.model, jax.device_get(potential.params)).encode()


def _program(config: ExportModelConfig, potential: Potential) -> bytes:
    if config.structure is None:
        raise InputError("a program is made for given atoms; name a `structure`")
    if not 1.0 <= config.headroom < 100.0:
        raise InputError(f"`headroom={config.headroom:g}`: give a factor from 1 to 100, such as 1.5")
    (atoms,) = read_input(config.structure, "evaluation").frames
    check_supports(potential, atoms, config.structure)
    system = from_ase(atoms, np.dtype(config.dtype))
    layout = potential.allocate([system], 0.0, config.headroom)
    layout = dataclasses.replace(layout, platform=PLATFORMS[config.platform])

    def evaluate(positions: Float[Array, "n 3"], cell: Float[Array, "3 3"]) -> tuple[Array, Array, Array, Array]:
        moved = System(positions=positions, cell=cell, numbers=system.numbers, masses=system.masses)
        neighbors = build(moved, layout)
        found = potential.evaluate(moved, neighbors)
        return found.energy, found.forces, found.stress, ~neighbors.overflow

    program = export.export(jax.jit(evaluate), platforms=[config.platform])(system.positions, system.cell)
    content = bytes(program.serialize())
    facts: dict[str, Any] = {
        "model": potential.name,
        "digest": fingerprint(potential),
        "numbers": atoms.numbers.tolist(),
        "arguments": ["positions [n, 3] Angstrom", "cell [3, 3] Angstrom, rows are lattice vectors"],
        "results": ["energy eV", "forces [n, 3] eV/Angstrom", "stress [3, 3] eV/Angstrom^3, tension positive",
                    "fits: False where there were more neighbours than the program has room for"],
        "dtype": config.dtype,
        "platform": config.platform,
    }  # fmt: skip
    write_json_atomic(config.out.with_name(f"{config.out.name}.json"), facts)
    return content


def main() -> int:
    """Entry point of `python -m jaxpto.export_model`."""
    return run_command("jaxpto.export_model", ExportModelConfig, _report)


def _report(config: ExportModelConfig) -> None:
    print(f"written to {run(config)}")


if __name__ == "__main__":
    leave(main())
