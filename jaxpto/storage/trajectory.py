"""H5MD 1.1 trajectories (https://nongnu.org/h5md), one file per replica, that a kill at any moment cannot corrupt.

The number of samples of a run is known before it starts, so the file is created at its full length with contiguous
datasets, filled with NaN and renamed into place. From then on HDF5 never writes to it: `write_frames` puts raw numbers
at the fixed offsets of the datasets, so there is no metadata that a kill could leave half-written, and a full disk
shows at the start. How many frames count is one integer in the file, raised only after the frames are on the disk.

Every frame is stored in the standard orientation of its cell (a along x, b in the xy plane, c towards +z), since
MDAnalysis and others keep lengths and angles alone; the rotation back into the laboratory is stored beside it.
"""

from __future__ import annotations

import dataclasses
import getpass
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxpto._version import __version__
from jaxpto.errors import InputError
from jaxpto.storage.files import replacing, storage_error
from jaxpto.storage.orientation import to_standard, turn
from jaxpto.system import System

PARTICLES = "particles/trajectory"  # the name by which MDAnalysis finds the atoms without a topology
EARLIER_PARTICLES = "particles/atoms"
VALID_FRAMES = "parameters/jaxpto/valid_frames"
RESERVED = frozenset({"step", "time", "position", "cell", "rotation"})  # in every frame, beside the observables
ORIENTATION = "standard: a along x, b in the xy plane; vector @ observables/rotation is the one in the laboratory"
_BLOCK = 1 << 22  # bytes of NaN written at a time
_COPIED_FRAMES = 256


