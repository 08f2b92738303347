"""Memory that a process keeps for its next step, instead of giving it back to the system after each."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = 2**31 - 1  # bytes, as much as mallopt takes


def keep_memory() -> None:
    """Let malloc keep what is freed, of blocks up to 2 GiB, for the rest of this process.

    glibc takes blocks of 32 MiB and more from the system each time, as activations of a few images are, and the system clears
    them page by page. Kept, they make no peak higher; what that saves is in ``benchmarks/allocator.py``. Other C libraries than
    glibc go on as they do.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
