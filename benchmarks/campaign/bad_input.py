"""Bad input of every kind: each must end with exit code 2, one line on stderr, and nothing written."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np

from benchmarks.campaign.runs import Command
from benchmarks.campaign.trials import Ground, Verdict
from jaxpto.structures import builtin_structure

SMALL = ("--supercell", "1", "1", "1", "--steps", "10")
# command, arguments; {bad} is a damaged structure file, {out} the output folder, {file} an existing file
CASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("jaxpto.sweep", ("--temperatures", "0", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--temperatures", "nan", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--temperatures", "1e30", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--temperatures", "300", "300", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--timestep", "-1", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--steps", "0", "--out", "{out}")),
    ("jaxpto.sweep", ("--steps", "99999999999999", "--out", "{out}")),
    ("jaxpto.sweep", ("--supercell", "200", "200", "200", "--out", "{out}")),
    ("jaxpto.sweep", ("--replicas", "1000000", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--skin", "50", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--devices", "99", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--sample-every", "1000", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--mask", "iso", "--stress", "0", "0", "1", "0", "0", "0", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--model", "no-such-model", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", ("--no-such-option", "--out", "{out}")),
    ("jaxpto.sweep", ("{bad}", *SMALL, "--out", "{out}")),
    ("jaxpto.sweep", (*SMALL, "--out", "{file}")),
    ("jaxpto.sweep", (*SMALL, "--out", "{file}/below")),
    ("jaxpto.sweep", (*SMALL, "--out", "{out}" + "x" * 300)),
    ("jaxpto.evaluate", ("{bad}", "--model", "perovskite", "--out", "{out}.extxyz")),
    ("jaxpto.evaluate", ("no-such-file.vasp", "--model", "perovskite", "--out", "{out}.extxyz")),
    ("jaxpto.relax", ("{bad}", "--model", "perovskite", "--out", "{out}")),
    ("jaxpto.relax", ("PbTiO3-cubic", "--model", "perovskite", "--fmax", "-1", "--out", "{out}")),
    ("jaxpto.phonons", ("{bad}", "--model", "perovskite", "--out", "{out}")),
    ("jaxpto.report", ("{out}",)),
    ("jaxpto.export", ("{file}", "{out}.extxyz")),
    ("jaxpto.train", ("--data", "{bad}", "--out", "{out}")),
    ("jaxpto.distil", ("perovskite", "{bad}", "--out", "{out}")),
    ("jaxpto.distil", ("no-such-model", "PbTiO3-cubic", "--out", "{out}")),
    ("jaxpto.pto_test", ("--models", "no-such-model", "--out", "{out}")),
    ("jaxpto.pto_test", ("--models", "perovskite", "--picoseconds", "nan", "--out", "{out}")),
)


def bad_structure(path: Path, random: np.random.Generator) -> str:
    """Write a structure file that nothing can start from; returns what is wrong with it."""
    atoms = builtin_structure("PbTiO3-cubic")
    kind = str(random.choice(["nan", "overlap", "left-handed", "flat", "not periodic", "no element", "noise", "empty"]))
    if kind == "nan":
        atoms.positions[1, 2] = np.nan
    elif kind == "overlap":
        atoms.positions[1] = atoms.positions[0] + 0.01
    elif kind == "left-handed":
        atoms.set_cell(-atoms.cell.array)
    elif kind == "flat":
        atoms.set_cell(np.diag([3.9, 3.9, 0.0]))
    elif kind == "not periodic":
        atoms.pbc = False
    elif kind == "no element":
        atoms.numbers[0] = 0
    if kind in ("noise", "empty"):
        path.write_bytes(random.bytes(400) if kind == "noise" else b"")
    else:
        ase.io.write(path, atoms, format="extxyz")
    return kind


def bad_input(ground: Ground, random: np.random.Generator) -> Verdict:
    """One case, drawn at random."""
    module, arguments = CASES[int(random.integers(len(CASES)))]
    ground.folder.mkdir(parents=True, exist_ok=True)
    file, bad, out = ground.folder / "file.txt", ground.folder / "bad.extxyz", ground.folder / "out"
    file.write_text("a file\n")
    kind = bad_structure(bad, random)
    given = [argument.format(bad=bad, file=file, out=out) for argument in arguments]
    ended = Command(module, *given).wait()
    done = f"{module} {' '.join(arguments)}"[:120] + (f" ({kind})" if "{bad}" in arguments else "")
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    fault = "" if ended.code == 2 else f"exit code {ended.code}: {' / '.join(lines[-2:])[:300]}"
    if not fault and len(lines) != 1:
        fault = f"{len(lines)} lines on stderr: {' / '.join(lines[:3])[:300]}"
    left = sorted(path.name for path in ground.folder.iterdir() if path not in (file, bad))
    if not fault and left:
        fault = f"it left {', '.join(left)[:200]} behind"
    return Verdict(done, fault)
