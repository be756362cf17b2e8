"""M3GNet: agreement with the original program, its basis functions, and its converter."""

from __future__ import annotations

import json
import math
import pathlib
import shutil

import ase
import jax
import jax.numpy as jnp
import model_contract as contract
import mpmath
import numpy as np
import pytest
import scipy.special
from reference_data import Case, load_reference, read_cases

from converters import m3gnet as converter
from converters.pickles import CheckpointError
from converters.sources import find_checkpoint
from jaxpto import neighbors
from jaxpto.errors import InputError
from jaxpto.models import m3gnet
from jaxpto.models.catalogue import load_potential
from jaxpto.models.m3gnet import M3GNet
from jaxpto.models.suitability import check_supports
from jaxpto.potential import Potential
from jaxpto.system import from_ase

WEIGHTS = "weights/M3GNet-MP-2021.2.8-PES"


@pytest.fixture(scope="module")
def converted(shared: pathlib.Path) -> Potential:
    """The published weights as they are stored."""
    return converter.convert(find_checkpoint(converter.NAME, shared / WEIGHTS), converter.NAME)


@pytest.fixture(scope="module")
def published(converted: Potential) -> Potential:
    """In float64."""
    return contract.cast(converted, np.float64)


def _cases(shared: pathlib.Path) -> list[Case]:
    """With the right three-body indices; the original's rounding is known for its own indices only."""
    return load_reference(shared, "m3gnet_mp_2021_2_8", "parent_indexed")


def test_agrees_with_the_original(converted: Potential, shared: pathlib.Path) -> None:
    contract.agreement(converted, _cases(shared), "LiFePO4_rattle005")


@pytest.mark.slow
def test_agrees_with_the_original_on_all_structures(converted: Potential, shared: pathlib.Path) -> None:
    contract.agreement(converted, _cases(shared))


def _matpes(shared: pathlib.Path, functional: str) -> tuple[Potential, list[Case]]:
    """A model and what `benchmarks/m3gnet_reference.py` computed with it, by triplets numbered as they were meant."""
    name = f"m3gnet-matpes-{functional.lower()}"
    checkpoint = find_checkpoint(name, shared / f"weights/M3GNet-MatPES-{functional}-v2025.1-PES")
    cases = read_cases(pathlib.Path(__file__).parent / "references" / f"m3gnet_matpes_{functional.lower()}.json")
    return contract.cast(converter.convert(checkpoint, name), np.float64), cases


def test_smooth_models_agree_with_the_original(shared: pathlib.Path) -> None:
    potential, cases = _matpes(shared, "r2SCAN")
    case = next(case for case in cases if case.name == "LiFePO4_rattle005")
    case.assert_exact(contract.predict(potential, case.atoms))


@pytest.mark.slow
@pytest.mark.parametrize("functional", ["PBE", "r2SCAN"])
def test_smooth_models_agree_with_the_original_on_all_structures(shared: pathlib.Path, functional: str) -> None:
    potential, cases = _matpes(shared, functional)
    for case in cases:
        case.assert_exact(contract.predict(potential, case.atoms))


def test_every_element_alone(published: Potential) -> None:
    """All known elements, each out of reach of the others: their energies are those of embedding and readout."""
    known = published.elements
    assert len(known) == 89
    assert {84, 85, 86, 87, 88}.isdisjoint(known)
    places = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1).reshape(-1, 3)[:89] * 12.0
    atoms = ase.Atoms(known, places, cell=[60.0] * 3, pbc=True)
    found = contract.predict(published, atoms)
    np.testing.assert_array_equal(found.forces, 0.0)
    params = jax.device_get(published.params)
    features = {kind: params["atom_embedding"] for kind in ("value", "gate")}
    for kind in features:
        for index in range(4):
            x = features[kind]
            x = x / (1.0 + np.exp(-x)) if index else x
            layer = params["readout"][kind][str(index)]
            features[kind] = x @ layer["weight"].T + layer["bias"]
    energies = features["value"] / (1.0 + np.exp(-features["gate"]))
    expected = params["scale"] * energies.sum() + params["offset"].sum()
    np.testing.assert_allclose(found.energy, expected, rtol=1e-12)


def test_unknown_elements_are_refused_by_name(published: Potential) -> None:
    with pytest.raises(InputError, match="Po"):
        check_supports(published, ase.Atoms("Po", cell=[4.0] * 3, pbc=True))


