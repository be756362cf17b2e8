"""What a relaxation leaves behind: files in a folder and a table."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
from rich.console import Console

from jaxpto.relaxation.target import Relaxed
from jaxpto.reporting.columns import Column, Row, terminal_table
from jaxpto.reporting.result import write_csv
from jaxpto.storage.files import replacing, write_json_atomic
from jaxpto.structures.space_group import SYMPREC, SpaceGroup, space_group
from jaxpto.structures.write import write_frames

CONVERGENCE = (
    "structure", "step", "energy_eV", "residual_eV_per_A", "residual_force_eV_per_A", "residual_stress_GPa",
    "volume_A3",
)  # fmt: skip
NAME = Column("name", "structure", words=True)


def _outcome(row: Row) -> str:
    return "converged" if row["converged"] else f"NOT converged: {row['reason']}"


def _space_groups(row: Row) -> str:
    before, after = SpaceGroup(**row["space_group_before"]), SpaceGroup(**row["space_group_after"])
    return str(after) if before == after else f"{before} -> {after}"


COURSE = (
    NAME,
    Column("steps", "steps", form=".0f"),
    Column("residual_force_eV_per_A", "force", "eV/A", ".1e"),
    Column("residual_stress_GPa", "stress", "GPa", ".1e"),
    Column("reason", "outcome", spell=_outcome, words=True),
)
CRYSTAL = (
    NAME,
    *(Column(axis, axis, "A", ".4f") for axis in "abc"),
    Column("energy_eV_per_atom", "eV/atom", form=".6f"),
    Column("difference_meV_per_formula_unit", "meV/f.u.", form=".2f"),
    Column("space_group_after", "space group", spell=_space_groups, words=True),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One structure of a command.

    Attributes:
        name: unique; the name of its files.
        file: where it was read.
        start: as it was read.
        relaxed: the outcome.
        difference: enthalpy against the lowest of the same formula, meV per formula unit; None where it is alone.
        before, after: space groups.
    """

    name: str
    file: str
    start: ase.Atoms
    relaxed: Relaxed
    difference: float | None
    before: SpaceGroup
    after: SpaceGroup


def unique_names(files: Sequence[str]) -> list[str]:
    """The stem of each file, with -1, -2, ... appended where several have the same."""
    stems = [Path(file).stem for file in files]
    names: list[str] = []
    for stem in stems:
        name, number = stem, 1
        while name in names or (stems.count(stem) > 1 if name == stem else name in stems):
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def make_entries(
    names: Sequence[str], files: Sequence[str], starts: Sequence[ase.Atoms], outcomes: Sequence[Relaxed]
) -> list[Entry]:
    """Compare the enthalpies of the structures, find their space groups."""
    per_unit: dict[str, list[float]] = defaultdict(list)
    keys = []
    for relaxed in outcomes:
        formula, units = relaxed.atoms.symbols.formula.reduce()
        keys.append((formula.format("hill"), relaxed.enthalpy / units))
        per_unit[keys[-1][0]].append(keys[-1][1])
    lowest = {formula: min(filter(math.isfinite, values), default=math.nan) for formula, values in per_unit.items()}
    return [
        Entry(
            name=name,
            file=file,
            start=start,
            relaxed=relaxed,
            difference=1e3 * (value - lowest[formula]) if len(per_unit[formula]) > 1 else None,
            before=space_group(start),
            after=space_group(relaxed.atoms),
        )
        for name, file, start, relaxed, (formula, value) in zip(names, files, starts, outcomes, keys, strict=True)
    ]


def write_folder(folder: Path, entries: Sequence[Entry], about: dict[str, Any]) -> None:
    """Write relaxation.json, convergence.csv and relaxed/NAME.extxyz and .vasp.

    Args:
        folder: created if missing.
        entries: the structures.
        about: what relaxation.json says besides its structures.
    """
    places = folder / "relaxed"
    places.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        write_frames([entry.relaxed.atoms], places / f"{entry.name}.extxyz")
        with replacing(places / f"{entry.name}.vasp") as path:
            ase.io.write(path, entry.relaxed.atoms, format="vasp", direct=True)
    write_csv(folder / "convergence.csv", _convergence(entries))
    document = {"symprec_A": SYMPREC} | about | {"structures": [_describe(entry) for entry in entries]}
    write_json_atomic(folder / "relaxation.json", document)


def print_relaxations(entries: Sequence[Entry], title: str, console: Console) -> None:
    """Print how each relaxation went, and what came out."""
    rows = [_describe(entry) for entry in entries]
    console.print(terminal_table(COURSE, rows, title))
    compared = any(entry.difference is not None for entry in entries)
    shown = [column for column in CRYSTAL if compared or not column.name.startswith("difference")]
    console.print(terminal_table(shown, rows, "relaxed structures"))


def _describe(entry: Entry) -> dict[str, Any]:
    relaxed, atoms = entry.relaxed, entry.relaxed.atoms
    return {
        "name": entry.name,
        "file": entry.file,
        "formula": atoms.symbols.formula.format("metal"),
        "atoms": len(atoms),
        "converged": relaxed.converged,
        "reason": relaxed.reason,
        "steps": relaxed.steps,
        "energy_eV": relaxed.energy,
        "energy_eV_per_atom": relaxed.energy / len(atoms),
        "enthalpy_eV": relaxed.enthalpy,
        "difference_meV_per_formula_unit": entry.difference,
        **dict(zip(("a", "b", "c", "alpha", "beta", "gamma"), atoms.cell.cellpar().tolist(), strict=True)),
        "volume_A3": atoms.get_volume(),
        "residual_eV_per_A": relaxed.residual,
        "residual_force_eV_per_A": relaxed.residual_force,
        "residual_stress_GPa": relaxed.residual_stress,
        "space_group_before": dataclasses.asdict(entry.before),
        "space_group_after": dataclasses.asdict(entry.after),
    }


def _convergence(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """A row for each step of each structure."""
    rows = []
    for entry in entries:
        history = entry.relaxed.history
        values = zip(history.energy, history.residual, history.force, history.stress, history.volume, strict=True)
        rows += [
            dict(zip(CONVERGENCE, (entry.name, step, *map(float, row)), strict=True)) for step, row in enumerate(values)
        ]
    return rows
