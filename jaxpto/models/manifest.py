"""What manifest.toml and installed packages register: architectures, and published models with their sources.

A package brings models of its own by an entry point of the group `jaxpto.models` whose object is a `Plugin`;
examples/jaxpto-buckingham is a complete one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import tomllib
import warnings
from pathlib import Path
from typing import Any


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
        architecture: name of its architecture.
        version: what its authors call it.
        command: the command that converts it.
        origin: whose program or release it comes from.
        trained_on: name of its training data.
        licence, citation: for people.
        elements: how many elements it knows.
        parameters: how many parameters it has.
        files: its checkpoint.
    """

    name: str
    architecture: str
    version: str
    command: str
    origin: str
    trained_on: str
    licence: str
    citation: str
    elements: int
    parameters: int
    files: tuple[File, ...]

    @property
    def source(self) -> str:
        """Where it comes from and what it was trained on, for people."""
        return f"{self.origin}, trained on {self.trained_on}"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An architecture: a class of models.

    Attributes:
        name: in `model.json`.
        path: module and class of its hyperparameters, "module:Class".
        table: what the tables of models in the documents say about it, by column; empty to be left out there.
        fresh: hyperparameters of a model that is trained from nothing, where its class has no default or a larger one;
            None where none can. "@..." is derived, see `jaxpto.models.fresh`.
        settings: which hyperparameters a user may set then, and for each the ends of the range of its numbers, or the
            words it may be.
    """

    name: str
    path: str
    table: dict[str, str]
    fresh: dict[str, Any] | None = None
    settings: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> Any:
        """The class, imported only when it is needed."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclasses.dataclass(frozen=True)
class Plugin:
    """What an installed package brings.

    Attributes:
        architectures: their names are found in `model.json`, and in training where they have `fresh`.
        published: models whose converters the package has.
        folders: model folders in the package; --model takes their names.
    """

    architectures: tuple[Architecture, ...] = ()
    published: tuple[PublishedModel, ...] = ()
    folders: tuple[Path, ...] = ()


GROUP = "jaxpto.models"


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """What the installed packages bring; one that cannot be used is left out with a warning."""
    found = []
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            plugin = entry.load()
            if not isinstance(plugin, Plugin):
                raise TypeError(f"{entry.value} is a {type(plugin).__name__}, not a Plugin")
            taken = {one.name for one in plugin.architectures} & _content()["architectures"].keys()
            taken |= {one.name for one in plugin.published} & _content()["models"].keys()
            if taken:
                raise ValueError(f"jaxpto itself has {', '.join(sorted(taken))}; give it another name")
        except Exception as error:  # another's package: whatever it raises
            package = entry.dist.name if entry.dist is not None else entry.value
            warnings.warn(f"models of the package {package} are left out: {error}", stacklevel=2)
        else:
            found.append(plugin)
    return tuple(found)


@functools.cache
def architectures() -> dict[str, Architecture]:
    """Every architecture, by its name in `model.json`."""
    entries = _content()["architectures"]
    own = {
        name: Architecture(name, entry["class"], entry.get("table", {}), entry.get("fresh"), entry.get("settings", {}))
        for name, entry in entries.items()
    }
    return own | {one.name: one for plugin in plugins() for one in plugin.architectures}


def architecture_of(model: Any) -> str:
    """Name of the architecture of a model.

    Raises:
        ValueError: its class is in no entry of the manifest.
    """
    path = f"{type(model).__module__}:{type(model).__qualname__}"
    for architecture in architectures().values():
        if architecture.path == path:
            return architecture.name
    raise ValueError(f"{path} is the class of no architecture in manifest.toml; add an entry for it")


@functools.cache
def published_models() -> dict[str, PublishedModel]:
    """Every published model, by name."""
    content = _content()
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
        models[name] = PublishedModel(**entry | {"name": name, "files": files})
    return models | {one.name: one for plugin in plugins() for one in plugin.published}


@functools.cache
def _content() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("manifest.toml").read_text())
