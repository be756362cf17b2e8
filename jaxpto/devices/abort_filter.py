"""A filter for the stderr of a process in a run of several: it prints one line in place of XLA's stack dump.

When another process of the run is gone, JAX's coordination client ends this one from C++, where Python cannot catch it.
The module runs as a script, as a process of its own.
"""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import BinaryIO

_FATAL = re.compile(rb"F\d{4} .*JAX distributed service detected fatal errors")
_CHATTER = re.compile(rb"([WE]\d{4} .*(coordination|distributed|grpc)|WARNING: All log messages before absl)")
_SILENT = re.compile(rb"stopped sending heartbeats\):\s*([\d, \n]+)")


def explain(dump: bytes) -> str:
    """What the dump of an abort means, in words for the user."""
    if b"RegisterTask" in dump:
        return "not all processes of the run have come; start all of them with the same address and number"
    silent = _SILENT.search(dump)
    which = f"process {silent[1].split()[0].decode().strip(',')}" if silent else "another process"
    return f"{which} of the run is gone, so this one ends too; the same commands with --resume go on"


def copy(source: BinaryIO, sink: BinaryIO, program: str) -> None:
    """Pass lines on until the stream ends; replace a dump by one line."""
    for line in source:
        if _FATAL.match(line):
            sink.write(f"{program}: {explain(line + source.read())}\n".encode())
        elif not _CHATTER.match(line):
            sink.write(line)
        sink.flush()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it lives as long as its process, that is all
        signal.signal(number, signal.SIG_IGN)
    given = Path(sys.argv[1])
    copy(sys.stdin.buffer, sys.stderr.buffer, f"jaxpto.{given.stem}" if given.suffix == ".py" else given.name)
