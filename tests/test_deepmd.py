"""Deep Potential models: agreement with DeePMD-kit, the laws of every model, and tables."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import ase
import jax
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import pytest
from crystals import titanate
from dp_files import read_dp, write_dp
from reference_data import Case

from converters import deepmd as converter
from converters.deepmd_tables import compress
from converters.pickles import CheckpointError
from jaxpto import neighbors
from jaxpto.model_interface import Prediction
from jaxpto.models import deepmd, deepmd_layers
from jaxpto.potential import Potential
from jaxpto.system import from_ase

FIXTURES = "weights/fixtures"
TITANATE = titanate()
BUILD = jax.jit(neighbors.build, static_argnames="layout")
# file, its reference, and structures that are not compared to rounding
MODELS = {
    # more than sel neighbours, several equally far: which ones count is an accident of the original's sort
    "se_e2_a.pb": ("se_e2_a_pb", {"PTO_C"}),
    "se_e2_a.dp": ("se_e2_a_pb", {"PTO_C"}),
    "unipero_reduced.pb": ("unipero_reduced_pb", set()),
    "dpa1_tebd8.pb": ("dpa1_tebd8_pb", set()),
    # pairs so near the cutoff that the original's quintic has lost its digits, which forces divide by 1e-12:
    # test_noise_of_the_original
    "pt_dpa1.pth": ("pt_dpa1_pth", {"PTO_C_333_rattle010", "BaTiO3_222_rattle005"}),
    "pt_dpa1.dp": ("pt_dpa1_pth", {"PTO_C_333_rattle010", "BaTiO3_222_rattle005"}),
}
QUICK = {"PTO_T_221_strain3_rattle008", "Zn_hcp_221_rattle010"}


def _converted(shared: pathlib.Path, name: str) -> Potential:
    return converter.convert(converter.read_model(shared / FIXTURES / name), name)


@pytest.fixture(scope="module")
def unipero(shared: pathlib.Path) -> Potential:
    return contract.cast(_converted(shared, "unipero_reduced.pb"), np.float64)


@pytest.fixture(scope="module")
def deeppot(shared: pathlib.Path) -> Potential:
    return contract.cast(_converted(shared, "se_e2_a.pb"), np.float64)


@pytest.fixture(scope="module")
def compressed(shared: pathlib.Path) -> tuple[Potential, Any]:
    return compress(_converted(shared, "se_e2_a.pb"), 1e-8)


def _cases(shared: pathlib.Path, reference: str) -> dict[str, Case]:
    structures = json.loads((shared / "reference" / f"{reference}.json").read_text())["structures"]
    cases = {}
    for name, entry in structures.items():
        atoms = ase.Atoms(numbers=entry["numbers"], positions=entry["positions"], cell=entry["cell"], pbc=True)
        exact = Prediction(*(np.asarray(entry[key]) for key in ("energy", "forces", "stress")))
        cases[name] = Case(name, atoms, exact, None, {"energies": np.asarray(entry["atom_energy"]).reshape(-1)})
    return cases


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_the_original(name: str, shared: pathlib.Path) -> None:
    _compare(shared, name, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_the_original_on_all_structures(name: str, shared: pathlib.Path) -> None:
    _compare(shared, name, set())


def _compare(shared: pathlib.Path, name: str, names: set[str]) -> None:
    """The named structures in float64; all of them, in both precisions, if none is named."""
    reference, special = MODELS[name]
    potential = contract.cast(_converted(shared, name), np.float64)
    cases = [case for case in _cases(shared, reference).values() if not names or case.name in names]
    assert cases
    for case, layout in zip(cases, contract.layouts_of(potential, [case.atoms for case in cases]), strict=True):
        found = contract.predict(potential, case.atoms, layout)
        if case.name in special:
            assert case.errors(found)[0] < 1e-8
            continue
        case.assert_exact(found)
        if not names:
            # the files hold no float32 results of the original; energies of 900 eV/atom have 4 digits after the point
            single = contract.predict(contract.cast(potential, np.float32), case.atoms, layout)
            energy, force, stress = case.errors(single)
            assert energy < 1e-4
            assert force < 1e-4
            assert stress < 1e-6


def test_energies_of_atoms(unipero: Potential, shared: pathlib.Path) -> None:
    case = _cases(shared, "unipero_reduced_pb")["PTO_T_221_strain3_rattle008"]
    system = from_ase(case.atoms, np.float64)
    found = neighbors.build(system, contract.layout_of(unipero, case.atoms))
    energies = jax.jit(Potential.site_properties)(unipero, system, found)["energies"]
    np.testing.assert_allclose(energies, case.extra["energies"], atol=1e-8)


@pytest.mark.slow
def test_noise_of_the_original(shared: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why two structures are not compared to rounding: the quintic as DeePMD-kit writes it moves forces by 1e-6."""
    potential = contract.cast(_converted(shared, "pt_dpa1.pth"), np.float64)
    case = _cases(shared, "pt_dpa1_pth")["BaTiO3_222_rattle005"]
    system = from_ase(case.atoms, np.float64)
    found = neighbors.build(system, contract.layout_of(potential, case.atoms))

    def as_published(vectors, start, cutoff):
        distance = jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True))
        u = (jnp.clip(distance, start, cutoff) - start) / (cutoff - start)
        w = u**3 * (-6.0 * u**2 + 15.0 * u - 10.0) + 1.0
        return jnp.concatenate([w / distance, w * vectors / distance**2], axis=-1)

    ours = jax.jit(lambda p: p.evaluate(system, found))(potential).forces
    monkeypatch.setattr(deepmd, "environment", as_published)
    theirs = jax.jit(lambda p: p.evaluate(system, found))(potential).forces
    noise = np.abs(theirs - ours).max()
    assert noise > 1e-6
    assert np.abs(ours - case.exact.forces).max() < noise


