"""SevenNet: agreement with the original program, its convolution, and its converter.

The contract holds a small random network with the polynomial envelope; with XPLOR's, `smooth_at_cutoff` would not
hold, as its second derivative jumps.
"""

from __future__ import annotations

import pathlib
from typing import Any

import ase
import jax
import jax.numpy as jnp
import model_contract as contract
import mpmath
import numpy as np
import pytest
from model_cases import random_sevennet
from reference_data import load_reference, read_cases
from small_sevennet import CONFIG, SMALL, stored_state

from converters import sevennet as converter
from converters.pickles import CheckpointError
from converters.sources import find_checkpoint
from jaxpto import neighbors
from jaxpto.errors import InputError
from jaxpto.models import sevennet
from jaxpto.models.catalogue import load_potential
from jaxpto.models.convolution import Convolution
from jaxpto.models.couplings import coupling_paths
from jaxpto.models.equivariant import SILU_NORM, wigner_3j
from jaxpto.models.sevennet import SevenNet
from jaxpto.models.suitability import check_supports
from jaxpto.potential import Potential
from jaxpto.system import from_ase


@pytest.fixture(scope="module")
def small() -> Potential:
    return random_sevennet()


def _published(version: str) -> Potential:
    try:
        checkpoint = find_checkpoint(f"7net-{version}")
    except CheckpointError as error:
        pytest.skip(f"no published weights: {error}")
    return converter.convert(checkpoint, f"7net-{version}", converter.MODALITIES.get(version, ""))


def test_agrees_with_the_original(shared: pathlib.Path) -> None:
    contract.agreement(_published("0"), load_reference(shared, "7net-0"), "NaCl_prim_rattle010")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["l3i5", "0"])
def test_agrees_with_the_original_on_all_structures(version: str, shared: pathlib.Path) -> None:
    contract.agreement(_published(version), load_reference(shared, f"7net-{version}"))


@pytest.mark.parametrize(
    ("modality", "names"),
    [
        ("r2scan", ("NaCl_prim_rattle010",)),
        pytest.param("pbe", ("PTO_T", "PTO_T_221_strain3_rattle008", "NaCl_prim_rattle010"), marks=pytest.mark.slow),
    ],
)
def test_each_modality_agrees_with_the_original(modality: str, names: tuple[str, ...]) -> None:
    """References are those of `benchmarks/sevennet_reference.py`."""
    potential = contract.cast(_published(f"mf-0-{modality}"), np.float64)
    cases = read_cases(pathlib.Path(__file__).parent / "references" / f"7net_mf_0_{modality}.json")
    for case in [case for case in cases if case.name in names]:
        case.assert_exact(contract.predict(potential, case.atoms))


def test_a_modality_that_is_not_there_is_refused(monkeypatch) -> None:
    try:
        checkpoint = find_checkpoint("7net-mf-0-pbe")
    except CheckpointError as error:
        pytest.skip(f"no published weights: {error}")
    for modality in ("", "PBEsol"):
        with pytest.raises(CheckpointError, match="it has R2SCAN and PBE; give one by --modality"):
            converter.convert(checkpoint, "x", modality)


PUBLISHED_LAWS = [
    contract.rotation,
    contract.permutation,
    contract.image_shift,
    contract.forces_are_gradients,
    contract.capacity,
    contract.extensivity,
    contract.other_cell_vectors,
    contract.batch,
]


@pytest.mark.slow
@pytest.mark.parametrize("law", PUBLISHED_LAWS, ids=lambda law: law.__name__)
def test_laws_of_published_weights(law, crystal: ase.Atoms) -> None:
    law(contract.cast(_published("l3i5"), np.float64), crystal)


@pytest.mark.slow
def test_every_element_alone() -> None:
    """All known elements, each out of reach of the others: energies of a network without neighbours."""
    published = contract.cast(_published("l3i5"), np.float64)
    known = published.elements
    assert len(known) == 89
    assert {84, 85, 86, 87, 88}.isdisjoint(known)
    places = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1).reshape(-1, 3)[:89] * 12.0
    found = contract.predict(published, ase.Atoms(known, places, cell=[60.0] * 3, pbc=True))
    np.testing.assert_array_equal(found.forces, 0.0)
    params = jax.device_get(published.params)
    x = params["embedding"]
    for index, channels in enumerate(published.model.channels[1:]):
        x = (x @ params["layers"][str(index)]["connection"]["0"].T)[:, : channels[0]]
        x = SILU_NORM * x / (1.0 + np.exp(-x))
    energies = params["scale"] * (x @ params["readout"]) + params["shift"]
    np.testing.assert_allclose(found.energy, energies.sum(), rtol=1e-12)
    np.testing.assert_allclose(energies[known.index(22)], -3.097260, atol=1e-6)  # the original's


