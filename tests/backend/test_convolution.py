"""Convolutions on either path: values and gradients of first and second order are those of the definition."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from mlxlava.backend import mx, on_cpu, on_gpu_path, use_gpu_path
from mlxlava.backend.cpu import convolution
from mlxlava.backend.ops import Convolution, conv3, conv4_stride2, conv4_transposed
from tests.definitions import spread, taps

pytestmark = pytest.mark.device


def defined(form: Convolution) -> Convolution:
    if form is conv4_transposed:
        return spread
    return lambda x, w: taps(x, w, 2 if form is conv4_stride2 else 1)


def close(a: mx.array, b: mx.array) -> bool:
    """To 1e-5 of the largest number: sums of tiles are no more exact than the largest of their terms."""
    return float(mx.abs(a - b).max()) <= 1e-5 * float(mx.abs(b).max())


@pytest.mark.parametrize("size", [(8, 12), (6, 10)], ids=["even halves", "odd halves"])
# Few channels on either side are another way than many.
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 7), (18, 3), (18, 20)])
@pytest.mark.parametrize(("form", "side"), [(conv3, 3), (conv4_stride2, 4), (conv4_transposed, 4)])
@pytest.mark.parametrize("on_gpu", [False, True], ids=["CPU path", "GPU path"])
def test_forms_are_what_they_are_defined_as(
    form: Convolution,
    side: int,
    inputs: int,
    outputs: int,
    size: tuple[int, int],
    on_gpu: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlxlava.backend.ops.MAX_PATCH_BYTES", 40_000)  # the clips in two to four chunks
    if form is conv3 and size == (6, 10):
        size = (5, 7)  # tiles of 2×2 do not fit
    keys = mx.random.split(mx.random.key(0), 2)
    x = mx.random.normal((4, *size, inputs), key=keys[0])
    weight = mx.random.normal((outputs, side, side, inputs), key=keys[1])
    slow = defined(form)
    with use_gpu_path(on_gpu):
        assert form(x, weight).shape == slow(x, weight).shape
        assert close(form(x, weight), slow(x, weight))

        def loss(of: Convolution, x: mx.array, weight: mx.array) -> mx.array:
            # No plain sum, so that every output pixel has a gradient of its own.
            total: mx.array = (of(x, weight) ** 2).sum()
            return total

        def penalty(of: Convolution, x: mx.array, weight: mx.array) -> mx.array:
            by_x, by_weight = mx.grad(lambda x, w: loss(of, x, w), argnums=(0, 1))(x, weight)
            total: mx.array = (by_x**2).sum() + (by_weight**2).sum()
            return total

        for of_both in (loss, lambda *args: 1e-4 * penalty(*args)):
            fast_both = mx.grad(lambda x, w, of=of_both: of(form, x, w), argnums=(0, 1))(x, weight)
            slow_both = mx.grad(lambda x, w, of=of_both: of(slow, x, w), argnums=(0, 1))(x, weight)
            assert all(map(close, fast_both, slow_both))


def test_it_compiles() -> None:
    x = mx.random.normal((2, 6, 10, 5), key=mx.random.key(0))
    weight = mx.random.normal((7, 4, 4, 5), key=mx.random.key(1))
    compiled = mx.compile(lambda x, w: conv4_transposed(x, w).sum())
    assert np.isclose(
        compiled(x, weight).item(), defined(conv4_transposed)(x, weight).sum().item(), rtol=1e-4
    )


def test_cpus_of_linux_have_operations_of_their_own() -> None:
    on_linux = sys.platform.startswith("linux") and not on_gpu_path() and shutil.which("g++") is not None
    assert convolution.is_available() == (on_linux and version("mlx") in convolution.TESTED_MLX_VERSIONS)


@pytest.mark.skipif(
    not (on_cpu() and sys.platform.startswith("linux")), reason="only CPUs of Linux compile them"
)
def test_without_a_compiler_a_line_says_so_and_mlx_convolves(tmp_path: Path) -> None:
    code = """
from mlxlava.backend.cpu import convolution
from mlxlava.backend import mx
from mlxlava.backend.ops import conv3
assert not convolution.is_available()
assert conv3(mx.ones((1, 4, 4, 2)), mx.ones((3, 3, 3, 2))).sum().item() == 600
"""
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment["MLXLAVA_GPU_PATH"] = "0"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "slower, since g++ failed" in done.stderr.splitlines()[-1]
