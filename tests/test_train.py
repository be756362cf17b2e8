"""The trainer on synthetic data written here: it learns, resumes, reads both formats and refuses bad input."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import ase
import ase.io
import ase.neighborlist
import jax
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import pytest

from jaxpto import train
from jaxpto.console.options import as_typed
from jaxpto.errors import InputError
from jaxpto.models.catalogue import load_potential
from jaxpto.models.folder import save_potential
from jaxpto.models.perovskite import Perovskite, initialize
from jaxpto.models.suitability import check_supports
from jaxpto.potential import Potential
from jaxpto.storage.arrays import read_arrays
from jaxpto.storage.identity import make_identity
from jaxpto.training import batches, data, groups, perovskite_recipe, trainer, whitening
from jaxpto.training.checkpoint import check_identity, checkpoint, restore
from jaxpto.training.groups import share_of
from jaxpto.training.loss import LossWeights, deviations, robust_square
from jaxpto.training.recipe import Rates
from jaxpto.training.reference_energies import reference_energies
from jaxpto.training.setup import set_up
from jaxpto.training.shortest_distances import shortest_distances

pytestmark = pytest.mark.simulation

ENERGY_OF = {11: -60.0, 12: -100.0, 8: -430.0}


def label(atoms: ase.Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and virial (-dE/dstrain) of Morse-like pairs, plus large energies of the elements."""
    from ase.neighborlist import neighbor_list

    i, j, distance, vector = neighbor_list("ijdD", atoms, 5.0)
    z = np.exp(-(distance - 2.1))
    fall = np.where(distance < 5.0, (1 - (distance / 5.0) ** 2) ** 3, 0.0)
    dfall = -6 * distance / 25.0 * (1 - (distance / 5.0) ** 2) ** 2
    sign = np.where(atoms.numbers[i] == atoms.numbers[j], 0.6, 1.0)
    energy = 0.5 * np.sum(sign * (z * z - 2 * z) * fall) + sum(ENERGY_OF[int(n)] for n in atoms.numbers)
    slope = sign * ((-2 * z * z + 2 * z) * fall + (z * z - 2 * z) * dfall)
    pair_force = (slope / distance)[:, None] * vector  # dE/d(vector), both directions listed
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, i, pair_force)
    return float(energy), forces, -0.5 * vector.T @ pair_force


def frames(count: int, symbols: str = "MgOMgO", seed: int = 0) -> list[ase.Atoms]:
    """Rattled, strained small crystals."""
    generator = np.random.default_rng(seed)
    perfect = ase.Atoms(
        symbols, positions=[[0, 0, 0], [2.1, 0, 0], [2.1, 2.1, 0], [0, 2.1, 0]], cell=[4.2, 4.2, 4.0], pbc=True
    )
    made = []
    for _ in range(count):
        atoms = perfect.copy()
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * generator.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.08 * generator.normal(size=(4, 3))
        made.append(atoms)
    return made


def write_deepmd(folder: Path, images: list[ase.Atoms], kinds: dict[str, int] = {"O": 0, "Mg": 1}) -> None:  # noqa: B006
    """DeePMD npy folder of labelled images."""
    (folder / "set.000").mkdir(parents=True)
    (folder / "type_map.raw").write_text(" ".join(kinds) + "\n")
    (folder / "type.raw").write_text("\n".join(str(kinds[s]) for s in images[0].get_chemical_symbols()))
    energies, forces, virials = zip(*(label(a) for a in images), strict=True)
    columns = {
        "coord": [a.positions.ravel() for a in images],
        "box": [a.cell.array.ravel() for a in images],
        "energy": energies,
        "force": [f.ravel() for f in forces],
        "virial": [v.ravel() for v in virials],
    }
    for name, column in columns.items():
        np.save(folder / "set.000" / f"{name}.npy", np.array(column))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "MgO-300K"
    write_deepmd(path, frames(40))
    return path


TINY = ("hidden=8", "channels=4", "radial=6", "quartic=2", "cutoff=5.0")


