"""Frames on the device: their edges, how often each is drawn, reference energies and shortest distances."""

from __future__ import annotations

import dataclasses
import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jaxtyping import Array, Float, Int

from jaxpto import neighbors
from jaxpto.errors import InputError
from jaxpto.system import System
from jaxpto.training.data import LabelledFrames, hold_out_blocks, join

REGROWS = 10  # enlargements of the neighbour list


@dataclasses.dataclass(frozen=True)
class FrameBatch:
    """Frames of one composition on the device, with their edges in the dense, species-sorted layout.

    Attributes:
        vectors: [f, n, 3, s] Angstrom, empty slots beyond the cutoff.
        senders: [f, n * s] neighbour of each edge; n marks an empty slot.
        energies: [f] eV, reference energies subtracted.
        forces: [f, n, 3] eV / Angstrom.
        virials: [f, 3, 3] eV.
        numbers: [n] atomic numbers.
        layout: the layout of the edges, with as many slots in each block as some frame needs.
    """

    vectors: Float[Array, "f n 3 s"]
    senders: Int[Array, "f e"]
    energies: Float[Array, " f"]
    forces: Float[Array, "f n 3"]
    virials: Float[Array, "f 3 3"]
    numbers: np.ndarray
    layout: neighbors.Layout

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers of the blocks."""
        return self.layout.species

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The device arrays, frames first."""
        return self.vectors, self.senders, self.energies, self.forces, self.virials


def make_batch(
    frames: LabelledFrames, reference: dict[int, float], cutoff: float, dtype: jax.typing.DTypeLike
) -> FrameBatch:
    """Build the edges of frames with one composition, and move everything to the device.

    Args:
        frames: labelled frames.
        reference: energy of each element that is subtracted, eV.
        cutoff: Angstrom.
        dtype: floating-point type on the device.

    Raises:
        InputError: ever more neighbours within the cutoff.
    """
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

    try:
        found = neighbors.grow_until_it_fits(
            edges,
            layout,
            overflowed=lambda found: bool(found[2].any()),
            enlarge=lambda layout, _: neighbors.grow(layout, frames.cells),
            enlargements=REGROWS,
        )
    except neighbors.NeighborOverflowError:
        raise InputError(f"{frames.name}: ever more neighbours within {cutoff} A; check its cells") from None
    layout, (vectors, senders, _) = found.layout, found.result
    vectors = np.swapaxes(np.asarray(vectors).reshape(len(frames), n, -1, 3), 2, 3)
    senders = np.asarray(senders).reshape(len(frames), n, -1)
    keep, slots, start = [], [], 0
    for size in layout.slots:  # drop the slots that no frame uses
        used = int((senders[:, :, start : start + size] < n).sum(2).max())
        slots.append(max(1, used))
        keep.extend(range(start, start + slots[-1]))
        start += size
    offset = sum(reference[z] for z in frames.numbers.tolist())
    return FrameBatch(
        jnp.asarray(vectors[:, :, :, keep]),
        jnp.asarray(senders[:, :, keep].reshape(len(frames), -1)),
        jnp.asarray(frames.energies - offset, dtype),
        jnp.asarray(frames.forces, dtype),
        jnp.asarray(frames.virials, dtype),
        frames.numbers,
        dataclasses.replace(layout, slots=tuple(slots)),
    )


@dataclasses.dataclass(frozen=True)
class Composition:
    """Training and validation frames of all trajectories that have the same atoms.

    Attributes:
        name: name of the first trajectory.
        probability: [f] probability of drawing each training frame.
        weight_of: probability of each trajectory.
        train, held_out: batches on the device.
        held_out_names: name of the trajectory of each held-out frame.
    """

    name: str
    probability: np.ndarray
    weight_of: dict[str, float]
    train: FrameBatch
    held_out: FrameBatch | None
    held_out_names: list[str]


