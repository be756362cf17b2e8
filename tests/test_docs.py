"""The Python blocks of README and docs run, one namespace a page; bash blocks name real commands and options."""

import ast
import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from child_process import children

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


PAGES_WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


def test_pages_show_python():
    assert {"python.md", "free_energy.md"} <= {page.name for page in PAGES_WITH_PYTHON}


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")))
    ran = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


PUBLIC = {"jaxpto", *(f"jaxpto.{name}" for name in ("integrators", "neighbors", "structures", "units"))}


def notebook_code(path: pathlib.Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def imported(code: str) -> Iterator[tuple[str, str]]:
    """Module and name of each import; "" for a module itself."""
    for node in ast.walk(ast.parse(re.sub(r"^%.*", "", code, flags=re.MULTILINE))):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", one.name) for one in node.names)
        elif isinstance(node, ast.Import):
            yield from ((one.name, "") for one in node.names)


def test_docs_and_notebooks_import_only_what_is_public():
    sources = {page.name: blocks(page, "python") for page in PAGES_WITH_PYTHON}
    sources |= {path.name: notebook_code(path) for path in (ROOT / "notebooks").glob("*.ipynb")}
    ours = [
        (page, module, name)
        for page, codes in sources.items()
        for code in codes
        for module, name in imported(code)
        if module.split(".")[0] == "jaxpto"
    ]
    assert len(ours) > 20
    for page, module, name in ours:
        assert module in PUBLIC, f"{page} imports from {module}"
        assert not name or name in importlib.import_module(module).__dict__.get("__all__", [name]), (page, module, name)


def options_of(commands: list[tuple[str, ...]], folder: pathlib.Path) -> list[set[str]]:
    """Options that each command's --help names; one process imports JAX for all of them."""
    code = "import runpy, sys; sys.argv = {}; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"
    found = []
    with children(folder, *{module for module, *_ in commands}) as ready:
        for module, *words in commands:
            status, text = ready.run(code.format([module, *words, "--help"], module))
            assert status == 0, text
            found.append(set(re.findall(r"--[a-z][a-z-]*", text)))
    return found


def test_bash_blocks_name_real_options(tmp_path):
    used: dict[tuple[str, ...], list[tuple[str, set[str]]]] = {}
    for page in PAGES:
        for line in "".join(blocks(page, "bash")).splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] != ["python", "-m"] or not words[2].startswith(("jaxpto.", "converters.")):
                continue
            command = tuple(words[2:4] if words[3:4] == ["pto-0k"] else words[2:3])
            options = {word.partition("=")[0] for word in words[3:] if word.startswith("--")}
            used.setdefault(command, []).append((f"{page.name}: {line}", options))
    assert used
    for uses, options in zip(used.values(), options_of(list(used), tmp_path), strict=True):
        assert options
        for line, wanted in uses:
            assert wanted <= options, f"{line}: unknown {wanted - options}"


def test_tables_of_models_are_those_of_the_manifest():
    command = [sys.executable, ROOT / "docs" / "model_tables.py", "--check"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    tables = [name for page in PAGES for name in re.findall(r"<!-- models: (\w+) -->", page.read_text())]
    assert tables == ["overview", "origin", "behaviour"]
    header, _, *rows = re.findall(r"^\|.*", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert header.startswith("| name | what |")
    listed = {name for row in rows for name in row.split(" | ")[0][2:].split(", ")}
    assert {"`perovskite`", "`m3gnet-mp-2021.2.8`", "`orb-v2`", "`tensornet-matpes-pbe`"} <= listed
