"""Labelled frames with their neighbour lists, ready for the device: one program serves all frames of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jaxpto import neighbors
from jaxpto.errors import InputError
from jaxpto.potential import Potential
from jaxpto.system import Leaf, System
from jaxpto.training.frames import LabelledFrames

REGROWS = 10  # enlargements of the neighbour list
SAMPLES = 4  # frames of each trajectory that the capacities are first guessed from


@struct.dataclass
class Labels:
    """What a frame should give.

    Attributes:
        energy: [] eV, relative to the reference energies of its elements.
        forces: [n, 3] eV/Angstrom.
        virial: [3, 3] -dE/dstrain, eV; NaN where there is none.
        moments: [n] magnetic moments, Bohr magnetons; NaN where there are none.
    """

    energy: Float[Leaf, "*batch"]
    forces: Float[Leaf, "*batch n 3"]
    virial: Float[Leaf, "*batch 3 3"]
    moments: Float[Leaf, "*batch n"]


@struct.dataclass
class Frame:
    """One labelled frame with its neighbour list, or a stack of them."""

    system: System
    neighbors: neighbors.Neighbors
    labels: Labels


@dataclasses.dataclass(frozen=True)
class FrameBatch:
    """Frames of equal layout, on the host.

    Attributes:
        frames: [f] the frames (numpy).
        totals: [f] energies as they were labelled, eV, in double precision.
    """

    frames: Frame
    totals: Float[np.ndarray, " f"]

    def __len__(self) -> int:
        return len(self.totals)

    def __getitem__(self, index: np.ndarray) -> FrameBatch:
        return FrameBatch(jax.tree.map(lambda leaf: leaf[index], self.frames), self.totals[index])

    @property
    def layout(self) -> neighbors.Layout:
        """The layout of the neighbour lists."""
        return self.frames.neighbors.layout

    @property
    def numbers(self) -> np.ndarray:
        """[f, n] atomic numbers."""
        return np.asarray(self.frames.system.numbers)

    @property
    def has_moments(self) -> bool:
        """Whether a frame has magnetic moments."""
        return bool(np.isfinite(self.frames.labels.moments).any())

    def frame(self, index: int) -> Frame:
        """One frame."""
        return jax.tree.map(lambda leaf: np.asarray(leaf[index]), self.frames)

    def relative_to(self, offsets: Float[np.ndarray, " f"]) -> FrameBatch:
        """The same with labels relative to energies [f], eV, which are subtracted in double precision."""
        labels = self.frames.labels
        energy = (self.totals - offsets).astype(labels.energy.dtype)
        frames = dataclasses.replace(self.frames, labels=dataclasses.replace(labels, energy=jnp.asarray(energy)))
        return dataclasses.replace(self, frames=jax.tree.map(np.asarray, frames))


def make_batch(
    trajectories: Sequence[LabelledFrames], potential: Potential, dtype: jax.typing.DTypeLike = np.float32
) -> FrameBatch:
    """Build the neighbour lists of all frames of trajectories that can share a layout.

    Args:
        trajectories: equal numbers of atoms; equal elements in equal order where the model has a list `by_species`.
        potential: the model whose layout it is.
        dtype: floating-point type.

    Raises:
        InputError: ever more neighbours within the cutoff.
    """
    positions, cells, numbers = (
        np.concatenate([np.asarray(column(t), kind) for t in trajectories])
        for column, kind in (
            (lambda t: t.positions, dtype),
            (lambda t: t.cells, dtype),
            (lambda t: np.tile(t.numbers, (len(t), 1)), np.int32),
        )
    )
    systems = System(*map(jnp.asarray, (positions, cells, numbers, np.ones(numbers.shape, dtype))))
    found = _lists(systems, potential, _samples(trajectories), trajectories[0].name)
    energies, forces, virials, moments = (
        np.concatenate([getattr(t, name) for t in trajectories])
        for name in ("energies", "forces", "virials", "moments")
    )
    labels = Labels(*(jnp.asarray(x, dtype) for x in (np.zeros_like(energies), forces, virials, moments)))
    return FrameBatch(jax.tree.map(np.asarray, Frame(systems, found, labels)), energies)


def _samples(trajectories: Sequence[LabelledFrames]) -> list[int]:
    """Indices of some frames of each trajectory, counted through."""
    chosen, start = [], 0
    for frames in trajectories:
        chosen += (start + np.unique(np.linspace(0, len(frames) - 1, SAMPLES).astype(int))).tolist()
        start += len(frames)
    return chosen


def _lists(systems: System, potential: Potential, samples: list[int], name: str) -> neighbors.Neighbors:
    """Neighbour lists [f] whose capacities are what the fullest frame needs."""
    some = [jax.tree.map(lambda leaf, f=f: jnp.asarray(leaf[f]), systems) for f in samples]
    layout = potential.allocate(some, 0.0, headroom=1.1)

    def build(layout: neighbors.Layout) -> neighbors.Neighbors:
        return jax.jit(lambda s: jax.lax.map(lambda one: neighbors.build(one, layout), s))(systems)

    try:
        fitted = neighbors.grow_until_it_fits(
            build,
            layout,
            overflowed=lambda found: bool(found.overflow.any()),
            enlarge=lambda layout, _: neighbors.grow(layout, np.asarray(systems.cell)),
            enlargements=REGROWS,
        )
    except neighbors.NeighborOverflowError:
        raise InputError(f"{name}: ever more neighbours within {potential.cutoff} A; check its cells") from None
    return jax.tree.map(np.asarray, build(_tight(fitted.result, fitted.layout)))


def _tight(found: neighbors.Neighbors, layout: neighbors.Layout) -> neighbors.Layout:
    """The layout with the capacities that these lists [f] fill: empty places cost a training step time."""
    n = found.wraps.shape[1]
    filled = np.asarray(found.senders) < n
    if not layout.edges:
        slots = np.split(filled.reshape(len(filled), n, -1), np.cumsum(layout.slots)[:-1], axis=2)
        return dataclasses.replace(layout, slots=tuple(max(1, int(block.sum(axis=2).max())) for block in slots))
    sizes: dict[str, Any] = {"edges": filled.sum(axis=1)}
    if found.angles is not None:
        sizes["bonds"] = (np.asarray(found.angles.bonds) < layout.edges).sum(axis=1)
        sizes["angles"] = (np.asarray(found.angles.first) < layout.bonds).sum(axis=1)
    return dataclasses.replace(layout, **{name: max(1, int(count.max())) for name, count in sizes.items()})


def vectors_of(batch: FrameBatch, index: np.ndarray) -> Float[Array, "f e 3"]:
    """[f, e, 3] edge vectors of some frames, Angstrom; empty slots lie beyond the cutoff."""
    some = batch[index].frames
    return jax.jit(jax.vmap(neighbors.edge_vectors))(some.system, some.neighbors)
