"""NEP: a local model with Chebyshev descriptors and one hidden layer per element, as GPUMD and NEP_CPU have it.

Z. Fan et al., Phys. Rev. B 104, 104309 (2021) and J. Chem. Phys. 157, 114801 (2022); NEP89: T. Liang et al.,
arXiv:2504.21286. With f_k(r) = (T_k(2 (r/r_c - 1)^2 - 1) + 1) f_c(r) / 2, f_0 = f_c = (1 + cos(pi r / r_c)) / 2, and
coefficients c of each pair of elements, the descriptors of atom i are

    q_n         = sum_j g_n(r_ij),          g_n = sum_k c_nk f_k
    q_nl        = sum_m C_lm s_nlm^2,       s_nlm = sum_j g_n(r_ij) Y_lm(r_ij / |r_ij|)
    q_n (4-body), q_n (5-body): third powers of s_n2m and fourth powers of s_n1m

and the energy is U_i = sum_h w1_h tanh(sum_d w0_hd q_d - b0_h) - b1, with w0, b0 and w1 of the element of i.
Where a file asks for it, the screened repulsion of nuclei by Ziegler, Biersack and Littmark is added.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpto.models.atom_slices import atoms_at_a_time, total_energy
from jaxpto.models.initial_weights import Samples, generator_of, normal
from jaxpto.models.nep_moments import angular_moments, monomials, radial_moments
from jaxpto.models.nuclear_repulsion import nuclear_repulsion
from jaxpto.models.perovskite_moments import matmul
from jaxpto.neighbors import Layout, Neighbors, edge_vectors, near_slots
from jaxpto.system import System

Params = dict[str, Any]
SLICE = 80  # atoms that go through at once on a processor
SMALLEST_SPREAD = 1e-3  # of a descriptor in the data, so that one that never varies is not blown up
# C_lm of the sums of squares, l = 1 to 4, rounded as in NEP_CPU; m in the order of `harmonics`
# fmt: off
SQUARES = (
    (0.238732414637843, 0.119366207318922, 0.119366207318922),
    (0.099471839432435, 0.596831036594608, 0.596831036594608, 0.149207759148652, 0.149207759148652),
    (0.139260575205408, 0.104445431404056, 0.104445431404056, 1.044454314040563, 1.044454314040563,
     0.174075719006761, 0.174075719006761),
    (0.011190581936149, 0.223811638722978, 0.223811638722978, 0.111905819361489, 0.111905819361489,
     1.566681471060845, 1.566681471060845, 0.195835183882606, 0.195835183882606),
)
# fmt: on
CUBES = (-0.007499480826664, -0.134990654879954, 0.067495327439977, 0.404971964639861, -0.809943929279723)
FOURTHS = (0.026596810706114, 0.053193621412227, 0.026596810706114)


@dataclasses.dataclass(frozen=True)
class NEP:
    """Hyperparameters of the model.

    Attributes:
        elements: atomic numbers the model knows, in the order of its file.
        cutoff: reach of the radial descriptors, Angstrom.
        angular_cutoff: reach of the angular descriptors, Angstrom, at most `cutoff`.
        radial: number of radial descriptors.
        angular: number of angular descriptors of each l.
        radial_basis: number of functions f_k that the radial ones are made of.
        angular_basis: number of functions f_k that the angular ones are made of.
        highest: highest l, up to 4.
        four_body: whether there are descriptors of third powers.
        five_body: whether there are descriptors of fourth powers.
        hidden: width of the hidden layer.
        one_net: whether all elements share a hidden layer (NEP3).
        repulsion: distances at which the repulsion of nuclei begins to fade and ends, Angstrom; () without.
    """

    by_species: ClassVar[bool] = True
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3
    constants: ClassVar[tuple[str, ...]] = ("scaler",)

    elements: tuple[int, ...]
    cutoff: float
    angular_cutoff: float
    radial: int
    angular: int
    radial_basis: int
    angular_basis: int
    highest: int
    four_body: bool
    five_body: bool
    hidden: int
    one_net: bool = False
    repulsion: tuple[float, ...] = ()

    @property
    def near_cutoff(self) -> float:
        """Reach of the angular descriptors, by far the dearest, Angstrom; see `NearModel`."""
        return self.angular_cutoff if self.angular_cutoff < self.cutoff else 0.0

    @property
    def features(self) -> int:
        """Number of descriptors of an atom."""
        return self.radial + self.angular * (self.highest + self.four_body + self.five_body)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters; see `ShapedModel`."""
        n, nets = len(self.elements), 1 if self.one_net else len(self.elements)
        return {
            "radial": (n, n, self.radial, self.radial_basis),
            "angular": (n, n, self.angular, self.angular_basis),
            "weight0": (nets, self.hidden, self.features),
            "bias0": (nets, self.hidden),
            "weight1": (nets, self.hidden),
            "bias1": (),
            "scaler": (self.features,),
        }

    def initialize(self, key: Array, samples: Samples, force_scale: float) -> Params:
        """Random parameters; each descriptor has a range of 1 in the samples; see `TrainableModel`."""
        generator, shapes = generator_of(key), self.shapes
        params: Params = {
            "radial": normal(generator, *shapes["radial"], deviation=self.radial_basis**-0.5),
            "angular": normal(generator, *shapes["angular"], deviation=self.angular_basis**-0.5),
            "weight0": normal(generator, *shapes["weight0"], deviation=self.features**-0.5),
            "bias0": normal(generator, *shapes["bias0"]),
            "weight1": normal(generator, *shapes["weight1"], deviation=0.1 * self.hidden**-0.5),
            "bias1": np.zeros((), np.float32),
            "scaler": np.ones(self.features, np.float32),
        }
        return params | {"scaler": _scales(self, params, samples)} if samples else params

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
        return self.outputs(layout, params, vectors, numbers, ())[0]

    def outputs(
        self,
        layout: Layout,
        params: Params,
        vectors: Float[Array, "n s 3"],
        numbers: Int[Array, " n"],
        further: tuple[str, ...],
    ) -> list[Float[Array, " n"]]:
        """Energy of some of the atoms, eV, and what further weights make of their hidden layers.

        Args:
            layout, params, vectors, numbers: as for `LocalModel.local_energies`.
            further: parameters [nets, hidden] that take the place of `weight1`.
        """
        known = np.array([self.elements.index(z) for z in layout.species])
        own = (numbers[:, None] == jnp.asarray(layout.species)[None, :]).astype(vectors.dtype)
        vectors = jnp.swapaxes(vectors, 1, 2)
        distance = jnp.sqrt((vectors * vectors).sum(axis=1))  # empty slots lie beyond the cutoff
        features = self.descriptors(params, own, vectors, distance, layout) * params["scaler"][:, None]
        nets = np.zeros(1, int) if self.one_net else known
        energies, *others = _net(params, own, features, nets, ("weight1", *further))
        energies = energies - params["bias1"]
        if self.repulsion:
            energies = energies + nuclear_repulsion(layout, own, distance, *self.repulsion)
        return [energies, *others]

    def descriptors(
        self,
        params: Params,
        own: Float[Array, "n t"],
        vectors: Float[Array, "n 3 s"],
        distance: Float[Array, "n s"],
        layout: Layout,
    ) -> Float[Array, "d n"]:
        """Descriptors of each atom, not yet scaled.

        Args:
            params: parameters of all elements.
            own: one-hot species of each atom.
            vectors: edge vectors, Angstrom; slots sorted into blocks by species.
            distance: their lengths, Angstrom.
            layout: the layout of the neighbour list.
        """
        n, known = own.shape[0], np.array([self.elements.index(z) for z in layout.species])
        radial, angular = (
            _of_chebyshev(jnp.asarray(params[name])[known[:, None], known[None, :]]) for name in ("radial", "angular")
        )
        sums = radial_moments(distance, self.cutoff, self.radial_basis, layout)
        q = _mixed(radial, sums[:, :, None], own)[:, 0]
        vectors, distance = near_slots(vectors, layout), near_slots(distance, layout)
        reached = dataclasses.replace(layout, slots=layout.near or layout.slots, near=())
        unit = vectors / distance[:, None, :]
        moments = angular_moments(unit, distance, self.angular_cutoff, self.angular_basis, self.highest, reached)
        mixed = jnp.swapaxes(_mixed(angular, moments, own), 0, 1)
        harmonics = jnp.asarray(harmonics_of(self.highest), mixed.dtype)
        s = matmul(harmonics, mixed.reshape(mixed.shape[0], -1)).reshape(-1, self.angular, n)
        parts, start = [q], 0
        for squares in SQUARES[: self.highest]:
            of_l = s[start : start + len(squares)]
            parts.append(_added([(2.0 if m else 1.0) * c * of_l[m] ** 2 for m, c in enumerate(squares)]))
            start += len(squares)
        if self.four_body:
            parts.append(_cubes(s[3:8]))
        if self.five_body:
            along, across = s[0] ** 2, s[1] ** 2 + s[2] ** 2
            parts.append(FOURTHS[0] * along**2 + FOURTHS[1] * along * across + FOURTHS[2] * across**2)
        return jnp.concatenate(parts)


