"""What is printed is what was given: brackets, colons and long names, and numbers whole on a narrow terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from jaxpto.console.terminal import WholeTable, console

ODD = "runs/[/x]/[bold]b[/]:smile:/<script>alert(1)</script>"


def printed(*objects: object, columns: int = 40) -> str:
    terminal, out = console(), io.StringIO()
    terminal.file, terminal.width = out, columns
    for one in objects:
        terminal.print(one)
    return out.getvalue()


def test_text_is_printed_as_it_is() -> None:
    assert printed(f"written to {ODD}") == f"written to {ODD}\n"  # in one line of a terminal of 40 columns


def test_cells_heads_and_titles_are_printed_as_they_are() -> None:
    table = WholeTable(ODD, "[i]x", title="[/t]", box=None)
    table.add_row(ODD, "[red]1.0")
    text = printed(table)
    assert text.count(ODD) == 2
    assert "[/t]" in text
    assert "[i]x" in text
    assert "[red]1.0" in text


@pytest.mark.parametrize("columns", [10, 40, 80])
def test_numbers_are_whole_on_a_narrow_terminal(columns: int) -> None:
    table = WholeTable(*"abcdefgh", "words", box=box.SIMPLE_HEAD)
    numbers = [f"{3.123456 * k:.6f} ({k})" for k in range(1, 9)]
    words = "a reason that is told in many words " * 4
    table.add_row(*numbers, words)
    text = printed(table, columns=columns)
    assert "…" not in text
    line = next(line for line in text.splitlines() if numbers[0] in line)
    assert all(number in line for number in numbers)
    folded = " ".join(line.split("(8)")[-1] if "(8)" in line else line for line in text.splitlines()[3:])
    assert folded.split() == words.split()
    assert max(map(len, text.splitlines())) < 8 * len(numbers[0]) + 80


def test_a_table_that_fits_is_that_of_rich() -> None:
    mine, theirs, out = WholeTable("a", "b", title="t"), Table("a", "b", title="t"), io.StringIO()
    for table in (mine, theirs):
        table.add_row("1.0", "some words")
    Console(file=out, width=80).print(theirs)
    assert printed(mine, columns=80) == out.getvalue()


def test_every_command_takes_this_console_and_these_tables() -> None:
    """Consoles made elsewhere would read markup in users' text, and their tables would cut numbers."""
    package = Path(__file__).parents[1] / "jaxpto"
    found = [
        f"{path.name}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if path.name != "terminal.py" and re.search(r"\b(Console|(?<!Whole)Table)\((?!\w+\):)|from_markup", line)
    ]
    assert found == []
