"""Phases from constructed runs of known crystals: any orientation and setting, distortions of every system, errors."""

import dataclasses
import math

import ase
import ase.build
import numpy as np
import pytest
from ase.spacegroup import crystal
from scipy.spatial.transform import Rotation

from jaxpto.observables import phases
from jaxpto.observables.crystal_class import _subgroups, crystal_system
from jaxpto.observables.lattice import UnitCell, lattice_parameters
from jaxpto.observables.mean_structure import mean_structure, symmetry_label
from jaxpto.observables.statistics import Estimate, estimate
from jaxpto.observables.summary import ReplicaRecord, TemperatureSummary, summarize, transitions
from jaxpto.observables.transition import Transition, find_transition, sequence
from jaxpto.perovskite.polarization import build_topology, polarization
from jaxpto.perovskite.unit_cell import unit_cell
from jaxpto.reporting.stored_sweep import as_rows
from jaxpto.reporting.sweep_report import axis_ratio, headline, phase_and_axis
from jaxpto.structures import builtin_structure
from jaxpto.system import from_ase

FRAMES = 300


def barium_titanate(phase: str) -> ase.Atoms:
    """Measured structures of BaTiO3: Kwei, Lawson, Billinge, Cheong, J. Phys. Chem. 97, 2368 (1993)."""
    if phase == "rhombohedral":  # R3m
        x = {"Ti": 0.4853, "O1": 0.5109, "O2": 0.0185}
        places = [[0, 0, 0], [x["Ti"]] * 3, *(np.roll([x["O2"], x["O1"], x["O1"]], k) for k in range(3))]
        return ase.Atoms("BaTiO3", scaled_positions=places, cell=[4.0036] * 3 + [89.839] * 3, pbc=True)
    if phase == "orthorhombic":  # Amm2
        places = [[0, 0, 0], [0.5, 0, 0.5170], [0, 0, 0.4890], [0.5, 0.2561, 0.2343]]
        lattice = [3.9828, 5.6745, 5.6916, 90, 90, 90]
        return crystal(["Ba", "Ti", "O", "O"], places, spacegroup=38, cellpar=lattice)
    c = {"tetragonal": 4.0314, "cubic": 3.9970}[phase]
    z = (0.5224, -0.0244, 0.4895) if phase == "tetragonal" else (0.5, 0.0, 0.5)
    places = [[0, 0, 0], [0.5, 0.5, z[0]], [0.5, 0.5, z[1]], [0.5, 0, z[2]], [0, 0.5, z[2]]]
    return ase.Atoms("BaTiO3", scaled_positions=places, cell=[3.9970, 3.9970, c], pbc=True)


def turned(atoms: ase.Atoms, rotation: Rotation) -> ase.Atoms:
    """The same crystal, lying otherwise."""
    other = atoms.copy()
    other.set_cell(rotation.apply(atoms.cell.array))
    other.positions = rotation.apply(atoms.positions)
    return other


def run_of(
    atoms: ase.Atoms, kelvin: float = 300.0, *, noise: float = 0.002, polarization_noise: float = 0.02, seed: int = 0
) -> tuple[ReplicaRecord, UnitCell]:
    """A run whose frames fluctuate around a structure: strain by `noise`, polarization (C/m^2), atoms by 0.05 A."""
    random = np.random.default_rng(seed)
    shear = noise * random.standard_normal((FRAMES, 3, 3))
    cells = atoms.cell.array @ (np.eye(3) + 0.5 * (shear + np.swapaxes(shear, 1, 2)))
    topology, _ = build_topology(atoms, "auto", np.float64)
    mean = None if topology is None else np.asarray(polarization(from_ase(atoms, np.float64), topology))
    vectors = None if mean is None else mean + polarization_noise * random.standard_normal((FRAMES, 3))
    places = atoms.get_scaled_positions() @ cells + 0.05 * random.standard_normal((FRAMES, len(atoms), 3))
    unit = unit_cell(atoms, (1, 1, 1))
    flat = np.zeros(FRAMES)
    record = ReplicaRecord(
        temperature_K=kelvin, pressure_GPa=0.0, replica=0, status="ok", reason="", step_failed=None,
        time_ps=0.1 * np.arange(FRAMES), cell=cells, temperature=kelvin + random.standard_normal(FRAMES),
        potential_energy=flat, kinetic_energy=flat, conserved=flat, stress=np.zeros((FRAMES, 3, 3)),
        polarization=vectors, structure=None if unit.perovskite else mean_structure(atoms.numbers, places, cells),
    )  # fmt: skip
    return record, unit


