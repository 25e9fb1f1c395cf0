"""What MLX runs on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mlxlava import backend
from mlxlava.backend import mx


def is_installed(package: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(package))
    return False


@pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or not any(map(is_installed, ("onednn-cpu-gomp", "scipy-openblas32")))
    or shutil.which("g++") is None,
    reason="oneDNN or OpenBLAS comes with the cpu extra on Linux, and needs g++",
)
def test_a_fast_blas_stands_before_the_blas_that_mlx_brings() -> None:
    assert backend.PRELOADED_BLAS is not None
    # The first library that has the name is the one that MLX calls.
    code = "import mlxlava.backend as b; print(b.PRELOADED_BLAS[1]); print(open('/proc/self/maps').read())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = ended.stdout.splitlines()
    assert any(lines[0] in line for line in lines[1:])


def test_the_blas_can_be_turned_off() -> None:
    code = "import mlxlava.backend as b; print(b.PRELOADED_BLAS, b.has_slow_blas())"
    environment = {**os.environ, "MLXLAVA_BLAS": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert ended.stdout.split() == ["None", str(sys.platform.startswith("linux") and backend.on_cpu())]


def test_matrix_products_are_right_in_every_orientation() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((37, 53), np.float32), rng.standard_normal((53, 29), np.float32)
    for left, right in (
        (mx.array(a), mx.array(b)),
        (mx.array(np.ascontiguousarray(a.T)).T, mx.array(b)),
        (mx.array(a), mx.array(np.ascontiguousarray(b.T)).T),
    ):
        assert np.allclose(np.array(left @ right), a @ b, atol=1e-4)


def test_the_machine_is_described() -> None:
    rows = backend.device_facts()
    assert rows["mlx"] and rows["processor"] and rows["device"].startswith(("CPU", "GPU"))
    assert backend.peak_memory_gb()["process"] > 0


# What a library finds in its environment, which is what MLX reads.
SETTINGS = """
import ctypes
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
def setting(name): return (getenv(name) or b"none").decode()
"""


def settings(code: str, **environment: str) -> list[str]:
    """What Python code prints, with these variables and without others that the package may set."""
    merged = {name: value for name, value in os.environ.items() if name not in OWN} | environment
    command = [sys.executable, "-c", SETTINGS + code]
    return subprocess.run(command, env=merged, capture_output=True, text=True, check=True).stdout.split()


OWN = ("MLX_ENABLE_TF32", "MLX_CONV_WINOGRAD_WORKING_SET")


def test_products_keep_the_precision_of_float32_unless_the_user_wants_otherwise() -> None:
    shown = "import mlxlava.backend\nprint(setting(b'MLX_ENABLE_TF32'))"
    assert settings(shown) == ["0"]
    assert settings(shown, MLX_ENABLE_TF32="1") == ["1"]
    # A host program may have MLX loaded and computed on a CPU; MLX has not looked then.
    assert settings(f"import mlx.core as mx\nmx.eval(mx.eye(4) @ mx.eye(4))\n{shown}") == ["0"]
    assert settings("import mlxlava\nprint(setting(b'MLX_ENABLE_TF32'))") == ["none"]


def test_half_precision_asks_for_exact_convolutions_unless_the_user_wants_otherwise() -> None:
    shown = "print(setting(b'MLX_CONV_WINOGRAD_WORKING_SET'))\n"
    asked = "import mlxlava.backend as b\n" + shown + "b.prefer_exact_half_convolutions()\n" + shown
    assert settings(asked) == ["none", "1"]
    assert settings(asked, MLX_CONV_WINOGRAD_WORKING_SET="4096") == ["4096", "4096"]
