"""Parameter gradients of a loss of energy, forces and stress against the original programs' own autograd, in float64.

benchmarks/results/loss_gradients.json, which `benchmarks.loss_gradients` wrote, holds for each tensor of an original
the inner product of its gradient with a fixed direction. The converters map tensors to parameters, so that they map the
direction as well, and the same number must come out here. They are linear in each tensor, but for a divisor.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters import chgnet, mace, sevennet
from converters.mace_files import open_model
from converters.pickles import CheckpointError
from converters.sources import Checkpoint, find_checkpoint, sha256_of
from converters.torch_files import read_checkpoint
from jaxpto import neighbors
from jaxpto.models.equivariant import wigner_3j
from jaxpto.potential import Potential
from jaxpto.system import from_ase

RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks" / "results" / "loss_gradients.json"
MACE_FILE = "mace_mp0b_reduced.model"
STEP = 1e-3
Converter = Callable[[dict[str, np.ndarray]], Any]


def stored(name: str) -> dict[str, Any]:
    return json.loads(RESULTS.read_text())["models"][name]


def published(name: str, chosen: pathlib.Path | None = None) -> Checkpoint:
    try:
        return find_checkpoint(name, chosen)
    except CheckpointError as error:
        pytest.skip(f"no published weights: {error}")


def in_double(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.array(array, np.float64) for name, array in tensors.items()}


def of_chgnet(shared: pathlib.Path) -> tuple[Potential, dict[str, np.ndarray], Converter]:
    """The potential; the original's tensors; and how they become parameters."""
    checkpoint = published("chgnet-0.3.0")
    (path,) = checkpoint.paths.values()
    state = in_double(read_checkpoint(path)["model"]["state_dict"])
    return chgnet.convert(checkpoint, "chgnet"), state, chgnet.parameters


def of_sevennet(shared: pathlib.Path) -> tuple[Potential, dict[str, np.ndarray], Converter]:
    """As sevenn 0.13 loads the old checkpoint: with weights ordered by result, and 3j symbols of today's e3nn."""
    checkpoint = published("7net-0")
    (path,) = checkpoint.paths.values()
    potential = sevennet.convert(checkpoint, "7net-0")
    state = in_double(read_checkpoint(path)["model_state_dict"])
    for name in state:
        if "_w3j_" in name:
            state[name] = wigner_3j(*map(int, name.split("_")[-3:]))
    return potential, state, lambda state: sevennet.parameters(state, potential.model, by_result=True)


def of_mace(shared: pathlib.Path) -> tuple[Potential, dict[str, np.ndarray], Converter]:
    path = shared / "weights" / "fixtures" / MACE_FILE
    assert sha256_of(path) == stored(f"mace:{MACE_FILE}")["sha256"]
    file = open_model(path, read_checkpoint(path))

    def convert(tensors: dict[str, np.ndarray]) -> Any:
        changed = dataclasses.replace(file, left=dict(tensors))
        return mace.parameters(changed, mace.hyperparameters(changed))

    return mace.convert(published(mace.NAME, path), "mace"), dict(file.left), convert


def evaluated(potential: Potential, frame: dict[str, Any]) -> tuple[dict[str, float], Any]:
    """Terms of the loss, and its gradient in the parameters."""
    structure, labels, scales = frame["structure"], frame["labels"], frame["scales"]
    atoms = ase.Atoms(structure["numbers"], positions=structure["positions_A"], cell=structure["cell_A"], pbc=True)
    system = from_ase(atoms, np.float64)
    found = neighbors.build(system, potential.allocate([system], 0.0))
    forces, stress = np.asarray(labels["forces_eV_per_A"]), np.asarray(labels["stress_eV_per_A3"])

    def loss(params: Any, found: neighbors.Neighbors) -> tuple[jax.Array, dict[str, jax.Array]]:
        prediction = potential.replace(params=params).evaluate(system, found)
        per_atom = (prediction.energy - labels["energy_eV"]) / len(atoms)
        terms = {
            "energy": (per_atom / scales["energy_eV_per_atom"]) ** 2,
            "forces": jnp.mean(((prediction.forces - forces) / scales["forces_eV_per_A"]) ** 2),
            "stress": jnp.mean(((prediction.stress - stress) / scales["stress_eV_per_A3"]) ** 2),
        }
        return sum(terms.values()), terms

    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), potential.params)
    gradient, terms = jax.jit(jax.grad(loss, has_aux=True))(params, found)
    return jax.device_get(terms), jax.device_get(gradient)


def inner_product(gradient: Any, tensors: dict[str, np.ndarray], convert: Converter, name: str) -> float:
    """Of the gradient in one of the original's tensors with the direction, by way of the parameters."""
    direction = np.cos(0.7 * np.arange(tensors[name].size) + 0.3).reshape(tensors[name].shape)
    plus, minus = (convert(tensors | {name: tensors[name] + sign * STEP * direction}) for sign in (1, -1))
    products = jax.tree.map(lambda g, a, b: np.vdot(g, (a - b) / (2 * STEP)), gradient, plus, minus)
    return float(sum(jax.tree.leaves(products)))


@pytest.mark.parametrize(
    ("name", "load"),
    [
        pytest.param("chgnet-0.3.0", of_chgnet, id="chgnet", marks=pytest.mark.slow),
        pytest.param("7net-0", of_sevennet, id="sevennet"),
        pytest.param(f"mace:{MACE_FILE}", of_mace, id="mace"),
    ],
)
def test_every_tensors_gradient_is_the_originals(name: str, load: Callable, shared: pathlib.Path) -> None:
    frame = stored(name)
    potential, tensors, convert = load(shared)
    terms, gradient = evaluated(potential, frame)
    for term, value in frame["terms"].items():
        np.testing.assert_allclose(terms[term], value, rtol=1e-8, err_msg=term)
    assert sum(entry["norm"] > 1e-3 for entry in frame["tensors"].values()) > 0.8 * len(frame["tensors"])
    for tensor, entry in frame["tensors"].items():
        assert list(tensors[tensor].shape) == entry["shape"], tensor
        found = inner_product(gradient, tensors, convert, tensor)
        difference = abs(found - entry["along_direction"])
        assert difference <= 1e-6 * max(entry["norm"], 1e-6), f"{tensor}: {found}, not {entry['along_direction']}"
