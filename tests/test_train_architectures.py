"""The one training loop on architectures of every kind: what is trained, what stays, what is not forgotten."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ase
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from crystals import titanate
from small_fresh import small_fresh

from jaxpto import train
from jaxpto.calculator import JaxptoCalculator
from jaxpto.errors import InputError
from jaxpto.models.catalogue import load_potential
from jaxpto.models.folder import save_potential
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.storage.arrays import read_arrays
from jaxpto.training import batches, data, parametrization, trainer
from jaxpto.training.loss import LossWeights, deviations, loss, squares
from jaxpto.training.replay import labelled_by_model
from jaxpto.training.setup import set_up
from jaxpto.training.steps import make_gradient

EPSILON, SIGMA, CUTOFF = 0.0104, 3.4, 6.0
OFFSET = -7.5  # eV, of an atom in the labels


def argon(count: int, seed: int = 0) -> list[ase.Atoms]:
    """Rattled, strained argon with labels of known parameters, and an offset of the energy."""
    generator = np.random.default_rng(seed)
    calculator = JaxptoCalculator(lennard_jones(["Ar"], [EPSILON], [SIGMA], cutoff=CUTOFF, onset=5.0), "float64")
    images = []
    for _ in range(count):
        atoms = ase.Atoms("Ar4", scaled_positions=[[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
                          cell=[5.3, 5.3, 5.3], pbc=True)  # fmt: skip
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * generator.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.1 * generator.normal(size=(4, 3))
        atoms.calc = calculator
        energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, energy=energy + 4 * OFFSET, forces=forces, stress=stress)
        images.append(atoms)
    return images


def write_titanates(path: Path, count: int, moments: bool = False) -> Path:
    """Rattled cells of five atoms with labels of a made-up harmonic crystal, and moments if they are wanted."""
    generator = np.random.default_rng(1)
    images = []
    for _ in range(count):
        atoms = titanate()
        shift = 0.05 * generator.normal(size=(len(atoms), 3))
        atoms.positions += shift
        results = {"energy": float(2.0 * (shift**2).sum()) - 10.0 * len(atoms), "forces": -4.0 * shift}
        if moments:
            results["magmoms"] = np.abs(shift[:, 0])
        atoms.calc = SinglePointCalculator(atoms, **results)
        images.append(atoms)
    ase.io.write(path, images)
    return path


def config(folder: Path, out: Path, **changes) -> train.TrainConfig:
    return dataclasses.replace(
        train.TrainConfig(data=(folder,), out=out, steps=4, batch=2, validate_every=2, warmup=0), **changes
    )


@pytest.fixture(scope="module")
def titanates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_titanates(tmp_path_factory.mktemp("data") / "harmonic.extxyz", 20)


def saved(architecture: str, folder: Path) -> Path:
    """A small model of an architecture with its first parameters, as a model folder."""
    potential, _ = small_fresh(architecture, titanate())
    save_potential(potential.astype(np.float32), folder)
    return folder


def test_a_model_is_trained_by_its_interface_alone(tmp_path: Path) -> None:
    """Lennard-Jones parameters that are off find back to those of the labels."""
    ase.io.write(tmp_path / "argon.extxyz", argon(40))
    wrong = lennard_jones(["Ar"], [EPSILON * 1.3], [SIGMA * 0.97], cutoff=CUTOFF, onset=5.0)
    save_potential(wrong, tmp_path / "wrong")
    settings = {"steps": 600, "rate": 0.02, "ema": 0.9, "validate_every": 300, "warmup": 10, "clip": 0.0}
    # no weight on energies: it has no energy of an atom to fit
    settings["weights"] = LossWeights(energy=0.0, forces_scale=1e-3, virial_scale=1e-3)
    found = train.run(config(tmp_path / "argon.extxyz", tmp_path / "out", initial=tmp_path / "wrong", **settings))
    np.testing.assert_allclose(found.params["sigma"], SIGMA, rtol=1e-3)
    np.testing.assert_allclose(found.params["epsilon"], EPSILON, rtol=5e-3)
    errors = json.loads((tmp_path / "out" / "model.json").read_text())["training"]["validation_rmse_meV"]["argon"]
    assert errors["forces"] < 0.2
    for name in ("report.html", "learning_curve.png", "learning_curve.csv", "parity.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("chgnet", "m3gnet", "gptff", "mace", "deeppot_se")]


@pytest.mark.parametrize("architecture", ["sevennet", *SLOW])
def test_every_architecture_goes_through_the_loop(architecture: str, titanates: Path, tmp_path: Path) -> None:
    """From its first parameters; constants stay, weights move, errors on held-out frames are those of the file."""
    initial = saved(architecture, tmp_path / "initial")
    found = train.run(config(titanates, tmp_path / "out", initial=initial))
    before = load_potential(initial)
    constant = {name for name in parametrization.names_of(before.params)
                if any(name == pattern for pattern in before.model.constants)}  # fmt: skip
    names = parametrization.names_of(found.params)
    moved = {
        name
        for name, a, b in zip(names, jax.tree.leaves(before.params), jax.tree.leaves(found.params), strict=True)
        if not np.array_equal(a, b)
    }
    assert constant
    assert not constant & moved
    assert len(moved) > 0.5 * len(names)


def test_from_nothing_on_mixed_compositions(titanates: Path, tmp_path: Path) -> None:
    """Cells with other elements and another number of atoms share the steps, each with its reference energies."""
    ase.io.write(tmp_path / "argon.extxyz", argon(20))
    found = train.run(
        config(
            titanates, tmp_path / "out", data=(titanates, tmp_path / "argon.extxyz"), architecture="sevennet",
            hyperparameters=("channels=6/6,4/6", "cutoff=4.0"),
        )
    )  # fmt: skip
    assert found.model.cutoff == 4.0
    header = json.loads((tmp_path / "out" / "model.json").read_text())
    assert header["training"]["validation_rmse_meV"].keys() == {"harmonic", "argon"}
    np.testing.assert_allclose(header["reference_energies_eV"]["Ar"], OFFSET, atol=0.1)
    for changes, words in (
        ({"architecture": "nonsense"}, "unknown architecture"),
        ({"architecture": "sevennet", "hyperparameters": ("colour=3",)}, "no setting colour"),
        ({"architecture": "sevennet", "matrix_rate": 0.1}, "only the architecture perovskite"),
        ({"initial": tmp_path / "out", "architecture": "sevennet"}, "leave out"),
        ({"initial": tmp_path / "out", "freeze": ("colour",)}, "matches no parameter"),
        ({"initial": tmp_path / "out", "lora": 99}, "give a smaller one"),
        ({"replay": (titanates,)}, "name it: `initial`"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            train.run(config(titanates, tmp_path / "other", **changes))
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def sevennet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("sevennet", tmp_path_factory.mktemp("models") / "sevennet")


def test_frozen_parameters_stay(titanates: Path, sevennet: Path, tmp_path: Path) -> None:
    found = train.run(config(titanates, tmp_path / "out", initial=sevennet, freeze=("layers/0/*", "embedding")))
    before, after = load_potential(sevennet).params, found.params
    np.testing.assert_array_equal(after["embedding"], before["embedding"])
    jax.tree.map(np.testing.assert_array_equal, after["layers"]["0"], before["layers"]["0"])
    assert not np.array_equal(after["layers"]["1"]["radial"]["0"], before["layers"]["1"]["radial"]["0"])


def test_low_rank_changes_have_low_rank(titanates: Path, sevennet: Path, tmp_path: Path) -> None:
    found = train.run(config(titanates, tmp_path / "out", initial=sevennet, lora=2, rate=0.01))
    before, after = load_potential(sevennet).params, found.params
    ranks = [
        np.linalg.matrix_rank(np.asarray(b, float) - np.asarray(a, float), tol=1e-6)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        if a.ndim == 2 and min(a.shape) > 2
    ]
    assert max(ranks) == 2


def test_weights_are_trained_in_units_of_their_size() -> None:
    params = {"large": jnp.full((3, 2), -50.0), "small": jnp.array([3e-6, 4e-6]), "zero": jnp.zeros(4)}
    start = parametrization.scaled(params)
    for name in ("large", "small"):
        assert 0.7 < np.sqrt(np.mean(np.square(start.raw[name]))) < 1.42
    jax.tree.map(np.testing.assert_array_equal, start.params, params)


def test_low_rank_begins_at_the_model() -> None:
    params = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 5))), "b": jnp.ones(4)}
    start = parametrization.low_rank(
        parametrization.Parametrization(params, {}, lambda raw, constants: raw), 2, jax.random.key(0)
    )
    jax.tree.map(np.testing.assert_array_equal, start.params, params)
    assert start.raw["a"]["left"].shape == (3, 6, 2)
    assert start.raw["a"]["right"].shape == (3, 2, 5)


def test_an_interrupted_run_of_any_architecture_resumes_bit_for_bit(
    titanates: Path, sevennet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.run(config(titanates, tmp_path / "whole", initial=sevennet, lora=2))
    make_step = trainer.make_step

    def failing(*arguments):
        step, count = make_step(*arguments), 0

        def counted(state, picks):
            nonlocal count
            count += 1
            if count == 4:
                raise KeyboardInterrupt
            return step(state, picks)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_step", failing)
        with pytest.raises(KeyboardInterrupt):
            train.run(config(titanates, tmp_path / "half", initial=sevennet, lora=2))
    resumed = train.run(config(titanates, tmp_path / "half", initial=sevennet, lora=2, resume=True))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_replay_holds_what_the_model_knew(
    titanates: Path, sevennet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Structures without labels get those of the initial model; the drift from it is measured and smaller for it."""
    others = [titanate() for _ in range(20)]
    generator = np.random.default_rng(5)
    for atoms in others:
        atoms.positions += 0.3 * generator.normal(size=(len(atoms), 3))
    ase.io.write(tmp_path / "others.extxyz", others)
    drift = {}
    for share in (0.01, 0.99):
        out = tmp_path / f"out-{share}"
        train.run(
            config(
                titanates, out, initial=sevennet, replay=(tmp_path / "others.extxyz",), replay_share=share, steps=40,
                validate_every=40, rate=3e-3,
            )
        )  # fmt: skip
        said = capsys.readouterr().out
        assert "20 structures for replay, labelled by sevennet" in said
        assert "drift from the initial model" in said
        drift[share] = json.loads((out / "model.json").read_text())["training"]["validation_rmse_meV"]["replay:others"]
    assert drift[0.99]["forces"] < 0.5 * drift[0.01]["forces"]


