"""MLX, its device, its memory, and the operations that differ from device to device.

Every other module of the package imports MLX from here. On Linux the linear algebra library has to be loaded
before ``mlx.core``, and this room does that::

    from mlxlava.backend import mx, tree_map
"""

from mlxlava.backend.device import (
    GPU_PATH_ENV_VAR,
    PRELOADED_BLAS,
    Tree,
    arrays_by_name,
    device_facts,
    has_slow_blas,
    mlx_package_folder,
    mx,
    on_cpu,
    on_cuda,
    on_gpu_path,
    optim,
    prefer_exact_half_convolutions,
    processor_name,
    start_computing,
    tree_map,
    use_gpu_path,
)
from mlxlava.backend.kernel_count import GraphOperation, operations_of_graph
from mlxlava.backend.memory import (
    limit_memory,
    memory_budget_gb,
    peak_held_memory_gb,
    peak_memory_gb,
    resident_memory_gb,
    system_memory_gb,
)

__all__ = [
    "GPU_PATH_ENV_VAR",
    "PRELOADED_BLAS",
    "GraphOperation",
    "Tree",
    "arrays_by_name",
    "device_facts",
    "has_slow_blas",
    "limit_memory",
    "memory_budget_gb",
    "mlx_package_folder",
    "mx",
    "on_cpu",
    "on_cuda",
    "on_gpu_path",
    "operations_of_graph",
    "optim",
    "peak_held_memory_gb",
    "peak_memory_gb",
    "prefer_exact_half_convolutions",
    "processor_name",
    "resident_memory_gb",
    "start_computing",
    "system_memory_gb",
    "tree_map",
    "use_gpu_path",
]
