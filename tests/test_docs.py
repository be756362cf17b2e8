"""The Python blocks of README and docs run, one namespace a page; bash blocks name real commands and options."""

import functools
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path):
    code = blocks(page, "python")
    if not code:
        return
    script = tmp_path / "page.py"
    script.write_text("\n".join(code))
    ran = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@functools.cache
def options_of(command: tuple[str, ...]) -> set[str]:
    ran = subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z][a-z-]*", ran.stdout))


def test_bash_blocks_name_real_options():
    checked = 0
    for page in PAGES:
        for line in "".join(blocks(page, "bash")).splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] != ["python", "-m"] or not words[2].startswith(("jaxpto.", "converters.")):
                continue
            command = tuple(words[2:4] if words[3:4] == ["pto-0k"] else words[2:3])
            options = options_of(command)
            used = {word.partition("=")[0] for word in words[3:] if word.startswith("--")}
            assert used <= options, f"{page.name}: {line}: unknown {used - options}"
            checked += 1
    assert checked > 0


def test_tables_of_models_are_those_of_the_manifest():
    command = [sys.executable, ROOT / "docs" / "model_tables.py", "--check"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    tables = [name for page in PAGES for name in re.findall(r"<!-- models: (\w+) -->", page.read_text())]
    assert tables == ["overview", "origin", "behaviour"]
    header, _, *rows = re.findall(r"^\|.*", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert header.startswith("| name | what |")
    assert {"`perovskite`", "`m3gnet-mp-2021.2.8`", "`orb-v2`"} <= {row.split(" | ")[0][2:] for row in rows}
