"""How the code is laid out: who imports whom, one name for one thing, words where they belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxpto"

# still to be done; goes when both are empty
SHARED_NAMES = (
    *("Bonds", "Crystal", "Estimate", "Frames", "Landscape"),
    *("Position", "Target", "Thermal", "Transition"),
)
UNREAD = (
    *("models", "free_energy", "training", "devices", "lattice_dynamics", "md", "integrators", "observables"),
    *("storage", "neighbors", "relaxation", "structures"),
    *("bounds.py", "calculator.py", "sweep.py", "train.py"),
)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def test_imports_point_downwards() -> None:
    """The layers stand in pyproject.toml."""
    check = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    ran = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_public_class_has_its_own_name() -> None:
    found = defaultdict(list)
    for name, module in modules():
        for node in module.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    assert {n: places for n, places in found.items() if len(places) > 1 and n not in SHARED_NAMES} == {}


def test_no_entry_of_a_docstring_begins_with_of() -> None:
    """An entry says what a thing is, not of what it is."""
    entry = re.compile(r"\s+[\w, ]+: (\[[^]]*\] )?of ")
    found = []
    for name, module in modules():
        if name.split("/")[0] in UNREAD:
            continue
        for node in ast.walk(module):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                found += [f"{name}: {line.strip()}" for line in text.splitlines() if entry.match(line)]
    assert found == []
