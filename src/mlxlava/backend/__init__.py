"""MLX, its device, its memory, and the operations that differ from device to device.

Every other module of the package imports MLX from here. On Linux the linear algebra library has to be loaded
before ``mlx.core``, and this room does that::

    from mlxlava.backend import mx, tree_map
"""

from mlxlava.backend.device import (
    GPU_PATH_ENV_VAR,
    LOADED_BLAS,
    Tree,
    device_rows,
    has_slow_blas,
    mx,
    mx_folder,
    named_arrays,
    on_cpu,
    on_gpu_path,
    optim,
    prefer_exact_half_convolutions,
    processor_name,
    start_computing,
    tree_map,
    use_gpu_path,
)
from mlxlava.backend.kernel_count import Kernel, graph_kernels
from mlxlava.backend.memory import (
    limit_memory,
    memory_budget_gb,
    peak_held_memory,
    peak_memory,
    resident_memory,
)

__all__ = [
    "GPU_PATH_ENV_VAR",
    "LOADED_BLAS",
    "Kernel",
    "Tree",
    "device_rows",
    "graph_kernels",
    "has_slow_blas",
    "limit_memory",
    "memory_budget_gb",
    "mx",
    "mx_folder",
    "named_arrays",
    "on_cpu",
    "on_gpu_path",
    "optim",
    "peak_held_memory",
    "peak_memory",
    "prefer_exact_half_convolutions",
    "processor_name",
    "resident_memory",
    "start_computing",
    "tree_map",
    "use_gpu_path",
]
