"""Training data: DeePMD npy folders and extended-xyz files, cleaned, split by trajectory blocks, with their edges."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ase
import ase.data
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto import neighbors
from jaxpto.errors import InputError
from jaxpto.system import System


@dataclasses.dataclass(frozen=True)
class Frames:
    """Labelled frames of one trajectory (numpy, float64).

    Attributes:
        name: of the folder or file.
        numbers: [n] atomic numbers.
        positions: [f, n, 3] Angstrom.
        cells: [f, 3, 3] Angstrom.
        energies: [f] eV.
        forces: [f, n, 3] eV / Angstrom.
        virials: [f, 3, 3] eV, -dE/dstrain; NaN where there is none.
    """

    name: str
    numbers: np.ndarray
    positions: np.ndarray
    cells: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    virials: np.ndarray

    def __len__(self) -> int:
        return len(self.energies)

    def __getitem__(self, index: np.ndarray) -> Frames:
        return Frames(
            self.name,
            self.numbers,
            *(getattr(self, k)[index] for k in ("positions", "cells", "energies", "forces", "virials")),
        )


def read(path: Path) -> list[Frames]:
    """Read a DeePMD folder (type.raw, type_map.raw, set.*/*.npy), a folder of such folders, or a file that ASE reads.

    Raises:
        InputError: the path is none of these, or is incomplete.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "type.raw").exists():
            return [read_deepmd(path)]
        inside = sorted(p.parent for p in path.glob("*/type.raw"))
        if not inside:
            raise InputError(f"{path}: no type.raw in this folder or the folders in it; give a DeePMD npy folder or an extxyz file")
        return [read_deepmd(p) for p in inside]
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a DeePMD npy folder or an extxyz file")
    return read_ase(path)


def read_deepmd(folder: Path) -> Frames:
    """Read one DeePMD npy folder.

    Raises:
        InputError: a file is missing, unreadable or of the wrong shape.
    """
    try:
        kinds = np.loadtxt(folder / "type.raw", dtype=int, ndmin=1)
        names = (folder / "type_map.raw").read_text().split()
        numbers = np.array([ase.data.atomic_numbers[names[k]] for k in kinds])
        sets = sorted(folder.glob("set.*"))
        if not sets:
            raise InputError(f"{folder}: no set.* folder in it; a DeePMD folder has at least set.000")
        n = len(numbers)

        def column(name: str, *shape: int) -> np.ndarray:
            return np.concatenate([np.load(s / f"{name}.npy").reshape(-1, *shape) for s in sets]).astype(np.float64)

        energies = column("energy")
        virials = (
            column("virial", 3, 3)
            if all((s / "virial.npy").exists() for s in sets)
            else np.full((len(energies), 3, 3), np.nan)
        )
        frames = Frames(
            folder.name, numbers, column("coord", n, 3), column("box", 3, 3), energies, column("force", n, 3), virials
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: not a readable DeePMD folder ({error}); repair or leave it out") from error
    lengths = {len(a) for a in (frames.positions, frames.cells, frames.energies, frames.forces, frames.virials)}
    if len(lengths) > 1:
        raise InputError(f"{folder}: its arrays hold {sorted(lengths)} frames; they must agree")
    return frames


def read_ase(path: Path) -> list[Frames]:
    """Read a file with energies and forces (stress optional); frames of equal atomic numbers make one trajectory.

    Raises:
        InputError: it is unreadable, or a frame lacks energy or forces.
    """
    try:
        images = ase.io.read(path, index=":")
    except Exception as error:  # ASE's readers raise whatever they like
        raise InputError(f"{path}: not readable as structures ({error}); give a DeePMD npy folder or an extxyz file") from error
    groups: dict[tuple[int, ...], list[tuple]] = {}
    for number, atoms in enumerate(images):
        results = atoms.calc.results if atoms.calc is not None else {}
        if "energy" not in results or "forces" not in results:
            raise InputError(f"{path}: frame {number} has no energy or no forces; label it or leave it out")
        stress = atoms.get_stress(voigt=False) if "stress" in results else np.full((3, 3), np.nan)
        groups.setdefault(tuple(atoms.numbers.tolist()), []).append(
            (atoms.positions, atoms.cell.array, results["energy"], results["forces"], -stress * atoms.get_volume())
        )
    return [
        Frames(path.stem if len(groups) == 1 else f"{path.stem}-{g}", np.array(z), *(np.array(c, float) for c in zip(*rows, strict=True)))
        for g, (z, rows) in enumerate(groups.items())
    ]


def clean(frames: Frames, largest_force: float = 100.0) -> Frames:
    """Drop frames with a label or coordinate that is not finite, an inverted cell, or an absurd force (eV / Angstrom).

    Frames that are merely wrong stay: the loss is robust against them.
    """
    f = len(frames)
    good = np.isfinite(frames.energies) & (np.linalg.det(frames.cells) > 0)
    for a in (frames.positions, frames.cells, frames.forces):
        good &= np.isfinite(a.reshape(f, -1)).all(1)
    good &= np.abs(np.nan_to_num(frames.forces)).reshape(f, -1).max(1) < largest_force
    return frames[np.flatnonzero(good)]


def split(frames: Frames, blocks: int = 20, held_out: tuple[int, ...] = (6, 13)) -> tuple[Frames, Frames]:
    """Training and validation frames: whole contiguous blocks are held out, for neighbouring frames are correlated."""
    block = np.arange(len(frames)) * blocks // max(1, len(frames))
    out = np.isin(block, held_out)
    return frames[np.flatnonzero(~out)], frames[np.flatnonzero(out)]


def reference_energies(groups: list[Frames], elements: tuple[int, ...]) -> np.ndarray:
    """Energies [element] in eV whose sum over atoms fits the mean energy of each trajectory (least squares, minimum norm).

    They are subtracted from the labels: float32 could not hold both 1e5 eV of core energies and a phonon.
    """
    counts = np.array([[np.sum(g.numbers == z) for z in elements] for g in groups], float)
    means = np.array([np.mean(g.energies) for g in groups])
    return np.linalg.lstsq(counts, means, rcond=1e-8)[0]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Frames of one composition on the device, with their edges in the dense, species-sorted layout.

    Attributes:
        vectors: [f, n, s, 3] Angstrom, empty slots beyond the cutoff.
        senders: [f, n * s], n marks an empty slot.
        energies: [f] eV, reference energies subtracted.
        forces: [f, n, 3] eV / Angstrom.
        virials: [f, 3, 3] eV.
        numbers: [n] atomic numbers.
        species: atomic numbers of the blocks.
        slots: sizes of the blocks.
    """

    vectors: Float[Array, "f n s 3"]
    senders: Int[Array, "f e"]
    energies: Float[Array, " f"]
    forces: Float[Array, "f n 3"]
    virials: Float[Array, "f 3 3"]
    numbers: np.ndarray
    species: tuple[int, ...]
    slots: tuple[int, ...]

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The device arrays, frames first."""
        return self.vectors, self.senders, self.energies, self.forces, self.virials


def prepare(frames: Frames, reference: dict[int, float], cutoff: float, dtype: np.typing.DTypeLike) -> Batch:
    """Build the edges of all frames (of one composition) and move everything to the device."""
    n = len(frames.numbers)

    def system(f: int) -> System:
        return System(
            jnp.asarray(frames.positions[f], dtype),
            jnp.asarray(frames.cells[f], dtype),
            jnp.asarray(frames.numbers, jnp.int32),
            jnp.ones(n, dtype),
        )

    some = [system(int(f)) for f in np.unique(np.linspace(0, len(frames) - 1, 4).astype(int))]
    layout = neighbors.allocate(some, cutoff, 0.0, by_species=True, headroom=1.1)

    def edges(layout: neighbors.Layout) -> tuple[Array, Array, Array]:
        def one(frame: tuple[Array, Array]) -> tuple[Array, Array, Array]:
            positions, cell = frame
            s = dataclasses.replace(some[0], positions=positions, cell=cell)
            found = neighbors.build(s, layout)
            return neighbors.edge_vectors(s, found), found.senders, found.overflow

        return jax.jit(lambda p, c: jax.lax.map(one, (p, c)))(
            jnp.asarray(frames.positions, dtype), jnp.asarray(frames.cells, dtype)
        )

    for _ in range(10):
        vectors, senders, overflow = edges(layout)
        if not bool(overflow.any()):
            break
        layout = neighbors.grow(layout)
    else:
        raise InputError(f"{frames.name}: more neighbours within {cutoff} A than memory was planned for; check its cells")
    vectors = np.asarray(vectors).reshape(len(frames), n, -1, 3)
    senders = np.asarray(senders).reshape(len(frames), n, -1)
    keep, slots, start = [], [], 0
    for size in layout.slots:  # drop the slots that no frame uses
        used = int((senders[:, :, start : start + size] < n).sum(2).max())
        slots.append(max(1, used))
        keep.extend(range(start, start + slots[-1]))
        start += size
    offset = sum(reference[z] for z in frames.numbers.tolist())
    return Batch(
        jnp.asarray(vectors[:, :, keep]),
        jnp.asarray(senders[:, :, keep].reshape(len(frames), -1)),
        jnp.asarray(frames.energies - offset, dtype),
        jnp.asarray(frames.forces, dtype),
        jnp.asarray(frames.virials, dtype),
        frames.numbers,
        layout.species,
        tuple(slots),
    )
