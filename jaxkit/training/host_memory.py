"""What becomes of freed memory, on the CPU backend."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt, from <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory instead of returning it to the kernel.

    XLA's CPU runtime allocates the temporaries of every step anew. By default glibc maps and
    unmaps them each time, and the kernel clears every page again: 35,000 page faults and about a
    quarter of the time of a step of the default language model. Call it before the first
    computation; the process then keeps its peak of memory until it ends.

    Returns:
        Whether the C library took it (glibc on Linux does).

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    return _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28, _ARENA_MAX: 1})


def share_freed_memory() -> bool:
    """Ask the C library to give what one thread freed to all, for jobs near the machine's memory.

    By default glibc keeps a heap for each of XLA's threads, up to eight a core, of 64 MB and more.

    Returns:
        Whether the C library took it (glibc on Linux does).

    Example:
        >>> share_freed_memory() in (True, False)
        True
    """
    return _set({_ARENA_MAX: 2})


def _set(settings: dict[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) == 1 for name, value in settings.items())