def _added(parts: list[Array]) -> Array:
    return functools.reduce(operator.add, parts)


def _of_chebyshev(table: Float[Array, "t t c k"]) -> Float[Array, "t t c k"]:
    """Coefficients of T_k f_c from those of f_k = (T_k + 1) f_c / 2, f_0 = f_c."""
    return 0.5 * table.at[..., 0].add(table.sum(axis=-1))


@functools.cache
def harmonics_of(highest: int) -> np.ndarray:
    """Matrix [harmonics, monomials] of whole numbers: the `harmonics` on the unit sphere as sums of `monomials`."""
    points = np.random.default_rng(0).normal(size=(3, 200))
    points /= np.linalg.norm(points, axis=0)
    columns = [np.prod(points ** np.array(powers)[:, None], axis=0) for powers in monomials(highest)]
    return np.round(np.linalg.lstsq(np.stack(columns, axis=1), harmonics(*points, highest).T, rcond=None)[0].T)


def harmonics(x: np.ndarray, y: np.ndarray, z: np.ndarray, highest: int) -> np.ndarray:
    """Real solid harmonics, l = 1 to `highest`, of points on the unit sphere; `SQUARES` holds the factors they lack."""
    xx, yy, zz, xy = x * x, y * y, z * z, x * y
    difference, first, second = xx - yy, (xx - 3.0 * yy) * x, (3.0 * xx - yy) * y
    by_l = (
        (z, x, y),
        (3.0 * zz - 1.0, x * z, y * z, difference, 2.0 * xy),
        ((5.0 * zz - 3.0) * z, (5.0 * zz - 1.0) * x, (5.0 * zz - 1.0) * y, difference * z, 2.0 * xy * z, first, second),
        (
            (35.0 * zz - 30.0) * zz + 3.0, (7.0 * zz - 3.0) * z * x, (7.0 * zz - 3.0) * z * y,
            (7.0 * zz - 1.0) * difference, (7.0 * zz - 1.0) * 2.0 * xy, first * z, second * z,
            difference**2 - 4.0 * xy**2, 4.0 * xy * difference,
        ),
    )  # fmt: skip
    return np.stack([row for rows in by_l[:highest] for row in rows])


