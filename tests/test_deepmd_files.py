"""Files of DeePMD-kit: what is read from them, what is refused by name, and damaged ones."""

from __future__ import annotations

import json
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import ase
import jax
import numpy as np
import pytest
from dp_files import read_dp, write_dp

from converters import deepmd as converter
from converters.pickles import CheckpointError
from converters.protobuf import read_graph
from jaxpto.calculator import JaxptoCalculator
from jaxpto.errors import InputError
from jaxpto.models.catalogue import load_potential
from jaxpto.models.suitability import check_supports
from jaxpto.potential import Potential

FIXTURES = "weights/fixtures"


def _converted(shared: pathlib.Path, name: str) -> Potential:
    return converter.convert(converter.read_model(shared / FIXTURES / name), name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("se_e2_a.pb", []),
        pytest.param("unipero_reduced.pb", [], marks=pytest.mark.slow),
        pytest.param("se_e2_a.pb", ["--compress"], marks=pytest.mark.slow),
    ],
)
def test_command(name: str, options: list[str], shared: pathlib.Path, tmp_path: pathlib.Path, capsys) -> None:
    folder = tmp_path / "model"
    assert converter.main([str(shared / FIXTURES / name), "--out", str(folder), *options]) == 0
    printed = capsys.readouterr().out
    assert "neighbours within 6 A count" in printed
    assert ("times as fast" in printed) == bool(options)
    header = json.loads((folder / "model.json").read_text())
    assert header["elements"][0] in ("Ba", "Pb")
    assert ("compressed" in header) == bool(options)
    assert list(header["source_sha256"]) == [name]
    again = load_potential(folder, np.float64)
    exact = _converted(shared, name)
    if not options:
        assert again.model == exact.model
        jax.tree.map(np.testing.assert_array_equal, again.params, exact.params)
    reference = shared / "reference" / f"{name.removesuffix('.pb')}_pb.json"
    entry = json.loads(reference.read_text())["structures"]["PTO_T"]
    atoms = ase.Atoms(numbers=entry["numbers"], positions=entry["positions"], cell=entry["cell"], pbc=True)
    atoms.calc = JaxptoCalculator(folder)
    np.testing.assert_allclose(atoms.get_potential_energy(), entry["energy"], atol=1e-7)
    np.testing.assert_allclose(atoms.get_forces(), entry["forces"], atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), entry["stress"], atol=1e-7)


def test_hyperparameters_are_read(shared: pathlib.Path) -> None:
    model = _converted(shared, "unipero_reduced.pb").model
    assert (model.cutoff, model.smooth_start, model.sel, model.axis) == (6.0, 0.5, 88, 16)
    assert (model.scale, model.floor, model.epsilon, model.gated, model.masked) == (1.0, 1e-6, 1e-3, True, False)
    assert (model.embedding, model.fitting, model.one_sided, model.appended) == ((0, 2, 2), (0, 1, 1), False, True)
    model = _converted(shared, "se_e2_a.pb").model
    assert (model.elements, model.sel, model.axis, model.nearest_first) == ((82, 22, 8), (20, 20, 56), 8, False)
    model = _converted(shared, "pt_dpa1.pth").model
    assert (model.scale, model.floor, model.epsilon) == (128**-0.5, 1e-12, 1e-5)
    assert model == _converted(shared, "pt_dpa1.dp").model
    assert _converted(shared, "se_e2_a.dp").model.nearest_first


def test_unknown_elements_are_refused_by_name(shared: pathlib.Path) -> None:
    with pytest.raises(InputError, match="Sr"):
        check_supports(_converted(shared, "se_e2_a.pb"), ase.Atoms("Sr", cell=[4.0] * 3, pbc=True))


def _deeper(part: dict[str, Any], **entries: Any) -> None:
    part.update(entries)


SPOILERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "the descriptor hybrid": lambda tree: _deeper(tree["model"]["descriptor"], type="hybrid"),
    "a model of type zbl": lambda tree: _deeper(tree["model"], type="zbl"),
    "multi-task": lambda tree: _deeper(tree["model"], model_dict={}),
    "numb_fparam = 1": lambda tree: _deeper(tree["model"]["fitting"], numb_fparam=1),
    "numb_aparam = 2": lambda tree: _deeper(tree["model"]["fitting"], numb_aparam=2),
    "type = dos": lambda tree: _deeper(tree["model"]["fitting"], type="dos"),
    "spin": lambda tree: _deeper(tree["model"]["descriptor"], spin={"use_spin": [True]}),
    "smooth_type_embedding = True": lambda tree: _deeper(tree["model"]["descriptor"], smooth_type_embedding=True),
    "tebd_input_mode = strip": lambda tree: _deeper(tree["model"]["descriptor"], tebd_input_mode="strip"),
    "exclude_types": lambda tree: _deeper(tree["model"]["descriptor"], exclude_types=[[0, 1]]),
    "pair_exclude_types": lambda tree: _deeper(tree["model"], pair_exclude_types=[[0, 1]]),
    "attn_mask": lambda tree: _deeper(tree["model"]["descriptor"], attn_mask=True),
    "'A1' is no chemical element": lambda tree: tree["model"]["type_map"].__setitem__(0, "A1"),
    "same element": lambda tree: tree["model"]["type_map"].__setitem__(0, "Pb"),
    "activation swish": lambda tree: _deeper(
        tree["model"]["fitting"]["nets"]["networks"][0]["layers"][0], activation_function="swish"
    ),
    "averages that are not zero": lambda tree: tree["model"]["descriptor"]["@variables"]["davg"].__iadd__(0.1),
    "slot to slot": lambda tree: tree["model"]["descriptor"]["@variables"]["dstd"].__setitem__((0, 0), 0.3),
    "a finite one": lambda tree: tree["model"]["@variables"]["out_bias"].fill(np.nan),
    "networks have": lambda tree: _deeper(tree["model"]["descriptor"], axis_neuron=8),
    "KeyError": lambda tree: tree["model"].pop("fitting"),
}


@pytest.mark.parametrize("complaint", SPOILERS)
def test_what_is_not_supported_is_refused_by_name(
    complaint: str, shared: pathlib.Path, tmp_path: pathlib.Path, capsys
) -> None:
    tree = read_dp(shared / FIXTURES / "pt_dpa1.dp")
    SPOILERS[complaint](tree)
    path = write_dp(tmp_path / "spoilt.dp", tree)
    assert converter.main([str(path), "--out", str(tmp_path / "model")]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not (tmp_path / "model").exists()


def _refused(path: pathlib.Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        converter.convert(converter.read_model(path), "spoilt")
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_other_files_are_refused(tmp_path: pathlib.Path, shared: pathlib.Path) -> None:
    path = tmp_path / "graph.pb"
    with pytest.raises(CheckpointError, match="cannot be read"):
        converter.read_model(path)
    assert "is empty" in _refused(path, b"")
    assert "damaged" in _refused(path, b"a text file, say\n")
    assert "damaged or no .dp file" in _refused(path, b"\x89HDF\r\n\x1a\n" + bytes(100))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"model": 1}, protocol=2))
    assert "frozen" in _refused(path, path.read_bytes())
    content = (shared / FIXTURES / "se_e2_a.pb").read_bytes()
    other = content.replace(b"train_attr/training_script", b"train_attr/training_scripd")
    assert "convert-from" in _refused(path, other)
    assert "fparam" in _refused(path, _with_int(content, b"fitting_attr/dfparam", 0, 3))
    larger = content.replace(b'"type":"se_e2_a"', b'"type":"se_e2_r"').replace(
        b'"type": "se_e2_a"', b'"type": "se_e2_r"'
    )
    assert "the descriptor se_e2_r" in _refused(path, larger)


def _with_int(content: bytes, name: bytes, old: int, new: int) -> bytes:
    """A graph whose integer constant has another value (field 7 of its tensor)."""
    start = content.index(name)
    place = content.index(bytes([0x3A, 0x01, old]), start)
    return content[: place + 2] + bytes([new]) + content[place + 3 :]


