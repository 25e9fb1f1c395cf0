"""What MLX runs on: the BLAS preload, the allocator, the device and the code that suits it.

Import this module before ``mlx.core``: on Linux the linear algebra library has to be in the
process first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any, TypeVar

from mlxlava.backend.cpu import native
from mlxlava.errors import UserError

Part = TypeVar("Part")
Result = TypeVar("Result")

# Arrays by name, nested.
Tree = dict[str, Any]

# Set to 0 to run with the BLAS that MLX brings (20 to 30 times slower matmuls on Linux).
BLAS_SWITCH = "MLXLAVA_BLAS"

# How many of a CPU's cores to use; all that the process may use when it is not set.
CORES_SWITCH = "MLXLAVA_CORES"

# Set to 1 to take, on a CPU, the code that GPUs take: MLX's own operations on one stream, whole batches,
# no C++. The tests run it so, since no GPU is at hand.
GPU_PATH_SWITCH = "MLXLAVA_GPU_PATH"

# cblas_sgemm is all that MLX's hot paths call of a BLAS; both libraries have it under another name.
_SIGNATURE = "(i o, i ta, i tb, i m, i n, i k, f al, const f* a, i la, const f* b, i lb, f be, f* c, i lc)"
_ONEDNN = f"""
typedef int i; typedef float f; typedef long l;
extern "C" {{
int dnnl_sgemm(char, char, l, l, l, f, const f*, l, const f*, l, f, f*, l);
void omp_set_num_threads(int);
void cblas_sgemm{_SIGNATURE} {{
  static thread_local bool alone = (omp_set_num_threads(1), true);
  char x = ta == 111 ? 'N' : 'T', y = tb == 111 ? 'N' : 'T';
  if (alone && o == 101) dnnl_sgemm(x, y, m, n, k, al, a, la, b, lb, be, c, lc);
  else dnnl_sgemm(y, x, n, m, k, al, b, lb, a, la, be, c, lc);
}}
}}
"""
_OPENBLAS = f"""
typedef int i; typedef float f;
extern "C" {{
void scipy_cblas_sgemm{_SIGNATURE};
void cblas_sgemm{_SIGNATURE} {{ scipy_cblas_sgemm(o, ta, tb, m, n, k, al, a, la, b, lb, be, c, lc); }}
}}
"""


def _preload_blas() -> tuple[str, str] | None:
    """Load oneDNN or OpenBLAS before MLX, whose Linux wheel brings the slow reference BLAS.

    The symbols of a library loaded RTLD_GLOBAL come before those of MLX's own dependency, so
    no LD_PRELOAD is needed (docs/decisions.md, "OpenBLAS", "oneDNN").

    Returns:
        Name and path of the library; None where MLX's own is used.
    """
    if not sys.platform.startswith("linux") or os.environ.get(BLAS_SWITCH, "1") == "0":
        return None
    for name, package, file, shim in (
        ("oneDNN", "onednn-cpu-gomp", "libdnnl.so.3", _ONEDNN),
        ("OpenBLAS", "scipy-openblas32", "libscipy_openblas.so", _OPENBLAS),
    ):
        library = _installed_file(package, file)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            if library:
                native.load(library)
                native.load(native.build("blas", shim, of=f"{library}{platform.machine()}"))
                return name, str(library)
    with contextlib.suppress(OSError):
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
        return "OpenBLAS", "libopenblas.so.0"
    return None


def _installed_file(package: str, name: str) -> Path | None:
    """Where an installed package has put a file."""
    with contextlib.suppress(PackageNotFoundError):
        for file in files(package) or []:
            if file.name == name:
                return Path(str(file.locate())).resolve()
    return None


def _keep_freed_pages() -> None:
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


BLAS = _preload_blas()
_keep_freed_pages()
if sys.platform.startswith("linux"):
    native.keep_kernels_private()

# On an M5, and with CUDA, MLX rounds the factors of float32 products to the 10 bits of TF32. The bases that R
# rotates by are no longer orthogonal then, and states drift. MLX reads the variable at the first such product
# on a GPU and never again (env::enable_tf32 in its utils.h). So this also works after a host program has
# imported MLX, as long as that has computed no product on a GPU.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

try:
    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx.utils import tree_flatten, tree_map
except ImportError as error:
    extra = "" if sys.platform == "darwin" else '; install "mlxlava[cpu]", or [cuda12] or [cuda13] for a GPU'
    raise UserError(f"mlx: no back end is installed ({error}){extra}") from error


def mx_folder() -> Path:
    """Where MLX is installed, with its headers and its library."""
    return Path(str(mx.__file__)).parent


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree (or of several) under their dotted paths, ``generator.up0.weight``."""
    return dict(tree_flatten(tree))


def queue(*arrays: Any) -> None:
    """Start to compute trees of arrays and return at once."""
    mx.async_eval(*arrays)  # type: ignore[no-untyped-call]  # MLX gives it no hint


def on_cpu() -> bool:
    """Whether MLX's default device is the CPU."""
    return bool(mx.default_device().type == mx.DeviceType.cpu)


_gpu_path = not on_cpu() or os.environ.get(GPU_PATH_SWITCH, "0") == "1"


def on_gpu_path() -> bool:
    """Whether the code that is written for GPUs is taken: on a GPU, and on a CPU that is told to.

    Everything that is chosen by device asks this. :func:`on_cpu` is for figures and messages alone.
    """
    return _gpu_path