def test_replay_never_takes_the_place_of_labels(sevennet: Path, tmp_path: Path) -> None:
    """A file of which a frame lost its labels is refused; two files of one name stay apart."""
    model = load_potential(sevennet)
    path = write_titanates(tmp_path / "some.extxyz", 3)
    (tmp_path / "other").mkdir()
    again = write_titanates(tmp_path / "other" / "some.extxyz", 3)
    reference = dict.fromkeys(model.elements, 0.0)
    assert [f.name for f in labelled_by_model((path, again), model, reference)] == ["replay:some", "replay:some-2"]
    images = ase.io.read(path, ":")
    images[1].calc = None
    ase.io.write(path, images)
    with pytest.raises(InputError, match="frame 1 has no energy and no forces"):
        labelled_by_model((path,), model, reference)
    ase.io.write(path, argon(1))
    with pytest.raises(InputError, match="does not know Ar"):
        labelled_by_model((path,), model, reference)


def test_gradient_of_a_stored_frame(titanates: Path, sevennet: Path, tmp_path: Path) -> None:
    """In units of the size of the weights, against a difference of the loss."""
    settings = config(titanates, tmp_path / "out", initial=sevennet)
    task = set_up(settings)
    start = task.parametrization
    gradient = make_gradient(task.model, task.recipe, start.decode, settings.weights, moments=False)
    frame = jax.device_put(task.groups[0].train.frame(3))
    slope, errors = gradient(start.raw, start.constants, frame)
    potential = load_potential(sevennet, np.float64)
    wide = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, frame)

    @jax.jit
    def value(params) -> jax.Array:
        found = deviations(potential.replace(params=params).evaluate(wide.system, wide.neighbors), None, wide)
        return loss(found, wide.labels, settings.weights)

    assert np.isclose(errors[0], value(potential.params), rtol=1e-4)
    names, leaves = parametrization.names_of(potential.params), jax.tree.leaves(potential.params)
    name = "readout"
    step = np.zeros(leaves[names.index(name)].shape)
    step[0] = 1e-4
    moved = [
        potential.params | {name: potential.params[name] + sign * step} for sign in (1, -1)
    ]  # fmt: skip
    expected = (value(moved[0]) - value(moved[1])) / 2e-4
    size = float(potential.params[name][0] / start.raw[name][0])
    np.testing.assert_allclose(slope[name][0], size * expected, rtol=2e-3)


