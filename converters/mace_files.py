"""What a pickled model of mace-torch says about itself: its tensors by name, its modules' classes, its irreps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from converters.pickles import CheckpointError, Reference, StandIn

_REMEDY = "give a model of the MACE-MP family as its authors saved it (torch.save(model))"
# packages that replace modules of a model, and the command that undoes it
_ACCELERATED = {
    "cuequivariance": "mace_cueq_to_e3nn",
    "openequivariance": "python -m mace.cli.convert_oeq_e3nn",
}
# tensors that say nothing: masks of irreps, flags of weights that are zero, and everything of no numbers
_IGNORED = (".output_mask", "_zeroed")


@dataclasses.dataclass(frozen=True)
class MaceFile:
    """A checkpoint that was read, and the tensors of it that are still to be used.

    Attributes:
        path: where it lies, for messages.
        root: the model.
        left: tensors by name; `take` removes them.
    """

    path: Path
    root: StandIn
    left: dict[str, np.ndarray]

    def module(self, name: str = "") -> StandIn:
        """A module by its dotted name.

        Raises:
            KeyError: there is none.
        """
        found = self.root
        for part in name.split(".") if name else ():
            found = found.state["_modules"][part]
        return found

    def has(self, name: str) -> bool:
        """Whether there is such a module."""
        try:
            return isinstance(self.module(name), StandIn)
        except KeyError:
            return False

    def children(self, name: str = "") -> list[str]:
        """Names of the modules of a module."""
        return [key for key, child in self.module(name).state["_modules"].items() if child is not None]

    def attribute(self, name: str, attribute: str, default: Any = None) -> Any:
        """An attribute of a module."""
        return self.module(name).state.get(attribute, default)

    def class_of(self, name: str) -> str:
        """Name of the class of a module."""
        return self.module(name).reference.name

    def refuse(self, what: str, remedy: str = _REMEDY) -> CheckpointError:
        """The error for something that jaxpto does not do."""
        return CheckpointError(f"checkpoint {self.path}: {what}; {remedy}")

    def require_class(self, name: str, *supported: str) -> str:
        """The class of a module, which must be one of those.

        Raises:
            CheckpointError: it is another one.
        """
        found = self.class_of(name)
        if found not in supported:
            raise self.refuse(
                f"{name or 'the model'} is a {found}, which is not supported (only {', '.join(supported)})"
            )
        return found

    def take(self, name: str, *shape: int) -> np.ndarray:
        """A tensor in float64 (integers as they are), which is then used up.

        Raises:
            KeyError: there is none.
            ValueError: it has not as many numbers as the shape.
        """
        array = self.left.pop(name)
        if array.size != math.prod(shape):
            raise ValueError(f"{name} has {array.size} numbers, not {math.prod(shape)}")
        array = array.reshape(shape)
        return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float64)

    def number(self, name: str) -> float:
        """A tensor of one number."""
        return float(self.take(name, 1)[0])

    def irreps(self, name: str, attribute: str) -> tuple[tuple[int, int, int], ...]:
        """Irreps of a module: (multiplicity, l, parity) of each."""
        value = self.attribute(name, attribute)
        numbers = list(_numbers(value))
        if not isinstance(value, StandIn) or len(numbers) % 3 or not numbers:
            raise ValueError(f"{name}.{attribute} are no irreps")
        return tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))

    def highest(self, name: str, attribute: str, channels: int) -> int:
        """The largest l of irreps that must be channels x (0e + 1o + 2e + ...).

        Raises:
            CheckpointError: they are others.
        """
        found = self.irreps(name, attribute)
        if found != tuple((channels, degree, (-1) ** degree) for degree in range(len(found))):
            text = "+".join(f"{count}x{degree}{'e' if parity == 1 else 'o'}" for count, degree, parity in found)
            raise self.refuse(f"{name} has the irreps {text}, not {channels}x0e+{channels}x1o+...")
        return len(found) - 1

    def activation_constant(self, name: str, function: str = "silu") -> float:
        """The factor of a normalized activation, which must be that function.

        Raises:
            CheckpointError: it is another function.
        """
        state = self.module(name).state
        self.require_function(name, state["f"], function)
        return float(np.asarray(state["cst"]))

    def require_function(self, name: str, found: Any, function: str) -> None:
        """Refuse an activation that is another function.

        Raises:
            CheckpointError: it is.
        """
        if not isinstance(found, Reference) or found.name.rpartition(".")[2] != function:
            raise self.refuse(f"the activation {name} is {found}, which is not supported (only {function})")

    def scalar(self, name: str, attribute: str) -> float:
        """An attribute that is a number, a tensor of one, or a scalar of numpy.

        Raises:
            TypeError: it is none.
        """
        value = self.module(name).state[attribute]
        if isinstance(value, StandIn) and value.reference.name == "scalar" and len(value.arguments) == 2:
            kind, raw = value.arguments  # what numpy.float64(...) pickles to: numpy.dtype("f8") and its bytes
            return float(np.frombuffer(raw, np.dtype(kind.arguments[0]))[0])
        return float(np.asarray(value).reshape(()))


def open_model(path: Path, content: Any) -> MaceFile:
    """The model in the content of a checkpoint.

    Raises:
        CheckpointError: it holds no pickled model, or one that was compiled or made for another program.
    """
    _refuse_compiled(path, content)
    if not isinstance(content, StandIn) or not isinstance(content.state, dict) or "_modules" not in content.state:
        raise CheckpointError(f"checkpoint {path} holds no pickled MACE model; {_REMEDY}")
    tensors = {
        name: array
        for name, array in _tensors(content, "")
        if array.size and not any(name.endswith(ending) for ending in _IGNORED)
    }
    return MaceFile(path, content, tensors)


def _refuse_compiled(path: Path, content: Any) -> None:
    """Refuse what mace-torch makes of a model for another program, with the way back."""
    original = "give the .model file that it was made from"
    if isinstance(content, dict) and "model" in content:
        raise CheckpointError(
            f"checkpoint {path} holds the state of a training, which lacks the architecture; "
            "give the .model file that mace_run_train writes at its end"
        )
    if not isinstance(content, StandIn):
        return
    if content.reference.module.startswith("__torch__"):
        raise CheckpointError(f"checkpoint {path} is compiled (TorchScript, as for LAMMPS or OpenMM); {original}")
    if content.reference.name.startswith("LAMMPS"):
        raise CheckpointError(f"checkpoint {path} is made for LAMMPS ({content.reference.name}); {original}")
    for package, back in _ACCELERATED.items():
        if any(module.startswith(package) for module in _packages(content)):
            raise CheckpointError(
                f"checkpoint {path} is made for {package}, whose weights are ordered otherwise; {original}, or convert "
                f"it back by `{back} {path.name} --return_model`"
            )


def _packages(module: StandIn) -> Iterator[str]:
    """Python modules of the classes of a model and all that is in it."""
    yield module.reference.module
    state = module.state if isinstance(module.state, dict) else {}
    for child in (state.get("_modules") or {}).values():
        if isinstance(child, StandIn):
            yield from _packages(child)


def _tensors(module: StandIn, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if not isinstance(module.state, dict):
        return  # helpers of PyTorch's compiler, which hold no numbers
    for group in ("_parameters", "_buffers"):
        for name, value in (module.state.get(group) or {}).items():
            if isinstance(value, np.ndarray):
                yield f"{prefix}{name}", value
            elif value is not None:
                raise ValueError(f"{prefix}{name} is no tensor")
    for name, child in (module.state.get("_modules") or {}).items():
        if isinstance(child, StandIn):
            yield from _tensors(child, f"{prefix}{name}.")


def _numbers(value: Any) -> Iterator[int]:
    """All numbers in nested tuples and stand-ins of them."""
    if isinstance(value, StandIn):
        yield from _numbers(value.arguments)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int):
        yield value
