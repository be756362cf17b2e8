"""A small, smooth, local model: body-ordered moments of the neighbour density and one little net per element.

Per atom i and species t of neighbours, type-agnostic moments (Shapeev, Multiscale Model. Simul. 14, 1153 (2016);
Drautz, Phys. Rev. B 99, 014104 (2019))

    M[i, t, lm, k] = sum_{j in t} f_k(r_ij) Y_lm(r_ij),   f_k = T_k(2 w - 1) (1 - u)^3,   u = (r / cutoff)^2,

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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto.neighbors import Neighbors
from jaxpto.system import System

WARP = 0.2  # of q = 1 / (u + WARP): makes w = (1 + WARP) u q fine where bonds are, and |r| q / cutoff close to one
FADE = 0.1  # of u, relative to the trusted distance: within it (5 % of the distance) u becomes constant
# eV; soft, so that a time step of 2 fs resolves a collision: at 95 % of the distance 0.5 eV, at 80 % 23 eV
WALL_HEIGHT = 500.0
EXACT = jax.lax.Precision.HIGHEST  # accelerators would otherwise round factors to 10 bits

Params = dict[str, Array]
matmul = functools.partial(jnp.matmul, precision=EXACT)


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
        by_species: the neighbour list is dense, with one block of slots per species of the neighbour.
        strangers: pairs of atomic numbers that no data held together, so that nothing was learned of their bonds.
    """

    elements: tuple[int, ...]
    cutoff: float = 6.0
    radial: int = 10
    channels: int = 12
    quartic: int = 4
    hidden: int = 32
    by_species: bool = True
    strangers: tuple[tuple[int, int], ...] = ()

    @property
    def features(self) -> int:
        """Number of invariants of one atom, with both (n, n') and (n', n)."""
        pairs = self.quartic * (self.quartic + 1) // 2
        return self.channels + 2 * self.channels**2 + 2 * pairs * self.quartic

    def energy(
        self, params: Params, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy in eV of the edge vectors; see `Model.energy`."""
        layout = neighbors.layout
        n = system.positions.shape[0]
        known = [self.elements.index(z) for z in layout.species]
        own = (system.numbers[:, None] == jnp.asarray(layout.species)[None, :]).astype(vectors.dtype)
        slots = jnp.swapaxes(vectors.reshape(n, -1, 3), 1, 2)
        return self.atomic_energies(select(params, known), own, slots, layout.slots).sum()

    def atomic_energies(
        self,
        params: Params,
        own: Float[Array, "n t"],
        vectors: Float[Array, "n 3 s"],
        slots: tuple[int, ...],
    ) -> Float[Array, " n"]:
        """Energy of each atom, eV.

        Args:
            params: parameters of the t species present, in the order of the blocks (`select`).
            own: one-hot species of each atom.
            vectors: edge vectors, Angstrom; slots sorted into blocks by species, empty ones beyond the cutoff.
            slots: sizes of the t blocks.
        """
        n, species = own.shape
        trusted, start = matmul(own, params["trusted"]), matmul(own, params["wall"])
        moment, wall = moments(vectors, trusted, start, self.cutoff, self.radial, slots)
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
        scalar, vector, tensor = channels[0], channels[1:4], channels[4:9]
        parts = [scalar, products(vector, vector), products(tensor, tensor)]
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


@functools.cache
def chebyshev_factors(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and offsets [count - 1, count] of the factors in T_k(t) = prod_j (slope[j, k] t + offset[j, k]).

    The product over the roots takes the same operations for every k, so that all of them are one elementwise kernel;
    a row for each k would be joined element by element.
    """
    slopes, offsets = np.zeros((count - 1, count)), np.ones((count - 1, count))
    for k in range(1, count):
        roots = np.cos(np.pi * (np.arange(k) + 0.5) / k)
        slopes[:k, k] = [1.0] + [2.0] * (k - 1)
        offsets[:k, k] = -slopes[:k, k] * roots
    return slopes, offsets


def chebyshev_slopes(count: int) -> np.ndarray:
    """Matrix D [count, count] with dT_k / dt = sum_j D[k, j] T_j."""
    d = np.zeros((count, count))
    for k in range(1, count):
        d[k, np.arange(k - 1, -1, -2)] = 2.0 * k
    d[:, 0] *= 0.5
    return d


def _quadratic_forms() -> np.ndarray:
    """Symmetric matrices S [9, 4, 4] with Y_lm = sum_ab S[lm, a, b] w_a w_b of w = (1, x, y, z).

    Real solid harmonics up to l = 2 in Racah normalization: 1, x, y, z, then sqrt(3) xy, sqrt(3) yz,
    z^2 - (x^2 + y^2) / 2, sqrt(3) xz, sqrt(3) (x^2 - y^2) / 2.
    """
    half = np.sqrt(3.0) / 2.0
    forms = np.zeros((9, 4, 4))
    forms[0, 0, 0] = 1.0
    for a in (1, 2, 3):
        forms[a, 0, a] = forms[a, a, 0] = 0.5
    for row, (a, b) in ((4, (1, 2)), (5, (2, 3)), (7, (1, 3))):
        forms[row, a, b] = forms[row, b, a] = half
    forms[6] = np.diag([0.0, -0.5, -0.5, 1.0])
    forms[8] = np.diag([0.0, half, -half, 0.0])
    return forms


HARMONICS = _quadratic_forms()


def harmonics(w: Float[Array, "n 3 s"]) -> Float[Array, "n 9 s"]:
    """Y_lm of scaled edge vectors; each product of two components is given to all lm at once."""
    columns = [jnp.ones_like(w[:, 0]), *(w[:, a] for a in range(3))]
    total = jnp.zeros((w.shape[0], 9, w.shape[2]), w.dtype)
    for a in range(4):
        for b in range(a, 4):
            coefficients = HARMONICS[:, a, b] * (1.0 if a == b else 2.0)
            if coefficients.any():
                total = total + _column(coefficients, w) * (columns[a] * columns[b])[:, None, :]
    return total


def _column(numbers: np.ndarray, like: Array) -> Array:
    """Numbers along the middle axis of [n, *, s]."""
    return jnp.asarray(numbers, like.dtype)[None, :, None]


def _by_slices(function: Callable[..., Any], *rows: Array) -> Any:
    """A function of rows of atoms, on a CPU in a few slices: what a loop gives is written down.

    XLA would otherwise fuse it into all that uses its results, and compute it again for each of their rows. Where the
    atoms do not divide into slices it does.
    """
    n = rows[0].shape[0]
    number = 1 if jax.default_backend() != "cpu" else next((d for d in (4, 5, 3, 7, 2) if n % d == 0), 1)
    if number == 1:
        return function(*rows)
    results = jax.lax.map(lambda slices: function(*slices), _split(number, rows))
    return jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), results)


