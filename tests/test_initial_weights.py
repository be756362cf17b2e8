"""First parameters of models that are trained from nothing: as large as those of the originals, and the statistics."""

from __future__ import annotations

import dataclasses
import fnmatch
import pathlib

import jax
import numpy as np
import pytest
from ase.neighborlist import neighbor_list
from crystals import titanate
from small_fresh import FORCE_SCALE, named, rattled, small_fresh
from small_sevennet import SMALL, stored_state

from converters import chgnet, gptff, m3gnet, mace, sevennet
from converters.mace_files import open_model
from converters.pickles import CheckpointError
from converters.sources import find_checkpoint
from converters.torch_files import read_checkpoint
from jaxpto.models.fresh import fresh_model
from jaxpto.models.mace_initial import ordered_chains
from jaxpto.models.mace_product import symmetric_tensors


def test_rows_of_deeppot_se_are_normalized() -> None:
    """Over all slots, empty ones included: mean 0 and deviation 1, those of the directions in common."""
    potential, samples = small_fresh("deeppot_se", titanate())
    model, params = potential.model, potential.params
    gathered: dict[int, list[np.ndarray]] = {}
    for atoms in rattled(titanate(), len(samples)):  # without jaxpto's neighbour list
        i, vectors, distance = neighbor_list("iDd", atoms, model.cutoff)
        x = np.clip((distance - model.smooth_start) / (model.cutoff - model.smooth_start), 0.0, 1.0)
        s = (1.0 - 10.0 * x**3 + 15.0 * x**4 - 6.0 * x**5) / distance
        rows = np.concatenate([s[:, None], s[:, None] * vectors / distance[:, None]], axis=1)
        for atom, number in enumerate(atoms.numbers.tolist()):
            own = np.zeros((sum(model.sel), 4))
            own[: np.sum(i == atom)] = rows[i == atom]
            gathered.setdefault(model.elements.index(number), []).append(own)
    for kind, parts in gathered.items():
        normalized = (np.concatenate(parts) - params["mean"][kind]) / params["std"][kind]
        np.testing.assert_allclose(normalized[:, 0].mean(), 0.0, atol=1e-5)
        np.testing.assert_allclose(normalized[:, 0].std(), 1.0, atol=1e-5)
        assert (params["mean"][kind, 1:] == 0.0).all()
        np.testing.assert_allclose(np.mean(normalized[:, 1:] ** 2) ** 0.5, 1.0, rtol=1e-3)  # their mean is nearly 0


@pytest.mark.parametrize(("name", "where"), [("sevennet", "after"), ("mace", "mix")])
def test_sums_over_neighbors_are_divided_by_their_mean_number(name: str, where: str) -> None:
    """As ASE counts them."""
    potential, _ = small_fresh(name, titanate())
    structures = rattled(titanate(), 4)
    mean = np.mean([len(neighbor_list("i", atoms, potential.cutoff)) / len(atoms) for atoms in structures])
    undivided = potential.model.initialize(jax.random.key(0), (), FORCE_SCALE)
    for number, layer in potential.params["layers"].items():
        for key, weight in layer[where].items():
            np.testing.assert_allclose(weight, undivided["layers"][number][where][key] / mean, rtol=1e-5)


@pytest.mark.parametrize("name", ["sevennet", "mace", "m3gnet"])
def test_energies_are_in_units_of_the_forces(name: str) -> None:
    potential, _ = small_fresh(name, titanate())
    np.testing.assert_array_equal(potential.params["scale"], np.float32(FORCE_SCALE))
    np.testing.assert_array_equal(potential.params["shift"], 0.0)


def test_sevennet_begins_as_the_original() -> None:
    """Each parameter as large as that of a checkpoint of the original with weights of variance 1, converted."""
    stored = named(sevennet.parameters(stored_state(), SMALL, by_result=False))
    neighbors = 3.0  # of that checkpoint
    own = named(SMALL.initialize(jax.random.key(0), (), 1.0))
    assert stored.keys() == own.keys()
    for name, theirs in stored.items():
        if name.rpartition("/")[2] in ("scale", "shift", "readout"):
            continue
        if name.split("/")[2:3] == ["radial"] and theirs.shape != own[name].shape:
            theirs, mine = np.std(theirs) * np.sqrt(theirs.shape[1]), np.std(own[name]) * np.sqrt(own[name].shape[1])
        else:
            assert theirs.shape == own[name].shape, name
            theirs, mine = np.sqrt(np.mean(theirs**2)), np.sqrt(np.mean(own[name] ** 2))
        mine = mine / neighbors if "/after/" in name else mine
        few = 5.0 / np.sqrt(min(own[name].size, stored[name].size))
        np.testing.assert_allclose(mine, theirs, rtol=few, err_msg=name)


