"""The converter of ORB: what comes back from a model folder, what sizes a file may have, and what is refused."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest

from converters import orb as converter
from converters.pickles import CheckpointError
from converters.sources import find_checkpoint
from converters.torch_files import read_checkpoint
from jaxpto.models import orb
from jaxpto.models.catalogue import load_potential
from jaxpto.potential import Potential

V2, V3 = "orb_v2_reduced", "orb_v3_conservative_reduced"
VERSIONS: dict[str, converter.Version] = {V2: "v2", V3: "v3-conservative-inf-omat"}


def _checkpoint(shared: pathlib.Path, name: str) -> pathlib.Path:
    return shared / "weights" / "fixtures" / f"{name}.ckpt"


def _convert(shared: pathlib.Path, name: str) -> Potential:
    version = VERSIONS[name]
    return converter.convert(find_checkpoint(f"orb-{version}", _checkpoint(shared, name)), name, version)


@pytest.mark.parametrize("name", VERSIONS)
def test_conversion_and_back(name: str, shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = converter.run(converter.OrbConfig(VERSIONS[name], _checkpoint(shared, name), tmp_path / "model"))
    again, expected = load_potential(folder, np.float32), _convert(shared, name)
    assert again.model == expected.model
    jax.tree.map(np.testing.assert_array_equal, again.params, expected.params)
    header = json.loads((folder / "model.json").read_text())
    assert header["conservative"] is (name == V3)
    assert not header["published"]
    kind, nearest = (orb.OrbDirect, 20) if name == V2 else (orb.OrbConservative, 120)
    assert again.model == kind(converter._ELEMENTS, nearest, 6.0)


def _renamed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {converter._with_new_head(key): array for key, array in state.items()}


def test_both_ways_of_writing_heads(shared: pathlib.Path, monkeypatch) -> None:
    """The names of orb-models 0.5, another shape of the references, and a head that is not converted."""
    state = _renamed(read_checkpoint(_checkpoint(shared, V2)))
    assert "heads.forces.mlp.NN-0.weight" in state
    state["heads.energy.reference.linear.weight"] = state["heads.energy.reference.linear.weight"][None, :]
    state["heads.confidence.mlp.NN-0.bias"] = np.zeros(3, np.float32)
    expected = _convert(shared, V2)
    monkeypatch.setattr(converter, "read_checkpoint", lambda path: state)
    jax.tree.map(np.testing.assert_array_equal, _convert(shared, V2).params, expected.params)


def test_sizes_are_read_from_the_file(shared: pathlib.Path) -> None:
    """One more step and a perceptron with one more layer."""
    state = _renamed(read_checkpoint(_checkpoint(shared, V2)))
    steps = [key for key in state if key.startswith("model.gnn_stacks.2.")]
    state |= {key.replace("stacks.2", "stacks.3"): state[key] for key in steps}
    for part in ("weight", "bias"):
        state[f"model._encoder._node_fn.mlp.NN-3.{part}"] = state[f"model._encoder._node_fn.mlp.NN-2.{part}"]
        state[f"model._encoder._node_fn.mlp.NN-2.{part}"] = state[f"model._encoder._node_fn.mlp.NN-1.{part}"]
    params = converter.parameters(state, "v2")
    assert params["steps"]["edge"]["receive"]["weight"].shape == (4, 1, 64)
    assert set(params["nodes"]["layers"]) == {"0", "1", "2", "3"}


SPOILERS = {
    "missing": (V2, lambda s: s.pop("stress_head.mlp.NN-1.bias"), "KeyError.*heads.stress.mlp.NN-1.bias"),
    "extra": (V2, lambda s: s.update({"model.conditioner.weight": np.ones(2)}), "unknown tensors model.conditioner"),
    "shape": (V2, lambda s: s.update({"node_head.mlp.NN-1.bias": np.ones(4)}), "4 numbers, not 3"),
    "results": (
        V2,
        lambda s: s.update(
            {"stress_head.mlp.NN-1.bias": np.ones(3), "stress_head.mlp.NN-1.weight": np.ones((3, 64), np.float32)}
        ),
        "3 results, not 6",
    ),
    "nan": (V2, lambda s: s.update({"node_head.mlp.NN-1.bias": np.full(3, np.nan)}), "no number"),
    "integers": (V2, lambda s: s.update({"node_head.mlp.NN-1.bias": np.arange(3)}), "no number"),
    "features": (
        V2,
        lambda s: s.update({"model._encoder._edge_fn.mlp.NN-0.weight": np.ones((96, 53), np.float32)}),
        "not 96 x 23",
    ),
    "elements": (V2, lambda s: s.update({"graph_head.reference.linear.weight": np.ones(90)}), "references of 90"),
    "steps": (
        V2,
        lambda s: [s.pop(key) for key in list(s) if key.startswith("model.gnn_stacks.")],
        "no message passing",
    ),
    "variance": (
        V2,
        lambda s: s.update({"graph_head.normalizer.bn.running_var": np.zeros(1, np.float32)}),
        "variance 0.0",
    ),
    "cutoff": (V3, lambda s: s.update({"model.rbf_transform.r_max": np.array(1e9, np.float32)}), "r_max = 1000000000"),
    "no tensor": (V2, lambda s: s.update({"model.atom_emb.embeddings.weight": "text"}), "holds no ORB"),
    "direct v3": (
        V3,
        lambda s: [s.pop(key) for key in list(s) if key.startswith("grad_")],
        "holds ORB v3-direct, not v3-conservative-inf-omat; convert one of v3-direct-20-omat",
    ),
}


@pytest.mark.parametrize("case", SPOILERS)
def test_other_checkpoints_are_refused(case: str, shared: pathlib.Path, monkeypatch) -> None:
    name, spoil, complaint = SPOILERS[case]
    state = dict(read_checkpoint(_checkpoint(shared, name)))
    spoil(state)
    monkeypatch.setattr(converter, "read_checkpoint", lambda path: state)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        _convert(shared, name)
    assert "\n" not in str(caught.value)


def test_how_many_neighbours_count_is_asked_for(shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The file's name says it, or --version does; a name that says something else is refused."""
    named = tmp_path / "orb-v3-conservative-20-omat-20250404.ckpt"
    named.write_bytes(_checkpoint(shared, V3).read_bytes())
    folder = converter.run(converter.OrbConfig(checkpoint=named, out=tmp_path / "model"))
    assert load_potential(folder).model.nearest == 20
    assert json.loads((folder / "model.json").read_text())["version"] == "v3-conservative-20-omat"
    with pytest.raises(CheckpointError, match="has the name of the published orb-v3-conservative-20-omat, not orb-v3-"):
        converter.run(converter.OrbConfig("v3-conservative-inf-omat", named, tmp_path / "other"))
    unnamed = converter.OrbConfig(checkpoint=_checkpoint(shared, V3))
    with pytest.raises(CheckpointError, match=r"costs 0.1 eV/atom; .* by --version: v3-conservative-20-omat, v3"):
        converter.chosen_version(unnamed)
    assert converter.chosen_version(converter.OrbConfig(checkpoint=_checkpoint(shared, V2))) == "v2"