class Quantity(NamedTuple):
    """A quantity stored with every frame: its shape in one frame, and its unit in H5MD spelling ("eV Angstrom-3").

    Shape [3] makes it a vector and [3, 3] a tensor: both are turned with the cell.
    """

    shape: tuple[int, ...]
    unit: str

    def components(self, name: str) -> list[str]:
        """Names of the components, row by row: `name` itself, or with _x, _y, _z, or with _xx, _xy, ..."""
        if all(size == 3 for size in self.shape):
            axes = ["".join("xyz"[k] for k in index) for index in np.ndindex(self.shape)]
            return [f"{name}_{one}" if one else name for one in axes]
        return ["_".join([name, *map(str, index)]) for index in np.ndindex(self.shape)]


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The valid frames of one replica, at the precision of the run, in the orientation of the file.

    Attributes:
        step: [f] integration steps done.
        time: [f] fs.
        positions: [f, n, 3] Angstrom, unwrapped.
        cells: [f, 3, 3] Angstrom, rows are the lattice vectors.
        rotation: [f, 3, 3] float64, proper; a row vector of the file times it is the one in the laboratory. The
            identity in files of earlier versions, whose frames are in the laboratory's orientation.
        numbers: [n] atomic numbers.
        masses: [n] amu.
        observables: name -> [f, ...] values.
        units: name -> unit of an observable, in H5MD spelling.
    """

    step: Int[np.ndarray, " f"]
    time: Float[np.ndarray, " f"]
    positions: Float[np.ndarray, "f n 3"]
    cells: Float[np.ndarray, "f 3 3"]
    rotation: Float[np.ndarray, "f 3 3"]
    numbers: Int[np.ndarray, " n"]
    masses: Float[np.ndarray, " n"]
    observables: dict[str, Shaped[np.ndarray, "f ..."]]
    units: dict[str, str]

    def in_laboratory(self) -> Trajectory:
        """The same frames as they were simulated: positions, cells, vectors and tensors turned back."""
        given = {"position": self.positions, "cell": self.cells} | self.observables
        turned = turn(given, self.rotation)
        positions, cells = turned.pop("position"), turned.pop("cell")
        identity = np.tile(np.eye(3), (len(self.step), 1, 1))
        return dataclasses.replace(self, positions=positions, cells=cells, rotation=identity, observables=turned)


def create_trajectory(
    path: str | Path,
    system: System,
    n_samples: int,
    observables: Mapping[str, Quantity],
    origin: Mapping[str, str | int | float] | None = None,
) -> None:
    """Create the full-length file of one replica, without any valid frame yet; an existing file is replaced atomically.

    Args:
        path: the file to create, usually `NAME.h5md`; its folder must exist.
        system: one replica (unbatched); numbers, masses and the floating-point type of the frames are taken from it.
        n_samples: frames that the whole run will write, at most.
        observables: what else is stored with every frame, as numbers of the same floating-point type.
        origin: where the file belongs (run, temperature and replica, say), for `trajectory_origin`.

    Raises:
        StorageError: the disk cannot hold the whole run.
        ValueError: an observable takes the name of something that is stored anyway.
    """
    if reserved := RESERVED & set(observables):
        raise ValueError(f"{path}: {sorted(reserved)} are stored anyway and cannot name an observable")
    atoms = _Atoms(np.asarray(system.numbers), np.asarray(system.masses), np.dtype(system.positions.dtype))
    with replacing(path, _frame_bytes(atoms, observables) * n_samples) as temporary:
        _create(temporary, atoms, n_samples, observables)
        _set_origin(temporary, origin or {})


def write_frames(path: str | Path, first_index: int, frames: Mapping[str, Shaped[np.ndarray, "f ..."]]) -> None:
    """Write consecutive frames in place and make them durable; writing the same frames again changes nothing.

    They are given as simulated and stored in standard orientation, with the rotation (see `orientation`); files of
    earlier versions, without a place for it, go on in the laboratory's orientation.

    The file then counts `first_index` + f valid frames, so that a run that went back to an earlier checkpoint simply
    writes on from there.

    Args:
        path: a file made by `create_trajectory`.
        first_index: frame number of the first frame given; no gap may open before it.
        frames: "step" [f], "time" [f] fs, "position" [f, n, 3] and "cell" [f, 3, 3] Angstrom, and every
            observable by name.

    Raises:
        StorageError: the disk refuses the write.
        ValueError: a missing, unknown or misshapen array, a gap before `first_index`, or frames beyond the end.
    """
    with _open(path) as file:
        targets, valid = _targets(file), int(file[VALID_FRAMES][()])
    expected = set(targets) - {VALID_FRAMES, "rotation"}
    if set(frames) != expected:
        raise ValueError(f"{path}: frames hold {sorted(frames)}, the file needs {sorted(expected)}")
    _write(path, first_index, to_standard(frames) if "rotation" in targets else frames, targets, valid)


def _write(
    path: str | Path,
    first_index: int,
    frames: Mapping[str, Shaped[np.ndarray, "f ..."]],
    targets: dict[str, _Target],
    valid: int,
) -> None:
    """Write frames as they are; see `write_frames`."""
    arrays = {name: np.asarray(values, targets[name].dtype, order="C") for name, values in frames.items()}
    n_frames = len(arrays["step"])
    for name, values in arrays.items():
        if values.shape != (n_frames, *targets[name].shape[1:]):
            raise ValueError(f"{path}: {name} has shape {values.shape}, not {(n_frames, *targets[name].shape[1:])}")
    capacity = targets["step"].shape[0]
    if not 0 <= first_index <= valid or first_index + n_frames > capacity:
        raise ValueError(
            f"{path}: frames {first_index} to {first_index + n_frames - 1} do not fit, {valid} of {capacity} are valid"
        )
    if n_frames == 0:
        return
    try:
        with open(path, "rb+", buffering=0) as file:
            if first_index < valid:  # what is about to be overwritten must not count while it is mixed
                _put(file.fileno(), targets[VALID_FRAMES].offset, np.asarray(first_index, "<i8"))
            for name, values in arrays.items():
                _put(file.fileno(), targets[name].offset + first_index * values[0].nbytes, values)
            os.fsync(file.fileno())  # the frames first, then the count that vouches for them
            _put(file.fileno(), targets[VALID_FRAMES].offset, np.asarray(first_index + n_frames, "<i8"))
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(Path(path), error, sum(values.nbytes for values in arrays.values())) from error


def valid_frames(path: str | Path) -> int:
    """Number of frames that count in a trajectory.

    Raises:
        InputError: the file is missing or not a trajectory of jaxpto.
    """
    with _open(path) as file:
        try:
            return int(file[VALID_FRAMES][()])
        except OSError:
            raise InputError(f"{path}: it is cut or damaged; restore it from a copy") from None


def trajectory_origin(path: str | Path) -> dict[str, str | int | float]:
    """Where a file belongs, as `create_trajectory` noted it; empty for files of earlier versions.

    Raises:
        InputError: the file is missing or not a trajectory of jaxpto.
    """
    with _open(path) as file:
        stored = file["parameters/jaxpto"].attrs
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in stored.items()}


def trajectory_bytes(system: System, n_samples: int, observables: Mapping[str, Quantity]) -> int:
    """Bytes of the frames that `create_trajectory` makes room for."""
    atoms = _Atoms(np.asarray(system.numbers), np.asarray(system.masses), np.dtype(system.positions.dtype))
    return _frame_bytes(atoms, observables) * n_samples


def check_trajectory(
    path: str | Path,
    n_valid: int,
    origin: Mapping[str, str | int | float] | None = None,
    observables: Mapping[str, Quantity] | None = None,
) -> None:
    """Check before a resumed run that its trajectory is the right one and holds every frame the checkpoint counts.

    Args:
        path: the replica's file.
        n_valid: frames that the checkpoint knows of.
        origin: what the file was created with; what an earlier version did not store is not compared.
        observables: those that the run goes on to write; None where only the frames matter.

    Raises:
        InputError: the file is missing, unreadable, of another place in a run, or holds fewer frames or other
            observables.
    """
    remedy = "restore it from a copy, or remove the run (or name a new `out`) to begin anew"
    if not Path(path).exists():
        raise InputError(f"{path} is missing; {remedy}")
    try:
        stored, found = valid_frames(path), trajectory_origin(path)
    except InputError:
        raise InputError(f"{path} is cut or damaged; {remedy}") from None
    for name, value in found.items():
        if origin and name in origin and value != origin[name]:
            raise InputError(f"{path} belongs elsewhere: its {name} is {value}, not {origin[name]}; {remedy}")
    if stored < n_valid:
        raise InputError(f"{path}: it holds {stored} frames but the checkpoint counts {n_valid}; {remedy}")
    if observables is not None and (other := set(stored_quantities(path)) ^ set(observables)):
        raise InputError(
            f"{path} was begun with other observables ({', '.join(sorted(other))}); "
            "go on with those it holds, or name a new folder"
        )


def finalize_trajectory(path: str | Path, n_valid: int) -> None:
    """Cut a trajectory to its first `n_valid` frames, atomically; a complete one stays as it is.

    Args:
        path: a file made by `create_trajectory`.
        n_valid: frames that count; a replica that failed early has fewer than were planned.

    Raises:
        StorageError: the disk refuses the write.
        ValueError: fewer frames than that are valid.
    """
    with _open(path) as source:
        stored, capacity = int(source[VALID_FRAMES][()]), _particles(source)["step"].shape[0]
        if n_valid > stored:
            raise ValueError(f"{path}: {stored} frames are valid, fewer than {n_valid}")
        if n_valid == capacity:
            return
        data, observables = dict(_time_dependent(source)), _quantities(source)
        particles = _particles(source)
        atoms = _Atoms(particles["species"][()], particles["mass"][()], data["position"].dtype)
        with replacing(path, _frame_bytes(atoms, observables) * n_valid) as temporary:
            _create(temporary, atoms, n_valid, observables)
            _set_origin(temporary, trajectory_origin(path))
            with _open(temporary) as file:
                targets = _targets(file)
            for first in range(0, n_valid, _COPIED_FRAMES):
                last = min(first + _COPIED_FRAMES, n_valid)
                frames = {name: values[first:last] for name, values in data.items()}
                if "rotation" not in frames:  # a file of an earlier version
                    frames["rotation"] = np.tile(np.eye(3), (last - first, 1, 1))
                _write(temporary, first, frames, targets, first)


def read_trajectory(path: str | Path) -> Trajectory:
    """Read all valid frames of a trajectory into memory, also while its run goes on.

    Raises:
        InputError: the file is missing or not a trajectory of jaxpto.
    """
    with _open(path) as file:
        valid = int(file[VALID_FRAMES][()])
        particles = _particles(file)
        elements = dict(file.get("observables", {}))
        rotation = elements.pop("rotation", None)
        return Trajectory(
            step=particles["step"][:valid],
            time=particles["time"][:valid],
            positions=particles["position/value"][:valid],
            cells=particles["box/edges/value"][:valid],
            rotation=np.tile(np.eye(3), (valid, 1, 1)) if rotation is None else rotation["value"][:valid],
            numbers=particles["species"][()],
            masses=particles["mass"][()],
            observables={name: element["value"][:valid] for name, element in elements.items()},
            units={name: str(element["value"].attrs.get("unit", "")) for name, element in elements.items()},
        )


def stored_quantities(path: str | Path) -> dict[str, Quantity]:
    """The observables of a trajectory by name, in alphabetical order.

    Raises:
        InputError: the file is missing or not a trajectory of jaxpto.
    """
    with _open(path) as file:
        return _quantities(file)


def observable_blocks(
    path: str | Path, frames: int = _COPIED_FRAMES
) -> Iterator[dict[str, Shaped[np.ndarray, "f ..."]]]:
    """Step, time (fs) and observables of the valid frames, so many frames at a time.

    Raises:
        InputError: the file is missing or not a trajectory of jaxpto.
    """
    with _open(path) as file:
        valid, data = int(file[VALID_FRAMES][()]), dict(_time_dependent(file))
        wanted = {name: values for name, values in data.items() if name not in RESERVED - {"step", "time"}}
        for first in range(0, valid, frames):
            yield {name: values[first : min(first + frames, valid)] for name, values in wanted.items()}


class _Atoms(NamedTuple):
    numbers: np.ndarray
    masses: np.ndarray
    dtype: np.dtype


class _Target(NamedTuple):
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


def _open(path: str | Path) -> h5py.File:
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except OSError as error:  # HDF5 reports addresses and superblocks, which help nobody who has lost a file
        reason = os.strerror(error.errno) if error.errno else "it is cut or damaged"
        raise InputError(
            f"{path}: not a readable H5MD file ({reason}); restore it or give one from a run's trajectories folder"
        ) from None
    if VALID_FRAMES not in file or (PARTICLES not in file and EARLIER_PARTICLES not in file):
        file.close()
        raise InputError(f"{path}: not a trajectory of jaxpto; give one from a run's trajectories folder")
    return file


def _particles(file: h5py.File) -> h5py.Group:
    return file[PARTICLES if PARTICLES in file else EARLIER_PARTICLES]


def _time_dependent(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    particles = _particles(file)
    yield "step", particles["step"]
    yield "time", particles["time"]
    yield "position", particles["position/value"]
    yield "cell", particles["box/edges/value"]
    for name, element in file.get("observables", {}).items():
        yield name, element["value"]


def _quantities(file: h5py.File) -> dict[str, Quantity]:
    return {
        name: Quantity(values.shape[1:], str(values.attrs.get("unit", "")))
        for name, values in _time_dependent(file)
        if name not in RESERVED
    }


def _targets(file: h5py.File) -> dict[str, _Target]:
    datasets = dict(_time_dependent(file)) | {VALID_FRAMES: file[VALID_FRAMES]}
    targets = {}
    for name, data in datasets.items():
        offset = data.id.get_offset()
        if offset is None and data.size:
            raise ValueError(f"{file.filename}: {name} has no fixed place; the file was rewritten by another program")
        targets[name] = _Target(offset or 0, data.shape, data.dtype)
    return targets


def _put(descriptor: int, offset: int, values: np.ndarray) -> None:
    rest = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    while rest:  # pwrite may write less than asked, the last bytes before a full disk for one
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _frame_bytes(atoms: _Atoms, observables: Mapping[str, Quantity]) -> int:
    numbers = 3 * len(atoms.numbers) + 9 + sum(math.prod(observable.shape) for observable in observables.values())
    return numbers * atoms.dtype.itemsize + 16 + 72  # step and time, rotation


def _create(path: Path, atoms: _Atoms, n_samples: int, observables: Mapping[str, Quantity]) -> None:
    """Lay out the file and take the disk space of the whole run."""
    dtype = atoms.dtype.newbyteorder("<")
    try:
        with h5py.File(path, "w", libver=("earliest", "v110")) as file:
            _write_header(file)
            particles = file.create_group(PARTICLES)
            particles["species"] = atoms.numbers.astype(np.int32)
            particles["mass"] = atoms.masses
            particles["mass"].attrs["unit"] = "u"
            step = _contiguous(particles, "step", (n_samples,), np.dtype("<i8"))
            time = _contiguous(particles, "time", (n_samples,), np.dtype("<f8"))
            time.attrs["unit"] = "fs"
            box = particles.create_group("box")
            box.attrs["dimension"] = np.int32(3)
            box.attrs["boundary"] = ["periodic"] * 3
            box.attrs["orientation"] = ORIENTATION
            group = file.create_group("observables")
            elements: list[tuple[h5py.Group, str, tuple[int, ...], np.dtype, str]] = [
                (particles, "position", (len(atoms.numbers), 3), dtype, "Angstrom"),
                (box, "edges", (3, 3), dtype, "Angstrom"),
                (group, "rotation", (3, 3), np.dtype("<f8"), ""),
                *((group, name, stored.shape, dtype, stored.unit) for name, stored in observables.items()),
            ]
            for parent, name, shape, kind, unit in elements:
                element = parent.create_group(name)
                element["step"], element["time"] = step, time  # hard links: the standard's way to share one clock
                value = _contiguous(element, "value", (n_samples, *shape), kind)
                if unit:
                    value.attrs["unit"] = unit
            _contiguous(file.create_group("parameters/jaxpto"), "valid_frames", (), np.dtype("<i8"))
    except (RuntimeError, ValueError) as error:  # what HDF5 makes of some failed writes
        raise OSError(str(error)) from error
    _fill(path)


def _set_origin(path: Path, origin: Mapping[str, str | int | float]) -> None:
    with h5py.File(path, "r+", libver=("earliest", "v110")) as file:
        for name, value in origin.items():
            file["parameters/jaxpto"].attrs[name] = value


def _write_header(file: h5py.File) -> None:
    header = file.create_group("h5md")
    header.attrs["version"] = np.array([1, 1], np.int32)
    header.create_group("author").attrs["name"] = _user()
    creator = header.create_group("creator")
    creator.attrs["name"] = "jaxpto"
    creator.attrs["version"] = __version__
    header.create_group("modules/units").attrs["version"] = np.array([1, 0], np.int32)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # no account behind the user id, as in some containers
        return "unknown"


def _contiguous(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """Create a dataset whose place in the file is fixed now; nothing is written to it (`_fill` does)."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    kind = h5py.h5t.py_create(dtype, logical=True)
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, plist))


def _fill(path: Path) -> None:
    """Write every reserved byte once: NaN, step -1, no valid frame. Whatever the disk cannot hold fails here."""
    with h5py.File(path, "r") as file:
        targets = _targets(file)
    with open(path, "rb+", buffering=0) as file:
        for name, target in targets.items():
            empty = 0 if name == VALID_FRAMES else -1 if target.dtype.kind == "i" else np.nan
            count, size = math.prod(target.shape), target.dtype.itemsize
            block = np.full(min(count, _BLOCK // size), empty, target.dtype)
            for first in range(0, count, _BLOCK // size):
                _put(file.fileno(), target.offset + first * size, block[: count - first])
