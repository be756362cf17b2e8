"""How the C library treats memory that compiled programs use again and again."""

from __future__ import annotations

import ctypes
import sys

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