@contextlib.contextmanager
def gpu_path(taken: bool = True) -> Iterator[None]:
    """Take the code for GPUs, or not, for a while; what was compiled before keeps the code that it has."""
    global _gpu_path
    before, _gpu_path = _gpu_path, taken
    try:
        yield
    finally:
        _gpu_path = before


def prefer_exact_half_convolutions() -> None:
    """Keep MLX on Metal from Winograd's F(6×6, 3×3), which is inexact in half precision.

    MLX takes it for 3×3 convolutions of many channels and keeps its intermediate results in the format of
    the input. A pull request of MLX measured 36 times the error of implicit matrix products, which sum in
    float32. With one byte of working memory MLX takes those instead. It reads the variable at each
    convolution (winograd_batch_step in its backend/metal/conv.cpp, from 0.32.2 on), so it can be set at any
    time, and holds for what is evaluated later. It holds for the whole process: float32 convolutions lose
    Winograd as well, and take more multiplications. A value that the user has set is kept. Other devices do
    not read it.
    """
    os.environ.setdefault("MLX_CONV_WINOGRAD_WORKING_SET", "1")


def has_slow_blas() -> bool:
    """Whether matrix products run on the reference BLAS of MLX's Linux wheel, many times slower."""
    return sys.platform.startswith("linux") and on_cpu() and BLAS is None


def _take_one_blas_thread() -> None:
    """Let OpenBLAS use one thread for a matrix product; oneDNN's shim does so itself.

    Two threads gain nothing on one small frame, and where another process has the second core each
    product waits for it: 130 ms a frame against 4 (docs/decisions.md, "OpenBLAS").
    """
    if BLAS is not None:
        library = ctypes.CDLL(BLAS[1])
        for name in ("scipy_openblas_set_num_threads", "openblas_set_num_threads"):
            if hasattr(library, name):
                getattr(library, name)(1)
                return


def _make_lanes() -> list[Any]:
    """A CPU stream for each core that may be used; none where one stream does (GPU, macOS, one core).

    MLX's CPU back end gives a stream one thread for all that it does. Only BLAS would take more, and then
    its threads spin while everything else runs on one. So BLAS gets one thread, and work is laid side by
    side (docs/decisions.md, "Side by side"). MLXLAVA_CORES says how many cores to use; all if not set.
    """
    if not on_cpu() or sys.platform == "darwin":
        return []
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(KeyError, ValueError):
        cores = min(cores, int(os.environ[CORES_SWITCH]))
    _take_one_blas_thread()
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(cores)] if cores > 1 else []


_LANES = _make_lanes()
_PART_PIXELS = 2**20  # of frames: 256 of 64×64


def parallel_streams() -> Sequence[Any]:
    """For ``mx.stream``, in turns: on a CPU its lanes, whose work runs side by side; else the device."""
    return _LANES if _LANES and not on_gpu_path() else [mx.default_device()]


def side_by_side(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``function`` of each part; on the CPU they take turns on its cores, gradients included.

    Only the graph is built here, and MLX lets a stream wait for another where it needs its results.
    """
    if not _LANES or on_gpu_path() or len(parts) == 1:
        return [function(part) for part in parts]
    results = []
    for index, part in enumerate(parts):
        with mx.stream(_LANES[index % len(_LANES)]):
            results.append(function(part))
    return results


def part_count(items: int, pixels: int) -> int:
    """In how many parts ``items`` of ``pixels`` each are best worked on; each part has one at least.

    On the CPU a part's arrays should stay in the cache from one pass to the next, and memory that is taken
    ahead of its use is in proportion to a part. A GPU wants all at once.
    """
    if on_gpu_path():
        return 1
    lanes = max(len(_LANES), 1)
    wanted = -(-items * pixels // _PART_PIXELS)
    return max(1, min(items, -(-wanted // lanes) * lanes))


def processor() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, text=True, check=True, capture_output=True).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe() -> dict[str, str]:
    """The device, its memory and the BLAS, for ``mlxlava info`` and benchmark headers."""
    device = "GPU" if not on_cpu() else "CPU, the code for GPUs" if on_gpu_path() else "CPU"
    rows = {"mlx": version("mlx"), "device": device, "processor": processor()}
    info = mx.device_info() if not on_cpu() else {}
    for key in ("device_name", "architecture", "memory_size", "max_recommended_working_set_size"):
        if key in info:
            value = info[key]
            rows[key.replace("_", " ")] = f"{value / 1e9:.1f} GB" if isinstance(value, int) else str(value)
    if sys.platform.startswith("linux") and on_cpu():
        rows["cores"] = str(len(os.sched_getaffinity(0)))
        rows["BLAS"] = (
            "{} ({})".format(*BLAS)
            if BLAS
            else 'reference (many times slower; install "mlxlava[cpu]" and g++)'
        )
    return rows


__all__ = [
    "BLAS",
    "BLAS_SWITCH",
    "GPU_PATH_SWITCH",
    "Tree",
    "describe",
    "gpu_path",
    "has_slow_blas",
    "mx",
    "mx_folder",
    "named_arrays",
    "on_cpu",
    "on_gpu_path",
    "optim",
    "parallel_streams",
    "part_count",
    "prefer_exact_half_convolutions",
    "processor",
    "queue",
    "side_by_side",
    "tree_map",
]
