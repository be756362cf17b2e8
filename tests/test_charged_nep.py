"""qNEP: charges and Born charges of NEP_CPU, and wave vectors that follow a cell."""

from __future__ import annotations

import dataclasses
import pathlib

import ase
import ase.build
import ase.io
import jax
import jax.numpy as jnp
import model_contract as contract
import nep_files
import numpy as np
import pytest
from crystals import titanate
from reference_data import load_reference

from converters import nep as converter
from jaxpto import evaluate, neighbors
from jaxpto.devices.sharding import check_sharing
from jaxpto.errors import InputError
from jaxpto.lattice_dynamics.phonopy_bridge import make_phonopy, take_born_charges
from jaxpto.models import nep
from jaxpto.models.ewald import reciprocal_energy
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.models.nuclear_repulsion import COULOMB
from jaxpto.perovskite.measurements import crystal_measurements
from jaxpto.potential import Potential
from jaxpto.structures import read_input
from jaxpto.system import from_ase

BARIUM_TITANATE = "qnep_mode1_BaTiO3"
# charges (e) of the atoms of `titanate` and the first two rows of the Born charges of the second one, files of
# `nep_files`, by NEP_CPU through calorine 4.1 (benchmarks/qnep_reference.py)
# fmt: off
NEP_CPU = {
    "nep4_charge1": (
        [0.09120650510732285, -0.14344044839995634, -0.17168881522024199, 0.4162499479440318, -0.19232718943115634],
        [-0.17202165893731303, -0.0005445323759632496, -1.4255948499405033e-05, -0.003211601766276719,
         -0.12769682239898217, -0.00023590210077209964],
    ),
    "nep4_zbl_charge1": (
        [-0.2197033180356783, 0.23651494965157796, 0.20885115222525316, -0.414747093017353, 0.1890843091762002],
        [-0.041660630994458235, 0.005805493934893557, -6.915354727883376e-05, 0.007433841767086285,
         -0.06247251300656293, -0.0004155635785622072],
    ),
    "nep4_zbl_charge2": (
        [-0.19852133444941178, 0.06783890886951369, 0.06670530707598257, -0.0008221844439832288, 0.06479930294789873],
        [0.0073637270475331055, 6.619662706069993e-05, -8.858362587761221e-06, -4.920874811192816e-05,
         0.005278897971831695, 5.4878333718673286e-05],
    ),
}
# fmt: on
_sites = jax.jit(Potential.site_properties)


def of_kind(kind: str, folder: pathlib.Path) -> Potential:
    path = nep_files.write(folder / "nep.txt", nep_files.HEADERS[kind])
    return contract.cast(converter.convert(path, kind), np.float64)


def sites(potential: Potential, atoms: ase.Atoms) -> dict[str, np.ndarray]:
    system = from_ase(atoms, np.float64)
    return jax.device_get(_sites(potential, system, neighbors.build(system, contract.layout_of(potential, atoms))))


@pytest.fixture(scope="module")
def barium_titanate(shared: pathlib.Path) -> Potential:
    path = shared / "weights" / "nep" / f"{BARIUM_TITANATE}.txt"
    return contract.cast(converter.convert(path, BARIUM_TITANATE), np.float64)


@pytest.mark.parametrize("kind", NEP_CPU)
def test_charges_agree_with_nep_cpu(kind: str, tmp_path: pathlib.Path) -> None:
    charges, born = NEP_CPU[kind]
    found = sites(of_kind(kind, tmp_path), titanate())
    np.testing.assert_allclose(found["charges"], charges, atol=1e-12)
    np.testing.assert_allclose(found["born_effective_charges"][1, :2].ravel(), born, atol=1e-12)
    np.testing.assert_allclose(found["born_effective_charges"].sum(axis=0), 0.0, atol=1e-12)


def test_agrees_with_nep_cpu(shared: pathlib.Path, barium_titanate: Potential) -> None:
    case = next(c for c in load_reference(shared, BARIUM_TITANATE) if c.name == "BTO_221_strained")
    found = contract.predict(barium_titanate, case.atoms)
    case.assert_exact(found)
    found_sites = sites(barium_titanate, case.atoms)
    np.testing.assert_allclose(found_sites["charges"], case.extra["charges"], atol=1e-10)
    born = case.extra["born_effective_charges"].reshape(-1, 3, 3)
    np.testing.assert_allclose(found_sites["born_effective_charges"], born, atol=1e-10)
    single = contract.predict(contract.cast(barium_titanate, np.float32), case.atoms)
    np.testing.assert_allclose(single.forces, found.forces, atol=1e-4)
    np.testing.assert_allclose(single.energy, found.energy, rtol=1e-6)


@pytest.mark.slow
def test_agrees_with_nep_cpu_on_all_structures(shared: pathlib.Path, barium_titanate: Potential) -> None:
    for case in load_reference(shared, BARIUM_TITANATE):
        case.assert_exact(contract.predict(barium_titanate, case.atoms))
        found = sites(barium_titanate, case.atoms)
        np.testing.assert_allclose(found["charges"], case.extra["charges"], atol=1e-10)
        born = case.extra["born_effective_charges"].reshape(-1, 3, 3)
        np.testing.assert_allclose(found["born_effective_charges"], born, atol=1e-10)


