"""The ASE calculator against the potential itself, its neighbour list, ASE's optimizers, and the reverse wrapper."""

import io

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from rich.console import Console

from jaxpto import calculator as calculator_module
from jaxpto.calculator import JaxptoCalculator
from jaxpto.errors import InputError
from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.free_energy.switching.method import run_switching
from jaxpto.model_interface import caveat
from jaxpto.models.catalogue import load_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.models.suitability import check_supports
from jaxpto.neighbors import allocate, build
from jaxpto.potential import Potential
from jaxpto.reporting.provenance import fingerprint
from jaxpto.system import from_ase, stack

CUTOFF, ONSET = 6.0, 5.0
EPSILON, SIGMA = {18: 0.0104, 36: 0.0140}, {18: 3.40, 36: 3.65}


@pytest.fixture(scope="module")
def noble():
    return lennard_jones(["Ar", "Kr"], [0.0104, 0.0140], [3.40, 3.65], CUTOFF, ONSET, np.float64)


def triclinic(seed=1):
    """Three argon and one krypton in a skewed cell smaller than the cutoff."""
    atoms = bulk("Ar", "fcc", 5.4, cubic=True)
    atoms.numbers[2] = 36
    atoms.set_cell(atoms.cell.array @ [[1.0, 0.1, 0.0], [-0.05, 1.02, 0.08], [0.03, 0.0, 0.97]], scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def reference_energy(atoms):
    """The Lennard-Jones sum written down once more, on ASE's neighbour list."""
    i, j, r = neighbor_list("ijd", atoms, CUTOFF)
    zi, zj = atoms.numbers[i], atoms.numbers[j]
    epsilon = np.sqrt([EPSILON[a] * EPSILON[b] for a, b in zip(zi, zj, strict=True)])
    sigma = np.array([(SIGMA[a] + SIGMA[b]) / 2 for a, b in zip(zi, zj, strict=True)])
    x = np.clip((r - ONSET) / (CUTOFF - ONSET), 0, 1)
    smooth = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
    return 0.5 * np.sum(4 * epsilon * ((sigma / r) ** 12 - (sigma / r) ** 6) * smooth)


def test_equals_the_potential_and_the_formula(noble):
    atoms = triclinic()
    atoms.calc = JaxptoCalculator(noble, skin=0.5)
    system = from_ase(atoms, np.float64)
    neighbors = build(system, allocate([system], CUTOFF, 0.5))
    exact = jax.jit(noble.evaluate)(system, neighbors)
    assert atoms.get_potential_energy() == pytest.approx(float(exact.energy), abs=1e-13)
    assert atoms.get_potential_energy() == pytest.approx(reference_energy(atoms), abs=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), exact.forces, atol=1e-13)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), exact.stress, atol=1e-15)
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-8)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-9)
    assert np.abs(atoms.get_stress()[3:]).min() > 1e-5  # shear is really tested


