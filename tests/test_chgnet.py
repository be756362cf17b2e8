"""CHGNet: agreement with the original program, odd structures, and its converter.

Numbers that are not in the reference files come from chgnet 0.4.2 with all its types switched to float64.
"""

from __future__ import annotations

import pathlib
import pickle
import zipfile

import ase
import jax
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import pytest
from reference_data import ENERGY, load_reference

from converters import chgnet, sources
from converters.pickles import CheckpointError
from jaxpto import neighbors
from jaxpto.errors import InputError
from jaxpto.models.catalogue import load_potential
from jaxpto.models.chgnet import angular_basis
from jaxpto.models.folder import read_header
from jaxpto.models.layers import add_up
from jaxpto.models.suitability import check_supports
from jaxpto.neighbors import Layout
from jaxpto.potential import Potential
from jaxpto.system import System, from_ase

VERSIONS = ("0.3.0", "0.2.0", "r2scan")


def _published(version: str, dtype: type = np.float64) -> Potential:
    try:
        checkpoint = sources.find_checkpoint(f"chgnet-{version}")
    except CheckpointError as error:
        pytest.skip(f"no published weights: {error}")
    potential = chgnet.convert(checkpoint, "chgnet")
    return potential.replace(params=jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), potential.params))


@pytest.fixture(scope="module")
def published() -> Potential:
    return _published("0.3.0")


@jax.jit
def _evaluate(potential: Potential, system: System, found: neighbors.Neighbors):
    vectors = neighbors.edge_vectors(system, found)
    sites = potential.model.site_properties(potential.params, system, found, vectors)
    return potential.evaluate(system, found), sites


def _everything(potential: Potential, atoms: ase.Atoms, dtype: type = np.float64, layout: Layout | None = None):
    """Prediction and site properties from one compiled program."""
    system = from_ase(atoms, dtype)
    found = neighbors.build(system, potential.allocate([system], 0.1) if layout is None else layout)
    assert not found.overflow
    return jax.device_get(_evaluate(potential, system, found))


def _assert_agrees(version: str, shared: pathlib.Path, names: tuple[str, ...] = ()) -> None:
    potential = _published(version)
    cases = [case for case in load_reference(shared, f"chgnet-{version}") if not names or case.name in names]
    for case, layout in zip(cases, contract.layouts_of(potential, [case.atoms for case in cases]), strict=True):
        prediction, sites = _everything(potential, case.atoms, layout=layout)
        case.assert_exact(prediction)
        np.testing.assert_allclose(sites["magmoms"], case.extra["magmoms"], atol=1e-9)
        np.testing.assert_allclose(sites["energies"], case.extra["site_energies"], atol=ENERGY)
        np.testing.assert_allclose(sites["energies"].sum(), prediction.energy, rtol=1e-12)


@pytest.mark.parametrize("version", VERSIONS)
def test_agrees_with_the_original(version: str, shared: pathlib.Path) -> None:
    _assert_agrees(version, shared, ("PTO_T_221_strain3_rattle008",))


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_agrees_with_the_original_everywhere(version: str, shared: pathlib.Path) -> None:
    _assert_agrees(version, shared)


def test_float32_is_as_exact_as_the_original(shared: pathlib.Path) -> None:
    potential = _published("0.3.0", np.float32)
    cases = load_reference(shared, "chgnet-0.3.0")
    (case,) = (c for c in cases if c.name == "BaTiO3_222_rattle005")
    prediction = contract.predict(potential, case.atoms)
    assert prediction.energy.dtype == np.float32
    case.assert_as_exact_as(prediction, cases)


@pytest.mark.slow
def test_float32_is_as_exact_as_the_original_everywhere(shared: pathlib.Path) -> None:
    potential = _published("0.3.0", np.float32)
    cases = load_reference(shared, "chgnet-0.3.0")
    for case, layout in zip(cases, contract.layouts_of(potential, [case.atoms for case in cases]), strict=True):
        case.assert_as_exact_as(contract.predict(potential, case.atoms, layout), cases)


FAR = [[8, 0, 0], [0, 8, 0]]
TITANIUM = -3.4315043176
ODD = {
    # atoms without neighbours; one bond, but no angle; angles, and an atom without neighbours
    "isolated": (ase.Atoms("Ti4", [[0, 0, 0], [8, 8, 8], *FAR]), 4 * TITANIUM),
    "bond": (ase.Atoms("O2Ti2", [[0, 0, 0], [1.3, 0, 0], *FAR]), -9.7686741660 + 2 * TITANIUM),
    "angles": (ase.Atoms("OH2He", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0], [8, 8, 8]]), -14.4488329862),
}


