"""TensorNet: agreement with the original program, its radial functions, and its converter."""

from __future__ import annotations

import json
import pathlib
import shutil

import ase
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import pytest
from reference_data import load_reference

from converters import tensornet as converter
from converters.pickles import CheckpointError
from converters.sources import find_checkpoint
from jaxpto.errors import InputError
from jaxpto.models import tensornet
from jaxpto.models.catalogue import load_potential
from jaxpto.models.smooth_bessel import smooth_bessel
from jaxpto.models.suitability import check_supports
from jaxpto.potential import Potential

FOLDERS = {name: f"weights/TensorNet-MatPES-{name}-v2025.1-PES" for name in ("PBE", "r2SCAN")}


def converted(shared: pathlib.Path, functional: str) -> Potential:
    name = f"tensornet-matpes-{functional.lower()}"
    return converter.convert(find_checkpoint(name, shared / FOLDERS[functional]), name)


def test_agrees_with_the_original(shared: pathlib.Path) -> None:
    contract.agreement(converted(shared, "PBE"), load_reference(shared, "tensornet_matpes_pbe"), "PTO_T")


@pytest.mark.slow
@pytest.mark.parametrize("functional", FOLDERS)
def test_agrees_with_the_original_on_all_structures(shared: pathlib.Path, functional: str) -> None:
    contract.agreement(converted(shared, functional), load_reference(shared, f"tensornet_matpes_{functional.lower()}"))


def test_radial_functions_are_orthonormal_and_flat_at_the_cutoff() -> None:
    """In a sphere: the integral of r^2 g_m g_n by Gauss and Legendre; values and slopes at the cutoff."""
    cutoff, number = 5.0, 9
    nodes, weights = np.polynomial.legendre.leggauss(60)
    r = 0.5 * cutoff * (nodes + 1.0)
    values = np.asarray(smooth_bessel(jnp.asarray(r), cutoff, number))
    overlap = np.einsum("r,rm,rn->mn", 0.5 * cutoff * weights * r**2, values, values)
    np.testing.assert_allclose(overlap, np.eye(number), atol=1e-12)
    step = 1e-5
    inside = np.asarray(smooth_bessel(jnp.asarray([cutoff - step, cutoff]), cutoff, number))
    np.testing.assert_allclose(inside[1], 0.0, atol=1e-13)
    np.testing.assert_allclose(inside[0] / step, 0.0, atol=1e-2)
    np.testing.assert_array_equal(smooth_bessel(jnp.asarray(r), cutoff, 3), values[:, :3])


def test_matrices_and_their_components() -> None:
    """Back and forth, by NumPy's own matrices: identity, cross product, outer product; squares of the parts."""
    generator = np.random.default_rng(0)
    whole = jnp.asarray(generator.normal(size=(4, 3, 3, 2)))
    parts = tensornet.components(whole)
    np.testing.assert_allclose(tensornet.matrix(parts), whole, atol=1e-14)
    vector = np.asarray(parts[:, 1:4])
    skew = 0.5 * np.asarray(whole - jnp.swapaxes(whole, 1, 2))
    for atom in range(4):
        for channel in range(2):
            other = generator.normal(size=3)
            turned = np.cross(vector[atom, :, channel], other)
            np.testing.assert_allclose(skew[atom, :, :, channel] @ other, turned, atol=1e-14)
    trace = np.einsum("niid->nd", whole) / 3.0
    scalar = np.einsum("ij,nd->nijd", np.eye(3), trace)
    pieces = (scalar, skew, np.asarray(whole) - scalar - skew)
    wanted = [np.square(piece).sum(axis=(1, 2)) for piece in pieces]
    np.testing.assert_allclose(tensornet.part_squares(parts), np.stack(wanted, axis=1), atol=1e-13)
    np.testing.assert_allclose(tensornet.squares(whole), sum(wanted), atol=1e-13)
    product = np.einsum("nikd,nkjd->nijd", whole, whole)
    np.testing.assert_allclose(tensornet.matrix_product(whole, whole), product, atol=1e-13)


def test_converts_a_checkpoint(shared: pathlib.Path, tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path))
    assert converter.main(["--version", "matpes-r2scan", "--checkpoint", str(shared / FOLDERS["r2SCAN"])]) == 0
    potential = load_potential("tensornet-matpes-r2scan")
    assert len(potential.elements) == 89
    header = json.loads((tmp_path / "tensornet-matpes-r2scan" / "model.json").read_text())
    assert header["published"]
    assert "BSD" in header["licence"]
    with pytest.raises(InputError, match="Po"):
        check_supports(potential, ase.Atoms("Po", cell=[4.0] * 3, pbc=True))


@pytest.mark.parametrize(
    ("key", "value"), [("equivariance_invariance_group", "SO(3)"), ("use_smooth", False), ("rbf_type", "Gaussian")]
)
def test_what_is_not_supported_is_refused_by_name(shared: pathlib.Path, tmp_path, key: str, value) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(shared / FOLDERS["PBE"], folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    document = json.loads((folder / "model.json").read_text())
    document["kwargs"]["model"]["init_args"][key] = value
    (folder / "model.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=f"{key} = ") as caught:
        converter.convert(find_checkpoint("tensornet-matpes-pbe", folder), "x")
    assert "\n" not in str(caught.value)
    assert "holds no TensorNet" not in str(caught.value)  # one message, not one within another


def test_another_family_s_folder_is_refused(shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A published one by its name, any other by what it lacks."""
    source = shared / "weights/M3GNet-MP-2021.2.8-PES"
    with pytest.raises(CheckpointError, match=r"m3gnet-mp-2021\.2\.8, not tensornet-matpes-pbe; run: python"):
        find_checkpoint("tensornet-matpes-pbe", source)
    shutil.copytree(source, tmp_path / "other", copy_function=shutil.copyfile)
    (tmp_path / "other").chmod(0o755)
    for name in ("state.pt", "model.json"):
        (tmp_path / "other" / name).write_bytes((source / name).read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=r"use_smooth = False|give the folder of TensorNet-MatPES-PBE"):
        converter.convert(find_checkpoint("tensornet-matpes-pbe", tmp_path / "other"), "x")