def test_single_precision(noble):
    atoms = triclinic()
    atoms.calc = JaxptoCalculator(noble, "float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(atoms.calc.potential.params)} == {np.dtype(np.float32)}
    assert atoms.get_potential_energy() == pytest.approx(reference_energy(atoms), rel=1e-5)
    assert atoms.get_forces().dtype == np.float64


def test_double_precision_needs_no_flag(noble):
    atoms = triclinic()
    atoms.calc = JaxptoCalculator(noble)
    expected, forces = atoms.get_potential_energy(), atoms.get_forces()
    again = triclinic()
    with jax.enable_x64(False):
        again.calc = JaxptoCalculator(noble)
        assert again.get_potential_energy() == expected
        np.testing.assert_array_equal(again.get_forces(), forces)
        assert jnp.zeros(1).dtype == np.float32  # the user's mode is left alone


def test_neighbour_list_is_reused_and_rebuilt(noble, monkeypatch):
    built, allocated = [], []
    real_build, real_allocate = calculator_module._build, Potential.allocate
    monkeypatch.setattr(calculator_module, "_build", lambda *a, **k: built.append(1) or real_build(*a, **k))
    monkeypatch.setattr(Potential, "allocate", lambda *a, **k: allocated.append(1) or real_allocate(*a, **k))
    atoms = triclinic()
    atoms.calc = JaxptoCalculator(noble, skin=0.5)
    atoms.get_potential_energy()
    atoms.positions[0] += 0.02
    assert atoms.get_potential_energy() == pytest.approx(reference_energy(atoms), abs=1e-12)
    assert (len(built), len(allocated)) == (1, 1)
    atoms.positions[0] += [0.6, 0.0, 0.0]
    assert atoms.get_potential_energy() == pytest.approx(reference_energy(atoms), abs=1e-12)
    assert (len(built), len(allocated)) == (2, 1)
    atoms.positions[1] += 3 * atoms.cell[0]  # the same crystal, one atom three images away
    assert atoms.get_potential_energy() == pytest.approx(reference_energy(atoms), abs=1e-12)
    atoms.set_cell(atoms.cell * 0.8, scale_atoms=True)  # twice as dense: the capacities no longer do
    assert atoms.get_potential_energy() == pytest.approx(reference_energy(atoms), rel=1e-12)
    assert len(allocated) > 1


def test_other_elements_and_sizes_start_afresh(noble):
    shared = JaxptoCalculator(noble)
    for numbers in ([18, 18, 36, 18], [18, 36]):
        atoms = triclinic()[: len(numbers)]
        atoms.numbers[:] = numbers
        atoms.calc = shared
        assert atoms.get_potential_energy() == pytest.approx(reference_energy(atoms), abs=1e-12)


def test_endless_overflow_is_an_error(noble, monkeypatch):
    real_build = calculator_module._build
    monkeypatch.setattr(
        calculator_module, "_build", lambda *a, **k: real_build(*a, **k).replace(overflow=jnp.asarray(True))
    )
    atoms = triclinic()
    atoms.calc = JaxptoCalculator(noble)
    with pytest.raises(RuntimeError, match="overflows even after enlargement 1"):
        atoms.get_potential_energy()


def test_cell_relaxation(noble):
    atoms = triclinic()
    atoms.calc = JaxptoCalculator(noble)
    start = atoms.get_potential_energy()
    with BFGS(FrechetCellFilter(atoms), logfile=None) as relaxation:
        assert relaxation.run(fmax=1e-4, steps=300)
    assert atoms.get_potential_energy() < start
    assert atoms.get_potential_energy() == pytest.approx(reference_energy(atoms), abs=1e-12)
    assert np.abs(atoms.get_stress()).max() < 1e-5


def test_energy_is_conserved_in_dynamics(noble):
    atoms = triclinic()
    atoms.calc = JaxptoCalculator(noble, skin=0.3)
    thermal = np.sqrt(atoms.get_masses() * units.kB * 150)
    atoms.set_momenta(thermal[:, None] * np.random.default_rng(0).normal(size=(4, 3)))
    total = atoms.get_total_energy()
    kinetic = atoms.get_kinetic_energy()
    largest = 0.0
    with VelocityVerlet(atoms, 2 * units.fs) as dynamics:
        for _ in dynamics.irun(200):
            largest = max(largest, abs(atoms.get_total_energy() - total))
    assert abs(atoms.get_kinetic_energy() - kinetic) > 1e-3  # something happened
    assert largest < 2e-4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda atoms: atoms.set_pbc(False), "set pbc=True and a cell"),
        (lambda atoms: atoms.numbers.__setitem__(0, 10), "does not know Ne; it knows Ar, Kr"),
        (lambda atoms: atoms.positions.__setitem__((1, 2), np.nan), "position of atom 1"),
        (lambda atoms: atoms.set_cell(atoms.cell[[1, 0, 2]]), "left-handed"),
        (lambda atoms: atoms.positions.__setitem__(0, atoms.positions[1]), "apart"),
    ],
)
def test_bad_atoms_are_refused(noble, spoil, message):
    atoms = triclinic()
    spoil(atoms)
    atoms.calc = JaxptoCalculator(noble)
    with pytest.raises(InputError, match=message):
        atoms.get_potential_energy()


def test_bad_settings_are_refused(noble):
    with pytest.raises(InputError, match="float16"):
        JaxptoCalculator(noble, "float16")
    with pytest.raises(InputError, match="skin -1"):
        JaxptoCalculator(noble, skin=-1.0)


# The reverse: an ASE calculator as a potential


