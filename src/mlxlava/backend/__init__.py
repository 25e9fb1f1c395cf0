"""The one door to MLX: its device, its memory and the operations that differ from device to device.

Every other module of the package takes all of MLX through here, since on Linux the linear algebra library has
to be in the process before ``mlx.core`` is::

    from mlxlava.backend import mx, tree_map
"""

from mlxlava.backend.device import (
    BLAS,
    GPU_PATH_SWITCH,
    Tree,
    describe,
    gpu_path,
    has_slow_blas,
    mx,
    mx_folder,
    named_arrays,
    on_cpu,
    on_gpu_path,
    optim,
    prefer_exact_half_convolutions,
    processor,
    queue,
    tree_map,
)
from mlxlava.backend.kernels import Kernel, kernels
from mlxlava.backend.memory import held_memory, limit_memory, memory_budget, peak_memory, resident_memory

__all__ = [
    "BLAS",
    "GPU_PATH_SWITCH",
    "Kernel",
    "Tree",
    "describe",
    "gpu_path",
    "has_slow_blas",
    "held_memory",
    "kernels",
    "limit_memory",
    "memory_budget",
    "mx",
    "mx_folder",
    "named_arrays",
    "on_cpu",
    "on_gpu_path",
    "optim",
    "peak_memory",
    "prefer_exact_half_convolutions",
    "processor",
    "queue",
    "resident_memory",
    "tree_map",
]
