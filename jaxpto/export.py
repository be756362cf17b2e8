"""COMMAND: write a trajectory in any format that ASE knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import ase
import ase.io
import numpy as np
import tyro
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from ase.stress import full_3x3_to_voigt_6_stress

from jaxpto.console.command import leave, run_command
from jaxpto.errors import InputError
from jaxpto.storage.files import replacing
from jaxpto.storage.output import check_output_file
from jaxpto.storage.trajectory import Trajectory, read_trajectory
from jaxpto.system import System, to_ase


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Write a trajectory in any format that ASE knows, with cell, energy and stress where the format holds them."""

    trajectory: Annotated[Path, tyro.conf.Positional]
    """H5MD file from a run's trajectories folder."""
    out: Annotated[Path, tyro.conf.Positional]
    """File to write; its name chooses the format (frames.extxyz, run.traj, XDATCAR, ...)."""
    every: int = 1
    """Write every N-th frame, beginning with the first."""


def run(config: ExportConfig) -> int:
    """Export a trajectory; positions stay unwrapped, and text formats round to the digits they have.

    Returns:
        Number of frames written.

    Raises:
        InputError: unreadable trajectory, no frames in it, unknown or unfit format, existing output, or every < 1.
        StorageError: the disk refuses the write.
    """
    if config.every < 1:
        raise InputError(f"--every {config.every}: must be at least 1; give 1 for all frames")
    check_output_file(config.out)
    if not config.out.absolute().parent.is_dir():
        raise InputError(f"{config.out}: its folder does not exist; make it first")
    frames = list(to_ase_frames(read_trajectory(config.trajectory).in_laboratory(), config.every))
    if not frames:
        raise InputError(f"{config.trajectory}: it holds no frame yet; wait for the run's first samples")
    name = _format(config.out)
    if ioformats[name].single and len(frames) > 1:
        raise InputError(f"{config.out}: format {name} holds one frame, not {len(frames)}; use .extxyz, say")
    with replacing(config.out) as temporary:
        ase.io.write(temporary, frames, format=name)
    return len(frames)


def to_ase_frames(trajectory: Trajectory, every: int = 1) -> Iterator[ase.Atoms]:
    """The frames of a trajectory as ASE atoms, periodic, positions unwrapped, step and time in `info`.

    Energy (eV) and stress (eV/Angstrom^3, ASE sign and Voigt order) are attached where the trajectory has the
    observables `potential_energy` and `static_stress`.

    Args:
        trajectory: what `read_trajectory` gives.
        every: take every N-th frame.
    """
    stored = trajectory.observables
    for frame in range(0, len(trajectory.step), every):
        place = trajectory.positions[frame], trajectory.cells[frame], trajectory.numbers, trajectory.masses
        atoms = to_ase(System(*map(np.asarray, place)))
        atoms.info |= {"step": int(trajectory.step[frame]), "time_fs": float(trajectory.time[frame])}
        results: dict[str, float | np.ndarray] = {}
        if "potential_energy" in stored:
            results["energy"] = float(stored["potential_energy"][frame])
        if "static_stress" in stored:
            results["stress"] = full_3x3_to_voigt_6_stress(np.asarray(stored["static_stress"][frame], np.float64))
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        yield atoms


def _format(out: Path) -> str:
    try:
        name = filetype(str(out), read=False)
    except UnknownFileTypeError:
        name = ""
    if name not in ioformats or not ioformats[name].can_write:
        raise InputError(f"{out}: ASE writes no format of that name; choose .extxyz, .traj or XDATCAR, say")
    return name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("jaxpto.export", ExportConfig, _report, argv)


def _report(config: ExportConfig) -> None:
    print(f"{run(config)} frames written to {config.out}")


if __name__ == "__main__":
    leave(main())