def copper(seed):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ase_calculator_runs_inside_jit_and_vmap(dtype):
    potential = load_potential("ase:ase.calculators.emt:EMT", dtype)
    frames = [copper(seed) for seed in range(3)]
    systems = [from_ase(atoms, dtype) for atoms in frames]
    layout = allocate(systems, potential.cutoff, 0.1)
    run = jax.jit(jax.vmap(lambda system: potential.evaluate(system, build(system, layout))))
    batch = jax.device_get(run(stack(systems)))
    assert batch.forces.dtype == dtype
    tolerance = 1e-12 if dtype == np.float64 else 3e-5
    for index, atoms in enumerate(frames):
        atoms.calc = EMT()
        np.testing.assert_allclose(batch.energy[index], atoms.get_potential_energy(), atol=tolerance)
        np.testing.assert_allclose(batch.forces[index], atoms.get_forces(), atol=tolerance)
        np.testing.assert_allclose(batch.stress[index], atoms.get_stress(voigt=False), atol=tolerance)


def test_there_and_back_again():
    atoms = copper(0)
    expected = copper(0)
    expected.calc = EMT()
    atoms.calc = JaxptoCalculator("ase:ase.calculators.emt:EMT")
    np.testing.assert_allclose(atoms.get_forces(), expected.get_forces(), atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(), expected.get_stress(), atol=1e-12)


def test_of_a_wrapped_calculator_it_is_not_known_whether_it_is_conservative(tmp_path):
    """Which is said, and no reason to refuse a method whose work needs no more than the forces to be."""
    potential = load_potential("ase:ase.calculators.emt:EMT")
    assert potential.conservative is None
    assert potential.caveat == "forces are not known to be derivatives of its energy"
    assert caveat(False) == "forces are not derivatives of its energy"
    assert not caveat(True)
    for name in ("cu.cif", "foreign/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    ase.io.write(tmp_path / "cu.cif", copper(0))
    config = FreeEnergyConfig(
        str(tmp_path / "cu.cif"), "ase:ase.calculators.emt:EMT", "switching",
        ensemble="nvt", steps=1000, replicas=2, temperatures=(300.0,), out=tmp_path / "foreign",
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(InputError, match="foreign"):  # it comes as far as the folder, where something else lies
        run_switching(config, console)
    assert "not known to be derivatives of its energy" in console.file.getvalue()


def test_a_wrapped_calculator_is_the_same_model_in_every_process():
    """The text of most calculators holds their address, so that no run with one could be resumed."""
    first, second = (load_potential("ase:ase.calculators.emt:EMT") for _ in range(2))
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint(load_potential(f"ase:{__name__}:without_stress"))
    assert " at 0x" not in repr(first.model)
    with jax.enable_x64(False):
        assert first.dtype == np.float32


def test_wrapped_calculator_says_once_that_it_is_slow(caplog):
    load_potential("ase:ase.calculators.emt:EMT")
    assert [record.message for record in caplog.records if "slow" in record.message] == [caplog.records[0].message]


def without_stress():
    """A factory: energy and forces for `copper(0)`, no stress."""
    atoms = copper(0)
    return SinglePointCalculator(atoms, energy=1.5, forces=np.ones((4, 3)))


def failing():
    """A factory that fails."""
    raise FileNotFoundError("weights.pt")


def test_missing_stress_is_found_before_a_run():
    potential = load_potential(f"ase:{__name__}:without_stress")
    check_supports(potential, copper(0), stress=False)
    with pytest.raises(InputError, match="gives no stress; use the ensemble nvt"):
        check_supports(potential, copper(0), stress=True)
    atoms = copper(0)
    atoms.calc = JaxptoCalculator(potential)
    assert atoms.get_potential_energy() == 1.5
    assert "stress" not in atoms.calc.results


def test_refused_structure_is_found_before_a_run():
    potential = load_potential("ase:ase.calculators.emt:EMT")
    with pytest.raises(InputError, match="here: ASE calculator EMT refuses it"):
        check_supports(potential, bulk("U", "fcc", 5.0), "here")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ase:ase.calculators.emt", "is incomplete"),
        ("ase:no.such.module:EMT", "No module named"),
        ("ase:ase.calculators.emt:ETM", "ETM"),
        ("ase:builtins:dict", "gave a dict"),
        (f"ase:{__name__}:failing", r"FileNotFoundError: weights\.pt"),
    ],
)
def test_bad_wrapper_names_are_refused(name, message):
    with pytest.raises(InputError, match=message) as caught:
        load_potential(name)
    assert "\n" not in str(caught.value)


def test_calculator_accepts_a_model_name():
    with pytest.raises(InputError, match="unknown model 'no-such-model'"):
        JaxptoCalculator("no-such-model")