def test_types_that_are_absent_count_as_empty(deeppot: Potential) -> None:
    """Without neighbours the invariants are those of the empty slots alone, worked out here in NumPy."""
    model, params = deeppot.model, jax.tree.map(np.asarray, deeppot.params)
    empty = -params["mean"][1] / params["std"][1]
    assert np.abs(empty[0]) > 0.1
    total = np.zeros((4, 40))
    for number, most in enumerate(model.sel):
        x = empty[:1]
        for layer, copies in zip("012", (0, 2, 2), strict=True):
            part = {name: leaf[1, number] for name, leaf in params["embedding"][layer].items()}
            x = np.tanh(part["weight"] @ x + part["bias"]) + (np.tile(x, copies) if copies else 0.0)
        total += most * np.outer(empty, x)
    total /= sum(model.sel)
    x = (total.T @ total[:, : model.axis]).reshape(-1)
    for layer in "0123":
        part = {name: leaf[1] for name, leaf in params["fitting"][layer].items()}
        y = part["weight"] @ x + part["bias"]
        x = y if layer == "3" else np.tanh(y) * part.get("step", 1.0) + (x if layer != "0" else 0.0)
    lone = ase.Atoms("Ti", cell=[20.0] * 3, pbc=True)
    np.testing.assert_allclose(contract.predict(deeppot, lone).energy, x[0] + params["shift"][1], rtol=1e-13)


@pytest.mark.parametrize("model", ["unipero", "deeppot", pytest.param("compressed", marks=pytest.mark.slow)])
def test_hessians(model: str, request) -> None:
    """A product with the Hessian, twice backwards through the slices, against a difference of gradients."""
    potential = request.getfixturevalue(model)
    potential = contract.cast(potential[0], np.float64) if model == "compressed" else potential
    system = from_ase(TITANATE, np.float64)
    found = BUILD(system, contract.layout_of(potential, TITANATE))
    direction = jnp.asarray(np.random.default_rng(0).normal(size=system.positions.shape))
    gradient = jax.grad(lambda x: potential.energy(system.replace(positions=x), found))
    product = jax.jit(jax.grad(lambda x: jnp.vdot(gradient(x), direction)))(system.positions)
    quick = jax.jit(gradient)
    step = 1e-5
    difference = (quick(system.positions + step * direction) - quick(system.positions - step * direction)) / (2 * step)
    np.testing.assert_allclose(product, difference, rtol=1e-5, atol=1e-6)


