"""Parts of a page, as data: findings, tables, lists, pictures, settings. `page.py` makes HTML of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from jaxpto.reporting.columns import Column, Row
from jaxpto.reporting.style import png


@dataclasses.dataclass(frozen=True)
class Finding:
    """A result in one sentence, and remarks below it."""

    sentence: str
    remarks: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """A table, and what to know to read it.

    Attributes:
        columns: quantities; those with `page` are shown.
        rows: a line each.
        heading: above it.
        note: below it.
        marked: whether a row is coloured as one to be careful with.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    heading: str = "Results"
    note: str = ""
    marked: Callable[[Row], bool] = lambda row: False


@dataclasses.dataclass(frozen=True)
class Items:
    """Sentences under a heading, listed after an introduction."""

    heading: str
    introduction: str
    items: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as PNG with its caption; `wide` if it takes the whole width of the page."""

    image: bytes
    caption: str
    wide: bool = True


def picture(figure: Figure, caption: str, *, wide: bool = True) -> Picture:
    """Draw a figure."""
    return Picture(png(figure), caption, wide)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Configuration, versions, device and git state as stored; nested groups get a heading of their own."""

    values: Mapping[str, Any]
    heading: str = "How it was run"


Section = Finding | ResultTable | Items | Picture | Settings
