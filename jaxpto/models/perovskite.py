"""A small, smooth, local model: body-ordered moments of the neighbour density and one little net per element.

Per atom i and species t of neighbours, type-agnostic moments (Shapeev, Multiscale Model. Simul. 14, 1153 (2016);
Drautz, Phys. Rev. B 99, 014104 (2019))

    M[i, t, lm, k] = sum_{j in t} f_k(r_ij) Y_lm(r_ij),   f_k = T_k(2 w - 1) (1 - u)^p,   u = (r / cutoff)^2,

are mixed per atom, with coefficients of the element pair, into a few channels A[i, n, lm] (l <= 2). Rotational
invariants of these (two- and three-body: A_n00 and sum_m A_nlm A_n'lm; four-body: couplings of two channels to l = 2
with a third) feed a linear readout and a two-layer tanh net of the element, and a linear pair term.

Where data are few, polynomials of r are wild: from a trusted distance of each element pair inwards u fades smoothly
into a constant, so that the learned part never sees a distance it did not learn. Still further in, a soft wall repels.

Everything per edge is rational in (x, y, z): no square root, exponential or table, hence smooth down to r = 0.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.models.atom_slices import atoms_at_a_time, total_energy
from jaxpto.models.initial_weights import Samples
from jaxpto.models.perovskite_moments import matmul, moments
from jaxpto.neighbors import Layout, Neighbors
from jaxpto.system import System

Params = dict[str, Array]
SLICE = 320  # atoms: on a processor more of them crowd each other out of the caches, and go in slices


@dataclasses.dataclass(frozen=True)
class Perovskite:
    """Hyperparameters of the model; hashable, so that a compiled program can depend on them.

    Attributes:
        elements: atomic numbers the model knows.
        cutoff: Angstrom.
        radial: number of Chebyshev functions.
        channels: number of mixed channels.
        quartic: how many channels enter the four-body invariants.
        hidden: width of the two layers of each element's net.
        envelope: power p of the envelope (1 - u)^p, whose first p - 1 derivatives vanish at the cutoff.
        strangers: pairs of atomic numbers that no data held together, so that nothing was learned of their bonds.
    """

    by_species: ClassVar[bool] = True
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3
    constants: ClassVar[tuple[str, ...]] = ("trusted", "wall")

    elements: tuple[int, ...]
    cutoff: float = 6.0
    radial: int = 10
    channels: int = 12
    quartic: int = 4
    hidden: int = 32
    envelope: int = 3
    strangers: tuple[tuple[int, int], ...] = ()

    @property
    def features(self) -> int:
        """Number of invariants of one atom, with both (n, n') and (n', n)."""
        pairs = self.quartic * (self.quartic + 1) // 2
        return self.channels + 2 * self.channels**2 + 2 * pairs * self.quartic

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters; see `ShapedModel`."""
        n, d, h = len(self.elements), self.features, self.hidden
        return {
            "trusted": (n, n),
            "wall": (n, n),
            "mix": (n, n, self.channels, self.radial),
            "pair": (n, n, self.radial),
            "weight1": (n, d, h),
            "bias1": (n, h),
            "weight2": (n, h, h),
            "bias2": (n, h),
            "weight3": (n, h),
            "linear": (n, d),
            "offset": (n,),
        }

    def initialize(self, key: Array, samples: Samples, force_scale: float) -> Params:
        """Random parameters whose energy is zero; see `TrainableModel`."""
        return initialize(self, key)

    def energy(
        self, params: Params, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV of the edge vectors; see `Model.energy`."""
        some = functools.partial(self.local_energies, neighbors.layout)
        return total_energy(some, SLICE, neighbors.layout, params, vectors, system.numbers)

    def atoms_at_a_time(self, n: int, layout: Layout) -> Int[Array, "i m"] | None:
        """Which of n atoms to evaluate at a time; see `LocalModel`."""
        return atoms_at_a_time(n, SLICE, layout)

    def local_energies(
        self, layout: Layout, params: Params, vectors: Float[Array, "n s 3"], numbers: Int[Array, " n"]
    ) -> Float[Array, " n"]:
        """Energy of some of the atoms, eV; see `LocalModel`."""
        known = [self.elements.index(z) for z in layout.species]
        own = (numbers[:, None] == jnp.asarray(layout.species)[None, :]).astype(vectors.dtype)
        return self.atomic_energies(select(params, known), own, jnp.swapaxes(vectors, 1, 2), layout)

    def atomic_energies(
        self,
        params: Params,
        own: Float[Array, "n t"],
        vectors: Float[Array, "n 3 s"],
        layout: Layout,
    ) -> Float[Array, " n"]:
        """Energy of each atom, eV.

        Args:
            params: parameters of the t species present, in the order of the blocks (`select`).
            own: one-hot species of each atom.
            vectors: edge vectors, Angstrom; slots sorted into blocks by species, empty ones beyond the cutoff.
            layout: the layout of the neighbour list, with t blocks of slots.
        """
        n, species = own.shape
        trusted, start = matmul(own, params["trusted"]), matmul(own, params["wall"])
        moment, wall = moments(vectors, trusted, start, self.cutoff, self.radial, self.envelope, layout)
        # Mix with every species' coefficients, then pick the atom's own: one dense product beats a gather of matrices.
        # From here on atoms come last, where the vector units want them; the barrier keeps XLA from reading transposed.
        table = jnp.swapaxes(params["mix"], 1, 2).reshape(species * self.channels, -1)
        last = jax.lax.optimization_barrier(jnp.transpose(moment, (1, 3, 2, 0)).reshape(-1, 9 * n))
        mixed = matmul(table, last).reshape(species, self.channels, 9, n)
        channels = sum(mixed[t] * own[:, t][None, None, :] for t in range(species))
        features = self.invariants(jnp.swapaxes(channels, 0, 1))
        return wall + self.readout(params, own.T, features, moment[:, :, 0].reshape(n, -1).T)

    def invariants(self, channels: Float[Array, "9 c n"]) -> Float[Array, "d n"]:
        """Invariants [features, n] of the mixed moments [9, channels, n]."""
        scalar, vector, tensor = jax.lax.split(channels, (1, 3, 5))
        parts = [scalar[0], products(vector, vector), products(tensor, tensor)]
        if self.quartic:
            first, second = np.triu_indices(self.quartic)
            v, t = vector[:, : self.quartic], tensor[:, : self.quartic]
            coupled = (
                jnp.stack(couple_vectors(v[:, first], v[:, second])),
                jnp.stack(couple_tensors(t[:, first], t[:, second])),
            )
            # without the barrier XLA computes the couplings anew for each of their products
            parts += [products(c, t) for c in jax.lax.optimization_barrier(coupled)]
        return jnp.concatenate(parts, axis=0)

    def readout(
        self,
        params: Params,
        own: Float[Array, "t n"],
        features: Float[Array, "d n"],
        density: Float[Array, "p n"],
    ) -> Float[Array, "n"]:
        """Energy of each atom from its invariants [d, n] and its l = 0 moments [species * radial, n], eV."""
        species, n = own.shape
        hidden = self.hidden

        def pick(wide: Array) -> Array:
            return (wide.reshape(species, -1, n) * own[:, None, :]).sum(axis=0)

        def rows(weight: Array) -> Array:
            return jnp.swapaxes(weight, 1, 2).reshape(-1, weight.shape[1])

        # the linear readout rides along as one more row of the first layer
        both = jnp.concatenate([params["weight1"], params["linear"][:, :, None]], axis=2)
        wide = pick(matmul(rows(both), features))
        first = jnp.tanh(wide[:hidden] + matmul(params["bias1"].T, own))
        second = first + jnp.tanh(pick(matmul(rows(params["weight2"]), first)) + matmul(params["bias2"].T, own))
        return (
            (second * (matmul(params["weight3"].T, own))).sum(axis=0)
            + wide[hidden]
            + (density * matmul(params["pair"].reshape(species, -1).T, own)).sum(axis=0)
            + matmul(params["offset"], own)
        )


# Leaves that have an axis for the neighbour's element behind the atom's own.
PAIRWISE = ("trusted", "wall", "mix", "pair")
# Leaves that belong to one element.
ATOMWISE = ("weight1", "bias1", "weight2", "bias2", "weight3", "linear", "offset")


def select(params: Params, known: list[int]) -> Params:
    """Parameters of the elements `known` (indices into `Perovskite.elements`), in this order."""
    index = np.asarray(known)
    return {k: v[index[:, None], index[None, :]] if k in PAIRWISE else v[index] for k, v in params.items()}


def products(left: Float[Array, "m p n"], right: Float[Array, "m q n"]) -> Float[Array, "pq n"]:
    """All products sum_m left[m, p] right[m, q] of each atom, [p * q, n]."""
    return _outer(left, right).reshape(-1, left.shape[2])


# Three sums of products of each atom, each of which has the other two as derivatives: forces, and derivatives of forces
# in training, are sums of whole rows too. The reductions that JAX derives run element by element on a CPU.
@jax.custom_vjp
def _outer(left: Float[Array, "m p n"], right: Float[Array, "m q n"]) -> Float[Array, "p q n"]:
    return functools.reduce(operator.add, (a[:, None, :] * b[None, :, :] for a, b in zip(left, right, strict=True)))


@jax.custom_vjp
def _over_right(table: Float[Array, "p q n"], right: Float[Array, "m q n"]) -> Float[Array, "m p n"]:
    return functools.reduce(operator.add, (table[None, :, b] * right[:, b, None] for b in range(right.shape[1])))


@jax.custom_vjp
def _over_left(table: Float[Array, "p q n"], left: Float[Array, "m p n"]) -> Float[Array, "m q n"]:
    return functools.reduce(operator.add, (table[None, a] * left[:, a, None] for a in range(left.shape[1])))


def _keep(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], tuple[Array, tuple[Array, Array]]]:
    return lambda first, second: (function(first, second), (first, second))


_outer.defvjp(_keep(_outer), lambda saved, d: (_over_right(d, saved[1]), _over_left(d, saved[0])))
_over_right.defvjp(_keep(_over_right), lambda saved, d: (_outer(d, saved[1]), _over_left(saved[0], d)))
_over_left.defvjp(_keep(_over_left), lambda saved, d: (_outer(saved[1], d), _over_right(saved[0], d)))


def couple_vectors(left: Float[Array, "3 p n"], right: Float[Array, "3 p n"]) -> list[Array]:
    """The l = 2 part of the product of two l = 1 quantities (x, y, z): five arrays [p, n]."""
    half = np.sqrt(3.0).item() / 2.0
    x, y, z = left
    a, b, c = right
    return [
        half * (x * b + y * a),
        half * (y * c + z * b),
        z * c - 0.5 * (x * a + y * b),
        half * (x * c + z * a),
        half * (x * a - y * b),
    ]


def couple_tensors(left: Float[Array, "5 p n"], right: Float[Array, "5 p n"]) -> list[Array]:
    """The l = 2 part of the product of two l = 2 quantities, the symmetric traceless part of their matrix product."""
    half = np.sqrt(3.0).item() / 2.0
    a, b, c, d, e = left
    f, g, h, i, j = right
    return [
        half * (b * i + d * g) - (a * h + c * f),
        half * (a * i + d * f) + 0.5 * (b * h + c * g) - half * (b * j + e * g),
        c * h - a * f - e * j + 0.5 * (b * g + d * i),
        half * (a * g + b * f) + 0.5 * (c * i + d * h) + half * (d * j + e * i),
        half * (d * i - b * g) - (c * j + e * h),
    ]


def initialize(model: Perovskite, key: Array, dtype: jax.typing.DTypeLike = np.float32) -> Params:
    """Random parameters whose energy is zero (readouts start at zero), without a wall."""
    e, d, h = len(model.elements), model.features, model.hidden
    keys = jax.random.split(key, 3)
    return {
        "trusted": jnp.full((e, e), 1e-3, dtype),
        "wall": jnp.full((e, e), 1e-3, dtype),
        "mix": jax.random.normal(keys[0], (e, e, model.channels, model.radial), dtype) / np.sqrt(model.radial).item(),
        "pair": jnp.zeros((e, e, model.radial), dtype),
        "weight1": jax.random.normal(keys[1], (e, d, h), dtype) / np.sqrt(d).item(),
        "bias1": jnp.zeros((e, h), dtype),
        "weight2": jax.random.normal(keys[2], (e, h, h), dtype) / np.sqrt(h).item(),
        "bias2": jnp.zeros((e, h), dtype),
        "weight3": jnp.zeros((e, h), dtype),
        "linear": jnp.zeros((e, d), dtype),
        "offset": jnp.zeros((e,), dtype),
    }
