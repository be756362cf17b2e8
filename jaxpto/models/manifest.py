"""The manifest of published models: names, sources, digests, licences (manifest.toml)."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A package whose wheel carries weights; one build of it, whatever machine this is.

    Attributes:
        package, version: what to ask the package index for.
        platform, python: which build.
        sha256: digest of the wheel.
    """

    package: str
    version: str
    platform: str
    python: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a checkpoint.

    Attributes:
        name: without folder.
        sha256: digest of the published file; "" where nobody has seen it here, and users give the file themselves.
        size: in bytes; 0 without a digest.
        url: official address.
        wheel: the wheel that carries it, or None.
        member: its path in the wheel.
    """

    name: str
    sha256: str
    size: int
    url: str
    wheel: Wheel | None
    member: str


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """One model of the manifest.

    Attributes:
        name: what jaxpto calls it.
        version: what its authors call it.
        command: the command that converts it.
        source, licence, citation: for people.
        files: its checkpoint.
    """

    name: str
    version: str
    command: str
    source: str
    licence: str
    citation: str
    files: tuple[File, ...]


@functools.cache
def read_manifest() -> dict[str, PublishedModel]:
    """Every published model, by name."""
    content = tomllib.loads(Path(__file__).with_name("manifest.toml").read_text())
    wheels = {name: Wheel(**entry) for name, entry in content["wheels"].items()}
    models = {}
    for name, entry in content["models"].items():
        files = tuple(
            File(
                name=file["name"],
                sha256=file.get("sha256", ""),
                size=file.get("size", 0),
                url=file["url"],
                wheel=wheels.get(file.get("wheel", "")),
                member=file.get("member", ""),
            )
            for file in entry["files"]
        )
        texts = {key: entry[key] for key in ("version", "command", "source", "licence", "citation")}
        models[name] = PublishedModel(name=name, files=files, **texts)
    return models