def config(folder: Path, out: Path, **changes) -> train.TrainConfig:
    base = train.TrainConfig(
        data=(folder,), out=out, steps=450, validate_every=150, hyperparameters=TINY, ema=0.9, matrix_rate=0.01,
        rate=0.01,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("models") / "tiny"
    train.run(config(folder, out))
    return out


def test_it_learns_energy_forces_and_virial(trained: Path) -> None:
    """Held-out errors far below the spread of the labels; the exported model predicts what its header says."""
    header = json.loads((trained / "model.json").read_text())
    held_out = data.hold_out_blocks(_as_frames(frames(40)))[1]
    errors = header["training"]["validation_rmse_meV"]["MgO-300K"]
    assert errors["forces"] < 0.3e3 * held_out.forces.std()
    assert errors["energy"] < 0.3e3 * held_out.energies.std() / 4
    potential = load_potential(trained, np.float64)
    reference = header["reference_energies_eV"]
    squares = []
    for positions, cell, energy, forces, virial in zip(
        held_out.positions, held_out.cells, held_out.energies, held_out.forces, held_out.virials, strict=True
    ):
        atoms = ase.Atoms("MgOMgO", positions=positions, cell=cell, pbc=True)
        found = contract.predict(potential, atoms)
        total = found.energy + sum(reference[s] for s in atoms.get_chemical_symbols())
        squares.append(
            [
                ((total - energy) / 4) ** 2,
                ((found.forces - forces) ** 2).mean(),
                ((-found.stress * atoms.get_volume() - virial) ** 2).mean() / 16,
            ]
        )
    rms = 1e3 * np.sqrt(np.mean(squares, axis=0))
    np.testing.assert_allclose(rms, [errors["energy"], errors["forces"], errors["virial"]], rtol=0.02, atol=0.05)


def _as_frames(images: list[ase.Atoms]) -> data.LabelledFrames:
    energies, forces, virials = (np.array(column) for column in zip(*(label(a) for a in images), strict=True))
    return data.LabelledFrames(
        "MgO-300K", images[0].numbers, np.array([a.positions for a in images]),
        np.array([a.cell.array for a in images]), energies, forces, virials, np.full((len(images), 4), np.nan),
    )  # fmt: skip


@pytest.fixture
def interrupted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training with Ctrl-C inside step 37: within a block of frames, before the first validation."""
    make_step, count = trainer.make_step, 0

    def make_interrupting(*arguments):
        step = make_step(*arguments)

        def counted(*state_and_frame):
            nonlocal count
            count += 1
            after = step(*state_and_frame)  # the state before it is gone: its memory was given to the result
            if count == 37:
                signal.raise_signal(signal.SIGINT)
            return after

        return counted

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(trainer, "make_step", make_interrupting)
    with pytest.raises(KeyboardInterrupt):
        train.run(config(folder, tmp_path / "again"))
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is handler
    return tmp_path / "again"


def test_an_interrupted_run_ends_with_the_same_weights(
    folder: Path, trained: Path, interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, and also from the checkpoint before, after the newest one was damaged."""
    stored = interrupted / trainer.CHECKPOINT
    assert read_arrays(stored)[1]["step"] == 37
    assert not (interrupted / "model.json").exists()
    changed = config(folder, interrupted, resume=True, seed=1, rate=0.02, steps=900, weights=LossWeights(virial=0.0))
    with pytest.raises(InputError) as caught:
        train.run(changed)
    for words in ("seed was 0, now 1", "rate was 0.01, now 0.02", "weights.virial was 0.5, now 0.0",
                  "steps was 450, now 900", "--initial"):  # fmt: skip
        assert words in as_typed(str(caught.value), train.TrainConfig)
    with pytest.raises(InputError, match="the initial model is another one"):
        train.run(config(folder, interrupted, resume=True, initial=trained, hyperparameters=()))

    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    capsys.readouterr()
    free = {"validate_every": 450, "checkpoint_every": 7.0, "patience": 3, "source": "here"}
    resumed = train.run(config(folder, interrupted, resume=True, **free))
    said = capsys.readouterr().out
    assert "training.npz: damaged (Bad CRC-32" in said
    assert "goes on after step 0 of 450" in said
    # this run validated once, at the end; the other one's best validation is its last
    jax.tree.map(np.testing.assert_array_equal, resumed.params, load_potential(trained).params)


def test_resuming_in_the_middle_of_a_block(folder: Path, trained: Path, interrupted: Path) -> None:
    resumed = train.run(config(folder, interrupted, resume=True))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, load_potential(trained).params)


def test_checkpoints_are_written_as_time_passes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr(trainer, "checkpoint", lambda path, state, meta: steps.append(meta["step"]))
    train.run(config(folder, tmp_path / "out", steps=5, validate_every=4, checkpoint_every=1e-9))
    assert steps == [0, 1, 2, 3, 4, 5]