def test_mace_begins_as_the_original(shared: pathlib.Path) -> None:
    """Each parameter as large as in a model that mace-torch drew, apart from those that its makers scaled later."""
    path = shared / "weights/fixtures/mace_mp0b_reduced.model"
    published = mace.convert(find_checkpoint(mace.NAME, path), mace.NAME)
    own = named(dataclasses.replace(published.model, channels=16).initialize(jax.random.key(0), (), 1.0))
    neighbors = open_model(path, read_checkpoint(path)).module("interactions.0").state["avg_num_neighbors"]
    compared = [f"layers/*/{part}/*" for part in ("up", "radial", "couplings", "product")]
    theirs = named(published.params)
    patterns = ("embedding", "layers/0/mix/*", "layers/1/skip/0", *compared)
    names = [name for pattern in patterns for name in fnmatch.filter(own, pattern)]
    assert len(names) == 32
    for name in names:
        size = np.sqrt(np.mean(own[name] ** 2)) / (neighbors if "/mix/" in name else 1.0)
        few = 4.0 / np.sqrt(own[name].size)  # the difference of two deviations, each known to 1 / sqrt(2 n)
        np.testing.assert_allclose(size, np.sqrt(np.mean(theirs[name] ** 2)), rtol=few, err_msg=name)


def test_polynomials_of_mace_begin_as_the_original(shared: pathlib.Path) -> None:
    """The tensors of the original, each with a weight of variance 1 / p^2, in the basis used here."""
    path = shared / "weights/fixtures/mace_mp0b_reduced.model"
    file = open_model(path, read_checkpoint(path))
    for degree in (0, 1):
        for order in (1, 2, 3):
            stored = file.left[f"products.0.symmetric_contractions.contractions.{degree}.U_matrix_{order}"]
            number = stored.shape[-1]
            assert ordered_chains(3, order, degree) == number
            basis = symmetric_tensors(3, order, degree).reshape(-1, stored.size // number)
            overlap = basis @ stored.reshape(-1, number)
            np.testing.assert_allclose(overlap @ overlap.T, (2 * degree + 1) * np.eye(len(basis)), atol=1e-5)
    model = fresh_model("mace", (8, 22, 82), {"channels": "64", "hidden": "1,0"}, ())
    weights = model.initialize(jax.random.key(0), (), 1.0)["layers"]["0"]["polynomials"]
    for degree, numbers in ((0, (23, 4, 1)), (1, (51, 6, 1))):
        rows = [len(symmetric_tensors(3, order, degree)) for order in (3, 2, 1)]
        parts = np.split(weights[str(degree)], np.cumsum(rows)[:-1], axis=1)
        for part, number in zip(parts, numbers, strict=True):
            deviation = np.sqrt(2 * degree + 1) / number
            np.testing.assert_allclose(np.std(part), deviation, rtol=4.0 / np.sqrt(part.size))


@pytest.mark.parametrize(
    ("name", "file", "convert", "sizes"),
    [
        (m3gnet.NAME, "M3GNet-MP-2021.2.8-PES", m3gnet.convert, {"features": 64, "blocks": 3}),
        ("gptff-v2", "gptff_v2.pth", gptff.convert, {"features": 64, "blocks": 3, "attention": True}),
        ("gptff-v1", "gptff_v1.pth", gptff.convert, {"features": 64, "blocks": 3}),
        ("chgnet-0.3.0", "", chgnet.convert, {"features": 64, "layers": 4}),
        (mace.NAME, "fixtures/mace_mp0b_reduced.model", mace.convert, {"channels": 16}),
    ],
)
def test_parameters_are_those_of_the_published_models(name, file, convert, sizes, shared: pathlib.Path) -> None:
    """The same names and shapes, without the last angles of CHGNet, which nothing reads."""
    try:
        published = convert(find_checkpoint(name, shared / "weights" / file if file else None), name)
    except CheckpointError as error:
        pytest.skip(f"no published weights: {error}")
    model = dataclasses.replace(published.model, **sizes)
    own = named(model.initialize(jax.random.key(0), (), 1.0))
    read = {key: leaf for key, leaf in named(published.params).items() if not key.startswith("angle_updates/2")}
    assert {key: leaf.shape for key, leaf in own.items()} == {key: leaf.shape for key, leaf in read.items()}
