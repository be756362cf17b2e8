"""The page that tells what a sweep found: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxpto.observables.summary import ReplicaRecord, TemperatureSummary
from jaxpto.units import spell_kelvin

CAPTIONS: dict[str, str] = {
    "lattice.png": "Lattice parameters of the unit cell. Filled: c, the polar (longest) axis; open: a, the mean of "
    "the two others; in a cubic phase c is the third axis. Error bars: standard deviation of the thermal fluctuations.",
    "polarization.png": "Polarization from Born charges. Error bars: standard deviation of the thermal fluctuations.",
    "timeseries.png": "Lattice parameters of every replica; the shaded part is left out of the averages.",
}

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
td.text, th.text { text-align: left; } td.wrap { white-space: normal; text-align: left; }
tr.lost td { color: #a33a00; } .unit { font-weight: 400; color: #666; display: block; }
figure { margin: 1rem 0 1.6rem; } figure img { max-width: 100%; height: auto; display: block; }
figure.half img { width: 620px; } figcaption { color: #555; font-size: .88rem; max-width: 720px; }
ul { padding-left: 1.2rem; } li { margin: .2rem 0; } code { font-size: .9em; overflow-wrap: anywhere; }
"""


def page(title: str, sections: list[str]) -> str:
    """A complete HTML document from a title (plain text) and sections (HTML)."""
    body = "\n".join(section for section in sections if section)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def result(sentence: str, further: list[str]) -> str:
    """The finding in one sentence, and remarks below it."""
    remarks = "".join(f'<p class="note">{html.escape(text)}</p>' for text in further)
    return f'<p class="result">{html.escape(sentence)}</p>\n{remarks}'


def uncertain(value: float, error: float) -> str:
    """A value with its standard error in units of the last digits, as in 4.0831(7); a dash for NaN."""
    if math.isnan(value):
        return "\N{EN DASH}"
    if math.isnan(error) or error <= 0.0:
        return f"{value:.5g}"
    exponent = math.floor(math.log10(error))
    decimals = max(0, -exponent + (1 if error < 1.95 * 10.0**exponent else 0))
    if decimals == 0 or error >= 1.0:
        decimals = min(decimals, 1)
        return f"{value:.{decimals}f}({error:.{decimals}f})"
    return f"{value:.{decimals}f}({round(error * 10**decimals)})"


def phase_and_axis(row: TemperatureSummary) -> str:
    """The phase of a row, with the polar axis where that is not c."""
    return (
        f"{row.phase}, axis {row.polar_axis}"
        if "tetragonal" in row.phase and row.polar_axis in ("a", "b")
        else row.phase
    )


def axis_ratio(row: TemperatureSummary) -> str:
    """c/a of a row with its error: of a tetragonal phase the polar axis over the mean of the others, else c's."""
    if row.phase in ("tetragonal", "supertetragonal"):
        return uncertain(row.tetragonality, row.tetragonality_sem)
    return uncertain(row.c_over_a, row.c_over_a_sem)


def summary_table(rows: list[TemperatureSummary]) -> str:
    """One row a temperature, with units; lost temperatures coloured."""
    pressures = len({row.pressure_GPa for row in rows}) > 1 or any(row.pressure_GPa != 0.0 for row in rows)
    polar = any(not math.isnan(row.P) for row in rows)
    replicas = any(row.n_replicas > 1 for row in rows)
    columns: list[tuple[str, str]] = [("T", "K")]
    columns += [("pressure", "GPa")] if pressures else []
    columns += [("phase", ""), ("measured T", "K"), ("a", "Å"), ("b", "Å"), ("c", "Å"), ("c/a", "")]
    columns += [("longest/others", ""), ("volume", "Å³")]
    columns += [("P<sub>x</sub>", "C/m²"), ("P<sub>y</sub>", "C/m²"), ("P<sub>z</sub>", "C/m²")] if polar else []
    columns += [("independent samples", "fewest of a, b, c"), ("energy drift", "meV/cell/ps")]
    columns += [("replicas", "")] if replicas else []
    heads = "".join(
        f'<th class="{"text" if name in ("phase", "replicas") else ""}">{name}<span class="unit">{unit}</span></th>'
        for name, unit in columns
    )
    lines = []
    for row in rows:
        cells = [spell_kelvin(row.temperature_K)]
        cells += [f"{row.pressure_GPa:g}"] if pressures else []
        cells += [f'<td class="text">{html.escape(phase_and_axis(row))}</td>']
        cells += [uncertain(row.measured_temperature_K, row.measured_temperature_K_sem)]
        cells += [uncertain(row.a, row.a_sem), uncertain(row.b, row.b_sem), uncertain(row.c, row.c_sem)]
        cells += [uncertain(row.c_over_a, row.c_over_a_sem), uncertain(row.tetragonality, row.tetragonality_sem)]
        cells += [uncertain(row.volume, row.volume_sem)]
        if polar:
            cells += [uncertain(row.Px, row.Px_sem), uncertain(row.Py, row.Py_sem), uncertain(row.Pz, row.Pz_sem)]
        cells += [_number(row.independent_samples, ".0f"), _number(row.conserved_drift, ".2g")]
        cells += [f'<td class="text">{html.escape(row.replica_phases)}</td>'] if replicas else []
        lost = ' class="lost"' if row.n_ok < row.n_replicas else ""
        line = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr{lost}>{line}</tr>")
    table = f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"
    note = (
        "Time averages over the production part; in brackets the standard error of the mean in units of the last "
        "digits (from the autocorrelation time or blocking, whichever is larger). a, b, c are the pseudo-cubic axes of "
        "a perovskite (5-atom cell), those of the repeated cell in other crystals, and x, y, z lie along them; "
        "c/a = c/((a + b)/2); longest/others takes the longest of the averaged axes, whichever it is. The phase of a "
        "perovskite is the crystal system of its averaged strain (0.5 % or the error) and of its polarization where "
        "that is significant; supertetragonal from longest/others = 1.15."
    )
    return f'<h2>Results</h2>\n<div class="scroll">{table}</div>\n<p class="note">{html.escape(note)}</p>'


