"""COMMAND python -m jaxpto.pto_test: the paper's whole test of models' finite-temperature dynamics, with a verdict."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jaxpto.console import terminal
from jaxpto.console.command import FAILED, leave, run_command
from jaxpto.pto.answers import Answer
from jaxpto.pto.config import PtoTestConfig
from jaxpto.pto.driver import run_test
from jaxpto.pto.output import write_test


def run(config: PtoTestConfig) -> tuple[list[Answer], list[str]]:
    """Run the test, or go on with it, and write its page.

    Returns:
        The answer of every model, and a line for every stage that failed; nothing where only the plan is wanted, and
        in the processes of a run that do not tell of it.

    Raises:
        InputError: settings, models, structures or folder are refused; nothing is written then.
        StorageError: the disk fails; what was computed stays.
    """
    console = terminal.console(PtoTestConfig)
    failed = run_test(config, console)
    return ([], []) if failed is None else (write_test(config, console), failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 1 if a stage failed."""
    failed: list[str] = []
    code = run_command("jaxpto.pto_test", PtoTestConfig, lambda config: failed.extend(run(config)[1]), argv)
    if code or not failed:
        return code
    print(f"jaxpto.pto_test: {len(failed)} stage(s) failed: {'; '.join(failed)}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    leave(main())
