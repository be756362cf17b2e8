"""GPTFF: agreement with the original program, odd structures, and its converter."""

from __future__ import annotations

import pathlib
import zipfile

import ase
import jax
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import pytest
from reference_data import load_reference

from converters import gptff as converter
from converters.pickles import CheckpointError
from converters.sources import find_checkpoint
from jaxpto import neighbors
from jaxpto.errors import InputError
from jaxpto.models import gptff
from jaxpto.models.catalogue import load_potential
from jaxpto.models.gptff import GPTFF
from jaxpto.models.suitability import check_supports
from jaxpto.potential import Potential
from jaxpto.structures import builtin_structure
from jaxpto.system import from_ase


def _convert(shared: pathlib.Path, version: str, *, self_images: bool = True) -> Potential:
    checkpoint = find_checkpoint(f"gptff-{version}", shared / "weights" / f"gptff_{version}.pth")
    return converter.convert(checkpoint, f"gptff-{version}", self_images=self_images)


@pytest.fixture(scope="module")
def published(shared: pathlib.Path) -> Potential:
    """Version 2 in float64."""
    return contract.cast(_convert(shared, "v2"), np.float64)


def test_agrees_with_the_original(shared: pathlib.Path) -> None:
    contract.agreement(_convert(shared, "v2"), load_reference(shared, "gptff_v2"), "LiFePO4_rattle005")


@pytest.mark.slow
@pytest.mark.parametrize("self_images", [True, False])
def test_agrees_with_the_original_on_all_structures(shared: pathlib.Path, self_images: bool) -> None:
    cases = load_reference(shared, "gptff_v2", "" if self_images else "no_self_images")
    contract.agreement(_convert(shared, "v2", self_images=self_images), cases)


def test_older_neighbour_rule(shared: pathlib.Path) -> None:
    """Without edges from an atom to its own images; both rules agree where no lattice translation is that short."""
    potential = contract.cast(_convert(shared, "v2", self_images=False), np.float64)
    case = next(c for c in load_reference(shared, "gptff_v2", "no_self_images") if c.name == "NaCl_prim_rattle010")
    case.assert_exact(contract.predict(potential, case.atoms))


def test_every_element_together(published: Potential) -> None:
    """All 94 elements in one crystal: finite, with forces that sum to zero; and an unknown element is refused."""
    places = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1).reshape(-1, 3)[:94] * 3.3
    atoms = ase.Atoms(published.elements, places, cell=[16.5] * 3, pbc=True)
    atoms.rattle(0.1, seed=1)
    found = contract.predict(published, atoms)
    assert np.isfinite(found.energy)
    assert np.abs(found.forces).max() > 0.1
    np.testing.assert_allclose(found.forces.sum(axis=0), 0.0, atol=1e-10)
    with pytest.raises(InputError, match="Am"):
        check_supports(published, ase.Atoms("Am", cell=[4.0] * 3, pbc=True))


@pytest.mark.slow
def test_second_derivatives_at_straight_angles(published: Potential) -> None:
    """O-Ti-O is straight along the axis of tetragonal PbTiO3."""
    contract.second_derivatives(published, builtin_structure("PbTiO3-tetragonal"))


@pytest.mark.slow
def test_odd_structures(published: Potential) -> None:
    """An isolated atom, a bond without angles and a cell of one atom; no force where symmetry forbids it."""
    box = [30.0] * 3
    alone = contract.predict(published, ase.Atoms("Ti", cell=box, pbc=True))
    assert np.isfinite(alone.energy)
    np.testing.assert_array_equal(alone.forces, 0.0)
    np.testing.assert_array_equal(alone.stress, 0.0)
    pair = contract.predict(published, ase.Atoms("TiO", [[0, 0, 0], [0, 0, 1.8]], cell=box, pbc=True))
    np.testing.assert_allclose(pair.forces[0], -pair.forces[1], atol=1e-12)
    assert abs(pair.forces[0, 2]) > 0.1
    one = contract.predict(published, ase.Atoms("Pb", cell=np.eye(3) * 3.2 + 0.1, pbc=True))
    np.testing.assert_allclose(one.forces, 0.0, atol=1e-10)
    assert np.abs(one.stress).max() > 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_radial_functions(dtype: type) -> None:
    """Against the formula at the distances as rounded to the precision."""
    distance = np.asarray(np.append(np.linspace(0.4, 5.0, 200), 5.3), dtype)
    found = gptff.radial_basis(jnp.asarray(distance), 5.0)
    assert found.dtype == dtype
    exact = distance.astype(np.float64)[:, None]
    expected = np.sqrt(2.0 / 5.0) * np.sin(np.arange(1, 16) * np.pi * exact / 5.0) / exact
    np.testing.assert_array_equal(found[:, 0], distance <= 5.0)
    tolerance = 64 * np.finfo(dtype).eps / exact  # the phase of the fastest function is 15 pi, with its own rounding
    assert (np.abs(found[:, 1:] - np.where(exact <= 5.0, expected, 0.0)) < tolerance).all()


def test_short_bonds_only_take_part_in_angles(published: Potential) -> None:
    """A molecule whose one bond pair is long: its angle is listed within the skin, and counts for nothing."""
    atoms = ase.Atoms("TiO2", [[0, 0, 0], [0, 0, 1.8], [3.6, 0, 0]], cell=[30.0] * 3, pbc=True)
    system = from_ase(atoms, np.float64)
    found = neighbors.build(system, contract.layout_of(published, atoms))
    assert int((found.angles.first < found.layout.bonds).sum()) > 0
    graph = gptff._bonds(published.model, found, neighbors.edge_vectors(system, found)).graph
    assert int(graph.edge_count.used) == 6
    assert int(graph.angle_count.used) == 0


def test_conversion_and_back(tmp_path: pathlib.Path, shared: pathlib.Path) -> None:
    path = shared / "weights" / "gptff_v1.pth"
    config = converter.GptffConfig(version="v1", old_neighbors=True, checkpoint=path, out=tmp_path / "model")
    assert converter.run(config) == tmp_path / "model"
    again = load_potential(tmp_path / "model", np.float64)
    expected = _convert(shared, "v1", self_images=False)
    assert again.model == expected.model == GPTFF(self_images=False)
    assert "attention" not in again.params["blocks"]
    jax.tree.map(np.testing.assert_array_equal, again.params, expected.params)


def test_other_checkpoints_are_refused(tmp_path: pathlib.Path, shared: pathlib.Path) -> None:
    """Another model's checkpoint, in the same format, as published and changed."""
    other = shared / "weights" / "M3GNet-MP-2021.2.8-PES" / "state.pt"
    with pytest.raises(CheckpointError, match=r"is the published m3gnet-mp-2021\.2\.8, not gptff-v2"):
        converter.run(converter.GptffConfig(checkpoint=other, out=tmp_path / "model"))
    own = tmp_path / "state.pt"
    with zipfile.ZipFile(other) as source, zipfile.ZipFile(own, "w", zipfile.ZIP_DEFLATED) as copy:
        for name in source.namelist():
            copy.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="holds no GPTFF"):
        converter.run(converter.GptffConfig(checkpoint=own, out=tmp_path / "model"))
