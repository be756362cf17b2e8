"""COMMAND: a whole ladder of temperatures as one compiled, batched molecular dynamics program."""

from __future__ import annotations

import sys
from pathlib import Path

from jaxpto.console.command import FAILED, leave, run_command
from jaxpto.md.config import PRESETS, SweepConfig
from jaxpto.md.sweep_run import read_outcome, run_sweep
from jaxpto.observables.observable import Observable
from jaxpto.perovskite.measurements import crystal_measurements
from jaxpto.potential import Potential


def run(
    config: SweepConfig,
    potential: Potential | None = None,
    observables: tuple[Observable, ...] = (),
    *,
    brief: bool = False,
) -> Path:
    """Run a sweep, or continue it, and write its output folder, which is returned; `md.sweep_run.run_sweep` says more.

    Args:
        config: the settings.
        potential: takes the place of the model that the settings name.
        observables: to be measured beside those that every sweep measures.
        brief: leave the results to the report and print the progress alone.
    """
    return run_sweep(config, crystal_measurements, potential, observables, brief=brief)


def main() -> int:
    """Entry point of `python -m jaxpto.sweep`; returns its exit code, 1 if no replica came through."""
    folders: list[Path] = []
    preset = _preset(sys.argv[1:])
    code = run_command("jaxpto.sweep", SweepConfig, lambda config: folders.append(run(config)), defaults=preset)
    if code or not folders:
        return code
    outcome = read_outcome(folders[0])  # of several processes, the first one writes it
    lost = outcome["replicas"] if outcome else []
    if not lost or any(replica["status"] == "ok" for replica in lost):
        return code
    print(f"jaxpto.sweep: all {len(lost)} replicas melted or failed; {folders[0]} says why", file=sys.stderr)
    return FAILED


def _preset(argv: list[str]) -> SweepConfig:
    """The defaults that a `--preset` on the command line stands for."""
    for word, value in zip(argv, [*argv[1:], ""], strict=False):
        name = value if word == "--preset" else word.removeprefix("--preset=")
        if (word == "--preset" or word.startswith("--preset=")) and name in PRESETS:
            return PRESETS[name]
    return PRESETS[None]


if __name__ == "__main__":
    leave(main())