def test_the_sum_over_wave_vectors_gives_the_madelung_constant_of_rock_salt() -> None:
    """With a screening so strong that the sum in real space is zero; neighbours are 2 A apart."""
    screening, atoms = 2.5, ase.build.bulk("NaCl", "rocksalt", a=4.0, cubic=True)
    charges = jnp.where(jnp.asarray(atoms.numbers) == 11, 1.0, -1.0)
    system = from_ase(atoms, np.float64)
    layout = neighbors.allocate([system], 1.0, 0.0, wave_cutoff=30.0)
    found = jax.jit(reciprocal_energy, static_argnums=(2, 3))(charges, system, layout, screening)
    own = COULOMB * screening / np.sqrt(np.pi) * len(atoms)
    np.testing.assert_allclose((found - own) / (COULOMB / 2.0 * 4), -1.747564594633, rtol=1e-11)


def test_wave_vectors_follow_the_cell() -> None:
    """A cell that outgrows their box is told, its energy is no number, and a larger box gives the right one."""
    atoms = titanate()
    charges = jnp.asarray(np.random.default_rng(0).normal(size=len(atoms)))
    charges = charges - charges.mean()
    system = from_ase(atoms, np.float64)
    layout = neighbors.allocate([system], 4.0, 0.3, wave_cutoff=4.0)
    atoms.set_cell(atoms.cell.array * np.array([[1.0], [1.7], [1.1]]), scale_atoms=True)
    stretched = from_ase(atoms, np.float64)
    listed = neighbors.build(system, layout)
    assert not listed.overflow
    assert not neighbors.needs_rebuild(listed, system)
    assert neighbors.needs_rebuild(listed, stretched)
    assert neighbors.build(stretched, layout).overflow
    energy = jax.jit(reciprocal_energy, static_argnums=(2, 3))
    assert np.isnan(energy(charges, stretched, layout, 0.7))
    grown = neighbors.grow(layout, np.asarray(stretched.cell))
    assert not neighbors.build(stretched, grown).overflow
    wide = dataclasses.replace(grown, waves=(8, 9, 8))
    expected = energy(charges, stretched, wide, 0.7)
    np.testing.assert_allclose(energy(charges, stretched, grown, 0.7), expected, rtol=1e-12)
    # where a run has lost the cell, the box grows all the same
    assert min(np.subtract(neighbors.grow(layout, np.asarray(system.cell)).waves, layout.waves)) == 1


def test_more_atoms_than_go_at_once(tmp_path: pathlib.Path) -> None:
    potential, atoms = of_kind("nep4_zbl_charge1", tmp_path), titanate()
    many = atoms.repeat((3, 3, 2))
    assert len(many) > nep.SLICE
    one, found = contract.predict(potential, atoms), contract.predict(potential, many)
    contract.assert_same(found, contract.expected(18.0 * one.energy, np.tile(one.forces, (18, 1)), one.stress))


@pytest.mark.slow
def test_hessian_of_more_atoms_than_go_at_once(tmp_path: pathlib.Path) -> None:
    contract.second_derivatives(of_kind("nep4_zbl_charge1", tmp_path), titanate().repeat((3, 3, 2)))


def test_evaluate_writes_charges(tmp_path: pathlib.Path) -> None:
    potential, atoms = of_kind("nep4_zbl_charge2", tmp_path), titanate()
    ase.io.write(tmp_path / "in.extxyz", atoms)
    config = evaluate.EvaluateConfig((str(tmp_path / "in.extxyz"),), "seeded", out=tmp_path / "out.extxyz")
    evaluate.run(config, potential)
    written = ase.io.read(tmp_path / "out.extxyz")
    charges, born = NEP_CPU["nep4_zbl_charge2"]
    np.testing.assert_allclose(written.get_charges(), charges, atol=1e-7)  # positions of the file are rounded
    np.testing.assert_allclose(written.calc.results["born_effective_charges"][1, :6], born, atol=1e-7)


def test_polarization_and_phonons_take_the_charges_of_the_model(tmp_path: pathlib.Path) -> None:
    potential, atoms = of_kind("nep4_zbl_charge2", tmp_path), read_input("PbTiO3-tetragonal", "dynamics").atoms
    born = sites(potential, atoms)["born_effective_charges"]
    (observable,) = crystal_measurements(atoms, (1, 1, 1), "model", np.float64, potential).observables
    (topology,) = observable.parameters
    oxygens = atoms.numbers == 8
    np.testing.assert_allclose(topology.charges[oxygens], born[oxygens], atol=1e-12)
    np.testing.assert_allclose(topology.charges, born, atol=1e-12)  # of a single cell, whose charges sum to zero
    phonon = make_phonopy(atoms, (1, 1, 1))
    take_born_charges(phonon, potential)
    assert phonon.nac_params is not None
    np.testing.assert_allclose(phonon.nac_params["born"], born, atol=1e-12)
    epsilon = float(potential.params["root_dielectric"]) ** 2
    np.testing.assert_allclose(phonon.nac_params["dielectric"], epsilon * np.eye(3), rtol=1e-12)


def test_charges_of_a_model_that_has_none_are_refused() -> None:
    other = lennard_jones(["Pb", "Ti", "O"], [0.01] * 3, [2.0] * 3, cutoff=5.0, onset=4.0)
    with pytest.raises(InputError, match=r"`charges=model`: .* predicts no Born charges; use `charges=nominal`"):
        crystal_measurements(titanate(), (1, 1, 1), "model", np.float64, other)


def test_devices_do_not_share_a_sum_over_wave_vectors(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"`devices_per_replica=2`: .* wave vectors, which devices cannot share"):
        check_sharing(2, 8, 40, of_kind("nep4_charge1", tmp_path))