def test_files_that_are_no_orb(shared: pathlib.Path, tmp_path: pathlib.Path, capsys) -> None:
    """A wrong version, another model, half a file, none: one line each, and nothing written."""
    (tmp_path / "half.ckpt").write_bytes(_checkpoint(shared, V2).read_bytes()[:500_000])
    other = shared / "weights" / "gptff_v1.pth"
    attempts = [
        (["--version", "v3-conservative-20-mpa", "--checkpoint", str(_checkpoint(shared, V2))], "holds ORB v2, not v3"),
        (["--version", "v2", "--checkpoint", str(_checkpoint(shared, V3))], "holds ORB v3-conservative, not v2"),
        (["--checkpoint", str(_checkpoint(shared, V3))], "neighbours count stands in no file"),
        (["--checkpoint", str(other)], "is the published gptff-v1, not orb-v2"),
        (["--checkpoint", str(shared / "weights" / "fixtures" / "mace_mp0b_reduced.model")], "holds no ORB"),
        (["--checkpoint", str(tmp_path / "half.ckpt")], "half.ckpt is damaged"),
        ([], "orb-v2-20241011.ckpt and give it by --checkpoint"),
    ]
    for arguments, complaint in attempts:
        assert converter.main([*arguments, "--out", str(tmp_path / "model")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert complaint in line
        assert not (tmp_path / "model").exists()
