"""COMMAND `python -m jaxpto.distil TEACHER STRUCTURE... --out STUDENT`: a fast student of any teacher."""

from __future__ import annotations

import functools
from pathlib import Path

from jaxpto import sweep, train
from jaxpto.console import terminal
from jaxpto.console.command import configure_devices, leave, run_command
from jaxpto.distillation.config import DistilConfig
from jaxpto.distillation.distillation import Distilled, distil
from jaxpto.distillation.output import write_distillation
from jaxpto.distillation.rounds import Tools
from jaxpto.storage.lock import one_run


def run(config: DistilConfig) -> Distilled:
    """Distil a student, or go on with it, and write its folder.

    Raises:
        InputError: settings, teacher, structures or folder are refused.
        FloatingPointError: a training diverged.
    """
    configure_devices()
    console = terminal.console(DistilConfig)
    with one_run(Path(config.out)):
        found = distil(config, Tools(train.run, functools.partial(sweep.run, brief=True)), console.print)
        write_distillation(config, found, console)
    return found


def main() -> int:
    """Run the command; returns its exit code."""
    return run_command("jaxpto.distil", DistilConfig, run)


if __name__ == "__main__":
    leave(main())