def row_of(atoms: ase.Atoms, kelvin: float = 300.0) -> TemperatureSummary:
    record, unit = run_of(atoms, kelvin)
    (row,) = summarize([record], unit, 0.1)
    return row


# --- orientation and setting ------------------------------------------------------------------------------------------


def test_lattice_and_polarization_do_not_depend_on_how_the_crystal_lies() -> None:
    crystal_ = builtin_structure("PbTiO3-tetragonal").repeat((2, 2, 2))
    turns = [Rotation.from_euler("z", 180, degrees=True), Rotation.from_euler("x", 45, degrees=True)]
    turns += [Rotation.random(random_state=seed) for seed in range(100)]
    for rotation in turns:
        atoms = turned(crystal_, rotation)
        unit = unit_cell(atoms, (1, 1, 1))
        assert (unit.perovskite, unit.count) == (True, 8)
        lattice = lattice_parameters(atoms.cell.array[None], unit)
        np.testing.assert_allclose(lattice.lengths[0], [3.88, 3.88, 4.19], rtol=1e-12)
        topology, _ = build_topology(atoms, "lda", np.float64)
        assert topology is not None
        found = lattice.frame[0] @ np.asarray(polarization(from_ase(atoms, np.float64), topology))
        np.testing.assert_allclose(found, [0.0, 0.0, 1.0505], atol=1e-4)


@pytest.mark.parametrize(
    ("matrix", "count"),
    [
        ([[1, 1, 0], [-1, 1, 0], [0, 0, 2]], 4),  # Pbnm, I4/mcm
        ([[1, 1, 0], [-1, 1, 0], [0, 0, 1]], 2),
        ([[-1, 1, 1], [1, -1, 1], [1, 1, -1]], 4),  # the primitive cell of 2 x 2 x 2
        ([[1, 1, 0], [-1, 1, 0], [1, 0, 2]], 4),
        ([[2, 0, 0], [0, 2, 0], [0, 0, 1]], 4),
    ],
)
def test_settings_and_supercells_of_any_shape(matrix: list[list[int]], count: int) -> None:
    cubic = ase.build.make_supercell(builtin_structure("PbTiO3-cubic"), matrix)
    unit = unit_cell(cubic, (1, 1, 1))
    assert (unit.perovskite, unit.count) == (True, count)
    np.testing.assert_allclose(lattice_parameters(cubic.cell.array[None], unit).lengths[0], 3.93, rtol=1e-12)
    assert row_of(cubic, 900.0).phase == "cubic"
    tetragonal = row_of(ase.build.make_supercell(builtin_structure("PbTiO3-tetragonal"), matrix))
    assert tetragonal.phase == "tetragonal"
    assert sorted((tetragonal.a, tetragonal.b, tetragonal.c)) == pytest.approx([3.88, 3.88, 4.19], abs=2e-3)


def test_a_cell_that_turns_during_the_run_keeps_its_strain_and_polarization() -> None:
    record, unit = run_of(builtin_structure("PbTiO3-tetragonal").repeat((2, 2, 2)))
    assert record.polarization is not None
    spin = Rotation.from_rotvec(np.linspace(0.0, 0.3, FRAMES)[:, None] * np.array([1.0, 0.5, 0.2]))
    cells = np.stack([rotation.apply(cell) for rotation, cell in zip(spin, record.cell, strict=True)])
    moving = dataclasses.replace(record, cell=cells, polarization=spin.apply(record.polarization))
    (still,), (turning,) = summarize([record], unit, 0.1), summarize([moving], unit, 0.1)
    for name in ("a", "b", "c", "Px", "Py", "Pz", "P", "Pz_std", "gamma"):
        assert getattr(turning, name) == pytest.approx(getattr(still, name), abs=1e-9), name
    assert (turning.phase, turning.polarity) == ("tetragonal", "polar")


