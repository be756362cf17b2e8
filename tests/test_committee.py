"""Committees in training: members that differ, each trained as if alone, stored whole, and calibrated."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import ase
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import TINY, frames, write_deepmd
from test_train_architectures import CUTOFF, EPSILON, SIGMA, argon

from jaxpto import train
from jaxpto.calculator import JaxptoCalculator
from jaxpto.devices.sequential import over_members
from jaxpto.errors import InputError
from jaxpto.models import folder as model_folder
from jaxpto.models.catalogue import load_potential
from jaxpto.models.committee import Committee, force_deviation, load_committee, save_committee
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.storage.arrays import read_arrays
from jaxpto.training import trainer
from jaxpto.training.calibration import scale_of
from jaxpto.training.committee import frame_counts, member_of
from jaxpto.training.frames import held_out_rows
from jaxpto.training.setup import Task, set_up
from jaxpto.training.steps import begin, make_gradient

pytestmark = pytest.mark.simulation

LENNARD_JONES = ("epsilon", "sigma")


@pytest.fixture(scope="module")
def oxide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "MgO-300K"
    write_deepmd(path, frames(40))
    return path


@pytest.fixture(scope="module")
def noble(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Labelled argon, and a model whose parameters are off."""
    place = tmp_path_factory.mktemp("noble")
    ase.io.write(place / "argon.extxyz", argon(40))
    save_potential(lennard_jones(["Ar"], [EPSILON * 1.3], [SIGMA * 0.97], cutoff=CUTOFF, onset=5.0), place / "wrong")
    return place / "argon.extxyz", place / "wrong"


def fresh(oxide: Path, out: Path, **changes: Any) -> train.TrainConfig:
    base = train.TrainConfig(data=(oxide,), out=out, steps=6, validate_every=6, hyperparameters=TINY, committee=3)
    return dataclasses.replace(base, **changes)


def tuned(noble: tuple[Path, Path], out: Path, **changes: Any) -> train.TrainConfig:
    base = train.TrainConfig(
        data=(noble[0],), initial=noble[1], out=out, steps=40, batch=2, validate_every=20, warmup=0, rate=0.02,
        committee=3,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def trained(noble: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "argon"
    train.run(tuned(noble, out))
    return out


def committee_in(folder: Path) -> Committee:
    found = load_committee(folder)
    assert found is not None
    return found


def test_members_begin_differently_and_the_first_as_the_model(oxide: Path, tmp_path: Path) -> None:
    """From nothing: the first has the weights of a training without committee, the others their own."""
    whole, single = set_up(fresh(oxide, tmp_path)), set_up(fresh(oxide, tmp_path, committee=1))
    start = whole.parametrization
    for name in ("raw", "constants"):
        first, only = (getattr(one, name) for one in (start, single.parametrization))
        for one, other in zip(jax.tree.leaves(member_of(first, 0)), jax.tree.leaves(only), strict=True):
            np.testing.assert_array_equal(one, other)
    for name in ("mix", "weight1", "weight2"):
        one = np.asarray(start.raw[name])
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert np.abs(one[a] - one[b]).mean() > 0.5 * np.abs(one[0]).mean(), name
    assert (single.members, single.counts) == (1, None)


def test_a_training_without_committee_knows_no_members(noble: tuple[Path, Path], trained: Path, tmp_path: Path) -> None:
    """Its folder, header and checkpoint; the first member of a committee ends where it does, the others elsewhere."""
    single = train.run(tuned(noble, tmp_path / "alone", committee=1))
    whole = committee_in(trained)
    jax.tree.map(np.testing.assert_array_equal, load_potential(trained).params, whole.member(0).params)
    for name in LENNARD_JONES:
        np.testing.assert_allclose(np.ravel(whole.params[name])[0], single.params[name][0], rtol=1e-4)
        assert len(np.unique(whole.params[name])) == 3
    assert not (tmp_path / "alone" / "committee").exists()
    header = json.loads((tmp_path / "alone" / "model.json").read_text())
    assert "committee" not in header
    assert "committee" not in header["training"]["config"]
    arrays = [read_arrays(folder / trainer.CHECKPOINT)[0] for folder in (tmp_path / "alone", trained)]
    assert arrays[0].keys() == arrays[1].keys()
    for name, array in arrays[0].items():
        assert arrays[1][name].shape == (3, *array.shape), name


def alone(task: Task, member: int) -> Task:
    """The training of one member by itself."""
    start = task.parametrization
    start = dataclasses.replace(start, raw=member_of(start.raw, member), constants=member_of(start.constants, member))
    return dataclasses.replace(task, members=1, counts=None, parametrization=start)


def test_each_member_is_trained_as_if_alone(noble: tuple[Path, Path], tmp_path: Path) -> None:
    """Weights, averages and running errors after some steps with clipping, where every frame counts once."""
    config = tuned(noble, tmp_path, clip=0.5)
    task = set_up(config)
    task = dataclasses.replace(task, counts=tuple(np.ones_like(one) for one in task.counts or ()))
    optimizer = task.recipe.optimizer(task.parametrization.raw, task.settled.rates)
    drawn, devices = trainer.DrawnFrames(task, 0), train.training_devices()
    state = begin(task.parametrization.raw, optimizer, members=3)
    take = trainer.make_step(config, task, devices)
    for step in range(5):
        state = take(state, drawn.of_step(step))
    own = alone(task, 0)
    take_one = trainer.make_step(config, own, devices)
    for member in (0, 2):
        single = begin(alone(task, member).parametrization.raw, optimizer)
        for step in range(5):
            single = take_one(single, drawn.of_step(step))
        for mine, other in ((single.raw, state.raw), (single.average, state.average), (single.recent, state.recent)):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mine, member_of(other, member))


def assert_members_alike(single: Any, start: Any) -> None:
    """A function of weights and constants of all members at once, as an accelerator takes them, and of each alone."""
    found = jax.jit(over_members(single, "gpu"))(start.raw, start.constants)
    for member in range(3):
        expected = single(member_of(start.raw, member), member_of(start.constants, member))
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(member_of(found, member)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(np.nan_to_num(a)).max()))