def _mixed(
    table: Float[Array, "t t c k"], moments: Float[Array, "n t m k"], own: Float[Array, "n t"]
) -> Float[Array, "c m n"]:
    """sum_tk c[own, t, c, k] M[n, t, m, k]: with the coefficients of every species, then those of the atom's own."""
    n, species, m, _ = moments.shape
    channels = table.shape[2]
    rows = jnp.transpose(table, (0, 2, 1, 3)).reshape(species * channels, -1)
    columns = jnp.transpose(moments, (1, 3, 2, 0)).reshape(-1, m * n)
    mixed = matmul(rows, columns).reshape(species, channels, m, n)
    return _added([mixed[t] * own[:, t][None, None, :] for t in range(species)])


def _cubes(s: Float[Array, "5 c n"]) -> Float[Array, "c n"]:
    a, b, c, d, e = s
    return (
        CUBES[0] * a**3 + CUBES[1] * a * (b**2 + c**2) + CUBES[2] * a * (d**2 + e**2)
        + CUBES[3] * d * (c**2 - b**2) + CUBES[4] * b * c * e
    )  # fmt: skip


def _net(
    params: Params,
    own: Float[Array, "n t"],
    features: Float[Array, "d n"],
    nets: Int[np.ndarray, " k"],
    last: tuple[str, ...],
) -> list[Float[Array, " n"]]:
    """sum_h w1_h tanh(w0_h q - b0_h) of each atom with the net of its element, for each w1 of some names."""
    weight0, bias0 = params["weight0"][nets], params["bias0"][nets]
    found: list[list[Array]] = [[] for _ in last]
    for t in range(len(nets)):
        hidden = jnp.tanh(matmul(weight0[t], features) - bias0[t][:, None])
        for name, sums in zip(last, found, strict=True):
            sums.append((hidden * params[name][nets][t][:, None]).sum(axis=0))
    return [sums[0] if len(nets) == 1 else _added([one * own[:, t] for t, one in enumerate(sums)]) for sums in found]


def _scales(model: NEP, params: Params, samples: Samples) -> np.ndarray:
    """1 / (largest - smallest) of each descriptor over all atoms of the samples."""
    found = []
    for system, neighbors in samples:
        layout, n = neighbors.layout, system.positions.shape[0]
        vectors = jnp.swapaxes(edge_vectors(system, neighbors).reshape(n, -1, 3), 1, 2)
        own = (system.numbers[:, None] == jnp.asarray(layout.species)[None, :]).astype(vectors.dtype)
        distance = jnp.sqrt((vectors * vectors).sum(axis=1))
        found.append(np.asarray(model.descriptors(params, own, vectors, distance, layout)))
    values = np.concatenate(found, axis=1)
    spread = values.max(axis=1) - values.min(axis=1)
    return (1.0 / np.maximum(spread, SMALLEST_SPREAD)).astype(np.float32)