# --- phases -----------------------------------------------------------------------------------------------------------


def test_the_operations_of_the_cube_have_98_subgroups() -> None:
    assert len(_subgroups()) == 98


@pytest.mark.parametrize(
    ("lengths", "angles", "vector", "system"),
    [
        ((3.95, 3.95, 3.95), (90, 90, 90), (0, 0, 0), "cubic"),
        ((4.15, 3.90, 3.90), (90, 90, 90), (0.7, 0, 0), "tetragonal"),
        ((3.95, 3.95, 3.95), (90, 90, 90), (0, 0, 0.3), "tetragonal"),  # a cell that cannot shear
        ((3.95, 3.95, 3.95), (90, 90, 90), (0.2, -0.2, 0), "orthorhombic"),
        ((3.95, 3.95, 3.95), (90, 90, 90), (0.2, -0.2, 0.2), "rhombohedral"),
        ((3.95, 3.95, 3.95), (90, 90, 90), (0.1, 0.1, 0.3), "monoclinic"),
        ((3.95, 3.95, 3.95), (90, 90, 90), (0.0, 0.1, 0.3), "monoclinic"),
        ((3.95, 3.95, 3.95), (90, 90, 90), (0.1, 0.2, 0.3), "triclinic"),
        ((3.90, 3.95, 4.00), (90, 90, 90), (0, 0, 0), "orthorhombic"),
        ((3.95, 3.95, 3.90), (90, 90, 90.6), (0, 0, 0), "orthorhombic"),  # Pbnm in pseudo-cubic axes
        ((3.96, 3.96, 3.96), (89.4, 89.4, 89.4), (0, 0, 0), "rhombohedral"),
        ((3.90, 3.95, 4.00), (90, 91, 90), (0, 0, 0), "monoclinic"),
        ((3.90, 3.95, 4.00), (90.5, 91, 92), (0, 0, 0), "triclinic"),
    ],
)
def test_systems_of_distorted_cubes(
    lengths: tuple[float, ...], angles: tuple[float, ...], vector: tuple[float, ...], system: str
) -> None:
    cell = ase.Atoms(cell=[*lengths, *angles], pbc=True).cell.array
    strain = lattice_parameters(cell[None], UnitCell(np.eye(3), True)).strain[0]
    tolerance = np.where(np.eye(3) > 0, 0.003, 0.001)
    assert crystal_system(strain, tolerance, np.array(vector, float), np.full(3, 0.02)) == system


@pytest.mark.parametrize("phase", ["rhombohedral", "orthorhombic", "tetragonal", "cubic"])
def test_the_four_phases_of_barium_titanate(phase: str) -> None:
    row = row_of(barium_titanate(phase))
    assert row.phase == phase
    assert row.polarity == ("nonpolar" if phase == "cubic" else "polar")
    # the crystal's system does not depend on the cell that it is given in, or on how that lies
    random = Rotation.random(random_state=3)
    large = ase.build.make_supercell(barium_titanate(phase), [[1, 1, 0], [-1, 1, 0], [0, 0, 2]])
    assert row_of(turned(large, random)).phase == phase


def test_rhombohedral_bismuth_ferrite() -> None:
    """R3c in the hexagonal setting; Moreau, Michel, Gerson, James, J. Phys. Chem. Solids 32, 1315 (1971)."""
    places = [[0, 0, 0.0], [0, 0, 0.2212], [0.443, 0.012, 0.9543]]
    atoms = crystal(["Bi", "Fe", "O"], places, spacegroup=161, cellpar=[5.5787, 5.5787, 13.8688, 90, 90, 120])
    row = row_of(atoms)
    assert (row.phase, row.polarity) == ("rhombohedral", "polar")
    assert row.a == pytest.approx(3.965, abs=0.005)


