"""Columns of a table: the name, heading and unit of a quantity, and the text of a row's value with its error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import Float
from rich import box
from rich.cells import cell_len

from jaxpto.console.terminal import WholeTable
from jaxpto.units import spell_kelvin

Row = Mapping[str, Any]  # a value for each name; NAME_error or NAME_sem is the standard error of NAME
MISSING = "\N{EN DASH}"
UNITS = {
    "A": "Å",
    "A^2": "Å²",
    "A^3": "Å³",
    "C/m^2": "C/m²",
    "meV/A": "meV/Å",
    "mu_B": "μB",
}  # as pages and figures write them
USUAL_WIDTH = 80  # characters of a terminal


def uncertain(value: float, error: float) -> str:
    """A value with its standard error in units of the last digits, as in 4.0831(7); a dash for NaN."""
    if math.isnan(value):
        return MISSING
    if math.isnan(error) or error <= 0.0:
        return f"{value:.5g}"
    exponent = math.floor(math.log10(error))
    decimals = max(0, -exponent + (1 if error < 1.95 * 10.0**exponent else 0))
    if decimals == 0 or error >= 1.0:
        decimals = min(decimals, 1)
        return f"{value:.{decimals}f}({error:.{decimals}f})"
    return f"{value:.{decimals}f}({round(error * 10**decimals)})"


def measured(name: str, value: SupportsFloat, error: SupportsFloat, factor: float = 1.0) -> dict[str, float]:
    """The entries of a value and its standard error in a row, both times `factor`."""
    return {name: factor * float(value), f"{name}_error": factor * float(error)}


@dataclasses.dataclass(frozen=True)
class Column:
    """One quantity of a table.

    Attributes:
        name: entry in each row.
        heading: what the table calls it; a letter, an underscore and another letter are a symbol with its index.
        unit: "A", "C/m^2", ...; "" if there is none.
        form: format of a value that is shown without its error, as in ".2f".
        factor: from the unit of the rows to `unit`.
        spell: text of a row, where it takes more than this one value.
        words: whether it holds words, which are aligned on the left.
        terminal, page: where it is shown.
    """

    name: str
    heading: str
    unit: str = ""
    form: str = ""
    factor: float = 1.0
    spell: Callable[[Row], str] | None = None
    words: bool = False
    terminal: bool = True
    page: bool = True

    def cell(self, row: Row) -> str:
        """The text of a row: words as they are, numbers with their error or in their format, a dash for none."""
        if self.spell is not None:
            return self.spell(row)
        value = row[self.name]
        if isinstance(value, str):
            return value
        if value is None or math.isnan(value):
            return MISSING
        if self.form:
            return format(self.factor * value, self.form)
        error = row.get(f"{self.name}_error", row.get(f"{self.name}_sem"))
        return uncertain(self.factor * value, math.nan if error is None else self.factor * error)

    @property
    def label(self) -> str:
        """Heading and unit, for the axis of a figure."""
        return f"{self.heading} ({UNITS.get(self.unit, self.unit)})" if self.unit else self.heading

    def values(self, rows: Sequence[Row]) -> Float[np.ndarray, " r"]:
        """[r] values of all rows, in `unit`."""
        return self.factor * np.array([row[self.name] for row in rows], np.float64)

    def errors(self, rows: Sequence[Row]) -> Float[np.ndarray, " r"]:
        """[r] their standard errors, in `unit`."""
        return self.factor * np.array([row[f"{self.name}_error"] for row in rows], np.float64)


TEMPERATURE = Column("temperature_K", "T", "K", spell=lambda row: spell_kelvin(row["temperature_K"]))


def terminal_table(columns: Sequence[Column], rows: Sequence[Row], title: str = "") -> WholeTable:
    """The table as terminals show it; units stand below the headings where the table is wider than 80 characters.

    Args:
        columns: those with `terminal` are shown.
        rows: lines of the table.
        title: above it, with a rule below the headings; "" for neither.
    """
    shown = [column for column in columns if column.terminal]
    lines = [[column.cell(row) for column in shown] for row in rows]
    heads = [f"{column.heading} ({column.unit})" if column.unit else column.heading for column in shown]
    if sum(2 + max(map(cell_len, texts)) for texts in zip(heads, *lines, strict=True)) - 2 > USUAL_WIDTH:
        heads = [f"{column.heading}\n({column.unit})" if column.unit else column.heading for column in shown]
    look: dict[str, Any] = {"box": None, "pad_edge": False}
    if title:
        look = {"title": title, "title_justify": "left", "box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
    table = WholeTable(**look)
    for column, head in zip(shown, heads, strict=True):
        table.add_column(head, justify="left" if column.words else "right")
    for line in lines:
        table.add_row(*line)
    return table