def _number(value: float, form: str) -> str:
    return "\N{EN DASH}" if math.isnan(value) else format(value, form)


def figure_section(figures: Mapping[str, bytes]) -> str:
    """Figures (PNG) embedded with their captions."""
    parts = ["<h2>Figures</h2>"] if figures else []
    for name, image in figures.items():
        parts.append(_figure(image, CAPTIONS.get(name, name), "" if name == "timeseries.png" else "half"))
    return "\n".join(parts)


def wide_figure(image: bytes, caption: str) -> str:
    """One figure (PNG) as wide as the page, with its caption (plain text)."""
    return f"<h2>Figures</h2>\n{_figure(image, caption, '')}"


def _figure(image: bytes, caption: str, shape: str) -> str:
    data, text = base64.b64encode(image).decode("ascii"), html.escape(caption)
    kind = f' class="{shape}"' if shape else ""
    picture = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure{kind}>{picture}<figcaption>{text}</figcaption></figure>"


def plain_table(heads: Iterable[str | tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text.

    Args:
        heads: of the columns, or each with its unit below.
        rows: a cell for each column.
    """
    pairs = [(head, "") if isinstance(head, str) else head for head in heads]
    units = [f'<span class="unit">{html.escape(unit)}</span>' if unit else "" for _, unit in pairs]
    named = "".join(f"<th>{html.escape(head)}{unit}</th>" for (head, _), unit in zip(pairs, units, strict=True))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f'<div class="scroll"><table><thead><tr>{named}</tr></thead><tbody>{body}</tbody></table></div>'


def warning_section(rows: list[TemperatureSummary]) -> str:
    """What has not converged, by temperature; says so if everything has."""
    found = [f"{spell_kelvin(row.temperature_K)} K: {row.warnings}" for row in rows if row.warnings]
    if not found:
        averaged = any(row.n_ok for row in rows)
        text = "Every average rests on at least 10 independent samples and shows no drift." if averaged else ""
        return f"<h2>Convergence</h2>\n<p>{text}</p>" if text else ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in found)
    return f"<h2>Convergence</h2>\n<p>Treat these averages with care:</p>\n<ul>{items}</ul>"


def failure_section(records: list[ReplicaRecord]) -> str:
    """Replicas that melted or failed, with step, time and reason; nothing if all came through."""
    lost = [record for record in records if record.status != "ok"]
    if not lost:
        return ""
    lines = []
    for record in sorted(lost, key=lambda r: (r.pressure_GPa, r.temperature_K, r.replica)):
        step = "\N{EN DASH}" if record.step_failed is None else str(record.step_failed)
        last = f"{float(record.time_ps[-1]):.3g}" if record.time_ps.shape[0] else "\N{EN DASH}"
        lines.append(
            f"<tr><td>{spell_kelvin(record.temperature_K)}</td><td>{record.replica}</td>"
            f'<td class="text">{html.escape(record.status)}</td>'
            f'<td>{step}</td><td>{last}</td><td class="wrap">{html.escape(record.reason)}</td></tr>'
        )
    heads = (
        '<th>T<span class="unit">K</span></th><th>replica</th><th class="text">status</th><th>stopped at step</th>'
        '<th>last sample<span class="unit">ps</span></th><th class="text">reason</th>'
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<h2>Lost replicas</h2>\n<div class='scroll'>{table}</div>"


def settings_section(settings: Mapping[str, Any], heading: str = "How it was run") -> str:
    """Configuration, versions, device and git state as stored; nested groups get a heading of their own."""
    if not settings:
        return ""
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    groups = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    parts = [f"<h2>{html.escape(heading)}</h2>"]
    if plain:
        parts.append(_settings_table(plain))
    for key, value in groups.items():
        parts.append(f"<h3>{html.escape(str(key))}</h3>{_settings_table(value)}")
    return "\n".join(parts)


def _settings_table(values: Mapping[str, Any]) -> str:
    lines = "".join(
        f'<tr><td class="text">{html.escape(str(key))}</td><td class="wrap"><code>{html.escape(_spell(value))}</code>'
        "</td></tr>"
        for key, value in values.items()
    )
    return f"<table><tbody>{lines}</tbody></table>"


def _spell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_spell(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_spell(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
