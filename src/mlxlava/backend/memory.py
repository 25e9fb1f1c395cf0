"""Memory: how much there is for MLX, limits that keep a machine from swapping, and what is taken."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

from mlxlava.backend.device import mx, on_cpu


def memory_budget() -> float:
    """GB that MLX's arrays may take here: what the device recommends, or three quarters of a CPU's memory."""
    if not on_cpu():
        recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
        if recommended:
            return recommended / 1e9
    # The rest is for the process itself, the system and whoever else is there.
    return 0.75 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def limit_memory(gigabytes: float | None = None) -> None:
    """Keep MLX's buffers small enough that a 16 GB Mac does not swap.

    What is freed stays in MLX's cache otherwise, until the system's memory is full. Weights and optimiser
    states may be wired, so that the system does not page them out while it looks for room.

    Args:
        gigabytes: memory for MLX; ``memory_budget`` when None.
    """
    if on_cpu():
        return  # the CPU back end has no buffer cache, and no wired memory
    limit = int((gigabytes or memory_budget()) * 1e9)
    mx.set_memory_limit(limit)
    mx.set_cache_limit(limit // 4)
    if mx.metal.is_available():
        recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
        mx.set_wired_limit(min(limit, recommended))


def peak_memory() -> dict[str, float]:
    """Peak memory in GB: MLX's live arrays, and the whole process as the system counts it."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in kB on Linux
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"mlx": mx.get_peak_memory() / 1e9, "process": process / 1e9}


def resident_memory() -> float:
    """Memory of the process now, GB; its peak so far where the system does not say (macOS)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 1e9
    return peak_memory()["process"]
