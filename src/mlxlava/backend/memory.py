"""Memory: how much there is for MLX, limits that keep a machine from swapping, and what is taken."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import sys
from pathlib import Path

from mlxlava.backend.device import mx, on_cpu

# Share of a Mac's memory that MLX may take, buffers that are kept for later included. The rest is for the
# process itself, the system and whoever else is there; a Mac that swaps is slower than a smaller step.
_SHARE_OF_MAC = 0.6
# Share of an NVIDIA GPU's free memory. The rest is for CUDA itself, its libraries and compiled kernels.
_SHARE_OF_CARD = 0.9
_MOST_OF_CARD = 0.95  # of all its memory: MLX's own limit on CUDA
_SHARE_FOR_CPU = 0.75


def memory_budget() -> float:
    """GB that MLX's arrays may take here.

    On a Mac 0.6 of its memory, but never more than the device recommends; on an NVIDIA GPU nine tenths of
    what is free; on a CPU three quarters of its memory.
    """
    if not on_cpu():
        info = mx.device_info()
        if "max_recommended_working_set_size" in info:  # Metal
            memory = int(info.get("memory_size", 0)) or _system_memory()
            return min(_SHARE_OF_MAC * memory, int(info["max_recommended_working_set_size"])) / 1e9
        if "free_memory" in info:  # CUDA: free memory is asked for anew each time, so ours is not in it
            ours = mx.get_active_memory() + mx.get_cache_memory()
            free = min(int(info["free_memory"]) + ours, int(info["total_memory"]))
            return _SHARE_OF_CARD * free / 1e9
    return _SHARE_FOR_CPU * _system_memory() / 1e9


def limit_memory(gigabytes: float | None = None) -> float:
    """Keep MLX's buffers small enough that a 16 GB Mac does not swap.

    MLX waits for what is under way, and gives buffers that it keeps for later back to the system, before
    arrays and kept buffers together pass the memory limit. Kept buffers have no smaller limit of their own:
    a step that frees more than that would give them back and ask for them anew each time. Weights and
    optimiser states may be wired, so that the system does not page them out while it looks for room.

    Args:
        gigabytes: memory for MLX; ``memory_budget`` when None.

    Returns:
        The limit, GB: what was asked for, or the most that the device allows if that is less.
    """
    wanted = gigabytes or memory_budget()
    if on_cpu():
        return wanted  # the CPU back end keeps hardly any buffers, and has no wired memory
    info = mx.device_info()
    recommended = int(info.get("max_recommended_working_set_size", 0))
    most = recommended or _MOST_OF_CARD * int(info.get("total_memory", 0))
    limit = int(min(wanted * 1e9, most or math.inf))
    mx.set_memory_limit(limit)
    mx.set_cache_limit(limit)
    if mx.metal.is_available():
        mx.set_wired_limit(min(limit, recommended))
    return limit / 1e9


def held_memory() -> float:
    """GB that MLX has held since its peak was last reset: the peak of arrays, or arrays and kept buffers now.

    Kept buffers that were given back since then are not in it.
    """
    return max(mx.get_peak_memory(), mx.get_active_memory() + mx.get_cache_memory()) / 1e9


def peak_memory() -> dict[str, float]:
    """Peak memory in GB: MLX's live arrays, and the whole process as the system counts it.

    On macOS that is what Activity Monitor shows, GPU memory included.
    """
    counted = _footprint()
    if counted is not None:
        process = float(counted.ri_lifetime_max_phys_footprint)
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in kB on Linux
        process = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return {"mlx": mx.get_peak_memory() / 1e9, "process": process / 1e9}


def resident_memory() -> float:
    """Memory of the process now, GB; its peak so far where the system does not say."""
    counted = _footprint()
    if counted is not None:
        return int(counted.ri_phys_footprint) / 1e9
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 1e9
    return peak_memory()["process"]


def _system_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class RusageInfoV4(ctypes.Structure):
    """macOS's ``struct rusage_info_v4`` (sys/resource.h): a UUID, then 35 numbers of 64 bits."""

    _fields_ = (
        ("ri_uuid", ctypes.c_uint8 * 16),
        ("ri_user_time", ctypes.c_uint64),
        ("ri_system_time", ctypes.c_uint64),
        ("ri_pkg_idle_wkups", ctypes.c_uint64),
        ("ri_interrupt_wkups", ctypes.c_uint64),
        ("ri_pageins", ctypes.c_uint64),
        ("ri_wired_size", ctypes.c_uint64),
        ("ri_resident_size", ctypes.c_uint64),
        ("ri_phys_footprint", ctypes.c_uint64),
        ("ri_proc_start_abstime", ctypes.c_uint64),
        ("ri_proc_exit_abstime", ctypes.c_uint64),
        ("ri_child_user_time", ctypes.c_uint64),
        ("ri_child_system_time", ctypes.c_uint64),
        ("ri_child_pkg_idle_wkups", ctypes.c_uint64),
        ("ri_child_interrupt_wkups", ctypes.c_uint64),
        ("ri_child_pageins", ctypes.c_uint64),
        ("ri_child_elapsed_abstime", ctypes.c_uint64),
        ("ri_diskio_bytesread", ctypes.c_uint64),
        ("ri_diskio_byteswritten", ctypes.c_uint64),
        ("ri_cpu_time_qos_default", ctypes.c_uint64),
        ("ri_cpu_time_qos_maintenance", ctypes.c_uint64),
        ("ri_cpu_time_qos_background", ctypes.c_uint64),
        ("ri_cpu_time_qos_utility", ctypes.c_uint64),
        ("ri_cpu_time_qos_legacy", ctypes.c_uint64),
        ("ri_cpu_time_qos_user_initiated", ctypes.c_uint64),
        ("ri_cpu_time_qos_user_interactive", ctypes.c_uint64),
        ("ri_billed_system_time", ctypes.c_uint64),
        ("ri_serviced_system_time", ctypes.c_uint64),
        ("ri_logical_writes", ctypes.c_uint64),
        ("ri_lifetime_max_phys_footprint", ctypes.c_uint64),
        ("ri_instructions", ctypes.c_uint64),
        ("ri_cycles", ctypes.c_uint64),
        ("ri_billed_energy", ctypes.c_uint64),
        ("ri_serviced_energy", ctypes.c_uint64),
        ("ri_interval_max_phys_footprint", ctypes.c_uint64),
        ("ri_runnable_time", ctypes.c_uint64),
    )


_RUSAGE_INFO_V4 = 4


def _footprint() -> RusageInfoV4 | None:
    """What macOS counts of this process; None elsewhere, and where it does not say.

    ``getrusage`` counts resident pages, and buffers of the GPU are most likely not among them.
    """
    if sys.platform != "darwin":
        return None
    counted = RusageInfoV4()
    try:
        system = ctypes.CDLL("/usr/lib/libSystem.B.dylib")
        failed = system.proc_pid_rusage(
            ctypes.c_int(os.getpid()), ctypes.c_int(_RUSAGE_INFO_V4), ctypes.byref(counted)
        )
    except (OSError, AttributeError):
        return None
    return None if failed else counted