def _split(number: int, rows: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def moments(
    vectors: Float[Array, "n 3 s"],
    trusted: Float[Array, "n t"],
    wall: Float[Array, "n t"],
    cutoff: float,
    radial: int,
    slots: tuple[int, ...],
) -> tuple[Float[Array, "n t 9 k"], Float[Array, "n"]]:
    """Moments M[i, t, lm, k] and wall energy (eV) of each atom; the derivative is written out below for speed.

    Args:
        vectors: edge vectors, Angstrom, slots sorted into blocks, empty ones beyond the cutoff.
        trusted: shortest distance to neighbours of each block that the radial functions follow, Angstrom.
        wall: distance below which the atom repels neighbours of each block, Angstrom.
        cutoff: Angstrom.
        radial: number of radial functions.
        slots: sizes of the blocks.
    """
    return _moments_forward(vectors, trusted, wall, cutoff, radial, slots)[0]


def _blocks(slots: tuple[int, ...]) -> list[slice]:
    ends = np.cumsum(slots).tolist()
    return [slice(end - size, end) for end, size in zip(ends, slots, strict=True)]


def _radial_variables(
    v: Float[Array, "n 3 s"], trusted: Float[Array, " n"], wall: Float[Array, " n"]
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """u and q of each edge, w = q v, du / d|v|^2, d(wall energy) / d|v|^2, and the wall energy of each atom."""
    x, y, z = (v[:, a] for a in range(3))
    square = x * x + y * y + z * z
    square = jnp.where(square > 1.0, jnp.ones_like(square), square)  # all radial functions and slopes vanish there
    start = wall[:, None] ** 2
    depth = jnp.where(square < start, start - square, jnp.zeros_like(square)) / start
    # twice differentiable at both ends: du changes from 1 to 0 as 1 - 3 fade^2 + 2 fade^3
    least = trusted[:, None] ** 2
    fade = jnp.clip((least - square) / (FADE * least), 0.0, 1.0)
    u = jnp.maximum(square, least) - (FADE * least) * (fade - fade**3 + 0.5 * fade**4)
    q = 1.0 / (u + WARP)
    slope = 1.0 - fade * fade * (3.0 - 2.0 * fade)
    # each pair counts twice, once from either side
    dwall = (-1.5 * WALL_HEIGHT) * depth * depth / start
    return u, q, v * q[:, None, :], slope, dwall, (0.5 * WALL_HEIGHT) * (depth * depth * depth).sum(axis=1)


def _moments_forward(vectors, trusted, wall, cutoff, radial, slots):
    """M = sum_j h_k (gap Y_lm) with h_k = T_k gap^2 and gap = 1 - u: the derivative needs no other radial function."""
    kept, moment, energies = [], [], []
    scaled = vectors * (1.0 / cutoff)
    for t, block in enumerate(_blocks(slots)):
        v = scaled[:, :, block]
        u, q, w, slope, dwall, energy = _by_slices(
            _radial_variables, v, trusted[:, t] * (1.0 / cutoff), wall[:, t] * (1.0 / cutoff)
        )
        gap = 1.0 - u
        t_of_u = ((2.0 * (1.0 + WARP)) * u * q - 1.0)[:, None, :]
        h = (gap * gap)[:, None, :]
        for a, b in zip(*chebyshev_factors(radial), strict=True):
            h = h * (_column(a, v) * t_of_u + _column(b, v))
        moment.append(jnp.einsum("nms,nks->nmk", harmonics(w) * gap[:, None, :], h, precision=EXACT))
        energies.append(energy)
        kept.append((v, u, q, w, slope, dwall, h))
    return (jnp.stack(moment, axis=1), sum(energies)), kept


def _radial_slope(
    c: Float[Array, "n 18 s"],
    u: Float[Array, "n s"],
    q: Float[Array, "n s"],
    w: Float[Array, "n 3 s"],
    slope: Float[Array, "n s"],
    dwall: Float[Array, "n s"],
    denergy: Float[Array, " n"],
) -> Float[Array, "n s"]:
    """2 dE / d|v|^2 of each edge at fixed w / q = v."""
    gap = 1.0 - u
    # sum_lm c Y_lm by l, from the symmetric matrix of the l = 2 part
    first = sum(c[:, a] * w[:, a - 1] for a in (1, 2, 3))
    second = _second_order(c, w)
    value = c[:, 0] + first + second
    dvalue = c[:, 9] + sum(c[:, 9 + a] * w[:, a - 1] for a in (1, 2, 3)) + _second_order(c[:, 9:], w)
    dt = (2.0 * (1.0 + WARP) * WARP) * q * q
    du = dvalue * gap * dt - 3.0 * value  # of f = T gap^3 = h gap
    return 2.0 * ((du - q * gap * (first + 2.0 * second)) * slope + dwall * denergy[:, None])


def _second_order(c: Float[Array, "n _ s"], w: Float[Array, "n 3 s"]) -> Float[Array, "n s"]:
    """sum_{l = 2} c_lm Y_lm."""
    total = jnp.zeros_like(w[:, 0])
    for m in range(4, 9):
        form = sum(
            (2.0 - (a == b)) * HARMONICS[m, a, b].item() * w[:, a - 1] * w[:, b - 1]
            for a in (1, 2, 3)
            for b in range(a, 4)
            if HARMONICS[m, a, b]
        )
        total = total + c[:, m] * form
    return total


def _moments_backward(cutoff, radial, slots, kept, cotangent):
    """With c = dE/dM: dE/du = sum_mk c_mk Y_m df_k/du and dE/dY_m = sum_k c_mk f_k, then the chain rule to x, y, z."""
    dmoment, denergy = cotangent
    slopes = jnp.asarray(chebyshev_slopes(radial), dmoment.dtype)
    dslope = matmul(dmoment.reshape(-1, radial), slopes).reshape(dmoment.shape)
    both = jnp.concatenate([dmoment, dslope], axis=2)
    gradients = []
    for t, (v, u, q, w, slope, dwall, h) in enumerate(kept):
        c = jnp.einsum("nmk,nks->nms", both[:, t], h, precision=EXACT)
        du = _by_slices(_radial_slope, c, u, q, w, slope, dwall, denergy)
        dw = c[:, 1:4]
        for m in range(4, 9):
            for b in (1, 2, 3):
                if (column := 2.0 * HARMONICS[m, 1:, b]).any():
                    dw = dw + _column(column, v) * (c[:, m] * w[:, b - 1])[:, None, :]
        gradients.append(dw * (q * (1.0 - u))[:, None, :] + du[:, None, :] * v)
    return jnp.concatenate(gradients, axis=2) * (1.0 / cutoff), None, None


moments.defvjp(_moments_forward, _moments_backward)


@jax.custom_vjp
def products(left: Float[Array, "m p n"], right: Float[Array, "m q n"]) -> Float[Array, "pq n"]:
    """All products sum_m left[m, p] right[m, q] of each atom, [p * q, n].

    The derivative is written as sums of whole rows; the reductions that JAX derives run element by element on a CPU.
    """
    rows = sum(a[:, None, :] * b[None, :, :] for a, b in zip(left, right, strict=True))
    return rows.reshape(-1, left.shape[2])


def _products_forward(left, right):
    return products(left, right), (left, right)


def _products_backward(saved, cotangent):
    left, right = saved
    p, q, n = left.shape[1], right.shape[1], left.shape[2]
    d = cotangent.reshape(p, q, n)
    dleft = sum(d[None, :, b] * right[:, b, None] for b in range(q))
    dright = sum(d[None, a] * left[:, a, None] for a in range(p))
    return dleft, dright


products.defvjp(_products_forward, _products_backward)


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
