"""The memory allocator of Linux, set so that MLX's large arrays are not cleared anew each time."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_pages() -> None:
    """Stop glibc from giving large blocks back to the kernel, which zeroes them anew each time.

    Above 32 MB every tensor would be mapped and cleared afresh: a third of a training step
    (docs/decisions.md, "Allocator"). No mapping and no trimming keeps them in the heap.
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
