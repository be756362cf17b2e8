"""Settings that messages name: as a Python caller and as the user of a command reads them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from jaxpto.console.command import run_command
from jaxpto.console.options import as_typed
from jaxpto.console.terminal import console
from jaxpto.errors import InputError, settings_of


@dataclasses.dataclass(frozen=True)
class Windows:
    windows: int | None = None
    symmetric: bool = True
    relax: str = "cell"
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class Other:
    relax: str = "cell"


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 1
    sample_every: int = 1
    supercell: tuple[int, int, int] = (1, 1, 1)
    resume: bool = False
    landau: Windows = Windows()
    other_group: Other = dataclasses.field(default_factory=Other)


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("take more `steps` or `sample_every`", "take more --steps or --sample-every"),
        ("`steps=0`: must be above 0", "--steps 0: must be above 0"),
        ("`windows=23` will do", "--landau.windows 23 will do"),
        ("add `symmetric=False`", "add --landau.no-symmetric"),
        ("`resume=True` goes on", "--resume goes on"),
        ("`supercell=(2, 2, 1)` and `supercell=('Pb',)`", "--supercell 2 2 1 and --supercell Pb"),
        ("`landau.relax=none`, `other_group.relax`", "--landau.relax none, --other-group.relax"),
        ("`landau.steps=3`", "--landau.steps 3"),
        ("`relax=none` is one of two", "`relax=none` is one of two"),
        ("`unknown=1`, `Steps`, and steps", "`unknown=1`, `Steps`, and steps"),
    ],
)
def test_settings_become_options(text: str, typed: str) -> None:
    assert as_typed(text, Config) == typed


@pytest.mark.parametrize("kind", [InputError, FloatingPointError])
def test_errors_and_lines_of_a_command_name_its_options(kind: type[Exception], capsys: Any) -> None:
    def run(config: Config) -> None:
        console(Config).print("more `steps` help")
        raise kind(f"`windows={config.landau.windows}`: too few")

    assert run_command("jaxpto.some", Config, run, ["--landau.windows", "3"]) in (1, 2)
    printed = capsys.readouterr()
    assert printed.out == "more --steps help\n"
    assert "--landau.windows 3: too few" in printed.err


def test_settings_of_a_callee_stand_in_a_group() -> None:
    with pytest.raises(InputError) as refused, settings_of("landau"):
        raise InputError("`steps=3` and `relax`: no")
    assert str(refused.value) == "`landau.steps=3` and `landau.relax`: no"
    assert as_typed(str(refused.value), Config) == "--landau.steps 3 and --landau.relax: no"
