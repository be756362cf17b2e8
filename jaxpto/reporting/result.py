"""What a command found, and the one writer of it: table, CSV, JSON, figures and page."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxpto.console.options import as_typed
from jaxpto.reporting.columns import Row, terminal_table
from jaxpto.reporting.page import page
from jaxpto.reporting.sections import Finding, Items, Picture, ResultTable, Section, Settings
from jaxpto.storage.files import replacing, write_json_atomic, write_text_atomic

PAGE_FILE = "report.html"


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that goes to an output folder.

    Attributes:
        title: heading of the page.
        headline: the finding, in one sentence.
        table: what terminal and page show.
        pictures: figures by file name.
        settings: how it was run, for page and JSON.
        stem: name of the CSV and JSON files.
        rows: lines of CSV and JSON, all with the same names; None: those of the table.
        about: further entries of the JSON file; None: it is the list of rows alone.
        remarks: sentences to be read with the headline.
        notes: further sentences, for the page only.
        caveat: what the model's forces are not, as in `Potential.caveat`; "" if there is nothing to say.
        sections: further tables and lists of the page; lists are printed too.
        options: configuration of the command; settings that sentences name are spelled as its options.
    """

    title: str
    headline: str
    table: ResultTable
    pictures: Mapping[str, Picture]
    settings: Mapping[str, Any]
    stem: str = "free_energy"
    rows: Sequence[Row] | None = None
    about: Mapping[str, Any] | None = None
    remarks: Sequence[str] = ()
    notes: Sequence[str] = ()
    caveat: str = ""
    sections: Sequence[ResultTable | Items] = ()
    options: type | None = None


def write_result(out: Path, result: Result, console: Console) -> None:
    """Write STEM.csv, STEM.json, the pictures and report.html into `out` (created if missing), and print the table.

    Raises:
        StorageError: the disk refuses a file.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = result.table.rows if result.rows is None else result.rows
    write_csv(out / f"{result.stem}.csv", rows)
    settings = dict(result.settings) | ({"caveat": f"the model's {result.caveat}"} if result.caveat else {})
    record = None if result.about is None else {**result.about, "rows": rows, "settings": settings}
    write_json_atomic(out / f"{result.stem}.json", rows if record is None else record)
    for name, one in result.pictures.items():
        write_image(out / name, one.image)

    def typed(texts: Sequence[str]) -> list[str]:
        return [text if result.options is None else as_typed(text, result.options) for text in texts]

    headline, *remarks = typed([result.headline, *result.remarks])
    if result.caveat:
        remarks.append(f"The model's {result.caveat}, which a simulation need not conserve.")
    sections: list[Section] = [Finding(headline, [*remarks, *typed(result.notes)]), result.table, *result.sections]
    sections += [*result.pictures.values(), *([Settings(settings)] if settings else [])]
    write_text_atomic(out / PAGE_FILE, page(result.title, sections))
    console.print(terminal_table(result.table.columns, result.table.rows))
    listed = [text for section in result.sections if isinstance(section, Items) for text in section.items]
    for text in [*listed, headline, *remarks, f"report: {out / PAGE_FILE}"]:
        console.print(text)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a table with the names of its first row; a value that does not exist (None, NaN) is left empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    for row in rows:
        missing = {name: "" for name, value in row.items() if isinstance(value, float) and math.isnan(value)}
        writer.writerow({**row, **missing})
    write_text_atomic(path, buffer.getvalue())


def write_image(path: Path, image: bytes) -> None:
    """Write a figure that is drawn already."""
    with replacing(path, len(image)) as temporary:
        temporary.write_bytes(image)
