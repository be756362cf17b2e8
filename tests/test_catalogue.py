"""The catalogue: what is saved comes back bit for bit, by path and by name; damage is found and said in one line."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from jaxpto import catalogue
from jaxpto.catalogue import find_model, list_models, load_potential, read_header, save_potential
from jaxpto.errors import InputError
from jaxpto.models.lennard_jones import LennardJones, lennard_jones


def noble(scale=1.0):
    return lennard_jones(["Ar", "Kr"], [0.0104 * scale, 0.0140], [3.40, 3.65], cutoff=6.0, onset=5.0, dtype=np.float64)


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_saved_model_comes_back_bit_for_bit(models):
    saved = noble()
    save_potential(saved, models / "noble", {"licence": "CC0-1.0", "errors": {"force": 0.1}})
    by_name, by_path = load_potential("noble", np.float64), load_potential(models / "noble", np.float64)
    for loaded in (by_name, by_path):
        assert loaded.name == "noble"
        assert loaded.conservative
        assert loaded.model == saved.model
        assert hash(loaded.model) == hash(saved.model)
        for key, value in saved.params.items():
            assert loaded.params[key].dtype == np.float64
            np.testing.assert_array_equal(loaded.params[key], value)
    single = load_potential("noble", np.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(single.params)} == {np.dtype(np.float32)}


def test_header_can_be_read_by_people(models):
    save_potential(noble(), models / "noble", {"licence": "CC0-1.0", "errors": {"force": 0.1}})
    header = json.loads((models / "noble" / "model.json").read_text())
    assert header["architecture"] == "lennard_jones"
    assert header["elements"] == ["Ar", "Kr"]
    assert header["cutoff"] == 6.0
    assert header["n_parameters"] == 4
    assert header["conservative"] is True
    assert header["units"] == {"energy": "eV", "length": "Angstrom"}
    assert header["licence"] == "CC0-1.0"
    assert header["errors"] == {"force": 0.1}
    with pytest.raises(ValueError, match="digest"):
        save_potential(noble(), models / "noble", {"digest": "mine"})


def test_a_model_says_nothing_of_the_machine_it_was_saved_on(models):
    save_potential(noble(), models / "noble")
    files = [path for path in (models / "noble").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path.name for path in files if str(models).encode() in path.read_bytes()]


def test_nested_parameters_and_integers(models):
    nested = noble().replace(params={"a": {"b": np.arange(3), "c": np.ones((2, 1))}, "d": np.float64(2.5)})
    save_potential(nested, models / "nested")
    loaded = load_potential("nested", np.float32).params
    assert np.issubdtype(loaded["a"]["b"].dtype, np.integer)
    assert loaded["a"]["c"].dtype == np.float32
    assert loaded["a"]["c"].shape == (2, 1)
    assert loaded["d"] == 2.5


def test_replacing_a_model_keeps_its_card(models):
    save_potential(noble(), models / "noble")
    (models / "noble" / "README.md").write_text("card")
    save_potential(noble(2.0), models / "noble")
    assert float(load_potential("noble").params["epsilon"][0]) == np.float32(0.0208)
    assert (models / "noble" / "README.md").read_text() == "card"
    assert len(list((models / "noble").glob("params-*"))) == 1
    assert not list((models / "noble").glob(".saving*"))


def test_interrupted_save_leaves_the_old_model(models, monkeypatch):
    save_potential(noble(), models / "noble")
    replace = os.replace

    def fail_at_the_header(source, target):
        if str(target).endswith("model.json"):
            raise OSError("power cut")
        replace(source, target)

    monkeypatch.setattr(catalogue.os, "replace", fail_at_the_header)
    with pytest.raises(OSError, match="power cut"):
        save_potential(noble(2.0), models / "noble")
    monkeypatch.undo()
    assert float(load_potential(models / "noble").params["epsilon"][0]) == np.float32(0.0104)


def remove_params(folder):
    shutil.rmtree(next(folder.glob("params-*")))


def truncate_largest_file(folder):
    largest = max((p for p in next(folder.glob("params-*")).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def swap_params(folder):
    save_potential(noble(3.0), folder.parent / "other")
    target = next(folder.glob("params-*"))
    shutil.rmtree(target)
    shutil.copytree(next((folder.parent / "other").glob("params-*")), target)


def edit_header(**changes):
    def damage(folder):
        header = json.loads((folder / "model.json").read_text()) | changes
        (folder / "model.json").write_text(json.dumps({k: v for k, v in header.items() if v is not None}))

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_params, "is missing"),
        (truncate_largest_file, "damaged"),
        (swap_params, "digest"),
        (lambda folder: (folder / "model.json").write_text('{"format_version": 1,'), "model.json"),
        (lambda folder: (folder / "model.json").write_text("[]"), "misses"),
        (edit_header(cutoff=None), "misses cutoff"),
        (edit_header(format_version=99), "format version 99"),
        (edit_header(architecture="perovskyte"), "perovskyte"),
        (edit_header(hyperparameters={"elements": [18]}), "architecture lennard_jones"),
    ],
)
def test_damaged_folder_is_one_line(models, damage, reason):
    save_potential(noble(), models / "noble")
    damage(models / "noble")
    with pytest.raises(InputError, match=reason) as caught:
        load_potential("noble")
    assert "\n" not in str(caught.value)
    assert str(models / "noble") in str(caught.value)
    assert "; " in str(caught.value)  # the remedy


def test_unknown_model_lists_the_known_ones(models):
    save_potential(noble(), models / "noble")
    with pytest.raises(InputError, match=r"'nobel'; did you mean noble\? known models: .*noble"):
        load_potential("nobel")
    (models / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no model\.json"):
        find_model(models / "empty")


def test_list_shows_damaged_models_too(models):
    save_potential(noble(), models / "noble")
    save_potential(noble(), models / "broken")
    (models / "broken" / "model.json").write_text("")
    found = {info.name: info for info in list_models()}
    assert found["noble"].header["elements"] == ["Ar", "Kr"]
    assert not found["noble"].problem
    assert "damaged" in found["broken"].problem


def test_double_precision_needs_the_64_bit_mode(models):
    save_potential(noble(), models / "noble")
    with jax.enable_x64(False), pytest.raises(InputError, match="jax_enable_x64"):
        load_potential("noble", np.float64)


def test_loading_is_quiet(models, capfd):
    save_potential(noble(), models / "noble")
    load_potential("noble")
    assert capfd.readouterr() == ("", "")


def test_shipped_models_load():
    shipped = [info for info in list_models() if info.folder.parent == catalogue.SHIPPED]
    if not shipped:
        pytest.skip("no model ships with this checkout yet")
    for info in shipped:
        potential = load_potential(info.name)
        assert not info.problem
        assert sum(leaf.size for leaf in jax.tree.leaves(potential.params)) == read_header(info.folder)["n_parameters"]


def test_perovskite_comes_back(models):
    from jaxpto.models.perovskite import Perovskite, initialize

    model = Perovskite(elements=(82, 22, 8))
    shapes = jax.eval_shape(lambda key: initialize(model, key, np.float32), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    saved = noble().replace(model=model, params=params)
    save_potential(saved, models / "small")
    loaded = load_potential("small")
    assert loaded.model == model
    jax.tree.map(np.testing.assert_array_equal, loaded.params, saved.params)


def test_lennard_jones_refuses_bad_parameters():
    with pytest.raises(InputError, match="onset"):
        lennard_jones(["Ar"], [0.01], [3.4], cutoff=5.0, onset=6.0)
    with pytest.raises(InputError, match="1 elements, 2 epsilon"):
        lennard_jones(["Ar"], [0.01, 0.02], [3.4], cutoff=6.0, onset=5.0)
    assert LennardJones((18,), 6.0, 5.0) == LennardJones((18,), 6.0, 5.0)
