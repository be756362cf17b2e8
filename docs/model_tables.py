"""Write the tables of models in README.md and docs/models.md from the manifest: `make tables`, or with --check.

A table stands between the lines `<!-- models: NAME -->` and `<!-- end -->`; NAME is one of `TABLES`. Each row is an
architecture of the manifest. What its published models and its class say is not written there again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from jaxpto.models.manifest import Architecture, PublishedModel, architectures, published_models

ROOT = Path(__file__).parents[1]
SEEDED = "(a seeded model of its size)"  # where the published file was not at hand

Column = Callable[[Architecture, list[PublishedModel]], str]


def each(values: list[str]) -> str:
    """Values of the published models of one architecture, those that are alike once."""
    return "; ".join(dict.fromkeys(values))


def names(architecture: Architecture, published: list[PublishedModel]) -> str:
    return ", ".join(f"`{model.name}`" for model in published)


def what(architecture: Architecture, published: list[PublishedModel]) -> str:
    text = architecture.table["what"]
    if command := architecture.table.get("command") or next((model.command for model in published), ""):
        file = "" if not published or published[0].files[0].sha256 else " --checkpoint FILE"
        text = f"{text} (`{command}{file}`)"
    return text


def paper(architecture: Architecture, published: list[PublishedModel]) -> str:
    return each([re.sub(r", doi:.*", "", model.citation) for model in published])


def licence(architecture: Architecture, published: list[PublishedModel]) -> str:
    return each([model.licence.partition(" (")[0] for model in published])


def trained_on(architecture: Architecture, published: list[PublishedModel]) -> str:
    return each([model.trained_on for model in published])


def weights(architecture: Architecture, published: list[PublishedModel]) -> str:
    def source(model: PublishedModel) -> str:
        file = model.files[0]
        if file.wheel is not None:
            return f"package {file.wheel.package} {file.wheel.version}"
        if file.sha256:
            return "official release"
        return f"your copy of the `{Path(file.name).suffix}`"

    return each([source(model) for model in published])


def parameters(architecture: Architecture, published: list[PublishedModel]) -> str:
    seen = all(model.files[0].sha256 for model in published)
    return each([f"{model.parameters:,}" for model in published]) + ("" if seen else f" {SEEDED}")


def elements(architecture: Architecture, published: list[PublishedModel]) -> str:
    return each([str(model.elements) for model in published])


def derived(architecture: Architecture, published: list[PublishedModel]) -> str:
    return "from the energy" if architecture.kind.conservative else "direct"


def text(key: str) -> Column:
    """A column of the manifest alone."""
    return lambda architecture, published: architecture.table[key]


# heading -> key that an entry of the manifest may override, and what stands there otherwise
NAME = {"name": ("models", names)}
TABLES: dict[str, dict[str, tuple[str, Column]]] = {
    "overview": NAME | {"what": ("", what), "elements": ("elements", elements), "forces": ("", derived)},
    "origin": NAME
    | {
        "paper": ("paper", paper),
        "licence of the weights": ("licence", licence),
        "trained on": ("trained_on", trained_on),
        "where the weights come from": ("weights", weights),
        "parameters": ("parameters", parameters),
        "elements": ("elements", elements),
    },
    "behaviour": NAME
    | {
        "cutoff (A)": ("", text("cutoff")),
        "forces": ("", derived),
        "smooth": ("", text("smooth")),
        "size-extensive": ("", text("extensive")),
        "parity": ("", text("parity")),
        "speed (s)": ("", text("speed")),
    },
}


def table(name: str) -> str:
    """A table in Markdown, with a row for each architecture that the manifest describes."""
    columns = TABLES[name]
    rows = []
    for architecture in architectures().values():
        if architecture.table:
            published = [model for model in published_models().values() if model.architecture == architecture.name]
            rows.append([architecture.table.get(key) or of(architecture, published) for key, of in columns.values()])
    lines = [f"| {' | '.join(row)} |" for row in (list(columns), *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:], ""])


def renewed(document: str) -> str:
    """A document with its tables as they should be."""
    block = re.compile(r"(<!-- models: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda found: f"{found[1]}\n{table(found[2])}\n{found[3]}", document)


def main() -> int:
    """Write the documents, or with --check say which are out of date; returns the exit code."""
    check = "--check" in sys.argv[1:]
    code = 0
    for path in (ROOT / "README.md", ROOT / "docs" / "models.md"):
        document = path.read_text()
        if (after := renewed(document)) == document:
            continue
        if check:
            print(f"the tables of models in {path.relative_to(ROOT)} are out of date; run: make tables")
            code = 1
        else:
            path.write_text(after)
    return code


if __name__ == "__main__":
    sys.exit(main())
