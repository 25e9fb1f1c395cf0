"""A setting of Linux's memory allocator, so that the memory of large arrays is not cleared each time."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_pages() -> None:
    """Stop glibc from giving large blocks back to the kernel, which zeroes them anew each time.

    Otherwise every array above 32 MB is mapped and cleared anew, which takes a third of a training step
    (docs/decisions/002-allocator.md). Without mapping and trimming, freed blocks stay in the heap.
    """
    if not sys.platform.startswith("linux"):
        return
    m_trim_threshold, m_mmap_max = -1, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)  # as size_t: never
    except (OSError, AttributeError):  # musl and others: only slower
        return