def test_groups_hold_every_atom_once() -> None:
    generator = np.random.default_rng(1)
    for n in (1, 7, 500):
        types = generator.choice([2, 5, 9], n)
        groups = jax.tree.map(np.asarray, deepmd_layers.make_groups(jnp.asarray(types), [5, 2, 9, 11], 8))
        used = groups.atoms < n
        np.testing.assert_array_equal(np.sort(groups.atoms[used]), np.arange(n))
        owners = np.broadcast_to(groups.types[:, None], used.shape)
        np.testing.assert_array_equal(owners[used], types[groups.atoms[used]])


def test_the_nearest_count() -> None:
    """With more neighbours than sel, those beyond do not matter at all."""
    vectors = jnp.asarray(np.random.default_rng(2).normal(size=(3, 20, 3)))
    chosen = np.asarray(deepmd_layers.nearest(vectors, 6))
    distances = np.linalg.norm(vectors, axis=2)
    np.testing.assert_array_equal(chosen, np.argsort(distances, axis=1)[:, :6])
    assert deepmd_layers.nearest(vectors, 30).shape == (3, 20)


# ---- variants of the files in shared, whose energies DeePMD-kit 3.2.0 (NumPy back end) has computed


def without_attention(model: dict[str, Any]) -> None:
    model["descriptor"]["attn_layer"] = model["descriptor"]["attention_layers"]["layer_num"] = 0
    model["descriptor"]["attention_layers"]["attention_layers"] = []


def one_sided(model: dict[str, Any]) -> None:
    model["descriptor"]["type_one_side"] = True
    network = model["descriptor"]["embeddings"]["networks"][0]
    first = network["layers"][0]["@variables"]
    first["w"], network["in_dim"] = first["w"][:9], 9


def ungated(model: dict[str, Any]) -> None:
    descriptor = model["descriptor"]
    descriptor["temperature"] = descriptor["attention_layers"]["temperature"] = 0.7
    descriptor["attn_dotr"] = descriptor["attention_layers"]["dotr"] = False
    for layer in descriptor["attention_layers"]["attention_layers"]:
        for part in (layer, layer["attention_layer"]):
            part["temperature"], part["dotr"] = 0.7, False
    descriptor["concat_output_tebd"] = False
    network = model["fitting"]["nets"]["networks"][0]
    first = network["layers"][0]["@variables"]
    first["w"], network["in_dim"], model["fitting"]["dim_descrpt"] = first["w"][:1600], 1600, 1600


def one_sided_se(model: dict[str, Any]) -> None:
    model["descriptor"]["type_one_side"] = True
    embeddings = model["descriptor"]["embeddings"]
    embeddings["ndim"], embeddings["networks"] = 1, embeddings["networks"][:3]


def crowded(model: dict[str, Any]) -> None:
    """Fewer places than neighbours, of all types together and of each."""
    descriptor = model["descriptor"]
    descriptor["sel"] = [12, 15, 30]
    for name in ("davg", "dstd"):
        descriptor["@variables"][name] = descriptor["@variables"][name][:, :57]


def timesteps(model: dict[str, Any]) -> None:
    """Steps and other activations in the embedding networks."""
    descriptor = model["descriptor"]
    descriptor["resnet_dt"], descriptor["activation_function"] = True, "silu"
    for number, network in enumerate(descriptor["embeddings"]["networks"]):
        network["resnet_dt"], network["activation_function"] = True, "silu"
        for layer in network["layers"]:
            width = layer["@variables"]["w"].shape[1]
            layer["activation_function"] = "silu"
            if layer["@variables"]["w"].shape[0] * 2 == width:
                layer["use_timestep"] = True
                layer["@variables"]["idt"] = 0.5 + 0.1 * np.cos(np.arange(width) + number)


