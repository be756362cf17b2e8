"""Memory of compiled programs that is kept from call to call."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# maps and frees 96 MiB five times, as a program does at every call; prints how often a page had to be cleared
PROGRAM = """
import ctypes, resource, threading
from jaxpto.devices.host_memory import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def once():
    block = library.malloc(96 << 20)
    ctypes.memset(block, 1, 96 << 20)
    library.free(block)

def measure():
    once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        once()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_freed_memory_is_kept() -> None:
    faults = {}
    for kept in (False, True):
        answer = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(kept=kept)], capture_output=True, text=True, check=True
        )
        faults[kept] = int(answer.stdout)
    assert faults[False] > 100  # what the test is about: otherwise it says nothing
    assert faults[True] < 0.1 * faults[False]
