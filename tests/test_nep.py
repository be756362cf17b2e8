"""NEP: agreement with NEP_CPU, its converter, and what files it refuses."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import model_contract as contract
import nep_files
import numpy as np
import pytest
from crystals import titanate
from reference_data import load_reference

from converters import nep as converter
from converters.pickles import CheckpointError
from jaxpto import neighbors
from jaxpto.errors import InputError
from jaxpto.models import nep
from jaxpto.models.catalogue import load_potential
from jaxpto.models.folder import read_header
from jaxpto.system import from_ase

# energy (eV), force on the first atom (eV/A) and first row of the stress (eV/A^3) of `titanate` with the files of
# `nep_files`, by NEP_CPU through calorine 3.1; 4.1, which reads NEP4 only, gives the same for these
# fmt: off
NEP_CPU = {
    "nep3": (-0.9435037559328362, [0.013536336558022936, -0.00268069751344432, -0.005438380605874782],
             [0.00673936298670798, 0.0002008466961859896, -2.1032795686281103e-05]),
    "nep3_zbl": (7.033467940022184, [-3.151042706358309, -8.222493866408733, 2.793753667087176],
                 [-0.460305927195589, -0.040536055735287055, 0.0031595839089515786]),
    "nep4": (0.8409714704688183, [-0.005089190191728438, -0.009478483916467238, 0.03569964215194723],
             [0.00018256947765578078, -0.0001665271107878741, 0.0001011251981474571]),
    "nep4_zbl": (1.9027355313322403, [-2.293711503630149, -5.458232809916532, 1.1162095022635996],
                 [-0.17476778845656862, -0.017521574466452285, 0.00283913114736011]),
    "nep4_charge1": (-2.1004475143714467, [0.02470054972571481, -0.021430071728113693, 0.03339686960094887],
             [0.016606909250577836, -0.0011072332864710559, 0.0001954429860190509]),
    "nep4_zbl_charge1": (1.8451144065722027, [-2.1960978703856155, -5.546587667207073, 1.274477217696365],
             [-0.1299819849843485, -0.017773158319632203, 0.0025226952981381675]),
    "nep4_zbl_charge2": (5.203118129350767, [-3.127184955839134, -8.22557599057249, 2.801422012572986],
             [-0.4632964554606106, -0.04096786363489845, 0.003142086206239223]),
}
# fmt: on


@pytest.mark.parametrize("kind", NEP_CPU)
def test_every_kind_agrees_with_nep_cpu(kind: str, tmp_path: pathlib.Path) -> None:
    """Three-, four- and five-body descriptors, one net or one per element, with repulsion of nuclei, with charges."""
    path = nep_files.write(tmp_path / "nep.txt", nep_files.HEADERS[kind])
    found = contract.predict(contract.cast(converter.convert(path, kind), np.float64), titanate())
    energy, force, stress = NEP_CPU[kind]
    np.testing.assert_allclose(found.energy, energy, atol=1e-12)
    np.testing.assert_allclose(found.forces[0], force, atol=1e-12)
    np.testing.assert_allclose(found.stress[0], stress, atol=1e-12)


def test_agrees_with_the_published_model(shared: pathlib.Path) -> None:
    potential = contract.cast(converter.convert(shared / "weights" / "nep89.txt", "nep89"), np.float64)
    case = next(c for c in load_reference(shared, "nep89") if c.name == "PTO_T_222_rattle005")
    found = contract.predict(potential, case.atoms)
    case.assert_exact(found)
    single = contract.predict(contract.cast(potential, np.float32), case.atoms)
    np.testing.assert_allclose(single.forces, found.forces, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [("nep89", "nep89.txt"), ("nep_BaTiO3", "nep/nep_BaTiO3.txt")])
def test_agrees_with_nep_cpu_on_all_structures(shared: pathlib.Path, name: str, file: str) -> None:
    potential = contract.cast(converter.convert(shared / "weights" / file, name), np.float64)
    for case in load_reference(shared, name):
        case.assert_exact(contract.predict(potential, case.atoms))


def test_harmonics_are_orthogonal() -> None:
    """On a rule of quadrature that is exact to their degree, and as sums of monomials they are the same functions."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    azimuth = 2.0 * np.pi * np.arange(16) / 16
    z, phi = (grid.ravel() for grid in np.meshgrid(nodes, azimuth, indexing="ij"))
    points = np.stack([np.sqrt(1.0 - z**2) * np.cos(phi), np.sqrt(1.0 - z**2) * np.sin(phi), z])
    values = nep.harmonics(*points, 4)
    overlap = (values * np.repeat(weights, 16)) @ values.T
    np.testing.assert_allclose(overlap - np.diag(np.diag(overlap)), 0.0, atol=1e-12)
    # with the factors of `SQUARES` every harmonic of one l has the same norm: sums of their squares are invariant
    for start, squares in zip((0, 3, 8, 15), nep.SQUARES, strict=True):
        norms = np.diag(overlap)[start : start + len(squares)] * squares * (1.0 + (np.arange(len(squares)) > 0))
        np.testing.assert_allclose(norms, norms[0], rtol=1e-12)