def _small_graph() -> list[bytes]:
    """The nodes of a graph of a few constants of every kind, written by hand."""

    def field(number: int, kind: int, payload: bytes) -> bytes:
        return bytes([number << 3 | kind]) + (bytes([len(payload)]) if kind == 2 else b"") + payload

    def constant(name: bytes, kind: int, sizes: list[int], values: bytes) -> bytes:
        shape = b"".join(field(2, 2, field(1, 0, bytes([size]))) for size in sizes)
        tensor = field(1, 0, bytes([kind])) + field(2, 2, shape) + values
        entry = field(1, 2, b"value") + field(2, 2, field(8, 2, tensor))
        return field(1, 2, field(1, 2, name) + field(2, 2, b"Const") + field(5, 2, entry))

    return [
        constant(b"matrix", 2, [2, 3], field(4, 2, np.arange(6.0).tobytes())),
        constant(b"same", 1, [4], field(5, 5, np.float32(0.5).tobytes())),
        constant(b"packed", 3, [3], field(7, 2, bytes([7, 1, 2]))),
        constant(b"negative", 9, [], field(10, 0, b"\xff" * 9 + b"\x01")),
        constant(b"text", 7, [], field(8, 2, b"Pb Ti O")),
        constant(b"huge", 2, [127] * 5, field(6, 1, np.float64(1.0).tobytes())),
    ]


def test_constants_are_read() -> None:
    graph = read_graph(pathlib.Path("graph.pb"), b"".join(_small_graph()))
    np.testing.assert_array_equal(graph.array("matrix"), np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(graph.array("same"), [0.5] * 4)
    np.testing.assert_array_equal(graph.array("packed"), [7, 1, 2])
    assert graph.array("negative") == -1
    assert graph.text("text") == "Pb Ti O"
    with pytest.raises(ValueError, match="larger than any"):
        graph.array("huge")
    with pytest.raises(ValueError, match="no text"):
        graph.text("matrix")
    with pytest.raises(KeyError):
        graph.array("absent")


def test_damaged_graphs_give_one_line() -> None:
    """Cut at every byte, and with random bytes: read, or refused by a known error."""
    nodes = _small_graph()
    content, whole = b"".join(nodes), np.cumsum([len(node) for node in nodes])
    for length in range(len(content)):
        if length not in whole:
            with pytest.raises(CheckpointError, match="damaged or no frozen") as caught:
                read_graph(pathlib.Path("graph.pb"), content[:length])
            assert "\n" not in str(caught.value)
    generator, spoilt = np.random.default_rng(4), []
    for _ in range(3000):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), generator.integers(1, 4)):
            damaged[place] = generator.integers(256)
        spoilt.append(bytes(damaged))
    refused = 0
    for attempt in spoilt:
        try:
            graph = read_graph(pathlib.Path("graph.pb"), attempt)
            for name in graph.nodes:
                try:
                    graph.text(name) if name == "text" else graph.array(name)
                except (ValueError, KeyError):  # which `read_model` turns into one line
                    refused += 1
        except CheckpointError as error:
            refused += "\n" not in str(error)
    assert refused > len(spoilt) / 2


@pytest.mark.parametrize("name", ["se_e2_a.pb", "pt_dpa1.pth", "se_e2_a.dp"])
def test_damaged_models_give_one_line(name: str, shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    content = (shared / FIXTURES / name).read_bytes()
    generator = np.random.default_rng(5)
    path, lines = tmp_path / name, []
    for length in [*range(1, 40, 3), *generator.integers(40, len(content) - 200, 12).tolist()]:
        _refused(path, content[:length])
    for _ in range(25):  # damage may hit what is not read, or digits of numbers
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 60):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            converter.convert(converter.read_model(path), "damaged")
        except CheckpointError as error:
            lines += [str(error).count("\n")]
    assert not any(lines)


def test_table_error_must_be_positive(shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="--table-error 0"):
        converter.run(converter.DeepmdConfig(shared / FIXTURES / "se_e2_a.pb", tmp_path, compress=True, table_error=0))


def test_compression_is_refused_by_name(shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = shared / FIXTURES / "pt_dpa1.dp"
    with pytest.raises(CheckpointError, match="tebd_input_mode concat"):
        converter.run(converter.DeepmdConfig(file, tmp_path / "model", compress=True))
    assert not (tmp_path / "model").exists()
