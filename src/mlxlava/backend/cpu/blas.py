"""The linear algebra library that MLX calls on Linux CPUs: oneDNN or OpenBLAS in place of its own slow one.

MLX is not imported here, since the library has to be loaded before it (backend/device.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from mlxlava.backend.cpu import native

# Set to 0 to run with the BLAS that MLX brings (20 to 30 times slower matmuls on Linux).
BLAS_SWITCH = "MLXLAVA_BLAS"

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


def preload() -> tuple[str, str] | None:
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


def take_one_thread(library: str) -> None:
    """Let OpenBLAS use one thread for a matrix product; oneDNN's shim does so itself.

    Two threads gain nothing on one small frame, and where another process has the second core each
    product waits for it: 130 ms a frame against 4 (docs/decisions.md, "OpenBLAS").
    """
    loaded = ctypes.CDLL(library)
    for name in ("scipy_openblas_set_num_threads", "openblas_set_num_threads"):
        if hasattr(loaded, name):
            getattr(loaded, name)(1)
            return