def test_converts_a_file(tmp_path: pathlib.Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path / "models"))
    path = nep_files.write(tmp_path / "mine.txt", nep_files.HEADERS["nep4_zbl"])
    assert converter.main([str(path)]) == 0
    assert str(tmp_path / "models" / "mine") in capsys.readouterr().out
    assert load_potential("mine").model.elements == (8, 22, 82)
    header = read_header(tmp_path / "models" / "mine")
    assert header["source"] == "NEP file mine.txt given by the user"
    assert not header["published"]
    assert re.fullmatch("[0-9a-f]{64}", header["source_sha256"]["mine.txt"])


def test_the_published_name_is_that_of_the_published_file(shared: pathlib.Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path / "models"))
    other = nep_files.write(tmp_path / "nep89.txt", nep_files.HEADERS["nep4"])
    assert converter.main([str(other)]) == 2
    assert "nep89.txt is not the published nep89; name the model by --out" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
    copy = tmp_path / "another name.txt"
    copy.symlink_to(shared / "weights" / "nep89.txt")
    assert converter.main([str(copy)]) == 0
    header = read_header(tmp_path / "models" / "nep89")
    assert header["published"]
    assert "GPL" in header["licence"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("nep4_zbl", "nep4_zbl_charge3"), "NEP4 with mode 1 or 2 is supported"),
        (lambda text: text.replace("nep4_zbl", "nep3_zbl_charge1"), "NEP4 with mode 1 or 2 is supported"),
        (lambda text: text.replace("nep4_zbl", "nep4_charge_vdw"), "a van der Waals term are not supported"),
        (lambda text: text.replace("nep4_zbl", "nep4_zbl_charge1"), r"parameters, not the \d+ of its header"),
        (lambda text: text.replace("nep4_zbl", "nep4_dipole"), "no force fields"),
        (lambda text: text.replace("nep4_zbl", "nep5"), "give a file of NEP3 or NEP4"),
        (lambda text: text.replace("nep4_zbl", "Hello"), "does not begin like a NEP file"),
        (lambda text: text.replace("O Ti Pb", "O Ti Xx"), "a header that is not understood"),
        (lambda text: text.replace("O Ti Pb", "O Ti"), "3 elements, but 2 names"),
        (lambda text: text.replace("l_max 4 2 1", "l_max 5 2 1"), "l_max"),
        (lambda text: text.replace("zbl 1.0 2.2", "zbl 1.0 2.2 1.1"), "typewise zbl"),
        (lambda text: text.replace("cutoff 5 5 200 100", "cutoff 5 5 6 6 7 7 200 100"), "cutoffs of single elements"),
        (lambda text: text.rsplit("\n", 3)[0], r"parameters, not the \d+ of its header"),
        (lambda text: text.replace("ANN 7 0", "ANN 8 0"), r"parameters, not the \d+ of its header"),
        (lambda text: text.rsplit("\n", 2)[0] + "\nnan\n", "not finite"),
        (lambda text: text.rsplit("\n", 2)[0] + "\nfour\n", "could not convert"),
        (lambda text: "", "does not begin like a NEP file"),
    ],
)  # fmt: skip
def test_refuses(change, message: str, tmp_path: pathlib.Path) -> None:
    path = nep_files.write(tmp_path / "nep.txt", nep_files.HEADERS["nep4_zbl"])
    path.write_text(change(path.read_text()))
    with pytest.raises(CheckpointError, match=message) as caught:
        converter.convert(path, "x")
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_text(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "nep.txt"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(CheckpointError, match="no text file"):
        converter.convert(path, "x")
    with pytest.raises(CheckpointError, match="cannot be read"):
        converter.convert(tmp_path / "nowhere.txt", "x")


def test_angular_cutoff_within_the_radial_one(tmp_path: pathlib.Path) -> None:
    """The neighbour list reaches as far as the radial descriptors."""
    path = nep_files.write(tmp_path / "nep.txt", tuple(
        line.replace("cutoff 5 5", "cutoff 4 5") for line in nep_files.HEADERS["nep4_zbl"]
    ))  # fmt: skip
    with pytest.raises((CheckpointError, InputError), match="cutoff"):
        converter.convert(path, "x")


def test_hessian_of_more_atoms_than_go_at_once(tmp_path: pathlib.Path) -> None:
    """Forward derivatives of the gradient, which phonons take, against differences of the gradient."""
    path = nep_files.write(tmp_path / "nep.txt", nep_files.HEADERS["nep4_zbl"])
    potential = contract.cast(converter.convert(path, "x"), np.float64)
    atoms = titanate().repeat((3, 3, 2))
    assert len(atoms) > nep.SLICE
    system = from_ase(atoms, np.float64)
    found = neighbors.build(system, potential.allocate([system], 0.1))
    gradient = jax.jit(jax.grad(lambda x: potential.energy(system.replace(positions=x), found)))
    direction = jnp.asarray(np.random.default_rng(0).normal(size=system.positions.shape))
    product = jax.jit(lambda x: jax.jvp(gradient, (x,), (direction,))[1])(system.positions)
    step = 1e-5
    ahead, behind = (gradient(system.positions + sign * step * direction) for sign in (1, -1))
    np.testing.assert_allclose(product, (ahead - behind) / (2 * step), atol=1e-5 * float(jnp.abs(product).max()))


def test_a_list_sorted_by_reach_changes_nothing(tmp_path: pathlib.Path) -> None:
    """Same numbers as with all slots; a block without room for its near edges overflows, and grows."""
    path = nep_files.write(tmp_path / "nep.txt", nep_files.HEADERS["nep4"])
    potential = contract.cast(converter.convert(path, "nep"), np.float64)
    system = from_ase(titanate(), np.float64)
    layout = potential.allocate([system], 0.3)
    assert layout.near_cutoff == potential.model.angular_cutoff
    assert sum(layout.near) < sum(layout.slots)
    sorted_list = neighbors.build(system, layout)
    assert not sorted_list.overflow
    whole = neighbors.build(system, dataclasses.replace(layout, near=(), near_cutoff=0.0))
    found, wanted = potential.evaluate(system, sorted_list), potential.evaluate(system, whole)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.0, atol=1e-12)
    tight = dataclasses.replace(layout, near=tuple(room // 3 for room in layout.near))
    assert neighbors.build(system, tight).overflow
    cell = np.asarray(system.cell)[None]
    fitted = neighbors.grow_until_it_fits(
        lambda one: neighbors.build(system, one), tight, overflowed=lambda found: bool(found.overflow),
        enlarge=lambda one, _: neighbors.grow(one, cell), enlargements=20,
    )  # fmt: skip
    grown = potential.evaluate(system, fitted.result)
    np.testing.assert_allclose(grown.forces, wanted.forces, rtol=0.0, atol=1e-12)
