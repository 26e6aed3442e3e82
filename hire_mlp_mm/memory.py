"""Have glibc, Linux's usual allocator, keep the memory that is freed, or hand it back at once."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

# Options of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MMAP_MAX, NEVER = 65536, 2**31 - 1  # glibc's own, and the largest int
MIB = 2**20


def keep_memory() -> None:
    """Have this process keep what it frees for its next step, and not hand it back to Linux.

    By itself glibc hands large pieces back, and the next step gets new ones, each of whose pages
    Linux fills with zeros when it is first touched: up to a third of the time of a step on a CPU
    (docs/performance.md). The process then stays as large as it was at its largest.

    Nothing is done where there is no glibc, or where the environment sets the allocator.
    """
    if "LD_PRELOAD" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    set_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER})


def return_memory() -> None:
    """Have this process hand back what it frees at once, where that pays: pieces of 1 MiB."""
    set_options({M_MMAP_MAX: MMAP_MAX, M_MMAP_THRESHOLD: MIB, M_TRIM_THRESHOLD: 64 * MIB})


def restore_defaults() -> None:
    """Have this process do as glibc does in the long run: hand back pieces of 32 MiB."""
    set_options({M_MMAP_MAX: MMAP_MAX, M_MMAP_THRESHOLD: 32 * MIB, M_TRIM_THRESHOLD: 64 * MIB})


def trim() -> None:
    """Hand back what is free now."""
    if hand_back := function("malloc_trim"):
        hand_back(0)


def function(name: str) -> Any:
    """Find a function of glibc; return None where there is none."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def set_options(options: dict[int, int]) -> None:
    """Set options of mallopt, where there is one."""
    if set_option := function("mallopt"):
        for name, value in options.items():
            set_option(name, value)