def test_unknown_elements_are_refused_by_name(small: Potential) -> None:
    with pytest.raises(InputError, match="Po"):
        check_supports(small, ase.Atoms("Po", cell=[4.0] * 3, pbc=True))


@pytest.mark.parametrize(("kind", "parameter"), [("polynomial", 6.0), ("xplor", 4.5)])
def test_radial_functions(kind: str, parameter: float) -> None:
    """Against mpmath, from short distances to beyond the cutoff."""
    model = SevenNet((1,), 5.0, ((1,),), 0, kind, parameter)
    distances, frequencies = np.linspace(0.1, 5.4, 54), np.asarray([2.9e-4, 0.6, 5.1])
    found = model.radial_functions(jnp.asarray(frequencies), jnp.asarray(distances))
    for r, values in zip(distances, found, strict=True):
        x = mpmath.mpf(float(r))
        if kind == "polynomial":
            height = 1 - 28 * (x / 5) ** 6 + 48 * (x / 5) ** 7 - 21 * (x / 5) ** 8
        else:
            height = 1 if x < 4.5 else (25 - x**2) ** 2 * (25 + 2 * x**2 - 3 * 4.5**2) / mpmath.mpf(25 - 4.5**2) ** 3
        height = height if x < 5 else 0
        expected = [float(mpmath.mpf("0.4") * mpmath.sin(mpmath.mpf(float(b)) * x) / x * height) for b in frequencies]
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-14)


def test_convolution_is_a_tensor_product() -> None:
    """Against the sum over all m with 3j symbols, edge by edge and path by path."""
    generator = np.random.default_rng(0)
    paths = coupling_paths(3, 3, 2, parity=False)
    convolution = Convolution(sevennet.radial_weights, paths, (5, 3, 2, 4), 3)
    widths = [convolution.channels[path.features] for path in paths]
    radial = {"0": generator.normal(size=(7, 6)), "1": generator.normal(size=(sum(widths), 7))}
    features = [generator.normal(size=(2, 3, 2 * order + 1, c)) for order, c in enumerate((5, 3, 2, 4))]
    edge = {"radial": generator.normal(size=(2, 3, 6)), "harmonics": generator.normal(size=(2, 3, 16))}
    edge["harmonics"][..., 0] = 1.0  # as that of l = 0 is
    together = np.concatenate([x.reshape(2, 3, -1) for x in features], axis=-1)
    found = convolution(jax.tree.map(jnp.asarray, radial), jnp.asarray(together), jax.tree.map(jnp.asarray, edge))

    hidden = edge["radial"] @ radial["0"].T
    weights = (SILU_NORM * hidden / (1.0 + np.exp(-hidden))) @ radial["1"].T
    expected: list[list[np.ndarray]] = [[], [], []]
    for path, weight in zip(paths, np.split(weights, np.cumsum(widths)[:-1], axis=-1), strict=True):
        harmonics = edge["harmonics"][..., path.harmonics**2 : (path.harmonics + 1) ** 2]
        symbols = (2 * path.result + 1) ** 0.5 * wigner_3j(*path)
        factors = (weight, symbols, features[path.features], harmonics)
        expected[path.result].append(np.einsum("beu,ijk,beiu,bej->bku", *factors))
    for order in range(3):
        np.testing.assert_allclose(found[order], np.concatenate(expected[order], axis=-1), atol=1e-11)


@pytest.mark.parametrize(
    "quantity",
    ["energy", pytest.param("force", marks=pytest.mark.slow)],  # forces are what training differentiates
)
def test_parameters_can_be_differentiated(quantity: str, small: Potential) -> None:
    """Along a random direction in the space of parameters, against a central difference."""
    atoms = ase.Atoms("PbO", [[0, 0, 0], [0.2, 0.1, 2.2]], cell=[[3.0, 0, 0], [0.2, 3.1, 0], [0, 0, 4.2]], pbc=True)
    system = from_ase(atoms, np.float64)
    found = neighbors.build(system, contract.layout_of(small, atoms))
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(small.params))))
    direction = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype), small.params)

    @jax.jit
    def value(params: Any) -> jax.Array:
        potential = small.replace(params=params)
        return (
            potential.energy(system, found) if quantity == "energy" else potential.evaluate(system, found).forces[1, 2]
        )

    moved = lambda step: jax.tree.map(lambda a, b: a + step * b, small.params, direction)  # noqa: E731
    slope = (value(moved(1e-6)) - value(moved(-1e-6))) / 2e-6
    gradient = jax.jit(jax.grad(value))(small.params)
    inner = sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    np.testing.assert_allclose(inner, slope, rtol=1e-6)


