"""Models that are trained from nothing: their first parameters, and their hyperparameters from what users ask for."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import optax
import pytest
from ase.neighborlist import neighbor_list
from crystals import titanate
from small_fresh import (
    FORCE_SCALE,
    SETTINGS,
    constants_of,
    lively,
    name_of,
    named,
    rattled,
    small_fresh,
    with_neighbors,
)

from jaxpto.errors import InputError
from jaxpto.model_interface import TrainableModel
from jaxpto.models.catalogue import load_potential
from jaxpto.models.folder import save_potential
from jaxpto.models.fresh import fresh_model, trainable_architectures
from jaxpto.models.manifest import architectures
from jaxpto.neighbors import Neighbors
from jaxpto.potential import Potential
from jaxpto.structures import builtin_structure
from jaxpto.system import System, from_ase, stack

NAMES = tuple(SETTINGS)
ELEMENTS = (8, 22, 82)
SYSTEMS = [from_ase(titanate(), np.float64)]


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Potential, list[tuple[System, Neighbors]]]]:
    return {name: small_fresh(name, titanate()) for name in NAMES}


def test_every_trainable_architecture_is_tested_here() -> None:
    assert set(NAMES) == set(trainable_architectures())
    for name, entry in architectures().items():
        assert (entry.fresh is not None) == hasattr(entry.kind, "initialize"), name


@pytest.mark.parametrize("name", NAMES)
def test_first_parameters(name: str, made, tmp_path: pathlib.Path) -> None:
    """Single precision; another key gives others; a file keeps them."""
    potential, samples = made[name]
    assert isinstance(potential.model, TrainableModel)
    assert {leaf.dtype for leaf in named(potential.params).values()} == {np.dtype(np.float32)}
    again, other = (potential.model.initialize(jax.random.key(seed), samples, FORCE_SCALE) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, again, potential.params)
    assert any((a != b).any() for a, b in zip(named(other).values(), named(again).values(), strict=True))
    save_potential(potential, tmp_path / "model")
    loaded = load_potential(tmp_path / "model")
    assert loaded.model == potential.model
    jax.tree.map(np.testing.assert_array_equal, loaded.params, potential.params)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_matters(name: str, made) -> None:
    """The energy is small and has a derivative in each; `perovskite` only once its readouts are no longer zero."""
    potential, samples = made[name]
    energy = lambda params: potential.replace(params=params).energy(*samples[0])  # noqa: E731
    value_and_slopes = jax.jit(jax.value_and_grad(energy))
    value, slopes = value_and_slopes(contract.cast(potential, np.float64).params)
    assert abs(value) < 2.0 * len(titanate())
    if name == "perovskite":
        assert value == 0.0
        _, slopes = value_and_slopes(contract.cast(lively(potential), np.float64).params)
    idle = {weight for weight, slope in named(slopes).items() if not np.abs(slope).max() > 0.0}
    assert idle - constants_of(potential) == ({"moments/weight", "moments/bias"} if name == "chgnet" else set())


@pytest.mark.parametrize("name", ["mace", "deeppot_se"])
@pytest.mark.parametrize("law", ["rotation", "forces_are_gradients"])
def test_laws(name: str, law: str, made) -> None:
    """The others are held to all laws in test_models.py with parameters of this kind."""
    getattr(contract, law)(contract.cast(lively(made[name][0]), np.float64), titanate())


def _loss(potential: Potential, systems: System, lists: Neighbors, energies: jax.Array, forces: jax.Array) -> jax.Array:
    def one(system: System, found: Neighbors, energy: jax.Array, force: jax.Array) -> jax.Array:
        prediction = potential.evaluate(system, found)
        return ((prediction.energy - energy) / 5) ** 2 + jnp.mean((prediction.forces - force) ** 2)

    return jnp.mean(jax.vmap(one)(systems, lists, energies, forces))


@pytest.fixture(scope="module")
def labelled() -> tuple[list, np.ndarray, np.ndarray]:
    """Eight structures with energies and forces of `perovskite`."""
    structures = rattled(builtin_structure("PbTiO3-tetragonal"), 8, 0.08)
    teacher = load_potential("perovskite", np.float64)
    layout = teacher.allocate([from_ase(atoms, np.float64) for atoms in structures], 0.3)
    found = [contract.predict(teacher, atoms, layout) for atoms in structures]
    energies = np.array([one.energy for one in found])
    return structures, energies - energies.mean(), np.array([one.forces for one in found])


def _problem(potential: Potential, labelled) -> tuple:
    structures, energies, forces = labelled
    samples = with_neighbors(potential, structures)
    lists = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[found for _, found in samples])
    return stack([system for system, _ in samples]), lists, jnp.asarray(energies), jnp.asarray(forces)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_begins_well(name: str, made, labelled) -> None:
    """200 steps of Adam on eight structures bring the error of the forces below a third of what it was."""
    potential = contract.cast(made[name][0], np.float64)
    problem, constant = _problem(potential, labelled), constants_of(potential)
    slope = jax.grad(lambda params: _loss(potential.replace(params=params), *problem))
    frozen = jax.tree_util.tree_map_with_path(lambda path, _: name_of(path) in constant, potential.params)
    optimizer = optax.chain(optax.adam(3e-3), optax.masked(optax.set_to_zero(), frozen))

    @jax.jit
    def trained(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(slope(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=200)[0][0]

    both = potential.params, trained(potential.params)
    before, after = (_force_error(potential.replace(params=params), problem) for params in both)
    print(f"{name}: forces {before:.4f} {after:.4f} eV/A")
    assert after < before / 3.0


def _force_error(potential: Potential, problem: tuple) -> float:
    systems, lists, _, forces = problem
    found = jax.jit(jax.vmap(potential.evaluate))(systems, lists)
    return float(jnp.sqrt(jnp.mean((found.forces - forces) ** 2)))


@pytest.mark.parametrize("name", NAMES)
def test_constants_are_parameters(name: str, made) -> None:
    potential, _ = made[name]
    tables = {"embedding/table"}  # of a DeepPot-SE in place of its embedding networks
    assert constants_of(potential) == set(potential.model.constants) - tables


def test_models_that_were_converted_say_no_sizes() -> None:
    model = fresh_model("mace", ELEMENTS, {}, ())
    with pytest.raises(ValueError, match=r"MACE\.channels says nothing"):
        dataclasses.replace(model, channels=0).initialize(jax.random.key(0), (), 1.0)


def test_deeppot_se_counts_all_neighbors_of_its_data(made) -> None:
    model = made["deeppot_se"][0].model
    for number, most in zip(model.elements, model.sel, strict=True):
        counts = []
        for atoms in rattled(titanate(), 4):
            i, j = neighbor_list("ij", atoms, model.cutoff)
            counts.append(np.bincount(i[atoms.numbers[j] == number], minlength=len(atoms)).max())
        assert max(counts) < most <= 1.1 * max(counts) + 2


def test_settings_are_read() -> None:
    model = fresh_model("sevennet", ELEMENTS, {"channels": "8/8, 4/8", "envelope": "xplor", "cutoff": "4"}, ())
    assert (model.channels, model.envelope, model.cutoff) == (((8,), (8, 4), (8,)), "xplor", 4.0)
    assert fresh_model("gptff", ELEMENTS, {"self_images": "false"}, ()).self_images is False
    deep = fresh_model("deeppot_se", (8, 22, 82, 38), {"embedding_widths": "5,5,10,30"}, SYSTEMS)
    assert deep.embedding == (0, 1, 2, 0)
    assert deep.sel[3] == 1  # there is no strontium
    layers = fresh_model("mace", ELEMENTS, {"hidden": "1,1,0"}, ())
    assert layers.residual == (False, True, True)
    assert layers.readouts == (0, 1, 2)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_make_a_model(name: str) -> None:
    model = fresh_model(name, ELEMENTS, {}, SYSTEMS)
    params = model.initialize(jax.random.key(0), (), 1.0)
    assert 5_000 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 500_000
    assert model.elements == ELEMENTS


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("nequip", {}, "unknown architecture 'nequip'; those that can be trained from nothing: perovskite, chgnet"),
        ("orb_direct", {}, "orb_direct cannot be trained from nothing; those that can"),
        ("sevennet", {"width": "3"}, "has no setting width; it has cutoff, channels, highest"),
        (
            "m3gnet",
            {"features": "many"},
            "features=many of the architecture m3gnet: give a whole number from 1",
        ),
        ("m3gnet", {"features": "0"}, "give a whole number from 1 to 1024"),
        ("m3gnet", {"features": "8.5"}, "give a whole number from 1 to 1024"),
        ("m3gnet", {"cutoff": "nan"}, "give a number from 2.0 to 12.0"),
        ("gptff", {"attention": "yes"}, "give false or true"),
        ("sevennet", {"envelope": "cosine"}, "give polynomial or xplor"),
        ("sevennet", {"channels": "8,4"}, "cannot be made with channels=8,4: "),
        ("sevennet", {"channels": "8/a"}, "give whole numbers with commas, and slashes between layers, from 1 to 1024"),
        ("m3gnet", {"three_body_cutoff": "6"}, "three_body_cutoff 6 A is not between 0 and the cutoff, 5 A"),
        ("perovskite", {"quartic": "16"}, "cannot be made with quartic=16"),
        ("mace", {"orders": "3,2,1"}, "cannot be made with orders=3,2,1"),
        ("deeppot_se", {"sel": "4,4"}, "cannot be made with sel=4,4"),
    ],
)
def test_mistakes_are_one_line(architecture: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        fresh_model(architecture, ELEMENTS, settings, SYSTEMS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
