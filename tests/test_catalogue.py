"""The catalogue: what is saved comes back bit for bit, by path and by name; damage is found and said in one line."""

import dataclasses
import json
import os
import shutil
from typing import ClassVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxpto.__main__ import main
from jaxpto.errors import InputError
from jaxpto.models import catalogue, manifest
from jaxpto.models import folder as model_folder
from jaxpto.models.catalogue import find_model, list_models, load_potential
from jaxpto.models.folder import read_header, save_potential
from jaxpto.models.lennard_jones import LennardJones, lennard_jones
from jaxpto.models.manifest import Architecture
from jaxpto.potential import Potential
from jaxpto.storage.alone import tree_checkpointer


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


@dataclasses.dataclass(frozen=True)
class Nested:
    """A network of the summed vectors."""

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3

    elements: tuple[int, ...]
    cutoff: float

    def energy(self, params, system, neighbors, vectors):
        first, second = params["layers"]["1"], params["layers"]["2"]
        return (second["weight"] @ (first["weight"] @ vectors.sum(axis=0) + first["bias"]))[0] + params["shift"]


def test_nested_parameters_and_integers(models, monkeypatch):
    layers = {"1": {"weight": np.ones((4, 3)), "bias": np.arange(4)}, "2": {"weight": np.ones((1, 4))}}
    nested = Potential({"layers": layers, "shift": np.float64(2.5)}, Nested((18,), 6.0), "nested")
    monkeypatch.setitem(manifest.architectures(), "nested", Architecture("nested", f"{__name__}:Nested", {}))
    save_potential(nested, models / "nested")
    loaded = load_potential("nested", np.float32).params
    assert np.issubdtype(loaded["layers"]["1"]["bias"].dtype, np.integer)
    assert loaded["layers"]["2"]["weight"].dtype == np.float32
    assert loaded["layers"]["2"]["weight"].shape == (1, 4)
    assert loaded["shift"] == 2.5


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

    monkeypatch.setattr(model_folder.os, "replace", fail_at_the_header)
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


def edit_hyperparameters(**changes):
    def damage(folder):
        header = json.loads((folder / "model.json").read_text())
        edit_header(hyperparameters=header["hyperparameters"] | changes)(folder)

    return damage


def saved_so(params=None, *, version=2, **changes):
    """A folder that somebody wrote so: its digests are right."""

    def damage(folder):
        arrays = jax.tree.map(np.asarray, noble().params) if params is None else params
        header = json.loads((folder / "model.json").read_text()) | changes
        shutil.rmtree(folder / header["params"])
        with tree_checkpointer() as checkpointer:
            checkpointer.save(folder / header["params"], args=ocp.args.PyTreeSave(arrays))
        header["params_digest"] = header["digest"] = model_folder._digest(arrays)
        header["n_parameters"] = sum(np.size(leaf) for leaf in jax.tree.leaves(arrays))
        header["format_version"] = version
        if version == 1:
            del header["params_digest"]
        else:
            header["digest"] = model_folder._header_digest(header)
        (folder / "model.json").write_text(json.dumps(header))

    return damage


