"""MatterSim-v1: agreement with the original program on a seeded model, and its converter.

`benchmarks/mattersim_reference.py` made the checkpoint, by the classes of the mattersim package, and the numbers.
"""

from __future__ import annotations

import json
import pathlib
import typing

import jax
import model_contract as contract
import numpy as np
import pytest
from reference_data import Case, read_cases

from converters import mattersim as converter
from converters.pickles import CheckpointError
from converters.sources import find_checkpoint
from converters.torch_files import read_checkpoint
from jaxpto.models.catalogue import load_potential
from jaxpto.models.manifest import published_models
from jaxpto.potential import Potential

REFERENCES = pathlib.Path(__file__).parent / "references"
CHECKPOINT = REFERENCES / "mattersim_v1.pth"


@pytest.fixture(scope="module")
def converted() -> Potential:
    return converter.convert(find_checkpoint(converter.NAME, CHECKPOINT), converter.NAME)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Two distorted crystals, and a perfect one with atoms in line."""
    return read_cases(REFERENCES / "mattersim_v1.json")


def test_agrees_with_the_original(converted: Potential, cases: list[Case]) -> None:
    double = contract.cast(converted, np.float64)
    layouts = contract.layouts_of(double, [case.atoms for case in cases])
    assert max(np.abs(case.exact.forces).max() for case in cases) > 0.1
    for case, layout in zip(cases, layouts, strict=True):
        case.assert_exact(contract.predict(double, case.atoms, layout))


def test_conversion_and_back(tmp_path: pathlib.Path, converted: Potential) -> None:
    folder = converter.run(converter.MatterSimConfig("v1-5m", CHECKPOINT, tmp_path / "model"))
    again = load_potential(folder, np.float64)
    assert again.model == converted.model
    assert (again.model.cutoff, again.model.three_body_cutoff, len(again.elements)) == (5.0, 4.0, 89)
    jax.tree.map(np.testing.assert_array_equal, again.params, converted.params)
    header = json.loads((folder / "model.json").read_text())
    assert header["licence"] == "MIT (Microsoft)"
    assert not header["published"]


def test_versions_are_those_of_the_manifest() -> None:
    known = {name for name, model in published_models().items() if model.architecture == "mattersim"}
    assert {f"mattersim-{version}" for version in typing.get_args(converter.Version)} == known


SPOILERS: dict[str, typing.Callable[[dict[str, typing.Any]], object]] = {
    "holds a graphormer": lambda c: c.update(model_name="graphormer"),
    "max_l = 3": lambda c: c["model_args"].update(max_l=3),
    "KeyError 'model_args'": lambda c: c.pop("model_args"),
    "unknown tensors extra": lambda c: c["model"].update(extra=np.ones(2)),
    "KeyError 'final.g.2.linear.bias'": lambda c: c["model"].pop("final.g.2.linear.bias"),
    "not \\(8, 24\\)": lambda c: c["model"].update({"graph_conv.0.gated_mlp_edge.g.0.linear.weight": np.ones((8, 25))}),
    "several zeros": lambda c: c["model"].update({"sbf.coef": np.arange(144.0).reshape(4, 9, 4)}),
    "does not go on": lambda c: c["model"].update({"rbf.n_2_pi_cutoff": np.ones((1, 4))}),
}


@pytest.mark.parametrize("complaint", SPOILERS)
def test_other_checkpoints_are_refused(complaint: str, monkeypatch) -> None:
    content = read_checkpoint(CHECKPOINT)
    SPOILERS[complaint](content)
    monkeypatch.setattr(converter, "read_checkpoint", lambda path: content)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        converter.convert(find_checkpoint(converter.NAME, CHECKPOINT), "spoilt")
    assert "\n" not in str(caught.value)