def test_side_by_side_is_one_after_another(noble: tuple[Path, Path], tmp_path: Path) -> None:
    task = set_up(tuned(noble, tmp_path))
    start, frame = task.parametrization, jax.device_put(task.groups[0].train.frame(3))
    gradient = make_gradient(task.model, task.recipe, start.decode, task.weights, moments=False)
    assert_members_alike(lambda raw, constants: gradient(raw, constants, frame), start)


def test_whitened_weights_have_derivatives_side_by_side(oxide: Path, tmp_path: Path) -> None:
    """XLA broke on the products over two axes of elements and one of members, of the elements that a frame has."""
    task = set_up(fresh(oxide, tmp_path))
    part, decode = task.recipe.part(task.model, (8, 12)), task.parametrization.decode

    @jax.jit
    def slope(raw: Any, constants: Any) -> Any:
        own = part.take(constants)
        return jax.grad(lambda raw: sum((leaf**2).sum() for leaf in jax.tree.leaves(decode(raw, own))))(part.take(raw))

    assert_members_alike(slope, task.parametrization)


def test_frames_count_differently_for_each_member(noble: tuple[Path, Path], tmp_path: Path) -> None:
    """Exponential weights of mean 1; they stay when other frames come or go, and are part of the gradient."""
    config = tuned(noble, tmp_path)
    task = set_up(config)
    batch = task.groups[0].train
    counts = frame_counts(batch, 200, seed=0)
    assert (counts[:, 0] == 1.0).all()
    rest = counts[:, 1:]
    assert abs(rest.mean() - 1.0) < 0.05
    assert abs(rest.std() - 1.0) < 0.05
    np.testing.assert_array_equal(frame_counts(batch[np.array([5, 9])], 200, 0), counts[[5, 9]])
    np.testing.assert_array_equal(frame_counts(batch, 4, 0), counts[:, :4])
    assert not np.array_equal(frame_counts(batch, 4, 1)[:, 1:], counts[:, 1:4])
    assert task.counts is not None
    np.testing.assert_array_equal(task.counts[0], counts[:, :3])

    silent = dataclasses.replace(task, counts=(task.counts[0] * np.array([1, 0, 1], np.float32)[None],))
    optimizer = task.recipe.optimizer(task.parametrization.raw, task.settled.rates)
    take = trainer.make_step(config, silent, train.training_devices())
    moved = _moments(take(begin(task.parametrization.raw, optimizer, members=3), [(0, 4), (0, 7)]))
    assert moved[1] == 0.0
    assert moved[0] > 0.0
    assert moved[2] > 0.0


