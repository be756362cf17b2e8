"""COMMAND python -m jaxpto: lists the commands and the models."""

from __future__ import annotations

import logging

from rich import box

from jaxpto import __version__
from jaxpto.console.terminal import WholeTable, console
from jaxpto.models.catalogue import examined, list_models, user_folder
from jaxpto.models.manifest import published_models

COMMANDS = {
    "sweep": "batched molecular dynamics of a temperature ladder (the main job)",
    "evaluate": "energy, forces and stress of every frame, and their errors against labels",
    "relax": "relax positions and cell at 0 K",
    "phonons": "force constants, bands, density of states and thermal properties of a crystal",
    "free_energy": "free energy, entropy and heat capacity against temperature",
    "train": "train a model on DFT data",
    "distil": "a fast student of any model for given structures and temperatures",
    "pto_test": "the paper's test of a model: 0 K, phonons, temperatures, speed, and a verdict",
    "export": "convert stored trajectories to any ASE format",
    "export_model": "a model for other programs: nep.txt, or a program that needs JAX alone",
    "report": "tables and figures from stored results; report pto-0k: the paper's table at 0 K",
}


def main() -> None:
    """Print the commands and the models found."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # what is wrong with a model is said below
    out = console()
    out.print(f"jaxpto {__version__}")
    commands = _table("commands", "command", "what it does")
    for name, purpose in COMMANDS.items():
        commands.add_row(f"python -m jaxpto.{name}", purpose)
    out.print(commands)
    models = _table("models", "model", "elements", "cutoff (A)", "parameters", "conservative")
    found = [examined(info) for info in list_models()]
    for info in found:
        if info.problem:
            models.add_row(info.name, "damaged, see below", "", "", "")
            continue
        header = info.header
        conservative = "yes" if header["conservative"] else "no"
        many = len(header["elements"]) > 20
        elements = str(len(header["elements"])) if many else " ".join(header["elements"])
        models.add_row(info.name, elements, f"{header['cutoff']:g}", f"{header['n_parameters']:,}", conservative)
    if found:
        out.print(models)
    else:
        out.print("no model is installed")
    for info in found:
        if info.problem:
            out.print(info.problem)
    missing = [entry for name, entry in published_models().items() if name not in {info.name for info in found}]
    if missing:
        published = _table("to be converted first", "published model", "made by")
        for entry in missing:
            published.add_row(entry.name, entry.command)
        out.print(published)
    out.print(
        f"your own models: {user_folder()} (JAXPTO_MODELS); any ASE calculator: ase:package.module:factory",
    )


def _table(title: str, first: str, *others: str) -> WholeTable:
    """A plain table."""
    table = WholeTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in (first, *others):
        table.add_column(head)
    return table


if __name__ == "__main__":
    main()