@pytest.mark.parametrize(("dtype", "last_digits"), [(np.float32, 1.0), (np.float64, 5.0)])
def test_radial_functions(dtype: type, last_digits: float) -> None:
    """Against mpmath at the distances as rounded to the precision, from far below a bond's to beyond the cutoff.

    In single precision to the last digit; in double precision the table has the rounding of scipy's functions.
    """
    distance = np.asarray([*np.linspace(0.001, 4.999, 100), 5.0, 5.3], dtype)
    inside = [mpmath.mpf(float(r)) / 5 for r in distance if r <= 5.0]
    found = m3gnet.radial_basis(jnp.asarray(distance), 5.0)
    ones = jnp.ones_like(found[:, 0])
    _, slopes = jax.jvp(lambda r: m3gnet.radial_basis(r, 5.0), (jnp.asarray(distance),), (ones,))
    for order in range(3):
        for index, zero in enumerate(m3gnet.ZEROS[order]):
            norm = math.sqrt(2.0 / 125.0) / abs(_spherical_bessel(order + 1, mpmath.mpf(zero)))
            values = np.zeros((2, len(distance)))
            for row, x in enumerate(inside):
                j, following = _spherical_bessel(order, zero * x), _spherical_bessel(order + 1, zero * x)
                values[:, row] = norm * j, norm * zero / 5 * (order / (zero * x) * j - following)
            for expected, column in zip(values, (found, slopes), strict=True):
                rounding = last_digits * np.finfo(dtype).eps * np.abs(expected).max()
                np.testing.assert_allclose(column[:, 3 * order + index], expected, rtol=0, atol=rounding)
    assert found.dtype == dtype


def _spherical_bessel(order: int, x: mpmath.mpf) -> mpmath.mpf:
    with mpmath.workdps(30):
        return mpmath.sqrt(mpmath.pi / (2 * x)) * mpmath.besselj(order + mpmath.mpf(1) / 2, x)


def test_moments_are_the_sum_over_triplets() -> None:
    """Moments about an atom, less an edge's own part, against the sum over pairs of edges with Legendre polynomials."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(6, 3))
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    weights = generator.normal(size=(6, 9))
    edge = {
        "radial": jnp.asarray(weights),
        "spherical": m3gnet.harmonics(jnp.asarray(unit)),
        "envelope": jnp.ones((6, 1)),
    }
    rows = {"receivers": {"gates": jnp.ones((6, 9))}}
    _, terms = m3gnet.edge_moments({}, rows, edge)
    around = {"moments": jnp.broadcast_to(terms.sum(axis=0), terms.shape)}
    found = m3gnet.received_sums(rows | {"senders": around}, edge)
    cosines = unit @ unit.T
    for order in range(3):
        legendre = np.sqrt((2 * order + 1) / (4 * np.pi)) * scipy.special.eval_legendre(order, cosines)
        np.fill_diagonal(legendre, 0.0)
        columns = slice(3 * order, 3 * order + 3)
        np.testing.assert_allclose(found[:, columns], legendre @ weights[:, columns], atol=1e-12)


def test_parameters_can_be_differentiated(published: Potential) -> None:
    """Along a random direction in the space of parameters, against a central difference."""
    atoms = ase.Atoms(
        "NaCl", [[0, 0, 0], [0.2, 0.1, 2.6]], cell=[[0, 2.9, 2.8], [2.7, 0, 2.8], [2.8, 2.9, 0]], pbc=True
    )
    system = from_ase(atoms, np.float64)
    found = neighbors.build(system, contract.layout_of(published, atoms))
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(published.params))))
    direction = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype), published.params)

    @jax.jit
    def energy(params):
        return published.replace(params=params).energy(system, found)

    moved = lambda step: jax.tree.map(lambda a, b: a + step * b, published.params, direction)  # noqa: E731
    slope = (energy(moved(1e-6)) - energy(moved(-1e-6))) / 2e-6
    gradient = jax.jit(jax.grad(energy))(published.params)
    inner = sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    np.testing.assert_allclose(inner, slope, rtol=1e-6)


def test_conversion_and_back(tmp_path: pathlib.Path, shared: pathlib.Path, converted: Potential) -> None:
    config = converter.M3gnetConfig(checkpoint=shared / WEIGHTS, out=tmp_path / "model")
    assert converter.run(config) == tmp_path / "model"
    again = load_potential(tmp_path / "model", np.float32)
    assert again.model == converted.model == M3GNet()
    jax.tree.map(np.testing.assert_array_equal, again.params, converted.params)


def test_other_checkpoints_are_refused(tmp_path: pathlib.Path, shared: pathlib.Path) -> None:
    for name in ("state.pt", "model.json"):
        shutil.copyfile(shared / WEIGHTS / name, tmp_path / name)
    content = json.loads((tmp_path / "model.json").read_text())
    content["kwargs"]["model"]["init_args"]["use_phi"] = True
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="use_phi"):
        converter.run(converter.M3gnetConfig(checkpoint=tmp_path, out=tmp_path / "model"))
    content["kwargs"]["model"]["init_args"] |= {"use_phi": False, "use_smooth": True}
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="edge embedding has shape"):
        converter.run(converter.M3gnetConfig(checkpoint=tmp_path, out=tmp_path / "model"))
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no M3GNet"):
        converter.run(converter.M3gnetConfig(checkpoint=tmp_path, out=tmp_path / "model"))
