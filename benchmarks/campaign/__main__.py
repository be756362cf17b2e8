"""Disturb runs for some minutes and report what did not hold: `python -m benchmarks.campaign --minutes 10`.

An undisturbed sweep comes first. Every trial then draws its own disturbance from the seed and its number, so that one
that failed can be done again alone (`--only N`). The exit code is 1 if any promise did not hold.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import tyro

from benchmarks.campaign.bad_input import bad_input
from benchmarks.campaign.runs import FileEvents, sweep
from benchmarks.campaign.trials import TRIALS, Ground, Trial, Verdict
from jaxpto.reporting.provenance import provenance
from jaxpto.storage.files import write_json_atomic

ALL: dict[str, Trial] = {**TRIALS, "bad input": bad_input}


@dataclasses.dataclass(frozen=True)
class Campaign:
    """Kill, signal, damage, fill the disk and give bad input, and check what the documents promise.

    Attributes:
        minutes: no trial begins after that.
        seed: of the disturbances.
        only: the number of one trial to do again; otherwise all from 0 on.
        out: JSON file with every trial and the figures.
    """

    minutes: float = 10.0
    seed: int = 0
    only: int | None = None
    out: Path = Path("runs/campaign.json")


def undisturbed(folder: Path) -> Ground:
    """The run that all others are compared with; done twice, so that the second finds its programs compiled."""
    ended = sweep(folder / "first").wait()
    if ended.code:
        sys.exit(f"the undisturbed sweep failed: {ended.stderr}")
    reference = folder / "reference"
    events = FileEvents(reference)
    command = sweep(reference)
    events.wait_for(sys.maxsize, command)
    ended = command.wait()
    events.close()
    return Ground(folder / "trial", reference, ended.seconds, events.count)


def main() -> int:
    """Entry point of `python -m benchmarks.campaign`."""
    config = tyro.cli(Campaign)
    began, rows = time.monotonic(), []
    faults: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="jaxpto-campaign-") as name:
        ground = undisturbed(Path(name))
        print(f"undisturbed run: {ground.seconds:.1f} s, {ground.events} file events", flush=True)
        number = config.only or 0
        while time.monotonic() - began < 60.0 * config.minutes:
            random = np.random.default_rng([config.seed, number])
            kind = list(ALL)[number % len(ALL)]
            shutil.rmtree(ground.folder, ignore_errors=True)
            started = time.monotonic()
            verdict = ALL[kind](ground, random)
            rows.append(
                {"number": number, "kind": kind, "seconds": round(time.monotonic() - started, 1), **_row(verdict, name)}
            )
            faults[kind] += bool(verdict.fault)
            print(f"{number:4d} {kind}: {verdict.done}: {verdict.fault or 'holds'}", flush=True)
            number += 1
            if config.only is not None:
                break
    done = Counter(row["kind"] for row in rows)
    figures = {kind: {"trials": done[kind], "faults": faults[kind]} for kind in ALL if done[kind]}
    total = {"trials": len(rows), "kills": sum(row["kills"] for row in rows), "faults": sum(faults.values())}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(
        config.out, {"seed": config.seed, "total": total, "kinds": figures, "trials": rows} | provenance()
    )
    print(json.dumps({"total": total, "kinds": figures}, indent=2))
    print(f"written to {config.out}")
    return int(total["faults"] > 0)


def _row(verdict: Verdict, folder: str) -> dict[str, str | int]:
    """A verdict without the place of the campaign's folder, which is another one each time."""
    shorter = verdict.fault.replace(folder, "")
    return dataclasses.asdict(dataclasses.replace(verdict, fault=shorter))


if __name__ == "__main__":
    sys.exit(main())