def test_a_changed_frame_is_noticed(folder: Path) -> None:
    """Of data, what matters is what they hold, and in which order they come."""
    (found,) = data.read(folder)
    other = dataclasses.replace(found, energies=found.energies + 1e-9 * np.eye(len(found))[3], name="other")
    identify = lambda *some: make_identity({}, [(frames.name, frames.digest) for frames in some], {})  # noqa: E731
    identity = identify(found, other)
    for now, words in (
        ([found], "trajectory other is missing"),
        ([found, other, dataclasses.replace(found, name="third")], "trajectory third is new"),
        ([found, dataclasses.replace(found, name="other")], "trajectory other is another one"),
        ([other, found], "each trajectory is there, in another order"),
    ):
        with pytest.raises(InputError, match=words):
            check_identity(Path("out"), identity, identify(*now))
    check_identity(Path("out"), identity, identify(found, other))


def test_any_damage_to_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    """A flipped bit anywhere is either refused, or of no consequence; so is a file cut anywhere."""
    path, state = tmp_path / "training.npz", {"x": np.arange(40.0), "y": np.ones((2, 3), np.float32)}
    checkpoint(path, state, {"step": 1})
    whole = path.read_bytes()
    refused = 0
    for where in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[where] ^= 1 << where % 8
        for content in (bytes(damaged), whole[:where]):
            path.write_bytes(content)
            try:
                found, meta = restore(path, state)
            except InputError:
                refused += 1
            else:
                assert meta == {"step": 1}
                jax.tree.map(np.testing.assert_array_equal, found, state)
    assert refused > len(whole) / 7


