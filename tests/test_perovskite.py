"""The perovskite model: its laws, its hand-written derivative, its wall, and what the shipped weights know."""

from __future__ import annotations

import dataclasses

import ase
import jax
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import pytest
from crystals import titanate
from model_cases import random_perovskite

from jaxpto import neighbors
from jaxpto.models import atom_slices, perovskite, perovskite_moments
from jaxpto.models.catalogue import load_potential
from jaxpto.models.folder import save_potential
from jaxpto.models.perovskite_moments import moments
from jaxpto.potential import Potential
from jaxpto.system import from_ase


@pytest.fixture(scope="module")
def random_potential() -> Potential:
    return random_perovskite()


@pytest.fixture(scope="module")
def shipped() -> Potential:
    return load_potential("perovskite", np.float64)


@pytest.mark.parametrize("law", [contract.rotation, contract.forces_are_gradients], ids=lambda law: law.__name__)
def test_shipped_weights_obey(law, shipped: Potential) -> None:
    places = [[0, 0, 0], [0.5, 0.5, 0.54], [0.5, 0.5, 0.11], [0.5, 0, 0.62], [0, 0.5, 0.62]]
    cell = [[3.9, 0.1, 0], [0, 3.85, -0.1], [0, 0.05, 4.2]]
    atoms = ase.Atoms("PbTiO3", scaled_positions=places, cell=cell, pbc=True)
    atoms.rattle(0.05, seed=5)
    law(shipped, atoms)


PAIRED = ("mix", "pair", "wall", "trusted")
"""Parameters of pairs of species."""