def test_conversion_and_back(tmp_path: pathlib.Path) -> None:
    published = _published("0")
    assert converter.run(converter.SevennetConfig(version="0", out=tmp_path / "model")) == tmp_path / "model"
    again = load_potential(tmp_path / "model", np.float64)
    assert again.model == published.model
    assert again.model.channels[1] == (128, 64, 32)
    assert (again.model.envelope, again.model.envelope_parameter) == ("xplor", 4.5)
    jax.tree.map(np.testing.assert_array_equal, again.params, published.params)


@pytest.mark.parametrize("path", [(), (1, 1, 1), (1, 2, 1)])
def test_order_and_signs_of_stored_weights(path: tuple[int, ...]) -> None:
    """Files of old and new versions, and those with a 3j tensor of the other sign, hold the same network."""
    expected = converter.parameters(stored_state(), SMALL, by_result=False)
    for by_result in (False, True):
        found = converter.parameters(stored_state(path, by_result=by_result), SMALL, by_result=by_result)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def _convert(content: Any, tmp_path: pathlib.Path, monkeypatch) -> Potential:
    (tmp_path / "some.pth").write_bytes(b"content is patched in")
    monkeypatch.setattr(converter, "read_checkpoint", lambda path: content)
    return converter.convert(find_checkpoint("7net-0", tmp_path / "some.pth"), "some")


def test_configuration(tmp_path: pathlib.Path, monkeypatch) -> None:
    assert _convert({"config": CONFIG, "model_state_dict": stored_state()}, tmp_path, monkeypatch).model == SMALL
    sorted_since = CONFIG | {"version": "0.11.0", "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3}}
    found = _convert({"config": sorted_since, "model_state_dict": stored_state(by_result=True)}, tmp_path, monkeypatch)
    assert (found.model.envelope, found.model.envelope_parameter) == ("xplor", 3.0)
    expected = converter.parameters(stored_state(), SMALL, by_result=False)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_parity": True}, "is_parity = True is not supported"),
        ({"self_connection_type": ["linear", "nequip", "linear"]}, "self_connection_type"),
        ({"use_modality": True, "_modal_map": {"A": 0, "B": 1}}, "it has A and B; give one by --modality"),
        ({"readout_as_fcn": True}, "readout_as_fcn"),
        ({"act_radial": "ssp"}, "act_radial"),
        ({"act_gate": {"e": "ssp", "o": "tanh"}}, "act_gate"),
        ({"cutoff_function": {"cutoff_function_name": "cosine"}}, "cosine"),
        ({"irreps_manual": ["8x0e", "8x0e+6x1o", "8x0e"]}, "6x1o"),
        ({"irreps_manual": False}, "irreps_manual"),
        ({"radial_basis": {"radial_basis_name": "gaussian"}}, "gaussian"),
        ({"_type_map": {8: 1, 22: 2}}, "holds no SevenNet.*_type_map"),
        ({"lmax": 1}, "holds no SevenNet"),
    ],
)
def test_other_configurations_are_refused(changes: dict, message: str, tmp_path: pathlib.Path, monkeypatch) -> None:
    with pytest.raises(CheckpointError, match=message):
        _convert({"config": CONFIG | changes, "model_state_dict": stored_state()}, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("surplus.weight", np.ones(3), "unknown parameters surplus.weight"),
        ("1_convolution.denominator", None, "KeyError '1_convolution.denominator'"),
        ("1_self_interaction_2.linear.weight", np.ones(7), "has 7 weights"),
        ("1_convolution.weight_nn.layer2.weight", np.ones((16, 9)), "has 9 results"),
        ("1_convolution.convolution._compiled_main_left_right._w3j_1_1_1", np.ones((3, 3, 3)), "another basis"),
    ],
)
def test_other_parameters_are_refused(key: str, value: Any, message: str, tmp_path: pathlib.Path, monkeypatch) -> None:
    state = stored_state()
    if value is None:
        del state[key]
    else:
        state[key] = value
    with pytest.raises(CheckpointError, match=message):
        _convert({"config": CONFIG, "model_state_dict": state}, tmp_path, monkeypatch)


def test_files_without_a_sevennet_are_refused(tmp_path: pathlib.Path, monkeypatch) -> None:
    for content in ({}, [], {"config": None, "model_state_dict": {}}):
        with pytest.raises(CheckpointError, match="holds no SevenNet"):
            _convert(content, tmp_path, monkeypatch)


def test_gate_multiplies_each_vector_by_its_own_scalar() -> None:
    features = [jnp.asarray([[[0.5, -1.0, 2.0]]]), jnp.ones((1, 3, 2))]
    kept, gated = sevennet.gate(features, (1, 2))
    silu = lambda x: SILU_NORM * x / (1.0 + np.exp(-x))  # noqa: E731
    np.testing.assert_allclose(kept, [[[silu(0.5)]]])
    np.testing.assert_allclose(gated, np.broadcast_to([silu(-1.0), silu(2.0)], (1, 3, 2)))
