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

# Environment variable. With 0, MLX's own BLAS is used: matrix products are 20 to 30 times slower on Linux.
USE_FAST_BLAS_ENV_VAR = "MLXLAVA_BLAS"

# Of a BLAS, MLX's hot paths call only cblas_sgemm. Both libraries have this function under another name.
_SGEMM_PARAMETERS = (
    "(i o, i ta, i tb, i m, i n, i k, f al, const f* a, i la, const f* b, i lb, f be, f* c, i lc)"
)
_ONEDNN_SHIM = f"""
typedef int i; typedef float f; typedef long l;
extern "C" {{
int dnnl_sgemm(char, char, l, l, l, f, const f*, l, const f*, l, f, f*, l);
void omp_set_num_threads(int);
void cblas_sgemm{_SGEMM_PARAMETERS} {{
  static thread_local bool alone = (omp_set_num_threads(1), true);
  char x = ta == 111 ? 'N' : 'T', y = tb == 111 ? 'N' : 'T';
  if (alone && o == 101) dnnl_sgemm(x, y, m, n, k, al, a, la, b, lb, be, c, lc);
  else dnnl_sgemm(y, x, n, m, k, al, b, lb, a, la, be, c, lc);
}}
}}
"""
_OPENBLAS_SHIM = f"""
typedef int i; typedef float f;
extern "C" {{
void scipy_cblas_sgemm{_SGEMM_PARAMETERS};
void cblas_sgemm{_SGEMM_PARAMETERS} {{ scipy_cblas_sgemm(o, ta, tb, m, n, k, al, a, la, b, lb, be, c, lc); }}
}}
"""


def preload_blas() -> tuple[str, str] | None:
    """Load oneDNN or OpenBLAS before MLX. The Linux wheel of MLX brings only the slow reference BLAS.

    Symbols of a library that was loaded with RTLD_GLOBAL come before those of MLX's own BLAS. So no
    LD_PRELOAD is needed (docs/decisions/001-openblas.md, docs/decisions/027-onednn.md).

    Returns:
        Name and path of the library; None if MLX's own is used.
    """
    if not sys.platform.startswith("linux") or os.environ.get(USE_FAST_BLAS_ENV_VAR, "1") == "0":
        return None
    for name, package, file, shim in (
        ("oneDNN", "onednn-cpu-gomp", "libdnnl.so.3", _ONEDNN_SHIM),
        ("OpenBLAS", "scipy-openblas32", "libscipy_openblas.so", _OPENBLAS_SHIM),
    ):
        library = _find_installed_file(package, file)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            if library:
                native.load_globally(library)
                native.load_globally(
                    native.build_library("blas", shim, depends_on=f"{library}{platform.machine()}")
                )
                return name, str(library)
    with contextlib.suppress(OSError):
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
        return "OpenBLAS", "libopenblas.so.0"
    return None


def _find_installed_file(package: str, name: str) -> Path | None:
    """The path of a file of an installed package; None if there is no such package or file."""
    with contextlib.suppress(PackageNotFoundError):
        for file in files(package) or []:
            if file.name == name:
                return Path(str(file.locate())).resolve()
    return None


def limit_to_one_thread(library: str) -> None:
    """Let OpenBLAS use one thread for a matrix product. The shim of oneDNN does so itself.

    Two threads gain nothing on one small frame. If another process uses the second core, each product waits
    for it: a frame takes 130 ms and not 4 (docs/decisions/001-openblas.md).
    """
    loaded = ctypes.CDLL(library)
    for name in ("scipy_openblas_set_num_threads", "openblas_set_num_threads"):
        if hasattr(loaded, name):
            getattr(loaded, name)(1)
            return
