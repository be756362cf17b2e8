"""What all commands share: signals that interrupt once and never get lost, and output that nobody reads."""

import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxpto.console import command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt_once(number):
    with command._terminated_is_interrupted():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(number)  # while the command saves
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with command._terminated_is_interrupted():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_in_the_garbage_collector_is_not_lost():
    """Python drops what is raised in a callback of the collector; a sweep then ran on after Ctrl-C."""
    struck = []

    def callback(phase: str, info: dict) -> None:
        if not struck:
            struck.append(phase)
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    try:
        with command._terminated_is_interrupted(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
            gc.collect()
            assert struck
            time.sleep(10.0)
    finally:
        gc.callbacks.remove(callback)


def test_output_that_nobody_reads_ends_nothing(tmp_path):
    code = (
        "import dataclasses, pathlib; from rich.console import Console\n"
        "from jaxpto.console.command import leave, run_command\n"
        "@dataclasses.dataclass\n"
        "class Config:\n    out: str = ''\n"
        "def run(config):\n"
        "    [print('line', n, flush=True) for n in range(100)]\n"
        "    [Console().print('line', n) for n in range(100)]\n"
        "    pathlib.Path(config.out).write_text('done')\n"
        "leave(run_command('x', Config, run))"
    )
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        arguments = [sys.executable, "-c", code, "--out", str(tmp_path / "file")]
        ran = subprocess.run(arguments, stdout=closed, stderr=subprocess.PIPE)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert (tmp_path / "file").read_text() == "done"