def naive_energy(potential: Potential, atoms: ase.Atoms) -> jax.Array:
    """The formulas of the module's docstring, atom by atom and edge by edge."""
    params, model = jax.tree.map(np.asarray, potential.params), potential.model
    kind = [model.elements.index(z) for z in atoms.numbers]
    cell = atoms.cell.array
    shifts = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    faded = []

    @jax.jit
    def of_edge(r: jax.Array, of_pair: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Terms of an edge in the channels, the pair energy and the wall."""
        u = jnp.sum(r**2) / model.cutoff**2
        depth = jnp.maximum(0.0, 1.0 - u * model.cutoff**2 / of_pair["wall"] ** 2)
        least = (of_pair["trusted"] / model.cutoff) ** 2
        v = jnp.clip((1.0 - u / least) / perovskite_moments.FADE, 0.0, 1.0)
        u = jnp.maximum(u, least) - perovskite_moments.FADE * least * (v - v**3 + v**4 / 2)
        q = 1.0 / (u + perovskite_moments.WARP)
        w = (1.0 + perovskite_moments.WARP) * u * q
        f = jnp.stack([jnp.cos(k * jnp.arccos(2 * w - 1)) for k in range(model.radial)]) * (1 - u) ** model.envelope
        x, y, z = r * q / model.cutoff
        tensor = np.sqrt(3.0) * jnp.stack(
            [x * y, y * z, (3 * z * z - (x * x + y * y + z * z)) / np.sqrt(12.0), x * z, (x * x - y * y) / 2]
        )
        angular = jnp.concatenate([jnp.stack([jnp.ones(()), x, y, z]), tensor])
        channels = (of_pair["mix"] @ f)[:, None] * angular[None, :]
        return channels, of_pair["pair"] @ f, 0.5 * perovskite_moments.WALL_HEIGHT * depth**3

    def energy(positions: jax.Array) -> jax.Array:
        total = 0.0
        for i, a in enumerate(kind):
            channels, pair, wall = 0.0, 0.0, 0.0
            for j, b in enumerate(kind):
                for s in shifts:
                    if i == j and not s.any():
                        continue
                    there = atoms.positions[j] + s @ atoms.cell.array - atoms.positions[i]
                    if np.linalg.norm(there) > model.cutoff:
                        continue
                    inside = 1.0 - float(there @ there) / float(params["trusted"][a, b]) ** 2
                    faded.append(min(max(inside, 0.0) / perovskite_moments.FADE, 1.0))
                    terms = of_edge(positions[j] + s @ cell - positions[i], {key: params[key][a, b] for key in PAIRED})
                    channels, pair, wall = channels + terms[0], pair + terms[1], wall + terms[2]
            c = model.channels
            vectors, tensors = channels[:, 1:4], channels[:, 4:9]
            # symmetric traceless matrices of the l = 2 channels, whose plain matrix algebra gives the couplings
            basis = tensor_basis()
            matrices = jnp.einsum("cm,mij->cij", tensors, basis)
            parts = [channels[:, 0], (vectors @ vectors.T).reshape(-1), (tensors @ tensors.T).reshape(-1)]
            quartic = [(p, r) for p in range(model.quartic) for r in range(p, model.quartic)]
            of_vectors = [vectors[p] @ matrices[t] @ vectors[r] for p, r in quartic for t in range(model.quartic)]
            of_tensors = [
                jnp.trace(matrices[p] @ matrices[r] @ matrices[t]) for p, r in quartic for t in range(model.quartic)
            ]
            # conventions: harmonics carry sqrt(3)/2 times the matrix elements, products an extra 2/sqrt(3) or so
            parts += [COUPLING[0] * jnp.stack(of_vectors), COUPLING[1] * jnp.stack(of_tensors)]
            d = jnp.concatenate(parts)
            assert c * (1 + 2 * c) + 2 * len(of_vectors) == model.features == len(d)
            first = jnp.tanh(params["weight1"][a].T @ d + params["bias1"][a])
            second = first + jnp.tanh(params["weight2"][a].T @ first + params["bias2"][a])
            total += second @ params["weight3"][a] + d @ params["linear"][a] + pair + wall + params["offset"][a]
        return total

    result = jax.value_and_grad(energy)(jnp.asarray(atoms.positions))
    assert {0.0, 1.0} < set(faded), "the atoms do not meet every branch"
    return result


def tensor_basis() -> np.ndarray:
    """Matrices [5, 3, 3] such that sum_m Y_2m B_m = r r^T - r^2 / 3, in the order and norm of the harmonics."""
    h = np.sqrt(3.0)
    basis = np.zeros((5, 3, 3))
    for m, (i, j) in {0: (0, 1), 1: (1, 2), 3: (0, 2)}.items():
        basis[m, i, j] = basis[m, j, i] = 1.0 / h
    basis[2] = np.diag([-1.0, -1.0, 2.0]) / 3.0
    basis[4] = np.diag([1.0, -1.0, 0.0]) / h
    return basis


# v_p Q_t v_r and tr(Q_p Q_r Q_t) of those matrices, against sum_m of the coupled l = 2 parts with channel t
COUPLING = (1.5, 4.5)


@pytest.mark.parametrize("envelope", [3, 5])
def test_against_naive_formula_and_its_autodiff(random_potential: Potential, crystal: ase.Atoms, envelope: int) -> None:
    model = dataclasses.replace(random_potential.model, envelope=envelope)
    random_potential = random_potential.replace(model=model)
    energy, gradient = naive_energy(random_potential, crystal[[0, 2, 4]])
    found = contract.predict(random_potential, crystal[[0, 2, 4]])
    np.testing.assert_allclose(found.energy, energy, rtol=1e-10)
    np.testing.assert_allclose(found.forces, -gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("envelope", [3, 5])
def test_second_derivatives_of_the_moments(envelope: int) -> None:
    """The written-out first derivative can itself be differentiated, forwards and backwards (Hessians, training)."""
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)) * 2.0)
    wall, trusted = jnp.full((2, 2), 2.5), jnp.full((2, 2), 3.0)
    layout = neighbors.Layout(6.0, 0.0, (1, 1, 1), (1, 1, 1), (32, 32), (8, 22), (1, 3))

    def scalar(v: jax.Array) -> jax.Array:
        moment, energy = moments(v, trusted, wall, 6.0, 5, envelope, layout)
        return jnp.sum(jnp.sin(moment)) + jnp.sum(energy)

    slope = jax.jit(jax.grad(scalar))
    direction = jnp.asarray(np.random.default_rng(1).normal(size=vectors.shape))
    forward = jax.jit(lambda v: jax.jvp(slope, (v,), (direction,))[1])(vectors)
    backward = jax.jit(jax.grad(lambda v: jnp.sum(slope(v) * direction)))(vectors)
    numeric = (slope(vectors + 1e-5 * direction) - slope(vectors - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(forward, numeric, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(backward, numeric, rtol=1e-6, atol=1e-6)


def test_the_envelope_ends_smoothly() -> None:
    """The first p - 1 derivatives of a radial function vanish at the cutoff; the p-th jumps."""
    layout = neighbors.Layout(6.0, 0.0, (1, 1, 1), (1, 1, 1), (32,), (22,), (1,))
    near = jnp.full((1, 1), 1.0)

    def density(distance: jax.Array, envelope: int) -> jax.Array:
        vectors = jnp.zeros((1, 3, 1)).at[0, 0, 0].set(distance)
        return moments(vectors, near, near, 6.0, 4, envelope, layout)[0][0, 0, 0, 3]

    for envelope in (3, 5):
        values = [density(jnp.asarray(6.0 - h), envelope) for h in (0.01, 0.02)]
        assert float(jnp.log2(values[1] / values[0])) == pytest.approx(envelope, abs=0.05)


@pytest.mark.parametrize("pair", ["PbO", "TiO", "OO", "PbPb", "PbTi", "TiTi"])
def test_the_shipped_model_keeps_atoms_of_a_crystal_apart(shipped: Potential, pair: str) -> None:
    """Pushing an atom at its nearest neighbour of a kind costs 2 eV, 23 kT at 1000 K, before anything is gained.

    Further in the model knows nothing and has holes, which this barrier keeps a simulation out of.
    """
    from jaxpto.calculator import JaxptoCalculator
    from jaxpto.structures import builtin_structure, make_supercell

    first, second = ase.Atoms(pair).numbers
    known = shipped.elements
    wall = float(shipped.params["wall"][known.index(first), known.index(second)])
    crystal = make_supercell(builtin_structure("PbTiO3-cubic"), (2, 2, 2))
    crystal.calc = JaxptoCalculator(shipped)
    start = crystal.get_potential_energy()
    atom = int(np.flatnonzero(crystal.numbers == first)[0])
    others = [i for i in np.flatnonzero(crystal.numbers == second) if i != atom]
    distances = crystal.get_distances(atom, others, mic=True)
    other = int(others[int(np.argmin(distances))])
    bond = crystal.get_distance(atom, other, mic=True, vector=True)
    length = np.linalg.norm(bond)
    barrier = 0.0
    for distance in np.linspace(length, 0.8 * wall, 15)[1:]:
        pushed = crystal.copy()
        pushed.positions[other] += bond * (distance / length - 1.0)
        pushed.calc = crystal.calc
        cost = pushed.get_potential_energy() - start
        barrier = max(barrier, cost)
        if barrier > 2.0:
            break
        assert cost > -0.1, f"{pair} at {distance:.2f} A gains {-cost:.2f} eV behind a barrier of {barrier:.2f} eV"
    assert barrier > 2.0


def test_unknown_species_are_refused_by_name(shipped: Potential) -> None:
    from jaxpto.calculator import JaxptoCalculator
    from jaxpto.errors import InputError

    atoms = ase.Atoms("Au", cell=[4.0] * 3, pbc=True, calculator=JaxptoCalculator(shipped))
    with pytest.raises(InputError, match="Au"):
        atoms.get_potential_energy()


def test_save_and_load_give_the_same_numbers(tmp_path, random_potential: Potential, crystal: ase.Atoms) -> None:
    save_potential(random_potential, tmp_path / "model")
    again = load_potential(tmp_path / "model", np.float64)
    assert again.model == random_potential.model
    contract.assert_same(contract.predict(again, crystal), contract.predict(random_potential, crystal), 1e-12)


def test_shipped_weights_are_small_and_know_pbtio3(shipped: Potential) -> None:
    """Forces in a guessed tetragonal cell are small, and the polar cell lies below the cubic one."""
    from jaxpto.models import catalogue

    folder = catalogue.find_model("perovskite")
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 3e6
    places = [[0, 0, 0], [0.5, 0.5, 0.54], [0.5, 0.5, 0.11], [0.5, 0, 0.62], [0, 0.5, 0.62]]
    polar = ase.Atoms("PbTiO3", scaled_positions=places, cell=[3.88, 3.88, 4.18], pbc=True)
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    cubic = ase.Atoms("PbTiO3", scaled_positions=places, cell=[3.93] * 3, pbc=True)
    one, other = contract.predict(shipped, polar), contract.predict(shipped, cubic)
    assert 0.04 < other.energy - one.energy < 0.12
    assert np.abs(one.forces).max() < 0.5
    np.testing.assert_allclose(other.forces, 0.0, atol=1e-9)


def test_slices_of_atoms_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy, forces, stress, and derivatives of the energy in parameters and of a force, with slices and without."""
    potential = random_perovskite()
    atoms = titanate().repeat(2)
    system = from_ase(atoms, np.float64)
    found = neighbors.build(system, potential.allocate([system], 0.1))

    def everything(potential, system, found):
        def force(positions):
            return potential.evaluate(system.replace(positions=positions), found).forces[0, 0]

        prediction = potential.evaluate(system, found)
        trained = jax.grad(lambda params: potential.replace(params=params).energy(system, found))(potential.params)
        return prediction, trained, jax.grad(force)(system.positions)

    whole = jax.jit(everything)(potential, system, found)
    monkeypatch.setattr(atom_slices, "CROWD", 30)
    monkeypatch.setattr(perovskite, "SLICE", 12)  # four slices, the last one not full
    jax.clear_caches()
    assert "scan" in str(jax.make_jaxpr(lambda: potential.energy(system, found))())
    sliced = jax.jit(everything)(potential, system, found)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(sliced), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)
