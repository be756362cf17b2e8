"""Memory of the process: how the C library treats what programs use again and again, and how much it was."""

from __future__ import annotations

import contextlib
import ctypes
import pathlib
import resource
import sys

import jax

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # M_... in glibc's malloc.h
KEPT = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks for the next call, up to 1 GiB; returns whether this C library can.

    At every call XLA allocates the temporary arrays of a program on a processor anew. Of blocks above 32 MiB, or above
    64 MiB in threads of their own arena, glibc gives each back to the system, which clears every page once more at the
    next call: for a training step of 100 MiB that was a quarter of the processor time.
    """
    if sys.platform != "linux":
        return False
    try:
        change = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all([change(_ARENA_MAX, 1), change(_MMAP_THRESHOLD, KEPT), change(_TRIM_THRESHOLD, KEPT)])


def reset_peak_memory() -> None:
    """Let `peak_memory` count from here, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Most memory that this process has held since `reset_peak_memory`, GiB; of an accelerator, since its start."""
    held = jax.local_devices()[0].memory_stats()
    if held:
        return held["peak_bytes_in_use"] / 2**30
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 2**20 if sys.platform != "darwin" else kilobytes / 2**30