VARIANT_OF = "PTO_T_221_strain3_rattle008"
VARIANTS: dict[str, tuple[str, Callable[[dict[str, Any]], None], float]] = {
    "without_attention": ("pt_dpa1.dp", without_attention, -17623.722554347416),
    "one_sided": ("pt_dpa1.dp", one_sided, -17622.474111590283),
    "ungated": ("pt_dpa1.dp", ungated, -17624.915545476768),
    "one_sided_se": ("se_e2_a.dp", one_sided_se, -17617.44744666758),
    "crowded": ("se_e2_a.dp", crowded, -17614.080459629036),
    "timesteps": ("se_e2_a.dp", timesteps, -17603.936955693676),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source, change, expected = VARIANTS[variant]
    tree = read_dp(shared / FIXTURES / source)
    change(tree["model"])
    path = write_dp(tmp_path / f"{variant}.dp", tree)
    potential = contract.cast(converter.convert(converter.read_model(path), variant), np.float64)
    atoms = _cases(shared, "se_e2_a_pb")[VARIANT_OF].atoms
    np.testing.assert_allclose(contract.predict(potential, atoms).energy, expected, atol=2e-7)


# ---- tables


def test_tables_are_as_exact_as_they_say(compressed, deeppot: Potential) -> None:
    potential, measured = compressed
    assert 0.0 < measured.value <= 1e-8
    table = potential.params["embedding"]["table"]
    assert table.shape == (3, 3, measured.intervals, 6, 40)
    start, step = potential.model.table
    s = np.random.default_rng(3).uniform(start, start + step * measured.intervals, 2000)
    layers = jax.tree.map(lambda leaf: leaf[1, 2], deeppot.params["embedding"])
    exact = deepmd_layers.residual_net(layers, (0, 2, 2), "tanh", jnp.asarray(s)[:, None])
    found = deepmd_layers.table_values(jnp.asarray(table[1, 2]), potential.model.table, jnp.asarray(s))
    error = np.abs(found - exact).max()
    assert 0.0 < error <= 1.05 * measured.value
    exact, found = contract.predict(deeppot, TITANATE), contract.predict(contract.cast(potential, np.float64), TITANATE)
    assert abs(found.energy - exact.energy) < 1e-7
    np.testing.assert_allclose(found.forces, exact.forces, atol=1e-6)
    np.testing.assert_allclose(found.stress, exact.stress, atol=1e-8)


def test_tables_are_smooth(compressed) -> None:
    """Value and first two derivatives are continuous from one interval to the next, and constant outside."""
    table, (start, step) = compressed[0].params["embedding"]["table"][0, 1], compressed[0].model.table
    powers = np.arange(6)
    for order in range(3):
        factor = np.prod([powers - k for k in range(order)], axis=0) * np.ones(6)
        right = np.einsum("ipm,p->im", table, factor)
        left = np.einsum("ipm,p->im", table, np.where(powers == order, factor, 0.0))
        np.testing.assert_allclose(right[:-1], left[1:], atol=1e-9)
    outside = deepmd_layers.table_values(jnp.asarray(table), (start, step), jnp.asarray([start - 9.0, 1e4]))
    np.testing.assert_allclose(outside, [table[0, 0], table[-1].sum(axis=0)], rtol=1e-12)


@pytest.mark.slow
def test_tables_obey_the_laws(compressed) -> None:
    potential = contract.cast(compressed[0], np.float64)
    for law in (contract.rotation, contract.capacity, contract.forces_are_gradients, contract.batch):
        law(potential, TITANATE)


def test_an_error_that_tables_cannot_reach(shared: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="--table-error"):
        compress(_converted(shared, "se_e2_a.pb"), 1e-30)
