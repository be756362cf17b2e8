"""The page that tells what was found: one HTML file that needs nothing else. All HTML is written here."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxpto.reporting.columns import UNITS, Column
from jaxpto.reporting.sections import Finding, Items, Picture, ResultTable, Section, Settings

SYMBOL = re.compile(r"([A-Za-z])_([A-Za-z])")
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1b1b1b;
  background: #fff; max-width: 1080px; margin: 2rem auto 4rem; padding: 0 1.2rem; }
h1 { font-size: 1.45rem; margin: 0 0 .6rem; } h2 { font-size: 1.12rem; margin: 2.2rem 0 .6rem; }
p.result { font-size: 1.12rem; background: #eef5fb; border-left: 4px solid #0072b2; padding: .7rem 1rem;
  margin: 0 0 .8rem; }
p.note { color: #555; font-size: .88rem; margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e3e3; }
th { border-bottom: 1.5px solid #888; font-weight: 600; vertical-align: bottom; }
td.text, th.text { text-align: left; } td.wrap, th.wrap { white-space: normal; text-align: left; min-width: 14rem; }
tr.lost td { color: #a33a00; } .unit { font-weight: 400; color: #666; display: block; }
figure { margin: 1rem 0 1.6rem; } figure img { max-width: 100%; height: auto; display: block; }
figure.half img { width: 620px; } figcaption { color: #555; font-size: .88rem; max-width: 720px; }
ul { padding-left: 1.2rem; } li { margin: .2rem 0; } code { font-size: .9em; overflow-wrap: anywhere; }
"""


def page(title: str, sections: Iterable[Section]) -> str:
    """A complete HTML document; consecutive pictures stand under one heading."""
    body, before = [_text("h1", title)], None
    for section in sections:
        if isinstance(section, Picture) and not isinstance(before, Picture):
            body.append(_text("h2", "Figures"))
        body.append(_section(section))
        before = section
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{_text("title", title)}\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    match section:
        case Finding(sentence, remarks):
            return _text("p", sentence, "result") + "".join(_text("p", text, "note") for text in remarks)
        case ResultTable():
            return _table(section)
        case Items(heading, introduction, items):
            listed = _tag("ul", "".join(_text("li", item) for item in items)) if items else ""
            return _text("h2", heading) + _text("p", introduction) + listed
        case Picture(image, caption, wide):
            data = base64.b64encode(image).decode("ascii")
            drawn = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
            return _tag("figure", drawn + _text("figcaption", caption), "" if wide else "half")
        case Settings():
            return _settings(section)


def _tag(name: str, inside: str, kind: str = "") -> str:
    """An element of HTML, of a class if `kind` is given."""
    chosen = f' class="{kind}"' if kind else ""
    return f"<{name}{chosen}>{inside}</{name}>"


def _text(name: str, text: str, kind: str = "") -> str:
    """An element that holds plain text."""
    return _tag(name, html.escape(text), kind)


def _table(table: ResultTable) -> str:
    columns = [column for column in table.columns if column.page]
    cells = [[column.cell(row) for column in columns] for row in table.rows]
    kinds = [
        "" if not column.words else "wrap" if max((len(line[k]) for line in cells), default=0) > 40 else "text"
        for k, column in enumerate(columns)
    ]
    heads = "".join(_tag("th", _heading(column), kind) for column, kind in zip(columns, kinds, strict=True))
    lines = [
        _tag("tr", "".join(map(_text, ["td"] * len(line), line, kinds)), "lost" if table.marked(row) else "")
        for row, line in zip(table.rows, cells, strict=True)
    ]
    drawn = _tag("table", _tag("thead", _tag("tr", heads)) + "\n" + _tag("tbody", "\n".join(lines)))
    note = _text("p", table.note, "note") if table.note else ""
    return _text("h2", table.heading) + _tag("div", drawn, "scroll") + note


def _heading(column: Column) -> str:
    symbol = SYMBOL.fullmatch(column.heading)
    named = html.escape(symbol[1]) + _text("sub", symbol[2]) if symbol else html.escape(column.heading)
    return named + (_text("span", UNITS.get(column.unit, column.unit), "unit") if column.unit else "")


def _settings(settings: Settings) -> str:
    plain = {key: value for key, value in settings.values.items() if not isinstance(value, Mapping)}
    groups = {key: value for key, value in settings.values.items() if isinstance(value, Mapping)}
    parts = [_text("h2", settings.heading), *([_pairs(plain)] if plain else [])]
    return "\n".join([*parts, *(_text("h3", str(key)) + _pairs(value) for key, value in groups.items())])


def _pairs(values: Mapping[str, Any]) -> str:
    lines = [
        _tag("tr", _text("td", str(key), "text") + _tag("td", _text("code", _spell(value)), "wrap"))
        for key, value in values.items()
    ]
    return _tag("table", _tag("tbody", "".join(lines)))


def _spell(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(_spell(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_spell(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
