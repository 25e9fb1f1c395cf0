"""Memory: how much MLX may use, limits that keep a machine from swapping, and how much is in use."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import sys
from pathlib import Path

from mlxlava.backend.device import mx, on_cpu

# Share of a Mac's memory that MLX may use, including buffers that it keeps for later. The rest is for the
# process itself, the system and other programs. A Mac that swaps is slower than one that works on smaller
# batches.
_SHARE_OF_MAC_MEMORY = 0.6
# Share of an NVIDIA GPU's free memory. The rest is for CUDA itself, its libraries and compiled kernels.
_SHARE_OF_FREE_GPU_MEMORY = 0.9
_MAX_SHARE_OF_GPU_MEMORY = 0.95  # of all its memory: MLX's own limit on CUDA
_SHARE_OF_CPU_MEMORY = 0.75


def memory_budget_gb() -> float:
    """GB that MLX's arrays may take here.

    On a Mac it is 0.6 of the memory, but never more than the device recommends. On an NVIDIA GPU it is nine
    tenths of the free memory, and on a CPU three quarters of all memory.
    """
    if not on_cpu():
        info = mx.device_info()
        if "max_recommended_working_set_size" in info:  # Metal
            memory = int(info.get("memory_size", 0)) or _system_memory_bytes()
            return min(_SHARE_OF_MAC_MEMORY * memory, int(info["max_recommended_working_set_size"])) / 1e9
        if "free_memory" in info:  # CUDA: memory that MLX holds now does not count as free
            ours = mx.get_active_memory() + mx.get_cache_memory()
            free = min(int(info["free_memory"]) + ours, int(info["total_memory"]))
            return _SHARE_OF_FREE_GPU_MEMORY * free / 1e9
    return _SHARE_OF_CPU_MEMORY * _system_memory_bytes() / 1e9


def system_memory_gb() -> float:
    """GB of memory that this machine has."""
    return _system_memory_bytes() / 1e9


def limit_memory(gigabytes: float | None = None) -> float:
    """Keep MLX's buffers small enough that a 16 GB Mac does not swap.

    MLX keeps freed buffers for later use. Before arrays and kept buffers together pass the limit, MLX waits
    for running work and gives kept buffers back to the system. Kept buffers have no smaller limit of their
    own: a step that frees more memory than that limit would return buffers and request them anew each time.
    Weights and optimiser states may be wired, so that the system does not page them out.

    Args:
        gigabytes: memory for MLX in GB; ``memory_budget_gb`` when None.

    Returns:
        The limit, GB: what was asked for, or the most that the device allows if that is less.
    """
    wanted = gigabytes or memory_budget_gb()
    if on_cpu():
        return wanted  # the CPU back end keeps hardly any buffers, and has no wired memory
    info = mx.device_info()
    recommended = int(info.get("max_recommended_working_set_size", 0))
    most = recommended or _MAX_SHARE_OF_GPU_MEMORY * int(info.get("total_memory", 0))
    limit = int(min(wanted * 1e9, most or math.inf))
    mx.set_memory_limit(limit)
    mx.set_cache_limit(limit)
    if mx.metal.is_available():
        mx.set_wired_limit(min(limit, recommended))
    return limit / 1e9


def peak_held_memory_gb() -> float:
    """The most memory in GB that MLX is known to have held since its peak was last reset.

    It is the peak of arrays, or the arrays and kept buffers of now if these are more. Kept buffers that were
    given back in the meantime are not counted.
    """
    return max(mx.get_peak_memory(), mx.get_active_memory() + mx.get_cache_memory()) / 1e9


def peak_memory_gb() -> dict[str, float]:
    """Peak memory in GB: MLX's live arrays, and the whole process as the system counts it.

    On macOS the figure of the process is what Activity Monitor shows. It includes GPU memory.
    """
    counted = _macos_process_usage()
    if counted is not None:
        process = float(counted.ri_lifetime_max_phys_footprint)
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in kB on Linux
        process = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return {"mlx": mx.get_peak_memory() / 1e9, "process": process / 1e9}


def resident_memory_gb() -> float:
    """Memory of the process now, in GB; its peak so far where the system does not tell the present one."""
    counted = _macos_process_usage()
    if counted is not None:
        return int(counted.ri_phys_footprint) / 1e9
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 1e9
    return peak_memory_gb()["process"]


def _system_memory_bytes() -> int:
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


def _macos_process_usage() -> RusageInfoV4 | None:
    """The resources that macOS counts for this process. None on other systems, and if macOS does not answer.

    ``getrusage`` counts resident pages, and these most likely do not include buffers of the GPU.
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
