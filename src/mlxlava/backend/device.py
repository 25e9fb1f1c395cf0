"""The device that MLX runs on, and whether the code for GPUs is used.

Import this module before ``mlx.core``: on Linux the linear algebra library has to be in the process first
(cpu/blas.py).
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlxlava.backend.cpu import allocator, blas, mlx_kernels
from mlxlava.errors import UserError

# Arrays by name, nested.
Tree = dict[str, Any]

# Environment variable. With 1, a CPU runs the code that is written for GPUs: MLX's own operations on one
# stream, whole batches, no C++. The tests use it, since no GPU is at hand.
GPU_PATH_ENV_VAR = "MLXLAVA_GPU_PATH"

PRELOADED_BLAS = blas.preload_blas()
allocator.keep_freed_pages()
if sys.platform.startswith("linux"):
    mlx_kernels.prepare_kernel_folder()

# On an M5, and with CUDA, MLX rounds the factors of float32 products to TF32, which has 10 bits. Then the
# bases of R are no longer orthogonal, and states drift. MLX reads the variable once, at the first product on
# a GPU (env::enable_tf32 in its utils.h). So setting it here works even if a host program has imported MLX
# before, unless that program has already computed a product on a GPU.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

try:
    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx.utils import tree_flatten, tree_map
except ImportError as error:
    extra = "" if sys.platform == "darwin" else '; install "mlxlava[cpu]", or [cuda12] or [cuda13] for a GPU'
    raise UserError(f"mlx: no back end is installed ({error}){extra}") from error


def mlx_package_folder() -> Path:
    """The folder of the installed MLX, with its headers and its library."""
    return Path(str(mx.__file__)).parent


def arrays_by_name(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree, or of a list of trees, by their dotted paths: ``generator.up0.weight``."""
    return dict(tree_flatten(tree))


def start_computing(*arrays: Any) -> None:
    """Start to compute trees of arrays and return at once."""
    mx.async_eval(*arrays)  # type: ignore[no-untyped-call]  # MLX gives it no hint


def on_cpu() -> bool:
    """Whether MLX's default device is the CPU."""
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def on_cuda() -> bool:
    """Whether MLX's default device is an NVIDIA GPU."""
    return not on_cpu() and bool(mx.cuda.is_available())


# On CUDA, MLX launches operations in graphs: on an H100 of 100 operations each, on others of fewer. A step of
# many small operations waits for these launches. With 500 in each, a step of a lamp of 64×32 took 51 ms on an
# H100 in place of 78, in the same memory (docs/performance.md). MLX reads both variables at its first
# operation on the GPU. The second is the MB of inputs after which a graph is launched anyway.
if on_cuda():
    os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", "500")
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "8000")

if PRELOADED_BLAS is not None and on_cpu():
    blas.limit_to_one_thread(PRELOADED_BLAS[1])

_uses_gpu_path = not on_cpu() or os.environ.get(GPU_PATH_ENV_VAR, "0") == "1"


def on_gpu_path() -> bool:
    """Whether the code that is written for GPUs is used: on a GPU, or on a CPU if it was asked for.

    Code that differs by device asks this function. :func:`on_cpu` is only for figures and messages.
    """
    return _uses_gpu_path


@contextlib.contextmanager
def use_gpu_path(enabled: bool = True) -> Iterator[None]:
    """Use the code for GPUs, or that for CPUs, inside a block. Functions compiled before stay as they are."""
    global _uses_gpu_path
    previous, _uses_gpu_path = _uses_gpu_path, enabled
    try:
        yield
    finally:
        _uses_gpu_path = previous


def prefer_exact_half_convolutions() -> None:
    """Keep MLX on Metal from Winograd's F(6×6, 3×3), which is inexact in half precision.

    MLX uses this algorithm for 3×3 convolutions of many channels, and keeps intermediate results in the
    format of the input. A pull request of MLX measured 36 times the error of implicit matrix products, which
    sum in float32. With one byte of working memory MLX uses implicit matrix products instead.

    MLX reads the variable at each convolution (winograd_batch_step in its backend/metal/conv.cpp, from 0.32.2
    on). So it can be set at any time, and applies to everything that is evaluated later in this process. The
    cost: float32 convolutions lose Winograd as well, and need more multiplications. A value that the user has
    set is kept. Other devices do not read the variable.
    """
    os.environ.setdefault("MLX_CONV_WINOGRAD_WORKING_SET", "1")


def has_slow_blas() -> bool:
    """Whether matrix products run on the reference BLAS of MLX's Linux wheel, many times slower."""
    return sys.platform.startswith("linux") and on_cpu() and PRELOADED_BLAS is None


def processor_name() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, text=True, check=True, capture_output=True).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_facts() -> dict[str, str]:
    """The device, its memory and the BLAS, for ``mlxlava info`` and benchmark headers."""
    device = "GPU" if not on_cpu() else "CPU, the code for GPUs" if on_gpu_path() else "CPU"
    rows = {"mlx": version("mlx"), "device": device, "processor": processor_name()}
    info = mx.device_info() if not on_cpu() else {}
    for key in ("device_name", "architecture", "memory_size", "max_recommended_working_set_size"):
        if key in info:
            value = info[key]
            rows[key.replace("_", " ")] = f"{value / 1e9:.1f} GB" if isinstance(value, int) else str(value)
    if sys.platform.startswith("linux") and on_cpu():
        rows["cores"] = str(len(os.sched_getaffinity(0)))
        rows["BLAS"] = (
            "{} ({})".format(*PRELOADED_BLAS)
            if PRELOADED_BLAS
            else 'reference (many times slower; install "mlxlava[cpu]" and g++)'
        )
    return rows


__all__ = [
    "GPU_PATH_ENV_VAR",
    "PRELOADED_BLAS",
    "Tree",
    "arrays_by_name",
    "device_facts",
    "has_slow_blas",
    "mlx_package_folder",
    "mx",
    "on_cpu",
    "on_gpu_path",
    "optim",
    "prefer_exact_half_convolutions",
    "processor_name",
    "start_computing",
    "tree_map",
    "use_gpu_path",
]