@pytest.mark.slow
def test_magnetic_moments_are_learned_where_they_are_labelled(tmp_path: Path) -> None:
    path = write_titanates(tmp_path / "magnetic.extxyz", 20, moments=True)
    (frames,) = data.read(path)
    assert np.isfinite(frames.moments).all()
    initial = saved("chgnet", tmp_path / "initial")
    out = tmp_path / "out"
    settings = {"steps": 30, "validate_every": 15, "rate": 3e-3}
    weights = LossWeights(energy=0.0, forces=0.0, virial=0.0, moments=1.0)
    train.run(config(path, out, initial=initial, weights=weights, **settings))
    history = read_arrays(out / trainer.CHECKPOINT)[1]["history"]
    first, last = (row["validation"]["magnetic"]["moments"] for row in history)
    assert last < first


def test_missing_labels_count_for_nothing() -> None:
    """Neither in the loss nor in its derivative, and errors without a label are no number."""
    labels = batches.Labels(jnp.float32(1.0), jnp.zeros((2, 3)), jnp.full((3, 3), jnp.nan), jnp.array([0.5, jnp.nan]))
    errors = {
        "energy": jnp.float32(0.1), "forces": jnp.ones((2, 3)), "virial": jnp.full((3, 3), jnp.nan),
        "moments": jnp.array([0.2, jnp.nan]),
    }  # fmt: skip
    alone = {"energy": errors["energy"], "forces": errors["forces"]}
    weights = LossWeights(moments=0.0)
    np.testing.assert_allclose(loss(errors, labels, weights), loss(alone, labels, weights))
    found = np.asarray(squares(errors, labels))
    np.testing.assert_allclose(found[[0, 1, 3]], [0.01, 1.0, 0.04], rtol=1e-6)
    assert np.isnan(found[2])