def test_odd_structures() -> None:
    """Version 0.2.0 adds a bias to the features of all bonds as soon as a structure has one angle."""
    potential = _published("0.2.0")
    for atoms, _ in ODD.values():
        atoms.set_cell([16.0] * 3)
        atoms.pbc = True
    layout = potential.allocate([from_ase(ODD["angles"][0], np.float64)], 0.1)
    for name, (atoms, energy) in ODD.items():
        prediction, sites = _everything(potential, atoms, layout=layout)
        np.testing.assert_allclose(prediction.energy, energy, atol=1e-9, err_msg=name)
        assert np.isfinite(prediction.forces).all()
        assert np.isfinite(sites["magmoms"]).all()


def test_straight_angles_keep_their_digits() -> None:
    """Near 180 degrees the original's acos loses half of the digits of a float32."""
    bend = np.array([0.0, 1e-4, 1e-3, 1e-2, 0.5, 2.0, np.pi])
    first = np.tile([1.0, 0.0, 0.0], (len(bend), 1))
    second = np.stack([-np.cos(bend), np.sin(bend), np.zeros_like(bend)], axis=1)
    frequencies = np.array([1.0, 15.3])
    theta = np.arccos((1.0 - 1e-6) * np.longdouble(-1.0) * np.cos(bend.astype(np.longdouble)))
    phases = theta[:, None] * frequencies
    exact = np.concatenate([np.full((len(bend), 1), 0.5**0.5), np.sin(phases), np.cos(phases)], axis=1) / np.pi**0.5
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 3e-6)):
        found = angular_basis(*(jnp.asarray(x, dtype) for x in (first, second, frequencies)))
        np.testing.assert_allclose(found, exact.astype(np.float64), atol=tolerance)


def test_total_is_rounded_once() -> None:
    energies = np.random.default_rng(0).normal(-8.0, 3.0, 3000).astype(np.float32)
    exact = energies.astype(np.float64).sum()
    assert abs(float(add_up(jnp.asarray(energies))) - exact) <= 0.51 * np.spacing(np.float32(abs(exact)))
    np.testing.assert_array_equal(jax.grad(add_up)(jnp.asarray(energies)), 1.0)


def test_unknown_elements_are_refused_by_name(published: Potential) -> None:
    with pytest.raises(InputError, match="Po"):
        check_supports(published, ase.Atoms("Po", cell=[3.3] * 3, pbc=True))
    assert len(published.elements) == 89


def test_command(tmp_path, monkeypatch, capsys, crystal: ase.Atoms, published: Potential) -> None:
    """The command writes a model that its name finds, with its origin."""
    source = sources.find_checkpoint("chgnet-0.3.0").paths["chgnet_0.3.0_e29f68s314m37.pth.tar"]
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("JAXPTO_WEIGHTS", str(source.parent))
    assert chgnet.main([]) == 0
    assert "models/chgnet-0.3.0" in capsys.readouterr().out
    potential = load_potential("chgnet-0.3.0", np.float64)
    assert potential.model == published.model
    jax.tree.map(np.testing.assert_array_equal, potential.params, published.params)
    header = read_header(tmp_path / "models" / "chgnet-0.3.0")
    assert header["n_parameters"] == 412525
    assert (header["architecture"], header["cutoff"], len(header["elements"])) == ("chgnet", 6.0, 89)
    assert header["source_sha256"] == {source.name: sources.sha256_of(source)}
    assert header["published"] is True


def _write(path: pathlib.Path, content: object) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": 1}, "holds no CHGNet: KeyError 'model'"),
        ({"model": {"state_dict": {}, "model_args": {}}}, "holds no CHGNet: KeyError 'composition_model"),
        ({"model": {"state_dict": {}, "model_args": {"read_out": "attn", "mlp_first": False}}}, "mlp_first = False"),
        ({"model": {"state_dict": {}, "model_args": {"non_linearity": "gelu"}}}, "non_linearity = 'gelu'"),
    ],
)
def test_other_checkpoints_are_refused(content: object, message: str, tmp_path, capsys) -> None:
    path = _write(tmp_path / "file", content)
    assert chgnet.main(["--checkpoint", str(path), "--out", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "model").exists()
