"""Tables in place of DeepPot-SE's embedding networks, as `dp compress` makes them, with their error and speed measured.

Each network is a smooth function of one number s. In intervals of equal width it becomes the polynomial of fifth degree
that has its value and first two derivatives at both ends, so that forces and Hessians stay continuous. The error falls
with the sixth power of the width, which is chosen so that the wanted bound holds.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from converters.pickles import CheckpointError
from jaxpto.model_interface import Prediction
from jaxpto.models.deepmd import DeepPotSE
from jaxpto.models.deepmd_layers import residual_net, table_values
from jaxpto.neighbors import Neighbors, build
from jaxpto.potential import Potential
from jaxpto.system import System, from_ase

_CLOSEST = 0.4  # Angstrom; no structure with closer atoms is accepted
_FIRST = 64  # intervals
_REPEATS = 40  # of a measurement of speed
_MOST_BYTES = 2**29  # of tables in float64
_CHECKS = 7  # points in each interval where the error is measured
# (1, t, ..., t^5) coefficients of values, slopes and curvatures at t = 0 and t = 1 (quintic Hermite interpolation)
_HERMITE = np.array(
    [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0.5, 0, 0, 0],
        [-10, -6, -1.5, 10, -4, 0.5],
        [15, 8, 1.5, -15, 7, -1],
        [-6, -3, -0.5, 6, -3, 0.5],
    ]
)


@dataclasses.dataclass(frozen=True)
class Compression:
    """What tables cost and gain.

    Attributes:
        intervals: of each table.
        value, slope: largest differences to the network, found in all intervals; G and dG/ds.
        energy, force: differences on a test structure, eV/atom and eV/Angstrom, in float64.
        atoms: of the test structure.
        seconds: for its energy, forces and stress in float32, with the networks and with the tables.
        device: where.
    """

    intervals: int
    value: float
    slope: float
    energy: float
    force: float
    atoms: int
    seconds: tuple[float, float]
    device: str

    def header(self) -> dict[str, Any]:
        """The errors, for `model.json`."""
        return {"intervals": self.intervals, "largest_error": self.value, "largest_error_of_slope": self.slope}

    def __str__(self) -> str:
        before, after = (1e3 * seconds for seconds in self.seconds)
        lines = (
            f"tables of {self.intervals} intervals: values off by at most {self.value:.1e}, slopes {self.slope:.1e}",
            f"a structure of {self.atoms} atoms: energy off by {self.energy:.1e} eV/atom, forces {self.force:.1e} eV/A",
            f"its energy, forces and stress: {before:.1f} ms with networks, {after:.1f} ms with tables, "
            f"{before / after:.1f} times as fast (float32, {self.device})",
        )
        return "\n".join(lines)


def compress(potential: Potential, bound: float) -> tuple[Potential, Compression]:
    """The potential with tables, and what was measured.

    Args:
        potential: DeepPot-SE in float64, with networks.
        bound: largest error allowed in an embedding, whose values are of the order of 1.

    Raises:
        CheckpointError: the bound needs tables that are too large.
    """
    with jax.enable_x64(True):
        compressed, intervals, value, slope = _tabulated(potential, bound)
        assert isinstance(potential.model, DeepPotSE)
        atoms = _test_structure(potential.model)
        exact, found = (jax.device_get(_predict(*_prepared(p, atoms, np.float64))) for p in (potential, compressed))
        energy = abs(float(exact.energy - found.energy)) / len(atoms)
        force = float(np.abs(exact.forces - found.forces).max())
        seconds = _shortest_times([_prepared(p, atoms, np.float32) for p in (potential, compressed)])
    device = jax.devices()[0].device_kind
    measured = Compression(intervals, value, slope, energy, force, len(atoms), (seconds[0], seconds[1]), device)
    return compressed, measured


def _tabulated(potential: Potential, bound: float) -> tuple[Potential, int, float, float]:
    model = potential.model
    assert isinstance(model, DeepPotSE)
    networks = jax.tree.map(jnp.asarray, potential.params["embedding"])
    mean, std = potential.params["mean"][:, 0], potential.params["std"][:, 0]
    start, end = float(np.min(-mean / std)), float(np.max((1.0 / _CLOSEST - mean) / std))

    def embed(layers: Any, s: Array) -> Array:
        return residual_net(layers, model.embedding, model.embedding_activation, s[:, None])

    def with_slopes(layers: Any, s: Array) -> tuple[Array, Array, Array]:
        one = jnp.ones_like(s)
        value = lambda s: embed(layers, s)  # noqa: E731
        slope = lambda s: jax.jvp(value, (s,), (one,))[1]  # noqa: E731
        return value(s), *jax.jvp(slope, (s,), (one,))

    exact = _of_all(with_slopes)
    stacked = potential.params["embedding"][str(len(model.embedding) - 1)]["weight"].shape  # [centres, types, out, in]
    intervals = _FIRST
    while True:
        size = 8 * 6 * intervals * math.prod(stacked[:3])
        if size > _MOST_BYTES:
            raise CheckpointError(
                f"tables with an error of {bound:g} would need {intervals} intervals, {size / 2**20:.0f} MB (at most "
                f"{_MOST_BYTES >> 20} MB); allow a larger error by --table-error"
            )
        step = (end - start) / intervals
        nodes = exact(networks, start + step * jnp.arange(intervals + 1))
        scaled = [np.asarray(values) * step**order for order, values in enumerate(nodes)]
        ends = np.stack([x[:, :, :-1] for x in scaled] + [x[:, :, 1:] for x in scaled], axis=3)
        table = jnp.asarray(np.einsum("pk,ctikm->ctipm", _HERMITE, ends))
        places = start + step * (jnp.arange(intervals)[:, None] + (jnp.arange(_CHECKS) + 0.5)[None, :] / _CHECKS)
        value, slope = _errors(exact, networks, table, (start, step), places.reshape(-1))
        if value <= bound:
            break
        intervals = math.ceil(intervals * max(1.2, 1.1 * (value / bound) ** (1.0 / 6.0)))
    model = dataclasses.replace(model, embedding=(), table=(start, step))
    params = potential.params | {"embedding": {"table": np.asarray(table)}}
    return Potential(params, model, potential.name), intervals, value, slope


def _of_all(function: Callable[[Any, Array], Any]) -> Callable[[Any, Array], Any]:
    """A function of one network and places, for all networks; those of one type of the atom at a time, for memory."""

    def together(networks: Any, s: Array) -> Any:
        return jax.lax.map(lambda row: jax.vmap(function, (0, None))(row, s), networks)

    return jax.jit(together)


def _errors(
    exact: Callable[..., Any], networks: Any, table: Array, place: tuple[float, float], s: Array
) -> tuple[float, float]:
    """Largest differences of the values and of the slopes of all tables at the places s."""

    def tabulated(table: Array, s: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda s: table_values(table, place, s), (s,), (jnp.ones_like(s),))

    wanted, found = exact(networks, s)[:2], _of_all(tabulated)(table, s)
    value, slope = (float(jnp.max(jnp.abs(a - b))) for a, b in zip(found, wanted, strict=True))
    return value, slope


def _test_structure(model: DeepPotSE, count: int = 6) -> ase.Atoms:
    """A disturbed simple cubic crystal of all types in which four fifths of the neighbours' places are taken."""
    spacing = (4.0 / 3.0 * np.pi * model.cutoff**3 / (0.8 * sum(model.sel))) ** (1.0 / 3.0)
    generator = np.random.default_rng(0)
    shares = np.asarray(model.sel) / sum(model.sel)
    numbers = generator.choice(model.elements, size=count**3, p=shares)
    places = np.stack(np.meshgrid(*[np.arange(count)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = spacing * (places + generator.uniform(-0.08, 0.08, places.shape))
    return ase.Atoms(numbers, positions, cell=[count * spacing] * 3, pbc=True)


@jax.jit
def _predict(potential: Potential, system: System, neighbors: Neighbors) -> Prediction:
    return potential.evaluate(system, neighbors)


def _prepared(potential: Potential, atoms: ase.Atoms, dtype: type) -> tuple[Potential, System, Neighbors]:
    """What `_predict` takes."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), potential.params)
    cast = Potential(params, potential.model, potential.name)
    system = from_ase(atoms, np.float64)
    return cast, system, build(system, cast.allocate([system], cast.usual_skin))


def _shortest_times(tasks: Sequence[tuple[Potential, System, Neighbors]]) -> list[float]:
    """Seconds for each task, the shortest of many in turns: whatever else the machine does then hits all alike."""
    times: list[list[float]] = [[] for _ in tasks]
    for _ in range(1 + _REPEATS):  # the first compiles
        for taken, task in zip(times, tasks, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(_predict(*task))
            taken.append(time.perf_counter() - begin)
    return [min(taken[1:]) for taken in times]
