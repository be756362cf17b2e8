"""The catalogue of models: which there are, and one of them by its name."""

from __future__ import annotations

import dataclasses
import difflib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxpto.errors import InputError
from jaxpto.models import ase_calculator
from jaxpto.models.folder import HEADER, check_parameters_exist, read_folder, read_header
from jaxpto.models.manifest import plugins, published_models
from jaxpto.models.variants import split_variant
from jaxpto.potential import Potential

SHIPPED = Path(__file__).parents[1] / "weights"


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What `model.json` says about a model, without its parameters.

    Attributes:
        name: what to give to `load_potential`.
        folder: where it lies.
        header: the content of `model.json`; empty where it is damaged.
        problem: why the model cannot be used, or "".
    """

    name: str
    folder: Path
    header: dict[str, Any]
    problem: str = ""


def user_folder() -> Path:
    """Folder of the user's own models: environment variable JAXPTO_MODELS, or ~/.cache/jaxpto/models."""
    return Path(os.environ.get("JAXPTO_MODELS") or Path.home() / ".cache" / "jaxpto" / "models")


def list_models() -> list[ModelInfo]:
    """Every shipped model, those of installed packages and those in `user_folder`, sorted by name.

    Damaged ones carry a problem.

    The parameters themselves are not read here: see `examined`.
    """
    found: dict[str, ModelInfo] = {}
    shipped, users = (sorted(file.parent for file in parent.glob(f"*/{HEADER}")) for parent in (SHIPPED, user_folder()))
    for folder in (*shipped, *_folders_of_plugins(), *users):
        try:
            info = ModelInfo(folder.name, folder, read_header(folder))
            check_parameters_exist(folder, info.header)
        except InputError as error:
            info = ModelInfo(folder.name, folder, {}, str(error))
        found.setdefault(folder.name, info)
    return sorted(found.values(), key=lambda info: info.name)


def load_potential(name: str | Path, dtype: DTypeLike = np.float32) -> Potential:
    """Load a potential by name, from a folder, or around an ASE calculator.

    Args:
        name: a model shipped with the package or installed in `user_folder`; the path of a model folder; either with
            `:VARIANT`, one of `variants.VARIANTS`; or `ase:package.module:factory`, where factory() returns an ASE
            calculator.
        dtype: floating-point type the parameters are cast to.

    Raises:
        InputError: unknown name (the known ones are listed), damaged folder, parameters that are not finite or do not
            fit, or float64 while JAX's 64-bit mode is off.
    """
    if jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype):
        raise InputError(
            f"{np.dtype(dtype)} needs JAX's 64-bit mode, which is off; "
            "call jax.config.update('jax_enable_x64', True) first, or use float32"
        )
    if str(name).startswith(ase_calculator.PREFIX):
        return ase_calculator.load(str(name))
    (base, variant), folder = split_variant(name), find_model(name)
    _, model, arrays = read_folder(folder, dtype)
    potential = Potential(arrays, model, folder.name + str(name).removeprefix(str(base))).astype(dtype)
    return potential if variant is None else variant.apply(potential)


def reference_energies_of(name: str | Path) -> dict[str, float]:
    """Energy of each element, eV by symbol, that a model's energies are relative to; {} where it says none.

    Args:
        name: what `load_potential` takes.

    Raises:
        InputError: what `find_model` and `read_header` refuse.
    """
    if str(name).startswith(ase_calculator.PREFIX):
        return {}
    return read_header(find_model(name)).get("reference_energies_eV", {})


def _folders_of_plugins() -> list[Path]:
    return [folder for plugin in plugins() for folder in plugin.folders]


def examined(info: ModelInfo) -> ModelInfo:
    """The same, with the problem that shows only once the parameters are read, if there is one."""
    try:
        if not info.problem:
            read_folder(info.folder)
    except InputError as error:
        return dataclasses.replace(info, problem=str(error))
    return info


def find_model(name: str | Path) -> Path:
    """Folder of the model `name` (a path, a shipped model or an installed one), or of the one it is a variant of.

    Raises:
        InputError: there is none; the message lists the known ones, or is the command that converts a published one.
    """
    name, _ = split_variant(name)
    brought = (folder for folder in _folders_of_plugins() if folder.name == str(name))
    for folder in (Path(name), SHIPPED / name, *brought, user_folder() / name):
        if (folder / HEADER).is_file():
            return folder.absolute()
    if Path(name).is_dir() and str(name) not in ("", "."):
        raise InputError(
            f"model folder {name} holds no {HEADER}; give a folder written by jaxpto.train or save_potential"
        )
    published = published_models().get(str(name))
    if published is not None:
        raise InputError(f"model {name} is not converted yet; run: {published.command}")
    known = [info.name for info in list_models()]
    close = difflib.get_close_matches(str(name), known, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    raise InputError(
        f"unknown model '{name}'; {guess}known models: {', '.join(known) or 'none'}; "
        "or give a model folder, or ase:package.module:factory"
    )