def group(
    trajectories: list[LabelledFrames], probability: np.ndarray, reference: dict[int, float], cutoff: float
) -> list[Composition]:
    """Split every trajectory into blocks, and join those with the same atoms, which share a compiled program."""
    gathered: dict[tuple[int, ...], list[int]] = {}
    for index, frames in enumerate(trajectories):
        gathered.setdefault(tuple(frames.numbers.tolist()), []).append(index)
    compositions = []
    for indices in gathered.values():
        pieces = [hold_out_blocks(trajectories[i]) for i in indices]
        held = [p[1] for p in pieces if len(p[1])]
        compositions.append(
            Composition(
                trajectories[indices[0]].name,
                np.concatenate(
                    [np.full(len(p[0]), probability[i] / len(p[0])) for i, p in zip(indices, pieces, strict=True)]
                ),
                {trajectories[i].name: float(probability[i]) for i in indices},
                make_batch(join([p[0] for p in pieces]), reference, cutoff, np.float32),
                make_batch(join(held), reference, cutoff, np.float32) if held else None,
                [p.name for p in held for _ in range(len(p))],
            )
        )
    return compositions


def share_of(trajectories: list[LabelledFrames], shares: tuple[str, ...]) -> np.ndarray:
    """Probability of each trajectory [t]; every GLOB's fraction is spread evenly over what it matches.

    Raises:
        InputError: a share that cannot be read or matches nothing, or fractions that add up to more than one.
    """
    probability, free = np.zeros(len(trajectories)), np.ones(len(trajectories), bool)
    for share in shares:
        pattern, _, fraction = share.rpartition("=")
        try:
            value = float(fraction)
        except ValueError:
            value = -1.0
        hits = np.array([fnmatch.fnmatch(t.name, pattern) for t in trajectories]) & free
        if not 0 < value <= 1 or not hits.any():
            raise InputError(
                f"share {share!r}: write GLOB=FRACTION with a fraction in (0, 1] and a GLOB that fits data"
            )
        probability[hits] = value / hits.sum()
        free &= ~hits
    rest = 1.0 - probability.sum()
    if rest < -1e-9:
        raise InputError(f"the shares add up to {probability.sum():.3f}; the limit is 1")
    if free.any():
        probability[free] = max(rest, 0.0) / free.sum()
    return probability / probability.sum()


def reference_energies(groups: list[LabelledFrames], elements: tuple[int, ...]) -> np.ndarray:
    """Energies [element] in eV whose sums fit the mean energy of each trajectory (least squares, minimum norm).

    They are subtracted from the labels: float32 could not hold both 1e5 eV of core energies and a phonon.
    """
    counts = np.array([[np.sum(g.numbers == z) for z in elements] for g in groups], float)
    means = np.array([np.mean(g.energies) for g in groups])
    return np.linalg.lstsq(counts, means, rcond=1e-8)[0]


def shortest_distances(
    compositions: list[Composition], elements: tuple[int, ...], cutoff: float, rare: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Trusted distance and wall [e, e] of each pair of elements, Angstrom.

    Trusted: all but `rare` of the distances in the data are longer (all but one in a thousand where there are few).
    Wall: 0.98 of the shortest of them. Both are 0.8 of the sum of covalent radii for pairs that are never in contact.
    """
    radii = covalent_radii[list(elements)]
    number = np.zeros((len(elements), len(elements)), int)
    closest = np.full((len(elements), len(elements), rare), np.inf)
    batches = [b for c in compositions for b in (c.train, c.held_out) if b is not None]
    for batch in batches:
        distances = np.linalg.norm(np.asarray(batch.vectors), axis=2)
        ends = np.cumsum(batch.layout.slots)
        for other, end, size in zip(batch.species, ends, batch.layout.slots, strict=True):
            for own in batch.species:
                pair = elements.index(own), elements.index(other)
                if pair[0] <= pair[1]:  # the other direction holds the same distances
                    found = distances[:, batch.numbers == own, end - size : end].ravel()
                    number[pair] += (found < 0.999 * cutoff).sum()
                    merged = np.concatenate([closest[pair], np.partition(found, min(rare, len(found) - 1))[:rare]])
                    closest[pair] = closest[pair[::-1]] = np.sort(merged)[:rare]
    contact = radii[:, None] + radii[None, :]
    seen = closest[..., 0] < 1.75 * contact
    number = np.maximum(number, number.T)
    last = np.clip(number // 1000, 1, rare) - 1
    trusted = np.take_along_axis(closest, last[..., None], axis=2)[..., 0]
    return np.where(seen, trusted, 0.8 * contact), np.where(seen, 0.98 * closest[..., 0], 0.8 * contact)