PLAIN = {"elements": [18, 36], "cutoff": 6.0, "onset": 5.0, "by_species": False}
EPSILON, SIGMA = np.array([0.0104, 0.0140]), np.array([3.40, 3.65])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_params, "is missing"),
        (truncate_largest_file, "damaged"),
        (swap_params, "digest"),
        (lambda folder: (folder / "model.json").write_text('{"format_version": 1,'), "model.json"),
        (lambda folder: (folder / "model.json").write_text("[]"), "holds no entries"),
        (lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe{}"), "model.json"),
        (lambda folder: (folder / "model.json").write_text("[" * 100_000), "model.json"),
        (edit_header(cutoff=None), "misses cutoff"),
        (edit_header(format_version=99), "format version 99"),
        (edit_header(format_version="2"), "format version 2"),
        (edit_header(format_version=[1]), "format version"),
        (edit_header(architecture="perovskyte"), "perovskyte"),
        (edit_header(architecture=["mace"]), "unknown architecture"),
        (edit_header(hyperparameters={"elements": [18]}), "architecture lennard_jones miss cutoff, onset"),
        (edit_header(hyperparameters=[18, 36]), "hyperparameters"),
        (edit_header(params="../other"), "params is not what jaxpto writes"),
        (edit_header(params=3), "params is not"),
        (edit_header(digest=None), "misses digest"),
        (edit_header(digest=12), "digest is not"),
        (edit_header(cutoff=-6.0), r"cutoff -6\.0 is not a length above 0 and up to 20 A"),
        (edit_header(cutoff="six"), "cutoff 'six'"),
        (edit_header(cutoff=5.5), "cutoff and those of the hyperparameters differ"),
        (edit_header(elements=["Ar", "Xe"]), "elements and those of the hyperparameters differ"),
        (edit_header(elements=7), "elements and those"),
        (edit_header(conservative="false"), "conservative 'false'"),
        (edit_header(units={"energy": "Hartree", "length": "Bohr"}), "units"),
        # plausible, so that only the digest tells
        (edit_hyperparameters(onset=4.0), "was changed after it was saved"),
        (edit_header(reference_energies_eV={"Ar": 1.0}), "was changed after it was saved"),
        # written so: no digest tells
        (saved_so({"epsilon": EPSILON, "sigma": np.array([3.4, np.nan])}), r"sigma holds NaN or infinity \(1 of 2"),
        (saved_so({"epsilon": EPSILON, "sigma": np.array([3.4, np.inf])}, version=1), "sigma holds NaN or infinity"),
        (saved_so({"epsilon": EPSILON * 1e300, "sigma": SIGMA}), "epsilon holds 1.4e.298, which float32 cannot"),
        (saved_so({"epsilon": EPSILON, "sigma": SIGMA[None]}), r"sigma has the shape \(1, 2\)"),
        (saved_so({"epsilon": EPSILON, "sigma": SIGMA[:1]}, version=1), r"sigma has the shape \(1,\)"),
        (saved_so({"epsilon": EPSILON}), "sigma is missing"),
        (saved_so({"epsilon": EPSILON, "sigma": SIGMA, "tau": SIGMA}), "tau does not belong"),
        (saved_so({"epsilon": EPSILON, "sigma": SIGMA * 1j}), "complex128"),
        (saved_so(cutoff=60.0, hyperparameters=PLAIN | {"cutoff": 60.0}), r"cutoff 60\.0"),
        (saved_so(cutoff=-6.0, hyperparameters=PLAIN | {"cutoff": -6.0}, version=1), r"cutoff -6\.0"),
        (saved_so(hyperparameters=PLAIN | {"cutoff": "6"}, version=1), "cutoff = '6' is not float"),
        (saved_so(hyperparameters=PLAIN | {"onset": 7.0}), "onset 7 A"),
        (saved_so(hyperparameters=PLAIN | {"elements": [18, 360]}), "360 is not an atomic number"),
        (saved_so(hyperparameters=PLAIN | {"depth": 3}), "do not include depth"),
        (saved_so(hyperparameters=PLAIN | {"by_species": True}), "by_species = True cannot be; it is False in all"),
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


def test_models_of_format_version_1_load(models):
    save_potential(noble(), models / "noble")
    saved_so(version=1)(models / "noble")
    header = json.loads((models / "noble" / "model.json").read_text())
    assert header["format_version"] == 1
    assert "params_digest" not in header
    loaded = load_potential("noble", np.float64)
    assert loaded.model == noble().model
    np.testing.assert_array_equal(loaded.params["sigma"], SIGMA)
    (info,) = [info for info in list_models() if info.name == "noble"]
    assert not info.problem


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"params": {"epsilon": EPSILON, "sigma": np.array([3.4, np.nan])}}, "sigma holds NaN"),
        ({"params": {"epsilon": EPSILON}}, "sigma is missing"),
        ({"model": LennardJones((18, 36), 60.0, 5.0)}, "cutoff 60"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(models, changes, reason):
    save_potential(noble(), models / "noble")
    before = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    for name in ("noble", "new"):
        with pytest.raises(InputError, match=reason):
            save_potential(noble().replace(**changes), models / name)
    assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before
    assert not (models / "new").exists()


def test_the_same_parameters_are_never_away_while_they_are_saved_again(models, monkeypatch):
    """Other hyperparameters with the same parameters: whenever that is cut off, there is a model."""
    save_potential(noble(), models / "noble")
    replace = os.replace

    def only_the_header(source, target):
        if str(target).startswith(str(models)) and not str(target).endswith("model.json"):
            raise OSError("power cut")
        assert load_potential(models / "noble").cutoff == 6.0
        replace(source, target)

    monkeypatch.setattr(model_folder.os, "replace", only_the_header)
    save_potential(noble().replace(model=LennardJones((18, 36), 6.5, 5.0)), models / "noble")
    assert load_potential(models / "noble").cutoff == 6.5


def test_damaged_parameters_are_replaced_by_a_save(models):
    save_potential(noble(), models / "noble")
    truncate_largest_file(models / "noble")
    save_potential(noble(), models / "noble")
    np.testing.assert_array_equal(load_potential("noble", np.float64).params["sigma"], SIGMA)


def test_unknown_model_lists_the_known_ones(models):
    save_potential(noble(), models / "noble")
    with pytest.raises(InputError, match=r"'nobel'; did you mean noble\? known models: .*noble"):
        load_potential("nobel")
    (models / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no model\.json"):
        find_model(models / "empty")


def test_list_shows_damaged_models_too(models, capsys):
    save_potential(noble(), models / "noble")
    for name in ("broken", "edited", "empty", "nan"):
        save_potential(noble(), models / name)
    (models / "broken" / "model.json").write_text("")
    edit_hyperparameters(onset=4.0)(models / "edited")
    remove_params(models / "empty")
    found = {info.name: info for info in list_models()}
    assert found["noble"].header["elements"] == ["Ar", "Kr"]
    assert not found["noble"].problem
    assert "damaged" in found["broken"].problem
    assert "was changed after it was saved" in found["edited"].problem
    assert "is missing" in found["empty"].problem
    saved_so({"epsilon": EPSILON, "sigma": np.array([3.4, np.nan])})(models / "nan")
    assert not found["nan"].problem  # the list does not read the parameters, the overview does
    main()
    printed = " ".join(capsys.readouterr().out.split())
    assert found["edited"].problem in printed
    assert "sigma holds NaN" in printed
    assert "Ar Kr" in printed


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
    assert "perovskite" in {info.name for info in shipped}
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
