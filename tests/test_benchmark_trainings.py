"""What benchmarks of training ask of `python -m jaxpto.train`, and how they put rows and labels together."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import tyro

from benchmarks import fine_tuning, scaling_law
from benchmarks.scaling_law_figure import spread
from benchmarks.trainings import Start, Training
from jaxpto.training.config import TrainConfig
from jaxpto.training.frames import training_rows


def config_of(training: Training) -> TrainConfig:
    """The settings that the command of a training means."""
    module, *options = training.command
    assert module == "jaxpto.train"
    return tyro.cli(TrainConfig, args=options)


def test_a_training_is_what_its_command_says() -> None:
    tuned = config_of(
        Training(Start("7net-0"), Path("runs/x"), 300, 2e-3, 2, lora=4, frames=16, data=(Path("a"), Path("b")))
    )
    expected = TrainConfig(
        (Path("a"), Path("b")), Path("runs/x"), Path("7net-0"), frames=16, steps=300, batch=2, rate=2e-3, lora=4,
        validate_every=75, resume=True,
    )  # fmt: skip
    assert tuned == expected
    shares = config_of(Training(Start("7net-0"), Path("x"), 300, shares=("PT-*=0.4", "ST-*=0.1"), validations=2))
    assert (shares.shares, shares.validate_every) == (("PT-*=0.4", "ST-*=0.1"), 150)
    fresh = config_of(Training(Start(architecture="mace", hyperparameters=("channels=8", "hidden=1,0")), Path("x"), 3))
    assert (fresh.initial, fresh.architecture, fresh.hyperparameters) == (None, "mace", ("channels=8", "hidden=1,0"))
    assert (fresh.batch, fresh.rate, fresh.frames, fresh.validate_every) == (None, None, 0, 1)


def test_rows_of_fine_tuning() -> None:
    config = fine_tuning.FineTuning(("7net-0",), "mace", ("channels=8",))
    assert fine_tuning.starts_of(config) == {
        "7net-0": Start("7net-0"),
        "mace from nothing": Start(architecture="mace", hyperparameters=("channels=8",)),
    }
    wider = dataclasses.replace(config, on="ten compositions")
    assert list(fine_tuning.starts_of(wider)) == ["7net-0 on ten compositions", "mace from nothing on ten compositions"]
    with pytest.raises(SystemExit, match="nothing to train"):
        fine_tuning.starts_of(fine_tuning.FineTuning())


def test_every_variant_is_a_training() -> None:
    for name, variant in scaling_law.VARIANTS.items():
        some = config_of(variant.training(Path("x"), 64))
        whole = config_of(variant.training(Path("x"), scaling_law.ALL))
        assert (some.frames, whole.frames) == (64, 0)
        assert (some.initial is None) == name.endswith("from nothing") == (some.architecture is not None)
        assert (some.lora > 0) == name.endswith("low-rank")


def test_all_frames_are_those_that_are_not_held_out() -> None:
    """264, 264 and 218 frames at 300, 450 and 900 K."""
    assert sum(map(len, training_rows([264, 264, 218]))) == scaling_law.ALL


def test_what_is_wanted() -> None:
    variants = ("perovskite from nothing", "chgnet low-rank")
    assert scaling_law.wanted(variants, (672, 16)) == [
        (variants[0], 672), (variants[0], 16), (variants[1], 672), (variants[1], 16),
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="unknown variant 'perovskit'"):
        scaling_law.wanted(("perovskit",), (16,))
    for bad in (0, 673):
        with pytest.raises(SystemExit, match="between 1 and 672"):
            scaling_law.wanted(variants, (bad,))


def test_mean_error() -> None:
    assert scaling_law.rms({"a": {"forces": 3.0}, "b": {"forces": 4.0}}, "forces") == round(math.sqrt(12.5), 3)


def test_labels_are_apart_in_their_order() -> None:
    found = spread([0.5, 0.52, 0.1, 0.51], 0.05)
    assert np.all(np.diff(np.sort(found)) > 0.05 - 1e-3)
    assert np.argsort(found).tolist() == [2, 0, 3, 1]
    np.testing.assert_allclose(np.mean([found[0], found[1], found[3]]), 0.51, atol=1e-6)
    assert spread([0.1, 0.9], 0.05) == [0.1, 0.9]
