"""How the code is laid out: who imports whom, one name for one thing, words where they belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from conftest import LONGEST

from jaxpto.console.options import as_typed
from jaxpto.distillation.config import DistilConfig
from jaxpto.evaluate import EvaluateConfig
from jaxpto.export import ExportConfig
from jaxpto.export_model import ExportModelConfig
from jaxpto.free_energy.config import FreeEnergyConfig
from jaxpto.md.config import SweepConfig
from jaxpto.phonons import PhononsConfig
from jaxpto.pto.zero_kelvin import ZeroKelvinConfig
from jaxpto.relax import RelaxConfig
from jaxpto.report import ReportConfig
from jaxpto.train import TrainConfig

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxpto"


# what a user types belongs to the commands; the two others start git, and are a program of their own
DOORS = re.compile(
    r"(sweep|relax|phonons|evaluate|train|distil|report|pto_test|export|export_model)\.py|(.*/)?(__main__|command)\.py|(pto|console)/.*"
    r"|reporting/provenance\.py|devices/abort_filter\.py"
)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def library_texts() -> Iterator[tuple[str, str]]:
    """Module and text of every string outside the commands that is no docstring."""
    for name, module in modules():
        if DOORS.fullmatch(name):
            continue
        blocks = [node.body for node in ast.walk(module) if isinstance(getattr(node, "body", None), list)]
        docstrings = {id(line.value) for block in blocks for line in block if isinstance(line, ast.Expr)}
        for node in ast.walk(module):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield name, node.value


def test_imports_point_downwards() -> None:
    """The layers stand in pyproject.toml."""
    check = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    ran = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_nothing_depends_on_the_default_backend() -> None:
    """What is computed depends on where the arrays are; `jaxpto.platform` says so, once and on the host."""
    found = [
        f"{name}:{node.lineno}"
        for name, module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute | ast.Name)
        and (node.attr if isinstance(node, ast.Attribute) else node.id) == "default_backend"
    ]
    assert found == []


def test_every_public_class_has_its_own_name() -> None:
    found = defaultdict(list)
    for name, module in modules():
        for node in module.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    assert {n: places for n, places in found.items() if len(places) > 1} == {}


def test_no_entry_of_a_docstring_begins_with_of() -> None:
    """An entry says what a thing is, not of what it is."""
    entry = re.compile(r"\s+[\w, ]+: (\[[^]]*\] )?of ")
    found = []
    for name, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                found += [f"{name}: {line.strip()}" for line in text.splitlines() if entry.match(line)]
    assert found == []


def test_only_commands_know_their_options() -> None:
    assert [(name, text) for name, text in library_texts() if re.search(r"--[a-z]", text)] == []


def test_settings_that_messages_name_are_those_of_a_command() -> None:
    commands = (
        *(SweepConfig, RelaxConfig, PhononsConfig, EvaluateConfig, TrainConfig),
        *(ReportConfig, ExportConfig, ExportModelConfig, FreeEnergyConfig, ZeroKelvinConfig, DistilConfig),
    )
    named = {(name, found) for name, text in library_texts() for found in re.findall(r"`([a-z][\w.]*)[=`]", text)}
    assert len(named) > 50
    unknown = [
        (name, setting)
        for name, setting in named
        if all(as_typed(f"`{setting}`", c) == f"`{setting}`" for c in commands)
    ]
    assert unknown == []


def test_the_longest_test_files_are_there() -> None:
    """`make test` starts them first and `make test-fast` omits them, by their names."""
    assert set(LONGEST) <= {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