def test_supertetragonal_and_fixed_shapes() -> None:
    stretched = builtin_structure("PbTiO3-tetragonal")
    stretched.set_cell([3.80, 3.80, 4.90], scale_atoms=True)
    assert row_of(stretched).phase == "supertetragonal"


RUTILE = crystal(["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90])
ANATASE = crystal(["Ti", "O"], [(0, 0, 0), (0, 0, 0.208)], spacegroup=141, cellpar=[3.785, 3.785, 9.514, 90, 90, 90])


@pytest.mark.parametrize(
    ("atoms", "label"),
    [
        (ase.build.bulk("Cu", cubic=True).repeat(2), "cubic Fm-3m"),
        (ase.build.bulk("Ti").repeat((3, 3, 2)), "hexagonal P6_3/mmc"),
        (RUTILE.repeat(2), "tetragonal P4_2/mnm"),
        (ANATASE, "tetragonal I4_1/amd"),
    ],
    ids=["copper", "titanium", "rutile", "anatase"],
)
def test_other_crystals_are_called_by_their_space_group(atoms: ase.Atoms, label: str) -> None:
    record, unit = run_of(atoms)
    assert not unit.perovskite
    (row,) = summarize([record], unit, 0.1)
    assert row.phase == label
    assert transitions([row]) == []
    assert headline([dataclasses.replace(row, warnings="")], "X") == f"X: {label} at 300 K."


def test_mean_structure_knows_its_error() -> None:
    random = np.random.default_rng(0)
    atoms = ase.build.bulk("Cu", cubic=True).repeat(2)
    drift = np.linspace(0.0, 3.0, 400)[:, None, None]
    noise = 0.1 * random.standard_normal((400, len(atoms), 3))
    cells = np.repeat(atoms.cell.array[None], 400, axis=0)
    found = mean_structure(atoms.numbers, atoms.positions + drift + noise, cells)
    # six standard errors of a mean of 400 frames, sqrt(3) 0.1 A each, all atoms moving together taken out
    assert found.tolerance == pytest.approx(6.0 * math.sqrt(3.0) * 0.1 / 20.0, rel=0.15)
    assert symmetry_label(found) == "cubic Fm-3m"


# --- significance -----------------------------------------------------------------------------------------------------


def known(mean: float, sem: float, independent: float = 50.0) -> Estimate:
    return Estimate(mean, 10.0 * sem, sem, 1.0, independent, 0.0, 2.0 * sem)


@pytest.mark.parametrize(
    ("length", "sem", "independent", "label"),
    [
        (0.083, 0.04, 50.0, "undecided"),
        (0.071, 0.04, 50.0, "undecided"),
        (0.7, 0.01, 50.0, "polar"),
        (0.7, 0.01, 3.0, "undecided"),
        (0.01, 0.003, 50.0, "nonpolar"),
        (0.015, 0.001, 50.0, "nonpolar"),  # significant, but next to nothing
        (0.10, 0.02, 1000.0, "polar"),
    ],
)
def test_a_polarization_needs_significance(length: float, sem: float, independent: float, label: str) -> None:
    assert phases.polarity([known(value, sem, independent) for value in (0.0, 0.0, length)]) == label


def test_noise_is_called_polar_once_in_a_thousand() -> None:
    random = np.random.default_rng(0)
    runs = random.standard_normal((4000, 3, 60))
    called = 0
    for run in runs:
        sems = run.std(axis=1, ddof=1) / math.sqrt(60)
        components = [known(mean, sem, 60.0) for mean, sem in zip(run.mean(axis=1), sems, strict=True)]
        called += phases.polarity(components) == "polar"
    assert 0 <= called <= 12  # 4 expected


def test_polar_labels_of_a_ladder() -> None:
    found = phases.polar_labels([0.8, 0.5, 0.1, 0.02, 0.3, math.nan], ["polar"] * 3 + ["nonpolar", "undecided", ""])
    assert found == ["polar", "polar", "nonpolar", "nonpolar", "undecided", ""]
    assert phases.polar_labels([0.083, 0.071, 0.064], ["undecided"] * 3) == ["undecided"] * 3


def test_a_difference_of_axes_needs_significance() -> None:
    record, unit = run_of(builtin_structure("PbTiO3-cubic"))
    slow = 0.02 * np.sin(np.linspace(0.0, 2.0, FRAMES))  # a drift that a short run takes for strain
    strained = dataclasses.replace(record, cell=record.cell * (1.0 + slow[:, None, None] * np.diag([0.0, 0.0, 1.0])))
    (row,) = summarize([strained], unit, 0.1)
    assert row.tetragonality > 1.01
    assert row.phase == "cubic"
    assert "independent samples" in row.warnings


def test_a_large_difference_with_a_larger_error_is_undecided() -> None:
    record, unit = run_of(builtin_structure("PbTiO3-tetragonal"))
    few = {name: getattr(record, name)[-12:] for name in ("time_ps", "temperature", "stress")}
    few |= {name: getattr(record, name)[-12:] for name in ("potential_energy", "kinetic_energy", "conserved")}
    swing = 1.0 + 0.04 * np.sin(np.linspace(0.0, 5.0, 12))[:, None, None] * np.diag([0.0, 0.0, 1.0])
    noisy = dataclasses.replace(record, **few, cell=record.cell[-12:] * swing, polarization=None)
    (row,) = summarize([noisy], unit, 0.0)
    assert row.tetragonality > 1.05
    assert row.phase == "undecided"
    assert transitions([row]) == []


# --- transitions and what is said of them -----------------------------------------------------------------------------


def transition_of(
    kelvin: list[float], labels: list[str], values: list[float], errors: list[float] | None = None
) -> Transition:
    return find_transition(
        kelvin, labels, values, errors or [0.001] * len(labels), order_parameter="lattice",
        ordered_phases=phases.ORDERED, disordered_phase="cubic", threshold=1.005,
    )  # fmt: skip


def test_transition_tells_bracket_and_statistical_error_apart() -> None:
    kelvin, labels = [300.0, 500.0, 400.0, 600.0], ["tetragonal", "cubic", "tetragonal", "cubic"]
    found = transition_of(kelvin, labels, [1.06, 1.0, 1.05, 1.0])
    assert (found.lower_K, found.upper_K, found.temperature_K) == (400.0, 500.0, 450.0)
    assert found.statistical_error_K == 0.0
    assert found.monotonic
    assert found.message.startswith("tetragonal to cubic between 400 and 500 K")
    vague = transition_of([600.0, 900.0, 1200.0], ["tetragonal", "cubic", "cubic"], [1.02, 1.004, 1.0], [0.02] * 3)
    assert vague.statistical_error_K is not None
    assert vague.statistical_error_K > 100.0
    assert f"{vague.statistical_error_K:.0f} K" in vague.message


def test_noise_of_a_small_cubic_cell_is_no_order() -> None:
    """c/a of 1.008(5) in cubic cells, twice what counts as ordered: where the ordered one has 1.2, nothing is vague."""
    values, errors = [1.22, 1.20, 1.008, 1.009, 1.007], [0.01, 0.012, 0.005, 0.005, 0.005]
    labels = ["supertetragonal", "supertetragonal", "cubic", "cubic", "cubic"]
    found = find_transition(
        [300.0, 400.0, 500.0, 600.0, 700.0], labels, values, errors, order_parameter="lattice",
        ordered_phases=phases.ORDERED, disordered_phase="cubic", threshold=1.005,
    )  # fmt: skip
    assert (found.lower_K, found.upper_K, found.statistical_error_K) == (400.0, 500.0, 0.0)


def test_transition_without_one_in_range() -> None:
    def find(*labels: str) -> Transition:
        return transition_of([300.0 + 100.0 * i for i in range(len(labels))], list(labels), [1.0] * len(labels))

    ordered = find("tetragonal", "supertetragonal", "molten")
    assert (ordered.temperature_K, ordered.lower_K, ordered.upper_K) == (None, 400.0, None)
    disordered = find("cubic", "cubic")
    assert (disordered.temperature_K, disordered.lower_K, disordered.upper_K) == (None, None, 300.0)
    assert find("molten", "failed").temperature_K is None
    assert find("cubic", "tetragonal").temperature_K is None
    mixed = find("tetragonal", "cubic", "tetragonal", "cubic")
    assert not mixed.monotonic
    assert (mixed.lower_K, mixed.upper_K) == (400.0, 500.0)


def test_sequence_of_phases() -> None:
    labels = ["rhombohedral", "rhombohedral", "orthorhombic", "cubic"]
    assert sequence([50.0, 100.0, 200.0, 450.0], labels) == (
        "rhombohedral at 50 to 100 K, orthorhombic at 200 K, cubic at 450 K"
    )


def test_headline_of_a_full_sequence_and_of_flagged_averages() -> None:
    ladder = [(40.0, "rhombohedral"), (300.0, "tetragonal"), (450.0, "cubic")]
    records = [run_of(barium_titanate(phase), kelvin, seed=int(kelvin)) for kelvin, phase in ladder]
    rows = summarize([record for record, _ in records], records[0][1], 0.1)
    text = headline(rows, "BaTiO3")
    assert "tetragonal to cubic between 300 and 450 K" in text
    assert "rhombohedral at 40 K, tetragonal at 300 K, cubic at 450 K" in text
    assert "preliminary" not in text
    flagged = headline([dataclasses.replace(row, warnings="drifts") for row in rows[:1]], "BaTiO3")
    assert "preliminary: 1 of 1 averages are flagged" in flagged


@pytest.mark.parametrize(("mean", "sem", "warned"), [(667, 24, True), (440, 47, True), (601, 2, False), (585, 3, True)])
def test_a_wrong_temperature_is_noticed(mean: float, sem: float, warned: bool) -> None:
    target = 500.0 if mean == 440 else 600.0
    record, unit = run_of(builtin_structure("PbTiO3-tetragonal"), target)
    random = np.random.default_rng(1).standard_normal(FRAMES)
    (kept,) = (record.time_ps > 0.1 * record.time_ps[-1],)
    random = (random - random[kept].mean()) / random[kept].std()
    off = dataclasses.replace(record, temperature=mean + sem * math.sqrt(kept.sum()) * random)
    assert estimate(off.temperature[kept]).sem == pytest.approx(sem, rel=0.35)
    (row,) = summarize([off], unit, 0.1)
    assert ("measured temperature" in row.warnings) == warned


def test_ten_independent_samples_are_enough_and_fewer_are_not_called_ten() -> None:
    record, unit = run_of(builtin_structure("PbTiO3-tetragonal"))
    few = [dataclasses.replace(record, **{
        name: getattr(record, name)[:frames] for name in
        ("time_ps", "cell", "temperature", "potential_energy", "kinetic_energy", "conserved", "stress", "polarization")
    }) for frames in range(8, 16)]  # fmt: skip
    said = [summarize([one], unit, 0.1)[0].warnings for one in few]
    assert any("independent samples" in text for text in said)
    assert not any("only 10.0 independent" in text for text in said)


def test_a_polar_axis_other_than_c_is_named() -> None:
    row = row_of(turned(builtin_structure("PbTiO3-tetragonal"), Rotation.identity())[[0, 1, 2, 3, 4]])
    assert phase_and_axis(*as_rows([row])) == "tetragonal"
    along_b = builtin_structure("PbTiO3-tetragonal")
    along_b.set_cell(along_b.cell.array[[0, 2, 1]] * [[1], [1], [-1]])
    row = row_of(along_b)
    assert phase_and_axis(*as_rows([row])) == "tetragonal, axis b"
    assert axis_ratio(*as_rows([row])).startswith("1.079")
    assert row.c_over_a < 1.0
