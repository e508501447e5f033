"""Memory that a process frees and soon wants again, kept instead of given back to the system."""

from __future__ import annotations

import ctypes
import functools
import os

import torch

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_… of glibc's malloc.h
_KEPT = 2**30


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of freed memory, once for the process; returns whether it will.

    By itself it gives large tensors back as they are freed, and every page of the next one is fetched and zeroed anew:
    up to two thirds of an update's time with a large vocabulary. Only where a CPU computes, and not where the user has
    set one of glibc's `MALLOC_…` variables.
    """
    if torch.accelerator.is_available() or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
