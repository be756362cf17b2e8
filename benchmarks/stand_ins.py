"""Models that stand for files that are not at hand: the original programs make them, and they are converted.

They have the size and architecture of what they stand for, hence its speed, but no physics.
"""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from benchmarks.deepmd_data import write_data
from benchmarks.environments import ORIGINALS, family, python_of
from converters.deepmd import DeepmdConfig
from converters.deepmd import run as convert_deepmd
from converters.mace import MaceConfig
from converters.mace import Version as MaceVersion
from converters.mace import run as convert_mace
from converters.mattersim import MatterSimConfig
from converters.mattersim import Version as MatterSimVersion
from converters.mattersim import run as convert_mattersim
from converters.orb import OrbConfig
from converters.orb import Version as OrbVersion
from converters.orb import run as convert_orb
from jaxpto.models.catalogue import user_folder

HERE = Path(__file__).parent
UNSTABLE_TIMESTEP = 0.02  # fs; at 2 fs their crystals would fall apart


@dataclasses.dataclass(frozen=True)
class StandIn:
    """How such a model is made.

    Attributes:
        script: beside this file; the original's interpreter runs it with the folder that it writes to.
        architecture: what the script is to make, where it knows several.
        source: file in that folder that is converted.
        timed: file in that folder that the original program is timed with.
        convert: turns a file (first) into a model folder (second).
        trained: whether the script needs training data in the folder.
    """

    script: str
    architecture: str | None
    source: str
    timed: str
    convert: Callable[[Path, Path], object]
    trained: bool = False


def _mace(version: MaceVersion) -> StandIn:
    return StandIn(
        script="mace_checkpoint.py",
        architecture=version,
        source="mace.model",
        timed="mace.model",
        convert=lambda source, out: convert_mace(MaceConfig(version, source, MACE_HEADS.get(version), out)),
    )


def _orb(version: OrbVersion) -> StandIn:
    return StandIn(
        script="orb_checkpoint.py",
        architecture="_".join(version.split("-")[:2]),
        source="orb.ckpt",
        timed="orb.ckpt",
        convert=lambda source, out: convert_orb(OrbConfig(version, source, out)),
    )


def _mattersim(version: MatterSimVersion) -> StandIn:
    return StandIn(
        script="mattersim_checkpoint.py",
        architecture=version,
        source="mattersim.pth",
        timed="mattersim.pth",
        convert=lambda source, out: convert_mattersim(MatterSimConfig(version, source, out)),
    )


MACE_HEADS: dict[MaceVersion, str] = {"mh-0": "omat_pbe", "mh-1": "omat_pbe"}  # of those that have several
STAND_INS = {
    "mace-seeded": _mace("mp-0b-medium"),
    **{f"mace-{version}-seeded": _mace(version) for version in get_args(MaceVersion) if version != "mp-0b-medium"},
    **{f"orb-{version}-seeded": _orb(version) for version in get_args(OrbVersion)},
    **{f"mattersim-{version}-seeded": _mattersim(version) for version in get_args(MatterSimVersion)},
    "unipero-seeded": StandIn(
        script="deepmd_checkpoint.py",
        architecture="unipero",
        source="graph.pb",
        timed="graph.pb",
        convert=lambda source, out: convert_deepmd(DeepmdConfig(source, out)),
        trained=True,
    ),
    "deepmd": StandIn(
        script="deepmd_checkpoint.py",
        architecture="se_e2_a",
        source="graph.pb",
        timed="compressed.pb",
        convert=lambda source, out: convert_deepmd(DeepmdConfig(source, out, compress=True)),
        trained=True,
    ),
}


def checkpoints_of(models: tuple[str, ...], given: tuple[str, ...], environments: Path) -> dict[str, str]:
    """Checkpoints for the original programs; stand-ins are made and converted if they are not there.

    Args:
        models: those that will be timed.
        given: MODEL=PATH of models that are no stand-ins.
        environments: folder of the originals' environments and of the stand-ins' files.
    """
    return dict(item.split("=", 1) for item in given) | {
        model: str(_made(model, environments)) for model in models if model in STAND_INS
    }


def _made(model: str, environments: Path) -> Path:
    """The file that the original program is timed with."""
    stand_in, place, converted = STAND_INS[model], environments / f"{model}-model", user_folder() / model
    if not (place / stand_in.timed).exists():
        python = python_of(ORIGINALS[family(model)], environments)
        print(f"making {model} in {place} ...", flush=True)
        place.mkdir(parents=True, exist_ok=True)
        if stand_in.trained:
            write_data(place / "data")
        command = [str(python), str(HERE / stand_in.script), str(place)]
        command += [stand_in.architecture] if stand_in.architecture else []
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            raise SystemExit(f"{model} could not be made:\n{answer.stderr[-2000:]}")
    if not converted.exists():
        stand_in.convert(place / stand_in.source, converted)
    return place / stand_in.timed
