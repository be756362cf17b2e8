"""Every architecture of the published MACE models: agreement with mace-torch, and what its converter takes and refuses.

No published file is at hand: seeded models with the hyperparameters of the training scripts and few channels stand for
them (`benchmarks/mace_checkpoint.py`). The one of MACE-MH-1 is stored as the converter made it.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import typing

import ase.io
import jax
import model_contract as contract
import numpy as np
import pytest
from reference_data import Case, read_cases

from benchmarks.environments import FOLDER, ORIGINALS
from converters import mace as converter
from converters.mace_files import MaceFile, open_model
from converters.pickles import CheckpointError, Reference, StandIn
from converters.torch_files import read_checkpoint
from jaxpto import neighbors
from jaxpto.models import fused_convolution
from jaxpto.models.catalogue import load_potential
from jaxpto.models.folder import save_potential
from jaxpto.models.mace import MACE
from jaxpto.models.manifest import published_models
from jaxpto.potential import Potential
from jaxpto.system import from_ase

REFERENCES = pathlib.Path(__file__).parent / "references"
FIXTURE = "weights/fixtures/mace_mp0b_reduced.model"
HEAD = "omat_pbe"
# one of each architecture, with the head that is converted
VERSIONS = {
    "mp-0-small": None,
    "mp-0-medium": None,
    "mp-0-large": None,
    "mp-0b-small": None,
    "mp-0b2-small": None,
    "mp-0b2-large": None,
    "mpa-0-medium": None,
    "off23-small": None,
    "off23-large": None,
    "mh-0": HEAD,
    "mh-1": HEAD,
    "replay": "pt_head",
}


def _potential(arrays: typing.Mapping[str, np.ndarray]) -> Potential:
    """A potential from arrays by name."""
    params: dict[str, typing.Any] = {}
    for name, array in arrays.items():
        *groups, last = name.split("/")
        place = params
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = array
    values = json.loads(str(params.pop("hyperparameters")))
    tuples = {key: _tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Potential(params, MACE(**tuples), "mace-mh-1")


def _tuple(value: list) -> tuple:
    return tuple(_tuple(part) if isinstance(part, list) else part for part in value)


@pytest.fixture(scope="module")
def gated() -> Potential:
    """The seeded MACE-MH-1, in float64."""
    return contract.cast(_potential(np.load(REFERENCES / "mace_mh_1.npz")), np.float64)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return read_cases(REFERENCES / "mace_mh_1.json")


def test_gated_layers_agree_with_the_original(gated: Potential, cases: list[Case]) -> None:
    layouts = contract.layouts_of(gated, [case.atoms for case in cases])
    for case, layout in zip(cases, layouts, strict=True):
        assert np.abs(case.exact.forces).max() > 0.05
        case.assert_exact(contract.predict(gated, case.atoms, layout))


@pytest.mark.slow
def test_laws_of_gated_layers(gated: Potential, cases: list[Case]) -> None:
    for law in (contract.rotation, contract.permutation, contract.image_shift, contract.forces_are_gradients):
        law(gated, cases[0].atoms)


@pytest.mark.slow
def test_gated_layers_by_the_kernel_for_gpus(gated: Potential, cases: list[Case], monkeypatch) -> None:
    monkeypatch.setattr(fused_convolution, "available", lambda layout: True)
    system = from_ase(cases[0].atoms, np.float64)
    found = neighbors.build(system, contract.layout_of(gated, cases[0].atoms))
    cases[0].assert_exact(jax.device_get(jax.jit(lambda potential: potential.evaluate(system, found))(gated)))


def test_gated_models_are_saved(gated: Potential, tmp_path: pathlib.Path) -> None:
    save_potential(gated, tmp_path / "model")
    again = load_potential(tmp_path / "model", np.float64)
    assert again.model == gated.model
    jax.tree.map(np.testing.assert_array_equal, again.params, jax.device_get(gated.params))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, cases: list[Case]) -> pathlib.Path:
    """Folder with a seeded model of each architecture and what mace-torch computes with it."""
    environment = FOLDER / ORIGINALS["mace"].factory
    if not (environment / ".complete").exists():
        pytest.skip(f"no environment of mace-torch in {environment}; `benchmarks.environments.python_of` makes it")
    folder = tmp_path_factory.mktemp("mace")
    for case in cases:
        case.atoms.info["name"] = case.name
    ase.io.write(folder / "structures.extxyz", [case.atoms for case in cases])
    script = pathlib.Path(__file__).parents[1] / "benchmarks" / "mace_reference.py"
    versions = [f"{version}:{head}" if head else version for version, head in VERSIONS.items()]
    command = [environment / "bin" / "python", script, folder, folder / "structures.extxyz", *versions]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    answer = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_architectures_agree_with_the_original(version: str, originals: pathlib.Path) -> None:
    converted = converter.convert_file(originals / f"{version}.model", version, VERSIONS[version])
    assert converted.model.gated is version.startswith("mh-")
    if version == "mh-1":
        stored = _potential(np.load(REFERENCES / "mace_mh_1.npz"))
        jax.tree.map(np.testing.assert_array_equal, converted.params, stored.params)
    potential, found = contract.cast(converted, np.float64), read_cases(originals / f"{version}.json")
    layouts = contract.layouts_of(potential, [case.atoms for case in found])
    for case, layout in zip(found, layouts, strict=True):
        case.assert_exact(contract.predict(potential, case.atoms, layout))


@pytest.mark.slow
def test_files_of_several_heads(originals: pathlib.Path, tmp_path: pathlib.Path, capsys) -> None:
    """The head is asked for with the names that there are, and its name is part of the model's."""
    arguments = ["--version", "mh-1", "--checkpoint", str(originals / "mh-1.model"), "--out", str(tmp_path / "model")]
    assert converter.main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "heads matpes_r2scan, mp_pbe_refit_add, spice_wB97M, oc20_usemppbe, omol, omat_pbe; choose one by" in line
    assert converter.main([*arguments, "--head", "omol"]) == 0
    assert json.loads((tmp_path / "model" / "model.json").read_text())["head"] == "omol"