def _moments(state: Any) -> np.ndarray:
    """[m] size of all that the optimizer keeps of a member, without its counters."""
    leaves = [leaf for leaf in jax.tree.leaves(state.moments) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return np.sum([np.abs(np.asarray(leaf)).reshape(3, -1).sum(axis=1) for leaf in leaves], axis=0)


def test_a_killed_training_ends_with_the_same_members(
    noble: tuple[Path, Path], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_step, count = trainer.make_step, 0

    def make_interrupting(*arguments):
        step = make_step(*arguments)

        def counted(*state_and_frames):
            nonlocal count
            count += 1
            after = step(*state_and_frames)
            if count == 27:
                signal.raise_signal(signal.SIGINT)
            return after

        return counted

    monkeypatch.setattr(trainer, "make_step", make_interrupting)
    with pytest.raises(KeyboardInterrupt):
        train.run(tuned(noble, tmp_path / "again"))
    monkeypatch.undo()
    with pytest.raises(InputError, match="committee was 3, now 2"):
        train.run(tuned(noble, tmp_path / "again", committee=2, resume=True))
    train.run(tuned(noble, tmp_path / "again", resume=True))
    ours, theirs = committee_in(tmp_path / "again"), committee_in(trained)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert ours.calibration == theirs.calibration


def by_hand(folder: Path, place: Path, images: list[ase.Atoms]) -> np.ndarray:
    """Forces [f, m, n, 3] of the members, each saved as a model of its own and used through ASE."""
    committee, found = committee_in(folder), []
    for number in range(committee.members):
        save_potential(committee.member(number), place / str(number))
        calculator = JaxptoCalculator(load_potential(place / str(number), np.float64), "float64")
        found.append([calculator.get_forces(atoms) for atoms in images])
    return np.swapaxes(np.array(found), 0, 1)


def test_the_calibration_is_that_of_the_held_out_frames(trained: Path, tmp_path: Path) -> None:
    images = argon(40)
    labels = np.array([atoms.get_forces() for atoms in images])
    forces = by_hand(trained, tmp_path, images)
    mean = forces.mean(axis=1, keepdims=True)
    deviation = np.sqrt((np.linalg.norm(forces - mean, axis=3) ** 2).mean(axis=1))  # [f, n]
    error = np.linalg.norm(forces[:, 0] - labels, axis=2)
    held_out = held_out_rows(40)[1]
    found = committee_in(trained).calibration
    assert found is not None
    assert found.frames == len(held_out) == 4
    assert found.largest is not None
    assert found.rms is not None
    assert found.largest_deviation_of_training == pytest.approx(deviation.max(), rel=1e-3)
    largest = np.sqrt((error.max(axis=1)[held_out] ** 2).mean() / (deviation.max(axis=1)[held_out] ** 2).mean())
    assert found.largest.factor == pytest.approx(largest, rel=1e-2)
    rms = np.sqrt((error[held_out] ** 2).mean() / (deviation[held_out] ** 2).mean())
    assert found.rms.factor == pytest.approx(rms, rel=1e-2)
    for name in ("force_deviation.png", "report.html"):
        assert (trained / name).stat().st_size > 0
    assert "committee" in json.loads((trained / "learning_curve.json").read_text())


def test_bins_of_a_calibration() -> None:
    """Equally many frames in each, in order of the deviation; a few frames make one bin, none no scale."""
    deviations = np.array([4.0, 1.0, 3.0, 2.0, 8.0, 7.0, 6.0, 5.0])
    found = scale_of(deviations, 2.0 * deviations)
    assert found is not None
    assert found.factor == pytest.approx(2.0)
    low, high = np.sqrt(7.5), np.sqrt(174 / 4)
    np.testing.assert_allclose(found.bins, [(low, 2 * low, 4), (high, 2 * high, 4)])
    few = scale_of(deviations[:3], deviations[:3])
    assert few is not None
    assert len(few.bins) == 1
    assert scale_of(np.zeros(0), np.zeros(0)) is None


def test_deviation_of_forces() -> None:
    forces = np.random.default_rng(0).normal(size=(5, 7, 3))
    expected = [np.sqrt(np.mean([np.sum((f[i] - forces[:, i].mean(0)) ** 2) for f in forces])) for i in range(7)]
    np.testing.assert_allclose(force_deviation(jnp.asarray(forces)), expected, rtol=1e-6)


def test_a_committee_goes_on_where_it_was(noble: tuple[Path, Path], trained: Path, tmp_path: Path) -> None:
    """With rates near zero every member keeps its weights; those that are new begin near the model, each elsewhere."""
    slow = {"initial": trained, "steps": 2, "validate_every": 2, "rate": 1e-12}
    train.run(tuned(noble, tmp_path / "more", committee=5, **slow))
    before, after = committee_in(trained), committee_in(tmp_path / "more")
    for name in LENNARD_JONES:
        was, now = np.ravel(before.params[name]), np.ravel(after.params[name])
        np.testing.assert_allclose(now[:3], was, rtol=1e-5)
        assert len(np.unique(was)) == 3
        for new in now[3:]:
            assert 1e-5 < abs(new / was[0] - 1.0) < 0.06
        assert now[3] != now[4]


def stored(value: float) -> Committee:
    """Three members whose parameters are known."""
    params = {"epsilon": np.full((3, 1), value), "sigma": np.array([3.3, 3.4, 3.5])[:, None]}
    model = lennard_jones(["Ar"], [0.01], [3.4], cutoff=CUTOFF, onset=5.0).model
    return Committee(params, model, "stored")


@pytest.mark.parametrize("last", ["model.json", "committee/params", "params-"])
def test_a_save_that_is_killed_leaves_the_old_committee(
    last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the power is cut; the next save then works, and nothing of the old one or of the attempt is left."""
    folder, replace = tmp_path / "argon", os.replace
    save_committee(stored(0.01), folder)

    def cut(source: Any, target: Any) -> None:
        if last in str(target).removeprefix(str(tmp_path)):
            raise OSError("power cut")
        replace(source, target)

    monkeypatch.setattr(model_folder.os, "replace", cut)
    with pytest.raises(OSError, match="power cut"):
        save_committee(stored(0.02), folder)
    monkeypatch.undo()
    assert np.unique(committee_in(folder).params["epsilon"]) == pytest.approx(0.01)
    save_committee(stored(0.02), folder)
    assert np.unique(committee_in(folder).params["epsilon"]) == pytest.approx(0.02)
    assert len(list(folder.rglob("params-*"))) == 2
    assert not list(folder.glob(".saving*"))
    save_potential(stored(0.03).member(0), folder)
    assert load_committee(folder) is None
    assert not (folder / "committee").exists()


def test_a_damaged_committee_is_refused_and_the_model_is_not(tmp_path: Path) -> None:
    save_committee(stored(0.01), tmp_path / "argon")
    header = tmp_path / "argon" / "model.json"
    (others,) = (tmp_path / "argon" / "committee").glob("params-*")
    others.rename(others.with_name("elsewhere"))
    with pytest.raises(InputError, match=r"committee/params-\w+ is missing"):
        load_committee(tmp_path / "argon")
    load_potential(tmp_path / "argon")
    others.with_name("elsewhere").rename(others)
    save_committee(stored(0.02), tmp_path / "other")
    (theirs,) = (tmp_path / "other" / "committee").glob("params-*")
    for path in theirs.rglob("*"):
        if path.is_file():
            (others / path.relative_to(theirs)).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="damaged"):
        load_committee(tmp_path / "argon")
    content = json.loads(header.read_text())
    content["committee"]["members"] = 4
    header.write_text(json.dumps(content))
    with pytest.raises(InputError, match="changed after it was saved"):
        load_potential(tmp_path / "argon")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"committee": 0}, "committee = 0"), ({"committee": 2, "match": ("volume@10K=30",)}, "tunes one model")],
)
def test_settings_that_cannot_be(changes: dict[str, Any], words: str, noble: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        train.run(tuned(noble, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