def test_resuming_where_nothing_is_begins(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As an interrupt while the data were read leaves it; but not where a model lies without its checkpoint."""
    out = tmp_path / "out"
    train.run(config(folder, out, resume=True, steps=2, validate_every=2))
    assert f"nothing in {out} to go on with: begins" in capsys.readouterr().out
    for path in out.glob("training*.npz"):
        path.unlink()
    with pytest.raises(InputError, match=r"holds .* but no training\.npz"):
        train.run(config(folder, out, resume=True))
    with pytest.raises(InputError, match="is a file"):
        train.run(config(folder, out / "model.json"))


def test_fine_tuning_starts_where_the_model_is(folder: Path, trained: Path, tmp_path: Path) -> None:
    """With rates near zero, a fine-tuned model is the model it came from."""
    tuned = train.run(
        config(
            folder,
            tmp_path / "tuned",
            initial=trained,
            hyperparameters=(),
            steps=2,
            validate_every=2,
            matrix_rate=1e-12,
            rate=1e-12,
        )
    )
    before = load_potential(trained)
    atoms = frames(1, seed=9)[0]
    cast = lambda potential: potential.replace(params=jax.tree.map(lambda x: np.asarray(x, float), potential.params))  # noqa: E731
    contract.assert_same(contract.predict(cast(tuned), atoms), contract.predict(cast(before), atoms), 1e-3)


def test_elements_never_together_are_strangers(folder: Path, tmp_path: Path) -> None:
    """Oxides of Mg and Na teach nothing about Mg next to Na; data that hold both do."""
    write_deepmd(tmp_path / "Na2O", frames(8, "NaONaO"), {"O": 0, "Na": 1})
    task = set_up(config(folder, tmp_path / "apart", data=(folder, tmp_path / "Na2O")))
    start = task.parametrization
    apart = Potential(start.decode(start.raw, start.constants), task.model, "apart")
    assert apart.model.strangers == ((11, 12),)
    check_supports(apart, frames(1)[0])
    with pytest.raises(InputError, match="Na with Mg"):
        check_supports(apart, frames(1, "NaOMgO")[0])
    save_potential(apart, tmp_path / "apart")
    write_deepmd(tmp_path / "both", frames(8, "NaOMgO"), {"O": 0, "Na": 1, "Mg": 2})
    more = config(folder, tmp_path / "x", data=(tmp_path / "both",), initial=tmp_path / "apart", hyperparameters=())
    assert set_up(more).model.strangers == ()


def test_matrices_decay_and_nothing_else() -> None:
    model = Perovskite((8, 12), radial=4, channels=3, quartic=2, hidden=5)
    raw = jax.tree.map(jnp.ones_like, perovskite_recipe.initial_raw(model, jax.random.key(0), np.float64))
    rates = Rates(steps=10, warmup=1, rate=1e-2, matrix_rate=1e-2, decay=0.5, clip=0.0)
    rule = perovskite_recipe.muon(raw, rates)
    updates, state = rule.update(jax.tree.map(jnp.zeros_like, raw), rule.init(raw), raw)
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, raw), state, raw)
    for name, update in updates.items():
        expected = -0.5 * 1e-2 if name in ("mix", "weight1", "weight2") else 0.0
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=name)


def test_fold_and_unfold_are_inverse() -> None:
    model = Perovskite((8, 12), radial=4, channels=3, quartic=2, hidden=5)
    raw = perovskite_recipe.initial_raw(model, jax.random.key(0), np.float64)
    raw = {k: v + np.random.default_rng(1).normal(size=v.shape) for k, v in raw.items()}
    d = len(whitening.independent(model))
    generator = np.random.default_rng(2)
    scales = whitening.Whitening(
        *(jnp.asarray(generator.normal(size=shape)) for shape in ((2, 2, 4, 4), (2, d), (2, d, d)))
    )
    again = whitening.unfold(model, whitening.fold(model, raw, scales), scales)
    for name, value in raw.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-7, atol=1e-7, err_msg=name)


def test_blocks_are_contiguous_and_disjoint(folder: Path) -> None:
    (found,) = data.read(folder)
    kept, held = data.hold_out_blocks(found)
    assert len(kept) + len(held) == 40
    assert len(held) == 4
    where = [int(np.flatnonzero(found.energies == e)[0]) for e in held.energies]
    assert where == [12, 13, 26, 27]


def test_rows_of_fewer_frames_are_among_those_of_more() -> None:
    counts = [40, 90, 20]
    everything = data.training_rows(counts)
    assert [len(rows) for rows in everything] == [36, 81, 18]
    before = [np.zeros(0, int)] * 3
    for limit in (3, 15, 60, 135):
        rows = data.training_rows(counts, limit)
        assert sum(map(len, rows)) == limit
        for some, fewer, whole in zip(rows, before, everything, strict=True):
            assert set(fewer) <= set(some) <= set(whole)
            assert 0 < len(some) <= np.ceil(len(whole) * limit / 135)
            assert len(set(some)) == len(some)
        before = rows
    assert list(map(list, before)) == list(map(list, everything))
    assert data.training_rows([200], 10)[0].tolist() != list(range(10))
    for limit in (2, 136):
        with pytest.raises(InputError, match=f"frames = {limit}: give between 3, one of each trajectory, and 135, all"):
            data.training_rows(counts, limit)


def test_fewer_frames_are_validated_on_the_same(folder: Path, tmp_path: Path) -> None:
    """Nothing of the frames that are left out reaches the model: the reference energy is that of the others."""
    (whole,), (few,) = (set_up(config(folder, tmp_path, frames=limit)).groups for limit in (0, 5))
    assert (len(whole.train), len(few.train)) == (36, 5)
    np.testing.assert_array_equal(few.held_out.totals, whole.held_out.totals)
    np.testing.assert_array_equal(few.held_out_index, whole.held_out_index)
    assert set(few.train.totals) < set(whole.train.totals)
    np.testing.assert_allclose(few.probability, 0.2)
    np.testing.assert_allclose(few.train.frames.labels.energy.mean(), 0.0, atol=1e-4)
    assert abs(whole.train.totals.mean() - few.train.totals.mean()) > 2e-3


def test_reference_energies_fit_the_means() -> None:
    images = [_as_frames(frames(4)), _as_frames(frames(4, "MgOOO", seed=1))]
    found = reference_energies(images, (8, 12))
    np.testing.assert_allclose(found, [ENERGY_OF[8], ENERGY_OF[12]], atol=20.0)
    for f in images:
        total = sum(dict(zip((8, 12), found, strict=True))[int(z)] for z in f.numbers)
        np.testing.assert_allclose(total, f.energies.mean())


def test_shares() -> None:
    trajectories = [dataclasses.replace(_as_frames(frames(1)), name=n) for n in ("PT-300K", "PT-900K", "ST", "BT")]
    np.testing.assert_allclose(share_of(trajectories, ("PT-*=0.5",)), [0.25, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(share_of(trajectories, ("PT-*=0.8", "ST=0.15")), [0.4, 0.4, 0.15, 0.05])
    for wrong in (("XX=0.5",), ("PT-*=x",), ("PT-*=2",), ("PT-*=0.9", "ST=0.5")):
        with pytest.raises(InputError):
            share_of(trajectories, wrong)


def test_a_wrong_frame_pulls_little(folder: Path, tmp_path: Path) -> None:
    """The robust loss grows linearly: an error of 1000 scales counts less than 1/100 of its square."""
    np.testing.assert_allclose(robust_square(jnp.array([0.01, 0.1]), 3.0), [1e-4, 1e-2], rtol=1e-3)
    assert robust_square(jnp.array(1000.0), 3.0) < 1000.0**2 / 100


BAD = {
    "no folder": {"data": (Path("nowhere"),)},
    "no data": {"data": ()},
    "steps": {"steps": 0},
    "batch": {"batch": 0},
    "hyperparameter": {"hyperparameters": ("radial",)},
    "rate": {"matrix_rate": -1.0},
    "decay": {"decay": -0.1},
    "fast decay": {"decay": 101.0},
    "ema": {"ema": 1.0},
    "checkpoint": {"checkpoint_every": 0.0},
    "frames": {"frames": -1},
    "too many frames": {"frames": 37},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_and_nothing_written(folder: Path, tmp_path: Path, changes: dict) -> None:
    with pytest.raises(InputError) as caught:
        train.run(config(folder, tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "model.json").exists()


def test_damaged_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"type\.raw"):
        data.read(empty)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    np.save(broken / "set.000" / "energy.npy", np.zeros(7))
    with pytest.raises(InputError, match="frames"):
        data.read(broken)
    (broken / "set.000" / "force.npy").unlink()
    with pytest.raises(InputError, match="force"):
        data.read(broken)
    (tmp_path / "text.extxyz").write_text("nonsense")
    with pytest.raises(InputError):
        data.read(tmp_path / "text.extxyz")


def test_an_output_folder_in_use_is_refused(folder: Path, trained: Path) -> None:
    with pytest.raises(InputError, match="resume"):
        train.run(config(folder, trained))


def test_checkpoints_notice_another_shape(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.npz", {"x": np.zeros(3)}, {"step": 1})
    assert restore(tmp_path / "a.npz", {"x": np.ones(3)})[1] == {"step": 1}
    with pytest.raises(InputError, match="shapes"):
        restore(tmp_path / "a.npz", {"x": np.ones(4)})
    with pytest.raises(InputError, match="no usable"):
        restore(tmp_path / "a.npz", {"y": np.ones(3)})


def test_errors_of_a_stored_frame(folder: Path) -> None:
    """Errors per atom, by hand, with neighbour lists that hold no empty place too many."""
    model = Perovskite((8, 12), cutoff=5.0, radial=4, channels=3, quartic=2, hidden=5)
    params = initialize(model, jax.random.key(0), np.float64)
    params = {k: v + 0.2 * np.random.default_rng(1).normal(size=v.shape) for k, v in params.items()}
    params["wall"] = params["wall"] * 0.0 + 1.0
    params["trusted"] = params["trusted"] * 0.0 + 1.2
    potential = Potential(params, model, "x")
    (found,) = data.read(folder)
    batch = batches.make_batch([found[np.arange(2)]], potential, np.float64)
    assert not batch.frames.neighbors.overflow.any()
    frame = jax.device_put(batch.frame(1))
    errors = deviations(jax.jit(potential.evaluate)(frame.system, frame.neighbors), None, frame)
    atoms = ase.Atoms(numbers=found.numbers, positions=found.positions[1], cell=found.cells[1], pbc=True)
    expected = contract.predict(potential, atoms)
    np.testing.assert_allclose(errors["energy"], expected.energy / 4, rtol=1e-10)
    np.testing.assert_allclose(errors["forces"], expected.forces - found.forces[1], atol=1e-10)
    virial = -expected.stress * atoms.get_volume()
    np.testing.assert_allclose(errors["virial"], (virial - found.virials[1]) / 4, atol=1e-10)


def test_trusted_distances_and_walls() -> None:
    """Of many distances a hundred are shorter than the trusted one, of few one in a thousand; never met: from radii."""
    made = [dataclasses.replace(_as_frames(frames(count, seed=count)), name=str(count)) for count in (10, 400)]
    for some in made:
        rows = data.training_rows([len(some)])
        (found,) = groups.group([some], rows, np.ones(1), Potential({}, Perovskite((8, 12, 20), cutoff=5.0), ""))
        trusted, wall = shortest_distances(found.batches, (8, 12, 20), 5.0)
        lengths = []
        for positions, cell in zip(some.positions, some.cells, strict=True):
            atoms = ase.Atoms(numbers=some.numbers, positions=positions, cell=cell, pbc=True)
            i, j, d = ase.neighborlist.neighbor_list("ijd", atoms, 5.0)
            lengths += d[(atoms.numbers[i] == 8) & (atoms.numbers[j] == 12)].tolist()
        shorter = np.sum(np.array(lengths) < trusted[0, 1] - 1e-4)
        assert shorter == min(100, len(lengths) // 1000) - 1 if len(lengths) >= 1000 else shorter == 0
        np.testing.assert_allclose(wall[0, 1], 0.98 * min(lengths), rtol=1e-5)
        np.testing.assert_allclose(trusted[0, 2], 0.8 * (0.66 + 1.76), rtol=1e-6)
        np.testing.assert_array_equal(trusted, trusted.T)