def test_versions_are_those_of_the_manifest() -> None:
    known = {name for name, model in published_models().items() if model.architecture == "mace"}
    assert {f"mace-{version}" for version in typing.get_args(converter.Version)} == known


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mace-mpa-0-medium.model", "mace-mpa-0-medium"),
        ("20231203mace128L1_epoch199model", "mace-mp-0-medium"),  # as mace-torch calls it in its cache
        ("MACE-OFF23_small.model", "mace-off23-small"),
        ("fine-tuned.model", ""),
    ],
)
def test_the_name_of_the_file_says_which_model_it_is(file: str, name: str) -> None:
    assert converter.published_name(converter.MaceConfig(checkpoint=pathlib.Path(file))) == name
    asked = converter.MaceConfig("off23-large", pathlib.Path(file))
    assert converter.published_name(asked) == "mace-off23-large"


def test_models_of_ones_own(shared: pathlib.Path, tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path))
    folder = converter.run(converter.MaceConfig(checkpoint=shared / FIXTURE))
    assert folder == tmp_path / "mace_mp0b_reduced"
    header = json.loads((folder / "model.json").read_text())
    assert "given by the user" in header["source"]
    assert not header["licence"]


COMPILED = {
    "is compiled": StandIn(Reference("__torch__.mace.calculators.lammps_mace", "LAMMPS_MACE")),
    "is made for LAMMPS": StandIn(Reference("mace.calculators.lammps_mliap_mace", "LAMMPS_MLIAP_MACE")),
    "mace_cueq_to_e3nn FILE --return_model": StandIn(
        Reference("mace.modules.models", "ScaleShiftMACE"),
        state={"_modules": {"linear": StandIn(Reference("cuequivariance_torch.operations.linear", "Linear"))}},
    ),
    "the .model file that mace_run_train writes": {"model": {}, "optimizer": {}},
}


@pytest.mark.parametrize("complaint", COMPILED)
def test_files_for_other_programs_are_refused_with_the_remedy(complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint) as caught:
        open_model(pathlib.Path("FILE"), COMPILED[complaint])
    assert "\n" not in str(caught.value)


def test_numbers_of_neighbours_of_any_kind(shared: pathlib.Path) -> None:
    """A number, a tensor or a scalar of numpy, as versions of mace-torch have written it."""
    path = shared / FIXTURE
    file = MaceFile(path, read_checkpoint(path), {})
    number = file.scalar("interactions.1", "avg_num_neighbors")
    pickled = StandIn(Reference("numpy", "dtype"), ("f8", False, True))
    for value in (
        np.asarray(number),
        np.asarray([number]),
        StandIn(Reference("numpy.core.multiarray", "scalar"), (pickled, np.float64(number).tobytes())),
    ):
        file.module("interactions.1").state["avg_num_neighbors"] = value
        assert file.scalar("interactions.1", "avg_num_neighbors") == number
