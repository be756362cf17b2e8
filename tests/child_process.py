"""Real child processes for tests that kill them or limit their disk, forked from a parent with the imports done."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

PARENT = """
import json, os, sys, traceback
for module in sys.argv[1:]:
    __import__(module)
print("ready", flush=True)
for line in sys.stdin:
    code, output = json.loads(line)
    child = os.fork()
    if child == 0:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = 0
        try:
            exec(code, {"__name__": "__main__"})
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 99
        sys.stdout.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Children:
    """Runs code in fresh child processes, one at a time."""

    def __init__(self, parent: subprocess.Popen[str], folder: Path) -> None:
        self.parent, self.output = parent, folder / "child-output"

    def start(self, code: str) -> int:
        """Start a child and give its process id."""
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.output.unlink(missing_ok=True)
        self.parent.stdin.write(json.dumps([code, str(self.output)]) + "\n")
        self.parent.stdin.flush()
        return int(self.parent.stdout.readline())

    def wait(self) -> tuple[int, str]:
        """Wait for the child to end; its exit code (negative: the signal) and what it printed."""
        assert self.parent.stdout is not None
        return int(self.parent.stdout.readline()), self.output.read_text() if self.output.exists() else ""

    def run(self, code: str) -> tuple[int, str]:
        """Run code to its end."""
        self.start(code)
        return self.wait()

    def _lines_printed(self) -> int:
        return self.output.read_text().count("\n") if self.output.exists() else 0

    def run_and_kill(self, code: str, lines: int, after: float) -> tuple[int, str]:
        """Kill a child with SIGKILL some seconds after it has printed so many lines."""
        child = self.start(code)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._lines_printed() < lines:
            time.sleep(0.002)
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return self.wait()


@contextlib.contextmanager
def children(folder: Path, *modules: str) -> Generator[Children]:
    """A parent process that has imported the modules and stands ready to fork children."""
    here = Path(__file__).parent
    # without the cache of compiled programs, whose loader writes to the output that tests read
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *modules],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=here.parent,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        yield Children(parent, folder)
